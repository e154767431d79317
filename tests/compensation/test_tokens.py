"""Random tokens for models of text."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune.compensation.tokens import has_tokens, token_samples
from fxprune.provenance import pruning_notes
from fxprune.tracing.tracer import trace

WORDS, TYPES, LENGTH = 400, 2, 9


class Text(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.types = nn.Embedding(WORDS, 8), nn.Embedding(TYPES, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8))

    def forward(self, ids: Tensor, types: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids.long()) + self.types(types)
        return (self.mlp(x) * mask[..., None]).mean(1)


def example(batch: int = 2) -> dict[str, Any]:
    ids = torch.arange(batch * LENGTH).reshape(batch, LENGTH).int()
    return {"ids": ids, "types": torch.ones(batch, LENGTH, dtype=torch.long), "mask": torch.ones(batch, LENGTH).bool()}


def test_tokens_are_those_of_the_vocabulary_and_other_inputs_stay() -> None:
    graph = trace(Text().eval(), example())
    batch = token_samples(graph, 50, seed=0)
    ids = batch.kwargs["ids"]
    assert ids.shape == (50, LENGTH)
    assert ids.dtype == torch.int32
    assert ids[:, 0].tolist() == [0] * 50
    assert 0 <= ids.min() < 20
    assert WORDS - 20 < ids.max() < WORDS
    assert len(ids[:, 1:].unique()) > 200
    assert batch.kwargs["types"].shape == batch.kwargs["mask"].shape == (50, LENGTH)
    assert batch.kwargs["types"].all()
    graph(**batch.kwargs)
    assert not torch.equal(ids, token_samples(graph, 50, seed=1).kwargs["ids"])


@pytest.mark.parametrize("shape", [(1,), (1, 1)])
def test_one_token_a_sample_is_any(shape: tuple[int, ...]) -> None:
    graph = trace(nn.Embedding(WORDS, 4), torch.zeros(shape).long())
    assert len(token_samples(graph, 50, seed=0).args[0].unique()) > 40


@pytest.mark.parametrize(
    ("forward", "given", "known"),
    [
        (lambda x: nn.functional.embedding(x, torch.ones(300, 4)), torch.zeros(1, 5).long(), True),
        (lambda x: nn.functional.embedding(x, torch.ones(30, 4)), torch.zeros(1, 5).long(), False),
        (lambda x: x * 2.0, torch.zeros(1, 5).long(), False),
        (lambda x: nn.functional.embedding(x.long(), torch.ones(300, 4)), torch.zeros(1, 5), False),
    ],
    ids=["words", "types", "numbers", "floating-point"],
)
def test_tokens_are_looked_up_in_a_large_table(forward: Any, given: Tensor, known: bool) -> None:
    class Model(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return forward(x)

    assert has_tokens(trace(Model(), given)) is known


def test_a_model_of_text_is_compensated_on_random_tokens() -> None:
    torch.manual_seed(0)
    model = Text().eval()
    pruned = fxprune.prune(model, 0.6, example_inputs=example(1), progress=False)
    notes = pruning_notes(pruned)
    assert "texts of random tokens" in notes.samples
    assert notes.compensated
    bare = fxprune.prune(model, 0.6, example_inputs=example(1), compensate=False, progress=False)
    text = {**example(60), "ids": torch.randint(WORDS, (60, LENGTH)).int()}
    with torch.no_grad():
        errors = [float((small(**text) - model(**text)).square().mean()) for small in (pruned, bare)]
    assert errors[0] < 0.7 * errors[1]
