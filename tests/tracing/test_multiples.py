"""Branches for sizes that are multiples of a number, and for those that are not: the graph has one for all sizes."""

from __future__ import annotations

import copy
import itertools
import math
import pickle
from contextlib import nullcontext, suppress
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import image, net, randomise
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.running.resizing import resized_where_needed
from fxprune.verification import TOLERANCE


def model_of(forward: Any, **more: Any) -> nn.Module:
    return randomise(net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), **more))


def padded_and_cut(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    height, width = y.shape[2:]
    below, right = (4 - height % 4) % 4, (4 - width % 4) % 4
    if below or right:
        y = F.pad(y, (0, right, 0, below))
    y = y.unflatten(3, (-1, 4)).sum(4, keepdim=True).expand(-1, -1, -1, -1, 4).flatten(3)
    if below > 0 or right > 0:
        y = y[:, :, :height, :width].contiguous()
    return self.b(y)  # type: ignore[no-any-return]


def padded_where_odd(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    odd = y.shape[2] % 2 == 1 or y.shape[3] % 2 == 1
    if odd:
        y = F.pad(y, (0, y.shape[3] % 2, 0, y.shape[2] % 2))
    return self.b(y[:, :, ::2, ::2] + y[:, :, 1::2, 1::2])  # type: ignore[no-any-return]


def padded_to_the_next_multiple(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    height, width = (math.ceil(size / 4) * 4 for size in y.shape[2:])
    if height != y.shape[2] or width != y.shape[3]:
        y = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2]))
    return self.b(y)  # type: ignore[no-any-return]


def padded_by_what_is_missing(self: Any, x: Tensor) -> Tensor:
    """As in HiFi-GAN's discriminators: where nothing is missing, the difference is a whole multiple."""
    y = self.a(x)
    if y.shape[2] % 2 != 0:
        y = F.pad(y, (0, 0, 0, 2 - y.shape[2] % 2), "reflect")
    missing = y.shape[3] % 4
    if missing:
        y = F.pad(y, (0, 4 - missing, 0, 0), "reflect")
    return self.b(y.unflatten(3, (-1, 4)).cumsum(4).flatten(3))  # type: ignore[no-any-return]


PADDED = [padded_and_cut, padded_where_odd, padded_to_the_next_multiple]


@pytest.mark.parametrize("forward", [*PADDED, padded_by_what_is_missing])
@pytest.mark.parametrize("size", [8, 7])
def test_padding_to_a_multiple_is_for_all_sizes_whether_the_example_needs_it_or_not(forward: Any, size: int) -> None:
    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=size).double(), compensate=False)
    for other in (4, 5, 6, 7, 8):
        for training in (False, True):
            given = image(size=other, batch=3).double()
            assert fxprune.verify(model, pruned, given, training=training) <= TOLERANCE


@pytest.mark.parametrize("below", [2, 4])
@pytest.mark.parametrize("size", [8, 7])
def test_what_is_padded_by_a_whole_multiple_stays_so_or_is_refused(below: int, size: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[2] % below != 0 or y.shape[3] % 4 != 0:
            y = F.pad(y, (0, 4 - y.shape[3] % 4, 0, below - y.shape[2] % below))
        return self.b(y)  # type: ignore[no-any-return]

    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=size).double(), compensate=False)
    for height, width in itertools.product((5, 6, 7, 8), (5, 6, 7, 8)):
        with suppress(FxpruneError):
            given = image(size=8).double()[:, :, :height, :width]
            expected = copy.deepcopy(model).eval()(given)
            assert pruned.eval()(given).shape == expected.shape


def test_what_is_always_padded_by_a_whole_multiple_stays_so() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        if y.shape[2] % 2 != 0:
            y = F.pad(y, (0, 0, 0, 2 - y.shape[2] % 2))
        return self.b(F.pad(y, (0, 9 - y.shape[3] % 9)))  # type: ignore[no-any-return]

    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=7).double(), compensate=False)
    for other in (7, 8, 9):
        assert fxprune.verify(model, pruned, image(size=other).double()) <= TOLERANCE


def test_a_branch_for_what_remains_that_does_something_else_is_that_of_the_example() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y[:, :, :-1] if y.shape[2] % 2 else y)  # type: ignore[no-any-return]

    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=6).double(), compensate=False)
    assert fxprune.verify(model, pruned, image(size=8).double()) <= TOLERANCE
    with pytest.raises(FxpruneError, match=r"size\(2\) % 2"):
        pruned(image(size=7).double())


