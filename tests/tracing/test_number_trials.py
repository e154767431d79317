"""Numbers that code makes of sizes out of sight, which the graph computes where they are sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from invariant import net, tokens
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.tracing import user_code
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace_knowing


@pytest.fixture(autouse=True)
def _library(monkeypatch: pytest.MonkeyPatch) -> None:
    """This file is the library; the model's parts are of other files."""
    monkeypatch.setattr(user_code, "_installed", lambda: {__name__.partition(".")[0]})


def written(x: Tensor, *sizes: Any) -> Tensor:
    """A tensor reshaped by code that is written for these sizes, as libraries of tensor notation do."""
    names: dict[str, Any] = {}
    exec(f"def reshaped(x): return x.reshape({', '.join(str(n) for n in np.asarray(sizes).tolist())})", names)
    result: Tensor = names["reshaped"](x)
    return result


def _streams(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    b, n, c = y.shape
    y = written(y, b, 1, n, c) + written(self.streams, 1, 2, 1, c)
    assert tuple(y.shape) == (*np.asarray([b, 2, n]).tolist(), c)
    return self.b(written(y, b * 2, n, c).relu())  # type: ignore[no-any-return]


def _distances(self: Any, x: Tensor) -> Tensor:
    n = x.shape[1]
    places = torch.arange(n)
    far = (written(places, n, 1) - written(places, 1, n)).abs()
    return self.b(far.to(x).neg().softmax(1) @ self.a(x).relu())  # type: ignore[no-any-return]


def model_of(forward: Callable[..., Any]) -> nn.Module:
    streams = nn.Parameter(torch.randn(2, 8))
    return net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2), streams=streams)


def _alike_branches(self: Any, x: Tensor) -> Tensor:
    y = written(self.a(x), *x.shape[:2], 8)
    if x.shape[1] < 6:
        return self.b(y.tanh())  # type: ignore[no-any-return]
    return self.b(y.tanh())  # type: ignore[no-any-return]


def _special_for_one(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    b, n, c = y.shape
    sizes = np.asarray([b, n, c]).tolist()
    y = y if sizes[0] == 1 else written(y, b, n, 1, c).squeeze(2)
    return self.b(y.relu())  # type: ignore[no-any-return]


@pytest.mark.parametrize("forward", [_streams, _distances, _alike_branches, _special_for_one])
def test_numbers_that_are_products_of_sizes_are_computed(forward: Any) -> None:
    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    for training in (False, True):
        for length, batch in ((5, 2), (11, 2), (5, 3), (7, 1), (9, 4)):
            assert fxprune.verify(model, pruned, tokens(length, batch=batch), training=training) < 1e-9


def _clipped(self: Any, x: Tensor) -> Tensor:
    n = int(np.clip(np.asarray(x.shape[1]), 1, 20))
    return self.b(self.a(x).reshape(-1, n, 8).softmax(1))  # type: ignore[no-any-return]


def _by_parity(self: Any, x: Tensor) -> Tensor:
    y = written(self.a(x), *x.shape[:2], 8)
    return self.b(y.relu() if np.asarray(x.shape[1]) % 2 else y.tanh())  # type: ignore[no-any-return]


def _scaled(self: Any, x: Tensor) -> Tensor:
    return self.b(written(self.a(x), *x.shape[:2], 8) * (1.0 / np.asarray(x.shape[1]).item()))  # type: ignore[no-any-return]


def _named(self: Any, x: Tensor) -> Tensor:
    if x.shape[1] == 5:
        return self.b(written(self.a(x), *x.shape[:2], 8))  # type: ignore[no-any-return]
    return self.b(written(self.a(x), *x.shape[:2], 8).tanh())  # type: ignore[no-any-return]


def _else_for_one(self: Any, x: Tensor) -> Tensor:
    y = self.a(x)
    sizes = np.asarray([*y.shape]).tolist()
    return self.b(y.tanh() if sizes[0] == 1 else written(y, *sizes).relu())  # type: ignore[no-any-return]


def test_a_size_of_one_is_refused_where_it_does_something_else() -> None:
    model = model_of(_else_for_one)
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, tokens(9)) < 1e-9
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned(tokens(batch=1))


def test_what_was_seen_of_a_model_with_values_holds_for_one_without() -> None:
    model = model_of(_special_for_one)
    traced = fxprune.trace(model, tokens())
    again = trace_knowing(model.to("meta"), tokens(), trace_notes(traced).values_read)
    assert again.code == traced.code
    assert trace_notes(again).values_read == trace_notes(traced).values_read


class Own(nn.Module):
    """A model whose own code takes a size out of sight; a size of 9 is special for it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        """Something else for a size of 9."""
        y = self.a(x)
        special = bool(torch.tensor(x.shape[1]) - 9)
        return self.b(y.relu() if special else y)  # type: ignore[no-any-return]


def test_what_the_models_own_code_takes_out_of_sight_ties_the_graph() -> None:
    model = Own()
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned(tokens(9))


@pytest.mark.parametrize("forward", [_clipped, _by_parity, _scaled, _named])
def test_sizes_are_refused_where_they_do_something_else(forward: Any) -> None:
    model = model_of(forward)
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, tokens()) < 1e-9
    for length in (6, 11, 40):
        with pytest.raises(FxpruneError, match="when the model was traced"):
            pruned(tokens(length))
    if forward is not _clipped:
        assert fxprune.verify(model, pruned, tokens(batch=3)) < 1e-9
