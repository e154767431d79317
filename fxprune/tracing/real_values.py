"""Real values while a model is traced: its code may ask for those that the input has no part in.

They are computed with the real tensors when they are asked for, and kept in plain types, by what was computed. A
checkpoint holds the weights of the pruned model, perhaps trained since; with what was read of the original's values,
the trace can be repeated without them.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.copies import META
from fxprune.running.one_node import run_node, with_values
from fxprune.tracing.checks import check_outcome
from fxprune.tracing.example_run import ExampleRun
from fxprune.tracing.graph_builder import GraphBuilder, Origin, computed_from, is_count, reads_layout, reads_size
from fxprune.tracing.number_tensors import NumberTensors
from fxprune.tracing.plain_values import digest, in_plain_types, layout_in_plain_types, restored
from fxprune.tracing.scopes import Switch
from fxprune.tracing.size_nodes import SizeNodes
from fxprune.tracing.sizes import TracedNumber, ValueFloat

__all__ = ["LIKELIER_DRAW", "DataDependentError", "RealValues"]

# How a remark starts that becomes a warning.
LIKELIER_DRAW = "The likelier of random draws is in the graph"

# In `tensor.tolist()`: more are a table, which is made for the sizes of the trace.
_MOST_NUMBERS = 64


class DataDependentError(FxpruneError):
    """The model's Python code asked for the value of a tensor that depends on the input.

    Attributes:
        module: the path of the module whose code did, or that made the tensor; known once the run has ended.
        drawn: whether it depends on random numbers, and not on the input.
    """

    module: str = ""
    drawn: bool = False


class RealValues:
    """The real values of nodes, each computed once.

    Attributes:
        read: what was asked for, in plain types, or None for what does not go into them; by what was computed.
        sources: the names of the parameters, buffers and constants whose entries were taken as constant.
    """

    def __init__(
        self,
        builder: GraphBuilder,
        sizes: SizeNodes,
        switch: Switch,
        real: Mapping[int, Tensor],
        inputs: Mapping[str, Any],
        real_module: Callable[[str], nn.Module],
        earlier: Mapping[str, Any],
        training: bool = False,
        counters: AbstractSet[str] = frozenset(),
        by_values: bool = False,
    ) -> None:
        """Args:
        builder: of the graph whose nodes they are.
        sizes: for numbers that the input gives.
        switch: pauses the recording while values are computed.
        real: the real tensor for the identity of each on the meta device.
        inputs: the real values of the placeholders.
        real_module: gives a real module for its path.
        earlier: what an earlier trace has `read`, which is not computed again.
        training: whether the model is in training, where conditions on values are those of the example.
        counters: the names of tensors that forward reads and writes; a number in them is read by the graph.
        by_values: whether the graph may rely on conditions on the input in eval, too.
        """
        self.sources: set[str] = set()
        self.read: dict[str, Any] = {}
        self._builder = builder
        self._sizes = sizes
        self._switch = switch
        self._real = real
        self._inputs = inputs
        self._real_module = real_module
        self._earlier = earlier
        self._training = training
        self._counters = counters
        self._by_values = by_values
        self._computed: dict[fx.Node, Any] = {}
        self._example = ExampleRun(builder, switch, inputs, self._real_tensor, real_module, training)
        self._number_tensors = NumberTensors(builder, sizes, self.of)

    def is_known(self, tensor: Tensor) -> bool:
        """Whether the input has no part in a tensor's values."""
        return self._builder.origin[self._builder.node_of(tensor)] < Origin.INPUTS

    def of(self, node: fx.Node, *, only_layout: bool = False, constant: bool = True) -> Any:
        """The real value of a node in which the input has no part.

        Args:
            node: of the graph.
            only_layout: whether an earlier trace needs to have kept no more of it than sizes and types.
            constant: whether the graph relies on it.

        Raises:
            FxpruneError: the model is on the meta device.
        """
        key = digest(node)
        if constant and not only_layout:
            self.sources |= _tensors_read(node)
        with torch._C.DisableTorchFunction():
            if self._earlier.get(key) is not None:
                self.read[key] = self._earlier[key]
                return restored(self._earlier[key])
            with self._switch.paused(), torch.no_grad():
                value = self._compute(node)
                self.read[key] = (layout_in_plain_types if only_layout else in_plain_types)(value)
                return value

    def layout_at_example(self, node: fx.Node) -> Any:
        """What the last node gives for the example, whose values decide its size; with tensors on the meta device.

        Raises:
            FxpruneError: the model is on the meta device.
        """
        value = self._of_example(node, only_layout=True)
        return trees.map_tensors(lambda tensor: tensor.detach().to(META), value)

    def _of_example(self, node: fx.Node, *, only_layout: bool = False) -> Any:
        return self._example.value(node, self.read, self._earlier, only_layout=only_layout)

    def answer(self, func: Any, tensor: Tensor, *args: Any) -> Any:
        """`bool(tensor)`, `tensor.item()` and the like.

        Raises:
            DataDependentError: the value depends on the input, and is neither a float, with which the graph computes,
                nor a whole number computed from whole numbers.
        """
        node = self._builder.node_of(tensor)
        origin = self._builder.origin[node]
        where = self._builder.scopes.described
        if origin == Origin.INPUTS:
            if func is Tensor.item and is_count(node):
                return self.count(node)
            asks_truth = func is Tensor.__bool__ or (func is Tensor.item and tensor.dtype is torch.bool)
            if asks_truth and (self._training or (self._by_values and self._is_of_inputs(node))):
                return self._outcome(node)
            drawn = all(each.op != "placeholder" for each in _before(node))
            why = "is drawn at random" if drawn else "depends on the model's input"
            error = DataDependentError(
                f"`{func.__name__}` asks for the value of a tensor that {why}"
                f" (node `{node.name}`, shape {tuple(tensor.shape)})"
            )
            error.drawn = drawn
            if func is Tensor.item and tensor.is_floating_point():
                item = self._builder.create_node("call_method", "item", (node,), {}, math.nan, origin)
                self._builder.deferred.append(error.with_traceback(None))
                return ValueFloat.of(self._sizes, item, error)
            raise error
        if func is Tensor.item and tensor.dtype is not torch.bool and _tensors_read(node) & self._counters:
            with torch._C.DisableTorchFunction():
                return self._number_in(node, self.of(node, constant=False))
        if origin == Origin.PARAMETERS and _reads_sizes(node):
            return self._of_sizes(func, node, args)
        if self._training and self._may_change(node):
            return self._in_training(func, node, args)
        if origin == Origin.PARAMETERS:
            self._builder.remarks.append(f"`{func.__name__}` of `{node.name}` in {where} was taken as a constant.")
        with torch._C.DisableTorchFunction():
            return func(self.of(node), *args)

    def _is_of_inputs(self, node: fx.Node) -> bool:
        """Whether a value is computed from the input alone, as whether a mask has any entry."""
        before = _before(node, past_layouts=False)
        of_model = any(each.op == "get_attr" and each.target not in self._builder.constants for each in before)
        return not of_model and all(each.op != "call_module" and "random" not in each.meta for each in before)

    def _may_change(self, node: fx.Node) -> bool:
        """Whether a value is one number that is computed from parameters or buffers, which training may change."""
        one = node.meta["value"].numel() == 1 and not node.meta["value"].is_complex()
        return one and any(
            each.op == "get_attr" and each.target not in self._builder.constants for each in _before(node)
        )

    def _in_training(self, func: Any, node: fx.Node, args: tuple[Any, ...]) -> Any:
        """The value of what training may change: as it is in the trace, which the graph checks."""
        path, _ = self._builder.scopes.current
        with torch._C.DisableTorchFunction():
            value = self.of(node)
            traced = bool(value) if func is Tensor.__bool__ else value.item()
            where = f"`{path or type(self._builder.root).__name__}`"
            self._builder.create_check(check_outcome, (node, traced, node.name, where))
            return func(value, *args)

    def whole_number(self, tensor: Tensor) -> Any:
        """The whole number in a tensor, computed by the graph where the input has a part in it."""
        return self.answer(Tensor.item, tensor) if self.is_known(tensor) else self.count(self._builder.node_of(tensor))

    def count(self, node: fx.Node) -> Any:
        """The whole number that a node gives, computed by the graph; Python sees that of the example."""
        with torch._C.DisableTorchFunction():
            # Of what was written into since it was made, the example's run alone knows the entries.
            value = (self._of_example(node) if self._by_values else self.of(node)).item()
        self._builder.remarks.append(
            f"`{node.name}` in {self._builder.scopes.described} is a number that the input gives; "
            "control flow that depends on it is that of the example input."
        )
        item = self._builder.create_node("call_method", "item", (node,), {}, value, Origin.INPUTS)
        return self._sizes.number_of(item, value)

    def _outcome(self, node: fx.Node) -> bool:
        """Whether a condition on values holds: as it does for the example, which the graph checks."""
        path, _ = self._builder.scopes.current
        where = f"`{path or type(self._builder.root).__name__}`"
        draws = _draws(node)
        with torch._C.DisableTorchFunction():
            if not draws:
                outcome = bool(self._of_example(node))
                self._builder.create_check(check_outcome, (node, outcome, node.name, where))
                return outcome
            with self._switch.paused(), torch.no_grad():
                outcome, *others = (bool(self._if_drawn(node, draws, number)) for number in (0.5, 0.0, 1 - 2**-24))
        if others != [outcome, outcome]:
            self._builder.remarks.append(
                f"{LIKELIER_DRAW} in {where}: a random number decides there which way the code goes in training, as "
                "where layers are skipped at random. Layers are not skipped if that is the likelier. To keep the "
                "draws, train the result of `fxprune.restore_class`."
            )
        return outcome

    def _if_drawn(self, node: fx.Node, draws: frozenset[fx.Node], number: float) -> Any:
        """The value of a node if this number is drawn."""
        values: dict[fx.Node, Any] = {}
        for current in _before(node):
            if current in draws:
                values[current] = torch.full(current.meta["value"].shape, number)
            else:
                values[current] = run_node(current, *with_values(current, values.__getitem__))
        return values[node]

    def _of_sizes(self, func: Any, node: fx.Node, args: tuple[Any, ...]) -> Any:
        """What only the sizes of the input decide is computed by the graph, or guarded where Python needs to know."""
        with torch._C.DisableTorchFunction():
            value = self.of(node)
            if func is Tensor.tolist and value.numel() <= _MOST_NUMBERS:
                return self._numbers_in(node, value)
            if value.numel() != 1 or func in (Tensor.tolist, Tensor.numpy, Tensor.__contains__) or value.is_complex():
                self._guard_sizes(node)
                return func(value, *args)
            number = self._number_in(node, value)
            if func is Tensor.item:
                return number
            if isinstance(number, TracedNumber):
                number.as_traced()
            return func(value)

    def _numbers_in(self, node: fx.Node, value: Tensor) -> Any:
        """`tensor.tolist()`."""
        if not value.dim():
            return self._number_in(node, value)
        parts = (
            (self._builder.create_part(operator.getitem, node, i, part.to(META)), part) for i, part in enumerate(value)
        )
        return [self._numbers_in(part, entries) for part, entries in parts]

    def _number_in(self, node: fx.Node, value: Tensor) -> Any:
        """`tensor.item()`; a truth is a plain one, for which the graph has a guard."""
        truth = value.dtype is torch.bool
        counts = bool(_tensors_read(node) & self._counters)
        entries = None if counts else self._number_tensors.entries(_before(node, past_layouts=False))
        if entries is not None:
            (number,) = entries
            if truth:
                self._number_tensors.rely_on(number, bool(value))
            return bool(value) if truth else number
        if truth:
            meta = node.meta["value"].int()
            node = self._builder.create_node("call_method", "int", (node,), {}, meta, self._builder.origin[node])
            value = value.int()
        origin = self._builder.origin[node]
        item = self._builder.create_node("call_method", "item", (node,), {}, value.item(), origin)
        number = self._sizes.number_of(item, value.item())
        return bool(number.as_traced()) if truth else number

    def _guard_sizes(self, node: fx.Node) -> None:
        """From here on the graph relies on the sizes that a node is computed from."""
        for size in _size_nodes(node):
            number = self._sizes.number_of(size, size.meta["value"])
            number.as_traced()

    def _compute(self, node: fx.Node) -> Any:
        needed: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            if current not in needed and current not in self._computed:
                needed.add(current)
                stack.extend(() if reads_layout(current) else current.all_input_nodes)
        for current in [n for n in self._builder.graph.nodes if n in needed]:
            self._computed[current] = self._compute_one(current)
        return self._computed[node]

    def _compute_one(self, node: fx.Node) -> Any:
        if reads_layout(node):
            return node.meta["value"]
        if node.op == "placeholder":
            return self._inputs[str(node.target)]
        if node.op == "get_attr":
            return self._real_tensor(node)
        module = self._builder.module_of(node, self._real_module)
        return run_node(node, *with_values(node, self._computed.__getitem__), module)

    def _real_tensor(self, node: fx.Node) -> Tensor:
        name = str(node.target)
        constants = self._builder.constants
        tensor = constants[name] if name in constants else self._real[id(node.meta["value"])]
        if tensor.is_meta:
            raise FxpruneError(f"The value of `{name}` is needed, but the model is on the meta device.")
        return tensor


