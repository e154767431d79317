"""What a model's code asks that is neither a size nor a value: gradients, contiguity, and types that it compares.

Python shows nobody whether a branch follows the answer. So the model is recorded again with the other answer: where
that gives the same graph, nothing follows it; elsewhere the graph gets a check.
"""

from __future__ import annotations

import dis
import functools
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.ops import name_of_op
from fxprune.tracing.checks import check_dtype
from fxprune.tracing.graph_builder import GraphBuilder, reads_layout
from fxprune.tracing.scopes import ModuleCall, Switch
from fxprune.tracing.user_code import asked_by_model, is_of_model, user_frame

__all__ = [
    "GRADIENT_FACTS", "GRAD_MODE", "INFERENCE_MODE", "DeviceRead", "Fact", "Facts", "TypeRead", "asking_for_grad_mode",
]  # fmt: skip

# What is asked when `torch.is_grad_enabled()` is.
GRAD_MODE = "torch.is_grad_enabled()"
# What is asked when `torch.is_inference_mode_enabled()` is.
INFERENCE_MODE = "torch.is_inference_mode_enabled()"
_DTYPES: dict[str, torch.dtype] = {
    "float16": torch.float16, "half": torch.float16, "bfloat16": torch.bfloat16, "float32": torch.float32,
    "float": torch.float32, "float64": torch.float64, "double": torch.float64, "bool": torch.bool,
    "uint8": torch.uint8, "int8": torch.int8, "int16": torch.int16, "short": torch.int16, "int32": torch.int32,
    "int": torch.int32, "int64": torch.int64, "long": torch.int64, "complex64": torch.complex64,
    "complex128": torch.complex128,
}  # fmt: skip


_ALL = frozenset(_DTYPES.values())
_FLOATS = frozenset(dtype for dtype in _ALL if dtype.is_floating_point)
# Both are indices.
_INDICES = frozenset({torch.int32, torch.int64})


# What a tensor answers that has gradients and is no parameter.
_WITH_GRADIENTS = {"requires_grad": True, "grad_fn": True, "is_leaf": False}
#: Questions whose answers the grad mode decides.
GRADIENT_FACTS = frozenset({GRAD_MODE, *_WITH_GRADIENTS})


@dataclass(frozen=True, eq=False)
class Fact:
    """A question of the model's code that is answered by yes or no.

    Attributes:
        asked: a method or attribute of tensors, or `GRAD_MODE` or `INFERENCE_MODE`.
        node: of the tensor; None for these two.
        arguments: of the method, by name.
        answer: what the code was told.
        call: the module call that asked.
    """

    asked: str
    node: fx.Node | None
    arguments: Mapping[str, Any]
    answer: bool
    call: ModuleCall


@dataclass(frozen=True, eq=False)
class TypeRead:
    """A dtype that was read from a tensor by code that compares dtypes with those of `compared`."""

    node: fx.Node
    dtype: torch.dtype
    compared: frozenset[torch.dtype]
    call: ModuleCall


@dataclass(frozen=True, eq=False)
class DeviceRead:
    """The device of a tensor, read by code that names types of devices."""

    node: fx.Node
    call: ModuleCall


