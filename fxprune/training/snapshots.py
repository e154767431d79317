"""Snapshots of a training run: one safetensors file that is whole at any moment and never unpickles.

The state is any nesting of dicts, lists and tuples over tensors, numbers, strings and None, such as the `state_dict` of
a model or an optimizer. Tensors are stored as such; the nesting is JSON in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.files.packing import pack, unpack
from fxprune.files.writing import replace_file

__all__ = ["load_run", "load_snapshot", "save_run", "save_snapshot"]

_KEY = "fxprune.snapshot"


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


def save_run(accelerator: Any, path: str | Path, settings: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Write the snapshot of a training run with its settings, in the main process; the others wait."""
    if accelerator.is_main_process:
        save_snapshot(path, {"settings": dict(settings), **state})
    accelerator.wait_for_everyone()


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
