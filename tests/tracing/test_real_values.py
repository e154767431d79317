"""Values that the model's code asks for."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from invariant import check_invariant, net
from same_model import assert_same
from torch import Tensor, nn

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace


class CausalByValue(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        mask = torch.ones(x.shape[1], x.shape[1], device=x.device).tril()
        return x * 2 if bool((mask == mask.tril()).all()) else x


def test_control_flow_on_what_only_the_sizes_of_the_input_tell_is_checked() -> None:
    traced = trace(CausalByValue(), torch.randn(2, 3))
    assert_same(CausalByValue(), traced, torch.randn(2, 5))
    assert any("Loops and branches that follow sizes" in note for note in trace_notes(traced).remarks)


class UpToTheLongest(nn.Module):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        longest = lengths.max().item()
        return x[:, :longest] * (torch.arange(longest) < lengths[:, None])


def test_a_length_that_the_input_gives_is_computed_by_the_graph() -> None:
    x = torch.randn(2, 5)
    traced = trace(UpToTheLongest(), (x, torch.tensor([2, 4])))
    for lengths in (torch.tensor([2, 4]), torch.tensor([3, 1])):
        assert torch.equal(traced(x, lengths), UpToTheLongest()(x, lengths))
    (note,) = trace_notes(traced).remarks
    assert note.endswith("control flow that depends on it is that of the example input.")


class Bounded(nn.Module):
    """Checks the lengths that it is given, as XLM does, and follows another bound."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 4)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        assert lengths.max().item() <= x.shape[1]
        if lengths.min().item() > 4:
            return x
        return self.a(x) * (torch.arange(x.shape[1]) < lengths[:, None])[..., None]  # type: ignore[no-any-return]


def test_a_bound_on_a_number_that_the_input_gives_is_a_check_of_the_exported_program() -> None:
    x, lengths = torch.randn(2, 5, 4), torch.tensor([2, 4])
    traced = trace(Bounded(), (x, lengths))
    program = torch.export.export(traced, (x, lengths)).module()
    for allowed in (lengths, torch.tensor([3, 1])):
        assert torch.equal(program(x, allowed), traced(x, allowed))
    for refused in (torch.tensor([2, 6]), torch.tensor([5, 5])):
        with pytest.raises((RuntimeError, AssertionError), match=r"check|assertion"):
            program(x, refused)


def _reshaped_by_a_tensor(sizes: Tensor, x: Tensor) -> Tensor:
    return x.reshape(torch.Size(torch.cat([sizes[:1] * sizes[1:2], sizes[2:]])))


def _reshaped_by_a_list(sizes: Tensor, x: Tensor) -> Tensor:
    batch, length, width = sizes.tolist()
    return x.reshape(batch * length, width)


def _reshaped_by_integers(sizes: Tensor, x: Tensor) -> Tensor:
    return x.reshape(int(sizes[0]) * int(sizes[1]), sizes[2].item())  # type: ignore[call-overload, no-any-return]


def _reshaped_by_entries(sizes: Tensor, x: Tensor) -> Tensor:
    batch, length, width = sizes
    return x.reshape(batch * length, width)  # type: ignore[call-overload, no-any-return]


def _expanded(sizes: Tensor, x: Tensor) -> Tensor:
    return torch.ones(1, 1, 1).to(x).expand(torch.Size(sizes)) + x


def _scaled(sizes: Tensor, x: Tensor) -> Tensor:
    return x * (sizes.double()[1] / 2).item() * float(sizes[0])


@pytest.mark.parametrize(
    "use",
    [
        _reshaped_by_a_tensor, _reshaped_by_a_list, _reshaped_by_integers, _reshaped_by_entries, _expanded, _scaled,
    ],
)  # fmt: skip
def test_sizes_that_are_read_through_tensors_are_those_of_the_input(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return use(torch.tensor(y.shape), y)

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 4))
    check_invariant(model, torch.randn(2, 5, 4), 8)
    traced = trace(model, torch.randn(2, 5, 4, dtype=torch.float64))
    for shape in ((3, 5, 4), (1, 7, 4)):
        x = torch.randn(shape, dtype=torch.float64)
        assert torch.equal(traced(x), model(x))


@pytest.mark.parametrize(
    "read", [lambda sizes: sizes[0] > 1, lambda sizes: sizes.tolist()[0] > 1, lambda s: s.numpy()[0]]
)
def test_control_flow_on_sizes_in_tensors_is_checked(read: Callable[[Tensor], Any]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) if read(torch.tensor(x.shape)) > 0 else x

    traced = trace(net(forward, a=nn.Linear(4, 4)), torch.randn(2, 5, 4))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(torch.randn(1, 5, 4))


# --- conditions of training ---


