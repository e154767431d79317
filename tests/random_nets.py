"""Random networks for the fuzzer, each described by a list of steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["OPS", "WIDTHS", "Make", "Random", "Run", "Step", "build", "keep", "matched"]

SIZE = 4


@dataclass(frozen=True)
class Step:
    """One op of a random net: its name, its operands (tensors so far, counted from the last), and a number."""

    op: str
    first: int
    second: int
    number: int


Make = Callable[[int, int, int], tuple[dict[str, nn.Module], int]]
Run = Callable[[dict[str, Any], Tensor, Tensor, int], Tensor]


class Random(nn.Module):
    """The network of a list of steps. Its tensors are images (batch, channels, 4, 4)."""

    ops: ClassVar[dict[str, tuple[Make, Run]]] = {}

    def __init__(self, steps: list[Step], inputs: int, outputs: int) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = steps, inputs, outputs
        self.parts = nn.ModuleDict()
        widths = [3] * inputs
        for k, step in enumerate(steps):
            a, b = widths[-1 - step.first % len(widths)], widths[-1 - step.second % len(widths)]
            made, width = self.ops[step.op][0](a, b, step.number)
            for name, part in made.items():
                self.parts[f"s{k}_{name}"] = part
            widths.append(width)
        self.head = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, *inputs: Tensor, **arguments: Any) -> list[Tensor]:
        tensors = list(inputs)
        for k, step in enumerate(self.steps):
            x, y = tensors[-1 - step.first % len(tensors)], tensors[-1 - step.second % len(tensors)]
            prefix = f"s{k}_"
            own = {name.removeprefix(prefix): part for name, part in self.parts.items() if name.startswith(prefix)}
            own |= arguments if step.op not in OPS else {}
            tensors.append(self.ops[step.op][1](own, x, y, step.number))
        return [self.head(tensors[-1]), *(t.amax((2, 3)) for t in tensors[self.inputs :][-self.outputs : -1])]


OPS = Random.ops


def op(make: Make) -> Callable[[Run], Run]:
    """Register an op: `make` returns its modules and its width, from its operands' widths; the function runs it."""

    def register(run: Run) -> Run:
        OPS[run.__name__] = (make, run)
        return run

    return register


def divisor(width: int, number: int) -> int:
    """One of the divisors of a width."""
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    return divisors[number % len(divisors)]


def norms(width: int, number: int) -> tuple[nn.Module, ...]:
    groups = divisor(width, number)
    return nn.BatchNorm2d(width), nn.GroupNorm(groups, width), nn.InstanceNorm2d(width), nn.GroupNorm(1, width)


def keep(a: int, b: int, n: int) -> tuple[dict[str, nn.Module], int]:
    return {}, a


def matched(a: int, b: int, n: int) -> tuple[dict[str, nn.Module], int]:
    """For ops on two operands of the same width."""
    return {} if a == b else {"c": nn.Conv2d(b, a, 1)}, a


WIDTHS = (4, 6, 8, 12)


def layer(name: str, make: Callable[[int, int], nn.Module], width: Callable[[int, int], int] = lambda a, n: a) -> None:
    """Register a layer: `make` and `width` take the operand's width and the number of the step."""
    OPS[name] = (lambda a, b, n: ({"c": make(a, n)}, width(a, n)), lambda own, x, y, n: own["c"](x))