def _before(node: fx.Node, *, past_layouts: bool = True) -> list[fx.Node]:
    """The nodes that a node is computed from, and itself, in their order.

    Args:
        node: the last one.
        past_layouts: whether also what comes before a read of a size or a type.
    """

    def sources(each: fx.Node) -> list[fx.Node]:
        return each.all_input_nodes if past_layouts or not reads_layout(each) else []

    return sorted(computed_from(node, sources))


def _tensors_read(node: fx.Node) -> set[str]:
    """The names of the parameters, buffers and constants whose entries a node is computed from."""
    return {str(each.target) for each in _before(node, past_layouts=False) if each.op == "get_attr"}


def _draws(node: fx.Node) -> frozenset[fx.Node]:
    """The uniform random numbers that a node is computed from; none where it is from anything else too."""
    before = _before(node)
    calls = all(node.op in ("call_function", "call_method") for node in before)
    known = calls and all(("random" in node.meta) == (node.target is torch.rand) for node in before)
    return frozenset(n for n in before if n.target is torch.rand) if known else frozenset()


def _size_nodes(node: fx.Node) -> list[fx.Node]:
    """The nodes that read the size of a tensor, among those that a node is computed from."""
    return [each for each in _before(node, past_layouts=False) if reads_size(each)]


def _reads_sizes(node: fx.Node) -> bool:
    return bool(_size_nodes(node))
