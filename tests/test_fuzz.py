"""Random graphs, random plans, random budgets: the invariant, the FLOPs and the shapes hold for all of them.

`FXPRUNE_FUZZ=1000 pytest tests/test_fuzz.py` tries that many.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invariant import check_invariant, masks, plan_for, prunable, randomise
from torch import Tensor, nn

import fxprune

EXAMPLES = int(os.environ.get("FXPRUNE_FUZZ", "50"))
SIZE = 4


@dataclass(frozen=True)
class Step:
    """One op of a random net: which, on which of the tensors so far (counted from the last), with which number."""

    op: str
    first: int
    second: int
    number: int


class Random(nn.Module):
    """A net that a list of steps describes. Its tensors are images (batch, channels, 4, 4)."""

    def __init__(self, steps: list[Step], inputs: int, outputs: int) -> None:
        super().__init__()
        self.steps, self.inputs, self.outputs = steps, inputs, outputs
        self.parts = nn.ModuleDict()
        widths = [3] * inputs
        for k, step in enumerate(steps):
            a, b = widths[-1 - step.first % len(widths)], widths[-1 - step.second % len(widths)]
            made, width = OPS[step.op][0](a, b, step.number)
            for name, part in made.items():
                self.parts[f"s{k}_{name}"] = part
            widths.append(width)
        self.head = nn.Conv2d(widths[-1], 2, 1)

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        tensors = list(inputs)
        for k, step in enumerate(self.steps):
            x, y = tensors[-1 - step.first % len(tensors)], tensors[-1 - step.second % len(tensors)]
            prefix = f"s{k}_"
            own = {name.removeprefix(prefix): part for name, part in self.parts.items() if name.startswith(prefix)}
            tensors.append(OPS[step.op][1](own, x, y, step.number))
        rest = [t.amax((2, 3)) for t in tensors[len(inputs) :][-self.outputs : -1]]
        return [self.head(tensors[-1]), *rest]


Make = Callable[[int, int, int], tuple[dict[str, nn.Module], int]]
Run = Callable[[dict[str, Any], Tensor, Tensor, int], Tensor]
OPS: dict[str, tuple[Make, Run]] = {}


def op(make: Make) -> Callable[[Run], Run]:
    """Register an op: how its modules and its width come from its operands' widths, and what it does."""

    def register(run: Run) -> Run:
        OPS[run.__name__] = (make, run)
        return run

    return register


def divisor(width: int, number: int) -> int:
    """One of the divisors of a width."""
    divisors = [d for d in range(1, width + 1) if width % d == 0]
    return divisors[number % len(divisors)]


def keep(a: int, b: int, n: int) -> tuple[dict[str, nn.Module], int]:
    return {}, a


WIDTHS = (4, 6, 8, 12)


