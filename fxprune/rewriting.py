"""Pass: ChannelGraph + Plan -> smaller GraphModule."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx, nn

from fxprune.analysis import analyze
from fxprune.channels import ChannelGraph, Ids, Labels, Size
from fxprune.errors import FxpruneError
from fxprune.planning.plan import Plan, plan_since
from fxprune.provenance import PruningNotes, earlier_notes, take_notes
from fxprune.rules import find_rule
from fxprune.rules.block_removal import remove_blocks, replace_by_operands
from fxprune.rules.known_index import computes_indices
from fxprune.rules.rewrite import Rewrite
from fxprune.running.copies import copy_module, named_tensors
from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.notes import example_of, trace_notes
from fxprune.tracing.rolling import alike_in_steps
from fxprune.tracing.tracer import trace

__all__ = ["alive_channels", "original_graph", "rewrite", "rewrite_in_stages"]


def rewrite(graph: ChannelGraph, plan: Plan) -> fx.GraphModule:
    """Make the smaller model that a plan describes.

    Args:
        graph: what `fxprune.analyze` returns; neither it nor its module is changed.
        plan: the channels to keep.

    Returns:
        A GraphModule with the original's `state_dict` keys and mode; its weights are slices, in memory of their own.
        If the graph is of a model that was pruned before, `plan_of` the result is the composed plan: for the model
        before the first pruning.

    Raises:
        FxpruneError: the plan is not for this model, or keeps a channel in one place and removes it in another.
    """
    alive = alive_channels(graph, plan)
    pruned = _copy_with_slices(graph, plan)
    _rewrite_nodes(pruned, graph, alive)
    pruned.graph.lint()
    pruned.recompile()
    take_notes(graph.module, pruned, plan)
    return pruned


def rewrite_in_stages(
    graph: ChannelGraph, notes: PruningNotes, trace_again: Callable[[fx.GraphModule], fx.GraphModule]
) -> fx.GraphModule:
    """Prune a model as often as one with these notes was pruned.

    A model that was pruned may tie fewer channels to each other than its original, so that the composed plan need not
    be one that `rewrite` can follow.

    Args:
        graph: of the original, or of an earlier stage of the model with the notes.
        notes: of the pruned model.
        trace_again: traces what comes out of a stage.
    """
    earlier, plans = earlier_notes(graph.module), [*notes.stages, notes.plan]
    if earlier is not None and earlier.original == notes.original:
        plans = [plan_since(earlier.plan, plan) for plan in plans[len(earlier.stages) + 1 :] or plans[-1:]]
    pruned = rewrite(graph, plans[0])
    for before, after in pairwise(plans):
        pruned = rewrite(analyze(trace_again(pruned)), plan_since(before, after))
    return pruned


def original_graph(original: nn.Module, pruned: nn.Module, example_inputs: Any = None) -> ChannelGraph:
    """The channels of the model that was pruned, traced as it was then: with the same modules as one node each.

    Args:
        original: that model; `pruned` itself gives the channels that are left.
        pruned: what was made of it.
        example_inputs: default: what `pruned` was traced with.
    """
    example = example_of(pruned) if example_inputs is None else example_inputs
    return analyze(trace(original, example, copy=False, leaves=trace_notes(pruned).leaves))


# --- the pass ---------------------------------------------------------------------------------------------------------


def alive_channels(graph: ChannelGraph, plan: Plan) -> npt.NDArray[np.bool_]:
    """Which channels a plan keeps.

    Raises:
        FxpruneError: the plan does not fit the graph.
    """
    by_ends = {block.ends: block for block in graph.blocks}
    for name, removed in plan.removed.items():
        if removed.ends not in by_ends:
            raise FxpruneError(f"plan leaves out {name}, which is no block of this model")
    alive = graph.all_but(by_ends[removed.ends] for removed in plan.removed.values())
    masks = list(_masks(graph, plan))
    for _, _, dim, mask in masks:
        alive[dim[~mask]] = False
    for name, d, dim, mask in masks:
        if not np.array_equal(alive[dim], mask):
            raise FxpruneError(
                f"plan keeps {int(mask.sum())} of {len(mask)} indices of {name} in dimension {d}, but channels that "
                "are tied to them are removed elsewhere: make the plan with fxprune.make_plan for this model"
            )
        if not mask.any():
            raise FxpruneError(f"plan leaves {name} without any index in dimension {d}: keep at least one")
    for frozen in graph.frozen:
        if not alive[frozen.channels].all():
            raise FxpruneError(f"plan removes frozen channels of {frozen.dimensions[0]}: {frozen.reason}")
    return alive


def _masks(graph: ChannelGraph, plan: Plan) -> Iterator[tuple[str, int, Ids, npt.NDArray[np.bool_]]]:
    """The keep mask of each dimension in a plan: parameter, dimension, its channels, which indices stay."""
    for name, by_dim in plan.kept.items():
        dims = graph.parameters.get(name)
        for d, kept in by_dim.items():
            dim = None if dims is None or d >= len(dims) else dims[d]
            if dim is None or isinstance(dim, int):
                raise FxpruneError(f"plan prunes {name} in dimension {d}, which this model does not have as channels")
            mask = np.zeros(len(dim), dtype=bool)
            if len(kept) and (min(kept) < 0 or max(kept) >= len(dim)):
                raise FxpruneError(f"plan keeps index {max(kept)} of {name} in dimension {d} of size {len(dim)}")
            mask[np.asarray(kept, dtype=np.int64)] = True
            yield name, d, dim, mask


def _copy_with_slices(graph: ChannelGraph, plan: Plan) -> fx.GraphModule:
    """A copy of the traced model in which every tensor is copied once, already cut to size."""
    traced = graph.module
    memo: dict[int, Any] = {}
    gone = plan.gone
    for name, tensor in named_tensors(traced).items():
        if id(tensor) not in memo and name not in gone:
            memo[id(tensor)] = _slice(name, tensor, plan)
    for child in traced.children():
        copy_module(child, memo)
    return copy.deepcopy(traced, memo)


def _slice(name: str, tensor: torch.Tensor, plan: Plan) -> torch.Tensor:
    """What stays of a tensor, in memory of its own."""
    whole = tensor.detach()
    data = plan.cut(name, whole)
    if data is whole:
        data = whole.clone()
    if isinstance(tensor, nn.Parameter):
        return nn.Parameter(data, requires_grad=tensor.requires_grad)
    return data


def _rewrite_nodes(pruned: fx.GraphModule, graph: ChannelGraph, alive: npt.NDArray[np.bool_]) -> None:
    modules, originals = dict(pruned.named_modules()), dict(graph.module.named_modules())
    labels_of = dict(graph.labels)
    single = remove_blocks(pruned, graph, alive, labels_of)
    _fix_sizes(pruned.graph, labels_of, alive)
    for node in list(pruned.graph.nodes):
        labels = labels_of.get(node.name)
        if labels is None and node.op == "output":
            continue
        path = str(node.target) if node.op == "call_module" else None
        module, original = (None, None) if path is None else (modules[path], originals[path])
        found = find_rule(node, module, overridden=True)
        if found is None or found.rewrite_of is None or not _touches(node, labels_of, alive):
            continue
        _hold_sizes(node, graph.held.get(node.name, ()))
        call = found.rewrite_of(Rewrite(node, alive, module, original, labels_of), *node.args, **node.kwargs)
        if call is not None:
            node.args, node.kwargs = call.args, call.kwargs
            if call.target is not None:
                node.op = "call_method" if isinstance(call.target, str) else "call_function"
                node.target = call.target
    replace_by_operands(single)
    _tidy(pruned.graph)


def _hold_sizes(node: fx.Node, held: Sequence[tuple[str, int]]) -> None:
    """Check in front of a node that sizes are those of the example."""
    given = {source.name: source for source in node.all_input_nodes}
    for name, d in held:
        traced = given[name].meta["value"].shape[d]
        with node.graph.inserting_before(node):
            size = node.graph.call_method("size", (given[name], d))
            what, where = f"{name}.size({d})", f"the reshape `{node.name}`"
            check = node.graph.call_function(check_as_traced, (size, traced, what, where))
        size.meta["value"], check.meta["value"] = traced, None


def _touches(node: fx.Node, labels_of: dict[str, Any], alive: npt.NDArray[np.bool_]) -> bool:
    """Whether any tensor at the node loses channels."""
    trees = [labels_of.get(node.name), *(labels_of.get(n.name) for n in node.all_input_nodes)]
    return any(_loses(tree, alive) for tree in trees)


def _loses(tree: Any, alive: npt.NDArray[np.bool_]) -> bool:
    """Whether any dimension in a tree of labels loses channels."""
    if isinstance(tree, Labels):
        return any(not isinstance(dim, int) and not alive[dim].all() for dim in tree.dims)
    if isinstance(tree, Size):
        return tree.ids is not None and not bool(alive[tree.ids].all())
    if isinstance(tree, (tuple, list)):
        return any(_loses(item, alive) for item in tree)
    return isinstance(tree, dict) and any(_loses(item, alive) for item in tree.values())


def _fix_sizes(graph: fx.Graph, labels_of: dict[str, Any], alive: npt.NDArray[np.bool_]) -> None:
    """Put the original size wherever the size of a pruned dimension is read.

    Ops that shape tensors get their new sizes from their rules; anything else, such as a scale or a divisor, means the
    original size.
    """
    for node in list(graph.nodes):
        labels = labels_of.get(node.name)
        if isinstance(labels, Size):
            if labels.ids is not None and not alive[labels.ids].all():
                _put(node, node.meta["value"])
        elif isinstance(labels, tuple) and labels and isinstance(labels[0], Size) and _loses(labels, alive):
            _spell_out(graph, node, labels, alive)


def _spell_out(graph: fx.Graph, node: fx.Node, labels: tuple[Any, ...], alive: npt.NDArray[np.bool_]) -> None:
    """Put a tuple of sizes, the pruned ones as literals, in place of a whole `size()`."""
    users = [user for user in node.users if user.target is not operator.getitem]
    if not users:
        return
    entries: list[int | fx.Node] = []
    for k, label in enumerate(labels):
        if _loses(label, alive):
            entries.append(node.meta["value"][k])
        else:
            with graph.inserting_after(node):
                entry = graph.call_function(operator.getitem, (node, k))
            entry.meta["value"] = node.meta["value"][k]
            entries.append(entry)
    _put(node, tuple(entries), users)


def _put(node: fx.Node, replacement: Any, users: list[fx.Node] | None = None) -> None:
    """Replace a node in the arguments of its users (default: all)."""
    for user in list(node.users) if users is None else users:
        user.args, user.kwargs = fx.node.map_arg((user.args, user.kwargs), lambda n: replacement if n is node else n)


def _tidy(graph: fx.Graph) -> None:
    """Fold arithmetic on literals, and remove nodes that compute sizes and indices for no one."""
    for node in list(graph.nodes):
        folds = node.op == "call_function" and getattr(node.target, "__module__", "") == "_operator"
        if folds and not node.all_input_nodes and isinstance(node.meta.get("value"), (int, float)):
            _put(node, node.meta["value"])
        if node.target is check_as_traced and not node.all_input_nodes:
            graph.erase_node(node)
    # What one step of a loop needs stays in all of them.
    alike = alike_in_steps(graph)
    unused = {node for node in graph.nodes if _is_size_only(node) or computes_indices(node)}
    while used := {node for node in unused if not unused.issuperset((*node.users, *alike.get(node, ())))}:
        unused -= used
    for node in reversed(list(graph.nodes)):
        if node in unused:
            graph.erase_node(node)


def _is_size_only(node: fx.Node) -> bool:
    value = node.meta.get("value")
    return node.op in ("call_function", "call_method") and isinstance(
        value, (int, float, tuple, torch.Size, torch.device)
    )
