"""Files that are whole at any moment."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

__all__ = ["replace_file"]


def replace_file(path: Path, content: bytes) -> None:
    """Write a file so that a crash, a kill or a full disk at any moment leaves the previous one whole.

    The new file is written beside the old one, forced to the disk, and renamed over it. Its folder is made where it is
    missing.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The same folder is the same file system, without which renaming is not atomic.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex[:8]}.part"
    # As the system has it for any new file, which `tempfile` does not.
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
    """The new name, too, is to outlast a loss of power; where folders cannot be opened, the system sees to that."""
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
