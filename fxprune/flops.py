"""FLOPs as fvcore counts them.

The convention is fvcore's, in eval mode, and one multiply-add is 1. Convolutions, linear layers and matrix products
count their multiply-adds: a product ``a @ b`` counts ``prod(a.shape) * b.shape[-1]``. Norms count operations per
element: batch norm 2, layer, group and instance norm 5, each 1 less without affine parameters. Nearest upsampling
counts 1 and bilinear upsampling 4 per output element, adaptive average pooling 1 per input element. Everything else is
free: activations, additions, softmax, other pooling and upsampling, RMS norm, lookups in tables.

fxprune departs from fvcore where fvcore has no number, or none that a formula could give:

- *Scaled dot-product attention* counts as the two matrix products that it computes. fvcore gives it 0.
- *Products whose second operand is a vector*, and norms of more than five dimensions, follow the same formulas. fvcore
  stops with an error.
- *Recurrent layers* count the products of each step with all their matrices, as fvcore counts cells: for a packed
  sequence the steps that there are. fvcore gives layers 0.
- *Mixtures of experts* that multiply by `grouped_mm` count the product of each token with the matrix of one expert.
- *mv, dot, vdot, addmv, addbmm, tensordot and bilinear* count as the products that they are. fvcore gives them 0.
- *baddbmm, the string-padded and the deformable convolution* count as the product and the convolutions that they are.
- *flex_attention* counts as scaled dot-product attention without its mask.
- *einsum* of two operands counts the product of the sizes of all its distinct letters. Longer ones are contracted from
  left to right, as torch does. fvcore halves numpy's estimate, which rounds, and which differs for sums within an
  operand.
- A fused ``nn.MultiheadAttention`` counts as the unfused one.

What neither counts although it computes products, such as Fourier transforms, matrix inverses or foreign operators with
weights, is named in the remarks of the channel graph and in the report ("not counted").

The rules use the same formulas of products (`matmul_factors` and those after it), so that the polynomial of a model
agrees with the count of the pruned model. The tests compare both with numbers that were worked out by hand.
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

from fxprune.channels import Dim, size_of
from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.calls import Call, given_call
from fxprune.running.copies import parameters_and_buffers, with_zeros
from fxprune.running.eager import running_eagerly, source_of_scripted
from fxprune.running.eval_mode import in_eval, preserve_weights
from fxprune.running.flex import flex_attention_traced

with warnings.catch_warnings():
    # fvcore scripts parts of itself when it is imported, which torch has deprecated.
    warnings.filterwarnings("ignore", ".*torch.jit", category=FutureWarning)
    warnings.filterwarnings("ignore", ".*torch.jit", category=DeprecationWarning)
    from fvcore.nn import FlopCountAnalysis

__all__ = [
    "attention_factors",
    "bilinear_factors",
    "count_flops",
    "einsum_factors",
    "einsum_letters",
    "grouped_factors",
    "matmul_factors",
    "recurrent_factors",
    "tensordot_factors",
]

Inputs: TypeAlias = Tensor | Sequence[Any] | Mapping[str, Any]
# Each product is of dimensions: their sizes, or the ids of those with channels.
Products: TypeAlias = list[tuple[Dim, ...]]
# What fvcore calls with the inputs and outputs of an op in the graph of torch.jit.
Handle: TypeAlias = Callable[[list[Any], list[Any]], int]


def count_flops(model: nn.Module, example_inputs: Inputs | None = None) -> int:
    """FLOPs of one forward pass in eval mode, as fvcore counts them; `fxprune.flops` states the convention.

    Args:
        model: any module that can be run; it is not changed. What it has on the meta device counts as zeros.
        example_inputs: a tensor, a tuple of positional arguments or a dict of keyword arguments. The count is for their
            size and batch. Default: the standard input of a timm or torchvision model.

    Raises:
        FxpruneError: the model does not run on these inputs, or no inputs are known.

    Examples:
        >>> count_flops(nn.Linear(3, 2), torch.zeros(5, 3))
        30
    """
    args, kwargs = given_call(model, example_inputs)
    try:
        return _count(*_with_values(model, args, kwargs))
    except Exception as error:
        shapes = [tuple(tensor.shape) for tensor in trees.tensors((args, kwargs))]
        raise FxpruneError(
            f"cannot count the FLOPs of {type(model).__name__} on inputs of shapes {shapes}: "
            f"{type(error).__name__}: {error}"
        ) from error


def matmul_factors(left: Sequence[Dim], right: Sequence[Dim]) -> Products:
    """The products that `left @ right` costs: every element of `left` meets every column of `right`.

    Here and below the operands are given by their dimensions, sizes or ids. The FLOPs are the sum of the products.
    """
    return [(*left, right[-1]) if len(right) > 1 else tuple(left)]


def attention_factors(query: Sequence[Dim], key: Sequence[Dim], value: Sequence[Dim]) -> Products:
    """The products that scaled dot-product attention costs; the operands have dimensions (..., tokens, width)."""
    return [(*query, key[-2]), (*query[:-1], key[-2], value[-1])]


def grouped_factors(left: Sequence[Dim], right: Sequence[Dim]) -> Products:
    """The products that `grouped_mm` costs: rows of `left` meet one matrix of `right` each.

    Where both are matrices, so do groups of their inner dimension, and where both have three dimensions, it is `bmm`.
    """
    batch = left[:1] if len(left) == len(right) == 3 else ()
    return [(*batch, *left[-2:], right[-1])]


def recurrent_factors(positions: Sequence[Dim], weights: Sequence[Sequence[Dim]]) -> Products:
    """The products that a recurrent layer costs: each step of each sample meets all matrices."""
    return [(*positions, *weight) for weight in weights]


def bilinear_factors(left: Sequence[Dim], weight: Sequence[Dim]) -> Products:
    """The products that a bilinear layer costs."""
    return [(*left[:-1], *weight)]


def tensordot_factors(left: Sequence[Dim], right: Sequence[Dim], summed: Sequence[int]) -> Products:
    """The products that a tensordot costs; `summed` are the dimensions of `right` that are summed over."""
    gone = {d % len(right) for d in summed}
    return [(*left, *(dim for d, dim in enumerate(right) if d not in gone))]


def einsum_factors(equation: str, operands: Sequence[Sequence[Dim]]) -> Products:
    """The products that an einsum costs: one for each contraction, of all the dimensions that meet in it.

    Operands are contracted from left to right. An einsum of one operand costs nothing.
    """
    terms, result = einsum_letters(equation, list(map(len, operands)))
    dims: dict[str, Dim] = {}
    for letters, operand in zip(terms, operands, strict=True):
        for letter, dim in zip(letters, operand, strict=True):
            if size_of(dims.get(letter, 1)) == 1:
                dims[letter] = dim
    products: Products = []
    running = set(terms[0])
    for position, term in enumerate(terms[1:], start=1):
        met = running.union(term)
        products.append(tuple(dims[letter] for letter in sorted(met)))
        running = met & set(result).union(*terms[position + 1 :])
    return products


def einsum_letters(equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """The letters of the operands and of the result of an einsum, one for each dimension.

    The dimensions of an ellipsis are called ".1", ".2" and so on from the last to the first, as they broadcast.

    Args:
        equation: with or without the result.
        ranks: the number of dimensions of each operand.

    Examples:
        >>> einsum_letters("...ij,jk", [3, 2])
        ([['.1', 'i', 'j'], ['j', 'k']], ['.1', 'i', 'k'])
    """
    left, arrow, right = equation.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(letter for letter in set(left) - {",", "."} if left.count(letter) == 1)
        right = "".join(["..." if "..." in left else "", *once])
    operands = [_letters(operand, rank) for operand, rank in zip(left.split(","), ranks, strict=True)]
    widest = max(sum(letter.startswith(".") for letter in letters) for letters in operands)
    return operands, _letters(right, widest + len(right.replace("...", "")))


def _letters(operand: str, rank: int) -> list[str]:
    before, dots, after = operand.partition("...")
    covered = rank - len(before) - len(after) if dots else 0
    return [*before, *(f".{k}" for k in range(covered, 0, -1)), *after]


class _Call(nn.Module):
    """A call of a model as torch.jit's tracer wants it: tensors in, tensors out.

    The model is not a submodule, since fvcore counts by module and reads "/" in a module's name as a path. Its tensors
    are buffers, since the tracer has to know them.
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
            # The tracer turns sizes into tensors, and models do with numbers what tensors do not support.
            with _sizes_as_numbers(), flex_attention_traced():
                return total()


