"""The checks in a graph that sizes and arguments are the traced ones, where the model's code followed them."""

from __future__ import annotations

import enum
import math
import operator
import warnings
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.running import trees
from fxprune.running.double import is_in_double
from fxprune.tracing.sizes import TracedNumber, plain

__all__ = [
    "check_argument",
    "check_as_traced",
    "check_device",
    "check_dtype",
    "check_fact",
    "check_grad_mode",
    "check_modes",
    "check_outcome",
    "check_rank",
    "check_setting",
    "check_state",
    "expected_of",
    "warn_in_training",
]

# What is expected of an argument, as a graph can hold it: a kind, and the value or the parts.
Expected: TypeAlias = tuple[Any, ...]


@fx.node.has_side_effect
def check_as_traced(value: Any, traced: Any, what: str, where: str, applies: bool = True) -> None:
    """Check that a number computed from sizes, or the outcome of a comparison, is the one of the trace.

    Args:
        value: what it is now.
        traced: what it was in the trace.
        what: how it is computed, for the message.
        where: the module whose code follows it, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it has changed.
    """
    if not applies:
        return
    if isinstance(value, TracedNumber):
        # A traced graph that is traced again.
        value.nodes.guard(operator.pos, (value,), traced)
        value = plain(value)
    if isinstance(value, Tensor):
        value = _item(value)
    if isinstance(value, (torch.SymInt, torch.SymBool)) and free_unbacked_symbols(value):
        # A number from a tensor in `torch.export`, or what it is compared with; the program gets the check.
        holds = value if isinstance(value, torch.SymBool) else value == traced
        torch._check(torch.sym_not(holds) if traced is False else holds)
        return
    # A size may be symbolic, and comparing its truth with True fails then.
    if (not value if traced else value) if isinstance(traced, bool) else value != traced:
        now = bool(value) if isinstance(traced, bool) else value
        raise FxpruneError(
            f"`{what}` is {now} here, and was {traced} when the model was traced. The code of {where} follows it in "
            "a loop or a branch, and the graph has what the code did then. Trace or prune the model with an example of "
            "this size, or write that code with operations on whole tensors"
        )


@fx.node.has_side_effect
def check_setting(value: Any, traced: Any, what: str, where: str, applies: bool = True) -> None:
    """Check that a setting of torch, such as autocast, is the one of the trace.

    Args:
        value: what it is now.
        traced: what it was in the trace.
        what: how it is read, for the message.
        where: the module whose code follows it, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it has changed.
    """
    if applies and value != traced and not (isinstance(value, torch.dtype) and is_in_double()):
        raise FxpruneError(
            f"`{what}` is {value} here, and was {traced} when the model was traced. The code of {where} follows it, "
            "and the graph has what the code did then. Trace or prune the model in the context that it runs in"
        )


@fx.node.has_side_effect
def check_outcome(value: Tensor, traced: float, what: str, where: str, applies: bool = True) -> None:
    """Check that a condition on the values of a tensor holds, or not, as in the trace; or that a number is the same.

    Args:
        value: the condition, or a tensor of one number.
        traced: whether it held in the trace, or the number then.
        what: the name of the condition, for the message.
        where: the module whose code follows it, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it is otherwise.
    """
    if applies and not isinstance(traced, bool) and not math.isclose(value.item(), traced, rel_tol=1e-5):
        raise FxpruneError(
            f"`{what}` is {value.item()} here, and was {traced} when the model was traced. The code of {where} "
            "reads it in training, and the graph has the number of the trace. Compute with the tensor, without "
            "`item()`; or train the result of `fxprune.restore_class`"
        )
    if applies and isinstance(traced, bool) and bool(value) != traced:
        raise FxpruneError(
            f"the condition `{what}` on values is {not traced} here, and was {traced} when the model was traced. The "
            f"code of {where} follows it, and the graph has what the code did then. Look for NaN and infinite values "
            "in the inputs and the weights; or trace the model with other inputs; or train the result of "
            "`fxprune.restore_class`"
        )


@fx.node.has_side_effect
def check_modes(training: bool, inner: bool, where: str, where_inner: str) -> None:
    """Check that two parts of the model are in the same mode.

    Args:
        training: whether the one is in training.
        inner: whether the other is.
        where: the name of the one, for the message.
        where_inner: the name of the other.

    Raises:
        FxpruneError: they are not.
    """
    if training != inner:
        raise FxpruneError(
            f"{where} is in {_MODES[training]}, and {where_inner} in {_MODES[inner]}; the graph has what the model "
            "does where both are in the same mode. Call train() or eval() of the whole model, and after that of single "
            "layers such as BatchNorm"
        )


