from __future__ import annotations

import contextlib
import pickle
from collections import OrderedDict, namedtuple
from typing import Any

import pytest
import torch
from invariant import check_training, image, net, tokens
from same_model import assert_same
from torch import Tensor, fx, nn
from torch.nn import functional as F

import fxprune
from fxprune import FxpruneError, FxpruneWarning, trace
from fxprune.running.mode_blocks import modes_of

Outputs = namedtuple("Outputs", ["logits", "aux"])


class Auxiliary(nn.Module):
    """As GoogLeNet: a head that runs in training alone, behind layers that both ways use."""

    def __init__(self, norm: type[nn.Module] = nn.BatchNorm2d) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), norm(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), norm(8), nn.ReLU())
        self.aux = nn.Sequential(nn.Conv2d(8, 6, 1), norm(6), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 16, 5))
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Any:
        x = self.stem(x)
        aux = self.aux(x) if self.training else None
        x = self.head(self.body(x).mean((2, 3)))
        return Outputs(x, aux) if self.training else x


def test_a_head_of_training_is_cut_with_what_it_reads_and_costs_nothing_in_eval() -> None:
    pruned = check_training(Auxiliary(), image())
    small: Any = pruned.aux
    assert small.get_submodule("0").in_channels == pruned.get_submodule("stem.0").out_channels < 8
    assert fxprune.count_flops(pruned, image().double()) == fxprune.plan_of(pruned).flops
    assert isinstance(pruned.train()(image().double()), Outputs)
    assert isinstance(pruned.eval()(image().double()), Tensor)