layer("conv", lambda a, n: nn.Conv2d(a, WIDTHS[n % 4], 3, padding=1, bias=n % 3 > 0), lambda a, n: WIDTHS[n % 4])
layer(
    "grouped_conv",
    lambda a, n: nn.Conv2d(a, a * (1 + n % 2), 3, padding=1, groups=divisor(a, n)),
    lambda a, n: a * (1 + n % 2),
)
layer("depthwise", lambda a, n: nn.Conv2d(a, a, 3, padding=1, groups=a))
layer("norm", lambda a, n: norms(a, n // 4)[n % 4])
layer("weight_norm", lambda a, n: nn.utils.parametrizations.weight_norm(nn.Conv2d(a, 6, 1), dim=n % 2), lambda a, n: 6)
layer("prelu", lambda a, n: nn.PReLU(a if n % 2 else 1))


@op(lambda a, b, n: ({"c": nn.ConvTranspose2d(a, a, 2, 2, groups=divisor(a, n))}, a))
def transposed_conv(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return F.max_pool2d(own["c"](x), 2)


@op(lambda a, b, n: ({"c": nn.Linear(a, WIDTHS[n % 4])}, WIDTHS[n % 4]))
def linear(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["c"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@op(lambda a, b, n: ({"c": nn.Conv2d(a, a, 1), "n": nn.BatchNorm2d(a)}, a))
def shared_twice(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["n"](own["c"](own["n"](own["c"](x)).relu()))


@op(lambda a, b, n: ({"n": nn.LayerNorm(a) if n % 2 else nn.RMSNorm(a, eps=1e-5)}, a))
def layer_norm(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["n"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@op(keep)
def activation(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (F.relu, torch.sigmoid, torch.tanh, F.silu, torch.exp, F.hardswish, lambda t: t.clamp(0.1, 1), torch.cos)[
        n % 8
    ](x)


@op(matched)
def residual(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    y = own["c"](y) if own else y
    return (x + y, x - y, x * y, torch.maximum(x, y))[n % 4]


@op(lambda a, b, n: ({}, a + b))
def concatenate(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return torch.cat([x, y], 1)


@op(lambda a, b, n: ({}, a if a % 2 else a // 2))
def halves(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    if x.shape[1] % 2:
        return x
    c = x.shape[1] // 2
    u, v = (x.chunk(2, 1), x.split(c, dim=1), (x[:, :c], x[:, c:]), (x.narrow(1, 0, c), x.narrow(1, c, c)))[n % 4]
    return (u + v, u * v.sigmoid(), v)[n % 3]


@op(lambda a, b, n: ({}, a))
def split_and_join(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    first = 1 + n % max(1, x.shape[1] - 1)
    return torch.cat([x[:, :first].relu(), x[:, first:]][:: 1 if n % 2 else -1], 1) if x.shape[1] > 1 else x


@op(keep)
def shuffle(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    b, c, h, w = x.shape
    g = divisor(int(c), n)
    return x.view(b, g, c // g, h, w).transpose(1, 2).reshape(b, c, h, w)


@op(lambda a, b, n: ({"d": nn.Linear(a, 3), "u": nn.Linear(3, a)}, a))
def squeeze_excite(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    scale = own["u"](own["d"](x.mean((2, 3))).relu()).sigmoid()
    return x * (scale[:, :, None, None] if n % 2 else scale.view(*scale.shape, 1, 1).expand_as(x))


@op(lambda a, b, n: ({"qkv": nn.Linear(a, 3 * 12, bias=n % 2 > 0), "o": nn.Linear(12, a)}, a))
def attention(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    b, c, h, w = x.shape
    heads = (1, 2, 3, 4, 6)[n % 5]
    q, k, v = own["qkv"](x.flatten(2).transpose(1, 2)).reshape(b, h * w, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    if n % 3:
        y = F.scaled_dot_product_attention(q, k, v)
    else:
        y = ((q @ k.transpose(-2, -1)) / q.shape[-1] ** 0.5).softmax(-1) @ v
    return x + own["o"](y.transpose(1, 2).flatten(2)).transpose(1, 2).reshape(b, c, h, w)


@op(lambda a, b, n: ({"m": nn.MultiheadAttention(a, divisor(a, n), batch_first=True)}, a))
def torch_attention(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    t = x.flatten(2).mT
    return own["m"](t, t, t, need_weights=n % 2 == 0)[0].mT.unflatten(2, (SIZE, SIZE))


@op(lambda a, b, n: ({"u": nn.Linear(a, 2 * 6), "d": nn.Linear(6, a)}, a))
def gated_mlp(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    t = own["u"](x.permute(0, 2, 3, 1))
    gated = F.glu(t) if n % 2 else t[..., :6] * F.gelu(t[..., 6:])
    return x + own["d"](gated).permute(0, 3, 1, 2)


@op(lambda a, b, n: ({"f": nn.Linear(a * SIZE * SIZE, 6), "g": nn.Linear(6, a)}, a))
def flattened(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    t = (
        x.flatten(1), x.contiguous().view(x.size(0), -1), x.reshape(-1, x.shape[1] * SIZE * SIZE), torch.flatten(x, 1),
    )[n % 4]  # fmt: skip
    return x + own["g"](own["f"](t).tanh())[..., None, None]


@op(keep)
def mixed_in_space(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (
        F.avg_pool2d(x, 3, 1, 1), F.interpolate(F.max_pool2d(x, 2), scale_factor=2), x.flip(2), x.roll(1, 3),
        x.softmax(2), x.cumsum(3), F.pad(x, (1, 1))[..., 1:-1], x.amax((2, 3), keepdim=True).expand_as(x),
    )[n % 8]  # fmt: skip


@op(keep)
def mixed_in_channels(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (
        x - x.mean(1, keepdim=True), F.normalize(x, dim=1), x.softmax(1), x / (x.norm(dim=1, keepdim=True) + 1),
        x.cumsum(1), x * x.sum(1, keepdim=True).sigmoid(), x.flip(1), x + x[:, :1],
    )[n % 8]  # fmt: skip


@op(lambda a, b, n: ({}, (2 * a, 2 * a, 2 * a, a + 3)[n % 4]))
def widened(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (
        torch.cat([x, x], 1), x.repeat(1, 2, 1, 1), x.repeat_interleave(2, 1), F.pad(x, (0, 0, 0, 0, 1, 2)),
    )[n % 4]  # fmt: skip


@op(lambda a, b, n: ({}, a if a % 4 else a // 4))
def pixels(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return x if x.shape[1] % 4 else F.max_pool2d(F.pixel_shuffle(x, 2), 2)


@op(matched)
def stacked(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    both = torch.stack([x, own["c"](y) if own else y], n % 2)
    return both.sum(n % 2) if n % 3 else both.unbind(n % 2)[0]


@op(matched)
def multiplied(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    y = own["c"](y) if own else y
    gram = x.flatten(2) @ y.flatten(2).mT if n % 2 else torch.einsum("bcn,bdn->bcd", x.flatten(2), y.flatten(2))
    return x + (gram @ x.flatten(2)).view_as(x) * 0.1 if n % 3 else x * gram.mean((1, 2))[:, None, None, None]


@op(
    lambda a, b, n: (
        {"r": (nn.LSTM, nn.GRU)[n % 2](a, 5, 1 + n % 3 // 2, batch_first=True, bidirectional=n % 4 > 1)},
        10 if n % 4 > 1 else 5,
    )
)
def recurrent(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["r"](x.flatten(2).mT)[0].mT.unflatten(2, (SIZE, SIZE))


@op(lambda a, b, n: ({"c": nn.Linear(a, 4 * 6), "h": nn.Linear(6, 4 * 6, bias=False)}, 6))
def recurrence_spelt_out(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    h = c = x.new_zeros(x.shape[0], 6) if n % 2 else torch.zeros((x.shape[0], 6), dtype=x.dtype)
    for t in range(2):
        i, f, g, o = (own["c"](x[..., 0, t]) + own["h"](h)).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
    return h[:, :, None, None].expand(-1, -1, SIZE, SIZE)


@op(keep)
def ordered(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    t = x.flatten(2)
    index = t.mean(1, keepdim=True).argsort(-1)
    zeros = torch.zeros_like(t)
    t = (
        t.sort(-1)[0], t.gather(2, index.expand_as(t)), t.topk(SIZE * SIZE, 2).values,
        t + t.kthvalue(2, 2)[0][..., None], zeros.scatter_add(2, index.expand(-1, t.shape[1], -1), t),
        t.take_along_dim(index, 2), t.index_select(2, torch.arange(SIZE * SIZE).flip(0)), t.sort(1)[0],
    )[n % 8]  # fmt: skip
    return t.unflatten(2, (SIZE, SIZE))


@op(keep)
def written(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    z = x.clone() if n % 3 else torch.zeros_like(x)
    k = 1 + n % max(1, x.shape[1] - 1)
    if n % 8 == 0:
        z[:, :k] = x[:, :k].sigmoid()
    elif n % 8 == 1:
        z[:, :, 1:] = x[:, :, :-1]
    elif n % 8 == 2:
        z[:, k - 1] = 0.5
    elif n % 8 == 3:
        z[z > 0.3] = 0.1
    elif n % 8 == 4:
        z[:, :k] += 1
    elif n % 8 == 5:
        z[..., 0].mul_(2)
    elif n % 8 == 6:
        z[:, k - 1 :].relu_()
    else:
        z[:, ::2] = x[:, ::2].tanh()
    return z


@op(keep)
def written_through_views(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    z, k = x.clone(), 1 + n % max(1, x.shape[1] - 1)
    early = z[:, :k]
    if n % 4 == 0:
        z.narrow(1, 0, k).add_(1)
    elif n % 4 == 1:
        z.flatten(2).sigmoid_()
    elif n % 4 == 2:
        z.add_(0.5)
    else:
        F.dropout(z.transpose(1, 2), 0.5, False).cos_()
    return z + (early if n % 3 else z).sum(1, keepdim=True).tanh()


@op(lambda a, b, n: ({}, a if a % 2 else (a, a // 2)[n % 2]))
def stepped(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    if x.shape[1] % 2:
        return x
    u, v = x[:, ::2], x[:, 1::2]
    if n % 2:
        return u * v.sigmoid() if n % 4 == 1 else F.glu(x, 1)
    return torch.cat([u, v], 1) if n % 4 == 0 else torch.stack([u, v], 2).flatten(1, 2)


@op(lambda a, b, n: ({}, a if n % 2 == 0 else 4 * a))
def unshuffled(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    if n % 2 == 0:
        return F.channel_shuffle(x, divisor(x.shape[1], n // 2))
    return F.interpolate(F.pixel_unshuffle(x, 2), scale_factor=2)


@op(keep)
def transformed(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (
        torch.fft.irfft2(torch.fft.rfft2(x) * 2, s=(SIZE, SIZE)), torch.fft.fft(x, dim=2).real,
        torch.fft.fft(x, dim=1).abs(), x + torch.fft.fft2(x, norm="ortho").imag,
    )[n % 4]  # fmt: skip


class Computed(nn.Module):
    """A layer whose weight is computed from its parameter."""

    def __init__(self, width: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        self.w, self.b = nn.Parameter(torch.zeros(width, width, 1, 1)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        w = (self.w + 1, self.w * 2, self.w.exp(), self.w / self.w.norm(dim=1, keepdim=True), self.w.softmax(1))[
            self.kind % 5
        ]
        if self.kind % 3 == 0:
            return F.conv2d(x, w, self.b)
        if self.kind % 3 == 1:
            return F.layer_norm(x.permute(0, 2, 3, 1), (x.shape[1],), 1 + self.b, self.b).permute(0, 3, 1, 2)
        return torch.einsum("bchw,oc->bohw", x, w.flatten(1)) + self.b[:, None, None]


layer("computed_weight", lambda a, n: Computed(a, n))


@op(lambda a, b, n: ({"c": nn.Linear(a, a * 3)}, a))
def modulated(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    """Each sample has its own kernel; all are one grouped convolution."""
    b, c, h, w = x.shape
    kernels = own["c"](x.mean((2, 3))).view(b * c, 1, 1, 3)
    if n % 2:
        x = F.conv2d(x.reshape(1, b * c, h, w), kernels, padding=(0, 1), groups=b * c).view(b, c, h, w)
    else:
        x = (F.unfold(x, (1, 3), padding=(0, 1)).view(b, c, 3, h, w) * kernels.view(b, c, 3, 1, 1)).sum(2)
    return x


@op(matched)
def chosen(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    y = own["c"](y) if own else y
    return (
        torch.where(x > y, x, y), x.masked_fill(y > 0, 0.5), torch.lerp(x, y, 0.3), x * (y.mean(1, keepdim=True) > 0),
        torch.addcmul(x, y, y), torch.where(y.amax((2, 3), keepdim=True) > 0.1, x, torch.zeros_like(x)),
    )[n % 6]  # fmt: skip


@op(keep)
def blurred(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    kernel = torch.ones(1, 1, 3, 3, dtype=x.dtype)
    kernel = kernel.expand(x.shape[1], -1, -1, -1) if n % 2 else kernel.repeat(x.shape[1], 1, 1, 1)
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), kernel, groups=x.shape[1])


def build(description: tuple[list[Step], int, int]) -> tuple[Random, tuple[Tensor, ...]]:
    steps, inputs, outputs = description
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.randn(2, 3, SIZE, SIZE, generator=generator) for _ in range(inputs))
    torch.manual_seed(0)
    return Random([Step("conv", 0, 0, 2), *steps], inputs, outputs), images