_MODES = {True: "training", False: "eval"}


@fx.node.has_side_effect
def warn_in_training(message: str | None) -> None:
    """Warn of what training lacks; there is no message in eval, and what is compiled cannot warn."""
    if message is not None and not torch.compiler.is_compiling():
        warnings.warn(message, FxpruneWarning, stacklevel=2)


# --- facts ------------------------------------------------------------------------------------------------------------


@fx.node.has_side_effect
def check_fact(
    tensor: Tensor, asked: str, arguments: dict[str, Any], traced: bool, what: str, where: str, applies: bool = True
) -> None:
    """Check that a tensor answers a question, as `is_contiguous`, as it did in the trace.

    Args:
        tensor: asked.
        asked: the name of its method or attribute.
        arguments: of the method.
        traced: the answer in the trace.
        what: the name of the tensor, for the message.
        where: the module whose code follows the answer, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it answers otherwise.
    """
    if not applies:
        return
    found = getattr(tensor, asked)
    if asked == "layout":
        asked, found = "layout == torch.strided", found == torch.strided
    found = found is not None if asked == "grad_fn" else found(**arguments) if callable(found) else found
    if found != traced:
        raise FxpruneError(
            f"`{what}.{asked}` is {found} here, and was {traced} when the model was traced. The code of {where} "
            "follows it in a branch, and the graph has what the code did then"
        )


@fx.node.has_side_effect
def check_dtype(tensor: Tensor, refused: list[torch.dtype], what: str, where: str, applies: bool = True) -> None:
    """Check that a tensor is of no type for which the model's code does something else.

    Args:
        tensor: checked.
        refused: these types.
        what: the name of the tensor, for the message.
        where: the module whose code follows the type, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it is of one of them.
    """
    if applies and tensor.dtype in refused and not is_in_double():
        raise FxpruneError(
            f"`{what}.dtype` is {tensor.dtype} here. The code of {where} does something else for this type than for "
            "the one that the model was traced with. Trace or prune the model with an example of this type, and where "
            "it is that of the weights, in this type: `prune(model.half(), ...)`"
        )


@fx.node.has_side_effect
def check_device(tensor: Tensor, other: str, what: str, where: str, applies: bool = True) -> None:
    """Warn of a device for which the model's code does something else, which mostly is the same in another way.

    Args:
        tensor: checked.
        other: the type of that device.
        what: the name of the tensor, for the message.
        where: the module whose code follows the device, for the message.
        applies: whether the model is in the mode in which the code follows it.
    """
    if applies and tensor.device.type == other and not torch.compiler.is_compiling():
        warnings.warn(
            f"`{what}.device` is {tensor.device} here. The code of {where} does something else for {other} than for "
            "the device that the model was traced on, and the graph has what the code did there",
            FxpruneWarning,
            stacklevel=2,
        )


@fx.node.has_side_effect
def check_rank(tensor: Tensor, traced: int, what: str, where: str, applies: bool = True) -> None:
    """Check that a tensor has as many dimensions as in the trace.

    Args:
        tensor: checked.
        traced: how many it had.
        what: the name of the tensor, for the message.
        where: the module whose code follows that, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it has more or fewer.
    """
    if applies and tensor.dim() != traced:
        raise FxpruneError(
            f"`{what}.dim()` is {tensor.dim()} here, and was {traced} when the model was traced. The code of {where} "
            "follows it, and the graph has what the code did then. Call the model with inputs of as many dimensions, "
            "or trace or prune it with an example of these"
        )


@fx.node.has_side_effect
def check_grad_mode(traced: bool, what: str, where: str, applies: bool = True) -> None:
    """Check that gradients are computed, or not, as the model was told in the trace.

    Args:
        traced: as it was.
        what: the function that tells it, for the message.
        where: the module whose code follows it, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it is otherwise.
    """
    if applies and torch.is_grad_enabled() != traced:
        raise FxpruneError(
            f"`{what}` is {not traced} here, and was {traced} when the model was traced. The code of "
            f"{where} follows it in a branch. Train with gradients, and in eval call the model under `torch.no_grad()`"
        )


