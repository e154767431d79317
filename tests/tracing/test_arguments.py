"""What was not a tensor in the traced call is part of the graph: a call with something else is refused."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, trace
from fxprune.tracing.checks import check_argument

X = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
MASK = torch.rand(3, 8, generator=torch.Generator().manual_seed(1))


def by_task(self: Any, x: Tensor, task: str = "seg") -> Tensor:
    return self.h(self.f(x).relu()) if task == "seg" else self.g(self.f(x).relu())  # type: ignore[no-any-return]


def by_flag(self: Any, x: Tensor, flag: bool = False) -> Tensor:
    y = self.f(x)
    return self.h(y.tanh() if flag else y)  # type: ignore[no-any-return]


def by_mask(self: Any, x: Tensor, mask: Tensor | None = None) -> Tensor:
    y = self.f(x)
    return self.h(y if mask is None else y * mask)  # type: ignore[no-any-return]


def by_list(self: Any, xs: list[Tensor]) -> Tensor:
    return self.h(sum(self.f(x) for x in xs))  # type: ignore[no-any-return]


def by_table(self: Any, x: Tensor, level: int) -> Tensor:
    # Python shows nobody that it looks a number up in a list.
    return self.h([self.f, self.g][level](x).relu())  # type: ignore[no-any-return]


def by_pair(self: Any, x: Tensor, size: tuple[int, int] = (1, 8)) -> Tensor:
    return self.h(self.f(x).reshape(-1, *size).sum(1))  # type: ignore[no-any-return]


def by_entries(self: Any, x: Tensor, more: dict[str, Any]) -> Tensor:
    y = self.f(x)
    return self.h(y * more["mask"] if more["use"] else y)  # type: ignore[no-any-return]


def by_dtype(self: Any, x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    return self.h(self.f(x).to(dtype).to(x.dtype))  # type: ignore[no-any-return]


CASES: tuple[tuple[Callable[..., Any], Any, Any, str], ...] = (
    (by_task, (X,), (X, "cls"), "argument `task` is 'cls' here, and was 'seg'"),
    (by_task, (X, "cls"), (X,), "argument `task` is 'seg' here, and was 'cls'"),
    (by_flag, (X,), (X, True), "argument `flag` is True here, and was False"),
    (by_mask, (X,), (X, MASK), "argument `mask` is a tensor here, and was None"),
    (by_mask, (X, MASK), (X,), "argument `mask` is None here, and was a tensor"),
    (by_list, ([X, X],), ([X, X, X],), "argument `xs` is a sequence of 3 here, and was a sequence of 2"),
    (by_table, (X, 0), (X, 1), "`level` is 1 here, and was 0"),
    (by_pair, (X,), (X, (2, 4)), r"argument `size\[0\]` is 2 here, and was 1"),
    (by_entries, (X, {"mask": MASK, "use": True}), (X, {"mask": MASK, "use": False}), r"argument `more\['use'\]` is F"),
    (by_entries, (X, {"mask": None, "use": False}), (X, {"mask": MASK, "use": False}), "is a tensor here"),
    (by_dtype, (X, torch.float64), (X, torch.float16), "is torch.float16 here, and was torch.float64"),
)


def parts() -> dict[str, nn.Module]:
    torch.manual_seed(0)
    return {"f": nn.Linear(8, 8), "g": nn.Linear(8, 8), "h": nn.Linear(8, 3)}


def example(args: Any) -> Any:
    return args if len(args) > 1 else args[0] if isinstance(args[0], Tensor) else tuple(args)


@pytest.mark.parametrize(("forward", "args", "other", "message"), CASES)
def test_another_value_is_refused_and_named(forward: Any, args: Any, other: Any, message: str) -> None:
    model = net(forward, **parts()).eval()
    traced = trace(model, example(args))
    pruned = fxprune.prune(model, 0.8, example_inputs=example(args), compensate=False)
    assert torch.equal(traced(*args), model(*args))
    for made in (
        traced,
        pruned,
        copy.deepcopy(pruned),
        pickle.loads(pickle.dumps(pruned)),
        trace(pruned, example(args)),
    ):
        made(*args)
        with pytest.raises(FxpruneError, match=f"{message}.*`Net`"):
            made(*other)


@pytest.mark.parametrize("args", [(X,), (X, MASK)])
def test_what_is_left_out_or_given_as_in_the_example_is_pruned_right(args: Any) -> None:
    check_invariant(net(by_mask, **parts()), example(args))
    check_invariant(net(by_task, **parts()), (X, "cls"))


def scaled(self: Any, x: Tensor, scale: float, shift: int = 1) -> Tensor:
    return self.h(self.f(x) * scale + shift)  # type: ignore[no-any-return]


def test_numbers_that_the_graph_computes_with_are_inputs() -> None:
    model = net(scaled, **parts()).eval()
    traced = trace(model, (X, 2.0, 3))
    for args in ((X, 0.5, 3), (X, 2.0, 4)):
        torch.testing.assert_close(traced(*args), model(*args))
    for given in (None, "much", True, X):
        with pytest.raises(FxpruneError, match=r"argument `scale`.*a number"):
            traced(X, given, 3)


def unread(self: Any, x: Tensor, labels: Any = None, flag: bool = False) -> Tensor:
    return self.h(self.f(x))  # type: ignore[no-any-return]


def test_arguments_that_no_code_reads_may_be_anything() -> None:
    traced = trace(net(unread, **parts()), X)
    assert torch.equal(traced(X), traced(X, MASK, flag=True))
    assert check_argument not in [node.target for node in traced.graph.nodes]


def through_locals(self: Any, x: Tensor, flag: bool = False) -> Tensor:
    return self.h(self.f(x) * (2 if locals()["flag"] else 1))  # type: ignore[no-any-return]


def test_code_that_reads_its_variables_by_name_is_guarded() -> None:
    traced = trace(net(through_locals, **parts()), X)
    with pytest.raises(FxpruneError, match="`flag`"):
        traced(X, flag=True)


def test_checks_of_arguments_are_compiled_and_exported() -> None:
    model = net(by_flag, **parts()).eval()
    traced = trace(model, (X, True))
    compiled = torch.compile(traced, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(X, True), model(X, True))
    program = torch.export.export(traced, (X, True))
    torch.testing.assert_close(program.module()(X, True), model(X, True))
    with pytest.raises(FxpruneError, match="`flag`"):
        torch.export.export(traced, (X, False))
    # Not in one graph, the refusal is what the user sees.
    with pytest.raises(FxpruneError, match="`flag`"):
        torch.compile(traced, backend="eager")(X, False)


def test_the_order_of_a_dict_is_checked_where_the_code_follows_it() -> None:
    def joined(self: Any, parts: dict[str, Tensor]) -> Tensor:
        return self.f(torch.cat(list(parts.values()), 1))  # type: ignore[no-any-return]

    def by_name(self: Any, parts: dict[str, Tensor]) -> Tensor:
        return self.f(torch.cat([parts["a"], parts["b"]], 1)) if "b" in parts.keys() else None  # noqa: SIM118

    given = {"a": torch.randn(2, 3), "b": torch.randn(2, 4)}
    turned = dict(reversed(given.items()))
    for forward in (joined, by_name):
        model = net(forward, f=nn.Linear(7, 2))
        traced = trace(model, (given,))
        assert torch.equal(traced(given), model(given))
        if forward is by_name:
            assert torch.equal(traced(turned), model(turned))
        else:
            with pytest.raises(FxpruneError, match=r"argument `parts` is \['b', 'a'\] here, and was \['a', 'b'\]"):
                traced(turned)
