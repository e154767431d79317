"""Lists that a size repeats."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import check_invariant, net, tokens
from torch import Tensor, nn

from fxprune import FxpruneError, trace
from fxprune.tracing.repeated import Repeated


@pytest.mark.parametrize(
    "lengths",
    [
        lambda x: torch.tensor([x.shape[1]] * x.shape[0]), lambda x: torch.LongTensor(x.shape[0] * [x.shape[1]]),
        lambda x: torch.as_tensor([1.5] * x.shape[0], dtype=x.dtype), lambda x: torch.tensor([4, 2] * len(x))[: len(x)],
    ],
)  # fmt: skip
def test_a_tensor_of_such_a_list_is_right_for_other_sizes(lengths: Callable[[Tensor], Tensor]) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu()) * lengths(x)[:, None, None]  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2)).double()
    check_invariant(model, tokens(), 8)
    traced = trace(model, tokens().double())
    for batch, length in ((1, 7), (5, 3)):
        x = tokens(batch=batch, length=length).double()
        assert torch.equal(traced(x), model(x))


_USES: dict[str, Callable[[Any, Tensor], Any]] = {
    "all": lambda items, x: sum(items),
    "one": lambda items, x: items[-1],
    "against a number that no trial would reach": lambda items, x: 1 if sum(items) > 1000 else 2,
    "the length": lambda items, x: len(items),
    "arguments": lambda items, x: max(*items, 0),
    "filled": lambda items, x: [items.__setitem__(0, 3), 2][1],
    "sizes": lambda items, x: torch.ones(items).sum(),
    "equal": lambda items, x: items == [2, 2],
    "of tensors": lambda items, x: torch.stack([x.sum()] * x.shape[0]).sum(),
    "nested": lambda items, x: torch.tensor([items, items]).sum(),
}


@pytest.mark.parametrize("name", _USES)
def test_what_asks_for_its_entries_ties_the_graph_to_the_size(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) * _USES[name]([2] * x.shape[0], x)  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 2))
    traced = trace(model, tokens())
    assert torch.equal(traced(tokens()), model(tokens()))
    with pytest.raises(FxpruneError, match="when the model was traced"):
        traced(tokens(batch=3))


def test_it_is_a_list() -> None:
    class Number:
        def as_traced(self) -> int:
            return 2

    made = Repeated.of([1, 2], Number(), 2)
    assert isinstance(made, list)
    assert [*made] == [1, 2, 1, 2]
