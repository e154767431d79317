"""Outputs are compared in float64, with weights and inputs that are not special."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import net
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running.calls import Call
from fxprune.tracing.runs import Runner
from fxprune.tracing.same_outputs import are_same, outputs_of

CALL: Call = (torch.randn(2, 4),), {}


def outputs(model: nn.Module) -> list[Tensor] | None:
    return outputs_of(Runner(model, *CALL, True, {}), model, CALL, False)


def zeros(self: Any, x: Tensor) -> Tensor:
    return self.a(x)  # type: ignore[no-any-return]


def test_a_weight_of_zero_is_not_zero_there() -> None:
    model = net(zeros, a=nn.Linear(4, 3))
    nn.init.zeros_(model.get_parameter("a.weight"))
    found = outputs(model)
    assert found is not None
    assert len(found) == 2
    assert found[0].dtype == torch.float64
    assert not torch.equal(found[0][0], found[0][1])
    assert not model.get_parameter("a.weight").any()


@pytest.mark.parametrize("error", [ZeroDivisionError, TypeError, KeyError])
def test_what_does_not_run_has_no_outputs(error: type[Exception]) -> None:
    def fails(self: Any, x: Tensor) -> Tensor:
        raise error

    assert outputs(net(zeros, a=nn.Linear(5, 3))) is None
    assert outputs(net(fails)) is None


def test_what_a_graph_refuses_is_an_error() -> None:
    def refuses(self: Any, x: Tensor) -> Tensor:
        raise FxpruneError

    with pytest.raises(FxpruneError):
        outputs(net(refuses))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (torch.ones(3), torch.ones(3) + 1e-12, True), (torch.ones(3), torch.ones(3).double() + 1e-12, False),
        (torch.ones(3), torch.ones(1, 3), False), (torch.ones(3), torch.ones(3) * 1.1, False),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, torch.inf]), True),
        (torch.tensor([1.0, torch.inf]), torch.tensor([1.0, 2.0]), False),
        (torch.tensor([1, 2]), torch.tensor([1, 2]), True), (torch.tensor([1, 2]), torch.tensor([1, 3]), False),
    ],
)  # fmt: skip
def test_rounding_is_no_difference(one: Tensor, other: Tensor, same: bool) -> None:
    assert are_same([one], [other]) is same
    assert not are_same([one], [])
