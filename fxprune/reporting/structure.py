"""Layers, groups and frozen channels of a pruned model, with what each cost before and costs now."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from torch import fx, nn

from fxprune.channels.polynomial import Term
from fxprune.layers.layer import output_dimension
from fxprune.ops import Trait, traits
from fxprune.reporting.basis import Basis
from fxprune.reporting.drawing import draw
from fxprune.reporting.facts import Change, FrozenFacts, GroupFacts, LayerFacts, Structure, total

__all__ = ["structure"]


@dataclass
class _Layer:
    """A layer while it is collected."""

    name: str
    kind: str
    traits: Trait
    weight: str | None = None
    costs: list[Term] = field(default_factory=list)
    tensors: list[str] = field(default_factory=list)
    nodes: list[str] = field(default_factory=list)


def structure(basis: Basis) -> Structure:
    """Everything in a report that takes no run of the model."""
    layers = _collect(basis)
    owners = _owners(basis)
    facts = {layer.name: _facts(layer, basis, owners) for layer in layers}
    groups, frozen = _shared_out(basis, layers, facts, owners)
    numbers = {group.name: number for number, group in enumerate(groups)}
    layer_of = {node: facts[layer.name] for layer in layers for node in layer.nodes}
    rows = draw(basis.graph, layer_of, numbers, owners)
    return Structure(tuple(facts.values()), groups, frozen, rows)


def _collect(basis: Basis) -> list[_Layer]:
    graph = basis.graph
    parameters = dict(graph.module.named_parameters(remove_duplicate=False))
    owned: dict[str, list[str]] = defaultdict(list)
    for name in parameters:
        owned[name.rpartition(".")[0]].append(name)
    layers: dict[str, _Layer] = {}
    for node in graph.module.graph.nodes:
        if node.op not in ("call_module", "call_function", "call_method"):
            continue
        kind, its_traits = _kind(node, graph.module)
        read = [str(given.target) for given in node.all_input_nodes if given.op == "get_attr"]
        path = _path(node, [name for name in read if name in parameters], owned)
        if path is None and node.name not in graph.costs:
            continue
        name = f"{node.meta.get('module') or 'model'}: {kind}" if path is None else path
        layer = layers.setdefault(name, _Layer(name, kind, its_traits))
        if node.name in graph.costs:
            layer.costs += graph.costs[node.name]
            layer.kind, layer.traits = kind, its_traits
        layer.nodes.append(node.name)
    _give_tensors(layers, graph.module, owned)
    return list(layers.values())


def _give_tensors(layers: Mapping[str, _Layer], module: nn.Module, owned: Mapping[str, list[str]]) -> None:
    """Give each parameter to one layer, and each layer one of its parameters as its weight."""
    once = {name for name, _ in module.named_parameters()}
    shapes = {name: parameter.dim() for name, parameter in module.named_parameters(remove_duplicate=False)}
    for layer in layers.values():
        prefix = f"{layer.name}."
        mine = owned.get(layer.name) or [layer.name] * (layer.name in shapes)
        # Modules that are one node hold parts of their own.
        mine = mine or [name for path, names in owned.items() if path.startswith(prefix) for name in names]
        layer.tensors = [name for name in mine if name in once]
        wide = [name for name in mine if shapes[name] > 1]
        named = [name for name in mine if name.rpartition(".")[2] == "weight"]
        layer.weight = next(iter((*named, *wide)), None)


def _path(node: fx.Node, read: list[str], owned: Mapping[str, list[str]]) -> str | None:
    """The module whose weights a node computes with, or the name of a parameter that belongs to no layer."""
    if node.op == "call_module":
        path = str(node.target)
        return path if any(name == path or name.startswith(f"{path}.") for name in owned) else None
    for name in read:
        return name.rpartition(".")[0] or name
    path = node.meta.get("module") or ""
    return path if path and path in owned and traits(node) & (Trait.CONVOLUTION | Trait.LINEAR) else None


def _kind(node: fx.Node, model: nn.Module) -> tuple[str, Trait]:
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        return type(module).__name__, traits(node, module)
    return str(getattr(node.target, "__name__", node.target)).rstrip("_"), traits(node)


def _owners(basis: Basis) -> npt.NDArray[np.int64]:
    """For each channel the number of its group; -2, -3, ... for the reasons of frozen ones; -1 for all others."""
    owners = np.full(basis.graph.num_channels, -1, dtype=np.int64)
    for number, group in enumerate(basis.graph.groups):
        owners[group.channels] = number
    for frozen in basis.graph.frozen:
        owners[frozen.channels] = -2 - _reasons(basis).index(frozen.reason)
    return owners


def _reasons(basis: Basis) -> list[str]:
    return list(dict.fromkeys(frozen.reason for frozen in basis.graph.frozen))


def _output(layer: _Layer, basis: Basis) -> npt.NDArray[np.int64] | None:
    """The channels along the output dimension of a layer's weight."""
    d = _output_dimension(layer, basis)
    dims = basis.graph.parameters.get(layer.weight or "")
    if d is None or dims is None or isinstance(dims[d], int):
        return None
    return np.asarray(dims[d])


