"""ResNet-50 on ImageNet, pruned to half of its FLOPs, as in the Dagger paper (arXiv 2010.15041).

    accelerate launch --multi_gpu --mixed_precision bf16 docs/recipes/imagenet_resnet50.py --data imagenet --workers 8

The data are folders `train` and `val` with one folder of images per class. Without --weights, torchvision downloads its
own.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from common import arguments, prune_and_finetune
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import ImageFolder

from fxprune.models import load_model

NORMALIZE = transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def main(given: Sequence[str] | None = None) -> None:
    """Prune and fine-tune."""
    parser = arguments(__doc__, epochs=60, batch_size=512, lr=0.05, workers=8)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="torchvision:resnet50")
    parser.add_argument("--size", type=int, default=224)
    options = parser.parse_args(given)
    shown = transforms.Compose(
        [
            transforms.RandomResizedCrop(options.size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    whole = transforms.Compose(
        [
            transforms.Resize(options.size * 256 // 224),
            transforms.CenterCrop(options.size),
            transforms.ToTensor(),
            NORMALIZE,
        ]
    )
    loading = {
        "batch_size": options.batch_size,
        "num_workers": options.workers,
        "pin_memory": torch.cuda.is_available(),
    }
    train = DataLoader(ImageFolder(options.data / "train", shown), shuffle=True, drop_last=True, **loading)
    test = DataLoader(ImageFolder(options.data / "val", whole), **loading)
    if options.weights is None:
        model = load_model(options.model, weights="IMAGENET1K_V1")
    else:
        model = load_model(options.model, weights=None)
        model.load_state_dict(load_file(options.weights))
    model = model.to(memory_format=torch.channels_last)
    prune_and_finetune(model, torch.zeros(1, 3, options.size, options.size), train, test, options)


if __name__ == "__main__":
    main()
