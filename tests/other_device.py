"""A simulated device: tensors in main memory that claim to be on another device and behave accordingly.

Code that works on it moves its tensors as a GPU requires: an operation refuses tensors of two devices, and numpy
refuses tensors of the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from fxprune.running import trees

__all__ = ["ELSEWHERE", "is_elsewhere", "other_device"]

ELSEWHERE = torch.device("hpu", 0)
# These take an index, or a tensor to copy, from any device; a value that is written by index must be on the same one.
_COPYING = ("aten::copy_", "aten::_copy_from", "aten::index.Tensor")
_INDEXED = ("aten::index_put", "aten::_index_put_impl_", "aten::_unsafe_index")

_storages: dict[int, StorageWeakRef] = {}


def is_elsewhere(tensor: Tensor) -> bool:
    """Whether a tensor's storage is on the other device."""
    try:
        found = _storages.get(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return False
    return found is not None and not found.expired()


def _put(tensor: Tensor, elsewhere: bool) -> None:
    storage = tensor.untyped_storage()
    if elsewhere:
        _storages[storage._cdata] = StorageWeakRef(storage)
    else:
        _storages.pop(storage._cdata, None)


@contextmanager
def other_device() -> Iterator[torch.device]:
    """A context in which the device `ELSEWHERE` exists."""
    with ExitStack() as stack:
        stack.enter_context(_Operations())
        stack.enter_context(_Functions())
        yield ELSEWHERE
    _storages.clear()


class _Operations(TorchDispatchMode):
    """Results are on the device of the operands, which must share one; scalars may be anywhere."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        operands, name = trees.tensors((args, kwargs)), func.name()
        there = [tensor for tensor in operands if is_elsewhere(tensor)]
        here = [tensor for tensor in operands if tensor.dim() and not is_elsewhere(tensor) and not tensor.is_meta]
        indexed = name.startswith(_INDEXED) and is_elsewhere(operands[0])
        if there and here and not indexed and not name.startswith(_COPYING):
            raise RuntimeError(f"Expected all tensors to be on the same device, but {name} got {ELSEWHERE} and cpu")
        result = func(*args, **(kwargs or {}))
        # The index may be on the other device while the tensor that it indexes is not.
        elsewhere = bool(there) and (is_elsewhere(operands[0]) or not name.startswith(_COPYING))
        known = {tensor.untyped_storage()._cdata for tensor in operands if not tensor.is_meta}
        for tensor in trees.tensors(result):
            if not tensor.is_meta and tensor.untyped_storage()._cdata not in known:
                _put(tensor, elsewhere)
        return result


class _Functions(TorchFunctionMode):
    """Functions that ask for a tensor's device, move a tensor, or make one on a device."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        first = args[0] if args and isinstance(args[0], Tensor) else None
        if first is not None and func == Tensor.device.__get__:
            return ELSEWHERE if is_elsewhere(first) else func(*args)
        if first is not None and is_elsewhere(first):
            if name in ("numpy", "__array__"):
                raise TypeError(f"can't convert {ELSEWHERE} device type tensor to numpy")
            if func is Tensor.__deepcopy__:
                memo = args[1]
                if id(first) not in memo:
                    memo[id(first)] = first.detach().clone().requires_grad_(first.requires_grad)
                return memo[id(first)]
        if first is not None and func is torch.unravel_index:
            # It is written in Python and compares devices itself.
            places = func(_moved(Tensor.cpu, first, (), {}), *args[1:], **kwargs)
            there = ELSEWHERE if is_elsewhere(first) else "cpu"
            return tuple(_moved(Tensor.to, place, (there,), {}) for place in places)
        if first is not None and func in (Tensor.to, Tensor.cpu, Tensor.type_as):
            return _moved(func, first, args[1:], kwargs)
        device = kwargs.get("device")
        if device is None:
            made = func(*args, **kwargs)
            if name == "new_tensor" and first is not None and is_elsewhere(first):
                _put(made, True)
            return made
        kwargs["device"] = torch.device("cpu") if torch.device(device).type == ELSEWHERE.type else device
        made = func(*args, **kwargs)
        if torch.device(device).type != "meta":
            for tensor in trees.tensors(made):
                _put(tensor, torch.device(device).type == ELSEWHERE.type)
        return made


def _moved(func: Any, tensor: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """`to`, `cpu` and `type_as`: the same tensor if nothing changes."""
    elsewhere = is_elsewhere(tensor)
    goes = False if func is Tensor.cpu else elsewhere
    plain: list[Any] = []
    for value in (*args, *((kwargs.pop("device"),) if kwargs.get("device") is not None else ())):
        if isinstance(value, Tensor):
            goes = is_elsewhere(value)
            plain.append(value.dtype)
        elif isinstance(value, (str, torch.device)):
            device = torch.device(value)
            if device.type == "meta":
                return func(tensor, *args, **kwargs) if args else func(tensor, device="meta", **kwargs)
            goes = device.type == ELSEWHERE.type
        elif isinstance(value, torch.dtype):
            plain.append(value)
    if kwargs.get("dtype") is not None:
        plain.append(kwargs["dtype"])
    wanted: dict[str, Any] = {}
    if kwargs.get("memory_format") is not None:
        wanted["memory_format"] = kwargs["memory_format"]
    copy = bool(kwargs.get("copy")) or goes != elsewhere
    result = tensor.clone() if copy else tensor
    if copy:
        _put(result, goes)
    return result.to(plain[-1] if plain else result.dtype, **wanted)