def _with_values(
    model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """The call with zeros for what is on the meta device, where the jit's tracer misses products."""
    found = (*trees.tensors((args, kwargs)), *parameters_and_buffers(model))
    if not any(tensor.is_meta for tensor in found):
        return model, args, kwargs
    device = next((tensor.device for tensor in found if not tensor.is_meta), torch.device("cpu"))

    def filled(tensor: Tensor) -> Tensor:
        return tensor.new_zeros(tensor.shape, device=device) if tensor.is_meta else tensor

    return with_zeros(model, device), *trees.map_tensors(filled, (args, kwargs))


@contextmanager
def _as_is(model: nn.Module) -> Iterator[None]:
    """The model in eval mode, with unfused attention, and without checkpointing, compiled or scripted code."""
    fast_path, check = torch.backends.mha.get_fastpath_enabled(), torch._check_with
    torch.backends.mha.set_fastpath_enabled(False)
    # Zeros, which stand for values that are not there, may not be what a model checks for.
    torch._check_with = lambda *_, **__: None
    try:
        with running_eagerly(), _unscripted(), in_eval(model), preserve_weights(model):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._check_with = check


@contextmanager
def _unscripted() -> Iterator[None]:
    """Run scripted functions as Python, since torch.jit's tracer does not see inside of them; script no new ones."""
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
    """Do not trace what models read of a tensor's size."""
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


def _sum(products: Products) -> int:
    return sum(math.prod(map(size_of, product)) for product in products)


def _attention_handle(inputs: list[Any], outputs: list[Any]) -> int:
    return _sum(attention_factors(*(_shape(value) for value in inputs[:3])))


def _matmul_handle(first: int) -> Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        return _sum(matmul_factors(_shape(inputs[first]), _shape(inputs[first + 1])))

    return count


def _einsum_handle(inputs: list[Any], outputs: list[Any]) -> int:
    shapes = [_shape(value) for value in inputs[1].node().inputs()]
    return _sum(einsum_factors(inputs[0].toIValue(), shapes))


def _grouped_handle(inputs: list[Any], outputs: list[Any]) -> int:
    return _sum(grouped_factors(_shape(inputs[0]), _shape(inputs[1])))


def _recurrent_handle(inputs: list[Any], outputs: list[Any]) -> int:
    # The weights are the last of the lists; before them may be the states, and the sizes of packed batches.
    lists = [value for value in inputs if value.node().kind() == "prim::ListConstruct"]
    weights = [shape for shape in map(_shape, lists[-1].node().inputs()) if len(shape) == 2]
    return _sum(recurrent_factors(_shape(inputs[0])[:-1], weights))


def _bilinear_handle(inputs: list[Any], outputs: list[Any]) -> int:
    return _sum(bilinear_factors(_shape(inputs[0]), _shape(inputs[2])))


def _tensordot_handle(inputs: list[Any], outputs: list[Any]) -> int:
    summed = [dim.toIValue() for dim in inputs[3].node().inputs()]
    return _sum(tensordot_factors(_shape(inputs[0]), _shape(inputs[1]), summed))


def _norm_handle(weight: int) -> Handle:
    def count(inputs: list[Any], outputs: list[Any]) -> int:
        return math.prod(_shape(inputs[0])) * (5 if inputs[weight].isCompleteTensor() else 4)

    return count


def _batch_norm_handle(inputs: list[Any], outputs: list[Any]) -> int:
    affine = bool(inputs[1].isCompleteTensor())
    # Without running statistics it computes its own, in eval too, and costs as much as the other norms.
    on_batch = bool(inputs[5].toIValue())
    return math.prod(_shape(inputs[0])) * (1 + affine + 3 * on_batch)


def _convolution_handle(inputs: list[Any], outputs: list[Any]) -> int:
    output = _shape(outputs[0])
    return output[0] * math.prod(_shape(inputs[1])) * math.prod(output[2:])


# Only the ops that depart from fvcore (see the head of this module); all others have fvcore's own handles.
_HANDLES: dict[str, Handle] = {
    "aten::scaled_dot_product_attention": _attention_handle,
    "aten::matmul": _matmul_handle(0),
    **dict.fromkeys(("aten::mv", "aten::dot", "aten::vdot"), _matmul_handle(0)),
    **dict.fromkeys(("aten::addmv", "aten::addbmm", "aten::baddbmm"), _matmul_handle(1)),
    **dict.fromkeys(("aten::_grouped_mm", "transformers::grouped_mm_fallback"), _grouped_handle),
    **dict.fromkeys(("aten::lstm", "aten::gru", "aten::rnn_tanh", "aten::rnn_relu"), _recurrent_handle),
    "aten::bilinear": _bilinear_handle,
    "aten::tensordot": _tensordot_handle,
    "aten::einsum": _einsum_handle,
    "aten::batch_norm": _batch_norm_handle,
    "aten::group_norm": _norm_handle(2),
    "aten::layer_norm": _norm_handle(2),
    "aten::instance_norm": _norm_handle(1),
    "aten::_convolution_mode": _convolution_handle,
    "torchvision::deform_conv2d": _convolution_handle,
}
