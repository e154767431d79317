"""Values in plain types and back."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor, fx
from torch.nn.utils.rnn import pack_padded_sequence

from fxprune.tracing.plain_values import digest, in_plain_types, layout_in_plain_types, restored


@pytest.mark.parametrize(
    "value", [True, 3, 0.5, torch.tensor([[1, 2], [3, 4]]), torch.tensor(2.5, dtype=torch.float64)]
)
def test_numbers_and_small_tensors_come_back_as_they_were(value: Any) -> None:
    back = restored(json.loads(json.dumps(in_plain_types(value))))
    if isinstance(value, Tensor):
        assert back.dtype == value.dtype
        assert torch.equal(back, value)
    else:
        assert back is value or back == value


def test_large_and_complex_tensors_have_no_plain_types() -> None:
    assert in_plain_types(torch.zeros(101, 100)) is None
    assert in_plain_types(torch.zeros(2, dtype=torch.complex64)) is None


def test_a_layout_comes_back_on_the_meta_device() -> None:
    packed = pack_padded_sequence(torch.randn(2, 3, 4), torch.tensor([3, 2]), batch_first=True)
    values, (size, nothing), again = restored(layout_in_plain_types((torch.zeros(2, 3), (7, None), packed)))
    assert values.is_meta
    assert values.shape == (2, 3)
    assert (size, nothing) == (7, None)
    assert again.data.shape == packed.data.shape


def test_a_digest_is_of_what_is_computed_and_not_of_names() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    same = [graph.call_function(torch.add, (x, 1), name=name) for name in ("a", "b")]
    other = graph.call_function(torch.add, (x, 2))
    assert digest(same[0]) == digest(same[1]) != digest(other)
