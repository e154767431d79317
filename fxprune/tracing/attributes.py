"""The plain attributes of a model, which its users read: its configuration, the names of its classes, its stride."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx, nn

__all__ = ["plain_attributes"]

# What belongs to every module or graph: a model that has an attribute of such a name means something else by it.
_OWNED = frozenset(
    {*vars(nn.Module()), *dir(nn.Module), *vars(fx.GraphModule(nn.Module(), fx.Graph())), *dir(fx.GraphModule), "meta"}
)
_WITHOUT_COPY = (type(None), bool, int, float, complex, str, bytes)


def plain_attributes(model: nn.Module) -> dict[str, Any]:
    """Copies of the attributes of a model and its class that are data: no modules, tensors or functions.

    What holds one of these, or cannot be pickled, is left out: the traced model can be copied and pickled.
    """
    copies: dict[int, Any] = {}
    found: dict[str, Any] = {}
    for name, value in _candidates(model):
        if name in _OWNED or name in found or callable(value):
            continue
        if type(value) in _WITHOUT_COPY:
            found[name] = value
            continue
        try:
            # Two names of one object stay names of one object.
            if id(value) not in copies:
                copies[id(value)] = _copied(value)
            found[name] = copies[id(value)]
        except Exception:  # whatever the code of its class raises
            continue
    return found


def _candidates(model: nn.Module) -> Iterator[tuple[str, Any]]:
    yield from vars(model).items()
    for kind in type(model).__mro__:
        if kind.__module__.partition(".")[0] in ("torch", "builtins", "typing", "abc"):
            continue
        for name, value in vars(kind).items():
            # Descriptors, as properties and methods are, give something else for each object.
            if not name.startswith("_") and not hasattr(type(value), "__get__"):
                yield name, value


def _copied(value: Any) -> Any:
    file = io.BytesIO()
    _DataPickler(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    file.seek(0)
    return pickle.load(file)  # its own bytes, of this moment


class _DataPickler(pickle.Pickler):
    """Refuses what is not data."""

    def reducer_override(self, value: Any) -> Any:
        """Asked for everything but what Python has built in."""
        if isinstance(value, (nn.Module, Tensor, torch.Generator, ModuleType, torch.ScriptObject)):
            raise pickle.PicklingError(f"a {type(value).__name__} is no data")
        return NotImplemented