def test_training_is_the_same_from_a_file_and_in_the_models_own_class(tmp_path: Any) -> None:
    model = Auxiliary()
    pruned = check_training(model, image())
    x = image().double()
    fxprune.save(pruned, tmp_path / "small.safetensors")
    loaded, own = fxprune.load(tmp_path / "small.safetensors", original=model), fxprune.restore_class(model, pruned)
    expected = pruned.train()(x)
    for made in (loaded.train(), own.train()):
        for a, b in zip(made(x), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


KINDS: dict[str, tuple[Any, Any]] = {
    "a list for a tuple": (lambda x, y: [x, y], lambda x, y: (x, y)),
    "a tuple for a list": (lambda x, y: (x, y), lambda x, y: [x, y]),
    "another order": (lambda x, y: {"x": x, "y": y}, lambda x, y: {"y": y, "x": x}),
    "an ordered dict": (lambda x, y: OrderedDict(x=x, y=y), lambda x, y: {"x": x, "y": y}),
    "a plain dict": (lambda x, y: {"x": x, "y": y}, lambda x, y: OrderedDict(x=x, y=y)),
    "a named tuple": (lambda x, y: Outputs(x, y), lambda x, y: (x, y)),
    "an inner list": (lambda x, y: {"x": [x, y]}, lambda x, y: {"x": (x, y)}),
    "an empty list": (lambda x, y: (x, []), lambda x, y: (x, ())),
    "another order of numbers": (lambda x, y: (x, {"a": 1, "b": 2}), lambda x, y: (x, {"b": 2, "a": 1})),
}


@pytest.mark.parametrize("name", KINDS)
def test_what_is_returned_is_of_the_kind_that_each_mode_has(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        return KINDS[name][not self.training](self.b(self.a(x)), x.sum())

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    for made in (pruned, pickle.loads(pickle.dumps(pruned)), trace(pruned, tokens())):
        for training in (True, False):
            expected, got = (each.train(training)(tokens(6)) for each in (model, made))
            assert repr(torch.utils._pytree.tree_structure(got)) == repr(torch.utils._pytree.tree_structure(expected))
            assert type(got) is type(expected)
            if isinstance(expected, dict):
                assert [*got] == [*expected]
    for training in (False, True):
        assert fxprune.verify(model, pruned, tokens(6), training=training) < 1e-9


def test_an_example_of_one_sample_that_batch_norm_cannot_train_on_is_enough() -> None:
    class Pooled(Auxiliary):
        def forward(self, x: Tensor) -> Any:
            x = self.stem(x)
            x = self.body(x).mean((2, 3), keepdim=True)
            aux = self.aux[2](self.aux[1](self.aux[0](x))) * x.shape[0] if self.training else x  # type: ignore[operator, index]
            return self.head(x.flatten(1)), aux

    check_training(Pooled(), image(batch=2))
    model = Pooled().eval()
    traced = trace(model, image(batch=1))
    (node,) = (n for n in traced.graph.nodes if n.target == "aux.1")
    assert node.meta["value"].shape == (1, 6, 1, 1)
    assert_same(model, traced, image(batch=3))


def reparametrised(self: Any, x: Tensor) -> Tensor:
    if self.training:
        return self.c(self.a(x) + self.b(x))  # type: ignore[no-any-return]
    return self.c(F.linear(x, self.a.weight + self.b.weight, self.a.bias + self.b.bias))  # type: ignore[no-any-return]


def test_layers_that_are_merged_in_eval_are_trained_apart() -> None:
    model = net(reparametrised, a=nn.Linear(4, 8), b=nn.Linear(4, 8), c=nn.Linear(8, 2))
    pruned = check_training(model, tokens())
    assert_same(pruned, pruned, tokens().double())


def averaging(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if self.training:
        with torch.no_grad():
            self.average.mul_(0.9).add_(y.mean((0, 1)), alpha=0.1)
    return self.b(F.dropout(y - self.average, 0.5, self.training))  # type: ignore[no-any-return]


def replacing(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if self.training:
        self.average = self.average * 0.9 + y.detach().mean((0, 1)) * 0.1
        return self.b(y)  # type: ignore[no-any-return]
    return self.b(y - self.average)  # type: ignore[no-any-return]


def queueing(self: Any, x: Tensor) -> Tensor:
    """As MoCo: the newest keys go where a pointer says, which Python reads."""
    y = self.a(x)
    similar = y.mean(1) @ self.queue.clone().detach().t()
    if self.training:
        with torch.no_grad():
            place = int(self.place)
            self.queue[place : place + len(y)] = y.mean(1)
            self.place[0] = (place + len(y)) % len(self.queue)
    return torch.cat([self.b(y).mean(1), similar], 1)


def teaching(self: Any, x: Tensor) -> Tensor:
    if self.training:
        with torch.no_grad():
            for teacher, student in zip(self.slow.parameters(), self.a.parameters(), strict=True):
                teacher.data.mul_(0.9).add_(student.data, alpha=0.1)
    return self.b(self.a(x).relu() + self.slow(x).relu())  # type: ignore[no-any-return]


def counting(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if self.training:
        self.count += 1
        y = y * (1 - 0.5**self.count)
    return self.b(y)  # type: ignore[no-any-return]


def annealing(self: Any, x: Tensor) -> Tensor:
    y = self.a(x) / float(self.heat)
    if self.training:
        self.heat *= 0.9
    return self.b(y)  # type: ignore[no-any-return]


def tracking(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if self.training:
        y = Track.apply(y, self.average)
    return self.b(y - self.average)  # type: ignore[no-any-return]


class Track(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, average: Tensor) -> Tensor:
        average.mul_(0.9).add_(x.mean((0, 1)), alpha=0.1)
        return x * 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # type: ignore[override]
        return grad * 2, None


def _keeping(forward: Any) -> nn.Module:
    buffers = {"average": torch.ones(8), "queue": torch.ones(16, 8), "place": torch.zeros(1, dtype=torch.long)}
    more = {"count": torch.tensor(0), "heat": torch.tensor(1.0), "slow": nn.Linear(4, 8).requires_grad_(False)}
    return net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), **buffers, **more)


@pytest.mark.parametrize(
    "forward", [averaging, replacing, queueing, teaching, counting, annealing, tracking], ids=lambda each: each.__name__
)
def test_what_training_writes_into_is_written_in_training_alone(forward: Any) -> None:
    model = _keeping(forward)
    pruned = check_training(model, tokens()) if forward is not averaging else None
    for small in (trace(model.eval(), tokens().double()), pruned) if pruned else (trace(model, tokens()),):
        assert small is not None
        x = tokens(batch=3).to(next(small.parameters()).dtype)
        before = {name: buffer.clone() for name, buffer in small.state_dict().items()}
        expected = small.eval()(x)
        torch.testing.assert_close(fx.Interpreter(small).run(x), expected)
        torch.testing.assert_close(torch.export.export(small, (x,)).module()(x), expected)
        assert all(torch.equal(buffer, before[name]) for name, buffer in small.state_dict().items())
        small.train()(x)
        assert any(not torch.equal(buffer, before[name]) for name, buffer in small.state_dict().items())


@pytest.mark.parametrize(
    "forward", [averaging, replacing, queueing, teaching, counting, annealing, tracking], ids=lambda each: each.__name__
)
def test_a_graph_keeps_the_same_over_several_steps(forward: Any) -> None:
    model = _keeping(forward)
    traced = trace(model, tokens())
    for training in (False, True, True, True, False):
        for candidate in (model, traced):
            candidate.train(training)
            torch.manual_seed(0)
            last = candidate(tokens(batch=2 + training))
        torch.manual_seed(0)
    for name, buffer in model.state_dict().items():
        torch.testing.assert_close(traced.state_dict()[name], buffer)
    torch.testing.assert_close(model(tokens(batch=2)), last)


def test_numbers_that_training_reads_from_buffers_are_not_read_in_eval() -> None:
    traced = trace(_keeping(queueing), tokens()).eval()
    items = [node for node in traced.graph.nodes if node.target == "item"]
    assert len(items) == 1
    assert all(training for _, training in [modes_of(traced.graph)[items[0]]])
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(tokens()), traced(tokens()))


def looping(self: Any, x: Tensor) -> Tensor:
    state = x[:, 0]
    for i in range(1, x.shape[1]):
        state = self.a(state + x[:, i]).tanh()
    return self.b(state.relu() if self.training else state)  # type: ignore[no-any-return]


def looping_more_in_eval(self: Any, x: Tensor) -> Tensor:
    state, factors = self.a(x), [2.0, 0.5, 3.0, 0.2, 5.0]
    for k in range(x.shape[1] // (5 if self.training else 2)):
        state = self.a(state * factors[k]).tanh()
    return self.b(state)  # type: ignore[no-any-return]


def test_a_loop_with_other_steps_in_training_is_tied_to_the_size_and_in_the_graph() -> None:
    model = net(looping_more_in_eval, a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    traced = fxprune.trace(model, tokens())
    for training in (False, True):
        x = tokens(batch=3)
        torch.testing.assert_close(traced.train(training)(x), model.train(training)(x), rtol=0, atol=0)
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced.train()(tokens(length=10))


def test_other_code_in_training_beside_a_loop_over_a_size_is_left_out_with_a_warning() -> None:
    model = net(looping, a=nn.Linear(4, 4), b=nn.Linear(4, 2)).eval()
    with pytest.warns(FxpruneWarning, match=r"for `Net`: .* in one graph: the code loops over a size"):
        traced = trace(model, tokens(6)).eval()
    torch.testing.assert_close(traced(tokens(8)), model(tokens(8)))


def drawing(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if self.training:
        with torch.no_grad():
            noise = torch.randn_like(y).mul_(0.1)
        y = F.dropout(y + noise, 0.5)
    return self.b(y)  # type: ignore[no-any-return]


def test_draws_and_contexts_of_training_are_those_of_the_original() -> None:
    model = net(drawing, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    assert_same(model, trace(model, tokens()), tokens(batch=3))


def checked(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training and (x.shape[1] > 6 or not x.isfinite().all()):
        x = x.relu()
    return self.b(x)  # type: ignore[no-any-return]


def test_checks_of_training_do_not_apply_where_eval_is_exported_or_run_node_by_node() -> None:
    traced = trace(net(checked, a=nn.Linear(4, 4), b=nn.Linear(4, 2)).eval(), tokens()).eval()
    for x in (tokens(7), tokens(7) / 0):
        torch.testing.assert_close(fx.Interpreter(traced).run(x), traced(x), equal_nan=True)
    program = torch.export.export(traced, (tokens(7),)).module()
    torch.testing.assert_close(program(tokens(7)), traced(tokens(7)))
    with pytest.raises(FxpruneError, match=r"`a\.size"):
        traced.train()(tokens(7))


def by_size(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    if self.training and x.shape[1] > 6:
        x = x.relu()
    return self.b(x)  # type: ignore[no-any-return]


def test_sizes_that_training_alone_follows_are_checked_there_alone() -> None:
    model = net(by_size, a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    model.c = nn.Linear(4, 2)
    traced = trace(model.eval(), tokens())
    assert_same(model, traced, tokens(6))
    assert torch.equal(traced.eval()(tokens(7)), model.eval()(tokens(7)))


def with_a_table(self: Any, x: Tensor) -> Tensor:
    x = self.a(x)
    x = x * torch.tensor([1.0, 2.0, 3.0, 4.0]) if self.training else x + torch.tensor([4.0, 3.0, 2.0, 1.0])
    return self.b(x[..., : 3 if self.training else 2].sum(-1, keepdim=True))  # type: ignore[no-any-return]


def test_constants_and_bounds_of_each_mode_are_its_own() -> None:
    model = net(with_a_table, a=nn.Linear(4, 4), b=nn.Linear(1, 2))
    assert_same(model, trace(model, tokens()), tokens(6))


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = net(lambda self, x: self.a(x).relu() if self.training else self.a(x), a=nn.Linear(4, 4))
        self.outer = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x)
        return self.outer(x.tanh() if self.training else x)  # type: ignore[no-any-return]


def test_each_part_follows_its_own_mode() -> None:
    parts = [net(lambda self, x: self.a(x).relu() if self.training else self.a(x), a=nn.Linear(4, 4)) for _ in "ab"]
    model = nn.Sequential(*parts, nn.Linear(4, 2))
    traced = trace(model, tokens())
    for made in (model, traced):
        made.train().get_submodule("0").eval()
    torch.testing.assert_close(traced(tokens()), model(tokens()), rtol=0, atol=0)


def test_a_traced_model_is_traced_again_with_both_modes() -> None:
    parts = [net(lambda self, x: self.a(x).relu() if self.training else self.a(x), a=nn.Linear(4, 4)) for _ in "ab"]
    model = nn.Sequential(*parts, nn.Linear(4, 2))
    again = trace(trace(model, tokens()), tokens())
    assert_same(model, again, tokens(6))
    again.train().get_submodule("0").eval()
    with pytest.raises(FxpruneError, match="is in training, and `0` in eval"):
        again(tokens())
    twice = fxprune.prune(check_training(Auxiliary(), image()), 0.5, example_inputs=image().double(), compensate=False)
    assert isinstance(twice.train()(image().double()), Outputs)


def test_parts_that_compute_with_each_other_are_in_the_same_mode() -> None:
    model = Mixed()
    traced = trace(model, tokens())
    assert_same(model, traced, tokens(6))
    for outer in (True, False):
        traced.train(outer).get_submodule("inner").train(not outer)
        with pytest.raises(FxpruneError, match=r"`Mixed` is in .*, and `inner` in .*; the graph has what"):
            traced(tokens())


def around_both(self: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16) if self.training else contextlib.nullcontext():
        x = self.a(x)
    return self.b(x.relu() if self.training else x)  # type: ignore[no-any-return]


def test_a_context_around_both_ways_that_is_there_in_one_mode_only_leaves_the_graph_of_eval_with_a_warning() -> None:
    model = net(around_both, a=nn.Linear(4, 4), b=nn.Linear(4, 2))
    with pytest.warns(FxpruneWarning, match="Only the code of eval is in the graph for `Net`"):
        traced = trace(model, tokens())
    assert torch.equal(traced.eval()(tokens()), model.eval()(tokens()))
    with pytest.warns(FxpruneWarning, match="Only the code of eval is in the graph for `Net`"):
        traced.train()(tokens())


def test_both_modes_are_compiled_and_eval_is_exported() -> None:
    traced = trace(Auxiliary().eval(), image())
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    for training in (True, False):
        traced.train(training)
        a, b = compiled(image()), traced(image())
        torch.testing.assert_close(tuple(a), tuple(b), rtol=1e-3, atol=1e-3)
    exported = torch.export.export(traced.eval(), (image(),)).module()
    torch.testing.assert_close(exported(image()), traced(image()))
