"""A score without data: how much each channel adds to what the layers after it put out, for the FLOPs that it costs.

A channel `c` with activations `a` adds `w[j, c] * a` to output `j` of the layer that takes it. The part of the output's
variance that goes with it is `w[j, c] ** 2 * mean(a ** 2) / var[j]`. Both moments can be had without data: a BatchNorm
remembers the mean and the variance of its input, and what is around it follows from a few random numbers per channel
that are sent through the graph, as a pixel of its own.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.channels import ChannelGraph, Labels, is_labelled

__all__ = ["contribution_scores"]

_SAMPLES = 128


def contribution_scores(graph: ChannelGraph) -> npt.NDArray[np.float64]:
    """The share of its consumers' output variance that goes with each channel, over its share of the FLOPs."""
    total, found = np.zeros(graph.num_channels), np.zeros(graph.num_channels, dtype=bool)
    with torch.no_grad():
        for channels, shares in _consumed(graph):
            np.add.at(total, channels, shares)
            found[channels] = True
        missing = ~found
        if missing.any():
            produced, count = np.zeros(graph.num_channels), np.zeros(graph.num_channels)
            for channels, shares in _produced(graph):
                np.add.at(produced, channels, shares)
                np.add.at(count, channels, 1.0)
            total[missing] = (produced / np.maximum(count, 1.0))[missing]
    saved = graph.flops.marginal(np.ones(graph.num_channels, dtype=bool))
    return total / np.maximum(saved / max(saved.mean(), 1e-30), 1e-9)


def _consumed(graph: ChannelGraph) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """For every convolution and linear layer: the channels that enter it, and the share of each in what it puts out."""
    modules = dict(graph.module.named_modules())
    named = dict(graph.module.named_parameters(remove_duplicate=False))
    for node, samples in _samples(graph, modules, named):
        weight = _weight(node, modules, named)
        labels = graph.labels.get(node.all_input_nodes[0].name) if node.all_input_nodes else None
        if weight is None or not isinstance(labels, Labels) or node.name not in graph.contractions:
            continue
        argument, d = graph.contractions[node.name][0]
        channels = labels.dims[d]
        if argument != node.all_input_nodes[0].name or isinstance(channels, int):
            continue
        squares = _squares(weight)
        groups = len(channels) // squares.shape[1]
        energy = torch.ones(len(channels)) if samples is None else samples.square().mean(0)
        parts = squares.unflatten(0, (groups, -1)) * energy.to(squares).unflatten(0, (groups, 1, -1))
        variance = _variance(node, modules, len(weight))
        outputs = parts.sum(2) if variance is None else variance.to(squares).view(groups, -1)
        shares = (parts / outputs.clamp_min(1e-12).unsqueeze(2)).sum(1).flatten() / len(weight)
        yield channels, shares.double().cpu().numpy()


def _produced(graph: ChannelGraph) -> Iterator[tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]]:
    """For every weight: the channels that it makes or takes, and the share of each in its squared norm."""
    for name, weight in graph.module.named_parameters():
        for d, dim in enumerate(graph.parameters.get(name, ())):
            if not isinstance(dim, int) and weight.dim() > 1:
                squares = weight.square().sum([k for k in range(weight.dim()) if k != d]).double()
                yield dim, (squares / squares.sum().clamp_min(1e-30)).cpu().numpy()


def _weight(node: fx.Node, modules: Mapping[str, nn.Module], named: Mapping[str, Tensor]) -> Tensor | None:
    """The weight of a convolution or a linear layer, outputs first."""
    if node.op == "call_module":
        module = modules[str(node.target)]
        transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
        known = isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not transposed
        return module.weight if known and isinstance(module.weight, Tensor) else None
    functions = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
    if node.op != "call_function" or node.target not in functions or len(node.all_input_nodes) < 2:
        return None
    source = node.all_input_nodes[1]
    return named.get(str(source.target)) if source.op == "get_attr" else None


def _squares(weight: Tensor) -> Tensor:
    """Squared weights, summed over the kernel: outputs times inputs per conv group."""
    return weight.square() if weight.dim() == 2 else weight.flatten(2).square().sum(2)


