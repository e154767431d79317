"""Random networks whose code does more than call layers: it reads its other arguments, sizes, contexts and noise.

The ops of `random_nets` come between those of `CALLS`. A network takes `task` and `flag`, which are no
tensors, and `mask`, which may be None.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from random_nets import OPS as LAYERS
from random_nets import WIDTHS, Make, Random, Run, Step, keep, matched
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

__all__ = ["CALLS", "Called", "build", "images"]

CALLS: dict[str, tuple[Make, Run]] = {}


def call(make: Make) -> Any:
    """Register an op; it finds the further arguments of the call among its modules."""

    def register(run: Run) -> Run:
        CALLS[run.__name__] = (make, run)
        return run

    return register


@call(lambda a, b, n: ({"c": nn.Conv2d(a, WIDTHS[n % 4], 1), "d": nn.Conv2d(a, WIDTHS[n % 4], 1)}, WIDTHS[n % 4]))
def by_task(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["c" if own["task"] == "a" else "d"](x)


@call(lambda a, b, n: ({"c": nn.Conv2d(a, a, 1)}, a))
def by_flag(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    flag = own["flag"]
    return (own["c"](x) if flag else x) if n % 2 else own["c"](x) * (1 + 2 * flag)


@call(keep)
def masked(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    mask = own["mask"]
    if n % 2:
        return x if mask is None else x * mask
    return x.masked_fill(mask < 0, 0.3) if mask is not None else x.tanh()


@call(lambda a, b, n: ({"c": nn.Conv2d(a, WIDTHS[n % 4], 1)}, WIDTHS[n % 4]))
def in_context(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    contexts: tuple[Any, ...] = (
        *(torch.no_grad(), torch.enable_grad(), torch.set_grad_enabled(bool(n % 2)), contextlib.nullcontext()),
        *(torch.autocast("cpu", enabled=False), torch.autocast("cpu", dtype=torch.bfloat16)),
    )
    with contexts[n % 6]:
        return own["c"](x).relu()


@call(lambda a, b, n: ({"c": nn.Conv2d(a, 12, 1), "o": nn.Conv2d(4, a, 1)}, a))
def attended_in_context(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    q, k, v = own["c"](x).flatten(2).mT.unsqueeze(1).chunk(3, -1)
    with sdpa_kernel(SDPBackend.MATH):
        t = F.scaled_dot_product_attention(q, k, v)
    return x + own["o"](t.squeeze(1).mT.reshape(x.shape[0], 4, *x.shape[2:]))


@call(keep)
def by_dtype(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    if x.dtype == torch.bfloat16:
        return x.float()
    return x.exp() if n % 2 and x.requires_grad and not torch.is_grad_enabled() else x.contiguous()


@call(keep)
def noisy(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (
        F.dropout(x, 0.5, True), x + torch.randn_like(x), x * torch.rand(x.shape[0], 1, 1, 1, dtype=x.dtype),
        F.dropout2d(x.sigmoid(), 0.5, True), x + torch.empty_like(x).normal_(), x.sigmoid().bernoulli() + x,
    )[n % 6]  # fmt: skip


@call(matched)
def joined_by_size(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    y = own["c"](y) if "c" in own else y
    return x + F.interpolate(F.adaptive_avg_pool2d(y, 2), size=x.shape[2:]) if x.shape[2] > 2 else x - y


SHAPES = 10


@call(keep)
def reshaped(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    """Reshapes that keep channels in line, mix them with positions, or do one of both by size."""
    b, c, h, w = x.shape
    tokens = x.flatten(2).transpose(1, 2)
    half = c // 2 if c % 2 == 0 else c
    return (
        lambda: tokens.transpose(1, 2).reshape(b, c, h, w),
        lambda: tokens.reshape(b, c, h, w),
        lambda: x.reshape(b, -1, w).view(b, c, h, w),
        lambda: x.reshape(b, c * h, w).softmax(1).view(x.shape),
        lambda: x.view(b, c, -1).flip(-1).view_as(x),
        lambda: x.reshape(b, half, -1, w).mean(2, keepdim=True).repeat(1, c // half, h, 1),
        lambda: x.permute(0, 2, 3, 1).reshape(b, h, w * c).view(b, h, w, c).permute(0, 3, 1, 2),
        lambda: x.reshape(b * c, 1, h, w).tanh().reshape(b, c, h, w),
        lambda: x.permute(0, 2, 3, 1).reshape(-1, c).softmax(0).view(b, h, w, c).permute(0, 3, 1, 2),
        lambda: x.as_strided(x.shape, x.stride()) if n > SHAPES else x.unflatten(2, (-1, 1)).flatten(2, 3),
    )[n % SHAPES]()


@call(lambda a, b, n: ({"c": nn.Conv2d(a, a, 1), "t": nn.Conv2d(1, a, 1)}, a))
def with_table(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    """A position table: of the size at hand, resized to it, or cut to it."""
    _, c, h, w = x.shape
    rows = torch.arange(h, dtype=x.dtype)[:, None].expand(h, w)
    table = own["t"](rows[None, None] / 8) if n % 2 else own["t"].weight[:, 0].expand(c, h, w)
    return own["c"](x) + (table if n % 3 else table[..., : min(w, 5)].sum((-1, -2), keepdim=True))


class Called(Random):
    """A random network with further arguments, which the ops of `CALLS` find among their modules."""

    ops = LAYERS | CALLS

    def forward(  # type: ignore[override]
        self, first: Tensor, second: Tensor | None = None, task: str = "a", flag: bool = False, *, mask: Any = None
    ) -> list[Tensor]:
        images = (first,) if second is None else (first, second)
        return super().forward(*images, task=task, flag=flag, mask=mask)


def build(description: tuple[list[Step], int, int]) -> Called:
    """The network of a description."""
    steps, inputs, outputs = description
    torch.manual_seed(0)
    return Called([Step("conv", 0, 0, 2), *steps], inputs, outputs)


def images(count: int, batch: int, height: int, width: int) -> dict[str, Tensor]:
    """The images of a call of a network that takes as many."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, 3, height, width)
    return {n: torch.randn(shape, generator=generator, dtype=torch.float64) for n in ("first", "second")[:count]}
