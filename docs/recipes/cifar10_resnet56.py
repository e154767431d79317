"""ResNet-56 on CIFAR-10, pruned to half of its FLOPs.

    accelerate launch docs/recipes/cifar10_resnet56.py --data cifar-10-batches-bin

The data are the files of the binary version: data_batch_1.bin to data_batch_5.bin and test_batch.bin. Without
--weights, the unpruned net is trained first.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import arguments, prune_and_finetune, small_resnet, trained
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

MEAN = torch.tensor([0.4914, 0.4822, 0.4465])[:, None, None]
STD = torch.tensor([0.2470, 0.2435, 0.2616])[:, None, None]


class Images(Dataset[tuple[Tensor, int]]):
    """Records of one label byte and 3 x 32 x 32 pixels; for training, shifted by up to four pixels and flipped."""

    def __init__(self, files: Sequence[Path], augment: bool) -> None:
        if not files:
            raise SystemExit("no *_batch*.bin files in the folder that --data names")
        records = np.concatenate([np.fromfile(file, np.uint8).reshape(-1, 3073) for file in files])
        self.labels = records[:, 0].astype(np.int64)
        self.images = torch.from_numpy(records[:, 1:].reshape(-1, 3, 32, 32))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        image = (self.images[index].float() / 255 - MEAN) / STD
        if self.augment:
            down, right, flip = (int(torch.randint(n, ())) for n in (9, 9, 2))
            image = torch.nn.functional.pad(image, (4, 4, 4, 4))[:, down : down + 32, right : right + 32]
            image = image.flip(-1) if flip else image
        return image, int(self.labels[index])


def main(given: Sequence[str] | None = None) -> None:
    """Train unless weights are given, prune, fine-tune."""
    parser = arguments(__doc__, gate_epochs=5, epochs=60, lr=0.05)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base-epochs", type=int, default=200)
    parser.add_argument("--blocks", type=int, default=9, help="9 for ResNet-56, 18 for ResNet-110")
    options = parser.parse_args(given)
    loading = {"batch_size": options.batch_size, "num_workers": options.workers}
    files = sorted(options.data.glob("data_batch_*.bin"))
    train = DataLoader(Images(files, augment=True), shuffle=True, drop_last=True, **loading)
    test = DataLoader(Images(sorted(options.data.glob("test_batch.bin")), augment=False), **loading)
    torch.manual_seed(0)
    model = small_resnet(options.blocks, channels=3)
    model = trained(model, train, test, options, epochs=options.base_epochs, lr=0.1)
    prune_and_finetune(model, torch.zeros(1, 3, 32, 32), train, test, options)


if __name__ == "__main__":
    main()