@op(lambda a, b, n: ({"c": nn.Conv2d(a, WIDTHS[n % 4], 3, padding=1, bias=n % 3 > 0)}, WIDTHS[n % 4]))
def conv(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["c"](x)


@op(lambda a, b, n: ({"c": nn.Conv2d(a, a * (1 + n % 2), 3, padding=1, groups=divisor(a, n))}, a * (1 + n % 2)))
def grouped_conv(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["c"](x)


@op(lambda a, b, n: ({"c": nn.Conv2d(a, a, 3, padding=1, groups=a)}, a))
def depthwise(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["c"](x)


@op(lambda a, b, n: ({"c": nn.ConvTranspose2d(a, a, 2, 2, groups=divisor(a, n))}, a))
def transposed_conv(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return F.max_pool2d(own["c"](x), 2)


@op(lambda a, b, n: ({"c": nn.Linear(a, WIDTHS[n % 4])}, WIDTHS[n % 4]))
def linear(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["c"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@op(lambda a, b, n: ({"c": nn.Conv2d(a, a, 1), "n": nn.BatchNorm2d(a)}, a))
def shared_twice(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["n"](own["c"](own["n"](own["c"](x)).relu()))


@op(
    lambda a, b, n: (
        {
            "n": (nn.BatchNorm2d(a), nn.GroupNorm(divisor(a, n // 4), a), nn.InstanceNorm2d(a), nn.GroupNorm(1, a))[
                n % 4
            ]
        },
        a,
    )
)
def norm(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["n"](x)


@op(lambda a, b, n: ({"n": nn.LayerNorm(a) if n % 2 else nn.RMSNorm(a, eps=1e-5)}, a))
def layer_norm(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return own["n"](x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


@op(keep)
def activation(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    return (F.relu, torch.sigmoid, torch.tanh, F.silu, torch.exp, F.hardswish, lambda t: t.clamp(0.1, 1), torch.cos)[
        n % 8
    ](x)


@op(lambda a, b, n: ({} if a == b else {"c": nn.Conv2d(b, a, 1)}, a))
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
        x.flatten(1),
        x.contiguous().view(x.size(0), -1),
        x.reshape(-1, x.shape[1] * SIZE * SIZE),
        torch.flatten(x, 1),
    )[n % 4]
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


@op(lambda a, b, n: ({} if a == b else {"c": nn.Conv2d(b, a, 1)}, a))
def stacked(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    both = torch.stack([x, own["c"](y) if own else y], n % 2)
    return both.sum(n % 2) if n % 3 else both.unbind(n % 2)[0]


@op(lambda a, b, n: ({} if a == b else {"c": nn.Conv2d(b, a, 1)}, a))
def multiplied(own: dict[str, Any], x: Tensor, y: Tensor, n: int) -> Tensor:
    y = own["c"](y) if own else y
    gram = x.flatten(2) @ y.flatten(2).mT if n % 2 else torch.einsum("bcn,bdn->bcd", x.flatten(2), y.flatten(2))
    return x + (gram @ x.flatten(2)).view_as(x) * 0.1 if n % 3 else x * gram.mean((1, 2))[:, None, None, None]


steps = st.builds(Step, st.sampled_from(sorted(OPS)), st.integers(0, 3), st.integers(0, 5), st.integers(0, 23))
nets = st.tuples(st.lists(steps, min_size=1, max_size=8), st.integers(1, 2), st.integers(1, 3))


def build(description: tuple[list[Step], int, int]) -> tuple[Random, tuple[Tensor, ...]]:
    chain, inputs, outputs = description
    first = [Step("conv", 0, 0, 2)]
    generator = torch.Generator().manual_seed(0)
    images = tuple(torch.randn(2, 3, SIZE, SIZE, generator=generator) for _ in range(inputs))
    torch.manual_seed(0)
    return Random(first + chain, inputs, outputs), images


@settings(
    max_examples=EXAMPLES, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
)
@given(nets, st.integers(0, 2**16), st.floats(0.3, 0.95))
def test_a_random_net_is_pruned_right(description: tuple[list[Step], int, int], seed: int, budget: float) -> None:
    torch.set_num_threads(1)
    model, inputs = build(description)
    graph = check_invariant(model, inputs, seed=seed)
    try:
        plan = fxprune.make_plan(graph, fxprune.scores(graph, "random", seed=seed), flops=budget)
    except fxprune.FxpruneError as error:
        if "cannot be reached" in str(error):
            return
        raise
    assert plan.flops <= plan.flops_target
    double = tuple(x.double() for x in inputs)
    pruned = fxprune.rewrite(graph, plan)
    assert fxprune.verify(model, pruned, double) <= 1e-9
    assert fxprune.count_flops(pruned, double) == plan.flops


# The shrunk nets of the bugs that were found.
FOUND: dict[str, tuple[list[Step], int, int]] = {
    "what nobody uses is not counted, though its random numbers are drawn": (
        [Step("attention", 0, 0, 1), Step("activation", 1, 0, 0)],
        1,
        1,
    ),
    "what nobody uses is not counted, though its statistics are kept": (
        [Step("shared_twice", 0, 0, 0), Step("activation", 1, 0, 0)],
        1,
        1,
    ),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_net_that_was_pruned_wrong_once_is_pruned_right(name: str) -> None:
    model, inputs = build(FOUND[name])
    for seed in range(3):
        check_invariant(model, inputs, seed=seed)


def test_the_random_nets_have_something_to_prune() -> None:
    model, inputs = build(([Step("conv", 0, 0, 1), Step("attention", 0, 0, 1), Step("residual", 0, 1, 0)], 2, 2))
    graph = fxprune.analyze(fxprune.trace(randomise(model), tuple(x.double() for x in inputs)))
    assert prunable(graph) > 6
    assert all(plan_for(graph, alive).flops < graph.flops.total for alive in masks(graph, 3))