def _output_dimension(layer: _Layer, basis: Basis) -> int | None:
    if layer.weight is None:
        return None
    rank = len(basis.shape(layer.weight)[0])
    return output_dimension(layer.traits, rank) if rank else None


def _facts(layer: _Layer, basis: Basis, owners: npt.NDArray[np.int64]) -> LayerFacts:
    d, channels, groups, wide = _output_dimension(layer, basis), None, [], False
    # A parameter that is only added has no output channels.
    if layer.weight is not None and d is not None and (layer.costs or layer.kind[0].isupper()):
        before, after = basis.shape(layer.weight)
        wide = len(before) > 1
        times = 1
        if Trait.TRANSPOSED in layer.traits and layer.kind[0].isupper():
            times = int(getattr(basis.graph.module.get_submodule(layer.name), "groups", 1))
        channels = Change(before[d] * times, after[d] * times)
    written = _output(layer, basis)
    if written is not None:
        groups = [int(number) for number in np.unique(owners[written]) if number >= 0]
    return LayerFacts(
        name=layer.name,
        kind=layer.kind,
        channels=channels,
        flops=basis.flops(layer.costs, layer.weight),
        parameters=total(basis.size(name) for name in layer.tensors),
        groups=tuple(basis.graph.groups[number].name for number in groups),
        wide=wide,
    )


def _shared_out(
    basis: Basis, layers: Iterable[_Layer], facts: Mapping[str, LayerFacts], owners: npt.NDArray[np.int64]
) -> tuple[tuple[GroupFacts, ...], tuple[FrozenFacts, ...]]:
    """Divide FLOPs and parameters of each layer among the groups of its outputs, by their number of channels."""
    flops: dict[int, list[Change]] = defaultdict(list)
    parameters: dict[int, list[Change]] = defaultdict(list)
    writers: dict[int, list[str]] = defaultdict(list)
    for layer in layers:
        written = _output(layer, basis)
        if written is None:
            continue
        for owner in np.unique(owners[written]).tolist():
            mine = owners[written] == owner
            left = float((mine & basis.alive[written]).sum() / max(basis.alive[written].sum(), 1))
            was = float(mine.mean()) if basis.whole else left
            flops[owner].append(_part(facts[layer.name].flops, was, left))
            parameters[owner].append(_part(facts[layer.name].parameters, was, left))
            writers[owner].append(layer.name)
    groups = []
    for number, group in enumerate(basis.graph.groups):
        places = dict.fromkeys(place.parameter.rpartition(".")[0] or place.parameter for place in group.dimensions)
        groups.append(
            GroupFacts(
                name=group.name,
                layers=tuple(writers[number]),
                readers=tuple(path for path in places if path not in writers[number]),
                channels=basis.channels(group),
                repeats=group.repeats,
                flops=total(flops[number]),
                parameters=total(parameters[number]),
                last_resort=group.last_resort,
            )
        )
    frozen = []
    for number, reason in enumerate(_reasons(basis)):
        owner = -2 - number
        count = sum(len(each) for each in basis.graph.frozen if each.reason == reason)
        frozen.append(FrozenFacts(reason, tuple(writers[owner]), count, total(flops[owner]), total(parameters[owner])))
    return tuple(groups), tuple(frozen)


def _part(change: Change, was: float, left: float) -> Change:
    before = None if change.before is None else round(change.before * was)
    return Change(before, round(change.after * left))
