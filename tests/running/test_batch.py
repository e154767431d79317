"""Batches: parts of them, and models that run on them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from fxprune import FxpruneError
from fxprune.errors import CannotScoreError
from fxprune.running.batch import Batch, placeholder_values, run_model, running_on

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 2, 1])


def test_a_batch_splits_into_pieces_that_join_to_itself() -> None:
    batch = Batch((), {"x": X, "scale": torch.ones(1)}, Y, clusters=torch.tensor([0, 0, 2, 2]), checked=True)
    pieces = batch.split(3)
    assert [piece.size for piece in pieces] == [3, 1]
    assert torch.equal(torch.cat([piece.kwargs["x"] for piece in pieces]), X)
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), Y)
    assert all(piece.kwargs["scale"].shape == (1,) for piece in pieces)
    assert [piece.clusters.tolist() for piece in pieces] == [[0, 0, 2], [2]]
    assert all(piece.checked for piece in pieces)
    assert batch.take(torch.tensor([3, 0])).labels.tolist() == [1, 0]
    assert [piece.size for piece in Batch((torch.zeros(20, 1),), {}).split()] == [16, 4]


def test_a_model_that_does_not_take_the_data_is_an_error_with_the_shapes() -> None:
    with pytest.raises(FxpruneError, match=r"does not run on data of shapes \(4, 3\): RuntimeError"):
        run_model(nn.Linear(5, 2), Batch((X,), {}))
    with pytest.raises(CannotScoreError, match=r"does not run on data.*TypeError"):
        run_model(nn.Linear(3, 2), Batch((X, X), {}), CannotScoreError)


def test_errors_of_a_model_are_of_the_class_asked_for_with_their_message() -> None:
    class Refuses(nn.Module):
        def __init__(self, error: Exception) -> None:
            super().__init__()
            self.error = error

        def forward(self, x: Tensor) -> Tensor:
            raise self.error

    batch = Batch((X,), {})
    # As a check in a traced graph refuses the size of a batch.
    with pytest.raises(CannotScoreError, match=r"^of another size$"):
        run_model(Refuses(FxpruneError("of another size")), batch, CannotScoreError)
    given = CannotScoreError("itself")
    with pytest.raises(CannotScoreError) as caught, running_on(batch, CannotScoreError):
        raise given
    assert caught.value is given
    for error in (torch.OutOfMemoryError("full"), KeyError("a bug")):
        with pytest.raises(type(error)):
            run_model(Refuses(error), batch)


def test_an_example_is_the_first_sample_as_inputs_are_given() -> None:
    (example,) = Batch((X,), {}).example
    assert torch.equal(example, X[:1])
    assert list(Batch((), {"x": X}).example) == ["x"]


def test_named_inputs_of_any_number_are_one_placeholder() -> None:
    graph = fx.Graph()
    first, rest = graph.placeholder("x"), graph.placeholder("**others")
    batch = Batch((), {"x": torch.zeros(1), "y": torch.ones(1)})
    assert placeholder_values(graph, batch) == {first: batch.kwargs["x"], rest: {"y": batch.kwargs["y"]}}
