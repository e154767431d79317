"""FLOPs as fvcore counts them. All counts are worked out by hand; a multiply-add is 1."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, net, parameter
from torch import Tensor, nn
from torch.nn.utils import rnn
from torchvision.ops import deform_conv2d

import fxprune
from fxprune.errors import FxpruneError
from fxprune.flops import count_flops, einsum_letters


class Net(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.function(*args, **kwargs)


def sizes(*shapes: tuple[int, ...]) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


MODULES = {
    # output positions x weight elements
    "conv": (nn.Conv2d(3, 4, 3), [(2, 3, 8, 8)], 2 * 36 * 4 * 3 * 9),
    "conv without bias": (nn.Conv2d(3, 4, 3, bias=False), [(1, 3, 8, 8)], 36 * 4 * 3 * 9),
    "conv with stride": (nn.Conv2d(3, 4, 3, stride=2, padding=1), [(1, 3, 8, 8)], 16 * 4 * 3 * 9),
    "conv padded by name": (nn.Conv2d(3, 4, 3, padding="same"), [(1, 3, 8, 8)], 64 * 4 * 3 * 9),
    "conv of one image": (nn.Conv2d(3, 4, 3, padding=1), [(3, 8, 8)], 64 * 4 * 3 * 9),
    "grouped conv": (nn.Conv2d(4, 6, 3, groups=2), [(1, 4, 5, 5)], 9 * 6 * 2 * 9),
    "depthwise conv": (nn.Conv2d(4, 4, 3, groups=4), [(1, 4, 5, 5)], 9 * 4 * 9),
    "conv1d": (nn.Conv1d(3, 4, 3), [(1, 3, 8)], 6 * 4 * 3 * 3),
    "conv3d": (nn.Conv3d(2, 3, 2), [(1, 2, 3, 3, 3)], 8 * 3 * 2 * 8),
    # input positions x weight elements
    "transposed conv": (nn.ConvTranspose2d(3, 4, 2), [(1, 3, 5, 5)], 25 * 3 * 4 * 4),
    "linear": (nn.Linear(3, 4), [(5, 3)], 5 * 3 * 4),
    "linear on tokens": (nn.Linear(3, 4), [(2, 5, 3)], 10 * 3 * 4),
    "linear of one vector": (nn.Linear(3, 4), [(3,)], 3 * 4),
    "batch norm": (nn.BatchNorm2d(3), [(2, 3, 4, 4)], 2 * 96),
    "batch norm without affine": (nn.BatchNorm2d(3, affine=False), [(2, 3, 4, 4)], 96),
    "batch norm without running statistics": (
        nn.BatchNorm2d(3, track_running_stats=False),
        [(2, 3, 4, 4)],
        5 * 96,
    ),
    "layer norm": (nn.LayerNorm(4), [(2, 5, 4)], 5 * 40),
    "layer norm without affine": (nn.LayerNorm(4, elementwise_affine=False), [(2, 5, 4)], 4 * 40),
    "group norm": (nn.GroupNorm(2, 4), [(2, 4, 3, 3)], 5 * 72),
    "instance norm": (nn.InstanceNorm2d(3), [(2, 3, 4, 4)], 4 * 96),
    "rms norm is free": (nn.RMSNorm(4), [(2, 4)], 0),
    "relu is free": (nn.ReLU(), [(2, 4)], 0),
    # steps x (gates x width) x (inputs and states)
    "lstm": (nn.LSTM(3, 4), [(2, 1, 3)], 2 * 16 * (3 + 4)),
    "lstm of two layers": (nn.LSTM(3, 4, 2), [(5, 2, 3)], 10 * 16 * (3 + 4 + 4 + 4)),
    "lstm in both directions": (nn.LSTM(3, 4, 2, bidirectional=True), [(5, 2, 3)], 10 * 2 * 16 * (3 + 4 + 8 + 4)),
    "lstm with a projection": (nn.LSTM(3, 4, proj_size=2), [(5, 2, 3)], 10 * (16 * (3 + 2) + 2 * 4)),
    "lstm of one sequence": (nn.LSTM(3, 4), [(5, 3)], 5 * 16 * (3 + 4)),
    "gru without bias": (nn.GRU(3, 4, bias=False), [(5, 2, 3)], 10 * 12 * (3 + 4)),
    "rnn": (nn.RNN(3, 4), [(5, 2, 3)], 10 * 4 * (3 + 4)),
    "rnn with relu": (nn.RNN(3, 4, nonlinearity="relu"), [(5, 2, 3)], 10 * 4 * (3 + 4)),
    "lstm cell": (nn.LSTMCell(3, 4), [(2, 3)], 2 * 16 * (3 + 4)),
    "gru cell": (nn.GRUCell(3, 4), [(2, 3)], 2 * 12 * (3 + 4)),
    "bilinear": (nn.Bilinear(3, 4, 5), [(2, 3), (2, 4)], 2 * 5 * 3 * 4),
    "average pooling is free": (nn.AvgPool2d(2), [(1, 3, 4, 4)], 0),
    "adaptive average pooling": (nn.AdaptiveAvgPool2d(1), [(1, 3, 4, 4)], 48),
    "nearest upsampling": (nn.Upsample(scale_factor=2), [(1, 3, 4, 4)], 192),
    "bilinear upsampling": (nn.Upsample(scale_factor=2, mode="bilinear"), [(1, 3, 4, 4)], 4 * 192),
    "bicubic upsampling is free": (nn.Upsample(scale_factor=2, mode="bicubic"), [(1, 3, 4, 4)], 0),
    # three projections in and one out of 5 tokens of width 8, and 2 heads of width 4
    "fused encoder layer": (
        nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        [(1, 5, 8)],
        4 * 5 * 8 * 8 + 2 * 2 * 5 * 5 * 4 + 2 * 5 * 8 * 16 + 2 * 5 * 40,
    ),
}

FUNCTIONS = {
    "matmul": (torch.matmul, [(2, 3), (3, 4)], 24),
    "batched matmul": (torch.matmul, [(6, 2, 3), (6, 3, 4)], 144),
    "matmul with a broadcast right side": (torch.matmul, [(6, 2, 3), (3, 4)], 144),
    "vector by vector": (torch.matmul, [(5,), (5,)], 5),
    "matrix by vector": (torch.matmul, [(2, 4, 5), (5,)], 40),
    "vector by matrix": (torch.matmul, [(5,), (5, 3)], 15),
    "bmm": (torch.bmm, [(2, 4, 5), (2, 5, 3)], 120),
    "mm": (torch.mm, [(2, 3), (3, 4)], 24),
    "addmm": (torch.addmm, [(2, 4), (2, 3), (3, 4)], 24),
    "baddbmm": (torch.baddbmm, [(2, 4, 3), (2, 4, 5), (2, 5, 3)], 120),
    "addbmm": (torch.addbmm, [(4, 3), (2, 4, 5), (2, 5, 3)], 120),
    "mv": (torch.mv, [(4, 5), (5,)], 20),
    "dot": (torch.dot, [(5,), (5,)], 5),
    "addmv": (torch.addmv, [(4,), (4, 5), (5,)], 20),
    "tensordot": (lambda a, b: torch.tensordot(a, b, dims=([0], [1])), [(4, 5), (3, 4)], 4 * 5 * 3),
    "tensordot over two": (torch.tensordot, [(2, 4, 5), (4, 5, 3)], 2 * 4 * 5 * 3),
    # queries (1, 2, 5, 8), keys (1, 2, 7, 8), values (1, 2, 7, 6): 10 queries meet 7 keys of 8 and 7 values of 6
    "attention": (F.scaled_dot_product_attention, [(1, 2, 5, 8), (1, 2, 7, 8), (1, 2, 7, 6)], 10 * 7 * 8 + 10 * 7 * 6),
    "attention with fewer key heads": (
        lambda q, k, v: F.scaled_dot_product_attention(q, k, v, enable_gqa=True),
        [(1, 4, 5, 8), (1, 2, 7, 8), (1, 2, 7, 6)],
        20 * 7 * 8 + 20 * 7 * 6,
    ),
    "layer norm of one vector": (lambda x: F.layer_norm(x, (4,)), [(4,)], 16),
    "group norm of six dimensions": (lambda x: F.group_norm(x, 2), [(1, 4, 2, 2, 2, 2)], 4 * 64),
    "batch norm of six dimensions": (
        lambda x: F.batch_norm(x, None, None, training=True),
        [(2, 4, 2, 2, 2, 2)],
        4 * 128,
    ),
    "deformable convolution": (deform_conv2d, [(1, 4, 5, 5), (1, 18, 3, 3), (6, 2, 3, 3)], 9 * 6 * 2 * 9),
    "einsum": (lambda a, b: torch.einsum("bnc,bmc->bnm", a, b), [(2, 5, 3), (2, 7, 3)], 2 * 5 * 3 * 7),
    "einsum by lists of dimensions": (lambda a, b: torch.einsum(a, [0, 1], b, [1, 2], [0, 2]), [(2, 3), (3, 4)], 24),
    "einsum of three": (lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), [(2, 3), (3, 4), (4, 5)], 24 + 40),
    "nested outputs": (lambda x: {"product": x @ x.T, "more": [x]}, [(2, 3)], 12),
}


@pytest.mark.parametrize(("module", "shapes", "flops"), MODULES.values(), ids=MODULES.keys())
def test_counts_a_module(module: nn.Module, shapes: list[tuple[int, ...]], flops: int) -> None:
    assert count_flops(module, sizes(*shapes)) == flops


@pytest.mark.parametrize(("function", "shapes", "flops"), FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_counts_a_function(function: Callable[..., Any], shapes: list[tuple[int, ...]], flops: int) -> None:
    assert count_flops(Net(function), sizes(*shapes)) == flops


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_counts_the_same_by_every_path(need_weights: bool) -> None:
    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.attention(x, x, x, need_weights=need_weights)

    assert count_flops(Attention(), sizes((1, 5, 8))) == 4 * 5 * 8 * 8 + 2 * 2 * 5 * 5 * 4


# The operands are the output of a linear layer of 4 to 6 channels on 2 x 5 tokens, 2 * 5 * 4 * 6 multiply-adds, and
# parameters or other such outputs.
TOKENS = 2 * 5 * 4 * 6
PRODUCTS = {
    "matmul with a parameter": (lambda self, x: self.a(x) @ self.v, TOKENS + 2 * 5 * 6 * 3),
    "matmul with a vector": (lambda self, x: self.a(x) @ self.v[:, 0], TOKENS + 2 * 5 * 6),
    "addmm": (lambda self, x: torch.addmm(self.u, self.a(x)[0], self.v), TOKENS + 5 * 6 * 3),
    "baddbmm": (lambda self, x: torch.baddbmm(x[:, :, :3], self.a(x), self.v.expand(2, 6, 3)), TOKENS + 2 * 5 * 6 * 3),
    "addmv": (
        lambda self, x: torch.addmv(self.a(x)[0, :, 0], self.a(x)[0], self.v[:, 0]),
        2 * TOKENS + 5 * 6,
    ),
    "mv": (lambda self, x: torch.mv(self.a(x)[0], self.v[:, 0]), TOKENS + 5 * 6),
    "tensordot": (lambda self, x: torch.tensordot(self.a(x), self.v, dims=1), TOKENS + 2 * 5 * 6 * 3),
    "bilinear": (lambda self, x: F.bilinear(self.a(x), self.b(x), self.t), 2 * TOKENS + 2 * 5 * 6 * 6 * 3),
    "einsum": (lambda self, x: torch.einsum("bnc,cd->bnd", self.a(x), self.v), TOKENS + 2 * 5 * 6 * 3),
    "einsum with dots": (lambda self, x: torch.einsum("...c,cd->...d", self.a(x), self.v), TOKENS + 2 * 5 * 6 * 3),
    "einsum of three": (
        lambda self, x: torch.einsum("bnc,cd,cd->bn", self.a(x), self.v, self.v),
        TOKENS + 2 * (2 * 5 * 6 * 3),
    ),
    "attention": (
        lambda self, x: F.scaled_dot_product_attention(self.a(x), self.b(x)[:, :3], x[:, :3]),
        2 * TOKENS + 2 * 5 * 3 * 6 + 2 * 5 * 3 * 4,
    ),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_fvcore_and_the_polynomial_count_products_as_worked_out_by_hand(name: str) -> None:
    function, flops = PRODUCTS[name]
    model = net(function, a=nn.Linear(4, 6), b=nn.Linear(4, 6), u=parameter(3), v=parameter(6, 3), t=parameter(3, 6, 6))
    x = torch.randn(2, 5, 4)
    assert count_flops(model, x) == flops
    assert fxprune.analyze(fxprune.trace(model, x)).flops.total == flops


@pytest.mark.parametrize(
    ("equation", "shapes", "flops"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)], 24),
        ("ij,jk", [(2, 3), (3, 4)], 24),
        ("i,j->ij", [(2,), (3,)], 6),
        ("ij,ij->", [(2, 3), (2, 3)], 6),
        ("ij->ji", [(2, 3)], 0),
        ("...ij,...jk->...ik", [(6, 2, 3), (6, 3, 4)], 144),
        ("...ij,jk->...ik", [(6, 2, 3), (3, 4)], 144),
        ("... i, i -> ...", [(6, 3), (3,)], 18),
        ("...i,...i->...", [(5, 1, 3), (6, 3)], 5 * 6 * 3),
        ("bi,bj->bij", [(1, 2), (4, 3)], 24),
        ("i,i,i->i", [(3,), (3,), (3,)], 6),
    ],
)
def test_einsum_counts_the_letters_that_meet(equation: str, shapes: list[tuple[int, ...]], flops: int) -> None:
    model = Net(lambda *operands: torch.einsum(equation, *operands))
    assert count_flops(model, sizes(*shapes)) == flops


@pytest.mark.parametrize(
    ("equation", "ranks", "operands", "result"),
    [
        ("ij,jk->ik", [2, 2], ["ij", "jk"], "ik"),
        ("kj,jia", [2, 3], ["kj", "jia"], "aik"),
        ("... i, i -> ...", [3, 1], [".2 .1 i", "i"], ".2 .1"),
        ("i...,...i", [2, 3], ["i .1", ".2 .1 i"], ".2 .1"),
        ("ii,ij", [2, 2], ["ii", "ij"], "j"),
        ("i,i->", [1, 1], ["i", "i"], ""),
    ],
)
def test_the_letters_of_an_einsum_are_those_of_the_equation(
    equation: str, ranks: list[int], operands: list[str], result: str
) -> None:
    def letters(text: str) -> list[str]:
        return text.split() if " " in text or "." in text else list(text)

    assert einsum_letters(equation, ranks) == ([letters(operand) for operand in operands], letters(result))


def test_inputs_may_be_one_tensor_a_tuple_or_keywords() -> None:
    x, y = sizes((2, 3), (3, 4))
    net = Net(lambda x, y=y: x @ y)
    assert count_flops(net, x) == count_flops(net, (x, y)) == count_flops(net, {"y": y, "x": x}) == 24


def test_the_count_is_of_eval_mode_and_leaves_every_flag_as_it_was() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout())
    net.train()
    net[1].eval()
    statistics = {name: buffer.clone() for name, buffer in net.named_buffers()}
    assert count_flops(net, sizes((2, 3, 4, 4))) == 32 * 12 + 2 * 128
    assert [module.training for module in net] == [True, False, True]
    assert all(torch.equal(buffer, statistics[name]) for name, buffer in net.named_buffers())


def test_names_of_modules_may_have_slashes() -> None:
    model = nn.Sequential()
    model.add_module("conv1/conv", nn.Conv2d(3, 4, 1))
    model.add_module("conv1", nn.Conv2d(4, 2, 1))
    assert count_flops(model, *sizes((1, 3, 8, 8))) == 64 * 3 * 4 + 64 * 4 * 2


def test_an_input_that_does_not_fit_is_an_error_that_names_it_and_leaves_no_hooks() -> None:
    net = nn.Sequential(nn.Linear(3, 4))
    with pytest.raises(FxpruneError, match=r"cannot count the FLOPs of Sequential on inputs of shapes \[\(2, 5\)\]"):
        count_flops(net, torch.zeros(2, 5))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
    assert net.training


def _of_numbers(self: Any, x: Tensor) -> Tensor:
    assert (x.shape[1] / 2).is_integer()
    assert x.size(-1) in {4: "four"}
    tokens = self.a(x).view(x.shape[0], 2, -1, 4)
    mixed = F.scaled_dot_product_attention(tokens, tokens, tokens, is_causal=tokens.shape[2] > 1)
    return self.b(mixed.flatten(1, 2)) * float.fromhex(hex(x.numel()))


def test_models_that_use_sizes_as_plain_numbers_are_counted() -> None:
    model, x = net(_of_numbers, a=nn.Linear(4, 4), b=nn.Linear(4, 3)), torch.randn(2, 6, 4)
    assert count_flops(model, x) == 12 * 4 * 4 + 2 * (2 * 2 * 3 * 3 * 4) + 12 * 4 * 3
    assert type(x.shape) is torch.Size


@torch.jit.script
def _scripted(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(x, weight)


def _for_the_tracer(x: Tensor, weight: Tensor) -> Tensor:
    return torch.matmul(x, weight)


@pytest.mark.parametrize("function", [_scripted, torch.jit.script_if_tracing(_for_the_tracer)])
def test_a_scripted_function_is_counted_as_its_source(function: Any) -> None:
    model = net(lambda self, x: self.b(function(self.a(x), self.weight)),
                a=nn.Linear(4, 8), weight=parameter(8, 8), b=nn.Linear(8, 2))  # fmt: skip
    assert count_flops(model, torch.randn(3, 4)) == 3 * (4 * 8 + 8 * 8 + 8 * 2)
    check_invariant(model, torch.randn(3, 4), 16)


def test_without_inputs_an_unknown_model_is_an_error_that_asks_for_them() -> None:
    with pytest.raises(FxpruneError, match=r"no example inputs: Linear .* pass example_inputs="):
        count_flops(nn.Linear(3, 4))


@pytest.mark.parametrize(
    ("use", "is_counted"),
    [
        (lambda x, y: x * math.sqrt(y.size(2)), False),
        (lambda x, y: x / int(y.size(1) / 2), False),
        (lambda x, y: x / float(y.size(2)), False),
        (lambda x, y: x * round(y.size(2) / 3), False),
        (lambda x, y: x * min(y.size(2), 3), False),
        (lambda x, y: x * max(y.size(2), 3), True),
        (lambda x, y: x.to(y.dtype) + torch.zeros(4, device=y.device, dtype=y.dtype), False),
        (lambda x, y: x if y.size(2) > 2 else x.relu(), False),
        (lambda x, y: x * y.size(2) ** 0.5, True),
        (lambda x, y: x.reshape(y.size(0), -1, 4, 4), True),
        (lambda x, y: x + torch.zeros(y.shape[2:], dtype=x.dtype), True),
    ],
)
def test_a_layer_of_which_only_the_size_is_read_costs_what_fvcore_counts(use: Any, is_counted: bool) -> None:
    model = net(
        lambda self, x: self.last(use(self.body(x), self.asked(x))),
        body=nn.Conv2d(3, 8, 1), asked=nn.Conv2d(3, 8, 3, padding=1), last=nn.Conv2d(8, 2, 1),
    )  # fmt: skip
    graph = check_invariant(model, torch.randn(2, 3, 4, 4), other_batch=False)
    assert graph.flops.total == 2 * 16 * (3 * 8 + 8 * 2 + (3 * 8 * 9 if is_counted else 0))


class WritesIntoItsWeights(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        first, second, third, fourth, fifth, _ = (layer.weight for layer in self.layers)
        first.data.mul_(2).add_(1)
        fifth.data = fifth.data + 1
        with torch.no_grad():
            second.clamp_(max=0.01)
            third[:, 0].zero_()
            fourth[1] = 3.0
            self.layers[5].bias *= 2
        for layer in self.layers:
            x = layer(x)
        return x


def test_counting_leaves_weights_that_forward_writes_into_as_they_were() -> None:
    model = WritesIntoItsWeights()
    before = {name: (value.data_ptr(), value.clone()) for name, value in model.state_dict().items()}
    assert count_flops(model, torch.randn(2, 4)) == 6 * 2 * 4 * 4
    for name, value in model.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1]), name


def test_a_packed_sequence_counts_the_steps_that_there_are() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        steps = rnn.pack_padded_sequence(self.a(x), torch.tensor([5, 3]), batch_first=True)
        return self.out(rnn.pad_packed_sequence(self.layer(steps)[0], batch_first=True)[0])

    model = net(forward, a=nn.Linear(4, 6), layer=nn.GRU(6, 5, batch_first=True), out=nn.Linear(5, 2))
    graph = check_invariant(model, torch.randn(2, 5, 4), 11, other_batch=False)
    assert graph.flops.total == 10 * 4 * 6 + 8 * 15 * (6 + 5) + 10 * 5 * 2


def _grouped(x: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    rows = torch.arange(len(x)).unsqueeze(1) >= offs
    return torch.einsum("tk,tkn->tn", x, weight[rows.sum(1)])


def _experts(self: Any, x: Tensor) -> Tensor:
    tokens = self.a(x).flatten(0, 1)
    offsets = torch.tensor([4, 10])
    product = torch.ops.transformers.grouped_mm_fallback
    return product(product(tokens, self.up.transpose(-2, -1), offsets).relu(), self.down.transpose(-2, -1), offsets)


def test_experts_are_counted_once_for_each_token_and_pruned() -> None:
    """The operator with which transformers multiplies where `torch.grouped_mm` does not run."""
    with torch.library._scoped_library("transformers", "FRAGMENT") as library:
        library.define("grouped_mm_fallback(Tensor input, Tensor weight, Tensor offs) -> Tensor")
        library.impl("grouped_mm_fallback", _grouped, "CPU")
        library.impl("grouped_mm_fallback", lambda x, w, _: x.new_empty(len(x), w.shape[-1]), "Meta")
        model = net(_experts, a=nn.Linear(4, 8), up=parameter(2, 6, 8), down=parameter(2, 3, 6))
        graph = check_invariant(model, torch.randn(2, 5, 4), 8 + 6, other_batch=False)
    assert graph.flops.total == 10 * (4 * 8 + 8 * 6 + 6 * 3)


def test_checks_of_values_do_not_stop_the_count_and_hold_afterwards() -> None:
    def forward(x: Tensor) -> Tensor:
        torch._check_tensor_all(x > 1)
        return x @ torch.ones(3, 2)

    assert count_flops(Net(forward), torch.zeros(4, 3)) == 24
    with pytest.raises(RuntimeError, match="Expected cond to be True"):
        forward(torch.zeros(4, 3))
