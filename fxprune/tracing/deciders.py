"""Whose mode the code of a module follows: its own, or that of another, as in `if self.norm.training`."""

from __future__ import annotations

from collections.abc import Iterable

from fxprune.running.mode_blocks import ChooseByMode
from fxprune.tracing.checks import check_modes
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.traced_module import ByMode

__all__ = ["Deciders", "ModeRead"]

# The path of the module whose code has read a mode, and that of the module whose mode it is.
ModeRead = tuple[str, str]


class Deciders:
    """The modules whose modes decide what a graph does."""

    def __init__(self, builder: GraphBuilder, reads: Iterable[ModeRead]) -> None:
        self._builder = builder
        self._choosers: dict[str, str] = {}
        # Pairs of modules that the graph needs in the same mode.
        self._together: set[tuple[str, str]] = set()
        self._read: dict[str, set[str]] = {}
        for reader, whose in reads:
            self._read.setdefault(reader, set()).add(whose)
            if isinstance(builder.root.get_submodule(whose), ChooseByMode):
                # A graph that is traced again does not say which parts these decide for.
                self.tie("", whose)

    def of(self, path: str) -> str:
        """The module whose mode the code of a module follows: one that it has read, or the nearest around it that has.

        Where it has read several, they have to be in the same mode.
        """
        read = self.read_by(path)
        decider, *others = sorted(read, key=lambda whose: (whose != path, whose))
        for other in others:
            self.tie(decider, other)
        return self._part(decider)

    def read_by(self, path: str) -> set[str]:
        """The modules whose modes a module has read, or the nearest around it that has read any; or the model."""
        while path and path not in self._read:
            path = path.rpartition(".")[0]
        return self._read.get(path, {path})

    def owners(self) -> frozenset[str]:
        """The modules whose modes decide: those that were read, and the model's where none was."""
        return frozenset({""}).union(*self._read.values())

    def chooser(self, path: str) -> str:
        """The path of the `ChooseByMode` that knows the mode of this module."""
        if path not in self._choosers:
            self._choosers[path] = self._builder.add_module(f"{path}.by_mode".lstrip("."), ChooseByMode())
        return self._choosers[path]

    def tie(self, path: str, other: str) -> None:
        """The graph needs these two modules in the same mode."""
        path, other = self._part(path), self._part(other)
        if path != other:
            self._together.add((path, other))

    def tie_all(self) -> None:
        """The graph needs all of these modules in the same mode."""
        first, *others = sorted(self.owners())
        for other in others:
            self.tie(first, other)

    def _part(self, path: str) -> str:
        """The part of the model whose mode a module has: of one that a graph which is traced again has in addition."""
        added = isinstance(self._builder.root.get_submodule(path), (ByMode, ChooseByMode))
        return path.rpartition(".")[0] if added else path

    def insert_checks(self) -> None:
        """Check in the graph that modules which it needs in the same mode are."""
        graph = self._builder.graph
        for pair in sorted(self._together, reverse=True):
            first = next(node for node in graph.nodes if node.op != "placeholder")
            with self._builder.scopes.within(("", 0)), graph.inserting_before(first):
                modes = [graph.create_node("call_module", self.chooser(path), (True, False)) for path in pair]
                for mode, path in zip(modes, pair, strict=True):
                    mode.meta.update(value=False, module=path, mode=())
                where = [f"`{path or type(self._builder.root).__name__}`" for path in pair]
                self._builder.create_check(check_modes, (*modes, *where))
