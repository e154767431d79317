"""Snapshots of a training run: one safetensors file that is whole at any moment and never unpickles.

The state is any nesting of dicts, lists and tuples over tensors, numbers, strings and None, such as the `state_dict` of
a model or an optimizer. Tensors are stored as such; the nesting is JSON in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.files.writing import replace_file

__all__ = ["load_run", "load_snapshot", "pack", "save_snapshot", "unpack"]

_KEY = "fxprune.snapshot"
# JSON has no tuples and no keys but strings: what is not plain JSON is spelled as a dict with this one key.
_MARK = "$"


def save_snapshot(path: str | Path, state: Any) -> None:
    """Write a state so that a crash, a kill or a full disk at any moment leaves the previous file whole.

    Args:
        path: the file; its folder is made where it is missing.
        state: see the head of this module.

    Raises:
        FxpruneError: the state holds something that cannot be stored, or the file cannot be written.
    """
    path = Path(path)
    tensors: dict[str, Tensor] = {}
    nesting = json.dumps(pack(state, tensors, "state"))
    content = save(tensors, metadata={_KEY: nesting})
    try:
        replace_file(path, content)
    except OSError as error:
        before = "; the previous one is whole" if path.is_file() else ""
        raise FxpruneError(f"snapshot {str(path)!r} cannot be written: {error}{before}") from error


def load_snapshot(path: str | Path) -> Any:
    """Read what `save_snapshot` has written; tensors are on the CPU.

    Raises:
        FxpruneError: there is no such file, or it is no snapshot.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            nesting = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FxpruneError(f"snapshot {str(path)!r} cannot be read: {error}; remove it to start anew") from error
    if nesting is None:
        raise FxpruneError(f"{str(path)!r} is a safetensors file, but no snapshot of a training run: give another path")
    return unpack(json.loads(nesting), tensors)


def load_run(path: str | Path, settings: Mapping[str, Any]) -> Any:
    """Read the snapshot of a training run; its entry "settings" must be these.

    Raises:
        FxpruneError: as `load_snapshot`, or the snapshot is of a run with other settings.
    """
    state = load_snapshot(path)
    theirs = state.get("settings", {})
    other = [name for name in settings if theirs.get(name) != settings[name]]
    if other:
        differences = ", ".join(f"{name} (there {theirs.get(name)!r}, here {settings[name]!r})" for name in other)
        raise FxpruneError(
            f"checkpoint {str(path)!r} is of a run that differs in {differences}: give the same settings, "
            "another path, or resume=False to start anew"
        )
    return state


def pack(value: Any, tensors: dict[str, Tensor], path: str) -> Any:
    """A nesting as JSON; its tensors go into `tensors`, by their `path` in it.

    Raises:
        FxpruneError: it holds something else than what the head of this module names.
    """
    if isinstance(value, Tensor):
        # A copy: safetensors refuses tensors that share memory, as tied weights do.
        tensors[path] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_MARK: "tensor", "name": path}
    if isinstance(value, dict):
        if all(isinstance(key, str) for key in value) and _MARK not in value:
            return {key: pack(item, tensors, f"{path}.{key}") for key, item in value.items()}
        items = [
            [pack(key, tensors, f"{path}.key"), pack(item, tensors, f"{path}.{key}")] for key, item in value.items()
        ]
        return {_MARK: "dict", "items": items}
    if isinstance(value, (list, tuple)):
        items = [pack(item, tensors, f"{path}.{k}") for k, item in enumerate(value)]
        return items if isinstance(value, list) else {_MARK: "tuple", "items": items}
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise FxpruneError(
        f"{path} (a {type(value).__name__}) cannot go into a snapshot: only tensors, numbers, strings, None, "
        "and dicts, lists and tuples of them can"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """What `pack` has packed."""
    if isinstance(value, list):
        return [unpack(item, tensors) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_MARK)
    if kind == "tensor":
        return tensors[value["name"]]
    if kind == "tuple":
        return tuple(unpack(item, tensors) for item in value["items"])
    if kind == "dict":
        return {unpack(key, tensors): unpack(item, tensors) for key, item in value["items"]}
    return {key: unpack(item, tensors) for key, item in value.items()}
