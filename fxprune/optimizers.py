"""The state of an interrupted training, pruned along with the model."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError, called_as
from fxprune.planning.plan import Plan
from fxprune.provenance import check_order, earlier_stage, plan_from, pruning_notes
from fxprune.running.copies import named_tensors

__all__ = ["prune_optimizer"]

Optimizer = TypeVar("Optimizer", bound=torch.optim.Optimizer)

_CALL = "prune_optimizer(original, pruned, optimizer)"


@called_as(_CALL)
def prune_optimizer(original: nn.Module, pruned: nn.Module, optimizer: Optimizer) -> Optimizer:
    """An optimizer for the pruned model that goes on where the original's stopped.

    Momenta and moments are cut as the weights were, step counts are copied, and parameter groups keep their settings
    and order. With an optimizer that works entry by entry (SGD, Adam, AdamW, RMSprop, ...) the next update is then, for
    the same gradients, the slice of the update that the original would have had. A learning rate schedule belongs to
    the old optimizer: make a new one, with ``last_epoch``.

    Args:
        original: the model before pruning; of a model that was pruned several times, before any of them.
        pruned: what `fxprune.prune` or `fxprune.rewrite` made of it.
        optimizer: trains parameters of `original`; not changed.

    Returns:
        A new optimizer of the same class.

    Raises:
        FxpruneError: the optimizer has parameters that are not the original's, the models do not belong together, or
            its state or its class cannot be carried over; the message says which.
    """
    check_order(_CALL, original, pruned)
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise FxpruneError(f"optimizer (a {type(optimizer).__name__}) is not a torch.optim.Optimizer: call {_CALL}")
    architecture = pruning_notes(pruned).original
    misfit = "" if earlier_stage(original, pruned) else architecture.misfit(named_tensors(original))
    if misfit:
        raise FxpruneError(
            f"the {type(original).__name__} given as original is not what was pruned, but another model: {misfit}"
        )
    plan = plan_from(original, pruned)
    names = {id(parameter): name for name, parameter in reversed(list(_parameters(original).items()))}
    small = _parameters(pruned)
    partners: dict[Tensor, nn.Parameter] = {}
    for number, group in enumerate(optimizer.param_groups):
        for position, parameter in enumerate(group["params"]):
            name = names.get(id(parameter))
            if name is None:
                raise FxpruneError(
                    f"parameter {position} of group {number} of the optimizer (shape {list(parameter.shape)}) is not "
                    f"one of the {type(original).__name__} given as original: give the model that the optimizer trains"
                )
            if name not in plan.gone:
                partners[parameter] = _partner(name, parameter, small, plan)
    result = _like(optimizer, partners)
    for parameter, entries in optimizer.state.items():
        if names.get(id(parameter)) in plan.gone:
            continue
        if parameter not in partners:
            raise FxpruneError(f"{type(optimizer).__name__} keeps state for {parameter!r:.60}, which is no parameter")
        name, partner = names[id(parameter)], partners[parameter]
        result.state[partner] = {
            key: _cut(key, value, name, parameter, plan, partner) for key, value in entries.items()
        }
    return result


def _parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    return dict(model.named_parameters(remove_duplicate=False))


def _partner(name: str, parameter: Tensor, small: Mapping[str, nn.Parameter], plan: Plan) -> nn.Parameter:
    """The pruned model's parameter of that name."""
    partner = small.get(name)
    if partner is None:
        raise FxpruneError(f"the pruned model has no parameter {name}: it was not made from this original")
    kept = plan.kept.get(name, {})
    expected = [len(kept.get(d, range(n))) for d, n in enumerate(parameter.shape)]
    if list(partner.shape) != expected:
        raise FxpruneError(
            f"{name} has shape {list(partner.shape)} in the pruned model, where its plan makes {expected} of the "
            f"original's {list(parameter.shape)}: it was not made from this original"
        )
    return partner


def _like(optimizer: Optimizer, partners: Mapping[Tensor, nn.Parameter]) -> Optimizer:
    """An optimizer of the same class and settings for other parameters, without state."""
    kind = type(optimizer)
    groups: list[dict[str, Any]] = []
    for group in optimizer.param_groups:
        settings = {key: copy.deepcopy(value) for key, value in group.items() if key not in ("params", "param_names")}
        left = [position for position, parameter in enumerate(group["params"]) if parameter in partners]
        parameters: list[Any] = [partners[group["params"][position]] for position in left]
        if "param_names" in group:
            parameters = [(group["param_names"][position], partners[group["params"][position]]) for position in left]
        groups.append({**settings, "params": parameters})
    accepted = inspect.signature(kind).parameters
    defaults = {key: copy.deepcopy(value) for key, value in optimizer.defaults.items() if key in accepted}
    try:
        return kind(groups, **defaults)
    except Exception as error:
        raise FxpruneError(
            f"{kind.__name__} cannot be made anew from its parameter groups and defaults: {type(error).__name__}: "
            f"{error}; make one for pruned.parameters() and start its state afresh"
        ) from error


def _cut(key: str, value: Any, name: str, parameter: Tensor, plan: Plan, partner: nn.Parameter) -> Any:
    """An entry of the state of a parameter, for its partner."""
    if not isinstance(value, Tensor):
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        raise FxpruneError(
            f"{key} of {name} is a {type(value).__name__}, which cannot be pruned: start the optimizer afresh"
        )
    if value.numel() == 1 and value.dim() <= 1:
        return value.detach().clone()  # a count of steps, on the device where the optimizer wants it
    # Factored moments have size 1 in the dimensions that they are summed over.
    fits = value.dim() == parameter.dim() and all(
        n in (1, m) for n, m in zip(value.shape, parameter.shape, strict=True)
    )
    if not fits:
        raise FxpruneError(
            f"{key} of {name} has shape {list(value.shape)}, which does not say which entry belongs to which index of "
            f"the parameter (shape {list(parameter.shape)}): start the optimizer afresh"
        )
    cut = plan.cut(name, value.detach())
    return cut.to(partner.device, copy=True, memory_format=torch.preserve_format)
