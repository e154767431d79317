"""Tables that a model's code keeps outside of the model: in dicts and variables of its files, helpers and decorators.

A run on the meta device, or in another precision, would leave tensors there that the model cannot use later. And what
an earlier call has left is good for the sizes of that call.
"""

from __future__ import annotations

import dis
import functools
import operator
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeAlias

from torch import Tensor

from fxprune.tracing.loaded import found_in, package_of

__all__ = ["has_size", "without_tables"]

# A namespace, or a class, and a name in it: of a dict or list, or of what functions assign.
_Place: TypeAlias = "tuple[dict[Any, Any] | type, Any]"

_MISSING = object()
_DEEPEST = 4
# Those of other types do more than hold entries.
_DICTS = frozenset({dict, OrderedDict, defaultdict})
_PLAIN = frozenset({str, int, float, bool, type(None)})
_WRITING_METHODS = frozenset({"setdefault", "update", "append", "extend", "insert"})


@contextmanager
def without_tables(modules: Sequence[ModuleType], *, emptied: bool = True) -> Iterator[None]:
    """Inside, the tables of tensors that these files keep are empty; afterwards they are as they were.

    Args:
        modules: the files of the model's code.
        emptied: whether the entries that are found by a size are taken away; if not, they are only put back.
    """
    now = [(space, name, _read(space, name)) for space, name in found_in(modules, _places)]
    holders: list[Any] = [value for _, _, value in now if type(value) in (*_DICTS, list)]
    dicts = {id(table): (table, dict(table)) for table in holders if type(table) is not list}
    lists = {id(items): (items, list(items)) for items in holders if type(items) is list}
    try:
        for table, before in dicts.values() if emptied else ():
            for key in [key for key in before if type(key) is not str and has_size(key) and _holds_tensor(before[key])]:
                del table[key]
        yield
    finally:
        for table, before in dicts.values():
            for key, value in () if _is_unchanged(table.values(), before.values()) else list(table.items()):
                if before.get(key) is not value and _holds_tensor(value):
                    del table[key]
            table.update({key: before[key] for key in before.keys() - table.keys() if _holds_tensor(before[key])})
        for items, others in lists.values():
            if not _is_unchanged(items, others) and (_holds_tensor(items) or _holds_tensor(others)):
                items[:] = others
        for space, name, value in now:
            if (latest := _read(space, name)) is not value and _holds_tensor(latest):
                _write(space, name, value)


def _is_unchanged(now: Collection[Any], before: Collection[Any]) -> bool:
    return len(now) == len(before) and all(map(operator.is_, now, before))


def _read(space: dict[Any, Any] | type, name: Any) -> Any:
    return (vars(space) if isinstance(space, type) else space).get(name, _MISSING)


def _write(space: dict[Any, Any] | type, name: Any, value: Any) -> None:
    if not isinstance(space, type):
        space[name] = value
    elif value is _MISSING:
        delattr(space, name)
    else:
        setattr(space, name, value)


def has_size(value: Any) -> bool:
    """Whether a key is a number that may be a size, or has one."""
    if isinstance(value, (tuple, list)):
        return any(map(has_size, value))
    return type(value) is int and value > 0


def _holds_tensor(value: Any, depth: int = 0) -> bool:
    # Not `isinstance`, which asks the object: some load what they stand for.
    kind = type(value)
    if issubclass(kind, Tensor):
        return True
    if depth == _DEEPEST or kind in _PLAIN or issubclass(kind, (FunctionType, type, ModuleType)):
        return False
    parts: Any = value if kind in (*_DICTS, tuple, list) else _attributes(value)
    return any(_holds_tensor(part, depth + 1) for part in list(parts.values() if isinstance(parts, dict) else parts))


def _attributes(value: Any) -> dict[str, Any]:
    """Those that an object has without being asked: some load what they do not have yet."""
    try:
        found = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return {}
    return found if type(found) is dict else {}


def _places(module: ModuleType) -> list[_Place]:
    found: list[_Place] = []
    package = package_of(module.__name__)
    for value in list(vars(module).values()):
        if type(value) is FunctionType:
            found += _of_function(value, {}, set())
            continue
        # A class, or a helper of one.
        kind = value if issubclass(type(value), type) else type(value)
        file = str(kind.__module__)
        if file == module.__name__ or (kind is not value and package_of(file) == package):
            bases = [base for base in kind.__mro__ if not str(base.__module__).startswith("torch.")]
            functions = [function for base in bases for function in _methods(base)]
            of_class = (
                {} if not functions else {name: part for base in reversed(bases) for name, part in vars(base).items()}
            )
            own = of_class if kind is value else _attributes(value)
            for function in functions:
                found += _of_function(function, own, set())
                if kind is value and _has(function.__code__, "STORE_ATTR"):
                    found += [(kind, name) for name in function.__code__.co_names if _may_be_table(own, name)]
    return found


@functools.lru_cache(maxsize=10_000)
def _methods(kind: type) -> tuple[FunctionType, ...]:
    """The methods of a class, without those of its bases and constructors, that may put something anywhere."""
    values = [value for name, value in vars(kind).items() if name != "__init__"]
    functions = [value.__func__ if type(value) in (staticmethod, classmethod) else value for value in values]
    return tuple(function for function in functions if type(function) is FunctionType and _puts(function))


def _puts(function: FunctionType) -> bool:
    code = function.__code__
    stores = any(_has(code, op) for op in ("STORE_SUBSCR", "STORE_ATTR", "STORE_GLOBAL"))
    return stores or bool(function.__closure__) or not _WRITING_METHODS.isdisjoint(code.co_names)


def _of_function(function: FunctionType, owner: dict[str, Any], seen: set[FunctionType]) -> Iterator[_Place]:
    """Where a function may put something: by a name, in its closure, among its defaults, on itself or on its owner."""
    seen.add(function)
    code = function.__code__
    # Files may name functions of fxprune, which keeps no tensors of a model.
    own_globals = {} if package_of(function.__module__ or "") == "fxprune" else function.__globals__
    cells: dict[Any, Any] = {}
    for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
        with suppress(ValueError):  # an empty cell
            cells[name] = cell.cell_contents
    defaults = dict(enumerate((*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())))
    names: Iterable[str] = code.co_names
    if _has(code, "STORE_SUBSCR") or not _WRITING_METHODS.isdisjoint(names):
        for namespace in (own_globals, owner):
            yield from ((namespace, name) for name in names if type(namespace.get(name)) in (*_DICTS, list))
        for held in (vars(function), cells, defaults):
            yield from ((held, key) for key, value in held.items() if type(value) in (*_DICTS, list))
    for namespace, assigns in ((own_globals, "STORE_GLOBAL"), (owner, "STORE_ATTR")):
        if _has(code, assigns):
            yield from ((namespace, name) for name in names if _may_be_table(namespace, name))
    if _has(code, "STORE_ATTR"):
        yield {"": vars(function)}, ""
    for inner in cells.values():
        if isinstance(inner, FunctionType) and inner not in seen:
            yield from _of_function(inner, owner, seen)


def _may_be_table(namespace: dict[str, Any], name: str) -> bool:
    value = namespace.get(name, _MISSING)
    return value is None or _holds_tensor(value, _DEEPEST - 1)


def _has(code: CodeType, op: str) -> bool:
    return dis.opmap[op] in code.co_code[::2]
