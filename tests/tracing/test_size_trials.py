"""Sizes that Python reads without asking tie the graph to them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from invariant import image, net, tokens
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError

TABLE = [0.5 * k for k in range(40)]
UNSEEN: dict[str, Any] = {
    "a float before a size": lambda self, x: self.b(self.a(x) * (1.0 / x.shape[1])),
    "a power": lambda self, x: self.b(self.a(x) + 2.0 ** x.shape[1] / 100),
    "a bool before a size": lambda self, x: self.b(self.a(x) * (True * x.shape[1])),
    "a comparison of a float with a size": lambda self, x: self.b(
        self.a(x) if 6.5 < x.shape[1] else self.a(x).relu()  # noqa: SIM300
    ),
    "a table of numbers": lambda self, x: self.b(self.a(x) * TABLE[x.shape[1]]),
    "a name with a size": lambda self, x: self.b(self.a(x) * len(f"{x.shape[1]}")),
    "a set of sizes": lambda self, x: self.b(self.a(x) if x.shape[1] in {5, 7} else self.a(x).relu()),
    "bits of a size": lambda self, x: self.b(self.a(x) * (1 << (x.shape[1] - 1).bit_length())),
    "a branch on a size that looks fixed": lambda self, x: self.b(
        self.a(x) * (2 if (self.a(x) @ self.q).shape[1] > 6 else 1)
    ),
    "a table of numpy": lambda self, x: self.b(self.a(x) * torch.from_numpy(np.tri(x.shape[1])).to(x).sum(1)[:, None]),
    "indices of numpy": lambda self, x: self.b(self.a(x) + x[:, np.tril_indices(x.shape[1])[0]].mean()),
    "the batch": lambda self, x: self.b(self.a(x) * (1.0 / x.shape[0])),
}


@pytest.mark.parametrize("name", UNSEEN)
def test_other_sizes_are_refused_where_the_graph_has_a_number_from_a_size(name: str) -> None:
    model = net(UNSEEN[name], a=nn.Linear(4, 8), b=nn.Linear(8, 2), q=nn.Parameter(torch.randn(8)))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned) < 1e-9
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned(tokens(length=11, batch=4))


IN_TRAINING: dict[str, Any] = {
    **{name: UNSEEN[name] for name in ("a float before a size", "a table of numbers", "a set of sizes", "the batch")},
    "a branch": lambda self, x: self.b(self.a(x).relu() if x.shape[1] > 6 else self.a(x)),
    "a number that is the same for the example": lambda self, x: self.b(self.a(x) * (2.0 if x.shape[1] > 6 else 1.0)),
}


@pytest.mark.parametrize("name", IN_TRAINING)
def test_sizes_are_refused_in_training_where_that_alone_follows_them(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return IN_TRAINING[name](self, x) if self.training else self.b(self.a(x))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    others = tokens(length=11, batch=4)
    assert fxprune.verify(model, pruned, training=True) < 1e-9
    assert fxprune.verify(model, pruned, others) < 1e-9
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned.train()(others)


def test_sizes_that_training_alone_follows_are_checked_beside_a_loop() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        total = torch.zeros_like(y[:, 0])
        for k in range(x.shape[1]):
            total = total + y[:, k].tanh()
        return self.b(total * 2 if self.training and x.shape[1] > 10 else total)  # type: ignore[no-any-return]

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    for training in (False, True):
        assert fxprune.verify(model, pruned, tokens(length=9), training=training) < 1e-9
    with pytest.raises(FxpruneError, match=r"`x.size\(1\) > 10` is True"):
        pruned.train()(tokens(length=11))


@pytest.mark.parametrize("name", ["a float before a size", "indices of numpy"])
def test_other_sizes_are_refused_in_training_where_training_alone_has_such_a_number(name: str) -> None:
    def forward(self: Any, x: Tensor) -> Any:
        y = self.b(self.a(x))
        return (y, UNSEEN[name](self, x)) if self.training else y

    model = net(forward, a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, tokens(length=11)) < 1e-9
    assert fxprune.verify(model, pruned, training=True) < 1e-9
    with pytest.raises(FxpruneError, match="when the model was traced"):
        pruned.train()(tokens(length=11))


def test_only_the_sizes_that_matter_are_tied() -> None:
    model = net(UNSEEN["a float before a size"], a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, tokens(batch=5)) < 1e-9
    model = net(UNSEEN["the batch"], a=nn.Linear(4, 8), b=nn.Linear(8, 2))
    pruned = fxprune.prune(model, 0.6, example_inputs=tokens(), compensate=False)
    assert fxprune.verify(model, pruned, tokens(length=9)) < 1e-9


def test_sizes_that_the_graph_computes_are_free() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        b, c, h, w = self.a(x).shape
        y = F.interpolate(self.a(x), size=(h // 2 * 2, w)) * (x.shape[2] ** -0.5)
        return self.b(y.reshape(b, c, h * w).unflatten(2, (h, w)))  # type: ignore[no-any-return]

    model = net(forward, a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(8, 2, 1))
    pruned = fxprune.prune(model, 0.6, example_inputs=image(), compensate=False)
    assert fxprune.verify(model, pruned, image(size=10, batch=3)) < 1e-9
