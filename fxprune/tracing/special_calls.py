"""Calls that are not simply recorded: they ask for sizes, types or values."""

from __future__ import annotations

import inspect
import itertools
import math
import operator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.ops import name_of_op
from fxprune.running.resizing import pooled_where_needed, resized_where_needed
from fxprune.tracing.context_calls import CONTEXT_CALLS
from fxprune.tracing.gradient_calls import GRADIENT_CALLS
from fxprune.tracing.graph_builder import Origin
from fxprune.tracing.limits import limit_of
from fxprune.tracing.recorder import Recorder, SpecialCall
from fxprune.tracing.repeated import Repeated
from fxprune.tracing.shapes import TracedSize
from fxprune.tracing.sizes import call_with_numbers, number_of_sizes
from fxprune.tracing.traced_module import DrawNumbers
from fxprune.tracing.user_code import asked_by_model

__all__ = ["SPECIAL_CALLS"]


def _shape(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    node = recorder.builder.node_of(tensor)
    shape = TracedSize(recorder.sizes.size(node, i, size) for i, size in enumerate(tensor.shape))
    shape.on_rank = lambda: recorder.note_rank(tensor)
    return shape


def _dim(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    node = recorder.builder.node_of(tensor)
    if name_of_op(node.target) == "squeeze" and len(node.all_input_nodes) == len(node.args) == 1:
        # Without dimensions, the sizes decide which ones are dropped.
        source: Any = node.args[0]
        shape = source.meta["value"].shape
        sizes = (recorder.sizes.size(source, d, size) for d, size in enumerate(shape))
        return call_with_numbers(number_of_sizes, tuple(sizes))
    recorder.note_rank(tensor)
    return func(tensor)


def _size(recorder: Recorder, func: Any, tensor: Tensor, dim: int | None = None) -> Any:
    shape = _shape(recorder, func, tensor)
    return shape if dim is None else shape[dim]


def _numel(recorder: Recorder, func: Any, tensor: Tensor) -> Any:
    recorder.note_rank(tensor)
    return recorder.sizes.numel(tensor)


def _nbytes(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    return _numel(recorder, func, tensor) * tensor.element_size()


def _is_same_size(recorder: Recorder, func: Any, tensor: Tensor, other: Tensor) -> bool:
    return bool(_shape(recorder, func, tensor) == _shape(recorder, func, other))


def _stride(recorder: Recorder, func: Any, tensor: Tensor, dim: int | None = None) -> Any:
    """The graph computes strides: they follow from sizes, and differ between devices. Torch itself reads layouts."""
    if not asked_by_model():
        return func(tensor) if dim is None else func(tensor, dim)
    if dim is None:
        recorder.note_rank(tensor)
        return tuple(_stride(recorder, func, tensor, d) for d in range(tensor.dim()))
    return _place(recorder, func, tensor, dim)


def _dim_order(recorder: Recorder, func: Any, tensor: Tensor, **options: Any) -> Any:
    recorder.note_rank(tensor)
    order = func(tensor, **options)
    strides = [_place(recorder, Tensor.stride, tensor, d) for d in order]
    # Comparisons of traced numbers are checked in the graph.
    for outer, inner in itertools.pairwise(strides):
        outer.__ge__(inner)
    return order


def _place(recorder: Recorder, func: Any, tensor: Tensor, *dim: int) -> Any:
    value, node = func(tensor, *dim), recorder.builder.node_of(tensor)
    read = recorder.builder.create_node("call_method", func.__name__, (node, *dim), {}, value, Origin.PARAMETERS)
    return recorder.sizes.number_of(read, value)


def _address(recorder: Recorder, func: Any, tensor: Tensor) -> Any:
    if asked_by_model():
        raise FxpruneError(
            f"`{func.__name__}` asks where a tensor lies in memory, which is another place in each call: "
            "use the tensor itself, or its sizes and strides"
        )
    return func(tensor)


def _unrecorded(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _dtype(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    dtype = func(tensor)
    recorder.lowering.note_dtype(dtype, tensor)
    recorder.facts.note_dtype(dtype, tensor)
    return dtype


def _limit(recorder: Recorder, func: Any, tensor: Tensor, name: str) -> Any:
    return recorder.limit(recorder.builder.node_of(tensor), name, func(tensor, name))


def _fact(name: str) -> SpecialCall:
    return lambda recorder, func, tensor, *_: recorder.facts.answer(name, tensor, func(tensor))


def _is_kind(kind: str) -> SpecialCall:
    return lambda recorder, func, tensor: recorder.facts.is_kind(tensor, kind)


def _layout(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> torch.layout:
    return torch.strided if recorder.facts.answer("layout", tensor, True) else torch.sparse_coo


def _is_on(kind: str) -> SpecialCall:
    def is_on(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> bool:
        recorder.facts.note_device(tensor, compared=True)
        return recorder.device.type == kind

    return is_on


def _grad_fn(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    return object() if recorder.facts.answer("grad_fn", tensor, False) else None


def _is_contiguous(recorder: Recorder, func: Any, tensor: Tensor, *args: Any, **kwargs: Any) -> bool:
    named = dict(zip(["memory_format"], args, strict=False)) | kwargs
    return recorder.facts.answer("is_contiguous", tensor, func(tensor, **named), **named)


def _device(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    # A device object of its own for each reading: its identity tells which tensor it was read from.
    device = torch.device(recorder.device.type, recorder.device.index)
    builder = recorder.builder
    builder.bind(device, builder.create_part(getattr, builder.node_of(tensor), "device", device))
    recorder.regions.note_device(device)
    recorder.facts.note_device(tensor)
    return device


class _TypeName(str):
    """The name of the type of a tensor and of its device, as "torch.FloatTensor"; it knows the tensor."""

    tensor: Tensor


def _type(recorder: Recorder, func: Any, tensor: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`x.type()`, and conversions to what it gives, or to another name or type of tensors."""
    if dtype is None:
        device = recorder.device.type
        name = _TypeName(func(tensor).replace("meta.", "" if device == "cpu" else f"{device}."))
        name.tensor = tensor
        return name
    if isinstance(dtype, _TypeName):
        return recorder.call(Tensor.type_as, (tensor, dtype.tensor), {})
    kind = operator.attrgetter(dtype.removeprefix("torch."))(torch) if isinstance(dtype, str) else dtype
    return recorder.call(func, (tensor, getattr(kind, "dtype", kind), *args), kwargs)


def _new(recorder: Recorder, func: Any, tensor: Tensor, *given: Any, **options: Any) -> Any:
    """`x.new(...)`, which takes sizes or entries."""
    first = given[0] if given else options.pop("size", 0)
    if isinstance(first, Tensor) or "other" in options or "data" in options:
        return recorder.call(func, (tensor, *given), options)
    if isinstance(first, (tuple, list)) and not isinstance(first, torch.Size):
        return recorder.call(Tensor.new_tensor, (tensor, first), options)
    return recorder.call(Tensor.new_empty, (tensor, *(given or (first,))), options)


def _tensor(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    """A tensor of the entries of a list, which a size may repeat."""
    data = args[0] if args else None
    if isinstance(data, Repeated) and all(isinstance(item, (int, float)) for item in data.items):
        with recorder:
            return func(data.items, *args[1:], **kwargs).repeat(data.number)
    if isinstance(data, Tensor) and not kwargs.get("requires_grad"):
        node = recorder.builder.find(data)
        if node is not None and isinstance(recorder.builder.added_modules.get(str(node.target)), DrawNumbers):
            # An array in the model's code, of which it may make a tensor; of a tensor, torch warns.
            return recorder.call(torch.as_tensor, args, kwargs)
    return recorder.call(func, args, kwargs)


def _set_data(recorder: Recorder, func: Any, tensor: Tensor, value: Tensor) -> None:
    """`weight.data = value`, as layers do that keep their norm small: writes into the tensor, hidden from autograd."""
    if value.shape != tensor.shape:
        raise FxpruneError(
            f"forward gives a tensor of shape {tuple(tensor.shape)} a `.data` of shape {tuple(value.shape)}, "
            "which no graph can do: do it before the model is traced"
        )
    recorder.call(Tensor.copy_, (recorder.call(_getter("data"), (tensor,), {}), value), {})


def _detach(recorder: Recorder, func: Any, tensor: Tensor) -> Any:
    """Where an autograd.Function is recorded as what it computes, autograd is to see all of it."""
    return tensor if recorder.regions.inlined else recorder.call(func, (tensor,), {})


def _set_grad_enabled(recorder: Recorder, func: Any, enabled: bool) -> None:
    recorder.regions.set_grad(enabled, recorder.facts.told_grad_mode)


def _answer(recorder: Recorder, func: Any, tensor: Tensor, *args: Any) -> Any:
    return recorder.values.answer(func, tensor, *args)


def _getitem(recorder: Recorder, func: Any, tensor: Tensor, index: Any) -> Any:
    """A mask that is the same for all inputs becomes the indices where it is true, whose number is known."""
    given = index if isinstance(index, tuple) else (index,)
    with recorder:
        entries = [entry for given_entry in given for entry in _positions(recorder, given_entry)]
    return recorder.call(func, (tensor, entries[0] if len(entries) == 1 and given is not index else tuple(entries)), {})


def _positions(recorder: Recorder, entry: Any) -> tuple[Any, ...]:
    if isinstance(entry, list) and entry and all(type(item) is bool for item in entry):
        return ([position for position, item in enumerate(entry) if item],)
    if isinstance(entry, Tensor) and entry.dtype is torch.bool and recorder.values.is_known(entry) and entry.dim():
        return entry.nonzero(as_tuple=True)
    return entry.nonzero() if isinstance(entry, np.ndarray) and entry.dtype == bool else (entry,)


def _inline_attention(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Record what `multi_head_attention_forward` does, not its call; the call of dropout is there in eval, too."""
    given = inspect.signature(func).bind(*args, **kwargs).arguments
    training, given["training"] = given.get("training", True), True
    namespace = func.__globals__
    before = {name: namespace[name] for name in ("has_torch_function", "dropout", "scaled_dot_product_attention")}

    def dropout(weights: Tensor, p: float) -> Any:
        with torch._C.DisableTorchFunction():
            return recorder.call(before["dropout"], (weights,), {"p": p, "training": training})

    def attention(query: Any, key: Any, value: Any, mask: Any, dropout_p: float, is_causal: bool) -> Any:
        p = dropout_p if training else 0.0
        return before["scaled_dot_product_attention"](query, key, value, mask, p, is_causal)

    try:
        namespace.update(has_torch_function=lambda _: False, dropout=dropout, scaled_dot_product_attention=attention)
        with recorder:
            return func(**given)
    finally:
        namespace.update(before)


def _where(recorder: Recorder, func: Any, *args: Any, **named: Any) -> Any:
    """Of a condition alone, it gives places, and is no choice between two tensors."""
    if len(args) + len(named) == 1:
        return recorder.call(Tensor.nonzero, (*args, *named.values()), {"as_tuple": True})
    return recorder.call(func, args, named)


def _interpolate(recorder: Recorder, func: Any, *args: Any, **options: Any) -> Any:
    """A branch for other sizes may resize, to the size that it has, what the branch for the example does not."""
    given = {**dict(zip(("input", "size"), args, strict=False)), **options}
    if not recorder.sizes.resizes or len(args) > 2:
        return recorder.call(func, args, options)
    image, size = given.pop("input"), given.pop("size", None)
    if given.pop("recompute_scale_factor", None) and given.get("scale_factor") is not None:
        # Then the factor gives the size, and nothing else.
        factor = given.pop("scale_factor")
        factors = factor if isinstance(factor, (tuple, list)) else [factor] * (image.ndim - 2)
        sizes = _shape(recorder, func, image)[2:]
        size = [call_with_numbers(math.floor, (n * by,)) for n, by in zip(sizes, factors, strict=True)]
    return (
        recorder.call(func, args, options)
        if size is None
        else recorder.call(resized_where_needed, (image, size), given)
    )


def _pool(recorder: Recorder, func: Any, image: Tensor, *size: Any, **options: Any) -> Any:
    """As for `interpolate`: to pool to the size that is there costs time and changes nothing."""
    return recorder.call(pooled_where_needed if recorder.sizes.resizes else func, (image, *size), options)


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


SPECIAL_CALLS: dict[Any, SpecialCall] = {
    **CONTEXT_CALLS, **GRADIENT_CALLS,
    _getter("shape"): _shape, Tensor.size: _size,
    **dict.fromkeys([_getter("ndim"), Tensor.dim, Tensor.ndimension], _dim),
    **dict.fromkeys([Tensor.numel, Tensor.nelement, torch.numel], _numel),
    _getter("nbytes"): _nbytes, **dict.fromkeys([Tensor.is_same_size, torch.is_same_size], _is_same_size),
    Tensor.stride: _stride, Tensor.storage_offset: _place, Tensor.dim_order: _dim_order,
    **dict.fromkeys([Tensor.data_ptr, Tensor.storage, Tensor.untyped_storage], _address),
    _getter("dtype"): _dtype, _getter("device"): _device, limit_of: _limit,
    **{_getter(name): _fact(name) for name in ("requires_grad", "is_leaf", "is_sparse", "is_nested")},
    _getter("grad_fn"): _grad_fn, _getter("layout"): _layout,
    **{_getter(f"is_{kind}"): _is_on(kind) for kind in ("cpu", "cuda", "mps")},
    Tensor.is_contiguous: _is_contiguous,
    torch._C._set_grad_enabled: _set_grad_enabled,
    vars(torch._C.TensorBase)["data"].__set__: _set_data,
    nn.functional.multi_head_attention_forward: _inline_attention, Tensor.__getitem__: _getitem,
    **dict.fromkeys([torch.tensor, torch.as_tensor], _tensor),
    torch.where: _where, nn.functional.interpolate: _interpolate, nn.functional.adaptive_avg_pool2d: _pool,
    Tensor.detach: _detach, Tensor.new: _new, Tensor.type: _type,
    **dict.fromkeys([_getter(name) for name in (
        "is_meta", "is_quantized", "itemsize", "_version",
    )], _unrecorded),
    **dict.fromkeys([Tensor.is_floating_point, torch.is_floating_point], _is_kind("is_floating_point")),
    **dict.fromkeys([Tensor.is_complex, torch.is_complex], _is_kind("is_complex")),
    **dict.fromkeys([
        Tensor.__bool__, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist, Tensor.numpy,
        torch.is_nonzero, Tensor.__contains__,
    ], _answer),
}  # fmt: skip
