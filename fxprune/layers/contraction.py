"""Convolutions and linear layers seen as one thing: rows of inputs times a weight."""

from __future__ import annotations

import functools
import math
import operator
from dataclasses import dataclass
from typing import TypeGuard, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from fxprune.layers.layer import Layer, layer_of
from fxprune.ops import name_of_op

__all__ = ["Contraction", "contraction_of", "find_parameter", "rows_of"]

# A subclass with a forward of its own may compute anything.
_FORWARDS = (nn.Linear.forward, nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)


@dataclass(frozen=True, eq=False)
class Contraction:
    """A node that multiplies its input by a weight of its own.

    Attributes:
        input: the node whose value is multiplied.
        weight, bias: names of parameters.
        kernel: sizes in space, empty for a linear layer.
        stride, dilation: one number per dimension of space.
        padding, padding_mode: as `F.pad` takes them.
        groups: conv groups.
        transposed: whether the weight is (inputs, outputs), as in `x @ weight`.
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
    transposed: bool = False

    def by_outputs(self, weight: Tensor) -> Tensor:
        """A view of the weight with the outputs first."""
        return weight.T if self.transposed else weight


def contraction_of(node: fx.Node, model: fx.GraphModule) -> Contraction | None:
    """The contraction that a node is; None for anything else, and for weights that are computed."""
    layer = layer_of(node, model)
    if layer is None:
        return _product(node)
    if layer.parameters is None or layer.transposed:
        return None
    if layer.module is not None and type(layer.module).forward not in _FORWARDS:
        return None
    weight, bias = layer.parameters
    shape = find_parameter(model, weight).shape
    if len(shape) > 2:
        return _convolution(layer, weight, bias, tuple(shape[2:]))
    # A weight of one dimension gives no output dimension.
    return Contraction(layer.input, weight, bias) if len(shape) == 2 else None


def _product(node: fx.Node) -> Contraction | None:
    """`x @ weight`, or `addmm`; None for anything else, and for weights that are computed or have a batch."""
    if node.op not in ("call_function", "call_method"):
        return None
    name = name_of_op(node.target)
    # Another library may have an op of the same name.
    is_torchs = node.op == "call_method" or node.target in (operator.matmul, getattr(torch, name, None))
    names = _FACTORS.get(name) if is_torchs else None
    given = dict(zip(names or (), node.args, strict=False)) | node.kwargs
    if names is None or given.keys() - names:
        return None
    x, weight, bias = (given.get(name) for name in ("x", "weight", "bias"))
    if not isinstance(x, fx.Node) or not _is_stored(weight, 2) or x.meta["value"].dim() < 2:
        return None
    if bias is not None and not _is_stored(bias, 1):
        return None
    return Contraction(x, str(weight.target), None if bias is None else str(bias.target), transposed=True)


# Positional arguments of products with a matrix; with others, as `alpha`, they are none.
_FACTORS = {"matmul": ("x", "weight"), "mm": ("x", "weight"), "addmm": ("bias", "x", "weight")}


def _is_stored(value: object, rank: int) -> TypeGuard[fx.Node]:
    return isinstance(value, fx.Node) and value.op == "get_attr" and value.meta["value"].dim() == rank


def find_parameter(module: nn.Module, name: str) -> Tensor:
    """A parameter or buffer by its dotted name."""
    return cast(Tensor, functools.reduce(getattr, name.split("."), cast(object, module)))


def _convolution(layer: Layer, weight: str, bias: str | None, kernel: tuple[int, ...]) -> Contraction | None:
    """A convolution with what it does in space; None where a part of that is computed."""
    if layer.module is not None:
        conv = cast(nn.Conv2d, layer.module)
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        padding = tuple(conv._reversed_padding_repeated_twice)
        return Contraction(layer.input, weight, bias, kernel, conv.stride, conv.dilation, padding, mode, conv.groups)
    given, rank = layer.arguments, len(kernel)
    stride, dilation = _per_dimension(given.get("stride", 1), rank), _per_dimension(given.get("dilation", 1), rank)
    sides = _per_dimension(given.get("padding", 0), rank)
    if stride is None or dilation is None or sides is None or not isinstance(given.get("groups", 1), int):
        return None
    padding = tuple(n for n in reversed(sides) for _ in range(2))
    return Contraction(layer.input, weight, bias, kernel, stride, dilation, padding, "constant", layer.groups)


def _per_dimension(value: object, rank: int) -> tuple[int, ...] | None:
    """One number per dimension of space; None where it is computed, or a word such as "same"."""
    values = (value,) * rank if isinstance(value, int) else value
    if not isinstance(values, (tuple, list)) or not all(isinstance(item, int) for item in values):
        return None
    return tuple(values) * (rank if len(values) == 1 else 1)


def rows_of(
    found: Contraction, x: Tensor, y: Tensor, per_sample: float, random: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Inputs and outputs of a layer at some random positions of each sample.

    Args:
        found: the layer.
        x: its input, (samples, channels, ...) of a convolution, (..., channels) of a linear layer.
        y: its output.
        per_sample: about how many positions.
        random: draws the positions.

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
    place: tuple[Tensor | slice, ...] = (sample, slice(None), *at)
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


# To shuffle more positions takes longer than to compute with a few of them: 20 ms for 400,000. Not tuned.
_MOST_SHUFFLED = 20_000


def _some(size: int, number: int, random: torch.Generator) -> Tensor:
    if number >= size:
        return torch.arange(size)
    if size <= _MOST_SHUFFLED:
        return torch.randperm(size, generator=random)[:number]
    seed = int(torch.randint(2**63 - 1, (), generator=random))
    return torch.from_numpy(np.random.default_rng(seed).choice(size, number, replace=False, shuffle=False))