def _finite(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training and not torch.isfinite(x).all():
        x = x.clamp(-1, 1)
    return self.b(nn.functional.dropout(x, 0.1, self.training))  # type: ignore[no-any-return]


def test_a_condition_on_values_in_training_is_checked_and_the_rest_of_training_is_kept() -> None:
    model, x = net(_finite, a=nn.Linear(4, 4), b=nn.Linear(4, 2)), torch.randn(2, 4)
    traced = trace(model, x)
    assert trace_notes(traced).remarks == ()
    assert_same(model, traced, torch.randn(3, 4))
    traced.eval()(x / 0)
    with pytest.raises(FxpruneError, match=r"`all_1` on values is False here, and was True .* `Net` follows it"):
        traced.train()(x / 0)


def _skipping(self: Any, x: Tensor) -> Tensor:
    for layer in self.layers:
        if not self.training or torch.rand([]) >= self.rate:
            x = layer(x)
    return x


@pytest.mark.parametrize("rate", [0.1, 0.9])
def test_the_likelier_of_random_draws_is_taken_in_training_with_a_warning(rate: float) -> None:
    model, x = net(_skipping, layers=nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])), torch.randn(2, 4)
    model.rate = rate
    with pytest.warns(FxpruneWarning, match="The likelier of random draws is in the graph in `Net`"):
        traced = trace(model, x)
    assert torch.equal(traced.eval()(x), model.eval()(x))
    with pytest.warns(FxpruneWarning, match="The likelier of random draws"):
        assert torch.equal(traced.train()(x), model.eval()(x) if rate < 0.5 else x)


def test_a_draw_that_decides_nothing_is_not_warned_of() -> None:
    model = net(_skipping, layers=nn.ModuleList([nn.Linear(4, 4)]))
    model.rate = 0.0
    assert_same(model, trace(model, torch.randn(2, 4)), torch.randn(3, 4))


READ_IN_TRAINING: dict[str, Callable[[Any, Tensor], Any]] = {
    "a truth": lambda self, x: x.sin() if self.gain > 0 else x,
    "a number": lambda self, x: x * self.gain.item(),
    "a float": lambda self, x: x * float(self.gain),
    "a buffer": lambda self, x: x.sin() if self.level > 0 else x,
    "a number of a buffer": lambda self, x: x * self.level.item(),
}


@pytest.mark.parametrize("name", READ_IN_TRAINING)
def test_what_training_may_change_is_checked_in_training_where_the_code_reads_it(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.a(x)
        return self.b(READ_IN_TRAINING[name](self, x) if self.training else x)

    gain, level = nn.Parameter(torch.tensor(0.5)), torch.tensor(0.5)
    model, x = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), gain=gain, level=level), torch.randn(3, 4)
    traced = trace(model, x)
    assert_same(model, traced, x)
    for made in (traced, trace(traced, x)):
        with torch.no_grad():
            made.gain.fill_(-1.0)
            made.level.fill_(-1.0)
        made.eval()(x)
        with pytest.raises(FxpruneError, match=r"here, and was .* when the model was traced"):
            made.train()(x)


def test_a_count_of_steps_is_checked_in_training() -> None:
    def forward(self: Any, x: Tensor) -> Any:
        x = self.norm(self.a(x))
        return self.b(x.sin() if self.training and self.norm.num_batches_tracked > 2 else x)

    model, x = net(forward, a=nn.Linear(4, 8), norm=nn.BatchNorm1d(8), b=nn.Linear(8, 2)), torch.randn(3, 4)
    traced = trace(model, x).train()
    for _ in range(2):
        assert torch.equal(traced(x), model.train()(x))
    with pytest.raises(FxpruneError, match="is True here, and was False"):
        traced(x)


# --- floats that the input gives ---


def _by_floats(self: Any, x: Tensor) -> Any:
    y = self.a(x).relu()
    scale = float(y.detach().mean())
    y = self.b(y) * (1.0 / (1 + max(scale, 0.5))) + y.mean().item()
    if self.training:
        y = y * (float(torch.bernoulli(torch.full((1,), 0.5))) / 0.5)
    return y, scale


def test_the_graph_computes_with_floats_that_the_input_gives_and_with_random_ones() -> None:
    model = net(_by_floats, a=nn.Linear(4, 8), b=nn.Linear(8, 4))
    check_invariant(model, torch.randn(3, 4), 8)
    traced = trace(model, torch.randn(3, 4).double())
    for seed in range(4):
        torch.manual_seed(seed)
        assert_same(model, traced, torch.randn(5, 4).double())
    compiled, x = torch.compile(traced.eval(), backend="eager"), torch.randn(2, 4).double()
    with torch.no_grad():
        assert torch.allclose(compiled(x)[0], model.eval()(x)[0])


@pytest.mark.parametrize(
    "follow",
    [
        lambda v: v > 0, bool, int, round, lambda v: [1, 2][int(v * 0)], lambda v: max(v, 1.0) > 2,
        lambda v: (v * 0 + 1).is_integer(), lambda v: math.isnan(v), lambda v: np.sqrt(v) > 1, lambda v: v // 1 == 0,
    ],
)  # fmt: skip
def test_a_float_that_the_input_gives_is_not_followed(follow: Callable[[float], Any]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return x * 2 if follow(self.a(x).mean().item()) else x

    with pytest.raises(FxpruneError, match="`item` asks for the value of a tensor that depends on the model's input"):
        trace(net(forward, a=nn.Linear(4, 4)), torch.randn(3, 4))
