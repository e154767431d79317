"""Results of calls on the meta device: a cache, and functions in place of those that do not run there.

Torch runs many functions on the meta device in Python, which takes milliseconds; a network calls them with few
different layouts of arguments. (torch's own `FakeTensorMode` takes twice as long, and its tensors cannot be pickled.)
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fxprune.running import trees
from fxprune.running.copies import META

__all__ = ["META_RUNS", "Recalled", "call_key", "leaf_key", "of_one_step", "recall", "remember"]

# Not tuned: several hundred networks.
_MOST_RESULTS = 20_000


@dataclass(frozen=True)
class Recalled:
    """What a call has done.

    Attributes:
        value: what it returned, unless that is one of its tensors.
        same_as: the number of that tensor, in the order of the arguments.
        written: the numbers of the tensors that it wrote into.
        random: whether it drew random numbers.
    """

    value: Any
    same_as: int | None
    written: tuple[int, ...]
    random: bool


_results: dict[Any, Recalled] = {}


def recall(key: Any) -> Recalled | None:
    """What a call with this key has done, with new tensors in its value; None if there was none."""
    known = None if key is None else _results.get(key)
    return known and replace(known, value=None if known.value is None else _empty(known.value))


def remember(key: Any, value: Any, tensors: Sequence[Tensor], written: Sequence[Tensor], random: bool) -> None:
    """Keep the layout of the value of a call on `tensors`, which wrote into those that are `written`."""
    if key is None or len(_results) >= _MOST_RESULTS:
        return
    positions = {id(tensor): position for position, tensor in enumerate(tensors)}
    same_as = positions.get(id(value))
    layout = None if same_as is not None else _layout(value)
    if layout is not None or same_as is not None:
        _results[key] = Recalled(layout, same_as, tuple(positions[id(tensor)] for tensor in written), random)


def _layout(value: Any) -> Any:
    """(kind, layouts of the items) of a tuple or list, (sizes, strides, dtype) of a tensor; None for anything else."""
    if type(value) is Tensor:
        return value.size(), value.stride(), value.dtype
    if type(value) in (tuple, list):
        items = [_layout(item) for item in value]
        return None if None in items else (type(value), items)
    return None


def _empty(layout: Any) -> Any:
    if len(layout) == 2:
        return layout[0](map(_empty, layout[1]))
    size, stride, dtype = layout
    return torch.empty_strided(size, stride, dtype=dtype, device=META)


def call_key(function: Any, arguments: tuple[Any, ...]) -> Any:
    """All that the layout of a result depends on, as a hashable value; None where an argument may hold more."""
    try:
        return function, torch.get_default_dtype(), _keyed(arguments)
    except _UnknownTypeError:
        return None


class _UnknownTypeError(Exception):
    """An object that may change, or hold values of which a layout depends."""


# What is the same whenever it is equal and of the same type.
_PLAIN = frozenset({
    int, float, bool, complex, str, type(None), type(...), torch.dtype, torch.device, torch.layout, torch.memory_format,
})  # fmt: skip


# The model's code sees another class as `torch.Size`.
_SEQUENCES = frozenset({tuple, list, torch.Size})


def _keyed(value: Any) -> Any:
    kind = type(value)
    if isinstance(value, Tensor):
        return kind, value.size(), value.stride(), value.dtype
    if kind in _SEQUENCES:
        return kind, tuple(map(_keyed, value))
    if kind is slice:
        return kind, _keyed(value.start), _keyed(value.stop), _keyed(value.step)
    if kind is dict:
        return kind, tuple((name, _keyed(entry)) for name, entry in value.items())
    if kind in _PLAIN or (isinstance(value, type) and value.__module__ == "builtins"):
        return kind, value
    raise _UnknownTypeError


def leaf_key(module: nn.Module, names: tuple[str, ...], inputs: tuple[Any, ...]) -> Any:
    """What the layout of a leaf's result depends on; None where it may depend on more than torch's modules do."""
    parts = _parts_of(module)
    return None if parts is None else call_key(type(module), (names, *inputs, parts))


# Entries that every module has, and caches of what else is in the key.
_NO_SETTINGS = frozenset(
    {*vars(nn.Module())} - {"training"} | {"_flat_weights", "_flat_weight_refs", "_is_full_backward_hook"}
)


def _parts_of(module: nn.Module) -> Any:
    """Names of types, settings and tensors of a module and all modules in it; None if one is not torch's."""
    known = type(module).__module__.startswith("torch.nn.modules.") or isinstance(
        module, nn.modules.batchnorm._BatchNorm
    )
    if not known or module._forward_hooks or module._forward_pre_hooks:
        return None
    children = [_parts_of(child) for child in module._modules.values() if child is not None]
    if None in children:
        return None
    # Not as an attribute: the recorder would take the reading of the mode for the model's.
    settings = {name: value for name, value in vars(module).items() if name not in _NO_SETTINGS}
    tensors = [*module._parameters.values(), *module._buffers.values()]
    kind = type(module)
    return f"{kind.__module__}.{kind.__qualname__}", id(kind), settings, tensors, children


_RECURRENT = frozenset({nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward})


def of_one_step(module: nn.Module, call: Callable[..., Any]) -> Callable[..., Any]:
    """A call of a module on the meta device that runs one step of a recurrent layer: torch runs all of them in Python.

    Args:
        module: what is called.
        call: takes the arguments of its `forward`.
    """
    if type(module).forward not in _RECURRENT:
        return call

    def run(*args: Any, **kwargs: Any) -> Any:
        arguments = inspect.signature(type(module).forward).bind(None, *args, **kwargs).arguments
        x, state = arguments["input"], arguments.get("hx")
        time = int(bool(module.batch_first) and x.dim() == 3) if isinstance(x, Tensor) else 0
        if not isinstance(x, Tensor) or x.dim() not in (2, 3) or x.shape[time] < 2:
            return call(x, state)
        outputs, state = call(x.narrow(time, 0, 1), state)
        first = outputs.movedim(time, 0)
        return first.expand(x.shape[time], *first.shape[1:]).contiguous().movedim(0, time), state

    return run


# --- functions that need a stand-in -----------------------------------------------------------------------------------


def _any_number(value: Any) -> Any:
    """For a tensor to fill another with, a number of its type: the meta device has no values."""
    return torch.zeros((), dtype=value.dtype).item() if isinstance(value, Tensor) else value


def _istft(*args: Any, **kwargs: Any) -> Tensor:
    """With ones in place of all tensors: torch checks the values of the window, and ones always pass."""
    args, kwargs = trees.map_tensors(lambda x: torch.ones(x.shape, dtype=x.dtype), (args, kwargs))
    return torch.istft(*args, **kwargs).to(META)


# What runs on the meta device in place of functions that do not run there as they are.
META_RUNS: dict[Any, Callable[..., Any]] = {
    Tensor.cpu: lambda tensor, **_: tensor, Tensor.cuda: lambda tensor, *_, **__: tensor,
    Tensor.pin_memory: lambda tensor, *_, **__: tensor, torch.istft: _istft, Tensor.istft: _istft,
    torch.full: lambda size, fill_value, **named: torch.full(size, _any_number(fill_value), **named),
    torch.full_like: lambda tensor, fill_value, **named: torch.full_like(tensor, _any_number(fill_value), **named),
    Tensor.new_full: lambda tensor, size, fill_value, **named: tensor.new_full(size, _any_number(fill_value), **named),
}  # fmt: skip
