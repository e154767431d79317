"""Calls that ask for sizes, types or values of tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import net
from same_model import assert_same
from torch import Tensor, nn
from torch._prims_common import suggest_memory_format

from fxprune.errors import FxpruneError
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


def test_the_dtype_and_the_device_are_those_of_the_tensor_they_were_read_from() -> None:
    model = net(lambda self, x: x + torch.arange(x.shape[-1], device=x.device, dtype=x.dtype))
    traced = trace(model, torch.randn(2, 4))
    assert "meta" not in traced.code
    arange = next(node for node in traced.graph.nodes if node.target is torch.arange)
    assert arange.kwargs["dtype"].args[1] == "dtype"
    assert arange.kwargs["device"].args[1] == "device"


def by_names_of_types(self: Any, x: Tensor) -> Tensor:
    assert x.type() == "torch.FloatTensor"
    ones = torch.ones(len(x)).type(x.type()) + (x > 0).type(torch.FloatTensor).sum((1, 2))  # type: ignore[arg-type]
    return ones.type("torch.DoubleTensor") + (x.sum((1, 2)) if x.type().endswith("FloatTensor") else x[:, 0, 0])


def test_names_of_types_are_those_of_the_device_that_the_model_is_on() -> None:
    model = net(by_names_of_types)
    assert_same(model, trace(model, torch.randn(2, 3, 4)), torch.randn(5, 3, 4))


def test_a_type_that_was_read_by_name_is_that_of_the_tensor() -> None:
    traced = trace(net(lambda self, x: (x > 0).type(x.type())), torch.randn(2))
    assert traced(torch.randn(2).double()).dtype is torch.float64


def of_new_tensors(self: Any, x: Tensor) -> Tensor:
    filled = x.new(x.shape).fill_(2) + x.new(x.size()).zero_() + x.new(len(x), 1, 1).fill_(3) + x.new(1).fill_(4)
    return filled + x.new([5.0]) + x.new((6.0,)) + x.new(size=x.shape[:1]).zero_().view(-1, 1, 1) + x.new().sum()


def test_new_takes_sizes_and_entries() -> None:
    model = net(of_new_tensors)
    assert_same(model, trace(model, torch.randn(2, 3, 4)), torch.randn(5, 6, 4))


def test_a_mask_that_is_the_same_for_all_inputs_picks_at_any_batch() -> None:
    mask = torch.tensor([True, False, True])
    model = net(
        lambda self, x: x[:, self.mask] + x[:, [False, True, True]] + x[..., ~(self.mask & self.mask)], mask=mask
    )
    assert_same(model, trace(model, torch.randn(2, 3)), torch.randn(4, 3))


@pytest.mark.parametrize("need_weights", [True, False])
def test_attention_of_torch_drops_weights_in_training(need_weights: bool) -> None:
    model = net(
        lambda self, x: self.m(x, x, x, need_weights=need_weights)[0],
        m=nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True),
    )
    traced = trace(model, x := torch.randn(2, 5, 8))
    assert not any("code of eval" in note for note in trace_notes(traced).remarks)
    for _ in range(2):
        torch.manual_seed(0)
        expected = model.train()(x)
        torch.manual_seed(0)
        torch.testing.assert_close(traced.train()(x), expected)
        torch.testing.assert_close(traced.eval()(x), model.eval()(x))


MEMORY: dict[str, Any] = {
    "strides": lambda self, x: torch.as_strided(y := self.a(x), y.shape, y.stride()),
    "a stride and an offset": lambda self, x: x.as_strided((*x.shape[:2], 1, 1), (x.stride(0), x.stride(1), 1, 1)) * 2,
    "an offset": lambda self, x: self.a(x) * x[:, :, 1:].storage_offset(),
    "bytes": lambda self, x: self.a(x) * x.nbytes,
}


@pytest.mark.parametrize("name", MEMORY)
def test_where_entries_lie_in_memory_is_computed_by_the_graph(name: str) -> None:
    model = net(MEMORY[name], a=nn.Conv2d(3, 4, 1)).eval()
    traced = trace(model, torch.randn(2, 3, 4, 4))
    for x in (torch.randn(3, 3, 6, 5), torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)):
        torch.testing.assert_close(traced(x), model(x), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("forward", "other", "said"),
    [
        (
            lambda self, x: x if x.is_same_size(self.w) else x + 1,
            torch.ones(3, 4, 5, 5),
            r"x.size\(0\) == w.size\(0\)` is False",
        ),
        (lambda self, x: x * x.dim_order()[1], torch.ones(2, 5, 4, 5).mT, r"x.stride\(2\) >= x.stride\(3\)` is False"),
        (lambda self, x: x if x.stride(-1) == 1 else x + 1, torch.ones(2, 4, 5, 5).mT, r"x.stride\(-1\) == 1` is Fal"),
    ],
)
def test_a_branch_on_a_layout_is_checked(forward: Any, other: Tensor, said: str) -> None:
    traced = trace(net(forward, w=torch.ones(2, 4, 5, 5)), torch.ones(2, 4, 5, 5))
    traced(torch.ones(2, 4, 5, 5))
    with pytest.raises(FxpruneError, match=said):
        traced(other)


@pytest.mark.parametrize("name", ["data_ptr", "untyped_storage"])
def test_an_address_is_refused(name: str) -> None:
    with pytest.raises(FxpruneError, match=f"`{name}` asks where a tensor lies in memory.*use the tensor itself"):
        trace(net(lambda self, x: x if getattr(x, name)() else -x), torch.ones(2))


def test_the_layout_that_torch_itself_reads_is_not_checked() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x.contiguous(memory_format=suggest_memory_format(x)))

    model = net(forward, a=nn.Conv2d(3, 4, 1))
    x = torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)
    torch.testing.assert_close(trace(model, torch.randn(2, 3, 4, 4))(x), model(x))
