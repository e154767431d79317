"""Ops that move, merge, split, repeat and select dimensions."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from torch import Tensor, nn

X = torch.randn(3, 4)
ORDER = torch.tensor([3, 1, 0, 2, 7, 6, 5, 4])


def vectors(function: object, wide: int = 8, out: int = 8, **parts: object) -> nn.Module:
    """A function of the module and of channels between two linear layers."""
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Linear(4, wide), out=nn.Linear(out, 2), **parts
    )  # type: ignore[operator]


def images(function: object, wide: int = 8, out: int = 8, **parts: object) -> nn.Module:
    """A function of the module and of channels between two convolutions."""
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Conv2d(3, wide, 1), out=nn.Conv2d(out, 2, 1), **parts
    )  # type: ignore[operator]


def shuffle(self: nn.Module, x: Tensor, groups: int = 2) -> Tensor:
    b, c, h, w = x.shape
    return x.view(b, groups, c // groups, h, w).transpose(1, 2).reshape(b, c, h, w)


def heads(self: Any, x: Tensor) -> Tensor:
    b, n, c = x.shape
    q, k, v = self.qkv(x).reshape(b, n, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
    y = ((q @ k.transpose(-2, -1)) * 0.5).softmax(-1) @ v
    return self.out(y.transpose(1, 2).reshape(b, n, c))


def squeeze_excite(self: Any, x: Tensor) -> Tensor:
    b, c = x.shape[:2]
    y = F.adaptive_avg_pool2d(x, 1).view(b, c)
    return x * self.up(self.down(y).relu()).sigmoid().view(b, c, 1, 1)


SE = {"down": nn.Linear(8, 3), "up": nn.Linear(3, 8)}


def filled_in_parts(self: Any, x: Tensor, made: Any) -> Tensor:
    y = self.a(x)
    parts = made(y)
    parts[..., :4] = y[..., :4].relu()
    parts[..., 4:] = y[..., 4:].tanh()
    return self.out(parts)


def with_no_registers(self: Any, x: Tensor) -> Tensor:
    """None of a number that may be zero: nothing is joined to the tokens, and nothing to what is flattened."""
    tokens = self.a(x)
    registers = self.registers.unsqueeze(0).expand(len(x), -1, -1).reshape(len(x), -1, self.registers.shape[-1])
    tokens = self.b(torch.cat([registers, tokens], 1))
    return torch.cat([tokens.flatten(1), tokens[:, 7:].reshape(len(x), -1)], 1)


NETS = {
    # reshape
    **{
        f"{name} is filled in parts": (
            lambda made=made: net(
                lambda self, x: filled_in_parts(self, x, made), a=nn.Linear(4, 8), out=nn.Linear(8, 2)
            ),
            tokens(),
            8,
        )
        for name, made in {
            "what empty makes": lambda y: torch.empty(y.shape[0], y.shape[1], 8, dtype=y.dtype),
            "what new_empty makes": lambda y: y.new_empty(y.shape),
            "what new makes": lambda y: y.new(*y.shape),
        }.items()
    },
    "tensors without elements": (
        lambda: net(with_no_registers, a=nn.Linear(4, 8), b=nn.Linear(8, 2), registers=parameter(0, 8)),
        tokens(),
        8,
    ),
    "flatten between conv and linear": (
        lambda: net(lambda self, x: self.b(self.a(x).flatten(1)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(8 * 36, 2)),
        image(),
        8,
    ),
    "a flatten module between conv and linear": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Flatten(), nn.Linear(8 * 36, 2)),
        image(),
        8,
    ),
    "view by batch between conv and linear": (
        lambda: net(lambda self, x: self.b(self.a(x).view(x.size(0), -1)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2)),
        image(),
        8,
    ),
    "view by the number of elements of a shape": (
        lambda: net(
            lambda self, x: self.b((y := self.a(x)).view(-1, y.shape[1:].numel()) * (y.shape.numel() / y.shape[0])),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(8 * 36, 2),
        ),
        image(),
        8,
    ),
    "view by sizes of which two follow the input": (
        lambda: images(
            lambda self, x: x.view(-1, x.shape[1] * x.shape[2], x.shape[3]).view(-1, 8, x.shape[2], x.shape[3])
        ),
        image(),
        8,
    ),
    "view by literal between conv and linear": (
        lambda: net(lambda self, x: self.b(self.a(x).view(-1, 288)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2)),
        image(),
        8,
    ),
    "reshape by the product of sizes": (
        lambda: net(
            lambda self, x: self.b((y := self.a(x)).reshape(y.shape[0], y.shape[1] * y.shape[2] * y.shape[3])),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Linear(288, 2),
        ),
        image(),
        8,
    ),
    "unflatten from linear to conv": (
        lambda: net(
            lambda self, x: self.b(self.a(x).unflatten(1, (8, 3, 3))), a=nn.Linear(4, 72), b=nn.Conv2d(8, 2, 1)
        ),
        X,
        8,
    ),
    "an unflatten module": (
        lambda: nn.Sequential(nn.Linear(4, 40), nn.Unflatten(1, (20, 2, 1)), nn.Conv2d(20, 2, 1)),
        X,
        20,
    ),
    "heads of attention": (lambda: net(heads, qkv=nn.Linear(8, 24), out=nn.Linear(8, 2)), tokens(5, 8), 4),
    "more heads than channels in each": (
        lambda: vectors(lambda self, x: (x.view(x.shape[0], 4, 2) * 2).flatten(1)),
        X,
        4,
    ),
    "channel shuffle": (lambda: images(shuffle), image(), 4),
    "channel shuffle of many shuffled groups": (lambda: images(lambda self, x: shuffle(self, x, 4)), image(), 4),
    "channel shuffle between grouped convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 1), nn.ChannelShuffle(2), nn.Conv2d(8, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 2, 1)
        ),
        image(),
        None,
    ),
    "squeeze and excite": (lambda: images(squeeze_excite, **SE), image(), 11),
    "batch and channels merged": (
        lambda: images(
            lambda self, x: F.avg_pool2d(x.reshape(x.shape[0] * x.shape[1], 1, 6, 6), 3, 1, 1).reshape(x.shape)
        ),
        image(),
        8,
    ),
    "reshaped across channels is frozen": (lambda: vectors(lambda self, x: x.reshape(-1, 6), wide=8, out=6), X, None),
    "reshape and view as another tensor": (
        lambda: vectors(lambda self, x: x.view(-1, 8, 1).view_as(x) + x.unsqueeze(0).reshape_as(x)),
        X,
        8,
    ),
    "channels split by three axes": (
        lambda: vectors(lambda self, x: x.view(-1, 2, 3, 2).permute(0, 3, 1, 2).flatten(1), wide=12, out=12),
        X,
        3,
    ),
    # order
    "permuted, transposed, moved": (
        lambda: net(
            lambda self, x: self.out(self.a(x).permute(0, 2, 3, 1).transpose(1, 2).movedim(-1, 1).swapaxes(2, 3)),
            a=nn.Conv2d(3, 8, 1),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "turned matrices": (lambda: vectors(lambda self, x: x.t().T.mT.mT), X, 8),
    "squeezed and unsqueezed": (lambda: vectors(lambda self, x: x[:, None].unsqueeze(-1).squeeze(-1).squeeze(1)), X, 8),
    "rolled over space": (lambda: images(lambda self, x: torch.roll(x, (1, 2), (2, 3)).flip(3)), image(), 8),
    "rolled over channels is frozen": (lambda: images(lambda self, x: torch.roll(x, 1, 1)), image(), 0),
    # repetition
    "the same tensor twice": (lambda: images(lambda self, x: torch.cat([x, x], 1), out=16), image(), 8),
    **{
        f"a fixed kernel {name}": (
            lambda function=function, outputs=outputs: images(
                lambda self, x: F.conv2d(x, function(self.k, x.shape[1]), padding=1, groups=x.shape[1]),
                out=8 * outputs,
                k=torch.randn(outputs, 1, 3, 3),
            ),
            image(),
            8,
        )
        for name, outputs, function in (
            ("repeated for each channel", 1, lambda k, n: k.repeat(n, 1, 1, 1)),
            ("joined for each channel", 1, lambda k, n: torch.cat([k] * n)),
            ("tiled for each channel", 1, lambda k, n: k.tile((n, 1, 1, 1))),
            ("expanded for each channel", 1, lambda k, n: k.expand(n, -1, -1, -1)),
            ("interleaved for each channel", 1, lambda k, n: k.repeat_interleave(n, 0)),
            ("interleaved, as many as there are", 1, lambda k, n: torch.repeat_interleave(k, repeats=8, dim=0)),
            ("of two outputs, repeated for each channel", 2, lambda k, n: k.repeat(n, 1, 1, 1)),
            ("of two outputs, joined for each channel", 2, lambda k, n: torch.cat([k for _ in range(n)], 0)),
        )
    },
    "few fixed numbers, each as often as there are channels": (
        lambda: images(
            lambda self, x: x.repeat(1, 2, 1, 1) * self.k.repeat_interleave(8, 0)[:, None, None],
            out=16,
            k=torch.randn(2),
        ),
        image(),
        8,
    ),
    "repeated channels": (lambda: images(lambda self, x: x.repeat(1, 2, 1, 1), out=16), image(), 8),
    "channels repeated one by one": (lambda: images(lambda self, x: x.repeat_interleave(2, dim=1), out=16), image(), 8),
    "expanded over space": (
        lambda: images(lambda self, x: x + x.mean((2, 3), keepdim=True).expand(-1, -1, 6, 6)),
        image(),
        8,
    ),
    "expanded over channels": (
        lambda: images(lambda self, x: x * x.mean((2, 3), keepdim=True).sum(1, keepdim=True).expand(-1, 8, -1, -1)),
        image(),
        8,
    ),
    "expanded like another": (
        lambda: images(lambda self, x: x * self.gate(x).sigmoid().expand_as(x), gate=nn.Conv2d(8, 1, 1)),
        image(),
        8,
    ),
    "expanded by its shape": (
        lambda: images(lambda self, x: x * self.gate(x).sigmoid().expand(x.shape), gate=nn.Conv2d(8, 1, 1)),
        image(),
        8,
    ),
    "a token for each image": (
        lambda: net(
            lambda self, x: self.out(torch.cat([self.cls.expand(x.shape[0], -1, -1), self.a(x)], 1)),
            cls=nn.Parameter(torch.zeros(1, 1, 8)),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    # joining and cutting
    "dense concatenation": (
        lambda: net(
            lambda self, x: self.c(torch.cat([y := self.a(x), self.b(y).relu()], 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 5, 1),
            c=nn.Conv2d(13, 2, 1),
        ),
        image(),
        13,
    ),
    "concatenation with the input": (
        lambda: net(
            lambda self, x: self.b(torch.cat([x, self.a(x)], dim=1)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(11, 2, 1)
        ),
        image(),
        8,
    ),
    "concatenation along space": (lambda: images(lambda self, x: torch.cat([x, x.flip(2)], dim=2)), image(), 8),
    "chunks": (lambda: images(lambda self, x: operator.mul(*x.chunk(2, 1)), out=4), image(), 4),
    "chunks of different use": (
        lambda: images(
            lambda self, x: torch.cat([(c := x.chunk(2, 1))[0], self.b(c[1])], 1), out=4 + 3, b=nn.Conv2d(4, 3, 1)
        ),
        image(),
        11,
    ),
    "uneven chunks": (lambda: images(lambda self, x: torch.cat(x.chunk(3, 1)[:2], 1), out=6), image(), None),
    "split by one size": (lambda: images(lambda self, x: sum(x.split(2, dim=1)[1:]), out=2), image(), None),
    "split by sizes": (lambda: images(lambda self, x: torch.cat(torch.split(x, [5, 3], 1)[::-1], 1)), image(), 8),
    "split by a size read from the tensor": (
        lambda: images(lambda self, x: operator.add(*torch.split(x, x.shape[1] // 2, 1)), out=4),
        image(),
        4,
    ),
    "split into single channels": (lambda: images(lambda self, x: torch.cat(x.split(1, 1), 1)), image(), None),
    "narrowed": (
        lambda: images(lambda self, x: torch.cat([x.narrow(1, 0, 3).relu(), x.narrow(1, -5, 5)], 1)),
        image(),
        8,
    ),
    "sliced": (lambda: images(lambda self, x: torch.cat([x[:, :3].relu(), x[:, 3:]], 1)), image(), 8),
    "sliced from the end": (
        lambda: images(lambda self, x: torch.cat([x[:, :-3], x[:, -3:, ...].relu()], 1)),
        image(),
        8,
    ),
    "sliced by its own size": (
        lambda: images(lambda self, x: x[:, : x.shape[1] // 2] + x[:, x.shape[1] // 2 :], out=4),
        image(),
        4,
    ),
    "sliced in space": (lambda: images(lambda self, x: x[..., ::2, 1:]), image(), 8),
    "sliced with a step": (lambda: images(lambda self, x: torch.cat([x[:, ::2], x[:, 1::2]], 1)), image(), 4),
    "sliced with a step that does not divide the width": (
        lambda: images(lambda self, x: torch.cat([x[:, ::3], x[:, 2::3]], 1), out=5),
        image(),
        3,
    ),
    "sliced with a step from further on is frozen": (lambda: images(lambda self, x: x[:, 3::2], out=3), image(), 0),
    "written into by a mask": (
        lambda: vectors(
            lambda self, x: (y := x.sigmoid(), operator.setitem(y, x.sum(-1) > 0, self.b(x).mean((0, 1))), y)[2],
            b=nn.Linear(8, 8),
        ),
        tokens(),
        8,
    ),
    "picked by a mask": (lambda: images(lambda self, x: x[:, self.m], out=4, m=ORDER > 3), image(), 8),
    "picked by a mask and by what it leaves": (
        lambda: images(lambda self, x: torch.cat([x[:, self.m].relu(), x[:, ~self.m]], 1), m=ORDER > 3),
        image(),
        8,
    ),
    "picked by a list of truths": (
        lambda: images(lambda self, x: x[:, [True, False, True, True] * 2], out=6),
        image(),
        8,
    ),
    "picked where a mask is true": (
        lambda: images(lambda self, x: x.index_select(1, self.m.nonzero().squeeze(1)), out=4, m=ORDER > 3),
        image(),
        8,
    ),
    "one channel taken by number": (
        lambda: images(lambda self, x: x * x[:, 0:1].sigmoid() + x.select(1, 3).unsqueeze(1)),
        image(),
        6,
    ),
    "one token taken by number": (
        lambda: net(lambda self, x: self.out(self.a(x)[:, 0]), a=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        tokens(),
        8,
    ),
    "tokens taken by a list and by a tensor": (
        lambda: net(
            lambda self, x: self.out(self.a(x)[:, [0, 2]] + self.a(x)[:, self.i] + self.a(x).index_select(1, self.i)),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
            i=torch.tensor([1, 3]),
        ),
        tokens(),
        8,
    ),
    "channels in another order, by a buffer": (lambda: vectors(lambda self, x: x[:, self.i], i=ORDER), X, 8),
    "channels in another order, by a tensor that is no buffer": (
        lambda: images(lambda self, x, order=ORDER: x[:, order]),
        image(),
        8,
    ),
    "channels in another order, by index_select": (
        lambda: images(
            lambda self, x: torch.index_select(x, 1, self.i) + x.index_select(dim=-3, index=self.i.argsort()), i=ORDER
        ),
        image(),
        6,
    ),
    "channels taken by a list, some of them twice": (
        lambda: images(lambda self, x: torch.cat([x[:, [2, 0, -1, 2], 1:].sigmoid(), x[..., [5, 3], 1:, :]], 1), out=6),
        image(),
        8,
    ),
    "channels taken by a list of one": (lambda: images(lambda self, x: x + x[:, [3]]), image(), 7),
    "channels are shuffled by an index that is computed from sizes": (
        lambda: images(lambda self, x: x[:, torch.arange(x.shape[1], device=x.device).view(2, 4).t().flatten()] * x),
        image(),
        4,
    ),
    "channels by an index that is written into are frozen": (
        lambda: images(lambda self, x: (i := torch.arange(8), i.__setitem__(0, 3), x[:, i])[-1]),
        image(),
        0,
    ),
    "channels by an index of several dimensions are frozen": (
        lambda: images(lambda self, x: x[:, self.i.view(2, 4)].flatten(1, 2), i=ORDER),
        image(),
        0,
    ),
    "stacked": (lambda: images(lambda self, x: torch.stack([x, x.sigmoid()], 1).sum(1)), image(), 8),
    "stacked behind the channels": (
        lambda: images(lambda self, x: torch.stack((x, x.relu()), -1).flatten(3)[..., :6]),
        image(),
        8,
    ),
    "joined by functions that are named after the dimension": (
        lambda: images(
            lambda self, x: torch.dstack(
                [torch.hstack([x[:, :3], x[:, 3:].relu()]), torch.vstack([x, x])[: x.shape[0]]]
            )
        ),
        image(),
        8,
    ),
    "single numbers joined by a function that is named after the dimension are frozen": (
        lambda: net(
            lambda self, x: self.b(torch.vstack([self.a(x[0]), self.a(x[1])])), a=nn.Linear(4, 8), b=nn.Linear(8, 2)
        ),
        torch.randn(2, 4),
        0,
    ),
    "unbound over branches": (
        lambda: net(
            lambda self, x: self.out(operator.mul(*self.a(x).unflatten(-1, (2, 8)).unbind(-2))),
            a=nn.Linear(4, 16),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "gathered tokens": (
        lambda: net(
            lambda self, x: self.out(torch.gather(y := self.a(x), 1, y.argsort(1))),
            a=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        tokens(),
        8,
    ),
    "written into in space": (
        lambda: images(lambda self, x: (operator.setitem(x, (slice(None), slice(None), 0), 0.5), x)[1]),
        image(),
        8,
    ),
    "written into through a chunk": (
        lambda: images(lambda self, x: (x.chunk(2, 1)[0].add_(1), x.sum(1, keepdim=True).expand(-1, 8, -1, -1))[1]),
        image(),
        8,
    ),
    "written into after a view was taken": (
        lambda: images(lambda self, x: (v := x[:, :4], x.add_(1), v.sum(1, keepdim=True).expand(-1, 8, -1, -1))[2]),
        image(),
        12,
    ),
    "written into through a dropout that does nothing": (
        lambda: images(
            lambda self, x: (F.dropout(x, 0.5, False).add_(1), x.sum(1, keepdim=True).expand(-1, 8, -1, -1))[1]
        ),
        image(),
        8,
    ),
    "written into through a flattened view": (
        lambda: images(
            lambda self, x: (self.flat(x).add_(1), x.sum(1, keepdim=True).expand(-1, 8, -1, -1))[1], flat=nn.Flatten(2)
        ),
        image(),
        8,
    ),
    "written into in channels": (
        lambda: images(lambda self, x: (operator.setitem(x, (slice(None), 0), 0.5), x)[1]),
        image(),
        7,
    ),
    "written into a new tensor": (
        lambda: images(
            lambda self, x: (
                y := x.new_zeros(x.shape),
                operator.setitem(y, (slice(None), slice(None), slice(1, 3)), x[:, :, :2]),
                y,
            )[2]
        ),
        image(),
        8,
    ),
    "broadcast against each other": (
        lambda: vectors(
            lambda self, x: torch.cat(torch.broadcast_tensors(x[:, None], self.table, self.more(x)[None]), -1),
            out=24,
            table=parameter(1),
            more=nn.Linear(8, 8),
        ),
        X,
        8,
    ),
    "upper triangle of a matrix of channels": (lambda: vectors(lambda self, x: x.triu() + torch.tril(x)), X, None),
    "the size of channels as a number": (lambda: vectors(lambda self, x: x / x.shape[-1] ** 0.5 + x.size(1)), X, 8),
    "the number of elements": (lambda: vectors(lambda self, x: x / x.numel() + self.out.weight.nelement()), X, 8),
}

# What works at no other batch.
ALONE = (
    "reshaped across channels is frozen",
    "single numbers joined by a function that is named after the dimension are frozen",
)


@pytest.mark.parametrize("name", NETS)
def test_moving_and_cutting_keep_the_invariant(name: str) -> None:
    make, inputs, channels = NETS[name]
    check_invariant(make(), inputs, channels, other_batch=name not in ALONE)


@pytest.mark.parametrize("batch", [1, 3])
def test_reshapes_are_right_whatever_the_batch_was_when_they_were_traced(batch: int) -> None:
    check_invariant(net(heads, qkv=nn.Linear(8, 24), out=nn.Linear(8, 2)), tokens(5, 8, batch), 4)
    check_invariant(images(shuffle), image(batch=batch), 4)
    check_invariant(images(squeeze_excite, **SE), image(batch=batch), 11)


def test_several_inputs_and_outputs_are_followed_each() -> None:
    model = net(
        lambda self, x, y: {"sum": self.c(self.a(x) + self.b(y)), "parts": (self.d(self.b(y)), [self.a(x).mean()])},
        a=nn.Linear(4, 8), b=nn.Linear(3, 8), c=nn.Linear(8, 2), d=nn.Linear(8, 5),
    )  # fmt: skip
    check_invariant(model, (X, torch.randn(3, 3)), 8, other_batch=False)
