"""Ops that read sizes and attributes, and ops that make new tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import fx

from fxprune.channels import Dim, Labels, LabelTree, Size
from fxprune.rules.op import Op, map_values
from fxprune.rules.registry import rule
from fxprune.rules.unread import check_samples
from fxprune.running.regions import enter_region, exit_region, region
from fxprune.tracing.checks import (
    check_argument,
    check_as_traced,
    check_device,
    check_dtype,
    check_fact,
    check_grad_mode,
    check_modes,
    check_outcome,
    check_rank,
    check_setting,
    check_state,
    warn_in_training,
)

__all__ = ["attribute", "size"]


def _size_label(dim: Dim) -> Size:
    return Size(None, False) if isinstance(dim, int) else Size(dim, True)


@rule(getattr)
def attribute(op: Op, container: object, name: str) -> LabelTree:
    """An attribute: the shape, a transposed view, or a number."""
    if not isinstance(container, Labels):
        source = op.node.args[0]
        label = op.labels_of.get(source.name) if isinstance(source, fx.Node) else None
        return label.get(name) if isinstance(label, Mapping) else map_values(op.value)
    if name == "shape":
        return tuple(_size_label(dim) for dim in container.dims)
    rank = len(container.dims)
    if name == "T":
        return container.take(reversed(range(rank)))
    if name == "mT":
        return container.take([*range(rank - 2), -1, -2])
    if name in ("data", "real", "imag"):
        return container
    if isinstance(op.value, torch.Tensor):
        op.freeze(container, f"read as .{name}")
    return map_values(op.value)


@rule("size")
def size(op: Op, input: Labels, dim: int | None = None) -> LabelTree:
    """The size of one dimension, or of all."""
    labels = tuple(_size_label(d) for d in input.dims)
    return labels if dim is None else labels[dim]


@rule("new_tensor")
def new_like(op: Op, input: Labels, *arguments: object, **options: object) -> Labels:
    """Only the type and the device of the input matter."""
    op.freeze((arguments, options), "made into a new tensor")
    return Labels.plain(op.shape)


@rule(*"rand randn arange linspace eye tensor meshgrid as_tensor scalar_tensor Size".split(), torch.Size, torch.seed)  # noqa: SIM905
def factory(op: Op, *arguments: object, **options: object) -> LabelTree:
    """New tensors carry no channels, whatever their size was computed from."""
    op.freeze((arguments, options), "made into a new tensor")
    return map_values(op.value)


@rule(
    check_argument, check_as_traced, check_device, check_dtype, check_fact, check_grad_mode, check_modes, check_outcome,
    check_rank, check_samples, check_setting, check_state, warn_in_training, region, enter_region, exit_region,
    torch._C._set_grad_enabled, torch.manual_seed, torch.set_default_dtype, torch.is_autocast_enabled,
    torch.is_autocast_cpu_enabled, torch.get_autocast_dtype, torch.get_autocast_gpu_dtype, torch.get_autocast_cpu_dtype,
)  # fmt: skip
def setting(op: Op, *arguments: object, **options: object) -> None:
    """A guard reads a size, a setting or what is not a tensor, and returns nothing; a region changes a setting."""
