"""A small ResNet on Fashion-MNIST, pruned to half of its FLOPs, in minutes on a CPU.

    accelerate launch docs/recipes/fashion_mnist.py --data /usr/share/datasets/fashion-mnist

The data are the four `*-ubyte.gz` files, as in Debian's package dataset-fashion-mnist.
"""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from common import arguments, prune_and_finetune, small_resnet, trained
from torch import Tensor
from torch.utils.data import DataLoader, Dataset


class Images(Dataset[tuple[Tensor, Tensor]]):
    """One split, normalised; for training, shifted by up to two pixels and flipped."""

    def __init__(self, folder: Path, prefix: str, augment: bool) -> None:
        raw = gzip.decompress((folder / f"{prefix}-images-idx3-ubyte.gz").read_bytes())
        labels = gzip.decompress((folder / f"{prefix}-labels-idx1-ubyte.gz").read_bytes())
        pixels = np.frombuffer(raw, np.uint8, offset=16).reshape(-1, 1, 28, 28).astype(np.float32)
        self.images = (torch.from_numpy(pixels) / 255 - 0.2860) / 0.3530
        self.labels = torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).astype(np.int64))
        self.augment = augment

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image = self.images[index]
        if self.augment:
            down, right, flip = (int(torch.randint(n, ())) for n in (5, 5, 2))
            padded = torch.nn.functional.pad(image, (2, 2, 2, 2), value=-0.2860 / 0.3530)
            image = padded[:, down : down + 28, right : right + 28]
            image = image.flip(-1) if flip else image
        return image, self.labels[index]


def main(given: Sequence[str] | None = None) -> None:
    """Train, prune, fine-tune."""
    parser = arguments(__doc__, epochs=3, lr=0.05)
    parser.add_argument("--data", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    parser.add_argument("--base-epochs", type=int, default=5)
    parser.add_argument("--blocks", type=int, default=1)
    options = parser.parse_args(given)
    loading = {"batch_size": options.batch_size, "num_workers": options.workers}
    train = DataLoader(Images(options.data, "train", augment=True), shuffle=True, drop_last=True, **loading)
    test = DataLoader(Images(options.data, "t10k", augment=False), **loading)
    torch.manual_seed(0)
    model = small_resnet(options.blocks, channels=1, stride=2)
    model = trained(model, train, test, options, epochs=options.base_epochs, lr=0.1)
    prune_and_finetune(model, torch.zeros(1, 1, 28, 28), train, test, options)


if __name__ == "__main__":
    main()
