"""Nets that several test files use."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, net, parameter
from torch import Tensor, nn
from torch.nn.utils import rnn

__all__ = [
    "RECURRENT",
    "SPECTRAL",
    "WRITTEN_OUT",
    "Dense",
    "Inception",
    "images",
    "invariant_test",
    "packed",
    "vectors",
]


def invariant_test(
    nets: Mapping[str, tuple[Callable[[], nn.Module], Any, int | None]], one_batch: Collection[str] = ()
) -> Callable[[str], None]:
    """A test that each net of a table is pruned right.

    Args:
        nets: by name what makes the model, its inputs, and how many channels can be pruned (None: any number).
        one_batch: the names of those that do not take another batch.
    """

    @pytest.mark.parametrize("name", nets)
    def test(name: str) -> None:
        make, inputs, channels = nets[name]
        check_invariant(make(), inputs, channels, other_batch=name not in one_batch)

    return test


def vectors(function: Callable[[Any, Tensor], Tensor], wide: int = 8, out: int = 8, **parts: Any) -> nn.Module:
    """A function of the module and of channels, between two linear layers."""
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Linear(4, wide), out=nn.Linear(out, 2), **parts
    )


def images(function: Callable[[Any, Tensor], Tensor], wide: int = 8, out: int = 8, **parts: Any) -> nn.Module:
    """A function of the module and of channels, between two convolutions."""
    return net(
        lambda self, x: self.out(function(self, self.a(x))), a=nn.Conv2d(3, wide, 1), out=nn.Conv2d(out, 2, 1), **parts
    )


def spectral(norm: Callable[[nn.Module], nn.Module]) -> nn.Module:
    """Convolutions of all kinds, and a linear layer that sees each channel at several places."""
    return nn.Sequential(
        norm(nn.Conv2d(3, 8, 3)),
        nn.Sigmoid(),
        norm(nn.Conv2d(8, 6, 3, groups=2)),
        nn.ReLU(),
        norm(nn.ConvTranspose2d(6, 4, 2)),
        nn.Flatten(),
        norm(nn.Linear(36, 5)),
    )


# For images.
SPECTRAL: dict[str, Callable[[], nn.Module]] = {
    "spectral norm": functools.partial(spectral, nn.utils.parametrizations.spectral_norm),
    "spectral norm by a hook": functools.partial(spectral, nn.utils.spectral_norm),
}


def around(layer: nn.Module, width: int) -> nn.Module:
    """A recurrent layer between two linear ones."""
    return net(
        lambda self, x: self.out(self.layer(self.a(x).sigmoid())[0].sigmoid()),
        a=nn.Linear(4, 6), layer=layer, out=nn.Linear(width, 2),
    )  # fmt: skip


def unrolled(cell: nn.Module) -> nn.Module:
    """A cell that is called step by step."""

    def forward(self: Any, x: Tensor) -> Tensor:
        state, hidden = None, x
        for step in self.a(x).sigmoid().unbind(1):
            state = self.cell(step, state)
            hidden = state[0] if isinstance(state, tuple) else state
        return self.out(hidden)

    return net(forward, a=nn.Linear(4, 6), cell=cell, out=nn.Linear(5, 2))


def with_states(layer: nn.Module, sizes: tuple[int, ...]) -> nn.Module:
    """A recurrent layer whose first states are computed from the input."""

    def forward(self: Any, x: Tensor) -> Tensor:
        states = tuple(make(x[:, 0])[None] for make in self.states)
        return self.out(self.layer(x, states if len(states) > 1 else states[0])[0])

    parts = nn.ModuleList(nn.Linear(4, size) for size in sizes)
    return net(forward, states=parts, layer=layer, out=nn.Linear(sizes[0], 2))


def packed(layer: nn.Module, width: int) -> nn.Module:
    """A recurrent layer over samples of different lengths, which depend on the input."""

    def forward(self: Any, x: Tensor) -> Tensor:
        lengths = (x[..., 0] > 0).sum(1).clamp(1, x.size(1))
        y = rnn.pack_padded_sequence(self.a(x).sigmoid(), lengths, batch_first=True, enforce_sorted=False)
        padded, _ = rnn.pad_packed_sequence(self.layer(y)[0], batch_first=True)
        return self.out(padded.sigmoid())

    return net(forward, a=nn.Linear(4, 6), layer=layer, out=nn.Linear(width, 2))


# For tokens, with the number of channels that can be pruned.
RECURRENT: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "lstm of two layers": (lambda: around(nn.LSTM(6, 5, 2, batch_first=True), 5), 11),
    "gru in both directions": (lambda: around(nn.GRU(6, 5, batch_first=True, bidirectional=True), 10), 11),
    "rnn in two layers and both directions": (
        lambda: around(nn.RNN(6, 5, 2, batch_first=True, bidirectional=True, nonlinearity="relu"), 10),
        11,
    ),
    "lstm without bias": (lambda: around(nn.LSTM(6, 5, bias=False, batch_first=True), 5), 11),
    "lstm with a projection": (lambda: around(nn.LSTM(6, 8, proj_size=5, batch_first=True), 5), 11),
    "lstm with a projection, two layers and both directions": (
        lambda: around(nn.LSTM(6, 8, 2, proj_size=5, batch_first=True, bidirectional=True), 10),
        11,
    ),
    "lstm with a projection to one": (lambda: around(nn.LSTM(6, 3, proj_size=1, batch_first=True), 1), 6),
    "lstm with given states": (lambda: with_states(nn.LSTM(4, 5, batch_first=True), (5, 5)), 5),
    "lstm with a projection and given states": (
        lambda: with_states(nn.LSTM(4, 8, proj_size=5, batch_first=True), (5, 8)),
        5,
    ),
    "packed lstm": (lambda: packed(nn.LSTM(6, 5, batch_first=True), 5), 11),
    "packed gru of two layers in both directions": (
        lambda: packed(nn.GRU(6, 5, 2, batch_first=True, bidirectional=True), 10),
        11,
    ),
    "lstm cell": (lambda: unrolled(nn.LSTMCell(6, 5)), 11),
    "gru cell": (lambda: unrolled(nn.GRUCell(6, 5)), 11),
    "rnn cell": (lambda: unrolled(nn.RNNCell(6, 5)), 11),
}


def layer_norm(self: Any, x: Tensor) -> Tensor:
    mean = x.mean(1, keepdim=True)
    variance = (x - mean).pow(2).mean(1, keepdim=True)
    return self.w[:, None, None] * ((x - mean) / torch.sqrt(variance + 1e-6)) + self.b[:, None, None]


def by_deviation(self: Any, x: Tensor) -> Tensor:
    return (x - x.mean(1, keepdim=True)) / (x.float().std(dim=1, keepdim=True, correction=0) + 1e-5)


def by_variance_and_mean(self: Any, x: Tensor) -> Tensor:
    variance, mean = torch.var_mean(x, dim=(1, 2, 3), keepdim=True)
    return (x - mean) * torch.rsqrt(variance + 1e-5)


def rms_norm(self: Any, x: Tensor) -> Tensor:
    return x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-5)


def response_norm(self: Any, x: Tensor) -> Tensor:
    last = x.permute(0, 2, 3, 1)
    energy = last.norm(p=2, dim=(1, 2), keepdim=True)
    return (self.w * (last * (energy / (energy.mean(-1, keepdim=True) + 1e-6))) + last).permute(0, 3, 1, 2)


def spatial_attention(self: Any, x: Tensor) -> Tensor:
    seen = torch.cat([x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]], 1)
    return x * self.c(seen).sigmoid()


def softmax(self: Any, x: Tensor) -> Tensor:
    powers = (x - x.amax(1, keepdim=True)).exp()
    return powers / powers.sum(1, keepdim=True)


def _written_out(function: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    parts = {"w": parameter(8), "b": parameter(8), "c": nn.Conv2d(2, 1, 3, padding=1)}
    return images(lambda self, x: function(self, x).sigmoid(), **parts)


# Norms over eight channels of images, as models write them; a sigmoid follows, so that zeros do not stay zeros.
WRITTEN_OUT: dict[str, Callable[[], nn.Module]] = {
    f"written out: {function.__name__}": functools.partial(_written_out, function)
    for function in (
        *(layer_norm, by_deviation, by_variance_and_mean, rms_norm, response_norm, spatial_attention, softmax),
    )
}


class DenseLayer(nn.Module):
    """As in DenseNet: BatchNorm and ReLU come after the concatenation."""

    def __init__(self, before: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(before), nn.Conv2d(before, 5, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(5), nn.Conv2d(5, 3, 3, padding=1, bias=False)

    def forward(self, earlier: list[Tensor]) -> Tensor:
        x = self.conv1(self.norm1(torch.cat(earlier, 1)).relu())
        return self.conv2(self.norm2(x).relu())


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.layers = nn.ModuleList([DenseLayer(4 + 3 * k) for k in range(3)])
        self.norm, self.head = nn.BatchNorm2d(13), nn.Conv2d(13, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = [self.stem(x)]
        for layer in self.layers:
            parts.append(layer(parts))
        return self.head(self.norm(torch.cat(parts, 1)).relu())


class Inception(nn.Module):
    """Four branches; one splits and is concatenated itself, one ends in a sigmoid, of which zero is not zero."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.pool = nn.Conv2d(3, 5, 3, padding=1), nn.Conv2d(5, 3, 1)
        self.one, self.wide1, self.wide2 = nn.Conv2d(5, 3, 1), nn.Conv2d(5, 4, 1), nn.Conv2d(4, 4, 3, padding=1)
        self.split = nn.Conv2d(5, 4, 1)
        self.row, self.column = nn.Conv2d(4, 3, (1, 3), padding=(0, 1)), nn.Conv2d(4, 3, (3, 1), padding=(1, 0))
        self.norm, self.head = nn.BatchNorm2d(16), nn.Conv2d(16, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = F.relu(self.split(x))
        y = torch.cat([F.silu(self.row(y)), F.silu(self.column(y))], 1)
        wide = torch.sigmoid(self.wide2(F.relu(self.wide1(x))))
        return self.head(self.norm(torch.cat([self.one(x).relu(), wide, self.pool(F.avg_pool2d(x, 3, 1, 1)), y], 1)))
