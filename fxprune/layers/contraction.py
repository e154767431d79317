"""Convolutions and linear layers seen as one thing: rows of inputs times a weight."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

__all__ = ["Contraction", "contraction_of", "find_parameter", "rows_of"]

_CONVS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_CONV_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, eq=False)
class Contraction:
    """A node that multiplies its input by a weight of its own.

    Attributes:
        input: the node whose value is multiplied.
        weight, bias: names of parameters.
        kernel: sizes in space, empty for a linear layer.
        stride, dilation: one number per dimension of space.
        padding: as `F.pad` takes it.
        padding_mode: likewise.
        groups: conv groups.
    """

    input: fx.Node
    weight: str
    bias: str | None
    kernel: tuple[int, ...] = ()
    stride: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    padding_mode: str = "constant"
    groups: int = 1


def contraction_of(node: fx.Node, module: fx.GraphModule) -> Contraction | None:
    """The contraction that a node is; None for anything else, and for weights that are computed."""
    if node.op == "call_module":
        return _of_module(node, module.get_submodule(str(node.target)))
    if node.op == "call_function" and node.target in _CONVS:
        return _of_conv(node, module, _CONVS[node.target])
    if node.op == "call_function" and node.target is F.linear:
        given = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
        names = _own_parameters(given)
        # A weight of one dimension gives no output dimension.
        if names is not None and find_parameter(module, names[0]).dim() == 2:
            return Contraction(given["input"], *names)  # type: ignore[arg-type]
    return None


def find_parameter(module: nn.Module, name: str) -> Any:
    """A parameter or buffer by its dotted name."""
    return functools.reduce(getattr, name.split("."), module)


def _of_module(node: fx.Node, module: nn.Module) -> Contraction | None:
    path = str(node.target)
    x = node.args[0] if node.args else node.kwargs.get("input")
    bias = f"{path}.bias" if getattr(module, "bias", None) is not None else None
    if not isinstance(x, fx.Node):
        return None
    # A subclass with a forward of its own may do anything.
    if isinstance(module, nn.Linear) and type(module).forward is nn.Linear.forward:
        return Contraction(x, f"{path}.weight", bias)
    for kind in (nn.Conv1d, nn.Conv2d, nn.Conv3d):
        if isinstance(module, kind) and type(module).forward is kind.forward:
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            padding = tuple(module._reversed_padding_repeated_twice)
            conv: Any = module
            geometry = (conv.kernel_size, conv.stride, conv.dilation, padding)
            return Contraction(x, f"{path}.weight", bias, *geometry, mode, conv.groups)
    return None


def _of_conv(node: fx.Node, module: fx.GraphModule, rank: int) -> Contraction | None:
    given: dict[str, Any] = {"bias": None, "stride": 1, "padding": 0, "dilation": 1, "groups": 1}
    given |= dict(zip(_CONV_ARGUMENTS, node.args, strict=False)) | node.kwargs
    names = _own_parameters(given)
    numbers = [_spread(given[key], rank) for key in ("stride", "dilation", "padding")]
    if names is None or None in numbers or not isinstance(given["groups"], int):
        return None
    stride, dilation, padding = numbers
    pad = tuple(width for width in reversed(padding or ()) for _ in range(2))
    kernel = tuple(find_parameter(module, names[0]).shape[2:])
    return Contraction(given["input"], *names, kernel, stride, dilation, pad, "constant", given["groups"])  # type: ignore[arg-type]


def _own_parameters(given: dict[str, Any]) -> tuple[str, str | None] | None:
    weight, bias = given["weight"], given.get("bias")
    if not isinstance(weight, fx.Node) or weight.op != "get_attr":
        return None
    if bias is not None and (not isinstance(bias, fx.Node) or bias.op != "get_attr"):
        return None
    return str(weight.target), None if bias is None else str(bias.target)


def _spread(value: Any, rank: int) -> tuple[int, ...] | None:
    """One number per dimension of space; None where it is not known here."""
    values = (value,) * rank if isinstance(value, int) else value
    if not isinstance(values, (tuple, list)) or not all(isinstance(item, int) for item in values):
        return None
    return tuple(values) * (rank if len(values) == 1 else 1)


def rows_of(
    found: Contraction, x: Tensor, y: Tensor, per_sample: float, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """What enters and what leaves at some random positions of each sample.

    Args:
        x: the input (samples, channels, ...) of a convolution, (..., channels) of a linear layer.
        y: the output.
        per_sample: about how many positions.

    Returns:
        Inputs (rows, conv groups, inputs of a conv group) in the order of the weight, and the outputs
        (rows, conv groups, outputs of a conv group).
    """
    if not found.kernel:
        flat = x.reshape(-1, x.shape[-1])
        take = _some(len(flat), math.ceil(per_sample * x.shape[0]), random).to(x.device)
        return flat[take].unsqueeze(1), y.reshape(-1, y.shape[-1])[take].unsqueeze(1)
    space = y.shape[2:]
    size = math.prod(space)
    batch = x.shape[0]
    number = min(max(math.ceil(per_sample), 1), size)
    where = torch.stack([_some(size, number, random) for _ in range(batch)]).to(x.device)
    sample = torch.arange(batch, device=x.device).repeat_interleave(number)
    at = torch.unravel_index(where.reshape(-1), space)
    place: Any = (sample, slice(None), *at)
    outputs = y[place].reshape(len(sample), found.groups, -1)
    if any(found.padding):
        x = F.pad(x, found.padding, mode=found.padding_mode)
    offsets = torch.cartesian_prod(*(torch.arange(k) for k in found.kernel)).reshape(-1, len(found.kernel))
    taps = []
    for offset in offsets.tolist():
        steps = zip(at, found.stride, offset, found.dilation, strict=True)
        moved = [start * stride + tap * dilation for start, stride, tap, dilation in steps]
        place = (sample, slice(None), *moved)
        taps.append(x[place])
    inputs = torch.stack(taps, dim=2).reshape(len(sample), found.groups, -1)
    return inputs, outputs


def _some(size: int, number: int, random: torch.Generator) -> Tensor:
    return torch.arange(size) if number >= size else torch.randperm(size, generator=random)[:number]
