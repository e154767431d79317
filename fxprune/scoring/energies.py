"""The energy of activations without data: the mean square of each channel.

A BatchNorm remembers the mean and the variance of its input; the rest follows from random numbers that are sent through
the graph, every channel a pixel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx

from fxprune.layers.batch_norm import has_statistics
from fxprune.ops import Trait, traits
from fxprune.running.devices import on_device_of
from fxprune.running.one_node import with_values
from fxprune.scoring.channel_view import ChannelView, result_in_eval

__all__ = ["activation_energies"]

# Not tuned.
_SAMPLES = 128


def activation_energies(view: ChannelView) -> dict[fx.Node, Tensor]:
    """The mean square of every channel (channels,), by node, where it can be told without data."""
    sampler = _Sampler(view)
    energies: dict[fx.Node, Tensor] = {}
    nodes = list(view.graph.module.graph.nodes)
    last_use = {argument: node for node in nodes for argument in node.all_input_nodes}
    known: dict[fx.Node, Tensor] = {}
    for node in nodes:
        samples = sampler.sample(node, known)
        if samples is not None and bool(samples.isfinite().all()):
            known[node] = samples
            energies[node] = (samples.abs() if samples.is_complex() else samples).float().square().mean(0)
        for argument in node.all_input_nodes:
            if last_use[argument] is node:
                known.pop(argument, None)
    return energies


class _Sampler:
    """Makes samples of a node's channels from those of its inputs."""

    def __init__(self, view: ChannelView) -> None:
        self._view = view
        self._random = torch.Generator().manual_seed(0)

    def sample(self, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> Tensor | None:
        """Samples of a node's channels (samples, channels); None where there is no way to get them."""
        value = node.meta.get("value")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
            noise = torch.randn(_SAMPLES, value.shape[1], generator=self._random)
            return on_device_of(self._view.graph.module, noise)
        if self._view.axis(node) is None or not node.all_input_nodes or node.op == "output":
            return None
        source, module = node.all_input_nodes[0], self._view.module(node)
        if has_statistics(module):
            noise = self._noise(len(module.running_mean), module.running_mean)
            return self._run(node, {source: module.running_mean + module.running_var.sqrt() * noise})
        before = known.get(source)
        if before is None and Trait.CHANNEL_NORM in traits(node, module):
            floats = (tensor for tensor in self._view.tensors.values() if tensor.is_floating_point())
            return self._run(node, {source: self._noise(self._view.width(node), next(floats, torch.zeros(())))})
        if before is None:
            return None
        found = self._view.squared_weight(node)
        if found is not None:
            return self._sums(found[1], before)
        made = self._run(node, known)
        # Pooling and the like change the energies of all channels alike.
        return before if made is None and before.shape[1] == self._view.width(node) else made

    def _noise(self, size: int, like: Tensor) -> Tensor:
        return torch.randn(_SAMPLES, size, generator=self._random).to(like)

    def _sums(self, square: Tensor, before: Tensor) -> Tensor:
        """Samples of a layer's outputs, whose variances are sums of those of its inputs."""
        spread = before.var(0).to(square).view(len(square), -1, 1)
        variance = (square @ spread).flatten()
        return variance.sqrt() * self._noise(len(variance), variance)

    def _run(self, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> Tensor | None:
        """The op on samples, each an entry of the batch of one pixel; None where it cannot take them."""
        axis = self._view.axis(node)
        assert axis is not None

        def load(argument: fx.Node) -> object:
            if not isinstance(argument.meta["value"], Tensor):
                return argument.meta["value"]
            if argument.op == "get_attr":
                return self._view.tensors[str(argument.target)]
            of_argument = self._view.axis(argument) or axis
            shape = [1] * argument.meta["value"].dim()
            shape[of_argument[0]], shape[0] = -1, _SAMPLES
            return known[argument].reshape(shape).clone()

        try:
            args, kwargs = with_values(node, load)
        except (IndexError, KeyError, RuntimeError):
            # An argument that is not known, or one that has no dimension for the channels.
            return None
        result = result_in_eval(node, self._view.module(node), args, kwargs)
        size = len(axis[1])
        if not isinstance(result, Tensor) or result.numel() != _SAMPLES * size or result.shape[0] != _SAMPLES:
            return None
        return result.reshape(_SAMPLES, size)
