"""What a model costs: FLOPs as fvcore counts them.

The convention is fvcore's, in eval mode: a multiply-add is 1. Convolutions, linear layers and matrix products count
theirs; a product ``a @ b`` counts ``prod(a.shape) * b.shape[-1]``. Norms count operations an element: batch norm 2;
layer, group and instance norm 5; each 1 less without affine parameters. Nearest upsampling counts 1 an output element,
bilinear 4, adaptive average pooling 1 an input element. Everything else is free: activations, additions, softmax, other
pooling and upsampling, RMS norm, recurrent layers.

fxprune departs from fvcore only where fvcore has no number, or none that a formula could give:

- *Scaled dot-product attention* counts as the two matrix products that it computes. fvcore gives it 0.
- *Products whose second operand is a vector*, and norms of more than five dimensions: fvcore stops with an error; here
  the same formula goes on.
- *baddbmm, the string-padded and the deformable convolution* count as the product and the convolutions that they are.
- *einsum* of two operands counts the product of the sizes of all its distinct letters; longer ones are contracted from
  left to right, as torch does. fvcore reads and halves numpy's estimate, which rounds, and which
  for sums within an operand is something else.
- A fused ``nn.MultiheadAttention`` counts as the unfused one.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FunctionType
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.calls import Call, given_call
from fxprune.running.eager import running_eagerly, source_of_scripted
from fxprune.running.eval_mode import in_eval, preserve_weights

with warnings.catch_warnings():
    # It scripts parts of itself when it is imported, which torch has deprecated.
    warnings.filterwarnings("ignore", ".*torch.jit", category=FutureWarning)
    warnings.filterwarnings("ignore", ".*torch.jit", category=DeprecationWarning)
    from fvcore.nn import FlopCountAnalysis

__all__ = ["attention_flops", "count_flops", "einsum_flops", "matmul_flops"]

Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
Shape: TypeAlias = Sequence[int]


def count_flops(model: nn.Module, example_inputs: Inputs | None = None) -> int:
    """FLOPs of one forward pass in eval mode, as fvcore counts them (see this module's head for the convention).

    Args:
        model: any module that can be run; it is not changed.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments; the count is for this
            size and batch. Default: the model's own standard input, where it is known (timm, torchvision).

    Raises:
        FxpruneError: the model does not run on these inputs, or no inputs are known.

    Examples:
        >>> count_flops(nn.Linear(3, 2), torch.zeros(5, 3))
        30
    """
    args, kwargs = given_call(model, example_inputs)
    try:
        return _count(model, args, kwargs)
    except Exception as error:
        shapes = [tuple(tensor.shape) for tensor in trees.tensors((args, kwargs))]
        raise FxpruneError(
            f"cannot count the FLOPs of {type(model).__name__} on inputs of shapes {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error


def attention_flops(query: Shape, key: Shape, value: Shape) -> int:
    """FLOPs of scaled dot-product attention from the shapes (..., tokens, width) of its operands."""
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1]


def matmul_flops(left: Shape, right: Shape) -> int:
    """FLOPs of ``left @ right``: every element of ``left`` meets every column of ``right``."""
    return math.prod(left) * (right[-1] if len(right) > 1 else 1)


def einsum_flops(equation: str, shapes: Sequence[Shape]) -> int:
    """FLOPs of an einsum: the product of the sizes of all letters that meet, summed over contractions left to right.

    Of one operand it is 0: nothing is multiplied.

    Examples:
        >>> einsum_flops("bnc,bmc->bnm", [(2, 5, 3), (2, 7, 3)])
        210
    """
    left, arrow, result = equation.replace(" ", "").partition("->")
    operands = left.split(",")
    sizes: dict[str, int] = {}
    terms: list[list[str]] = []
    for operand, shape in zip(operands, shapes, strict=True):
        terms.append(_letters(operand, len(shape)))
        for letter, size in zip(terms[-1], shape, strict=True):
            sizes[letter] = max(size, sizes.get(letter, 1))
    if arrow:
        wide = max((letter for letter in sizes if letter.startswith(".")), key=lambda dots: int(dots[1:]), default="")
        dots = {f".{i}" for i in range(1, int(wide[1:]) + 1)} if wide else set()
        wanted = set(result.replace("...", "")) | (dots if "..." in result else set())
    else:
        flat = [letter for term in terms for letter in set(term)]
        wanted = {letter for letter in flat if flat.count(letter) == 1 or letter.startswith(".")}
    total = 0
    running = set(terms[0])
    for position, term in enumerate(terms[1:], start=1):
        met = running | set(term)
        total += math.prod(sizes[letter] for letter in met)
        later = wanted.union(*terms[position + 1 :])
        running = met & later
    return total


def _letters(operand: str, rank: int) -> list[str]:
    """The names of an operand's dimensions; those of an ellipsis are numbered from the right, as they broadcast."""
    before, dots, after = operand.partition("...")
    covered = rank - len(before) - len(after)
    return [*before, *(f".{i}" for i in range(covered, 0, -1) if dots), *after]


class _Call(nn.Module):
    """A model's call as torch.jit's tracer wants it: tensors in, tensors out.

    The model is no submodule of it, for fvcore counts by module and reads "/" in a module's name as a path. Its tensors
    are, for the tracer has to know them.
    """

    def __init__(self, model: nn.Module, arguments: Call) -> None:
        super().__init__()
        self.call = model.__call__
        self.arguments = arguments
        for number, tensor in enumerate((*model.parameters(), *model.buffers())):
            self.register_buffer(str(number), tensor)

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        waiting = iter(tensors)
        args, kwargs = trees.map_tensors(lambda _: next(waiting), self.arguments)
        return tuple(trees.tensors(self.call(*args, **kwargs)))


def _count(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    tensors = tuple(trees.tensors((args, kwargs)))

    def total() -> int:
        analysis = FlopCountAnalysis(_Call(model, (args, kwargs)), tensors).set_op_handle(**_HANDLES)
        analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False)
        return int(analysis.total())

    with _as_is(model), warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            return total()
        except Exception:
            # To the tracer, sizes are tensors, which much that models do with numbers does not take.
            with _sizes_as_numbers():
                return total()


@contextmanager
def _as_is(model: nn.Module) -> Iterator[None]:
    """In eval, with unfused attention, without checkpoints, compiled or scripted code."""
    fast_path = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with running_eagerly(), _unscripted(), in_eval(model), preserve_weights(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)


@contextmanager
def _unscripted() -> Iterator[None]:
    """Scripted functions are run as Python, also those that are scripted when torch.jit traces: it sees none inside."""
    kind: Any = torch._C.ScriptFunction
    call = kind.__call__
    scripts = [(module, module.script) for module in (torch.jit, torch.jit._trace)]

    def run(function: Any, *args: Any, **kwargs: Any) -> Any:
        source = source_of_scripted(function)
        return call(function, *args, **kwargs) if source is None else source(*args, **kwargs)

    try:
        if "__call__" in vars(kind):
            kind.__call__ = run
        for module, script in scripts:
            module.script = lambda made, *args, script=script, **named: (  # type: ignore[attr-defined]
                made if isinstance(made, FunctionType) else script(made, *args, **named)
            )
        yield
    finally:
        if "__call__" in vars(kind):
            kind.__call__ = call
        for module, script in scripts:
            module.script = script  # type: ignore[attr-defined]


@contextmanager
def _sizes_as_numbers() -> Iterator[None]:
    """What models read of a tensor's size is not traced."""
    readers = {name: vars(torch._C.TensorBase)[name].__get__ for name in ("shape", "size", "numel", "nelement")}

    def untraced(read: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        state = torch._C._get_tracing_state()
        torch._C._set_tracing_state(None)  # type: ignore[attr-defined]
        try:
            return read(*args, **kwargs)
        finally:
            torch._C._set_tracing_state(state)  # type: ignore[attr-defined]

    def method(name: str) -> Any:
        return lambda tensor, *args, **kwargs: untraced(readers[name](tensor), *args, **kwargs)

    try:
        for name in readers:
            read = property(lambda tensor: untraced(readers["shape"], tensor)) if name == "shape" else method(name)
            setattr(Tensor, name, read)
        yield
    finally:
        for name in readers:
            delattr(Tensor, name)


def _shape(value: Any) -> list[int]:
    sizes: list[int] | None = value.type().sizes() if value.isCompleteTensor() else None
    if sizes is None:
        raise ValueError(f"the size of {value.debugName()} is unknown")
    return sizes


def _attention_handle(inputs: list[Any], outputs: list[Any]) -> int:
    return attention_flops(*(_shape(value) for value in inputs[:3]))


def _matmul_handle(first: int) -> Callable[[list[Any], list[Any]], int]:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        return matmul_flops(_shape(inputs[first]), _shape(inputs[first + 1]))

    return count


def _einsum_handle(inputs: list[Any], outputs: list[Any]) -> int:
    return einsum_flops(inputs[0].toIValue(), [_shape(value) for value in inputs[1].node().inputs()])


def _norm_handle(weight: int) -> Callable[[list[Any], list[Any]], int]:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        return math.prod(_shape(inputs[0])) * (5 if inputs[weight].isCompleteTensor() else 4)

    return count


def _batch_norm_handle(inputs: list[Any], outputs: list[Any]) -> int:
    affine = bool(inputs[1].isCompleteTensor())
    # Without running statistics it computes its own, in eval too, and costs what the other norms cost.
    on_batch = bool(inputs[5].toIValue())
    return math.prod(_shape(inputs[0])) * (1 + affine + 3 * on_batch)


def _convolution_handle(inputs: list[Any], outputs: list[Any]) -> int:
    output = _shape(outputs[0])
    return output[0] * math.prod(_shape(inputs[1])) * math.prod(output[2:])


# Only what departs from fvcore (see the head of this module); for all other ops its own handles stand.
_HANDLES: dict[str, Callable[[list[Any], list[Any]], int]] = {
    "aten::scaled_dot_product_attention": _attention_handle,
    "aten::matmul": _matmul_handle(0),
    "aten::baddbmm": _matmul_handle(1),
    "aten::einsum": _einsum_handle,
    "aten::batch_norm": _batch_norm_handle,
    "aten::group_norm": _norm_handle(2),
    "aten::layer_norm": _norm_handle(2),
    "aten::instance_norm": _norm_handle(1),
    "aten::_convolution_mode": _convolution_handle,
    "torchvision::deform_conv2d": _convolution_handle,
}
