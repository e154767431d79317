"""The graphs of a model in eval and in training, made one: each node runs in both modes, or in one of them.

Calls that the model makes in both modes are found as the longest common runs of the two recordings. What these get may
be another value in training, or another literal; what else is called in training is put between them.
"""

from __future__ import annotations

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any, cast

import torch
from torch import Tensor, fx

from fxprune.errors import FxpruneError
from fxprune.running.copies import META
from fxprune.running.mode_blocks import ChooseByMode, Mode, written_in_training
from fxprune.running.one_node import run_node, with_values
from fxprune.running.regions import enter_region, exit_region, is_boundary
from fxprune.tracing.aliasing import alias_roots
from fxprune.tracing.constants import constant_name
from fxprune.tracing.deciders import Deciders
from fxprune.tracing.graph_builder import GraphBuilder, Origin
from fxprune.tracing.modes import Literal, are_alike, is_other_value
from fxprune.tracing.pairing import CHECKS, floats, is_aligned, partners, shapes_of

__all__ = ["CannotMergeError", "common_literals", "merge"]


class CannotMergeError(FxpruneError):
    """No graph can be made of the two."""


def merge(
    in_eval: GraphBuilder, in_training: GraphBuilder, deciders: Deciders, *, same_calls: bool = False
) -> list[Literal]:
    """Put what a model does in training into its graph of eval.

    Args:
        in_eval: of the graph that is changed.
        in_training: of the other.
        deciders: the modules whose modes the graph follows.
        same_calls: whether no more than checks and literals differ.

    Returns:
        The literals that differ where the calls are the same.

    Raises:
        CannotMergeError: the code loops over a size, and the graph takes any; a context of torch is around calls of
            both modes, and is there in one of them only; or calls of training do not run on the example. The graph may
            have been changed.
    """
    if not same_calls and any(each.repeats(loop) for each in (in_eval, in_training) for loop in range(each.loops)):
        raise CannotMergeError("the code loops over a size, and the code of the graph has one step of such a loop")
    return _Merge(in_eval, in_training, deciders).run()


def common_literals(in_eval: GraphBuilder, in_training: GraphBuilder) -> list[Literal]:
    """The literals that differ where the calls are the same, without a change of the graphs."""
    return [
        literal
        for theirs, ours in partners(in_eval, in_training, shapes=False).items()
        for literal in _literals(ours, (), (ours.args, ours.kwargs), (theirs.args, theirs.kwargs))
    ]


def _literals(node: fx.Node, place: tuple[Any, ...], ours: Any, theirs: Any) -> Iterator[Literal]:
    if are_alike(ours, theirs) and isinstance(ours, (tuple, list)):
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            yield from _literals(node, (*place, i), a, b)
    elif are_alike(ours, theirs):
        for key in ours:
            yield from _literals(node, (*place, key), ours[key], theirs[key])
    elif not (_nodes_in(ours) or _nodes_in(theirs)) and (isinstance(ours, dict) or is_other_value(ours, theirs)):
        # Dicts that come here may differ in the order alone.
        yield Literal(node, place, _plain(ours), _plain(theirs))


def _plain(value: Any) -> Any:
    """A value with containers of Python in place of those of fx."""
    if isinstance(value, (tuple, list)):
        return (tuple if isinstance(value, tuple) else list)(map(_plain, value))
    return {key: _plain(item) for key, item in value.items()} if isinstance(value, dict) else value


