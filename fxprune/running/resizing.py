"""Images are resized where they have another size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_unary

__all__ = ["pooled_where_needed", "resized_where_needed"]


def resized_where_needed(image: Tensor, size: int | Sequence[int], **options: Any) -> Tensor:
    """As `F.interpolate`, but nothing where the sizes are these: that would cost time and change nothing."""
    if has_torch_function_unary(image):
        # What records calls sees one.
        return handle_torch_function(resized_where_needed, (image,), image, size, **options)
    wanted = (size,) * (image.ndim - 2) if isinstance(size, (int, torch.SymInt)) else tuple(size)
    return image if tuple(image.shape[2:]) == wanted else F.interpolate(image, size, **options)


def pooled_where_needed(image: Tensor, size: int | Sequence[int | None]) -> Tensor:
    """As `F.adaptive_avg_pool2d`, but nothing where the sizes are these: each mean is one of a single pixel there."""
    if has_torch_function_unary(image):
        return handle_torch_function(pooled_where_needed, (image,), image, size)
    wanted = (size, size) if isinstance(size, (int, torch.SymInt)) else tuple(size)
    sizes = image.shape[-2:]
    same = all(n is None or n == there for n, there in zip(wanted, sizes, strict=True))
    return image if same else F.adaptive_avg_pool2d(image, size)  # type: ignore[arg-type]
