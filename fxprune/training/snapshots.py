"""Snapshots of a training run: one safetensors file that is whole at any moment and is never unpickled.

The state is any nesting of dicts, lists and tuples over tensors, numbers, strings and None, such as the `state_dict` of
a model or an optimizer. The nesting is JSON in the file's metadata.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.files.packing import pack, unpack
from fxprune.files.writing import write_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["load_snapshot", "restore_run", "save_run", "save_snapshot"]

_KEY = "fxprune.run"


def save_run(
    path: str | Path,
    accelerator: Accelerator,
    settings: Mapping[str, Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    progress: Mapping[str, Any],
) -> None:
    """Write the snapshot of a run, in the main process; the others wait.

    Args:
        path: the file.
        accelerator: of the run.
        settings: what the run depends on; `restore_run` compares them.
        model: what is trained.
        optimizers: that train it.
        progress: what else the run needs to go on.

    Raises:
        FxpruneError: the file cannot be written.
    """
    if accelerator.is_main_process:
        scaler = accelerator.scaler
        state = {
            "settings": dict(settings),
            "model": accelerator.unwrap_model(model).state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in optimizers],
            "scaler": None if scaler is None else scaler.state_dict(),
            "progress": dict(progress),
        }
        save_snapshot(path, state)
    accelerator.wait_for_everyone()


def restore_run(
    path: str | Path,
    accelerator: Accelerator,
    settings: Mapping[str, Any],
    model: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
) -> dict[str, Any]:
    """Put model and optimizers into the state of a snapshot; returns the `progress` that was saved with it.

    Raises:
        FxpruneError: there is no such snapshot, or it is of a run with other settings.
    """
    state = load_snapshot(path)
    theirs = state["settings"]
    other = [name for name in settings if theirs.get(name) != settings[name]]
    if other:
        differences = ", ".join(f"{name} (there {theirs.get(name)!r}, here {settings[name]!r})" for name in other)
        raise FxpruneError(
            f"checkpoint {str(path)!r} is of a run that differs in {differences}: give the same settings, "
            "another path, or resume=False to start anew"
        )
    accelerator.unwrap_model(model).load_state_dict(state["model"])
    for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(saved)
    if accelerator.scaler is not None and state["scaler"] is not None:
        accelerator.scaler.load_state_dict(state["scaler"])
    progress: dict[str, Any] = state["progress"]
    return progress


def save_snapshot(path: str | Path, state: Any) -> None:
    """Write a state so that a crash, a kill or a full disk at any moment leaves the previous file whole.

    Args:
        path: the file; its folder is made where it is missing.
        state: see the head of this module.

    Raises:
        FxpruneError: the state holds something that cannot be stored, or the file cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    nesting = json.dumps(pack(state, tensors, "state"))
    write_tensors(Path(path), tensors, {_KEY: nesting}, "snapshot")


def load_snapshot(path: str | Path) -> Any:
    """Read what `save_snapshot` has written; tensors are on the CPU.

    Raises:
        FxpruneError: there is no such file, or it is not a snapshot.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            nesting = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise FxpruneError(f"snapshot {str(path)!r} cannot be read: {error}; remove it to start anew") from error
    if nesting is None:
        raise FxpruneError(
            f"{str(path)!r} is a safetensors file, but not a snapshot of a training run that this version of fxprune "
            "wrote: give another path, or resume=False to start anew"
        )
    return unpack(json.loads(nesting), tensors)
