"""What reads an input may be left out; that it has more samples than the others is refused all the same."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from invariant import net, plan_for
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.rules.unread import check_samples
from fxprune.verification import TOLERANCE


def attend(own: Any, x: Tensor, mask: Tensor) -> Tensor:
    scores = own.q(x) @ x.mT + mask
    return own.v(scores.softmax(-1) @ x)  # type: ignore[no-any-return]


def forward(self: Any, x: Tensor, mask: Tensor) -> Tensor:
    x = self.stem(x)
    mask = (1.0 - mask.to(x.dtype))[:, None] * -1e4
    x = x + attend(self.one, x, mask)
    x = x + attend(self.two, x, mask)
    return self.head(x)  # type: ignore[no-any-return]


def in_a_dict(self: Any, given: dict[str, Tensor]) -> Tensor:
    return forward(self, given["x"], given["mask"])


def model_of(forward: Any) -> nn.Module:
    torch.manual_seed(0)
    parts = {name: nn.ModuleDict({"q": nn.Linear(8, 8), "v": nn.Linear(8, 8)}) for name in ("one", "two")}
    for part in parts.values():
        part.__dict__.update(q=part["q"], v=part["v"])
    return net(forward, stem=nn.Linear(4, 8), head=nn.Linear(8, 3), **parts).double().eval()


def call(samples: int, of_mask: int, length: int = 5) -> tuple[Tensor, Tensor]:
    return torch.randn(samples, length, 4).double(), torch.ones(of_mask, length, dtype=torch.long)


@pytest.mark.parametrize("samples", [2, 1])
@pytest.mark.parametrize("in_dict", [False, True])
def test_more_samples_of_an_input_that_nothing_reads_any_more_are_refused(samples: int, in_dict: bool) -> None:
    def given(*sizes: int) -> Any:
        x, mask = call(*sizes)
        return ({"x": x, "mask": mask},) if in_dict else (x, mask)

    model, example = model_of(in_a_dict if in_dict else forward), given(samples, samples)
    graph = fxprune.analyze(fxprune.trace(model, example))
    assert len(graph.blocks) == 2
    alive = np.ones(graph.num_channels, dtype=bool)
    alive[[block.channel for block in graph.blocks]] = False
    pruned = fxprune.rewrite(graph, plan_for(graph, alive))
    assert fxprune.count_flops(pruned, example) == plan_for(graph, alive).flops
    for made in (pruned, pickle.loads(pickle.dumps(pruned)), fxprune.trace(pruned, example)):
        for sizes in ((2, 2), (3, 3), (1, 1), (3, 1), (2, 2, 7)):
            assert made(*given(*sizes)).shape == model(*given(*sizes)).shape
        with pytest.raises(FxpruneError):
            made(*given(1, 4))
    for sizes in ((2, 2), (3, 1), (4, 4, 7)):
        assert fxprune.verify(model, pruned, given(*sizes)) <= TOLERANCE
    assert torch.equal(torch.compile(pruned, backend="eager", fullgraph=True)(*example), pruned(*example))
    assert torch.equal(torch.export.export(pruned, example).module()(*example), pruned(*example))
    # One that stays reads it.
    alive[graph.blocks[0].channel] = True
    kept = fxprune.rewrite(graph, plan_for(graph, alive))
    assert check_samples not in [node.target for node in kept.graph.nodes]
    assert kept(*given(1, 4)).shape == model(*given(1, 4)).shape == (4, 5, 3)


def test_the_message_says_which_input_has_how_many_samples() -> None:
    with pytest.raises(FxpruneError, match="input `mask` has 4 samples here, and others have 2"):
        check_samples(4, 2, "mask")
    for sizes in ((2, 2), (1, 2), (1, 1)):
        check_samples(*copy.copy(sizes), "mask")
