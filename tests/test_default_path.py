"""`prune` with its defaults, which score on samples and compensate, crashes on no net and changes none."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from random_nets import OPS, Step, build
from torch import Tensor, nn

import fxprune
from fxprune.rewriting import pruning_notes


def description(seed: int) -> tuple[list[Step], int, int]:
    chosen = random.Random(seed)
    steps = [
        Step(chosen.choice(sorted(OPS)), chosen.randrange(4), chosen.randrange(6), chosen.randrange(24))
        for _ in range(chosen.randint(1, 6))
    ]
    return steps, chosen.randint(1, 2), chosen.randint(1, 3)


def prepare(model: nn.Module) -> None:
    """Give it mixed modes, gradients and frozen parameters, as in the middle of training."""
    for k, module in enumerate(model.modules()):
        module.training = k % 3 != 2
    for k, parameter in enumerate(model.parameters()):
        parameter.grad = torch.full_like(parameter, 0.5) if k % 4 == 1 else None
        parameter.requires_grad_(k % 5 != 3)


def state(model: nn.Module, inputs: Any) -> list[Any]:
    """Everything that must stay the same to the last bit."""

    def bits(tensor: Tensor | None) -> Any:
        return None if tensor is None else (tensor.dtype, tensor.shape, tensor.detach().numpy().tobytes())

    return [
        [(name, bits(tensor)) for name, tensor in [*model.named_parameters(), *model.named_buffers()]],
        [(name, p.requires_grad, bits(p.grad)) for name, p in model.named_parameters()],
        [(name, module.training) for name, module in model.named_modules()],
        [bits(tensor) for tensor in inputs],
        bits(torch.get_rng_state()),
    ]


@pytest.mark.filterwarnings("ignore:cut by relevance and not compensated:UserWarning")
@pytest.mark.parametrize("with_data", [True, False], ids=["data", "no data"])
@pytest.mark.parametrize("seed", range(6))
def test_prune_takes_any_net_and_does_not_change_it(seed: int, with_data: bool) -> None:
    model, inputs = build(description(seed))
    prepare(model)
    before = state(model, inputs)
    data = [(inputs, None)] if with_data else None
    try:
        pruned = fxprune.prune(model, 0.85, example_inputs=inputs, data=data, progress=False)
    except fxprune.FxpruneError:
        pruned = None
    assert state(model, inputs) == before
    if pruned is not None:
        assert fxprune.verify(model, pruned, inputs) <= 1e-6


class AnyNumber(nn.Module):
    """Takes any number of images and sums their features."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 2, 1)

    def forward(self, *images: Tensor) -> Tensor:
        return self.b(torch.stack([self.a(image).relu() for image in images]).sum(0))


@pytest.mark.parametrize("number", [1, 2])
def test_a_model_with_any_number_of_inputs_is_compensated(number: int) -> None:
    torch.manual_seed(0)
    model, images = AnyNumber(), torch.randn(number, 4, 3, 6, 6).unbind(0)
    pruned = fxprune.prune(model, 0.6, example_inputs=images, data=[(images, None)], progress=False)
    # Ridge regression on the wrong inputs would be discarded.
    assert "ridge" in pruning_notes(pruned).compensated
    assert fxprune.verify(model, pruned, images) <= 1e-9
