"""Ops that read sizes, and ops that make new tensors from them."""

from __future__ import annotations

from typing import Any

import torch

from fxprune.channels import Dim, Labels, Size
from fxprune.rules.registry import Op, freeze_labels, rule
from fxprune.tracing.checks import check_as_traced

__all__ = ["attribute", "map_values", "size"]


def map_values(value: Any) -> Any:
    """Labels without channels for every tensor of a value; sizes and numbers are unknown ones."""
    if isinstance(value, torch.Tensor):
        return Labels.plain(value.shape)
    if isinstance(value, (tuple, list)):
        return tuple(map_values(item) for item in value)
    if isinstance(value, dict):
        return {key: map_values(item) for key, item in value.items()}
    return Size(None, False)


def _size_label(dim: Dim) -> Size:
    return Size(None, False) if isinstance(dim, int) else Size(dim, True)


@rule(getattr)
def attribute(op: Op, container: Any, name: str) -> Any:
    """An attribute: the shape, a transposed view, or a number."""
    if not isinstance(container, Labels):
        label = op.labels_of.get(op.node.args[0].name)  # type: ignore[union-attr, arg-type]
        return label.get(name) if isinstance(label, dict) else map_values(op.value)
    if name == "shape":
        return tuple(_size_label(dim) for dim in container.dims)
    if name in ("T", "mT"):
        return container.take([*range(len(container.dims) - 2), -1, -2])
    if name in ("data", "real", "imag"):
        return container
    if isinstance(op.value, torch.Tensor):
        op.freeze(container, f"read as .{name}")
    return map_values(op.value)


@rule("size")
def size(op: Op, input: Labels, dim: int | None = None) -> Any:
    """The size of one dimension, or of all."""
    labels = tuple(_size_label(d) for d in input.dims)
    return labels if dim is None else labels[dim]


@rule("new_tensor")
def new_like(op: Op, input: Labels, *arguments: Any, **options: Any) -> Labels:
    """Of the input only type and device matter."""
    freeze_labels(op, (arguments, options), "made into a new tensor")
    return Labels.plain(op.shape)


@rule(
    "rand",
    "randn",
    "arange",
    "linspace",
    "eye",
    "tensor",
    "meshgrid",
    "as_tensor",
    "scalar_tensor",
    "Size",
    torch.Size,
)
def factory(op: Op, *arguments: Any, **options: Any) -> Any:
    """New tensors carry no channels, whatever they were sized after."""
    freeze_labels(op, (arguments, options), "made into a new tensor")
    return map_values(op.value)


@rule(check_as_traced)
def check(op: Op, *arguments: Any) -> None:
    """Looks at a size, and gives nothing."""
