"""The notes of a traced model are there, and copies, pickles and files of torch have them too."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from invariant import image
from torch import Tensor, nn

import fxprune
from fxprune.models import load_model
from fxprune.tracing.notes import call_of, example_of, trace_notes


class Kept(nn.Module):
    """Reads a value of a parameter, and keeps a tensor that is neither parameter nor buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 2, 1)
        self.gain = nn.Parameter(torch.tensor(1.5))
        self.tables = {"x": torch.ones(6)}

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x)) * self.gain.item() + self.tables["x"]


def saved_and_loaded(model: nn.Module) -> nn.Module:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    loaded: nn.Module = torch.load(file, weights_only=False)
    return loaded


def unchanged(model: nn.Module) -> nn.Module:
    return model


@pytest.mark.parametrize("made", [unchanged, copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m)), saved_and_loaded])
def test_all_that_is_known_of_a_trace_is_in_the_notes_and_in_those_of_copies(made: Callable[[Any], Any]) -> None:
    notes = trace_notes(made(fxprune.trace(Kept(), image(), leaves=("head",))))
    assert notes.example_inputs is not None
    (given,), named = notes.example_inputs
    assert torch.equal(given, image())
    assert named == {}
    assert notes.leaves == ("head",)
    assert [value["entries"] for value in notes.values_read.values()] == [[1.5]]
    assert notes.constant_places == {"_tensor_constant0": ("", "tables", "x")}
    assert notes.source is None


def test_the_source_is_what_built_the_model() -> None:
    traced = fxprune.trace(load_model("torch.nn:Linear", in_features=3, out_features=2), torch.ones(1, 3))
    source = trace_notes(traced).source
    assert source is not None
    assert (source.spec, source.arguments) == ("torch.nn:Linear", {"in_features": 3, "out_features": 2})


def test_a_model_that_was_not_traced_has_empty_notes() -> None:
    notes = trace_notes(nn.Linear(3, 2))
    assert notes.example_inputs is None
    assert not notes.remarks + notes.leaves
    assert not {**notes.values_read, **notes.constant_places}


def test_inputs_that_are_given_come_before_those_of_the_trace() -> None:
    traced = fxprune.trace(Kept(), {"x": image()})
    assert torch.equal(call_of(traced)[1]["x"], image())
    assert call_of(traced, torch.zeros(1, 3, 6, 6))[0][0].shape == (1, 3, 6, 6)
    assert example_of(traced).keys() == {"x"}
    assert torch.equal(example_of(fxprune.trace(Kept(), image()))[0], image())


def test_a_traced_model_is_called_with_what_it_was_traced_with() -> None:
    x = torch.randn(4, 3)
    traced = fxprune.trace(nn.Linear(3, 2), x)
    args, kwargs = call_of(traced)
    assert torch.equal(args[0], x)
    assert kwargs == {}
    assert call_of(traced, torch.zeros(1, 3))[0][0].shape == (1, 3)
    assert torch.equal(example_of(traced)[0], x)


def test_the_example_of_a_model_with_keyword_inputs_is_a_dict() -> None:
    class Named(nn.Module):
        def forward(self, *, x: Tensor) -> Tensor:
            return x.relu()

    example: Any = example_of(fxprune.trace(Named(), {"x": torch.ones(2, 3)}))
    assert list(example) == ["x"]
