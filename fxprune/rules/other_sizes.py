"""The sizes of a traced model's tensors for inputs of other sizes.

A reshape may keep channels together at the example's size and mix them with positions at another one: 16 channels at 4
positions can be read as 4 groups of 4, and at 9 positions they cannot. So the graph is run again, on the meta device,
for other batches, resolutions and lengths, and a rule relies on what holds for all of them.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxprune.ops import Trait, traits
from fxprune.running import trees
from fxprune.running.copies import META, meta_like, named_tensors
from fxprune.running.one_node import run_node, with_values
from fxprune.tracing.checks import check_as_traced
from fxprune.tracing.fixed_sizes import fixed_sizes
from fxprune.tracing.loops import end_steps, new_list, next_value, steps
from fxprune.tracing.meta_results import META_RUNS, of_one_step
from fxprune.tracing.rolling import has_loops, roll
from fxprune.tracing.traced_module import copy_graph

__all__ = ["OtherSizes", "Sizes"]

# A size at the example's size of the model's input, and at each of the others that are considered.
Sizes: TypeAlias = "tuple[int, ...]"
_Shapes: TypeAlias = "dict[fx.Node, tuple[int, ...]]"
# Called with a tensor of the input and a dimension; gives the size to try there.
_Change: TypeAlias = Callable[[Tensor, int], int]

# Sizes that models take: multiples for windows and strides, and more or less of the same where nothing is divided.
_TRIED: tuple[Callable[[int], int], ...] = (
    *(lambda n, k=k: n * k for k in (2, 3, 5)),
    *(lambda n, k=k: n + k for k in (1, 2, 32, 64, -1)),
)
# Where one node stops all of these, it takes the one size.
_PROBES: tuple[Callable[[int], int], ...] = (lambda n: n * 2, lambda n: n + 1, lambda n: n - 1)


def _all_at_once(batch: int, first: int, second: int) -> _Change:
    """Multiples of the batch and of the positions, where most models have them."""

    def change(tensor: Tensor, d: int) -> int:
        rank, n = tensor.ndim, tensor.shape[d]
        if d == 0:
            return n * batch
        positions = range(2, rank) if rank > 3 else range(1, 2) if rank == 3 or not tensor.is_floating_point() else ()
        return n * (first, second)[d % 2] if d in positions else n

    return change


# Pairs of changes, tried before each dimension is tried alone: images of any sides, and square ones.
_GUESSES = tuple((_all_at_once(5, 2, k), _all_at_once(2, 3, 5 - k)) for k in (3, 2))


class OtherSizes:
    """The shapes of the tensors of a graph for inputs of other sizes; computed when they are first asked for."""

    def __init__(self, graph: fx.Graph, modules: Mapping[str, nn.Module]) -> None:
        self._graph = graph
        self._modules = modules
        # Nodes that do not run on the meta device at the example's size; their values are those of the example.
        self._kept: set[fx.Node] = set()
        # By the shapes of the inputs that were tried, those of all tensors, or the node that does not take them.
        self._tried: dict[tuple[torch.Size, ...], _Shapes | fx.Node] = {}

    def shapes(self, *nodes: fx.Node, mixing: bool = False) -> list[tuple[tuple[int, ...], ...]]:
        """For inputs of each of the other sizes that the model takes, the shape of the tensor of each node.

        Args:
            nodes: of the graph.
            mixing: whether for the sizes at which the model mixes samples. A network that does `x.view(-1, 288)` gives
                two results for an image of twice the height; nobody wants that.
        """
        return [tuple(run[node] for node in nodes) for run in self._runs if self._mixes(run) is mixing]

    def same_shape(self, first: fx.Node, second: fx.Node) -> bool:
        """Whether two tensors that have the same shape for the example have it for other inputs.

        Sizes of more than 1 do: where they meet, nothing is broadcast. For the batch one run says it.
        """
        shape = _shape(first)
        if 1 not in shape:
            return True
        run = self._run(_all_at_once(2, 1, 1)) if 1 not in shape[1:] else None
        pairs = self.shapes(first, second) if run is None else [(run[first], run[second])]
        return all(one == other for one, other in pairs)

    def _mixes(self, run: _Shapes) -> bool:
        """Whether there are more or fewer results than for the example, of as many samples."""
        given = [node for node in self._inputs if node in run]
        results = [node for node in self._graph.output_node().all_input_nodes if node in run]
        batches = {(_shape(node)[:1], run[node][:1]) for node in given}
        if len(batches) != 1:
            return False
        [(before, now)] = batches
        return any(_shape(node)[:1] == before and run[node][:1] != now for node in results)

    @functools.cached_property
    def fixed(self) -> Mapping[fx.Node, Any]:
        """For each node, which of its sizes (a bool each) are known to be the same for all inputs, without a run."""
        return fixed_sizes(self._graph, self._modules.__getitem__)

    @functools.cached_property
    def _rolled(self) -> tuple[fx.Graph, Mapping[str, str]]:
        """The graph with one step in place of all steps of a loop, and the nodes that stand for others, by name."""
        program = copy_graph(self._graph) if has_loops(self._graph) else self._graph
        return program, roll(program)

    @functools.cached_property
    def _runs(self) -> list[_Shapes]:
        for pair in _GUESSES:
            guessed = [self._run(change) for change in pair]
            runs = [run for run in guessed if run is not None and not self._mixes(run)]
            if len(runs) == len(pair):
                return runs
        tensors = [tensor for node in self._inputs for tensor in trees.tensors(node.meta["value"])]
        runs = []
        for d, n in dict.fromkeys((d, n) for tensor in tensors for d, n in enumerate(tensor.shape)):
            run = self._vary(n, range(d, d + 1))
            if run is None and d:
                # Perhaps images have to be square.
                run = self._vary(n, range(1, 6))
            if run is not None:
                runs.append(run)
        return runs

    @property
    def _inputs(self) -> list[fx.Node]:
        return [node for node in self._graph.nodes if node.op == "placeholder"]

    def _vary(self, size: int, dims: range) -> _Shapes | None:
        """The first run that succeeds with another size in those of the dimensions that have this one."""

        def run(new: int) -> _Shapes | fx.Node:
            return self._try(lambda tensor, d: new if d in dims and tensor.shape[d] == size else tensor.shape[d])

        for position, function in enumerate(_TRIED):
            new = function(size)
            found = run(new) if new else None
            if isinstance(found, dict):
                return found
            if position == 0 and all(run(probe(size)) is found for probe in _PROBES if probe(size)):
                return None
        return None

    def _run(self, change: _Change) -> _Shapes | None:
        """The shapes of all tensors; None where the model does not take the sizes."""
        found = self._try(change)
        return found if isinstance(found, dict) else None

    def _try(self, change: _Change) -> _Shapes | fx.Node:
        """The shapes of all tensors, or the node that does not take the sizes."""

        def resized(tensor: Tensor) -> Tensor:
            return torch.empty([change(tensor, d) for d in range(tensor.ndim)], dtype=tensor.dtype, device=META)

        inputs = {
            node: trees.map_tensors(resized, node.meta["value"])
            for node in self._rolled[0].nodes
            if node.op == "placeholder"
        }
        key = tuple(tensor.shape for tensor in trees.tensors(list(inputs.values())))
        known = self._tried.get(key)
        if known is None:
            known = self._tried[key] = self._run_on(inputs)
        return known

    def _run_on(self, inputs: Mapping[fx.Node, Any]) -> _Shapes | fx.Node:
        values: dict[fx.Node, Any] = dict(inputs)
        steps_left = 0
        with torch.no_grad(), META, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for node in self._rolled[0].nodes:
                if node.op == "placeholder":
                    continue
                if node.target is steps:
                    values[node] = node.args[1]
                    steps_left = with_values(node, values.__getitem__)[0][0] - node.args[1] - 1
                elif node.target is next_value:
                    values[node.args[0]] = values[node.args[1]]
                elif node.target is end_steps:
                    for made in (values[given] for given in node.args if given.target is new_list):
                        made.extend(made * steps_left)
                elif node.op == "get_attr" or node in self._kept:
                    values[node] = _example(node)
                elif node.meta["value"] is None and node.target is not check_as_traced:
                    # It changes a setting, or checks something else than a size.
                    values[node] = None
                elif node.op != "output":
                    try:
                        values[node] = self._call(node, values)
                    except Exception:
                        if self._runs_as_traced(node):
                            stopped: fx.Node = node
                            return stopped
                        self._kept.add(node)
                        values[node] = _example(node)
        shapes = {node.name: tuple(value.shape) for node, value in values.items() if isinstance(value, Tensor)}
        names = {node: self._rolled[1].get(node.name, node.name) for node in self._graph.nodes}
        return {node: shapes[name] for node, name in names.items() if name in shapes}

    def _runs_as_traced(self, node: fx.Node) -> bool:
        """Whether a node runs on the meta device at the example's size."""
        try:
            self._call(node, {given: _example(given) for given in node.all_input_nodes})
        except Exception:
            return False
        return True

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        args, kwargs = fx.node.map_aggregate(with_values(node, values.__getitem__), _on_meta)
        module = self._modules[str(node.target)] if node.op == "call_module" else None
        what, example = traits(node, module), node.meta["value"]
        if isinstance(example, Tensor) and (
            Trait.ELEMENTWISE in what or isinstance(module, nn.modules.batchnorm._BatchNorm)
        ):
            # Torch runs them in Python, which takes long.
            shape: Any = torch.broadcast_shapes(  # type: ignore[no-untyped-call]
                *(tensor.shape for tensor in trees.tensors((args, kwargs)))
            )
            return torch.empty(shape, dtype=example.dtype, device=META)
        if module is not None:
            state = {name: meta_like(tensor) for name, tensor in named_tensors(module).items()}
            call = functools.partial(_call_with, module, state)
            return of_one_step(module, call)(*args, **kwargs)
        stand_in = META_RUNS.get(getattr(Tensor, str(node.target), None) if node.op == "call_method" else node.target)
        return run_node(node, args, kwargs) if stand_in is None else stand_in(*args, **kwargs)


def _call_with(module: nn.Module, state: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    return torch.func.functional_call(module, state, args, kwargs)


def _shape(node: fx.Node) -> tuple[int, ...]:
    return tuple(node.meta["value"].shape)


def _example(node: fx.Node) -> Any:
    """The value of a node for the example, in tensors of their own: some ops change the shape of what they get."""
    return trees.map_tensors(meta_like, node.meta["value"])


def _on_meta(argument: Any) -> Any:
    """The meta device in place of any other."""
    return META if isinstance(argument, torch.device) else argument
