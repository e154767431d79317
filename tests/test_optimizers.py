"""The pruned optimizer's next update is the slice of the update that the original would have had."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from invariant import image
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError


def small_net() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Conv2d(12, 8, 3), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*layers, nn.Linear(32, 5))


def sliced(name: str, tensor: Tensor, kept: Any) -> Tensor:
    for d, stays in kept.get(name, {}).items():
        tensor = tensor.index_select(d, torch.tensor(stays))
    return tensor


def give_gradients(model: nn.Module, seed: int) -> None:
    torch.manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)


OPTIMIZERS = {
    "sgd": lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "sgd without momentum": lambda groups: torch.optim.SGD(groups, lr=0.1),
    "adam": lambda groups: torch.optim.Adam(groups, lr=0.01, amsgrad=True, betas=(0.8, 0.9)),
    "adamw": lambda groups: torch.optim.AdamW(groups, lr=0.01, foreach=False),
    "nadam": lambda groups: torch.optim.NAdam(groups, lr=0.01),
    "radam": lambda groups: torch.optim.RAdam(groups, lr=0.01, decoupled_weight_decay=True),
    "rmsprop": lambda groups: torch.optim.RMSprop(groups, lr=0.01, momentum=0.5, centered=True),
    "adagrad": lambda groups: torch.optim.Adagrad(groups, lr=0.01, lr_decay=0.1),
    "rprop": lambda groups: torch.optim.Rprop(groups, lr=0.01),
    "adamax": lambda groups: torch.optim.Adamax(groups, lr=0.01),
    "asgd": lambda groups: torch.optim.ASGD(groups, lr=0.01),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_the_next_updates_are_slices_of_the_originals(kind: str) -> None:
    model = small_net()
    decayed = [p for p in model.parameters() if p.dim() > 1]
    others = [p for p in model.parameters() if p.dim() == 1]
    optimizer = OPTIMIZERS[kind]([{"params": decayed, "lr": 0.03}, {"params": others, "weight_decay": 0.0}])
    for seed in range(3):
        give_gradients(model, seed)
        optimizer.step()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    kept = fxprune.plan_of(pruned).kept
    assert kept
    small = fxprune.prune_optimizer(model, pruned, optimizer)
    assert type(small) is type(optimizer)
    assert [{k: v for k, v in group.items() if k != "params"} for group in small.param_groups] == [
        {k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups
    ]
    for seed in range(3, 6):
        give_gradients(model, seed)
        for name, parameter in pruned.named_parameters():
            parameter.grad = sliced(name, model.get_parameter(name).grad, kept)
        optimizer.step()
        small.step()
    for name, parameter in pruned.named_parameters():
        assert torch.equal(parameter, sliced(name, model.get_parameter(name), kept)), name
    after = fxprune.prune_optimizer(model, pruned, optimizer).state_dict()["state"]
    assert str(after) == str(small.state_dict()["state"])


def test_the_optimizer_and_the_models_are_not_changed() -> None:
    model = small_net()
    optimizer = torch.optim.AdamW(model.named_parameters())
    give_gradients(model, 0)
    optimizer.step()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    state = copy.deepcopy(optimizer.state_dict())
    small = fxprune.prune_optimizer(model, pruned, optimizer)
    assert small.param_groups[0]["param_names"] == [name for name, _ in model.named_parameters()]
    give_gradients(pruned, 1)
    small.step()
    assert str(optimizer.state_dict()) == str(state)
    moments = [entry["exp_avg"] for entry in optimizer.state.values()]
    assert [tuple(x.shape) for x in moments] == [tuple(p.shape) for p in model.parameters()]


def test_frozen_and_tied_parameters_and_those_without_state_are_carried_over() -> None:
    model = small_net()
    model[0].bias.requires_grad_(False)
    model.add_module("tied", nn.Identity())
    model.tied.register_parameter("weight", model[3].weight)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    model[0].weight.grad = torch.ones_like(model[0].weight)
    optimizer.step()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    small = fxprune.prune_optimizer(model, pruned, optimizer)
    assert len(small.param_groups[0]["params"]) == len(list(pruned.parameters()))
    assert set(small.state) == {dict(pruned.named_parameters())["0.weight"]}


def test_factored_moments_are_cut_where_they_have_the_dimension() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    optimizer = torch.optim.Adafactor(model.parameters())
    give_gradients(model, 0)
    optimizer.step()
    pruned = fxprune.prune(model, example_inputs=torch.randn(2, 6), compensate=False)
    small = fxprune.prune_optimizer(model, pruned, optimizer)
    kept = fxprune.plan_of(pruned).kept["2.weight"][1]
    old, new = optimizer.state[model[2].weight], small.state[pruned.get_parameter("2.weight")]
    assert torch.equal(new["row_var"], old["row_var"])
    assert torch.equal(new["col_var"], old["col_var"][:, kept])
    give_gradients(pruned, 1)
    small.step()


def test_what_does_not_belong_together_is_named() -> None:
    model = small_net()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(FxpruneError, match=r"parameter 0 of group 0 .*\[12, 3, 3, 3\]\) is not one of the Sequential"):
        fxprune.prune_optimizer(small_net(), pruned, optimizer)
    with pytest.raises(FxpruneError, match="Sequential has no plan"):
        fxprune.prune_optimizer(model, copy.deepcopy(model), optimizer)
    other = nn.Sequential(nn.Conv2d(3, 20, 3))
    with pytest.raises(FxpruneError, match=r"another model: 0\.weight has shape \[20, 3, 3, 3\] in it"):
        fxprune.prune_optimizer(other, pruned, torch.optim.SGD(other.parameters(), lr=0.1))
    longer = nn.Sequential(*small_net(), nn.Linear(5, 5))
    with pytest.raises(FxpruneError, match=r"another model: it has 7\.weight .* besides"):
        fxprune.prune_optimizer(longer, pruned, torch.optim.SGD(longer[7:].parameters(), lr=0.1))


def test_state_that_cannot_be_cut_is_named() -> None:
    model = small_net()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.state[model[0].weight]["flat"] = torch.zeros(324)
    with pytest.raises(FxpruneError, match=r"flat of 0\.weight has shape \[324\].*start the optimizer afresh"):
        fxprune.prune_optimizer(model, pruned, optimizer)
    optimizer.state[model[0].weight] = {"old": []}
    with pytest.raises(FxpruneError, match=r"old of 0\.weight is a list"):
        fxprune.prune_optimizer(model, pruned, optimizer)

    class Own(torch.optim.SGD):
        def __init__(self, params: Any, secret: int) -> None:
            super().__init__(params, lr=0.1)

    with pytest.raises(FxpruneError, match=r"Own cannot be made anew .*secret.*start its state afresh"):
        fxprune.prune_optimizer(model, pruned, Own(model.parameters(), 1))


def test_a_schedule_goes_on() -> None:
    model = small_net()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, gamma=0.5)
    for seed in range(2):
        give_gradients(model, seed)
        optimizer.step()
        schedule.step()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    small = fxprune.prune_optimizer(model, pruned, optimizer)
    assert small.param_groups[0]["lr"] == 0.25
    again = torch.optim.lr_scheduler.StepLR(small, 1, gamma=0.5, last_epoch=schedule.last_epoch)
    rate = small.param_groups[0]["lr"]
    give_gradients(pruned, 0)
    small.step()
    again.step()
    assert small.param_groups[0]["lr"] == rate / 2


def test_the_order_of_older_versions_is_refused_with_the_call() -> None:
    model = small_net()
    pruned = fxprune.prune(model, example_inputs=image(), compensate=False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    call = r"call prune_optimizer\(original, pruned, optimizer\)$"
    with pytest.raises(FxpruneError, match=rf"^original \(a SGD\) is not a model: {call}"):
        fxprune.prune_optimizer(optimizer, model, pruned)
    with pytest.raises(FxpruneError, match=rf"the original comes first, {call}"):
        fxprune.prune_optimizer(pruned, model, optimizer)
    with pytest.raises(FxpruneError, match=rf"^optimizer \(a list\) is not a torch\.optim\.Optimizer: {call}"):
        fxprune.prune_optimizer(model, pruned, [])
