"""Calls: from example inputs, from what a model was traced with, and at another batch size."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from fxprune.errors import FxpruneError
from fxprune.running.calls import (
    batch_size_of,
    call_arguments,
    given_call,
    has_batch,
    with_batch,
)


def test_inputs_are_detached_and_named_as_they_are_given() -> None:
    weight = torch.ones(2, requires_grad=True)
    (x, y), kwargs = call_arguments([weight * 2, 3])
    assert (x.grad_fn, y, kwargs) == (None, 3, {})
    args, kwargs = call_arguments({"x": weight})
    assert args == ()
    assert kwargs["x"] is weight, "a parameter has no history"


def test_a_numpy_array_is_refused_wherever_it_is() -> None:
    with pytest.raises(FxpruneError, match=r"a numpy array of shape \(2, 3\).*torch.from_numpy"):
        call_arguments({"x": [np.zeros((2, 3))]})


def test_a_model_without_known_inputs_needs_some() -> None:
    with pytest.raises(FxpruneError, match="no example inputs"):
        given_call(nn.Linear(3, 2))


@pytest.mark.parametrize(
    ("call", "size"),
    [(((torch.zeros(4, 3),), {}), 4), (((), {"a": 1, "b": torch.zeros(2)}), 2), (((torch.zeros(()),), {}), None)],
)
def test_the_batch_is_the_first_dimension_of_the_first_tensor(call: Any, size: int | None) -> None:
    assert batch_size_of(call) == size
    assert batch_size_of(((1, "x"), {})) is None
    assert has_batch(torch.zeros(4, 1), 4)
    assert not any(has_batch(leaf, 4) for leaf in (torch.zeros(3), torch.zeros(()), [0] * 4, None))


def test_a_batch_is_cut_or_filled_with_samples_that_differ() -> None:
    call = ((torch.tensor([[1.0], [2.0]]), torch.zeros(3)), {"ids": torch.tensor([7, 8]), "flag": True})
    (x, other), kwargs = with_batch(call, 2, 1)
    assert (x.tolist(), other.shape, kwargs["ids"].tolist(), kwargs["flag"]) == ([[1.0]], (3,), [7], True)
    (x, _), kwargs = with_batch(call, 2, 4)
    assert kwargs["ids"].tolist() == [7, 8, 7, 8]
    assert len({float(sample) for sample in x}) == 4
    assert x[0] == 1.0
