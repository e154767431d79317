"""Caches whose key is a size: `if self.shape != x.shape: self.anchors, self.shape = make_anchors(x), x.shape`.

A model that has run keeps the key of that run, and a graph made with it would be good for that size only. So the key is
taken away before the model is traced: the graph then makes anew what the cache holds, for any size. That is right where
forward puts the size of a tensor in the key's place. Elsewhere the key is left to the model.
"""

from __future__ import annotations

import dis
import functools
from collections.abc import Hashable, Iterable, Iterator
from types import FunctionType
from typing import Any, TypeAlias, cast

import torch
from torch import nn

from fxprune.running import trees
from fxprune.tracing.sizes import StaleSize, TracedNumber
from fxprune.tracing.tables import has_size

__all__ = ["Key", "forget", "forget_keys", "keys_to_keep"]

# The path of a module and the name of its attribute.
Key: TypeAlias = "tuple[str, str]"


def forget_keys(model: nn.Module, kept: set[Key]) -> dict[Key, Any]:
    """Put sizes that no tensor has in place of what may be keys of caches; returns what is there now, by place."""
    forgotten: dict[Key, Any] = {}
    for path, module in model.named_modules():
        if type(module).__module__.startswith("torch."):
            continue
        candidates = {name for name, value in vars(module).items() if _may_be_key(value) and (path, name) not in kept}
        if candidates:
            assigned, entered = _changed_by_forward(cast(Hashable, type(module)))
            entered = {name for name in entered if isinstance(vars(module).get(name), dict)}
            for name in sorted(candidates & (assigned | entered)):
                forgotten[path, name] = vars(module)[name] = _stale(vars(module)[name])
    return forgotten


def forget(model: nn.Module, keys: Iterable[Key]) -> None:
    """Put sizes that no tensor has in place of these keys."""
    for path, name in keys:
        attributes = vars(model.get_submodule(path))
        attributes[name] = _stale(attributes[name])


def keys_to_keep(model: nn.Module, forgotten: dict[Key, Any]) -> set[Key]:
    """Those that forward has used and has not put the size of a tensor in place of."""
    return {
        key for key, stale in forgotten.items() if not _is_remade(vars(model.get_submodule(key[0])).get(key[1]), stale)
    }


def _may_be_key(value: Any) -> bool:
    if isinstance(value, dict):
        return bool(value) and all(map(has_size, value))
    return has_size(value) and (not isinstance(value, list) or all(map(has_size, value)))


def _stale(value: Any) -> Any:
    if isinstance(value, dict):
        return type(value)()
    if isinstance(value, (tuple, list)):
        # `torch.Size` holds plain numbers only.
        kind = tuple if isinstance(value, torch.Size) else type(value)
        return kind(map(_stale, value))
    return StaleSize() if type(value) is int else value


def _is_remade(now: Any, stale: Any) -> bool:
    numbers = [leaf for leaf in trees.leaves(stale) if isinstance(leaf, StaleSize)]
    if any(number.computed_with for number in numbers):
        return False
    if now is stale and not isinstance(stale, dict):
        return not any(number.compared for number in numbers)
    return any(isinstance(leaf, TracedNumber) for leaf in _leaves(now))


def _leaves(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from _leaves(list(value))
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


@functools.lru_cache(maxsize=10_000)
def _changed_by_forward(kind: Hashable) -> tuple[set[str], set[str]]:
    """The attributes that `forward` of a class, or a method that it calls, assigns; and may change the entries of."""
    assigned: set[str] = set()
    entered: set[str] = set()
    seen: set[str] = set()
    stack = ["forward"]
    while stack:
        name = stack.pop()
        if name in seen:
            continue
        seen.add(name)
        # A method may call the one that it overrides.
        for function in (getattr(base, name, None) for base in cast(type, kind).__mro__):
            if not isinstance(function, FunctionType):
                continue
            stack.extend(function.__code__.co_names)
            instructions = list(dis.get_instructions(function))
            assigned.update(each.argval for each in instructions if each.opname == "STORE_ATTR")
            if any(each.opname == "STORE_SUBSCR" for each in instructions):
                entered.update(function.__code__.co_names)
    return assigned, entered
