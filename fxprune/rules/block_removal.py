"""Pass: leave blocks out of a graph, and their weights out of its module."""

from __future__ import annotations

from collections.abc import Collection, Mapping, MutableMapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

from fxprune.channels import Block, ChannelGraph, LabelTree
from fxprune.rules.join import joined_by
from fxprune.rules.unread import check_unread, read_inputs
from fxprune.tracing.aliasing import alias_roots

__all__ = ["remove_blocks"]


def remove_blocks(
    module: fx.GraphModule,
    graph: ChannelGraph,
    alive: npt.NDArray[np.bool_],
    labels_of: MutableMapping[str, LabelTree],
) -> list[fx.Node]:
    """Leave out the blocks that are not alive.

    Args:
        module: a copy of the graph's module with nodes of the same names; it is changed.
        graph: the analysed model.
        alive: which channels and blocks stay.
        labels_of: what the value of every node carries, by node name; gets the labels of new nodes.

    Returns:
        The concatenations of a single tensor that it can stand in for, once all nodes are rewritten: until then they
        carry channels that the tensor does not have.
    """
    gone = [block for block in graph.blocks if not alive[block.channel]]
    if not gone:
        return []
    nodes, read = {node.name: node for node in module.graph.nodes}, read_inputs(module.graph)
    dead = {nodes[n] for n, sets in graph.optional.items() if not any(alive[list(each)].all() for each in sets)}
    copying, renamed = _Copying(module, dead), dict[str, str]()
    for block in gone:
        total, value = nodes[block.readers[0]], nodes[block.value]
        if block.stays and total not in dead:
            # Of sums in a row the first may be replaced already.
            stays = next(source for source in total.all_input_nodes if source is not value)
            replacement = copying.instead_of(total, stays)
            labels_of.setdefault(replacement.name, labels_of[total.name])
            total.replace_all_uses_with(replacement, delete_user_cb=lambda user, own=replacement: user is not own)
            renamed[total.name] = replacement.name
            dead.add(total)
    joins = dict.fromkeys(nodes[name] for block in gone for name in block.readers if not block.stays)
    single = [node for node in joins if node not in dead and copying.leaves_single(node, labels_of)]
    for node in module.graph.nodes:
        # Checks, and the sizes that they read.
        if any(source in dead for source in node.all_input_nodes):
            dead.add(node)
        if "mutates" in node.meta:
            node.meta["mutates"] = tuple(_followed(name, renamed) for name in node.meta["mutates"])
    dead -= {*read}
    called = {str(node.target) for node in dead if node.op == "call_module"}
    for node in reversed(module.graph.nodes):
        if node in dead:
            module.graph.erase_node(node)
    check_unread(module.graph, read)
    _drop(module, called, gone)
    return single


def replace_by_operands(single: Collection[fx.Node]) -> None:
    """Put the tensor in place of each concatenation of a single one."""
    for node in single:
        node.replace_all_uses_with(node.all_input_nodes[0])
        node.graph.erase_node(node)


def _followed(name: str, renamed: Mapping[str, str]) -> str:
    while name in renamed:
        name = renamed[name]
    return name


