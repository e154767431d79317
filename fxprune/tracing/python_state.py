"""What a model keeps outside of its parameters and buffers: numbers, flags, lists, caches, counters of its helpers."""

from __future__ import annotations

import operator
import sys
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import FunctionType, MethodType, ModuleType
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor, nn

from fxprune.tracing.sizes import TracedNumber

__all__ = ["PythonState", "Watched", "python_state"]

_PLAIN = frozenset({bool, int, float, complex, str, bytes, type(None)})
_CONTAINERS = (dict, list, tuple, set, deque)
# Asking whether something is an iterator takes long.
_USUAL = _PLAIN | {dict, OrderedDict, list, tuple, set, deque, FunctionType, MethodType, Tensor, nn.Parameter}
# Larger ones are registries and tables, which forward reads. Not tuned.
_MOST_ENTRIES, _DEEPEST = 1000, 5


class _Entry(NamedTuple):
    """A value, and where it is: `owner[key]`."""

    value: Any
    owner: Any = None
    key: Any = None


@dataclass(frozen=True)
class PythonState:
    """What a model keeps at a moment, by how it is reached."""

    entries: dict[str, _Entry]

    def changed_since(self, before: PythonState) -> list[str]:
        """The places where something else is now, or was."""
        places = dict.fromkeys((*before.entries, *self.entries))
        return [place for place in places if not _same(before.entries.get(place), self.entries.get(place))]

    def count_on(self, places: list[str]) -> list[Watched | float]:
        """Put numbers in the place of those at these places: far larger, and they notice what they are used for.

        Python compares a whole number with a float, and takes an item of a list, without asking the number.
        """
        watched: list[Watched | float] = []
        for entry in [self.entries[place] for place in places if place in self.entries]:
            if type(entry.value) in (int, float) and isinstance(entry.owner, (dict, list)):
                later = entry.value + _MANY_CALLS
                entry.owner[entry.key] = Watched(later) if type(later) is int else later
                watched.append(entry.owner[entry.key])
        return watched


# More than a model is called. Not tuned.
_MANY_CALLS = 2**40


class Watched(int):
    """A whole number that notices whether it is used for more than counting.

    Attributes:
        used: whether it was.
    """

    used: list[bool]

    def __new__(cls, value: int, used: list[bool] | None = None) -> Watched:
        """The number; `used` is that of the one it was computed from."""
        number = super().__new__(cls, value)
        number.used = [] if used is None else used
        return number

    def __add__(self, other: Any) -> Any:
        """Counting on."""
        return Watched(int.__add__(self, other), self.used) if type(other) is int else self._use("__add__", other)

    def __sub__(self, other: Any) -> Any:
        """Counting back."""
        return Watched(int.__sub__(self, other), self.used) if type(other) is int else self._use("__sub__", other)

    __radd__ = __add__

    def _use(self, name: str, *args: Any) -> Any:
        self.used.append(True)
        return getattr(int, name)(self, *args)


def _using(name: str) -> Callable[..., Any]:
    return lambda self, *args: self._use(name, *args)


for _name in (
    *("bool", "eq", "ne", "lt", "le", "gt", "ge", "index", "int", "float", "hash", "mul", "rmul", "mod", "rmod"),
    *("floordiv", "rfloordiv", "truediv", "rtruediv", "pow", "rpow", "rsub", "and", "or", "xor", "divmod", "neg"),
):
    setattr(Watched, f"__{_name}__", _using(f"__{_name}__"))


def python_state(model: nn.Module) -> PythonState:
    """What a model keeps now: in its modules, in their classes and hooks, and in the files of these classes."""
    found: dict[str, _Entry] = {}
    seen: set[int] = set()
    kinds = dict.fromkeys(type(module) for module in model.modules())
    own = [kind for kind in kinds if not kind.__module__.startswith("torch.")]
    for path, module in model.named_modules():
        name = path or type(model).__name__
        where, attributes = f"`{name}`", vars(module)
        for key, value in attributes.items():
            if type(value) not in (dict, OrderedDict, set) or value:
                _walk(key, where, value, attributes, key, found, seen, 0)
    for kind in dict.fromkeys(base for each in own for base in each.__mro__ if _is_own(base)):
        for key, value in list(vars(kind).items()):
            if type(value) in _PLAIN or isinstance(value, (dict, list, FunctionType)):
                _walk(key, f"the class `{kind.__name__}`", value, kind, key, found, seen, _DEEPEST - 2)
    for file in dict.fromkeys(kind.__module__ for kind in own):
        for key, value in list(vars(sys.modules[file]).items()) if file in sys.modules else ():
            if not key.startswith("__") and (type(value) in _PLAIN or isinstance(value, (dict, list))):
                _walk(key, f"`{file}`", value, None, key, found, seen, _DEEPEST)
    return PythonState(found)


def _is_own(kind: type) -> bool:
    return kind.__module__.partition(".")[0] not in ("torch", "builtins", "abc", "typing")


def _walk(
    name: str, where: str, value: Any, owner: Any, key: Any, found: dict[str, _Entry], seen: set[int], depth: int
) -> None:  # fmt: skip
    place = f"`{name}` of {where}"
    if type(value) not in _USUAL and isinstance(value, (np.ndarray, Iterator)):
        value = value.tobytes() if isinstance(value, np.ndarray) else f"{value!r}, {operator.length_hint(value)} left"
    if type(value) in _PLAIN or isinstance(value, (Tensor, nn.Module)):
        found[place] = _Entry(value, owner, key)
        return
    if id(value) in seen or depth > _DEEPEST:
        return
    seen.add(id(value))
    parts = list(_parts(value))
    if len(parts) <= _MOST_ENTRIES:
        found[place] = _Entry(type(value))
        for step, part, holder, at in parts:
            _walk(name + step, where, part, holder, at, found, seen, depth + 1)


def _parts(value: Any) -> Iterator[tuple[str, Any, Any, Any]]:
    """What something holds: how it is reached, itself, and where it is."""
    if isinstance(value, (dict, OrderedDict)):
        for key, part in list(value.items()):
            yield f"[{key!r}]" if type(key) in _PLAIN else f"[{type(key).__name__}]", part, value, key
    elif isinstance(value, _CONTAINERS):
        for i, part in enumerate(value):
            yield f"[{i}]", part, value, i
    elif isinstance(value, MethodType):
        yield ".__self__", value.__self__, None, None
    elif isinstance(value, FunctionType):
        yield ".__defaults__", value.__defaults__, None, None
        for i, cell in enumerate(value.__closure__ or ()):
            try:
                yield f".{value.__code__.co_freevars[i]}", cell.cell_contents, None, None
            except ValueError:
                continue
    elif not isinstance(value, (type, ModuleType, TracedNumber)):
        for key, part in list(getattr(value, "__dict__", {}).items()):
            yield f".{key}", part, vars(value), key
        for key in (name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())):
            yield f".{key}", getattr(value, key, None), None, None


def _same(before: _Entry | None, now: _Entry | None) -> bool:
    if before is None or now is None:
        return before is now
    if isinstance(before.value, float) and isinstance(now.value, float):
        return before.value == now.value or (before.value != before.value and now.value != now.value)
    plain = type(before.value) in _PLAIN and type(now.value) in _PLAIN
    return bool(before.value == now.value) if plain else before.value is now.value