def _variance(node: fx.Node, modules: Mapping[str, nn.Module], size: int) -> Tensor | None:
    """What the BatchNorm behind a node remembers of the node's output."""
    for user in node.users:
        module = modules[str(user.target)] if user.op == "call_module" else None
        if len(node.users) == 1 and isinstance(module, _NormBase) and module.running_var is not None:
            return module.running_var + module.eps if len(module.running_var) == size else None
    return None


# Random numbers that stand for the activations: one row per sample, one column per channel.


def _samples(
    graph: ChannelGraph, modules: Mapping[str, nn.Module], named: Mapping[str, Tensor]
) -> Iterator[tuple[fx.Node, Tensor | None]]:
    """Every node, and samples of what its first argument is; None where they are not known."""
    random = torch.Generator().manual_seed(0)
    known: dict[fx.Node, Tensor] = {}
    last_use = {argument: node for node in graph.module.graph.nodes for argument in node.all_input_nodes}
    for node in graph.module.graph.nodes:
        inputs = node.all_input_nodes
        yield node, known.get(inputs[0]) if inputs else None
        made = _sample(node, known, modules, named, graph, random)
        if made is not None:
            known[node] = made
        for argument in inputs:
            if last_use[argument] is node:
                known.pop(argument, None)


def _sample(
    node: fx.Node,
    known: Mapping[fx.Node, Tensor],
    modules: Mapping[str, nn.Module],
    named: Mapping[str, Tensor],
    graph: ChannelGraph,
    random: torch.Generator,
) -> Tensor | None:
    axis = _channel_axis(node, graph)
    if node.op == "placeholder" and isinstance(node.meta["value"], Tensor) and node.meta["value"].dim() == 4:
        return torch.randn(_SAMPLES, node.meta["value"].shape[1], generator=random)
    if axis is None or node.op not in ("call_module", "call_function", "call_method"):
        return None
    size = int(node.meta["value"].shape[axis])
    module = modules[str(node.target)] if node.op == "call_module" else None
    weight = _weight(node, modules, named)
    before = known.get(node.all_input_nodes[0]) if node.all_input_nodes else None
    if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
        noise = torch.randn(_SAMPLES, size, generator=random).to(module.running_mean)
        before = module.running_mean + module.running_var.sqrt() * noise
        return _run(node, {node.all_input_nodes[0]: before}, module, axis, graph, size)
    if before is None:
        return None
    if weight is not None:
        squares = _squares(weight)
        groups = before.shape[1] // squares.shape[1]
        spread = before.var(0).to(squares).unflatten(0, (groups, -1, 1))
        variance = (squares.unflatten(0, (groups, -1)) @ spread).flatten()
        if len(variance) != size:
            return None
        return variance.sqrt() * torch.randn(_SAMPLES, size, generator=random).to(variance)
    made = _run(node, known, module, axis, graph, size)
    # Pooling and the like change a channel's activations little.
    return before if made is None and before.shape[1] == size else made


def _channel_axis(node: fx.Node, graph: ChannelGraph) -> int | None:
    labels = graph.labels.get(node.name)
    axes = [d for d, dim in enumerate(labels.dims) if is_labelled(dim)] if isinstance(labels, Labels) else []
    return axes[0] if len(axes) == 1 and isinstance(node.meta["value"], Tensor) else None


def _run(
    node: fx.Node,
    known: Mapping[fx.Node, Tensor],
    module: nn.Module | None,
    axis: int,
    graph: ChannelGraph,
    size: int,
) -> Tensor | None:
    """The op on samples, each of them a batch entry without extent; None where it cannot take them."""

    def load(argument: fx.Node) -> Any:
        if not isinstance(argument.meta["value"], Tensor):
            return argument.meta["value"]
        samples, at = known[argument], _channel_axis(argument, graph)
        at = axis if at is None else at
        shape = [1] * argument.meta["value"].dim()
        shape[at] = samples.shape[1]
        shape[0] = _SAMPLES
        return samples.reshape(shape).clone()

    try:
        args, kwargs = fx.node.map_arg(node.args, load), fx.node.map_arg(node.kwargs, load)
        if module is not None:
            still = copy.copy(module)
            still.__dict__["training"] = False
            result = still(*args, **kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
    except (KeyError, RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None
    fits = isinstance(result, Tensor) and result.numel() == _SAMPLES * size and result.shape[0] == _SAMPLES
    return result.reshape(_SAMPLES, size) if fits else None