def resized_and_back(self: Any, x: Tensor) -> Tensor:
    """As in MobileViT: patches need sizes that are multiples."""
    y = self.a(x)
    size = tuple((n + 3) // 4 * 4 for n in y.shape[2:])
    changed = size != tuple(y.shape[2:])
    if changed:
        y = F.interpolate(y, size=size, mode="bilinear", align_corners=False)
    y = y.unflatten(3, (-1, 4)).cumsum(4).flatten(3)
    if changed:
        y = F.interpolate(input=y, size=x.shape[2:], mode="bilinear", align_corners=False)
    return self.b(y)  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [8, 7])
def test_images_are_resized_where_they_need_it_and_that_costs_nothing_elsewhere(size: int) -> None:
    model, example = model_of(resized_and_back), image(size=size).double()
    traced = fxprune.trace(model, example)
    assert fxprune.count_flops(traced, example) == fxprune.count_flops(model, example)
    assert fxprune.analyze(traced).flops.total == fxprune.count_flops(model, example)
    pruned = fxprune.prune(model, 0.6, example_inputs=example, compensate=False)
    again = pickle.loads(pickle.dumps(fxprune.trace(pruned, example)))
    for other in (4, 5, 7, 8):
        given = image(size=other, batch=3).double()
        for training in (False, True):
            assert fxprune.verify(model, pruned, given, training=training) <= TOLERANCE
        torch.testing.assert_close(again.eval()(given), pruned.eval()(given))


def resized_by_a_factor(self: Any, x: Tensor) -> Tensor:
    """As in vision transformers: positions for another number of patches, where a tenth more than a patch rounds."""
    y, table = self.a(x), self.table
    if y.flatten(2).shape[2] != self.table.flatten(2).shape[2]:
        factors = tuple((n + 0.1) / 6 for n in y.shape[2:])
        table = F.interpolate(table, scale_factor=factors, mode="bilinear", recompute_scale_factor=True)
    larger = F.interpolate(y * table, size=tuple(2 * n for n in y.shape[2:]))
    return self.b(larger)  # type: ignore[no-any-return]


def test_tables_are_resized_by_a_factor_and_that_costs_nothing_where_they_fit() -> None:
    model, example = model_of(resized_by_a_factor, table=nn.Parameter(torch.randn(1, 8, 6, 6))), image(size=6).double()
    traced = fxprune.trace(model, example)
    assert fxprune.count_flops(traced, example) == fxprune.count_flops(model, example)
    assert fxprune.analyze(traced).flops.total == fxprune.count_flops(model, example)
    pruned = fxprune.prune(model, 0.6, example_inputs=example, compensate=False)
    for other in (6, 8, 9):
        for training in (False, True):
            assert fxprune.verify(model, pruned, image(size=other, batch=3).double(), training=training) <= TOLERANCE


def pooled_and_back(self: Any, x: Tensor) -> Tensor:
    """As in DiCENet."""
    y = self.a(x)
    height, width = y.shape[2:]
    if height != 6 or width != 6:
        smaller = height < 6 or width < 6
        y = F.interpolate(y, size=(6, 6)) if smaller else F.adaptive_avg_pool2d(y, (6, 6))
    y = self.c(y)
    if y.shape[2] != height or y.shape[3] != width:
        if y.shape[2] < height or y.shape[3] < width:
            y = F.interpolate(y, size=(height, width))
        else:
            y = F.adaptive_avg_pool2d(y, output_size=(height, width))
    return self.b(y)  # type: ignore[no-any-return]


def test_images_are_pooled_where_they_need_it_and_that_costs_nothing_elsewhere() -> None:
    model, example = model_of(pooled_and_back, c=nn.Conv2d(8, 8, 3, padding=1)), image(size=6).double()
    traced = fxprune.trace(model, example)
    assert fxprune.count_flops(traced, example) == fxprune.count_flops(model, example)
    assert fxprune.analyze(traced).flops.total == fxprune.count_flops(model, example)
    pruned = fxprune.prune(model, 0.6, example_inputs=example, compensate=False)
    for other in (6, 8, 5):
        with suppress(FxpruneError) if other == 5 else nullcontext():
            for training in (False, True):
                given = image(size=other, batch=3).double()
                assert fxprune.verify(model, pruned, given, training=training) <= TOLERANCE


def test_a_graph_of_other_sizes_is_exported_and_compiled() -> None:
    model = model_of(resized_and_back).eval()
    traced = fxprune.trace(model, image(size=8).double())
    assert any(node.target is resized_where_needed for node in traced.graph.nodes)
    for size in (8, 7):
        given = image(size=size).double()
        torch.testing.assert_close(torch.compile(traced, backend="eager")(given), model(given))
        program = torch.export.export(traced, (given,))
        torch.testing.assert_close(program.module()(given), model(given))
