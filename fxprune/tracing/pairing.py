"""The same calls in two recordings of a model: the longest common runs of both."""

from __future__ import annotations

from difflib import SequenceMatcher
from typing import Any

import torch
from torch import fx

from fxprune.running import trees
from fxprune.tracing.checks import (
    check_as_traced,
    check_device,
    check_dtype,
    check_fact,
    check_grad_mode,
    check_outcome,
    check_rank,
    check_setting,
    check_state,
)
from fxprune.tracing.graph_builder import GraphBuilder

__all__ = ["CHECKS", "floats", "is_aligned", "partners", "shapes_of"]

# Their last positional arguments are for messages: what is checked, and where.
CHECKS = (
    check_as_traced, check_outcome, check_setting, check_fact, check_device, check_dtype, check_grad_mode,
    check_rank, check_state,
)  # fmt: skip


def partners(in_eval: GraphBuilder, in_training: GraphBuilder, *, shapes: bool) -> dict[fx.Node, fx.Node]:
    """For nodes of training, the same calls in eval; they give tensors of the same shapes, or as many dimensions."""

    def looks(builder: GraphBuilder, node: fx.Node) -> tuple[Any, ...]:
        read = tuple(source.target for source in node.all_input_nodes if source.op == "get_attr")
        results = tuple(shape if shapes else len(shape) for shape in shapes_of(node))
        return builder.calls[node], node.op, node.target, len(node.args), tuple(node.kwargs), read, results

    ours, theirs = ([n for n in builder.graph.nodes if is_aligned(n)] for builder in (in_eval, in_training))
    matcher: SequenceMatcher[Any] = SequenceMatcher(
        None, [looks(in_eval, n) for n in ours], [looks(in_training, n) for n in theirs], autojunk=False
    )
    partner: dict[fx.Node, fx.Node] = {}
    for i, j, size in matcher.get_matching_blocks():
        partner.update(zip(theirs[j : j + size], ours[i : i + size], strict=True))
    return partner


def shapes_of(node: fx.Node) -> list[torch.Size]:
    """The shapes of the tensors that a node gives."""
    return [tensor.shape for tensor in trees.tensors(node.meta["value"])]


def floats(node: fx.Node) -> bool:
    """Whether the place of a node in the graph says nothing: it reads a parameter, or computes a number from sizes."""
    if node.op == "get_attr":
        return True
    # What is read from entries of a tensor is read where it is, before these are written; a seed is drawn where it is.
    stays = (node.op == "call_method" and node.target == "item") or "random" in node.meta
    number = node.op in ("call_function", "call_method") and type(node.meta["value"]) in (bool, int, float)
    return number and not stays


def is_aligned(node: fx.Node) -> bool:
    """Whether a node has a partner where the same call is made: no check, and nothing whose place says nothing."""
    return node.op.startswith("call") and not floats(node) and node.target not in CHECKS
