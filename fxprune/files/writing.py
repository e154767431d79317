"""Files that are whole at any moment."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save
from torch import Tensor

from fxprune.errors import FxpruneError

__all__ = ["replace_file", "write_tensors"]


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], what: str) -> None:
    """Write a safetensors file as `replace_file` does.

    Raises:
        FxpruneError: it cannot be written.
    """
    seen: set[int] = set()
    alone: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        # The format refuses tensors that share memory.
        storage = tensor.untyped_storage().data_ptr()
        alone[name] = (tensor.clone() if storage in seen else tensor).cpu().contiguous()
        seen.add(storage)
    try:
        content = save(alone, metadata=dict(metadata))
    except SafetensorError as error:
        raise FxpruneError(f"{what} {str(path)!r} cannot be written: {error}") from error
    replace_file(path, content, what)


def replace_file(path: Path, content: bytes, what: str) -> None:
    """Write a file so that a crash, a kill or a full disk at any moment leaves the previous one whole.

    The new file is written beside the old one, forced to the disk, and renamed over it. Its folder is made where it is
    missing.

    Args:
        path: the file.
        content: what it is to hold.
        what: what to call it in errors.

    Raises:
        FxpruneError: it cannot be written; nothing is left behind.
    """
    try:
        _replace(path, content)
    except OSError as error:
        before = "; the previous one is whole" if path.is_file() else ""
        raise FxpruneError(f"{what} {str(path)!r} cannot be written: {error}{before}") from error


def _replace(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder is the same file system, without which renaming is not atomic.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    # With the permissions of any new file, which `tempfile` does not give.
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make the new name survive a loss of power; where folders cannot be opened, the system sees to that."""
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(handle)
    except OSError:
        pass
    finally:
        os.close(handle)
