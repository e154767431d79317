"""The graph of a model as rows: layers, and the places where branches meet, each with the rows that it reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from fxprune.channels import ChannelGraph, Labels
from fxprune.reporting.facts import LayerFacts, Row

__all__ = ["draw"]

_JOINS = {"iadd": "add", "isub": "sub", "imul": "mul", "concat": "cat", "truediv": "div"}


def draw(
    graph: ChannelGraph,
    layer_of: Mapping[str, LayerFacts],
    numbers: Mapping[str, int],
    owners: npt.NDArray[np.int64],
) -> tuple[Row, ...]:
    """The rows in the order of the computation, without ops that keep channels apart (activations, norms)."""
    rows: list[Row] = []
    # The row that a node's value comes from.
    row_of: dict[fx.Node, int] = {}
    for node in graph.module.graph.nodes:
        if not _is_tensor(node.meta.get("value")) and node.op != "output":
            continue
        inputs = tuple(dict.fromkeys(row_of[given] for given in node.all_input_nodes if given in row_of))
        row = _row(node, inputs, layer_of, numbers, graph, owners)
        if row is not None:
            rows.append(row)
            row_of[node] = len(rows) - 1
        elif inputs:
            row_of[node] = inputs[0]
    return tuple(rows)


def _row(
    node: fx.Node,
    inputs: tuple[int, ...],
    layer_of: Mapping[str, LayerFacts],
    numbers: Mapping[str, int],
    graph: ChannelGraph,
    owners: npt.NDArray[np.int64],
) -> Row | None:
    layer = layer_of.get(node.name)
    if node.op == "placeholder":
        return Row(str(node.target), "input", (), None)
    if node.op == "output":
        return Row("output", "output", inputs, None)
    if not inputs:
        return None
    if layer is not None and layer.wide:
        group = numbers[layer.groups[0]] if layer.groups else None
        return Row(layer.name, layer.kind, inputs, group, layer.channels)
    if (layer is not None and ": " in layer.name and not _is_pooling(layer.kind)) or len(inputs) > 1:
        name = str(getattr(node.target, "__name__", node.target)).rstrip("_")
        place = node.meta.get("module") or ""
        return Row(place or "model", _JOINS.get(name, name), inputs, _main_group(graph.labels.get(node.name), owners))
    return None


def _is_pooling(kind: str) -> bool:
    return "pool" in kind.lower() or kind in ("interpolate", "Upsample")


def _is_tensor(value: object) -> bool:
    if isinstance(value, (tuple, list)):
        return any(map(_is_tensor, value))
    return isinstance(value, torch.Tensor)


def _main_group(labels: object, owners: npt.NDArray[np.int64]) -> int | None:
    """The group that most channels of a tensor belong to."""
    if not isinstance(labels, Labels):
        return None
    found: Iterable[npt.NDArray[np.int64]] = (owners[dim] for dim in labels.dims if not isinstance(dim, int))
    groups = np.concatenate([np.empty(0, dtype=np.int64), *found])
    groups = groups[groups >= 0]
    return int(np.bincount(groups).argmax()) if len(groups) else None
