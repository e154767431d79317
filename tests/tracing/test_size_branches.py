"""Branches for one size, which the graph has for all sizes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import torch
from invariant import image, net, randomise
from torch import Tensor, nn
from torch.nn import functional as F

import fxprune
from fxprune import FxpruneError
from fxprune.tracing import size_branches
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace_knowing
from fxprune.verification import TOLERANCE


def table(height: int, width: int) -> Tensor:
    rows, columns = (torch.arange(size, dtype=torch.float64) for size in (height, width))
    return torch.sin(rows[:, None] * 0.3 + columns)


def by_tuple(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    size = (y.shape[2], y.shape[3])
    return self.b(y * (self.table if self.size == size else table(*size)))  # type: ignore[no-any-return]


def by_number(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    positions = self.table
    if y.shape[2] != 6 or y.shape[3] != 6:
        positions = table(y.shape[2], y.shape[3])
    return self.b(y + positions)  # type: ignore[no-any-return]


def model_of(forward: Any, **more: Any) -> nn.Module:
    made = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1), **more)
    made.size = (6, 6)  # type: ignore[assignment]
    return randomise(made)


def by_table(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    kept = y.shape[2] == self.table.shape[0] and self.table.shape[1] == y.shape[3]
    return self.b(y + (self.table if kept else table(y.shape[2], y.shape[3])))  # type: ignore[no-any-return]


def by_tuple_after_a_check(self: Any, x: Tensor) -> Tensor:
    if x.flatten(2).shape[2] != x.shape[2] * x.shape[3]:
        raise ValueError("the sizes do not fit together")
    return by_tuple(self, x)


def by_a_table_that_is_large_enough(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    height, width = y.shape[2:]
    if self.table.shape[0] < height or width > self.table.shape[1]:
        self.register_buffer("table", table(height, width))
    return self.b(y + self.table[:height, :width])  # type: ignore[no-any-return]


def by_a_padded_size(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    height, width = (size + (3 - size % 3) % 3 for size in y.shape[2:])
    y = F.pad(y, (0, width - y.shape[3], 0, height - y.shape[2]))
    if self.table.shape[0] != height or self.table.shape[1] != width:
        return self.b(y * table(height, width))  # type: ignore[no-any-return]
    return self.b(y * self.table)  # type: ignore[no-any-return]


def by_the_entries_of_a_table(self: Any, x: Tensor) -> Tensor:
    """As in CLIPSeg: the table is seen as one of a batch, and squares alone fit it."""
    y = self.a(x)
    height, width = y.shape[2:]
    fits = y.flatten(2).shape[2] + 1 == self.table[None].flatten(1).shape[1] + 1 and height == width
    return self.b(y * (self.table if fits else table(height, width)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "forward",
    [
        *(by_a_padded_size, by_tuple, by_number, by_table, by_tuple_after_a_check, by_a_table_that_is_large_enough),
        by_the_entries_of_a_table,
    ],
)
def test_the_branch_for_other_sizes_is_taken_where_it_gives_the_same(forward: Any) -> None:
    model = model_of(forward)
    model.register_buffer("table", table(6, 6))
    pruned = fxprune.prune(model, 0.6, example_inputs=image().double(), compensate=False)
    for size in (6, 5, 9):
        assert fxprune.verify(model, pruned, image(size=size).double()) <= TOLERANCE
    assert fxprune.verify(model, pruned, image(size=9).double(), training=True) <= TOLERANCE


def test_a_branch_after_a_loop_over_the_samples_is_left_out() -> None:
    def forward(self: Any, x: Tensor, place: Tensor) -> Tensor:
        y = torch.stack(list(self.a(x).relu()))
        place = place if place.shape[0] == y.shape[0] else place.expand(y.shape[0], -1, -1, -1)
        return self.b(y) + place  # type: ignore[no-any-return]

    model, place = model_of(forward), torch.randn(1, 2, 6, 6)
    pruned = fxprune.prune(model, 0.6, example_inputs=(image().double(), place.double()), compensate=False)
    for batch in (1, 2, 5):
        assert fxprune.verify(model, pruned, (image(batch=batch).double(), place.double())) <= TOLERANCE


def repeated_where_there_is_one(self: Any, x: Tensor, place: Tensor) -> Tensor:
    if x.shape[0] > 1 and place.shape[0] == 1:
        place = place.repeat(x.shape[0], 1, 1, 1)
    elif not place.shape[0] <= 1 and x.shape[0] < 2:
        x = x.repeat(place.shape[0], 1, 1, 1)
    if place.shape[0] != x.shape[0]:
        raise ValueError("the batch sizes differ")
    return self.b(self.a(x).relu()) + place  # type: ignore[no-any-return]


@pytest.mark.parametrize("example", [1, 2])
def test_what_is_done_for_more_than_one_sample_is_left_out_where_it_changes_nothing(example: int) -> None:
    model = model_of(repeated_where_there_is_one)
    inputs = {batch: (image(batch=batch).double(), torch.randn(batch, 2, 6, 6).double()) for batch in (1, 2, 5)}
    pruned = fxprune.prune(model, 0.6, example_inputs=inputs[example], compensate=False)
    for given in inputs.values():
        for training in (False, True):
            assert fxprune.verify(model, pruned, given, training=training) <= TOLERANCE
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned(inputs[1][0], inputs[5][1])


def test_a_branch_for_more_than_one_sample_that_computes_something_else_is_that_of_the_example() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(y - y.mean(0) if x.shape[0] > 1 else y)  # type: ignore[no-any-return]

    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(batch=2).double(), compensate=False)
    assert fxprune.verify(model, pruned, image(batch=3).double()) <= TOLERANCE
    with pytest.raises(FxpruneError, match=r"x.size\(0\) > 1` is False here"):
        pruned(image(batch=1).double())


@pytest.mark.parametrize("forward", [by_a_padded_size, by_tuple, by_number, by_table])
def test_a_branch_for_a_size_that_the_example_has_not_is_left_out_where_the_other_gives_the_same(forward: Any) -> None:
    model = model_of(forward)
    model.register_buffer("table", table(6, 6))
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=3).double(), compensate=False)
    for size in (3, 6, 7, 9):
        for training in (False, True):
            assert fxprune.verify(model, pruned, image(size=size, batch=3).double(), training=training) <= TOLERANCE


@pytest.mark.parametrize("forward", [by_tuple, by_number, by_table])
def test_a_branch_for_a_size_that_the_example_has_not_is_refused_where_it_gives_something_else(forward: Any) -> None:
    model = model_of(forward)
    model.register_buffer("table", table(6, 6).flip(0))
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=3).double(), compensate=False)
    for size in (3, 7):
        assert fxprune.verify(model, pruned, image(size=size).double()) <= TOLERANCE
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned(image(size=6).double())


def test_a_line_that_asks_for_fixed_sizes_too_is_told_the_truth() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        found = []
        for feature, width in ((x, 3), (self.a(x), 8)):
            if feature.shape[1] != width:
                last = feature.shape[3] == width
                feature = feature.movedim(3, 1) if last else feature
            found.append(feature)
        return self.b(self.a(found[0]))  # type: ignore[no-any-return]

    traced = fxprune.trace(model_of(forward), image(size=8).double())
    assert traced(image(size=6).double()).shape == (2, 2, 6, 6)


def test_a_branch_that_computes_something_else_is_that_of_the_example() -> None:
    model = model_of(by_tuple)
    model.register_buffer("table", table(6, 6) + 1e-3)
    pruned = fxprune.prune(model, 0.6, example_inputs=image().double(), compensate=False)
    assert fxprune.verify(model, pruned) <= TOLERANCE
    with pytest.raises(FxpruneError, match=r"a\.size\(.\) == 6"):
        pruned(image(size=9).double())


def _by_one_side(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y if y.shape[3] == 6 else F.adaptive_avg_pool2d(y, 6))  # type: ignore[no-any-return]


def by_the_size_of_another_tensor(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    text = self.text.type_as(x)
    if text.shape[0] != y.shape[0]:
        text = text.expand(y.shape[0], -1)
    return self.b(y + text[..., None, None])  # type: ignore[no-any-return]


@pytest.mark.parametrize("batch", [1, 2])
def test_what_is_repeated_for_other_batches_alone_is_always_repeated(batch: int) -> None:
    model, x = model_of(by_the_size_of_another_tensor, text=nn.Parameter(torch.randn(1, 8))), image(batch=batch)
    pruned = fxprune.prune(model.float(), 0.6, example_inputs=x, compensate=False)
    for other in (1, 2, 3):
        for training in (False, True):
            assert fxprune.verify(model, pruned, image(batch=other), training=training) <= TOLERANCE


def _padded_or_cut(self: Any, x: Tensor) -> Tensor:
    y = self.c(x)
    n, m = x.shape[2], y.shape[2]
    y = F.pad(y, (0, 0, 0, n - m)) if n > m else y[:, :, :n]
    return self.b(self.a(x) + y)  # type: ignore[no-any-return]


def _cut_or_something_else(self: Any, x: Tensor) -> Tensor:
    y = self.c(x)
    y = y[:, :, : x.shape[2]] if x.shape[2] <= y.shape[2] else F.pad(y, (0, 0, 1, 0))
    return self.b(self.a(x) + y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("forward", "right"), [(_padded_or_cut, True), (_cut_or_something_else, False)])
def test_what_is_padded_or_cut_is_padded_by_less_than_nothing(forward: Any, right: bool) -> None:
    # Of 6 rows it makes 6, and of 7 it makes 6, too.
    c = nn.Sequential(nn.Conv2d(3, 8, (2, 1), (2, 1)), nn.Upsample(scale_factor=(2.0, 1.0)))
    model = model_of(forward, c=c)
    pruned = fxprune.prune(model, 0.6, example_inputs=image(size=6).double(), compensate=False)
    assert fxprune.verify(model, pruned, image(size=8).double()) <= TOLERANCE
    if right:
        assert fxprune.verify(model, pruned, image(size=7).double(), training=True) <= TOLERANCE
    else:
        with pytest.raises(FxpruneError, match=r"<= .*was True when the model was traced"):
            pruned(image(size=7).double())


def test_what_costs_more_is_not_taken_in_place_of_the_branch_for_one_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        fine = self.c(x[:, :, :6, :6])
        if fine.shape[-2:] != y.shape[-2:]:
            wider = torch.eye(fine.shape[3], y.shape[3]).to(x)
            fine = wider.t() @ fine @ wider
        return self.b(y + fine)  # type: ignore[no-any-return]

    model, x = model_of(forward, c=nn.Conv2d(3, 8, 1)), image().double()
    ran, outputs = [], size_branches.outputs_of
    monkeypatch.setattr(size_branches, "outputs_of", lambda *args: (ran.append(args), outputs(*args))[1])
    pruned = fxprune.prune(model, 0.6, example_inputs=x, compensate=False)
    # The original and the graph with the other branch, also where that resizes, on the example alone.
    assert len(ran) == 3
    assert fxprune.plan_of(pruned).flops_before == fxprune.count_flops(model, x)
    assert fxprune.verify(model, pruned) <= TOLERANCE
    with pytest.raises(FxpruneError, match=r"c\.size\(.\) == a\.size"):
        pruned(image(size=9).double())


def _by_area(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y * (self.table if y.shape[2] * y.shape[3] == 36 else table(*y.shape[2:])))  # type: ignore[no-any-return]


def _with_a_weight_of_zero(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y + self.zero * y.sin() if y.shape[3] == 6 else y)  # type: ignore[no-any-return]


def _by_batch(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if y.shape[0] == 2:
        return self.b(F.batch_norm(y, self.n.running_mean, self.n.running_var))  # type: ignore[no-any-return]
    return self.b(F.batch_norm(y, self.n.running_mean, self.n.running_var, training=self.training))  # type: ignore[no-any-return]


def _by_a_padded_size(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    height, width = (size + (3 - size % 3) % 3 for size in y.shape[2:])
    if self.table.shape[0] == height and self.table.shape[1] == width:
        return self.b(y * self.table[: y.shape[2], : y.shape[3]])  # type: ignore[no-any-return]
    return self.b(y * table(height, width)[:6, :6].flip(0)[: y.shape[2], : y.shape[3]].flip(0))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [_by_one_side, _by_a_padded_size, _by_area, _with_a_weight_of_zero, _by_batch])
def test_what_is_the_same_by_chance_is_not_taken(forward: Any) -> None:
    model = model_of(forward, n=nn.BatchNorm2d(8), zero=nn.Parameter(torch.zeros(1)))
    model.register_buffer("table", table(6, 6))
    with torch.no_grad():
        model.zero.zero_()  # type: ignore[operator, union-attr]
    traced = fxprune.trace(model, image().double())
    for inputs in (image(batch=3, size=9), torch.randn(2, 3, 4, 9), torch.randn(2, 3, 9, 6)):
        with suppress(FxpruneError, RuntimeError):
            assert torch.allclose(traced(inputs.double()), model(inputs.double()))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(image(batch=3, size=9).double())


def _of_one_sample(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    mean = y[0].mean((1, 2))[None] if y.shape[0] == 1 else y.mean((2, 3))
    return self.b(y * mean[..., None, None])  # type: ignore[no-any-return]


def test_a_branch_for_one_sample_is_left_out_where_the_other_gives_the_same() -> None:
    model = model_of(_of_one_sample)
    pruned = fxprune.prune(model, 0.6, example_inputs=image().double(), compensate=False)
    for batch in (1, 2, 3):
        assert fxprune.verify(model, pruned, image(batch=batch).double()) <= TOLERANCE
    assert fxprune.verify(model, pruned, image(batch=1).double(), training=True) <= TOLERANCE


def _of_one_row(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    return self.b(y.sin() if y.shape[2] == 1 else y)  # type: ignore[no-any-return]


def _of_one_piece(self: Any, x: Tensor) -> Tensor:
    # No input of the trials has a piece of this size.
    y = self.a(x)
    return self.b(y.sin() if y[:, :, 4:].shape[2] == 1 else y)  # type: ignore[no-any-return]


@pytest.mark.parametrize(("forward", "height"), [(_of_one_row, 1), (_of_one_piece, 5)])
def test_a_branch_for_one_that_computes_something_else_is_refused(forward: Any, height: int) -> None:
    traced = fxprune.trace(model_of(forward), image().double())
    assert traced(image(size=7).double()).shape == (2, 2, 7, 7)
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(2, 3, height, 6).double())


def _until_it_fits(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    while y.shape[2] != 4:
        y = y[:, :, :-1] if y.shape[2] > 4 else y
    return self.b(y)  # type: ignore[no-any-return]


def _until_it_fits_another(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    while True:
        if y.shape[2] == x[:, :, :4].shape[2]:
            return self.b(y)  # type: ignore[no-any-return]
        y = y[:, :, :4]


@pytest.mark.parametrize("forward", [_until_it_fits, _until_it_fits_another])
def test_a_loop_that_goes_on_until_a_size_fits_ends(forward: Any) -> None:
    model, x = model_of(forward), image().double()
    assert torch.equal(fxprune.trace(model, x)(x), model(x))


def test_one_branch_of_two_is_for_all_sizes() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = by_tuple(self, x)
        if x.shape[0] == 2:
            y = y + 1
        return y

    model = model_of(forward)
    model.register_buffer("table", table(6, 6))
    pruned = fxprune.prune(model, 0.6, example_inputs=image().double(), compensate=False)
    assert fxprune.verify(model, pruned, image(size=9).double()) <= TOLERANCE
    with pytest.raises(FxpruneError, match=r"size\(0\) == 2"):
        pruned(image(batch=3).double())


def test_an_assertion_ties_the_graph_to_the_size_and_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        assert x.shape[2] == 6, "of this size alone"
        return self.b(self.a(x) * (2 if x.shape[2] == 6 else 1))  # type: ignore[no-any-return]

    monkeypatch.setattr("fxprune.tracing.size_branches.outputs_of", lambda *args: pytest.fail("the model ran"))
    with pytest.raises(FxpruneError, match=r"size\(2\) == 6"):
        fxprune.trace(model_of(forward), image().double())(image(size=9).double())


def test_a_model_without_values_takes_the_branches_that_an_earlier_trace_has_taken() -> None:
    model = model_of(by_tuple)
    model.register_buffer("table", table(6, 6))
    traced = fxprune.trace(model, image().double())
    values = trace_notes(traced).values_read
    assert [place.rpartition(":")[0] for place in values["branches for other sizes"]] == [by_tuple.__module__]
    again = trace_knowing(model.to("meta"), image().double().to("meta"), values)
    assert again.code == traced.code


@pytest.mark.parametrize("number", [0, -4])
def test_a_number_below_one_is_no_size_to_try(number: int) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(2 * y if y.shape[2] % 7 + number == 2 * number else y)  # type: ignore[no-any-return]

    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=image().double(), compensate=False)
    with suppress(FxpruneError):
        assert fxprune.verify(model, pruned, image(size=7).double()) <= TOLERANCE
    assert fxprune.verify(model, pruned, image(size=8).double()) <= TOLERANCE


def test_a_check_that_raises_is_no_branch_and_nothing_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        if x.shape[2] != 6:
            raise ValueError("this size alone")
        return self.b(self.a(x))  # type: ignore[no-any-return]

    monkeypatch.setattr("fxprune.tracing.size_branches.outputs_of", lambda *args: pytest.fail("the model ran"))
    fxprune.trace(model_of(forward), image().double())
