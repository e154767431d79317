"""Where the code of the user's model is, among that of torch and of fxprune."""

from __future__ import annotations

import sys
from pathlib import Path
from types import FrameType

import torch

__all__ = ["LIBRARY_FILES", "user_frame"]

# How the names of files start that are not the user's code; "<" is for generated code.
LIBRARY_FILES = (str(Path(torch.__file__).parent / "_")[:-1], str(Path(__file__).parent / "_")[:-1], "<")


def user_frame() -> FrameType | None:
    """The innermost frame that is neither torch's nor ours."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(LIBRARY_FILES):
        frame = frame.f_back
    return frame
