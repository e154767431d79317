"""Settings of layers that forward changes before it calls them: `self.norm.eval()`, `self.drop.p = 0.1 * self.step`.

A node that calls a module has the settings which that has when the graph runs. So such a layer is recorded as what it
computes, with the settings that it has at the call.
"""

from __future__ import annotations

import functools
from typing import Any

from torch import nn

__all__ = ["LeafSettings"]

_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
_TABLES = ("_parameters", "_buffers")


class LeafSettings:
    """The settings of the modules of a model, as they are before it runs."""

    def __init__(self, model: nn.Module) -> None:
        # The values are kept, so that no other object gets their identity.
        self._before = {id(module): _settings(module) for module in model.modules()}

    def are_changed(self, module: nn.Module) -> bool:
        """Whether a module would now do something else than before, or has other parameters."""
        return any(
            _differ(list(before.items()), list(_settings(part).items()))
            for part in module.modules()
            if (before := self._before.get(id(part))) is not None
        )

    def note(self, module: nn.Module) -> None:
        """A module has run as one node; what it has changed in itself, it will change in the graph."""
        self._before.update({id(part): _settings(part) for part in module.modules()})


def _settings(module: nn.Module) -> dict[str, Any]:
    """What a module computes with, by name; the mode only where the module reads it."""
    found = {name: value for name, value in vars(module).items() if name not in _OF_EVERY_MODULE}
    for table in _TABLES:
        found.update({f"{table}.{name}": value for name, value in vars(module)[table].items()})
    if "training" in _names_in_forward(type(module).forward):
        found["training"] = vars(module)["training"]
    return {name: _frozen(value) for name, value in found.items()}


@functools.lru_cache(maxsize=10_000)
def _names_in_forward(forward: Any) -> tuple[str, ...]:
    code = getattr(forward, "__code__", None)
    return () if code is None else code.co_names


def _frozen(value: Any) -> Any:
    return type(value)(value) if type(value) in (list, dict, set) else value


def _differ(before: Any, now: Any) -> bool:
    if type(before) is not type(now):
        return True
    if isinstance(before, (tuple, list)):
        return len(before) != len(now) or any(map(_differ, before, now))
    if isinstance(before, (bool, int, float, str)):
        return bool(before != now)
    return before is not now and not isinstance(before, dict)
