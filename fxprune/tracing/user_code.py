"""Finds the code of the user's model among the frames of torch and fxprune."""

from __future__ import annotations

import importlib.metadata
import linecache
import sys
import traceback
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import TypeAlias

import torch

__all__ = [
    "WITHOUT_TENSORS", "Place", "asked_by_model", "call_place", "constructs_tensor", "is_library_file", "is_of_model",
    "library_of_code", "place_in_model", "place_of", "user_frame",
]  # fmt: skip

# A module of Python and a line, as "timm.layers.pos_embed:35".
Place: TypeAlias = str

#: Packages that compute numbers for their caller, and keep no tensors of torch.
WITHOUT_TENSORS = frozenset({"numpy", "scipy"})

# The names of files that are not the user's code start like this; those in "<" are for generated code. A model may be
# written in "<stdin>", or given to `exec` as a "<string>".
_GENERATED = ("<eval_with_key", "<frozen ", "<__array_function__")
_LIBRARY_FILES = (
    str(Path(torch.__file__).parent / "_")[:-1], str(Path(__file__).parent.parent / "_")[:-1], *_GENERATED
)  # fmt: skip
_CHECKS = str(Path(__file__).parent / "checks.py")


def is_library_file(name: str) -> bool:
    """Whether code in a file of this name is torch's or fxprune's."""
    return name.startswith(_LIBRARY_FILES)


def user_frame(*, generated: bool = False) -> FrameType | None:
    """The innermost frame that is neither torch's nor fxprune's; `generated` if that may be one of a graph's code."""
    library = _LIBRARY_FILES[:2] if generated else _LIBRARY_FILES
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(library):
        frame = frame.f_back
    return frame


def call_place(frame: FrameType | None, most: int = 3) -> tuple[tuple[CodeType, int], ...]:
    """The code of a frame and of those that have called it, without torch's and fxprune's, and where each one is."""
    found: list[tuple[CodeType, int]] = []
    while frame is not None and len(found) < most:
        if not frame.f_code.co_filename.startswith(_LIBRARY_FILES[:2]):
            found.append((frame.f_code, frame.f_lasti))
        frame = frame.f_back
    return tuple(found)


def place_in_model() -> Place | None:
    """The line of the model's code that runs; None for one that asserts, follows such a line, or raises."""
    frame = user_frame()
    if frame is None:
        return None
    file, line = frame.f_code.co_filename, frame.f_lineno
    # `_assert(` may stand above its condition.
    lines = "".join(linecache.getline(file, k) for k in range(line - 1, line + 1))
    if "assert" in lines or "_check" in lines or linecache.getline(file, line + 1).lstrip().startswith("raise "):
        return None
    return f"{frame.f_globals.get('__name__')}:{line}"


def constructs_tensor() -> bool:
    """Whether the line of the model's code that runs has a `torch.Tensor(size)`, which torch shows to nobody."""
    frame = user_frame()
    return frame is not None and "Tensor(" in linecache.getline(frame.f_code.co_filename, frame.f_lineno)


def library_of_code() -> str:
    """The installed package whose code runs, of those that are neither torch nor fxprune; empty where it is none.

    It is none of those that compute numbers for their caller: NumPy, SciPy and what comes with Python.
    """
    frame = user_frame()
    package = "" if frame is None else str(frame.f_globals.get("__name__", "")).partition(".")[0]
    return package if package in _installed() else ""


@cache
def _installed() -> frozenset[str]:
    return frozenset(importlib.metadata.packages_distributions()) - WITHOUT_TENSORS


def place_of(error: BaseException) -> tuple[str, str]:
    """Where an error was raised: "file:line" and the line's source, of the innermost frame of the user's code.

    Both are empty where there is no such frame.
    """
    stack = traceback.extract_tb(error.__traceback__)
    frames = [frame for frame in stack if not frame.filename.startswith(_LIBRARY_FILES)]
    if not frames:
        return "", ""
    line = linecache.getline(frames[-1].filename, frames[-1].lineno or 0)
    return f"{frames[-1].filename}:{frames[-1].lineno}", line.strip()


def asked_by_model() -> bool:
    """Whether it is the model's own code that has called fxprune, and not a function of torch."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_LIBRARY_FILES[1]):
        if is_of_model(frame):
            return True
        frame = frame.f_back
    return frame is not None and is_of_model(frame)


def is_of_model(frame: FrameType) -> bool:
    """Whether a frame runs code of the model; of a traced graph that is traced again, these are its checks."""
    file = frame.f_code.co_filename
    return file == _CHECKS or not file.startswith(_LIBRARY_FILES)
