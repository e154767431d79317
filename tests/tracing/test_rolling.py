"""Loops over sizes whose steps are alike run at other sizes; all others are refused there."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, fx, nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.tracing.loops import loop_index
from fxprune.tracing.rolling import alike_in_steps, roll
from fxprune.tracing.traced_module import copy_graph


def recurrence(self: Any, x: Tensor) -> Tensor:
    x, made = self.a(x), []
    h = x.new_zeros(x.shape[0], 8)
    for t in range(x.shape[1]):
        h = self.cell(x[:, t], h)
        made.append(h)
    return self.out(torch.stack(made, 1))  # type: ignore[no-any-return]


def without_a_first_state(self: Any, x: Tensor) -> Any:
    x, h = self.a(x), None
    for t in range(x.size(1)):
        h = torch.tanh(self.u(x[:, t]) + (0 if h is None else self.w(h)))
    return self.out(h)


def from_the_second(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    h = x[:, 0]
    made = [h[:, None]]
    for t in range(1, x.size(1)):
        h = torch.tanh(self.u(x[:, t]) + self.w(h))
        made.append(h[:, None])
    return self.out(torch.cat(made, 1))  # type: ignore[no-any-return]


def backwards(self: Any, x: Tensor) -> Tensor:
    x, n = self.a(x), x.size(1)
    h = c = x[:, 0] * 0
    for t in range(n):
        h, c = c * self.u(x[:, n - 1 - t]).sigmoid(), torch.tanh(self.w(h))
    return self.out(h) + self.out(c)  # type: ignore[no-any-return]


def written(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    y, h, low = torch.zeros_like(x), x[:, 0] * 0, None
    for t in range(x.size(1)):
        h = torch.tanh(self.u(x[:, t]).float() + self.w(h)).to(y.dtype)
        low = h if low is None else torch.minimum(low, h)
        y[:, t] = h * 2
    return self.out(y)  # type: ignore[no-any-return]


def prefixes(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    return self.out(torch.stack([self.u(x[:, : t + 1]).mean(1) / (t + 1) for t in range(x.size(1))], 1))  # type: ignore[no-any-return]


def without_gradients(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        with torch.no_grad():
            seen = self.u(x[:, t])
        h = torch.tanh(seen + self.w(h))
    return self.out(h)  # type: ignore[no-any-return]


def into_a_list(self: Any, x: Tensor) -> Any:
    x, made = self.a(x), []
    for t in range(x.size(1)):
        made.append(self.out(self.u(x[:, t]).relu()))
    return made, (*made,)


def pieces(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    h = x[:, 0] * 0
    for y in x.unbind(1):
        h = torch.tanh(self.u(y) + self.w(h))
    made = [self.u(y).relu() for y in x.split(2, 1)]
    return self.out(torch.cat(made, 1)) + self.out(h)[:, None]  # type: ignore[no-any-return]


def entries(self: Any, x: Tensor) -> Tensor:
    made = []
    for y in self.a(x).transpose(0, 1):
        made.append(self.u(y).relu())
    return self.out(torch.stack(made, 1))  # type: ignore[no-any-return]


def listed(self: Any, x: Tensor) -> Any:
    made = list(self.u(self.a(x)).relu().unbind(1))
    return self.out(torch.stack(made, 1)), made


def checked(self: Any, x: Tensor) -> Tensor:
    x, h = self.a(x), torch.zeros(x.shape[0], 8).to(x)
    for t in range(x.size(1)):
        h = step(self, x, t, h) if h.shape == x[:, t].shape else x[:, t]
    return self.out(h)  # type: ignore[no-any-return]


def model_of(forward: Callable[..., Any]) -> nn.Module:
    layers = {"a": nn.Linear(4, 8), "u": nn.Linear(8, 8), "w": nn.Linear(8, 8), "out": nn.Linear(8, 2)}
    return net(forward, **layers, cell=nn.GRUCell(8, 8))


ROLLED = (
    recurrence, without_a_first_state, from_the_second, backwards, written, prefixes, without_gradients, into_a_list,
    pieces, entries, listed, checked,
)  # fmt: skip


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("forward", ROLLED, ids=lambda forward: forward.__name__)
def test_steps_that_are_alike_run_at_other_sizes(forward: Callable[..., Any], training: bool) -> None:
    torch.manual_seed(0)
    model = model_of(forward).double().train(training)
    pruned = fxprune.prune(model, 0.7, example_inputs=torch.randn(2, 6, 4).double(), compensate=False)
    assert "for steps in" in pruned.code
    for candidate in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        # Its first step stands before the loop, which has none at length 1.
        for batch, length in ((2, 6), (3, 9), (2, 2), (1, 1 + (forward in (without_a_first_state, checked)))):
            assert fxprune.verify(model, candidate, torch.randn(batch, length, 4).double()) <= 1e-9


def another_value_before_the_loop(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    h, y = x[:, 0] * 0, self.u(x[:, 0])
    for t in range(1, x.size(1)):
        y = h = torch.tanh(self.w(h) + x[:, t])
    return self.out(y)  # type: ignore[no-any-return]


def a_list_and_its_last_item(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    y = x[:, 0]
    made = [y]
    for t in range(1, x.size(1)):
        y = self.w(x[:, t])
        made.append(y)
    return self.out(y + torch.stack(made, 1).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [another_value_before_the_loop, a_list_and_its_last_item])
def test_a_loop_without_steps_is_refused_where_its_last_value_is_used(forward: Callable[..., Any]) -> None:
    model = model_of(forward).double()
    pruned = fxprune.prune(model, 0.7, example_inputs=torch.randn(2, 6, 4).double(), compensate=False)
    assert fxprune.verify(model, pruned, torch.randn(3, 2, 4).double()) <= 1e-9
    with pytest.raises(FxpruneError, match="too few steps"):
        pruned(torch.randn(2, 1, 4).double())


@pytest.mark.parametrize("forward", ROLLED, ids=lambda forward: forward.__name__)
def test_all_plans_are_right(forward: Callable[..., Any]) -> None:
    check_invariant(model_of(forward), torch.randn(2, 6, 4))


def test_a_loop_of_two_steps_can_be_compiled() -> None:
    model = model_of(listed).eval()
    compiled = torch.compile(fxprune.trace(model, torch.randn(2, 2, 4)), backend="eager")
    for x in (torch.randn(2, 2, 4), torch.randn(2, 5, 4)):
        torch.testing.assert_close(compiled(x)[0], model(x)[0], rtol=0, atol=0)


def test_what_was_pruned_can_be_pruned_again_at_another_size() -> None:
    model = model_of(recurrence).double().eval()
    once = fxprune.prune(model, 0.7, example_inputs=torch.randn(2, 6, 4).double(), compensate=False)
    twice = fxprune.prune(once, 0.8, example_inputs=torch.randn(2, 5, 4).double(), compensate=False)
    assert "for steps in" in twice.code
    assert fxprune.verify(model, twice, torch.randn(3, 9, 4).double()) <= 1e-9


def over_a_reshape(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    made = torch.stack([self.u(x[:, t]).relu() for t in range(x.size(1))], 1)
    return self.out(made.flatten(1).reshape(x.shape[0], 4, -1).mean(2).repeat(1, 2))  # type: ignore[no-any-return]


def test_a_reshape_is_analysed_at_other_numbers_of_steps() -> None:
    model = model_of(over_a_reshape).double().eval()
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(2, 4, 4).double()))
    alive = [group for group in graph.groups if any("u.weight[0]" in str(d) for d in group.dimensions)]
    assert not alive, "4 steps of 8 channels are 4 groups of 8, and 6 steps are not"


# --- what is tied to its size -----------------------------------------------------------------------------------------


def step(self: Any, x: Tensor, t: int, h: Tensor) -> Tensor:
    return torch.tanh(self.u(x[:, t]) + self.w(h))


def by_its_number(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        h = step(self, x, t, h) if t < 100 else h
    return self.out(h)  # type: ignore[no-any-return]


def by_a_counter(self: Any, x: Tensor) -> Tensor:
    x, count = self.a(x), 0
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        count = count + 2
        h = step(self, x, t, h) * (2 if count > 100 else 1)
    return self.out(h)  # type: ignore[no-any-return]


def by_a_length(self: Any, x: Tensor) -> Tensor:
    x, made = self.a(x), []
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        made.append(h := step(self, x, t, h))
    return self.out(torch.stack(made).sum(0) / len(made))  # type: ignore[no-any-return]


def by_a_growing_list(self: Any, x: Tensor) -> Tensor:
    x, made = self.a(x), []
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        made.append(t)
        h = step(self, x, t, h) * (2 if made[20:] else 1)
    return self.out(h)  # type: ignore[no-any-return]


def by_a_table(self: Any, x: Tensor) -> Tensor:
    x, table = self.a(x), [1.0] * 6 + [2.0] * 20
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        h = step(self, x, t, h) * table[t]
    return self.out(h)  # type: ignore[no-any-return]


def with_a_break(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    h = x[:, 0] * 0
    for t in range(x.size(1)):
        h = step(self, x, t, h)
        if t == 4:
            break
    return self.out(h)  # type: ignore[no-any-return]


def of_a_generator(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    steps = (self.u(x[:, t]) for t in range(x.size(1)))
    return self.out(torch.stack([y for y, _ in zip(steps, "four", strict=False)], 1))  # type: ignore[no-any-return]


def one_step_of_them(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    made = [self.u(x[:, t]).relu() for t in range(x.size(1))]
    return self.out(made[2])  # type: ignore[no-any-return]


def listed_backwards(self: Any, x: Tensor) -> Tensor:
    return self.out(torch.stack(list(self.a(x).unbind(1))[::-1], 1))  # type: ignore[no-any-return]


def nested(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    made = [torch.stack([(x[:, i] * x[:, j]) for j in range(x.size(1))], 1).sum(1) for i in range(x.size(1))]
    return self.out(torch.stack(made, 1))  # type: ignore[no-any-return]


TIED = (
    by_its_number, by_a_counter, by_a_length, by_a_growing_list, by_a_table, with_a_break, of_a_generator,
    one_step_of_them, listed_backwards, nested,
)  # fmt: skip


@pytest.mark.parametrize("forward", TIED, ids=lambda forward: forward.__name__)
def test_steps_that_may_differ_are_tied_to_the_size_of_the_example(forward: Callable[..., Any]) -> None:
    model = model_of(forward).eval()
    traced = fxprune.trace(model, torch.randn(2, 6, 4))
    x = torch.randn(3, 6, 4)
    torch.testing.assert_close(traced(x), model(x))
    for length in (5, 9):
        with pytest.raises(FxpruneError, match=rf"`a.size\(1\)` is {length} here, and was 6"):
            traced(torch.randn(2, length, 4))


# --- graphs -----------------------------------------------------------------------------------------------------------


def graph_of(*factors: float) -> fx.Graph:
    """A loop in which each step multiplies by a factor."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    size = graph.call_method("size", (x, 0))
    check = graph.call_function(print, (size, len(factors)))
    check.meta["loops"] = [0]
    value = x
    for k, factor in enumerate(factors):
        index = graph.call_function(loop_index, (0, k))
        value = graph.call_function(torch.mul, (graph.call_function(torch.add, (value, index)), factor))
        for node in list(graph.nodes)[-3:]:
            node.meta.update(loop=(0, k), value=torch.empty(3, device="meta"))
        index.meta["value"] = k
    graph.output(value)
    return graph