class _Copying:
    """Decides where the place of a sum or a concatenation is taken by what is left of it, and where by a copy."""

    def __init__(self, module: fx.GraphModule, dead: Collection[fx.Node]) -> None:
        self._dead = dead
        self._roots = alias_roots(module.graph, dict(module.named_modules()))
        self._place = {node: k for k, node in enumerate(module.graph.nodes)}
        by_name = {node.name: node for node in module.graph.nodes}
        self._writes = [
            (node, self._roots[by_name[name]]) for node in module.graph.nodes for name in node.meta.get("mutates", ())
        ]

    def instead_of(self, total: fx.Node, stays: fx.Node) -> fx.Node:
        """What takes the place of a sum."""
        form = _memory_format(total.meta["value"], stays.meta["value"])
        if form is None and not self._is_overwritten(total, stays):
            return stays
        with total.graph.inserting_after(total):
            copied = total.graph.call_method("clone", (stays,), {} if form is None else {"memory_format": form})
        copied.meta = {key: value for key, value in total.meta.items() if key != "mutates"}
        return copied

    def leaves_single(self, join: fx.Node, labels_of: MutableMapping[str, LabelTree]) -> bool:
        """Leave the dead out of a concatenation; whether a single tensor is left which can take its place."""
        left = [x for x in joined_by(join) if x not in self._dead]
        d: Any = join.args[1] if len(join.args) > 1 else join.kwargs.get("dim", 0)
        join.args, join.kwargs = (left, d), {}
        made = torch.cat([x.meta["value"] for x in left], d.meta["value"] if isinstance(d, fx.Node) else d)
        wanted = join.meta["value"]
        form = next((form for form in _FORMS if _is_in(wanted, form)), torch.preserve_format)
        if not _is_in(made, form):
            with join.graph.inserting_after(join):
                ordered = join.graph.call_method("contiguous", (join,), {"memory_format": form})
            ordered.meta = dict(join.meta)
            labels_of[ordered.name] = labels_of[join.name]
            join.replace_all_uses_with(ordered, delete_user_cb=lambda user: user is not ordered)
            return False
        return len(left) == 1 and _is_in(left[0].meta["value"], form) and not self._is_overwritten(join, left[0])

    def _is_overwritten(self, total: fx.Node, stays: fx.Node) -> bool:
        """Whether something is written into the sum which must not be written into what is left of it."""
        root, other = self._roots[total], self._roots.get(stays, stays)
        later = any(
            into is root and node not in self._dead and self._place[node] > self._place[total]
            for node, into in self._writes
        )
        if not later or root is other:
            return False
        read_elsewhere = any(user is not total and user not in self._dead for user in stays.users)
        return stays is not other or read_elsewhere or stays.op in ("placeholder", "get_attr")


_FORMS = (torch.contiguous_format, torch.channels_last, torch.channels_last_3d)


def _is_in(tensor: Tensor, form: torch.memory_format) -> bool:
    """Whether the entries of a tensor have an order in memory."""
    rank = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(form, tensor.dim())
    return form is torch.preserve_format or (tensor.dim() == rank and tensor.is_contiguous(memory_format=form))


def _memory_format(total: Tensor, stays: Tensor) -> torch.memory_format | None:
    """The order in memory of a sum, if what is left of it has another one."""

    def strides(tensor: Tensor) -> list[int]:
        return [stride for stride, n in zip(tensor.stride(), tensor.shape, strict=True) if n != 1]

    if strides(total) == strides(stays):
        return None
    if total.dim() == 4 and total.is_contiguous(memory_format=torch.channels_last) and not total.is_contiguous():
        return torch.channels_last
    return torch.contiguous_format if total.is_contiguous() else torch.preserve_format


def _drop(module: fx.GraphModule, called: Collection[str], gone: Collection[Block]) -> None:
    """Remove the modules that nothing calls any more, and the tensors of the blocks."""
    used = {str(node.target) for node in module.graph.nodes if node.op in ("call_module", "get_attr")}
    paths = set(called) - used
    for name in {name for block in gone for name in block.tensors}:
        path, _, own = name.rpartition(".")
        owner = _find(module, path)
        if owner is not None:
            owner._parameters.pop(own, None)
            owner._buffers.pop(own, None)
            paths.add(path)
    while paths:
        path = paths.pop()
        owner = _find(module, path)
        needed = any(name == path or name.startswith(f"{path}.") for name in used)
        if not path or owner is None or needed or _holds_tensors(owner):
            continue
        parent, _, own = path.rpartition(".")
        del module.get_submodule(parent)._modules[own]
        paths.add(parent)


def _find(module: nn.Module, path: str) -> nn.Module | None:
    try:
        return module.get_submodule(path)
    except AttributeError:
        return None


def _holds_tensors(module: nn.Module) -> bool:
    return any(True for _ in (*module.parameters(), *module.buffers()))
