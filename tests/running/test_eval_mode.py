"""Models are in eval inside, and afterwards as they were, with an error too."""

from __future__ import annotations

from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn

from fxprune.running.eval_mode import in_eval, in_eval_without_grad, preserve_weights


class Counter(nn.Module):
    """Counts its calls in a buffer, puts another in place of a second, and has a part that is always in eval."""

    count: Tensor
    last: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(()))
        self.register_buffer("last", torch.zeros(2))
        self.frozen = nn.Dropout().eval()

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        self.last = x
        return x


def test_modes_and_buffers_are_as_before() -> None:
    model = Counter().train(True)
    model.frozen.eval()
    last = model.last
    with suppress(ZeroDivisionError), in_eval(model):
        assert not model.training
        model(torch.ones(2))
        raise ZeroDivisionError
    assert (model.training, model.frozen.training) == (True, False)
    assert model.count == 0
    assert model.last is last


def test_buffers_that_are_to_change_stay_changed() -> None:
    model = Counter()
    with in_eval(model, changing=[model.count]):
        model(torch.ones(2))
    assert model.count == 1


def test_gradients_are_asked_for_again_only_where_they_were() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).requires_grad_(False))
    with suppress(ZeroDivisionError), in_eval_without_grad(model):
        assert not any(parameter.requires_grad for parameter in model.parameters())
        raise ZeroDivisionError
    assert [parameter.requires_grad for parameter in model.parameters()] == [True, True, False, False]
    assert model.training


WRITES = {
    "in place": lambda weight: weight.mul_(2.0),
    "by an index": lambda weight: weight.__setitem__(0, 5.0),
    "into a view": lambda weight: weight[0].zero_(),
    "into its data": lambda weight: weight.data.fill_(3.0),
    "other data": lambda weight: setattr(weight, "data", torch.ones_like(weight)),
    "by an operator": lambda weight: weight.__iadd__(1.0),
}


@pytest.mark.parametrize("name", WRITES)
def test_weights_that_are_written_into_are_as_before(name: str) -> None:
    model = nn.Linear(2, 2)
    before, where = model.weight.detach().clone(), model.weight.data_ptr()
    with torch.no_grad(), preserve_weights(model):
        WRITES[name](model.weight)
        assert not torch.equal(model.weight, before)
    assert torch.equal(model.weight, before)
    assert model.weight.data_ptr() == where
