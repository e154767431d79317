"""The mutation check: a rule that is broken on purpose must make the invariant test fail."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, prunable, tokens
from layer_nets import images, packed, vectors
from mutate import Patch, as_if_elementwise, attribute, no_flops, no_rewrite
from torch import nn
from torchvision.ops import deform_conv2d

from fxprune import analysis
from fxprune.channels import IdTable, Labels, size_of
from fxprune.rules import (
    attention,
    batch_norm,
    by_mode,
    conv,
    cut,
    elementwise,
    indexing,
    join,
    layer_norm,
    linear,
    memory,
    order,
    recurrent,
    reduce,
    repeat,
    reshape,
    response_norm,
    spatial,
    stand_in,
    weight_norm,
)
from fxprune.rules.op import Op, map_values
from fxprune.rules.registry import _RULES
from fxprune.rules.rewrite import Rewrite
from fxprune.rules.state import State


def residual() -> nn.Module:
    return net(
        lambda self, x: self.c(self.a(x) + self.b(x)), a=nn.Conv2d(3, 8, 1), b=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 2, 1)
    )


def scaled() -> nn.Module:
    return net(
        lambda self, x: F.scaled_dot_product_attention(self.q(x), self.k(x), x), q=nn.Linear(4, 8), k=nn.Linear(4, 8)
    )


def multiplied(function: Any) -> nn.Module:
    return net(lambda self, x: function(self.a(x)) @ self.b(x).sigmoid().mT, a=nn.Linear(4, 8), b=nn.Linear(4, 8))


def only(function: Any) -> nn.Module:
    return net(lambda self, x: function(self.a(x)), a=nn.Conv2d(3, 8, 1))


def shuffled() -> nn.Module:
    return images(lambda self, x: x.view(x.shape[0], 2, 4, 6, 6).transpose(1, 2).reshape(x.shape))


def padded() -> nn.Module:
    return net(
        lambda self, x: self.c(F.pad(y := self.a(x), (0, 0, 0, 0, 2, 3)) + self.b(y)),
        a=nn.Conv2d(3, 4, 1), b=nn.Conv2d(4, 9, 1), c=nn.Conv2d(9, 2, 1),
    )  # fmt: skip


_cat = join.cat.propagate

MUTATIONS: dict[str, tuple[Patch, nn.Module, Any]] = {
    # modes
    "a value that differs in training carries what it does there": (
        attribute(by_mode.choose, "propagate", lambda op, train_value, eval_value: train_value),
        net(
            lambda self, x: self.b(self.c(self.a(x)) if self.training else self.a(x)),
            a=nn.Linear(4, 8),
            c=nn.Linear(8, 8),
            b=nn.Linear(8, 2),
        ),
        tokens(),
    ),
    "a local response norm of the channels that stay alone": (
        no_rewrite(response_norm.response_norm),
        net(
            lambda self, x: self.b(F.local_response_norm(self.a(x), 3, 0.5)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(8, 2, 1),
        ),
        image(),
    ),
    # channels
    "nothing is united": (attribute(IdTable, "unite", lambda self, left, right: None), residual(), image()),
    "nothing is frozen": (attribute(IdTable, "freeze", lambda self, ids, reason: None), residual(), image()),
    "sizes are not put back": (
        attribute(Rewrite, "size", lambda self, dim: dim if isinstance(dim, int) else len(dim)),
        shuffled(),
        image(),
    ),
    "axes are not united": (
        attribute(
            Op,
            "unite_axis",
            lambda self, ids, axis: np.ascontiguousarray(np.moveaxis(ids, axis, 0).reshape(ids.shape[axis], -1)[:, 0]),
        ),
        shuffled(),
        image(),
    ),
    # conv
    "conv groups are not adjusted": (
        no_rewrite(conv.conv_module),
        images(lambda self, x: self.c(x).relu(), c=nn.Conv2d(8, 8, 3, groups=8)),
        image(),
    ),
    "functional conv groups are not adjusted": (
        no_rewrite(conv.conv),
        images(lambda self, x: F.conv2d(x, self.w, groups=8), w=parameter(8, 1, 3, 3)),
        image(),
    ),
    "conv groups lose any channels": (
        attribute(conv, "_convolve_groups", lambda op, x, rows, columns, groups, transposed: rows),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 16, 3, groups=4), nn.Conv2d(16, 2, 1)),
        image(),
    ),
    "a convolution is free": (no_flops(conv.conv_module), residual(), image()),
    "a convolution of several places keeps them": (
        attribute(conv, "_passing", lambda op, x, spatial, kernel: tuple(range(len(x.dims) - spatial, len(x.dims)))),
        vectors(lambda self, x: self.t(x), t=nn.Conv1d(5, 5, 3, padding=1)),
        tokens(),
    ),
    # linear
    "a product of what is not zero": (
        attribute(linear, "contract", lambda op, left, d, right, e: op.unite(left.dims[d], right.dims[e])),
        multiplied(torch.sigmoid),
        tokens(),
    ),
    "a product is free": (no_flops(linear.matmul), multiplied(torch.relu), tokens()),
    "einsum is free": (
        no_flops(linear.einsum),
        net(lambda self, x: torch.einsum("bnd,bmd->bnm", self.a(x), self.b(x)), a=nn.Linear(4, 8), b=nn.Linear(4, 8)),
        tokens(),
    ),
    "zeros are not put in again before a mean": (
        no_rewrite(reduce.difference),
        net(lambda self, x: F.mse_loss(self.a(x), self.b(x)), a=nn.Linear(4, 8), b=nn.Linear(4, 8)),
        tokens(),
    ),
    "distances of channels that meet others": (
        as_if_elementwise(reduce.cdist),
        net(lambda self, x: torch.cdist(self.a(x), self.b(x)), a=nn.Linear(4, 8), b=nn.Linear(4, 8)),
        tokens(),
    ),
    # attention
    "the scale of attention is dropped": (no_rewrite(attention.attention), scaled(), tokens()),
    "attention is free": (no_flops(attention.attention), scaled(), tokens()),
    "heads whose width has to stay are not tried as wholes": (
        attribute(analysis, "_prunable_indices", lambda graph: 0),
        vectors(lambda self, x: x.unflatten(-1, (2, 4)).softmax(-1).flatten(-2)),
        tokens(),
    ),
    # norm
    "layer norm forgets the zeros": (
        no_rewrite(layer_norm.layer_norm_module),
        nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2)),
        tokens(),
    ),
    "group norm forgets the zeros": (
        no_rewrite(layer_norm.group_norm_module),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(1, 8), nn.Conv2d(8, 2, 1)),
        image(),
    ),
    "layer norm takes what is removed for zero": (
        attribute(
            layer_norm, "append_removed", lambda op, x, d: op.insert(F.pad, (x, (0, 8 - op.size(op.labels(x).dims[d]))))
        ),
        nn.Sequential(nn.Linear(4, 8), nn.Sigmoid(), nn.LayerNorm(8), nn.Linear(8, 2)),
        tokens(),
    ),
    "whatever is written, zeros stay": (
        attribute(analysis, "_writes_zeros", lambda node: True),
        vectors(
            lambda self, x: self.n((y := x.clone(), operator.setitem(y, x[..., 0] > 0, 1.0), y)[2]), n=nn.LayerNorm(8)
        ),
        tokens(),
    ),
    "zeros stay where a number was added in place": (
        attribute(State, "_forget_zeros", lambda state, root, written: None),
        vectors(lambda self, x: self.n((y := x.clone(), y.transpose(0, 1).add_(1.0), y)[2]), n=nn.LayerNorm(8)),
        tokens(),
    ),
    "norm groups are not counted": (
        attribute(layer_norm, "_norm_groups_left", lambda op, groups: 1),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8), nn.Conv2d(8, 2, 1)),
        image(),
    ),
    "batch norm costs too much": (
        attribute(batch_norm.norm_module, "flops_of", lambda op, out, x: [batch_norm.elements(x, 3)]),
        nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 2, 1)),
        image(),
    ),
    # elementwise
    "zero stays zero whatever the op": (
        attribute(elementwise, "stays_zero", lambda *_: True),
        multiplied(torch.exp),
        tokens(),
    ),
    "operands are not united": (
        attribute(elementwise, "broadcast", lambda op, operands: max(operands, key=lambda x: len(x.labelled)).dims),
        residual(),
        image(),
    ),
    # reduce
    "a bounded norm has all channels in it": (
        as_if_elementwise(reduce.renorm),
        images(lambda self, x: x.exp().renorm(2, 0, 1.0)),
        image(),
    ),
    "the share of the mean is dropped": (no_rewrite(reduce.mean), only(lambda x: x.mean(1)), image()),
    "softmax passes": (as_if_elementwise(reduce.softmax), images(lambda self, x: x.softmax(1)), image()),
    "the largest over channels forgets the zeros": (
        no_rewrite(reduce.statistic),
        only(lambda x: x.amax(1)),
        image(),
    ),
    # shape
    "sizes of view are not patched": (no_rewrite(reshape.reshape), shuffled(), image()),
    "unflatten is not patched": (
        no_rewrite(reshape.unflatten_module),
        nn.Sequential(nn.Linear(4, 32), nn.Unflatten(1, (8, 2, 2)), nn.Conv2d(8, 2, 1)),
        torch.randn(3, 4),
    ),
    "chunks are not cut at new places": (
        no_rewrite(cut.split),
        images(
            lambda self, x: torch.cat([(c := x.chunk(2, 1))[0], self.b(c[1])], 1),
            wide=24,
            out=16,
            b=nn.Conv2d(12, 4, 1),
        ),
        image(),
    ),
    "slices are not cut at new places": (
        no_rewrite(indexing.getitem),
        images(lambda self, x: torch.cat([x[:, :3].relu(), x[:, 3:]], 1)),
        image(),
    ),
    "an index is not renumbered": (
        no_rewrite(indexing.index_select),
        images(lambda self, x: x.index_select(1, self.i), i=torch.arange(8).flip(0)),
        image(),
    ),
    "an index keeps its order": (
        attribute(indexing, "places", lambda index, size: np.arange(size)),
        images(lambda self, x: x[:, [3, 1, 0, 2, 7, 6, 5, 4]].relu() * x),
        image(),
    ),
    "what is written into an index is not seen": (
        attribute(State, "written_by", lambda state, nodes: set()),
        images(lambda self, x: (i := torch.arange(8), i.__setitem__(0, 3), x[:, i])[-1]),
        image(),
    ),
    "narrow is not cut at new places": (
        no_rewrite(cut.narrow),
        images(lambda self, x: torch.cat([x.narrow(1, 0, 3).relu(), x.narrow(1, 3, 5)], 1)),
        image(),
    ),
    "select is not renumbered": (
        no_rewrite(cut.select),
        images(lambda self, x: x + x.select(1, 3).unsqueeze(1)),
        image(),
    ),
    "copies that are interleaved stay as many": (
        no_rewrite(repeat.repeat_interleave),
        images(
            lambda self, x: F.conv2d(x, self.k.repeat_interleave(8, 0), groups=x.shape[1]), k=torch.ones(1, 1, 1, 1)
        ),
        image(),
    ),
    "copies of fixed entries are counted one by one": (
        attribute(
            repeat, "copies", lambda op, dim, times, argument: op.ids.fresh(times * size_of(dim))[:: size_of(dim)]
        ),
        images(lambda self, x: F.conv2d(x, self.k.repeat(8, 1, 1, 1), groups=8), out=16, k=torch.ones(2, 1, 1, 1)),
        image(),
    ),
    "what is written by a mask has channels of its own": (
        attribute(indexing, "_set_masked", lambda op, container, mask, value: None),
        vectors(
            lambda self, x: (y := x.sigmoid(), operator.setitem(y, x.sum(-1) > 0, self.b(x).mean((0, 1))), y)[2],
            b=nn.Linear(8, 8),
        ),
        tokens(),
    ),
    "copies of one entry are taken for zeros": (
        attribute(repeat, "_zeros_behind", lambda x, rank: (True,) * rank),
        net(
            lambda self, x: torch.einsum("nc,nc->n", *torch.broadcast_tensors(self.a(x).sigmoid(), self.one)),
            a=nn.Linear(4, 8),
            one=parameter(1),
        ),
        torch.randn(3, 4),
    ),
    "expand is not patched": (
        no_rewrite(repeat.expand),
        images(lambda self, x: x * x.mean(1, keepdim=True).expand(-1, 8, -1, -1)),
        image(),
    ),
    "concatenation forgets the order": (
        attribute(join.cat, "propagate", lambda op, tensors, dim=0: _cat(op, tuple(reversed(tensors)), dim)),
        net(
            lambda self, x: self.c(torch.cat([self.a(x), self.b(x)], 1)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(3, 8, 1),
            c=nn.Conv2d(16, 2, 1),
        ),
        image(),
    ),
    "permute passes": (as_if_elementwise(order.permute), vectors(lambda self, x: x.permute(0, 2, 1).mT), tokens()),
    "roll passes": (as_if_elementwise(order.rolled), images(lambda self, x: x.roll(1, 1)), image()),
    "repeat counts one by one": (
        attribute(repeat.np, "tile", lambda ids, n: np.repeat(ids, n)),
        images(lambda self, x: x.repeat(1, 2, 1, 1), out=16),
        image(),
    ),
    "a deformable convolution keeps its conv groups": (
        no_rewrite(conv.deform_conv2d),
        images(lambda self, x: deform_conv2d(x, self.p(x), self.w), p=nn.Conv2d(8, 2, 1), w=parameter(8, 1, 1, 1)),
        image(),
    ),
    "nothing stands in for channels in a variance": (
        attribute(reduce, "append_removed", lambda op, x, d: x),
        images(lambda self, x: x / (x.var(1, keepdim=True) + 1)),
        image(),
    ),
    "zero stands in for what is made of zero": (
        attribute(
            stand_in,
            "_removed_entry",
            lambda op, x, d: op.insert(torch.zeros_like, (op.insert(torch.narrow, (x, d, 0, 1)),)),
        ),
        images(lambda self, x: x * x.sigmoid().mean(1, keepdim=True)),
        image(),
    ),
    # recurrent layers and weights that are normalised
    "a recurrent layer keeps its sizes": (
        no_rewrite(recurrent.recurrent),
        vectors(lambda self, x: self.layer(x)[0], 6, 5, layer=nn.GRU(6, 5)),
        tokens(),
    ),
    "a projecting LSTM keeps its sizes": (
        no_rewrite(recurrent.recurrent),
        vectors(lambda self, x: self.layer(x)[0], 6, 5, layer=nn.LSTM(6, 8, proj_size=5)),
        tokens(),
    ),
    "what is packed carries no channels": (
        attribute(recurrent.pack, "propagate", lambda op, *arguments: map_values(op.value)),
        packed(nn.GRU(6, 5, batch_first=True), 5),
        tokens(),
    ),
    "the vectors of spectral norm stay": (
        attribute(weight_norm, "_over_spectral_norm", lambda op, weight, u, v, dim: weight),
        nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 2)),
        tokens(),
    ),
    # memory
    "memory around a slice is not kept": (
        attribute(memory, "_freeze_memory", lambda op, below: None),
        net(
            lambda self, x: self.out(self.b(self.a(x))[:, 4:].as_strided((2, 4, 6, 6), (288, 36, 6, 1))),
            a=nn.Conv2d(3, 6, 1),
            b=nn.Conv2d(6, 8, 1),
            out=nn.Conv2d(4, 2, 1),
        ),
        image(),
    ),
    # spatial
    "tables stay as wide as they were": (
        no_rewrite(elementwise.elementwise),
        net(lambda self, x: self.b(self.a(x) * torch.arange(8.0).to(x)), a=nn.Linear(4, 8), b=nn.Linear(8, 2)),
        tokens(),
    ),
    "amounts of padding are dropped": (no_rewrite(spatial.pad), padded(), image()),
    "pixel shuffle does not unite": (
        attribute(
            spatial,
            "_pixel_shuffle",
            lambda op, x, factor: x.replace(1, np.ascontiguousarray(x.dims[1].reshape(-1, factor * factor)[:, 0])),
        ),
        images(lambda self, x: F.pixel_shuffle(x, 2), wide=12, out=3),
        image(),
    ),
    "unpooling takes the indices of other channels": (
        attribute(
            _RULES[F.max_unpool2d],
            "propagate",
            lambda op, x, indices, *_: Labels((*x.dims[:2], *op.shape[2:]), x.zero),
        ),
        net(
            lambda self, x: self.out(F.max_unpool2d(self.b(x)[:, :, ::2, ::2], self.pool(self.a(x))[1], 2)),
            a=nn.Conv2d(3, 8, 1),
            b=nn.Conv2d(3, 8, 1),
            pool=nn.MaxPool2d(2, return_indices=True),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
    ),
    "adaptive pooling is free": (
        no_flops(_RULES[F.adaptive_avg_pool2d]),
        images(lambda self, x: F.adaptive_avg_pool2d(x, 2)),
        image(),
    ),
}


@pytest.mark.parametrize("name", MUTATIONS)
def test_a_broken_rule_fails_the_invariant(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    patch, model, inputs = MUTATIONS[name]
    channels = prunable(check_invariant(model, inputs, plans=3))
    patch(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011
        check_invariant(model, inputs, channels, plans=3)
