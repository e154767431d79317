"""Calls that are not simply recorded: they ask for sizes, types or values."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.tracing.recording import Recorder
from fxprune.tracing.sizes import TracedSize
from fxprune.tracing.user_code import user_frame

__all__ = ["SPECIAL_CALLS"]


def _shape(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    node = recorder.node_of(tensor)
    return TracedSize(recorder.size(node, i, size) for i, size in enumerate(tensor.shape))


def _size(recorder: Recorder, func: Any, tensor: Tensor, dim: int | None = None) -> Any:
    shape = _shape(recorder, lambda t: t.shape, tensor)
    return shape if dim is None else shape[dim]


def _numel(recorder: Recorder, func: Any, tensor: Tensor) -> Any:
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    return recorder.number_of_elements(tensor)


def _as_is(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    return func(*args, **kwargs)


def _dtype(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    dtype = func(tensor)
    if not recorder.running_leaf and recorder.active:
        frame = user_frame()
        if frame is not None:
            recorder.dtypes[dtype] = (frame.f_code, recorder.node_of(tensor))
    return dtype


def _device(recorder: Recorder, func: Any, tensor: Tensor, *_: Any) -> Any:
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    # A device object of its own for each reading: its identity tells which tensor it was read from.
    device = torch.device(recorder.device.type, recorder.device.index)
    node = recorder.node_of(tensor)
    recorder.known[id(device)] = (device, node)
    part: fx.Node = recorder.part(getattr, node, "device", device)
    recorder.known[id(device)] = (device, part)
    return device


class _TypeName(str):
    """The name of the type of a tensor and of its device, as "torch.FloatTensor"; it knows the tensor."""

    tensor: Tensor


def _type(recorder: Recorder, func: Any, tensor: Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
    """`x.type()`, and conversions to what it gives, or to another name or type of tensors."""
    if recorder.running_leaf or not recorder.active:
        return func(tensor, dtype, *args, **kwargs)
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
    """`x.new(...)`: what it is given are sizes, or entries."""
    if recorder.running_leaf or not recorder.active:
        return func(tensor, *given, **options)
    first = given[0] if given else options.pop("size", 0)
    if isinstance(first, Tensor) or "other" in options or "data" in options:
        return recorder.call(func, (tensor, *given), options)
    if isinstance(first, (tuple, list)) and not isinstance(first, torch.Size):
        return recorder.call(Tensor.new_tensor, (tensor, first), options)
    return recorder.call(Tensor.new_empty, (tensor, *(given or (first,))), options)


def _set_data(recorder: Recorder, func: Any, tensor: Tensor, value: Tensor) -> None:
    """`weight.data = value`, as layers write that keep their norm small: into the tensor, past autograd."""
    if recorder.running_leaf or not recorder.active:
        func(tensor, value)
        return
    if value.shape != tensor.shape:
        raise FxpruneError(
            f"a tensor of shape {tuple(tensor.shape)} is given `.data` of shape {tuple(value.shape)} in forward, "
            "which no graph can do: do it before the model is traced"
        )
    recorder.call(Tensor.copy_, (recorder.call(_getter("data"), (tensor,), {}), value), {})


def _detach(recorder: Recorder, func: Any, tensor: Tensor) -> Any:
    """In what autograd is to record, there is nothing to detach from."""
    if recorder.running_leaf or not recorder.active:
        return func(tensor)
    return tensor if recorder.opened else recorder.call(func, (tensor,), {})


def _set_grad_enabled(recorder: Recorder, func: Any, enabled: bool) -> None:
    recorder.set_grad_enabled(func, enabled)


def _read_value(recorder: Recorder, func: Any, tensor: Tensor, *args: Any) -> Any:
    return recorder.read_value(func, tensor, *args)


def _getitem(recorder: Recorder, func: Any, tensor: Tensor, index: Any) -> Any:
    """Masks that are the same for all inputs become the indices where they are true: of those, the number is known."""
    if recorder.running_leaf or not recorder.active:
        return func(tensor, index)
    given = index if isinstance(index, tuple) else (index,)
    with recorder:
        entries = [entry for given_entry in given for entry in _positions(recorder, given_entry)]
    return recorder.call(func, (tensor, entries[0] if len(entries) == 1 and given is not index else tuple(entries)), {})


def _positions(recorder: Recorder, entry: Any) -> tuple[Any, ...]:
    if isinstance(entry, list) and entry and all(type(item) is bool for item in entry):
        return ([position for position, item in enumerate(entry) if item],)
    if isinstance(entry, Tensor) and entry.dtype is torch.bool and entry.dim() and recorder.is_known(entry):
        return entry.nonzero(as_tuple=True)
    return entry.nonzero() if isinstance(entry, np.ndarray) and entry.dtype == bool else (entry,)


def _open_attention(recorder: Recorder, func: Any, *args: Any, **kwargs: Any) -> Any:
    """Record what `multi_head_attention_forward` does, not its call; the call of dropout is there in eval, too."""
    if recorder.running_leaf or not recorder.active:
        return func(*args, **kwargs)
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

    namespace.update(has_torch_function=lambda _: False, dropout=dropout, scaled_dot_product_attention=attention)
    try:
        with recorder:
            return func(**given)
    finally:
        namespace.update(before)


def _getter(name: str) -> Any:
    return getattr(Tensor, name).__get__


# What is done instead of recording the call, by function: called with the recorder, the function and its arguments.
SPECIAL_CALLS: dict[Any, Callable[..., Any]] = {
    _getter("shape"): _shape, Tensor.size: _size, Tensor.numel: _numel, Tensor.nelement: _numel,
    _getter("dtype"): _dtype, _getter("device"): _device, _getter("ndim"): _as_is, Tensor.dim: _as_is,
    torch._C._set_grad_enabled: _set_grad_enabled, torch.numel: _numel,
    vars(torch._C.TensorBase)["data"].__set__: _set_data,
    nn.functional.multi_head_attention_forward: _open_attention, Tensor.__getitem__: _getitem,
    **dict.fromkeys([_getter(name) for name in (
        "is_cuda", "is_meta", "requires_grad", "layout", "is_sparse", "is_quantized", "grad", "grad_fn", "is_leaf",
        "is_cpu", "is_mps", "is_nested", "itemsize", "_version",
    )], _as_is),
    Tensor.is_contiguous: _as_is, Tensor.is_floating_point: _as_is, Tensor.is_complex: _as_is,
    Tensor.requires_grad_: _as_is, torch.is_floating_point: _as_is,
    Tensor.detach: _detach, Tensor.new: _new, Tensor.type: _type,
    **dict.fromkeys([
        Tensor.__bool__, Tensor.item, Tensor.__int__, Tensor.__float__, Tensor.__index__, Tensor.tolist, Tensor.numpy,
        torch.is_nonzero, Tensor.__contains__,
    ], _read_value),
}  # fmt: skip
