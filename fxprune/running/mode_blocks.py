"""Nodes of a graph that run in one mode only, in training or in eval.

Such a node has `meta["mode"]`: the path of a module, and whether that is in training when the node runs. What is
computed from the node runs with it. A node that calls a `ChooseByMode`, whose `meta["mode"]` is empty, always runs. In
the code of the graph the others are in `if` blocks. What runs a graph node by node, as `torch.export` does, runs them
in both modes: in eval those of training change nothing but their own values, and copies of what they write into.
"""

from __future__ import annotations

import re
from typing import Any, TypeAlias

from torch import Tensor, fx, nn
from torch.fx.graph import _format_target

from fxprune.errors import FxpruneError
from fxprune.running.regions import is_boundary

__all__ = ["ChooseByMode", "Mode", "chooses", "modes_of", "with_mode_blocks", "written_in_training"]

# The path of a module, and whether it is in training.
Mode: TypeAlias = "tuple[str, bool]"


class ChooseByMode(nn.Module):
    """Returns the first of two values in training, and the second otherwise; `...` is one that was not computed."""

    def forward(self, train_value: Any, eval_value: Any) -> Any:
        """The value for the current mode."""
        value = train_value if self.training else eval_value
        if value is ...:
            raise FxpruneError(
                "a part of the model is in training and another, whose values it needs, is not: "
                "call train() or eval() of the whole model"
            )
        return value


def written_in_training(tensor: Tensor, training: bool, data: bool = False) -> Tensor:
    """A tensor that nodes of training write into: itself in training, and a copy where they run in eval all the same.

    Args:
        tensor: what is written into.
        training: whether the model is in training.
        data: whether what is written is hidden from autograd, as in `tensor.data`.
    """
    if not training:
        return tensor.detach().clone()
    return tensor.data if data else tensor


def chooses(node: fx.Node) -> bool:
    """Whether a node gives one of two values, by the mode."""
    return bool(node.meta.get("mode") == ())


def modes_of(graph: fx.Graph) -> dict[fx.Node, Mode]:
    """The mode in which each node runs, for those that do not run in both."""
    modes: dict[fx.Node, Mode] = {}
    for node in graph.nodes:
        mode = node.meta.get("mode")
        if mode is None:
            mode = next((modes[source] for source in node.all_input_nodes if source in modes), None)
        if mode and node.op.startswith("call") and not is_boundary(node):
            modes[node] = mode
    return modes


_COUNTER = re.compile(r"# COUNTER: (\d+)")
# The end of a line that forgets the values which no later line needs.
_FORGETS = re.compile(r";  ((?:\w+ = )+)None\s*$")


def with_mode_blocks(graph: fx.Graph, body: list[str]) -> list[str]:
    """The lines of the code of a graph, with the nodes that run in one mode in `if` blocks."""
    modes = modes_of(graph)
    if not modes:
        return body
    nodes = [*graph.nodes]
    lines: list[str] = []
    block: _Block | None = None
    node = None
    for line in "".join(body).splitlines(keepends=True):
        counter = _COUNTER.search(line)
        if counter:
            node = nodes[int(counter.group(1))]
            if block is not None and modes.get(node) != block.mode:
                lines.extend(block.written())
                block = None
        elif node is not None and node in modes:
            block = block or _Block(modes[node])
            block.add(node.name, line)
            continue
        lines.append(line)
    return lines


class _Block:
    """Lines that run in one mode.

    Attributes:
        mode: this one.
    """

    def __init__(self, mode: Mode) -> None:
        self.mode = mode
        self._lines: list[str] = []
        # The names that have a value at the end, and those of values from before that are forgotten there.
        self._made: list[str] = []
        self._forgotten: list[str] = []

    def add(self, name: str, line: str) -> None:
        """A line that computes the value of this name."""
        self._made.append(name)
        forgets = _FORGETS.search(line)
        names = forgets.group(1).split(" = ")[:-1] if forgets else []
        within = [each for each in names if each in self._made]
        self._made = [each for each in self._made if each not in within]
        self._forgotten.extend(each for each in names if each not in within)
        what = line[: forgets.start()] if forgets else line.rstrip()
        self._lines.append(f"{what};  {' = '.join((*within, 'None'))}" if within else what)

    def written(self) -> list[str]:
        """The lines of the block and of what follows it."""
        path, training = self.mode
        condition = f"{_format_target('self', path)}.training"
        lines = [f"if {condition if training else f'not {condition}'}:\n", *(f"    {line}\n" for line in self._lines)]
        if self._made:
            lines.extend(("else:\n", f"    {' = '.join((*self._made, '...'))}\n"))
        return [*lines, f"{' = '.join((*self._forgotten, 'None'))}\n"] if self._forgotten else lines
