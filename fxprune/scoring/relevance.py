"""A score without data: how much of the output's variance passes through each channel, for the FLOPs that it costs.

The outputs have relevance 1 in all. Going back through the graph, each layer hands the relevance of its outputs on to
its inputs, by the part of the output's energy that each of them brings: `w[j, c] ** 2 * mean(a[c] ** 2)` from channel
`c` to output `j`. A residual connection and its branch share by energy too, so that a channel in a branch that adds
little counts little, whatever the size of its weights.

The energy of the activations needs no data: a BatchNorm remembers the mean and the variance of its input, and the rest
follows from random numbers that are sent through the graph, every channel a pixel of its own.

The idea of propagating importance back from the output is that of Yu et al., "NISP", CVPR 2018.
"""

from __future__ import annotations

import copy
import operator
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn
from torch.nn.modules.batchnorm import _NormBase

from fxprune.channels import ChannelGraph, Ids, Labels
from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.devices import on_device_of

__all__ = ["relevance_scores"]

_SAMPLES = 128
_SUMS = (operator.add, operator.iadd, operator.sub, operator.isub, torch.add, torch.sub, "add", "add_", "sub", "sub_")
_FUNCTIONS = (nn.functional.linear, nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d)
_NORMS = (nn.LayerNorm, nn.GroupNorm)
_NORM_FUNCTIONS = (nn.functional.layer_norm, nn.functional.group_norm)
_Vector = npt.NDArray[np.float64]


def relevance_scores(graph: ChannelGraph) -> _Vector:
    """The largest relevance that a channel has anywhere, over what it costs (1 is the mean of all channels)."""
    relevance = np.full(graph.num_channels, -1.0)
    if not graph.num_channels:
        return relevance
    with (
        torch.no_grad(),
        torch.random.fork_rng(devices=[]),
        np.errstate(invalid="ignore"),
        warnings.catch_warnings(),
    ):
        # Ops warn of what samples without extent lack, as `std` over space does.
        warnings.simplefilter("ignore")
        for channels, values in _Relevance(graph).by_channels():
            np.maximum.at(relevance, channels, values)
    # What is on no activation that could be followed goes last.
    relevance[relevance < 0] = relevance.max(initial=0.0)
    cost = graph.price.marginal(np.ones(graph.num_channels, dtype=bool))
    scores: _Vector = relevance / np.maximum(cost / max(float(cost.mean()), 1e-30), 1e-9)
    return scores


def _activations(node: fx.Node) -> list[fx.Node]:
    """The tensors that a node works on, but for parameters and the model's input; of a tuple, what it was made from."""
    found: dict[fx.Node, None] = {}
    for source in node.all_input_nodes:
        if isinstance(source.meta["value"], (tuple, list)):
            found.update(dict.fromkeys(_activations(source)))
        elif source.op not in ("get_attr", "placeholder") and isinstance(source.meta["value"], Tensor):
            found[source] = None
    return list(found)


def _call(node: fx.Node, module: nn.Module | None, args: Any, kwargs: Any) -> Any:
    """The op of a node, in eval mode and without lasting effects; None where it fails."""
    if "mutates" in node.meta:
        args, kwargs = trees.map_tensors(torch.clone, (args, kwargs))
    try:
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        if node.op == "call_function":
            return node.target(*args, **kwargs)  # type: ignore[operator]
        if module is None or (any(True for _ in module.children()) and not isinstance(module, _NormBase)):
            return None
        still = copy.copy(module)
        still.__dict__["training"] = False
        return still(*args, **kwargs)
    except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
        return None


def _in_groups(square: Tensor, inputs: int) -> bool:
    """Whether a weight (outputs by inputs of a conv group) works on that many inputs, group by group."""
    groups, rest = divmod(inputs, square.shape[1])
    return groups > 0 and rest == 0 and len(square) % groups == 0


