"""Helpers of a model's code that draw random numbers from NumPy."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from invariant import net, randomise, tokens
from torch import Tensor, nn

import fxprune
from fxprune.running.randomness import random_state
from fxprune.tracing.drawing import array_drawn, may_draw
from fxprune.tracing.tracer import trace


def spans(shape: tuple[int, int], share: float = 0.5) -> np.ndarray:
    """A mask of random entries, as SpecAugment's."""

    def count() -> int:
        return int(share * shape[1] + np.random.rand(1).item())  # noqa: NPY002

    mask = np.zeros(shape, dtype=bool)
    for row in mask:
        row[np.random.choice(shape[1], count(), replace=False)] = True  # noqa: NPY002
    return mask


def some(size: int) -> np.ndarray:
    """Random numbers, of a random size."""
    return np.flatnonzero(np.random.rand(size) < 0.5)  # noqa: NPY002


def one(size: int) -> int:
    return int(np.random.randint(size))  # noqa: NPY002


def fixed(size: int) -> np.ndarray:
    generator = np.random.default_rng(0)
    return generator.random(size)


def augmented(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    if self.training:
        mask = torch.tensor(spans((y.shape[0], y.shape[1]), share=0.4), device=y.device, dtype=torch.bool)
        y[mask] = self.embedding.to(y.dtype)
    return self.b(y.relu())  # type: ignore[no-any-return]


def model_of(forward: Any) -> nn.Module:
    layers = {"a": nn.Linear(4, 12), "b": nn.Linear(12, 3), "embedding": nn.Parameter(torch.randn(12))}
    return randomise(net(forward, **layers)).train()


def test_a_mask_that_numpy_draws_is_drawn_by_the_graph() -> None:
    model = model_of(augmented)
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens().double(), compensate=False)
    for other in (tokens(), tokens(length=9), tokens(batch=3)):
        assert fxprune.verify(model, pruned, other.double(), training=True) <= 1e-12
        assert fxprune.verify(model, pruned, other.double()) <= 1e-12
    traced = trace(model, tokens().double()).train()
    with torch.no_grad():
        drawn = [traced(tokens().double()) for _ in range(6)]
        assert any(not torch.equal(first, drawn[0]) for first in drawn)
        assert torch.equal(traced.eval()(tokens().double()), model.eval()(tokens().double()))
        for again in (copy.deepcopy(traced), pickle.loads(pickle.dumps(traced)), trace(traced, tokens().double())):
            np.random.seed(3)  # noqa: NPY002
            expected = traced.train()(tokens().double())
            np.random.seed(3)  # noqa: NPY002
            assert torch.equal(again.train()(tokens().double()), expected)


@pytest.mark.parametrize("helper", [some, one])
def test_what_is_no_array_of_a_size_that_is_known_is_left_out_with_a_warning(helper: Any) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        if self.training:
            y = y * float(np.sum(helper(y.shape[1])))
        return self.b(y)  # type: ignore[no-any-return]

    with pytest.warns(fxprune.FxpruneWarning, match="draws random numbers from NumPy"):
        trace(model_of(forward), tokens().double())


def test_helpers_that_draw_are_known_by_their_code() -> None:
    assert all(map(may_draw, (spans, some, one, fixed)))
    assert not may_draw(tokens)


def test_an_array_is_random_if_its_size_is_not() -> None:
    before = random_state()
    found = array_drawn(lambda: spans((2, 6)))
    assert found is not None
    assert found.shape == (2, 6)
    for function in (some, one, fixed):
        assert array_drawn(lambda function=function: function(50)) is None  # type: ignore[misc]
    assert random_state() == before
