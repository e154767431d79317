"""What a model does because of a size holds for that size: the graph works at others where it can, or refuses."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, trace
from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.notes import trace_notes

Forward = Callable[[Any, Tensor], Any]


def by_range(self: Any, x: Tensor) -> Tensor:
    return torch.stack([self.f(x[i]) for i in reversed(range(x.size(0)))])


def by_iteration(self: Any, x: Tensor) -> Tensor:
    return torch.stack([self.f(y) for _, y in enumerate(x)])


def by_unbind(self: Any, x: Tensor) -> Tensor:
    return sum(self.f(y) for y in torch.unbind(x))  # type: ignore[return-value]


def by_list(self: Any, x: Tensor) -> Tensor:
    return torch.stack(list(self.f(x))[::-1])


def by_zip(self: Any, x: Tensor) -> Tensor:
    return torch.stack([a + b for a, b in zip(x, self.f(x), strict=True)])


def by_split(self: Any, x: Tensor) -> Tensor:
    return sum(self.f(y).sum(0) for y in x.split(2))  # type: ignore[return-value]


def by_while(self: Any, x: Tensor) -> Tensor:
    total, i = torch.zeros(8), 0
    while i < x.size(0):
        total = total + self.f(x[i])
        i += 1
    return total


def by_repetition(self: Any, x: Tensor) -> Tensor:
    return self.f(x) + sum([1.0] * x.size(0))  # type: ignore[no-any-return]


def by_lookup(self: Any, x: Tensor) -> Tensor:
    return nn.ModuleList([self.f, nn.Identity(), nn.ReLU(), nn.Tanh(), nn.Sigmoid(), nn.GELU(), self.f])[x.size(0)](x)  # type: ignore[no-any-return]


def by_numpy(self: Any, x: Tensor) -> Tensor:
    return self.f(x) * float(np.tanh(x.size(0)))  # type: ignore[no-any-return]


def by_a_table_of_numpy(self: Any, x: Tensor) -> Tensor:
    return self.f(x) + torch.from_numpy(np.arange(x.size(0)).astype(np.float32))[:, None]  # type: ignore[no-any-return]


def by_a_shape_for_numpy(self: Any, x: Tensor) -> Tensor:
    return self.f(x) + torch.from_numpy(np.ones((x.size(0), 8), dtype=np.float32))  # type: ignore[no-any-return]


UNROLLED = (
    by_range, by_iteration, by_unbind, by_list, by_zip, by_split, by_while, by_repetition, by_lookup, by_numpy,
    by_a_table_of_numpy, by_a_shape_for_numpy,
)  # fmt: skip


@pytest.mark.parametrize("forward", UNROLLED, ids=lambda forward: forward.__name__)
def test_what_a_size_has_unrolled_refuses_another_and_says_which(forward: Forward) -> None:
    model = net(forward, f=nn.Linear(8, 8))
    traced = trace(model, torch.randn(4, 8))
    x = torch.randn(4, 8)
    assert torch.equal(traced(x), model(x))
    for size in (2, 6):
        with pytest.raises(FxpruneError, match=r"\.size\(0\).*`Net`"):
            traced(torch.randn(size, 8))
    (note,) = trace_notes(traced).remarks
    assert "Loops and branches that follow sizes" in note
    assert ".size(0)" in note


def first_and_last(self: Any, x: Tensor) -> Tensor:
    pieces = self.f(x).unbind(0)
    return pieces[0] * pieces[-1] / len(pieces)  # type: ignore[no-any-return]


def joined(self: Any, x: Tensor) -> Tensor:
    return torch.cat(self.f(x).split(2), 1)


def returned(self: Any, x: Tensor) -> Any:
    return self.f(x).unbind(0)


def numbers(self: Any, x: Tensor) -> Tensor:
    n = x.size(0)
    whole, rest = divmod(n, 2)
    scale = float(n) * math.log1p(n) + np.sqrt(n) + (whole & 3) + rest + +n
    scale += int(np.ceil(n / 3)) + np.floor(n * 2.5) + np.maximum(n, 3) + np.prod(x.shape)
    return self.f(x) / scale  # type: ignore[no-any-return]


def numbers_of_numpy(self: Any, x: Tensor) -> Tensor:
    return self.f(x) / (np.float64(2.5) * x.size(0) + np.int64(3))  # type: ignore[no-any-return]


WITHOUT_LOOPS = [first_and_last, joined, returned, numbers]
if np.lib.NumpyVersion(np.__version__) >= "2.0.0":
    # Older numbers of numpy do not ask what they are multiplied by.
    WITHOUT_LOOPS.append(numbers_of_numpy)


@pytest.mark.parametrize("forward", WITHOUT_LOOPS, ids=lambda forward: forward.__name__)
def test_what_needs_no_loop_works_at_other_sizes(forward: Forward) -> None:
    model = net(forward, f=nn.Linear(8, 8))
    traced = trace(model, torch.randn(4, 8))
    for size in (2, 4, 6):
        x = torch.randn(size, 8)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-6, atol=0)
    assert trace_notes(traced).remarks == ()


def by_virtual_batches(self: Any, x: Tensor) -> Tensor:
    return torch.cat([self.f(y) for y in x.chunk(int(np.ceil(x.size(0) / 4)), 0)])


@pytest.mark.parametrize("traced_size", [3, 8, 12])
def test_pieces_whose_number_is_computed_may_be_more_or_fewer(traced_size: int) -> None:
    model = net(by_virtual_batches, f=nn.Linear(8, 8))
    traced = trace(model, torch.randn(traced_size, 8))
    for size in (1, 5, 7, 8, 9, 14, 29):
        x = torch.randn(size, 8)
        torch.testing.assert_close(traced(x), model(x), rtol=1e-6, atol=0)


def branches(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return y * 2 if x.shape[0] > 4 else y  # type: ignore[no-any-return]


def test_a_branch_on_a_size_holds_as_long_as_it_goes_the_same_way() -> None:
    model = net(branches, f=nn.Linear(8, 8))
    traced = trace(model, torch.randn(2, 8))
    for size in (1, 4):
        x = torch.randn(size, 8)
        assert torch.equal(traced(x), model(x))
    with pytest.raises(FxpruneError, match=r"`x\.size\(0\) > 4` is True here, and was False"):
        traced(torch.randn(5, 8))
    (note,) = trace_notes(traced).remarks
    assert "`x.size(0) > 4` in `Net`" in note


def on_channels(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    assert y.size(1) == 8
    q, k, v = self.g(y).reshape(x.size(0), 3, 2, 4).permute(1, 0, 2, 3).unbind(0)
    halves = self.f(x).split(4, 1)
    return self.h((q * k + v).flatten(1) + halves[0].repeat(1, 2) + torch.cat(halves, 1))  # type: ignore[no-any-return]


def test_sizes_that_no_input_changes_are_not_checked() -> None:
    model = net(on_channels, f=nn.Linear(8, 8), g=nn.Linear(8, 24), h=nn.Linear(8, 3))
    traced = trace(model, torch.randn(2, 8))
    assert check_as_traced not in [node.target for node in traced.graph.nodes]
    assert trace_notes(traced).remarks == ()


def in_other_words(self: Any, x: Tensor) -> Tensor:
    y = self.p(self.f(x))
    for part in torch.permute(input=y, dims=(1, 0)).unbind(dim=1):
        y = y + part
    assert torch.stack(tensors=[y, y]).shape[0] == 2
    return torch.reshape(y, shape=(-1, 8))


def test_calls_by_keyword_and_layers_of_any_kind_are_traced_on_the_way_to_a_check() -> None:
    model = net(in_other_words, f=nn.Linear(8, 8), p=nn.PReLU(8))
    traced, x = trace(model, torch.randn(2, 8)), torch.randn(2, 8)
    assert torch.equal(traced(x), model(x))
    # The stack is one check too many: it is not looked for by keyword.
    assert [node.args[1] for node in traced.graph.nodes if node.target is check_as_traced] == [2, True]


def each_channel(self: Any, x: Tensor) -> Tensor:
    y = self.f(x)
    return self.h(torch.stack([y[:, i].relu() for i in range(y.size(1))], 1))  # type: ignore[no-any-return]


def as_many_as_channels(self: Any, x: Tensor) -> Tensor:
    # Through an op that is not known to keep sizes.
    y = torch.cumsum(self.f(x), 0)
    for _ in range(y.size(1)):
        y = y + x[:, :1]
    return self.h(y) if y.size(1) > 4 else y  # type: ignore[no-any-return]


def steps(self: Any, x: Tensor) -> Tensor:
    return self.h(sum(self.f(x[:, t]).relu() for t in range(x.size(1))))  # type: ignore[no-any-return]


def windows(self: Any, x: Tensor) -> Tensor:
    return self.h(torch.cat(self.f(x).split(2, 1), 0))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("forward", "shape", "channels"),
    [(each_channel, (3, 8), 0), (as_many_as_channels, (3, 8), 8), (steps, (3, 5, 8), 8), (windows, (3, 4, 8), 8)],
    ids=["each_channel", "as_many_as_channels", "steps", "windows"],
)
def test_loops_over_channels_and_stages_are_pruned_right(
    forward: Forward, shape: tuple[int, ...], channels: int
) -> None:
    check_invariant(net(forward, f=nn.Linear(8, 8), h=nn.Linear(8, 3)), torch.randn(shape), channels)


def test_a_pruned_model_refuses_other_sizes_too_after_copying_pickling_and_loading(tmp_path: Path) -> None:
    model, x = net(steps, f=nn.Linear(8, 8), h=nn.Linear(8, 3)), torch.randn(3, 5, 8)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    fxprune.save(pruned, tmp_path / "model.safetensors")
    loaded = fxprune.load(tmp_path / "model.safetensors", original=model)
    again = trace(pruned, x)
    for candidate in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), loaded, again):
        assert torch.equal(candidate(x), pruned(x))
        with pytest.raises(FxpruneError, match=r"x\.size\(1\).* is 6 here, and was 5"):
            candidate(torch.randn(3, 6, 8))


def test_dead_code_elimination_keeps_the_checks() -> None:
    traced = trace(net(by_range, f=nn.Linear(8, 8)), torch.randn(4, 8))
    traced.graph.eliminate_dead_code()
    traced.recompile()
    with pytest.raises(FxpruneError, match="is 5 here"):
        traced(torch.randn(5, 8))


@pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 7),
    reason="torch 2.6 takes the end of an open slice for a limit of the batch, and exports it for one batch size only",
)
@pytest.mark.parametrize("suffix", [".pt2", ".onnx"])
def test_a_guarded_model_is_exported_with_a_free_batch_unless_it_was_unrolled_over_it(
    suffix: str, tmp_path: Path
) -> None:
    if suffix == ".onnx":
        pytest.importorskip("onnxruntime")
    path = tmp_path / f"model{suffix}"
    parts = {"f": nn.Linear(8, 8), "h": nn.Linear(8, 3)}
    free = fxprune.prune(net(steps, **parts), 0.5, example_inputs=torch.randn(3, 5, 8), compensate=False)
    assert fxprune.export(free, path) < 1e-5
    bound = trace(net(by_range, **parts), torch.randn(3, 8))
    with pytest.raises(FxpruneError, match=r"x\.size\(0\).*dynamic_batch=False exports it for one batch size"):
        fxprune.export(bound, path)
    assert fxprune.export(bound, path, dynamic_batch=False) < 1e-5


def test_a_guarded_model_is_compiled() -> None:
    x = torch.randn(4, 8)
    traced = trace(net(branches, f=nn.Linear(8, 8)), torch.randn(2, 8))
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), traced(x))
    with pytest.raises(Exception, match=r"size\(0\) > 4"):
        compiled(torch.randn(5, 8))


def _followed(self: Any, x: Tensor) -> Tensor:
    if x.size(1) > 3:
        x = x * 2
    if x.size(1) % 2 == 1 or x.size(0) > 100:
        x = x + 1
    return self.h(self.f(x).relu())[:, : x.size(1) // 2]  # type: ignore[no-any-return]


@pytest.mark.parametrize("dynamic", [None, True])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_guarded_model_is_compiled_for_sizes_that_change(backend: str, dynamic: bool | None) -> None:
    torch._dynamo.reset()
    pruned = fxprune.prune(net(_followed, f=nn.Linear(8, 8), h=nn.Linear(8, 3)), example_inputs=torch.randn(2, 5, 8))
    compiled = torch.compile(pruned, backend=backend, dynamic=dynamic)
    for batch, length in ((2, 5), (2, 7), (3, 9), (4, 5)):
        x = torch.randn(batch, length, 8)
        torch.testing.assert_close(compiled(x), pruned(x))
    with pytest.raises(FxpruneError, match=r"`x.size\(1\) > 3` is False here, and was True"):
        compiled(torch.randn(2, 3, 8))


@pytest.mark.parametrize("strict", [False, True])
def test_a_guarded_model_is_exported_with_free_sizes_where_its_guards_hold(strict: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.f(x * 2 if x.size(1) > 3 else x)  # type: ignore[no-any-return]

    traced = trace(net(forward, f=nn.Linear(8, 8)), torch.randn(2, 5, 8))
    sizes = {"x": {0: torch.export.Dim("batch"), 1: torch.export.Dim("length", min=4)}}
    program = torch.export.export(traced, (torch.randn(2, 5, 8),), dynamic_shapes=sizes, strict=strict)
    x = torch.randn(3, 7, 8)
    assert torch.equal(program.module()(x), traced(x))


def test_types_of_python_as_dtypes_leave_no_size_unchecked() -> None:
    def halves(self: Any, x: Tensor) -> Tensor:
        return self.f(x).to(float)[: int(x.size(0) / 2)]  # type: ignore[no-any-return]

    model, x = net(halves, f=nn.Linear(8, 8)), torch.randn(4, 8)
    traced = trace(model, x)
    assert traced(x).dtype is torch.float64
    assert torch.equal(traced(x), model(x))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(8, 8))


def test_a_check_of_an_argument_comes_after_all_arguments() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 2)

        def forward(self, x: Tensor, scale: float, mask: Tensor | None = None) -> Tensor:
            x = self.a(x)
            return self.b(x * scale if scale > 1 or mask is not None else x)  # type: ignore[no-any-return]

    model = Scaled()
    pruned = fxprune.prune(model, 0.6, example_inputs={"x": torch.randn(2, 4), "scale": 0.5}, compensate=False)
    assert fxprune.verify(model, copy.deepcopy(pruned)) < 1e-9
    with pytest.raises(FxpruneError, match="scale > 1"):
        pruned(torch.randn(2, 4), 2.0)