def written_by_sample(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    order = y[..., 0].argsort(1)
    back = torch.zeros_like(order)
    for i in range(x.shape[0]):
        back[i, order[i]] = torch.arange(x.shape[1])
    return self.out(y.tanh().gather(1, back[..., None].expand(y.shape)))  # type: ignore[no-any-return]


def listed_by_sample(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    n = y.shape[1] // 2
    return self.out(torch.cat([self.u(y[i, :n]).tanh().unsqueeze(0) for i in range(y.shape[0])]))  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [written_by_sample, listed_by_sample])
def test_a_loop_over_one_sample_takes_more(forward: Any) -> None:
    model = net(forward, a=nn.Linear(4, 8), u=nn.Linear(8, 8), out=nn.Linear(8, 3))
    check_invariant(model, torch.randn(1, 6, 4, dtype=torch.float64))
    pruned = fxprune.prune(model.float(), 0.6, example_inputs=torch.randn(1, 6, 4), compensate=False)
    for batch, length in ((1, 6), (2, 6), (5, 9)):
        for training in (False, True):
            assert fxprune.verify(model, pruned, torch.randn(batch, length, 4), training=training) < 1e-9


@pytest.mark.parametrize("steps", [1, 2])
def test_what_few_steps_pass_on_is_right_or_refused(steps: int) -> None:
    model = net(recurrence, a=nn.Linear(4, 8), cell=nn.GRUCell(8, 8), out=nn.Linear(8, 3))
    pruned = fxprune.prune(model, 0.7, example_inputs=torch.randn(2, steps, 4), compensate=False)
    assert fxprune.verify(model, pruned, torch.randn(2, steps, 4)) < 1e-9
    if steps == 2:
        assert fxprune.verify(model, pruned, torch.randn(3, 5, 4)) < 1e-9
    else:
        with pytest.raises(FxpruneError, match="when the model was traced"):
            pruned(torch.randn(2, 5, 4))


def counted(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    n = x.size(1) // 2 + 1
    h = x[:, 0]
    for _ in range(n):
        h = self.u(h).tanh()
    return self.out(h / n)  # type: ignore[no-any-return]


def test_the_count_of_a_loop_may_be_needed_after_it() -> None:
    model = net(counted, a=nn.Linear(4, 8), u=nn.Linear(8, 8), out=nn.Linear(8, 3))
    pruned = fxprune.prune(model, 0.7, example_inputs=torch.randn(2, 6, 4), compensate=False)
    for length in (6, 3, 11):
        assert fxprune.verify(model, pruned, torch.randn(2, length, 4)) < 1e-9


def test_one_step_stands_for_all_that_are_alike() -> None:
    graph = graph_of(2.0, 2.0, 2.0, 2.0)
    names = roll(graph)
    assert names["mul_3"] == "mul"
    assert [node.name for node in graph.nodes if node.target in (torch.mul, torch.add)] == ["add", "mul"]
    assert not any("loops" in node.meta for node in graph.nodes)


@pytest.mark.parametrize("factors", [(2.0, 2.0), (2.0, 2.0, 3.0, 2.0), (2.0, 2.0, 2.0, 3.0), (2.0, 2.0, 2.0, 2)])
def test_few_or_different_steps_stay(factors: tuple[float, ...]) -> None:
    graph = graph_of(*factors)
    before = str(copy_graph(graph))
    assert roll(graph) == {}
    assert str(graph) == before


def test_few_steps_stand_for_all_where_it_is_said_that_they_do() -> None:
    graph = graph_of(2.0, 2.0)
    assert roll(copy_graph(graph), few=True)
    check = next(node for node in graph.nodes if "loops" in node.meta)
    check.meta["few"] = True
    assert roll(graph)["mul_1"] == "mul"
    assert roll(graph_of(2.0, 3.0), few=True) == {}


def test_nodes_at_the_same_place_of_all_steps_belong_together() -> None:
    alike = alike_in_steps(graph_of(2.0, 2.0, 2.0, 2.0))
    by_name = {node.name: [each.name for each in group] for node, group in alike.items()}
    assert by_name["mul_2"] == ["mul_1", "mul_2", "mul_3"]
