"""What training runs share, of weights and of gates: Accelerate, a frozen teacher, a digest of the weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running.copies import copy_module

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["digest", "frozen", "make_accelerator", "of_main_process"]


@contextmanager
def make_accelerator(mixed_precision: str | None = None) -> Iterator[Accelerator]:
    """An `accelerate.Accelerator` for one run.

    Args:
        mixed_precision: "no", "fp16" or "bf16"; default: what ``accelerate launch`` says.

    Raises:
        FxpruneError: Accelerate is not installed, or has been set up for another precision.
    """
    try:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import GradientAccumulationPlugin
    except ImportError as error:
        raise FxpruneError("training needs Hugging Face Accelerate: pip install 'fxprune[train]'") from error
    was_set_up = bool(AcceleratorState._shared_state)
    # The loops of fxprune accumulate gradients themselves, whatever the environment says.
    plugin = GradientAccumulationPlugin(num_steps=1, sync_with_dataloader=False)
    try:
        accelerator = Accelerator(mixed_precision=mixed_precision, gradient_accumulation_plugin=plugin)
    except (ValueError, RuntimeError) as error:
        raise FxpruneError(f"mixed_precision (={mixed_precision!r}) cannot be used: {error}") from error
    try:
        yield accelerator
    finally:
        # Accelerate keeps the precision for the whole process; the next run may want another.
        if not was_set_up:
            AcceleratorState._reset_state()


def of_main_process(tensor: Tensor) -> Tensor:
    """The main process's tensor, in all processes."""
    from accelerate.utils import broadcast

    result: Tensor = broadcast(tensor)
    return result


def frozen(teacher: nn.Module | None, device: torch.device) -> nn.Module | None:
    """A copy of a model for inference alone: in eval mode, without gradients."""
    return None if teacher is None else copy_module(teacher).eval().requires_grad_(False).to(device)


def digest(model: nn.Module) -> str:
    """A hash of all tensors in the `state_dict`."""
    found = hashlib.sha256()
    for name, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:16]
