"""What is measured for a block is what the outputs lose when it is left out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from invariant import image, net, plan_for, randomise
from layer_nets import Dense
from torch import Tensor, nn

import fxprune
from fxprune.data import Batch
from fxprune.losses import distillation_loss
from fxprune.scoring.block_losses import BlockLosses


def test_what_blocks_cost_is_what_the_outputs_lose_without_them() -> None:
    dense = randomise(Dense()).float()
    inputs = torch.randn(16, *image().shape[1:], generator=torch.Generator().manual_seed(0))
    graph = fxprune.analyze(fxprune.trace(dense, inputs[:1]))
    losses = BlockLosses(graph, Batch((inputs,), {}))
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items()}
    for gone in (graph.blocks[:1], graph.blocks[1:], graph.blocks):
        pruned = fxprune.rewrite(graph, plan_for(graph, graph.all_but(gone)))
        with torch.no_grad():
            lost = distillation_loss(pruned(inputs), dense(inputs), temperature=1.0)
        assert losses.without(gone) == pytest.approx(float(lost), rel=1e-4)
    assert losses.without([]) == 0
    assert all(torch.equal(tensor, state[name]) for name, tensor in graph.module.state_dict().items())


def test_a_block_that_is_a_jump_at_zero_costs_what_it_costs() -> None:
    def stepped(self: Any, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.head(y + self.b(y).sign())

    model = net(stepped, a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 4, 1), head=nn.Conv2d(4, 2, 1))
    inputs = image(batch=4)
    graph = fxprune.analyze(fxprune.trace(model, inputs))
    (block,) = graph.blocks
    pruned = fxprune.rewrite(graph, plan_for(graph, graph.all_but([block])))
    with torch.no_grad():
        lost = distillation_loss(pruned(inputs), model(inputs), temperature=1.0)
    assert BlockLosses(graph, Batch((inputs,), {})).without([block]) == pytest.approx(float(lost), rel=1e-4)


def test_of_many_samples_some_are_taken() -> None:
    dense = randomise(Dense()).float()
    graph = fxprune.analyze(fxprune.trace(dense, image()))
    seen: list[int] = []
    losses = BlockLosses(graph, Batch((image(batch=200),), {}))
    losses._model.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    losses.without(graph.blocks[:1])
    assert sum(seen) == 16
