"""The entries of removed channels, where an op reads all channels."""

from __future__ import annotations

from typing import Any

from invariant import check_invariant, image
from layer_nets import WRITTEN_OUT, images, invariant_test
from torch import Tensor

NETS = {
    **{name: (make, image(), 8) for name, make in WRITTEN_OUT.items()},
    "what is written into on the way is frozen": (
        lambda: images(lambda self, x: x * ((y := x - (u := x.mean(1, keepdim=True))), u.mul_(2), y.exp())[2].mean()),
        image(),
        0,
    ),
    "what is written into after its mean was taken": (
        lambda: images(lambda self, x: (m := x.mean(1, keepdim=True), x.add_(1))[1] * m),
        image(),
        8,
    ),
    "what is written into after its variance was taken is frozen": (
        lambda: images(lambda self, x: (v := x.var(1, keepdim=True), x[:, :, 1:].add_(1), x)[2] * v),
        image(),
        0,
    ),
}


test_ops_that_read_all_channels_keep_the_invariant = invariant_test(NETS)


def test_what_stands_in_is_made_once_however_often_it_is_used() -> None:
    def grown(self: Any, x: Tensor) -> Tensor:
        y = x.cosh()
        for _ in range(40):
            y = (y + y.tanh()) * 0.5
        return x - y.mean(1, keepdim=True)

    check_invariant(images(grown), image(), 8, plans=1)