class _Relevance:
    """Energies forwards, then relevance backwards."""

    def __init__(self, graph: ChannelGraph) -> None:
        self.graph = graph
        self.modules = dict(graph.module.named_modules())
        named = (graph.module.named_parameters, graph.module.named_buffers)
        self.tensors = {name: tensor for each in named for name, tensor in each(remove_duplicate=False)}
        self.random = torch.Generator().manual_seed(0)
        self.energy: dict[fx.Node, Tensor] = {}
        self._axes: dict[fx.Node, tuple[int, Ids] | None] = {}
        # What is made from parameters alone.
        self._constants: set[fx.Node] = set()
        for node in graph.module.graph.nodes:
            sources = node.all_input_nodes
            if node.op == "get_attr" or (sources and self._constants.issuperset(sources)):
                self._constants.add(node)
        self._frozen = np.zeros(graph.num_channels, dtype=bool)
        for frozen in graph.frozen:
            self._frozen[frozen.channels] = True
        self._send_samples()

    def axis(self, node: fx.Node) -> tuple[int, Ids] | None:
        """The dimension of an activation that carries channels, and the channels; None if there is not just one.

        What is frozen (often the positions of tokens) counts only where there is nothing else, and then the last.
        """
        if node not in self._axes:
            labels = self.graph.labels.get(node.name)
            dims = labels.dims if isinstance(labels, Labels) and node.op != "get_attr" else ()
            found = [(d, dim) for d, dim in enumerate(dims) if not isinstance(dim, int)]
            free = [(d, dim) for d, dim in found if not self._frozen[dim].all()]
            self._axes[node] = (free or found[-1:])[0] if len(free) <= 1 and found else None
        return self._axes[node]

    def _sums(self, node: fx.Node, source: fx.Node | None) -> bool:
        """Whether a layer sums over the channels of `source`, and has its own in their place.

        One that mixes tokens does not, nor one of whose outputs other dimensions are told apart.
        """
        axis = None if source is None else self.axis(source)
        own = self.axis(node)
        if source is None or axis is None or own is None or own[0] != axis[0]:
            return False
        size = len(self.graph.labels_of(source.name).dims)
        summed = self.graph.contractions.get(node.name, ())
        return any(name == source.name and d % size == axis[0] for name, d in summed)

    def weight(self, node: fx.Node) -> Tensor | None:
        """The squared weight of a convolution or linear layer, summed over the kernel: outputs by inputs."""
        weight = None
        if node.op == "call_module":
            module = self.modules[str(node.target)]
            transposed = isinstance(module, nn.modules.conv._ConvTransposeNd)
            if isinstance(module, (nn.modules.conv._ConvNd, nn.Linear)) and not transposed:
                weight = module.weight
        elif node.target in _FUNCTIONS and len(node.all_input_nodes) > 1:
            weight = self._constant(node.all_input_nodes[1])
        if not isinstance(weight, Tensor):
            return None
        square = weight.detach().abs().square().float()
        if not bool(square.sum().isfinite()):
            name = f"{node.target}.weight" if node.op == "call_module" else node.all_input_nodes[1].name
            large = bool(weight.isfinite().all())
            entries = "entries that are too large to be squared" if large else "NaN or infinite entries"
            raise FxpruneError(f"weight {name} has {entries}: it cannot be pruned before that is mended")
        # A linear layer's weight without a dimension of outputs is that of one.
        return square.view(1, -1) if square.dim() == 1 else square.flatten(2).sum(2) if square.dim() > 2 else square

    def _constant(self, node: fx.Node) -> Any:
        """The value of what is made from parameters alone, as standardised weights are; None for all else."""
        if node not in self._constants:
            return None
        if node.op == "get_attr":
            return self.tensors.get(str(node.target))
        made = {source: self._constant(source) for source in node.all_input_nodes}
        if any(value is None for value in made.values()):
            return None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), made.__getitem__)
        return _call(node, self.modules.get(str(node.target)), args, kwargs)

    # -- forwards --

    def _send_samples(self) -> None:
        nodes = list(self.graph.module.graph.nodes)
        last_use = {argument: node for node in nodes for argument in node.all_input_nodes}
        known: dict[fx.Node, Tensor] = {}
        for node in nodes:
            samples = self._sample(node, known)
            if samples is not None and bool(samples.isfinite().all()):
                known[node] = samples
                self.energy[node] = (samples.abs() if samples.is_complex() else samples).float().square().mean(0)
            for argument in node.all_input_nodes:
                if last_use[argument] is node:
                    known.pop(argument, None)

    def _noise(self, size: int, like: Tensor) -> Tensor:
        return torch.randn(_SAMPLES, size, generator=self.random).to(like)

    def _sample(self, node: fx.Node, known: Mapping[fx.Node, Tensor]) -> Tensor | None:
        """Samples of a node's channels, samples by channels; None where they cannot be had."""
        value = node.meta.get("value")
        if node.op == "placeholder" and isinstance(value, Tensor) and value.dim() == 4 and value.is_floating_point():
            return on_device_of(self.graph.module, torch.randn(_SAMPLES, value.shape[1], generator=self.random))
        axis = self.axis(node)
        if axis is None or not node.all_input_nodes or node.op == "output":
            return None
        size, source = len(axis[1]), node.all_input_nodes[0]
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            noise = self._noise(len(module.running_mean), module.running_mean)
            return self._run(node, {source: module.running_mean + module.running_var.sqrt() * noise}, module)
        before = known.get(source)
        if before is None and (isinstance(module, _NORMS) or node.target in _NORM_FUNCTIONS):
            like = next((tensor for tensor in self.tensors.values() if tensor.is_floating_point()), torch.zeros(()))
            return self._run(node, {source: self._noise(size, like)}, module)
        if before is None:
            return None
        square = self.weight(node) if self._sums(node, source) else None
        if square is not None:
            if not _in_groups(square, before.shape[1]):
                return None
            spread = before.var(0).to(square).view(-1, square.shape[1], 1)
            variance = (square.view(len(spread), -1, square.shape[1]) @ spread).flatten()
            noisy: Tensor = variance.sqrt() * self._noise(size, variance)
            return noisy
        made = self._run(node, known, module)
        # Pooling and the like change the channels' energies alike.
        return before if made is None and before.shape[1] == size else made

    def _run(self, node: fx.Node, known: Mapping[fx.Node, Tensor], module: nn.Module | None) -> Tensor | None:
        """The op on samples, each an entry of the batch without extent; None where it cannot take them."""
        axis = self.axis(node)
        assert axis is not None

        def load(argument: fx.Node) -> Any:
            if not isinstance(argument.meta["value"], Tensor):
                return argument.meta["value"]
            if argument.op == "get_attr":
                return self.tensors[str(argument.target)]
            of_argument = self.axis(argument) or axis
            shape = [1] * argument.meta["value"].dim()
            shape[of_argument[0]], shape[0] = -1, _SAMPLES
            return known[argument].reshape(shape).clone()

        try:
            args, kwargs = fx.node.map_arg((node.args, node.kwargs), load)
        except (IndexError, KeyError, RuntimeError):
            # An argument that is not known, or one that has no dimension for the channels.
            return None
        result = _call(node, module, args, kwargs)
        size = len(axis[1])
        fits = isinstance(result, Tensor) and result.numel() == _SAMPLES * size and result.shape[0] == _SAMPLES
        return result.reshape(_SAMPLES, size) if fits else None

    # -- backwards --

    def by_channels(self) -> list[tuple[Ids, _Vector]]:
        """The relevance of every activation's channels."""
        found: list[tuple[Ids, _Vector]] = []
        relevance: dict[fx.Node, _Vector] = {}
        for node in reversed(self.graph.module.graph.nodes):
            sources = _activations(node)
            if node.op == "output":
                given = {source: self._spread(1.0 / len(sources), source) for source in sources}
            elif node in relevance:
                here = relevance.pop(node)
                if axis := self.axis(node):
                    found.append((axis[1], here))
                given = self._hand_on(node, here, sources)
            else:
                continue
            for source, values in given.items():
                relevance[source] = relevance[source] + values if source in relevance else values
        return found

    def _spread(self, total: float, node: fx.Node) -> _Vector:
        """The same for every channel; a single number where there are none."""
        axis = self.axis(node)
        size = 1 if axis is None else len(axis[1])
        return np.full(size, total / size)

    def _hand_on(self, node: fx.Node, relevance: _Vector, sources: list[fx.Node]) -> dict[fx.Node, _Vector]:
        first = node.all_input_nodes[0] if node.all_input_nodes else None
        square = self.weight(node)
        axis = self.axis(first) if square is not None and first in sources and self._sums(node, first) else None
        size = 0 if axis is None else len(axis[1])
        if square is not None and len(relevance) == len(square) and _in_groups(square, size):
            assert first is not None
            energy = self.energy.get(first, torch.ones(size)).to(square).view(-1, 1, square.shape[1])
            table = square.view(len(energy), -1, square.shape[1])
            outputs = table @ energy.transpose(1, 2)
            given = torch.from_numpy(relevance).to(square).view_as(outputs)
            taken = (given / outputs.clamp_min(1e-30)).transpose(1, 2) @ table * energy
            # Outputs that are zero, as those of a layer that starts from zero, take from all inputs alike.
            taken = (
                taken + (given * (outputs <= 1e-30)).mean(1, keepdim=True) * table.shape[1] / table.shape[2]
            ).flatten()
            return {first: taken.double().cpu().numpy()}
        parts_of = {source: self._carried(relevance, node, source) for source in sources}
        if node.target in _SUMS and len(sources) > 1:
            return self._shared(parts_of)
        # What is handed on is as much as there is: factors of a product have equal parts.
        handed = sum(float(values.sum()) for values in parts_of.values())
        scale = float(relevance.sum()) / max(handed, 1e-30)
        return {source: values * scale for source, values in parts_of.items()}

    def _shared(self, given: dict[fx.Node, _Vector]) -> dict[fx.Node, _Vector]:
        """Terms of a sum take their parts by energy, equal parts where that is not known."""
        sizes = {len(values) for values in given.values()}
        if len(sizes) > 1 or not all(source in self.energy for source in given):
            return {source: values / len(given) for source, values in given.items()}
        energies = {source: self.energy[source].double().cpu().numpy() for source in given}
        # Nothing is quite without effect: in a branch that adds zero, channels still have an order.
        floor = 1e-3 * sum(energies.values()) + 1e-30
        total = sum(energies.values()) + len(energies) * floor
        return {source: values * (energies[source] + floor) / total for source, values in given.items()}

    def _carried(self, relevance: _Vector, node: fx.Node, source: fx.Node) -> _Vector:
        """The relevance of the channels that go through an op from `source`; spread evenly where none does."""
        axis, before = self.axis(node), self.axis(source)
        if axis is None or before is None:
            return self._spread(float(relevance.sum()), source)
        if axis[1] is before[1] or np.array_equal(axis[1], before[1]):
            return relevance
        channels, inverse, counts = np.unique(before[1], return_inverse=True, return_counts=True)
        at = np.minimum(np.searchsorted(channels, axis[1]), len(channels) - 1)
        same = channels[at] == axis[1]
        if not same.any():
            return self._spread(float(relevance.sum()), source)
        sums = np.bincount(at[same], relevance[same], len(channels))
        carried: _Vector = (sums / counts)[inverse]
        return carried