@fx.node.has_side_effect
def check_state(name: str, traced: Any, what: str, where: str, applies: bool = True) -> None:
    """Check that a state of torch, as the inference mode, is as in the trace; code that is compiled cannot ask.

    Args:
        name: of the function of torch that tells it.
        traced: what it told.
        what: how it is read, for the message.
        where: the module whose code follows it, for the message.
        applies: whether the model is in the mode in which the code follows it.

    Raises:
        FxpruneError: it is otherwise.
    """
    if not torch.compiler.is_compiling():
        check_setting(getattr(torch, name)(), traced, what, where, applies)


# --- arguments --------------------------------------------------------------------------------------------------------

# What a graph can hold and compare.
_COMPARED = (bool, int, float, complex, str, enum.Enum, torch.dtype, torch.device, torch.memory_format, torch.layout)


def expected_of(value: Any, *, is_computed_with: bool) -> Expected:
    """What a graph has to expect of an argument that was `value` in the trace, for `check_argument`.

    Args:
        value: the argument.
        is_computed_with: whether the graph computes with it; a number may then be any other.
    """
    if isinstance(value, Tensor):
        return ("tensor",)
    if isinstance(value, (tuple, list)):
        # Only numbers beside tensors are inputs of the graph.
        traced = is_computed_with and type(value) in (tuple, list) and trees.has_tensor(value)
        return ("items", [expected_of(item, is_computed_with=traced) for item in value])
    if isinstance(value, dict):
        return ("entries", [(key, expected_of(item, is_computed_with=False)) for key, item in value.items()])
    if value is None:
        return ("value", None)
    if is_computed_with and type(value) in (int, float):
        return ("number",)
    return ("value", value) if isinstance(value, _COMPARED) else ("type", type(value).__qualname__)


@fx.node.has_side_effect
def check_argument(value: Any, expected: Expected, name: str, where: str) -> None:
    """Check that an argument is as in the trace, so far as the graph was made for it.

    Args:
        value: the argument.
        expected: of `expected_of`.
        name: of the argument, for the message.
        where: whose code follows it, for the message.

    Raises:
        FxpruneError: it is not.
    """
    found = _difference(value, expected, name)
    if found is not None:
        place, now, then = found
        raise FxpruneError(
            f"argument `{place}` is {now} here, and was {then} when the model was traced. The code of {where} can "
            "follow it, and the graph has what the code did then. Call the model with the same, or trace or prune it "
            "with an example that has this one"
        )


def _difference(value: Any, expected: Expected, name: str) -> tuple[str, str, str] | None:
    """The first part of an argument that is not as expected: its name, what it is, and what it was."""
    kind = expected[0]
    if kind == "tensor":
        return None if isinstance(value, Tensor) else (name, _shown(value), "a tensor")
    if kind == "number":
        number = isinstance(value, (int, float, torch.SymInt, torch.SymFloat)) and not isinstance(value, bool)
        return None if number else (name, _shown(value), "a number")
    if kind == "items":
        items = expected[1]
        if not isinstance(value, (tuple, list)) or len(value) != len(items):
            return name, _shown(value), f"a sequence of {len(items)}"
        for k in range(len(items)):
            found = _difference(value[k], items[k], f"{name}[{k}]")
            if found is not None:
                return found
        return None
    if kind in ("entries", "ordered"):
        keys = [key for key, _ in expected[1]]
        # An `fx.Interpreter` gives a list of none for **keywords.
        given = value if isinstance(value, dict) else {} if not value and isinstance(value, list) else None
        if given is None or {*given} != {*keys} or (kind == "ordered" and [*given] != keys):
            return name, _shown(value if given is None else list(given)), _shown(keys)
        for key, part in expected[1]:
            found = _difference(given[key], part, f"{name}[{key!r}]")
            if found is not None:
                return found
        return None
    if kind == "type":
        now = type(value).__qualname__
        return None if now == expected[1] else (name, f"a {now}", f"a {expected[1]}")
    then = expected[1]
    if isinstance(value, TracedNumber):
        # A traced graph that is traced again.
        value = value.as_traced()
    # Not a number is not equal to itself.
    same = value is then or (type(value) is type(then) and (value == then or (value != value and then != then)))
    return None if same else (name, _shown(value), repr(then))


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return "a tensor"
    if isinstance(value, (tuple, list)) and not all(isinstance(item, str) for item in value):
        return f"a sequence of {len(value)}"
    return repr(value) if value is None or isinstance(value, (*_COMPARED, list)) else f"a {type(value).__qualname__}"


def _item(size: Tensor) -> Any:
    """The number in a tensor; sizes are tensors while torch.jit traces, and it warns where one becomes a number."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return size.item()
