"""Convolutions: dense, grouped both ways, depthwise, transposed, functional, shared."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from layer_nets import images, invariant_test, vectors
from torch import Tensor, nn
from torchvision.ops import DeformConv2d


def deformable(groups: int = 1, runs: int = 1, mask: bool = True) -> nn.Module:
    """A deformable convolution whose offsets and mask are made of what it convolves."""
    return net(
        lambda self, x: self.out(
            self.deform(y := self.stem(x).relu(), self.offset(y), self.mask(y).sigmoid() if mask else None).relu()
        ),
        stem=nn.Conv2d(3, 8, 1),
        offset=nn.Conv2d(8, runs * 18, 3, padding=1),
        mask=nn.Conv2d(8, runs * 9, 3, padding=1) if mask else None,
        deform=DeformConv2d(8, 8, 3, padding=1, groups=groups),
        out=nn.Conv2d(8, 2, 1),
    )


# name -> (model, inputs, channels that can be pruned)
NETS = {
    "deformable": (deformable, image(), 16),
    "deformable, without a mask": (lambda: deformable(mask=False), image(), 16),
    "deformable, in two conv groups": (lambda: deformable(groups=2), image(), 8),
    "deformable, each channel for itself": (lambda: deformable(groups=8), image(), 8),
    "deformable, with offsets of their own for two runs": (lambda: deformable(runs=2), image(), 12),
    "deformable, in conv groups and runs": (lambda: deformable(groups=2, runs=4), image(), 6),
    "with weights that are not zero where their parameters are": (
        lambda: net(
            lambda self, x: self.c(F.conv2d(self.a(x), 1 + self.w, groups=2).sum(1, keepdim=True)),
            a=nn.Conv2d(3, 8, 1),
            w=parameter(6, 4, 1, 1),
            c=nn.Conv2d(1, 2, 1),
        ),
        image(),
        4,
    ),
    "depthwise by a kernel that is repeated for each channel": (
        lambda: images(
            lambda self, x: F.conv2d(y := x.sigmoid(), self.k.repeat(y.shape[1], 1, 1, 1), groups=y.shape[1]),
            k=torch.rand(1, 1, 3, 3),
        ),
        image(),
        8,
    ),
    **{
        f"over tokens, {name}": (
            lambda layer=layer: net(
                lambda self, x: self.b(self.t(self.a(x)).sigmoid()), a=nn.Linear(4, 8), t=layer, b=nn.Linear(8, 2)
            ),
            tokens(),
            channels,
        )
        for name, layer, channels in (
            ("token by token", nn.Conv1d(5, 5, 1), 8),
            ("transposed", nn.ConvTranspose1d(5, 6, 1), 8),
            ("a kernel for each", nn.Conv1d(5, 5, 1, groups=5), 8),
            ("that looks at channels is frozen", nn.Conv1d(5, 5, 3, padding=1), 0),
        )
    },
    "over tokens, by a function": (
        lambda: vectors(lambda self, x: F.conv1d(x, self.w, stride=(1,)).sigmoid(), w=parameter(6, 5, 1)),
        tokens(),
        8,
    ),
    "along tokens, each channel the same": (
        lambda: vectors(lambda self, x: self.t(x[:, None])[:, 0], t=nn.Conv2d(1, 1, (3, 1), padding=(1, 0))),
        tokens(),
        8,
    ),
    "what a convolution over tokens adds to is not zero": (
        lambda: net(
            lambda self, x: self.t(self.a(x)) @ self.a(x).sigmoid().mT, a=nn.Linear(4, 8), t=nn.Conv1d(5, 5, 1)
        ),
        tokens(),
        0,
    ),
    "with a stride over channels is frozen": (
        lambda: vectors(lambda self, x: self.t(x), out=4, t=nn.Conv1d(5, 5, 1, stride=2)),
        tokens(),
        0,
    ),
    "a plain chain": (
        lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.Sigmoid(), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 2, 1)),
        image(),
        11,
    ),
    "without bias": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 2, 1, bias=False)), image(), 6),
    "in one dimension": (
        lambda: nn.Sequential(nn.Conv1d(3, 6, 3), nn.Tanh(), nn.Conv1d(6, 2, 3)),
        torch.randn(2, 3, 9),
        6,
    ),
    "in three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(1, 6, 2), nn.Tanh(), nn.Conv3d(6, 2, 2)),
        torch.randn(2, 1, 4, 4, 4),
        6,
    ),
    "an image without batch": (lambda: nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)), image()[0], 6),
    "padding given as a word": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3, padding="same", padding_mode="reflect"), nn.Conv2d(6, 2, 3, padding="same")
        ),
        image(),
        6,
    ),
    "two conv groups of many channels lose the same channels in each": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.ReLU(), nn.Conv2d(12, 2, 1)
        ),
        image(),
        4 + 6,
    ),
    "many conv groups go as wholes": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, groups=4), nn.ReLU(), nn.Conv2d(16, 2, 1)
        ),
        image(),
        4,
    ),
    "depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.ReLU6(), nn.Conv2d(6, 6, 3, groups=6), nn.ReLU6(), nn.Conv2d(6, 2, 1)
        ),
        image(),
        6,
    ),
    "depthwise with a multiplier": (
        lambda: nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 12, 3, groups=4), nn.SiLU(), nn.Conv2d(12, 2, 1)),
        image(),
        4,
    ),
    "depthwise on the input is frozen": (
        lambda: nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)),
        image(),
        4,
    ),
    "transposed": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 3), nn.ReLU(), nn.ConvTranspose2d(6, 4, 2, 2), nn.GELU(), nn.Conv2d(4, 2, 1)
        ),
        image(),
        10,
    ),
    "transposed in one and three dimensions": (
        lambda: net(
            lambda self, x, y: (self.b(self.a(x).sigmoid()), self.d(self.c(y).sigmoid())),
            a=nn.ConvTranspose1d(2, 5, 3),
            b=nn.Conv1d(5, 2, 1),
            c=nn.ConvTranspose3d(1, 4, 2),
            d=nn.Conv3d(4, 2, 1),
        ),
        (torch.randn(2, 2, 5), torch.randn(2, 1, 3, 3, 3)),
        9,
    ),
    "transposed with an output size": (
        lambda: net(
            lambda self, x: self.c(self.b(self.a(x), output_size=x.shape[2:])),
            a=nn.Conv2d(3, 6, 3, 2, 1),
            b=nn.ConvTranspose2d(6, 4, 3, 2, 1),
            c=nn.Conv2d(4, 2, 1),
        ),
        image(),
        10,
    ),
    "transposed with two conv groups": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ReLU(), nn.ConvTranspose2d(8, 12, 2, groups=2), nn.ReLU(), nn.Conv2d(12, 2, 1)
        ),
        image(),
        4 + 6,
    ),
    "transposed depthwise": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 6, 1), nn.ConvTranspose2d(6, 6, 2, 2, groups=6), nn.ReLU(), nn.Conv2d(6, 2, 1)
        ),
        image(),
        6,
    ),
    "functional": (
        lambda: net(
            lambda self, x: F.conv2d(F.conv2d(x, self.v, self.b).relu(), self.w, None, 1, 1),
            v=parameter(6, 3, 3, 3),
            b=parameter(6),
            w=parameter(2, 6, 3, 3),
        ),
        image(),
        6,
    ),
    "functional with conv groups": (
        lambda: images(lambda self, x: F.conv2d(x, self.w, groups=2).sigmoid(), out=12, w=parameter(12, 4, 3, 3)),
        image(),
        10,
    ),
    "functional depthwise whose groups are read from the tensor": (
        lambda: images(
            lambda self, x: F.conv2d(x, self.w, None, padding=1, groups=x.shape[1]), 6, 6, w=parameter(6, 1, 3, 3)
        ),
        image(),
        6,
    ),
    "functional transposed with conv groups": (
        lambda: images(
            lambda self, x: F.conv_transpose2d(x, self.w, stride=2, groups=2), out=12, w=parameter(8, 6, 2, 2)
        ),
        image(),
        10,
    ),
    "functional in one and three dimensions": (
        lambda: net(
            lambda self, x, y: (
                F.conv1d(F.conv1d(x, self.a).relu(), self.b),
                F.conv3d(F.conv_transpose3d(y, self.c), self.d),
            ),
            a=parameter(5, 2, 1),
            b=parameter(2, 5, 3),
            c=parameter(1, 4, 2, 2, 2),
            d=parameter(2, 4, 1, 1, 1),
        ),
        (torch.randn(2, 2, 5), torch.randn(2, 1, 3, 3, 3)),
        9,
    ),
    "a module called twice": (
        lambda: images(
            lambda self, x: self.block(self.block(x).relu()).sigmoid(), 6, 6, block=nn.Conv2d(6, 6, 3, padding=1)
        ),
        image(),
        6,
    ),
    "a grouped module called twice": (
        lambda: images(
            lambda self, x: self.block(self.block(x).relu()).sigmoid(), block=nn.Conv2d(8, 8, 3, padding=1, groups=2)
        ),
        image(),
        4,
    ),
    "a residual sum": (
        lambda: images(
            lambda self, x: x + self.two(self.one(x).relu()),
            *(6, 6),
            one=nn.Conv2d(6, 5, 3, padding=1),
            two=nn.Conv2d(5, 6, 1),
        ),
        image(),
        11,
    ),
    "a weight that is computed from the input": (
        lambda: net(
            lambda self, x: F.conv2d(self.stem(x), self.make(x.mean((0, 2, 3))).view(4, 6, 1, 1)),
            stem=nn.Conv2d(3, 6, 1),
            make=nn.Linear(3, 24),
        ),
        image(),
        6,
    ),
}


def of_complex_numbers(self: Any, x: Tensor) -> Tensor:
    z = self.one(torch.complex(x, x.flip(1)))
    z = torch.complex(z.real.relu(), z.imag.relu())
    return torch.view_as_real(self.up(self.groups(z) + self.two(z)))


NETS["complex numbers"] = (
    lambda: net(
        of_complex_numbers,
        one=nn.Conv2d(3, 8, 3, dtype=torch.cfloat),
        groups=nn.Conv2d(8, 4, 3, groups=2, dtype=torch.cfloat),
        two=nn.Conv2d(8, 4, 3, dtype=torch.cfloat),
        up=nn.ConvTranspose2d(4, 2, 3, dtype=torch.cfloat),
    ),
    image(),
    2,
)


# The first dimension is not the batch, or a weight is computed from all of the batch.
test_convolutions_keep_the_invariant = invariant_test(
    NETS, one_batch=("an image without batch", "a weight that is computed from the input")
)


def test_tied_weights_lose_the_same_channels() -> None:
    one, two = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.Conv2d(6, 6, 3, padding=1, bias=False)
    two.weight = one.weight
    graph = check_invariant(nn.Sequential(nn.Conv2d(3, 6, 1), one, nn.ReLU(), two, nn.Conv2d(6, 2, 1)), image(), 6)
    assert {"1.weight", "3.weight"} <= {dimension.parameter for dimension in graph.groups[0].dimensions}


def test_a_convolution_says_which_conv_groups_it_keeps_whole() -> None:
    graph = check_invariant(nn.Sequential(nn.Conv2d(3, 3, 3, groups=3), nn.Conv2d(3, 2, 1)), image(), 0)
    assert any("model input" in frozen.reason for frozen in graph.frozen)