class Facts:
    """Answers the questions, and keeps them.

    Attributes:
        asked: in their order.
        types: the reads of dtypes that the code compares.
        kinds: those of dtypes of inputs of which the code asks whether they are floating-point, or compares them with
            dtypes that are not, and the dtypes that give another answer.
        devices: the reads of devices that the code may compare.
        other_answer: what is asked in questions that get the other answer.
        told_grad_mode: what the model was told last of the grad mode; None if it did not ask.
    """

    def __init__(self, builder: GraphBuilder, other_answer: str | None, training: bool) -> None:
        self.asked: list[Fact] = []
        self.types: list[TypeRead] = []
        self.kinds: list[tuple[TypeRead, list[torch.dtype]]] = []
        self.devices: list[DeviceRead] = []
        self.other_answer = other_answer
        self.told_grad_mode: bool | None = None
        self._builder = builder
        self._training = training

    def answer(self, asked: str, tensor: Tensor, found: bool, **arguments: Any) -> bool:
        """The answer to a question about a tensor."""
        if not asked_by_model():
            return found
        node = self._builder.node_of(tensor)
        if asked in _WITH_GRADIENTS and not isinstance(tensor, nn.Parameter):
            # With another grad mode, tensors have gradients or not accordingly.
            if self._training != (self.other_answer == GRAD_MODE):
                found = self._learns(node) == _WITH_GRADIENTS[asked]
            elif node.op.startswith("call_"):
                # Only inputs and weights may have them where none are computed.
                return self._note(asked, node, found, arguments)
        return self._answer(asked, node, found, arguments)

    def _learns(self, node: fx.Node) -> bool:
        """Whether what a node gives has gradients in training; tensors on the meta device have none."""
        seen: set[fx.Node] = set()
        stack = [node]
        while stack:
            current = stack.pop()
            value = current.meta["value"]
            ends = name_of_op(current.target) == "detach" or (isinstance(value, Tensor) and not _is_continuous(value))
            if current in seen or ends:
                continue
            seen.add(current)
            stack.extend(current.all_input_nodes)
            owned = self._builder.module(str(current.target)).parameters() if current.op == "call_module" else [value]
            if any(isinstance(each, nn.Parameter) and each.requires_grad for each in owned):
                return True
        return False

    def grad_mode(self) -> bool:
        """Whether gradients are computed, so far as the model is to know: in training only."""
        self.told_grad_mode = self._answer(GRAD_MODE, None, self._training, {})
        return self.told_grad_mode

    def inference_mode(self, enabled: bool) -> bool:
        """Whether the model is to know that it is in inference mode."""
        return self._answer(INFERENCE_MODE, None, enabled, {})

    def readers(self) -> set[tuple[str, str]]:
        """The modules that ask for the grad mode, and with it for their own."""
        return {(fact.call[0], fact.call[0]) for fact in self.asked if fact.asked == GRAD_MODE}

    def _answer(self, asked: str, node: fx.Node | None, found: bool, arguments: dict[str, Any]) -> bool:
        return self._note(asked, node, found != (asked == self.other_answer), arguments)

    def _note(self, asked: str, node: fx.Node | None, answer: bool, arguments: dict[str, Any]) -> bool:
        self.asked.append(Fact(asked, node, arguments, answer, self._builder.scopes.current))
        return answer

    def note_dtype(self, dtype: torch.dtype, tensor: Tensor) -> None:
        """The model's code has read a dtype from a tensor."""
        compared = _compared_here()
        others = compared - _FLOATS if dtype.is_floating_point else compared
        if floats := compared - others:
            self.types.append(TypeRead(self._builder.node_of(tensor), dtype, floats, self._builder.scopes.current))
        if others:
            self._note_kind(tensor, _ALL - {dtype} if dtype in others else others)

    def is_kind(self, tensor: Tensor, kind: str) -> bool:
        """The answer to whether a tensor is of floating-point, or of complex numbers."""
        answer = getattr(tensor.dtype, kind)
        if asked_by_model():
            self._note_kind(tensor, frozenset(dtype for dtype in _ALL if getattr(dtype, kind) != answer))
        return bool(answer)

    def _note_kind(self, tensor: Tensor, others: frozenset[torch.dtype]) -> None:
        node, dtype = self._builder.node_of(tensor), tensor.dtype
        if self._has_dtype_of_input(node):
            read = TypeRead(node, dtype, others, self._builder.scopes.current)
            refused = others - (_INDICES if dtype in _INDICES else frozenset())
            self.kinds.append((read, sorted(refused, key=str)))

    def _has_dtype_of_input(self, node: fx.Node) -> bool:
        """Whether a tensor is of another dtype where an input is: not what was converted, or made with weights."""
        seen: set[fx.Node] = set()
        stack = [node]
        found = False
        while stack:
            current = stack.pop()
            name, value = name_of_op(current.target), current.meta["value"]
            if current in seen or name in _CONVERSIONS or reads_layout(current):
                continue
            seen.add(current)
            found = found or current.op == "placeholder"
            if current.op == "call_module" or (current.op == "get_attr" and value.is_floating_point()):
                return False
            stack.extend(current.all_input_nodes)
        return found

    def note_device(self, tensor: Tensor, *, compared: bool = False) -> None:
        """The model's code has read the device of a tensor, or has compared it."""
        frame = user_frame() if asked_by_model() else None
        if frame is not None and (compared or _names_devices(frame.f_code)):
            self.devices.append(DeviceRead(self._builder.node_of(tensor), self._builder.scopes.current))


@functools.lru_cache(maxsize=10_000)
def _names_devices(code: CodeType) -> bool:
    """Whether a function has the name of a type of devices in it, as in `x.device.type == "cuda"`."""
    return not {"cpu", "cuda"}.isdisjoint(each for each in code.co_consts if isinstance(each, str)) or any(
        isinstance(each, (tuple, frozenset)) and not {"cpu", "cuda"}.isdisjoint(each) for each in code.co_consts
    )


_CONVERSIONS = frozenset({
    "to", "float", "double", "half", "bfloat16", "long", "int", "bool", "type", "type_as", "eq", "ne", "lt", "le", "gt",
    "ge", "isnan", "isinf", "isfinite", "logical_not", "logical_and", "logical_or", "argmax", "argmin",
})  # fmt: skip


def _is_continuous(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _compared_here() -> frozenset[torch.dtype]:
    """The dtypes that the code which reads one now compares with."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(str(Path(__file__).parent)):
        if frame.f_code is check_dtype.__code__:
            # A traced graph that is traced again.
            return frozenset(frame.f_locals["refused"])
        frame = frame.f_back
    frame = user_frame() if asked_by_model() else None
    return frozenset() if frame is None else _compared_dtypes(frame.f_code)


_COMPARISONS = ("COMPARE_OP", "IS_OP", "CONTAINS_OP")
_OPERANDS = ("LOAD_", "BUILD_TUPLE", "BUILD_LIST", "BUILD_SET", "CACHE", "PRECALL", "EXTENDED_ARG", "PUSH_NULL")


@functools.lru_cache(maxsize=10_000)
def _compared_dtypes(code: CodeType) -> frozenset[torch.dtype]:
    """The dtypes that a function compares with, as in `x.dtype == torch.float16`."""
    if not _DTYPES.keys() & {*code.co_names}:
        return frozenset()
    instructions: list[dis.Instruction] = list(dis.get_instructions(code))
    found = set()
    for position, instruction in enumerate(instructions):
        dtype = _DTYPES.get(instruction.argval) if isinstance(instruction.argval, str) else None
        if dtype is None or not instruction.opname.startswith("LOAD_"):
            continue
        after = (later.opname for later in instructions[position + 1 :])
        if next((name for name in after if not name.startswith(_OPERANDS)), "") in _COMPARISONS:
            found.add(dtype)
    return frozenset(found)


def asking_for_grad_mode(facts: Facts, switch: Switch) -> Callable[[], bool]:
    """`torch.is_grad_enabled` while a model is traced: other answers for the model's code than for torch."""
    original = torch.is_grad_enabled

    def is_grad_enabled() -> bool:
        enabled = original()
        # Not within the model's own `torch.no_grad()`.
        return facts.grad_mode() if enabled and switch.on and is_of_model(sys._getframe(1)) else enabled

    return is_grad_enabled
