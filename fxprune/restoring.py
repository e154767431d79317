"""The pruned network as an object of the model's own class, for code that wants its methods and attributes."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.rewriting import plan_of
from fxprune.running.calls import call_of
from fxprune.running.copies import copy_module, named_tensors
from fxprune.tracing.constants import is_constant, put
from fxprune.tracing.user_code import place_of
from fxprune.verification import largest_difference, outputs_in_double

__all__ = ["restore_class"]

# In float64; the two differ in the order of some sums.
_TOLERANCE = 1e-9


def restore_class(pruned: nn.Module, model: nn.Module, example_inputs: Any = None) -> nn.Module:
    """A copy of a model with the weights of what it was pruned to: the same class, methods, attributes and hooks.

    What `fxprune.prune` returns is a graph. Code that asks a model for more than its outputs (a loss as a method, a
    training script that looks for `model.head`) needs the model's class. Parameters, buffers and the numbers that
    layers keep of their widths are replaced in a copy, which then has to give the outputs of the pruned graph. It does
    not where `forward` computes with widths that it does not read from its tensors.

    Args:
        pruned: what was made of `model` by `fxprune.prune` or `fxprune.rewrite`, and trained since or not; not changed.
        model: the original; not changed.
        example_inputs: what both are compared on; default is what `pruned` was traced with.

    Returns:
        The copy, in the modes (training or not) of the original's modules.

    Raises:
        FxpruneError: `pruned` has no plan, the copy does not run, or its outputs are others.
    """
    unknown = plan_of(pruned).kept.keys() - named_tensors(model).keys()
    unknown = {name for name in unknown if not is_constant(name)}
    if unknown:
        raise FxpruneError(
            f"{type(model).__name__} has no {min(unknown)}, which was pruned: give the model that was pruned"
        )
    own = copy_module(model)
    _take_over(own, pruned)
    args, kwargs = call_of(pruned, example_inputs)
    try:
        expected = outputs_in_double(copy_module(pruned), args, kwargs)
    except Exception as error:
        raise FxpruneError(f"the pruned graph does not run on these inputs in float64: {error}") from error
    advice = (
        "its forward supposes widths that pruning has changed; have it read them from its tensors (x.shape[1]), prune "
        "with ignore= for the layers that make them, or use the pruned graph, which needs neither"
    )
    try:
        difference = largest_difference(expected, outputs_in_double(copy_module(own), args, kwargs))
    except Exception as error:
        place, line = place_of(error)
        raise FxpruneError(
            f"{type(model).__name__} does not run with the pruned weights ({place}: `{line}`: {error}): {advice}"
        ) from error
    if not difference <= _TOLERANCE:
        raise FxpruneError(
            f"{type(model).__name__} with the pruned weights is off the pruned graph by {difference:.1e}: {advice}"
        )
    return own


def _take_over(own: nn.Module, pruned: nn.Module) -> None:
    """Put the pruned weights, and what layers say of their widths, into a model."""
    tensors = named_tensors(pruned)
    layers = dict(pruned.named_modules(remove_duplicate=False))
    copies: dict[int, Tensor] = {}
    for path, module in own.named_modules(remove_duplicate=False):
        for table in (module._parameters, module._buffers):
            for name in table:
                tensor = tensors.get(f"{path}.{name}".removeprefix("."))
                if tensor is not None:
                    table[name] = copies.setdefault(id(tensor), _copy(tensor))
        if type(layers.get(path)) is type(module):
            widths = vars(layers[path])
            for name, value in vars(module).items():
                if type(value) in (int, tuple) and name in widths:
                    setattr(module, name, widths[name])
    for name, place in getattr(pruned, "meta", {}).get("constant_places", {}).items():
        if name in tensors:
            put(own, place, _copy(tensors[name]))


def _copy(tensor: Tensor) -> Tensor:
    data = tensor.detach().clone()
    return nn.Parameter(data, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else data