class _Merge:
    def __init__(self, in_eval: GraphBuilder, in_training: GraphBuilder, deciders: Deciders) -> None:
        self._ours, self._theirs = in_eval, in_training
        self._deciders = deciders
        self._literals: list[Literal] = []
        # For each node of training, the one of the result; and the nodes of eval whose place is certain.
        self._node_for: dict[fx.Node, fx.Node] = {}
        self._placed: set[fx.Node] = set()
        self._placeholders = {node.target: node for node in in_eval.graph.nodes if node.op == "placeholder"}
        self._left = [node for node in in_eval.graph.nodes if node.op != "placeholder"]
        self._floating = {_key(node, node.args, node.kwargs): node for node in in_eval.graph.nodes if floats(node)}
        self._checks: set[str] = set()
        self._modes: dict[fx.Node, Mode | None] = {}
        self._choices: dict[str, fx.Node] = {}
        self._modules: dict[str, str] = {}
        # Training may need more samples than the example has.
        self._other_samples = any(
            shapes_of(node) != shapes_of(self._placeholders[node.target])
            for node in in_training.graph.nodes
            if node.op == "placeholder"
        )

    def run(self) -> list[Literal]:
        partner = partners(self._ours, self._theirs, shapes=not self._other_samples)
        _check_regions(self._ours.graph, {*partner.values()})
        _check_regions(self._theirs.graph, partner.keys())
        for builder in (self._ours, self._theirs):
            for node in builder.graph.nodes:
                if node.op == "call_module" and isinstance(builder.module(str(node.target)), ChooseByMode):
                    node.meta["mode"] = ()
        for node in [*self._theirs.graph.nodes]:
            if node.op == "placeholder":
                self._node_for[node] = self._placeholders[node.target]
            elif node.op == "output":
                self._join(node, self._ours.graph.output_node())
            elif floats(node):
                self._node_for[node] = self._place_floating(node)
            elif node.target in CHECKS:
                self._place_check(node)
            elif node in partner:
                self._join(node, partner[node])
            else:
                self._node_for[node] = self._copy(node)
        for node in self._ours.graph.nodes:
            if node.target in CHECKS and "mode" not in node.meta and _check_key(node, node.args) not in self._checks:
                node.meta["mode"] = self._mode_of_call(node, self._ours, self._theirs, training=False)
                self._let_apply(node)
        self._keep_writes_to_training()
        return self._literals

    # -- places --

    def _next(self) -> fx.Node:
        """The node of eval before which nodes of training are put."""
        following: fx.Node = next(node for node in self._left if node not in self._placed)
        return following

    def _pass(self, end: fx.Node) -> None:
        """The nodes of eval before this one run before what follows; those that training has not, in eval alone."""
        while self._left:
            node = self._left.pop(0)
            placed = node in self._placed
            self._placed.add(node)
            if node is end:
                return
            if not placed and is_aligned(node) and not is_boundary(node):
                node.meta["mode"] = self._mode_of_call(node, self._ours, self._theirs, training=False)
                self._note_inputs(node)

    def _join(self, theirs: fx.Node, ours: fx.Node) -> None:
        """A call of both modes."""
        self._pass(ours)
        self._node_for[theirs] = ours
        merged = self._merged(ours, (), (ours.args, ours.kwargs), (theirs.args, theirs.kwargs))
        ours.args, ours.kwargs = merged
        if "random" in theirs.meta:
            ours.meta["random"] = True
        if "mutates" in theirs.meta:
            ours.meta["mutates"] = tuple(dict.fromkeys((*ours.meta.get("mutates", ()), *self._mutated(theirs))))

    def _copy(self, node: fx.Node) -> fx.Node:
        """A node of training alone."""
        new = self._new(node)
        if not is_boundary(node):
            new.meta["mode"] = self._mode_of_call(node, self._theirs, self._ours, training=True)
            self._note_inputs(new)
        return new

    def _note_inputs(self, node: fx.Node) -> None:
        """What is computed in one mode of a part of the model, from values of another part in one mode."""
        path, _ = node.meta["mode"]
        modes = filter(None, map(self._mode_of, node.all_input_nodes))
        for own, _ in modes:
            self._deciders.tie(_owner(path), _owner(own))

    def _new(self, node: fx.Node, target: str | None = None) -> fx.Node:
        with self._ours.graph.inserting_before(self._next()):
            new = self._ours.graph.node_copy(node, self._node_for.__getitem__)
        if node.op == "call_module" and (path := str(node.target)) in self._theirs.added_modules:
            if path not in self._modules:
                self._modules[path] = self._ours.add_module(path, self._theirs.added_modules[path])
            new.target = self._modules[path]
        new.target = target or new.target
        if "mutates" in node.meta:
            new.meta["mutates"] = self._mutated(node)
        self._ours.calls[new], self._ours.origin[new] = self._theirs.calls[node], self._theirs.origin[node]
        if self._other_samples and new.op.startswith("call") and new.meta["value"] is not None:
            new.meta["value"] = self._value(new)
        return new

    def _value(self, node: fx.Node) -> Any:
        """What a node of training gives for the example of eval."""
        module = self._ours.module(str(node.target)) if node.op == "call_module" else None

        def on_meta(leaf: Any) -> Any:
            return META if isinstance(leaf, torch.device) else leaf.detach() if isinstance(leaf, Tensor) else leaf

        args, kwargs = fx.node.map_aggregate(with_values(node, lambda source: source.meta["value"]), on_meta)
        try:
            with torch.no_grad(), META:
                return run_node(node, args, kwargs, module)
        except Exception as error:
            raise CannotMergeError(f"`{node.name}` does not run on the example: {error}") from error

    def _mutated(self, node: fx.Node) -> tuple[str, ...]:
        names = {other.name: other for other in self._theirs.graph.nodes}
        return tuple(self._node_for[names[name]].name for name in node.meta["mutates"])

    def _place_floating(self, node: fx.Node) -> fx.Node:
        """Parameters are read, and numbers computed from sizes, wherever they are first needed."""
        target = str(node.target)
        constant = node.op == "get_attr" and target in self._theirs.constants
        name = self._constant(target) if constant else None
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), self._node_for.__getitem__)
        key = _key(node, args, kwargs, name)
        found = self._floating.get(key)
        if found is None:
            found = self._floating[key] = self._new(node, name)
        elif found not in self._placed and found is not (following := self._next()):
            following.prepend(found)
        self._placed.add(found)
        return found

    def _constant(self, name: str) -> str:
        """The name in the result of a constant of training."""
        value = self._theirs.constants[name]
        for ours, other in self._ours.constants.items():
            if other.dtype == value.dtype and torch.equal(other, value):
                return ours
        new = constant_name(len(self._ours.constants))
        self._ours.constants[new] = value
        if name in self._theirs.constant_places:
            self._ours.constant_places[new] = self._theirs.constant_places[name]
        return new

    def _place_check(self, node: fx.Node) -> None:
        """A check of training, which may be one of eval too."""
        args = fx.node.map_arg(node.args, self._node_for.__getitem__)
        key = _check_key(node, args)
        self._checks.add(key)
        if not any(_check_key(n, n.args) == key for n in self._ours.graph.nodes if n.target is node.target):
            self._let_apply(self._copy(node))

    def _let_apply(self, check: fx.Node) -> None:
        """Let a check know its mode: what runs the graph node by node, as `torch.export` does, runs it in both."""
        check.kwargs = {**check.kwargs, "applies": self._is_in_mode_of(check)}

    def _keep_writes_to_training(self) -> None:
        """What training alone writes into, and eval reads, stays as it is where such nodes run in eval as well."""
        graph = self._ours.graph
        modules = {str(n.target): self._ours.module(str(n.target)) for n in graph.nodes if n.op == "call_module"}
        root = alias_roots(graph, modules)
        by_name = {node.name: node for node in graph.nodes}
        of_training = [node for node in graph.nodes if (mode := self._mode_of(node)) and mode[1]]
        written = {root[by_name[name]] for node in of_training for name in node.meta.get("mutates", ())}
        kept: dict[fx.Node, fx.Node] = {}
        for node in of_training:
            given = [each for each in node.all_input_nodes if not self._mode_of(each)]
            if given and node.target is getattr and node.args[1] == "data":
                # `torch.export` cannot run it.
                node.target, node.args = written_in_training, (given[0], self._is_in_mode_of(node), True)
                continue
            for each in given:
                if each not in kept and root[each] in written:
                    kept[each] = self._original_or_copy(each, node)
            node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda each: kept.get(each, each))

    def _is_in_mode_of(self, user: fx.Node) -> fx.Node:
        """Whether the model is in the mode of a node."""
        path, training = cast(Mode, self._mode_of(user))
        with self._ours.graph.inserting_before(user):
            flag = self._ours.graph.create_node("call_module", path, (training, not training))
        flag.meta.update(value=not training, module=path.rpartition(".")[0], mode=())
        self._ours.calls[flag], self._ours.origin[flag] = self._ours.calls[user], Origin.CONSTANTS
        return flag

    def _original_or_copy(self, tensor: fx.Node, user: fx.Node) -> fx.Node:
        training, mode = self._is_in_mode_of(user), self._mode_of(user)
        with self._ours.graph.inserting_before(user):
            kept = self._ours.graph.call_function(written_in_training, (tensor, training))
        kept.meta.update(value=tensor.meta["value"], module=training.meta["module"], mode=mode)
        self._ours.calls[kept], self._ours.origin[kept] = self._ours.calls[user], Origin.INPUTS
        self._modes[kept] = mode
        return kept

    # -- modes --

    def _mode_of_call(self, node: fx.Node, own: GraphBuilder, other: GraphBuilder, *, training: bool) -> Mode:
        """The mode of a node that one recording lacks, by the module that decides: one which is called in both."""
        calls = {*other.calls.values()}
        call = own.calls[node]
        while call[0] and call not in calls:
            parent = call[0].rpartition(".")[0]
            call = next((each for each in own.calls.values() if each[0] == parent), (parent, 0))
        return self._chooser(call[0]), training

    def _chooser(self, path: str) -> str:
        return self._deciders.chooser(self._deciders.of(path))

    def _mode_of(self, node: fx.Node) -> Mode | None:
        if node not in self._modes:
            mode = node.meta.get("mode")
            if mode is None:
                mode = next(filter(None, map(self._mode_of, node.all_input_nodes)), None)
            self._modes[node] = mode or None
        return self._modes[node]

    # -- arguments --

    def _merged(self, node: fx.Node, place: tuple[Any, ...], ours: Any, theirs: Any) -> Any:
        """An argument of a node of both modes."""
        if isinstance(ours, fx.Node) and isinstance(theirs, fx.Node) and self._node_for[theirs] is ours:
            return ours
        if are_alike(ours, theirs) and isinstance(ours, (tuple, list)):
            items = [self._merged(node, (*place, i), *pair) for i, pair in enumerate(zip(ours, theirs, strict=True))]
            return tuple(items) if isinstance(ours, tuple) else items
        if are_alike(ours, theirs):
            return {key: self._merged(node, (*place, key), ours[key], theirs[key]) for key in ours}
        if ours is ... or theirs is ...:
            # A graph that is traced again: a value that is not computed in this mode.
            return fx.node.map_arg(theirs, self._node_for.__getitem__) if ours is ... else ours
        if isinstance(ours, slice) and ours == fx.node.map_arg(theirs, self._node_for.__getitem__):
            return ours
        if not (_nodes_in(ours) or _nodes_in(theirs)):
            self._literals.extend(_literals(node, place, ours, theirs))
            return ours
        return self._choice(node, ours, fx.node.map_arg(theirs, self._node_for.__getitem__))

    def _choice(self, node: fx.Node, ours: Any, theirs: Any) -> fx.Node:
        key = f"{ours!r} {theirs!r}"
        if key not in self._choices:
            modes = [*filter(None, map(self._mode_of, (*_nodes_in(theirs), *_nodes_in(ours))))]
            path = modes[0][0] if modes else self._chooser(node.meta.get("module", ""))
            for other, _ in modes:
                self._deciders.tie(_owner(path), _owner(other))
            with self._ours.graph.inserting_before(node):
                choice = self._ours.graph.create_node("call_module", path, (theirs, ours))
            value = fx.node.map_arg(ours, lambda source: source.meta["value"])
            choice.meta.update(value=value, module=path.rpartition(".")[0], mode=())
            self._ours.calls[choice], self._ours.origin[choice] = self._ours.calls[node], Origin.INPUTS
            self._choices[key] = choice
        return self._choices[key]


def _owner(chooser: str) -> str:
    """The module whose mode a `ChooseByMode` at this path knows."""
    return chooser.rpartition(".")[0]


def _key(node: fx.Node, args: Any, kwargs: Any, name: str | None = None) -> str:
    return f"{node.op} {name or node.target} {args!r} {kwargs!r}"


def _check_key(node: fx.Node, args: Any) -> str:
    return f"{node.target} {args[:-2]!r}"


def _nodes_in(argument: Any) -> list[fx.Node]:
    nodes: list[fx.Node] = []
    fx.node.map_arg(argument, nodes.append)
    return nodes


def _check_regions(graph: fx.Graph, shared: AbstractSet[fx.Node]) -> None:
    """Check that no context which is there in one mode only is around calls of both."""
    opened: list[Any] = []
    for node in graph.nodes:
        ends = node.target is exit_region
        if opened and ends and node.args[0] is opened[-1] and node not in shared:
            opened.pop()
        elif (opened and node in shared) or (ends and node not in shared):
            raise CannotMergeError("a context of torch differs in training, and calls of both modes are in it")
        elif node.target is enter_region and node not in shared:
            opened.append(node.args[0])
