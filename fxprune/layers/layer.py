"""What a convolution or a linear layer is in a graph: a module, or torch's function called with a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import fx, nn
from torch.fx.node import Argument

from fxprune.ops import Trait, name_of_op, traits

__all__ = ["Layer", "layer_of", "output_dimension"]

# The positional arguments of `F.linear` and the convolutions, and of the transposed convolutions.
_NAMES = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_TRANSPOSED_NAMES = ("input", "weight", "bias", "stride", "padding", "output_padding", "groups", "dilation")


@dataclass(frozen=True, eq=False)
class Layer:
    """A convolution or a linear layer.

    Attributes:
        input: what it is applied to.
        weight: the node that gives the weight; None where the layer is a module, which has its own.
        parameters: the names of its weight and bias, None for no bias; None where one of the two is computed.
        groups: conv groups; 1 for a linear layer.
        transposed: whether it is a transposed convolution.
        module: the module that is called; None for a function.
        arguments: what the function is called with, by name; empty for a module.
    """

    input: fx.Node
    weight: fx.Node | None
    parameters: tuple[str, str | None] | None
    groups: int = 1
    transposed: bool = False
    module: nn.Module | None = None
    arguments: Mapping[str, Argument] = field(default_factory=dict)


def layer_of(node: fx.Node, model: fx.GraphModule) -> Layer | None:
    """The convolution or linear layer that a node of a traced model is; None for anything else."""
    module = model.get_submodule(str(node.target)) if node.op == "call_module" else None
    kind = traits(node, module)
    if not kind & (Trait.CONVOLUTION | Trait.LINEAR):
        return None
    transposed = Trait.TRANSPOSED in kind
    return _of_function(node, transposed) if module is None else _of_module(node, transposed, module)


def _of_module(node: fx.Node, transposed: bool, module: nn.Module) -> Layer | None:
    given = node.args[0] if node.args else node.kwargs.get("input")
    if not isinstance(given, fx.Node):
        return None
    bias = f"{node.target}.bias" if getattr(module, "bias", None) is not None else None
    groups = int(getattr(module, "groups", 1))
    return Layer(given, None, (f"{node.target}.weight", bias), groups, transposed, module)


def _of_function(node: fx.Node, transposed: bool) -> Layer | None:
    # Another library may have an op of the same name.
    if getattr(F, name_of_op(node.target), None) is not node.target:
        return None
    given = dict(zip(_TRANSPOSED_NAMES if transposed else _NAMES, node.args, strict=False)) | node.kwargs
    x, weight, bias, groups = given.get("input"), given.get("weight"), given.get("bias"), given.get("groups", 1)
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node):
        return None
    parameters = None
    if weight.op == "get_attr" and (bias is None or (isinstance(bias, fx.Node) and bias.op == "get_attr")):
        parameters = str(weight.target), None if bias is None else str(bias.target)
    return Layer(x, weight, parameters, groups if isinstance(groups, int) else 1, transposed, None, given)


def output_dimension(kind: Trait, rank: int) -> int:
    """The dimension of a layer's weight that runs over the layer's outputs.

    Args:
        kind: the layer's traits.
        rank: the number of the weight's dimensions, at least 1.

    Examples:
        >>> output_dimension(Trait.LINEAR, 2), output_dimension(Trait.TRANSPOSED, 4)
        (0, 1)
    """
    if kind & (Trait.TRANSPOSED | Trait.EMBEDDING):
        return min(1, rank - 1)
    return rank - 1 if Trait.MATRIX_PRODUCT in kind else 0
