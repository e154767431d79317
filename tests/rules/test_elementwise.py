"""Element-wise ops: activations, arithmetic, broadcasting."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from invariant import check_invariant, image, net, parameter, tokens
from layer_nets import invariant_test, vectors
from torch import nn

X = torch.randn(3, 4)


def product(function: object) -> nn.Module:
    """A function of eight channels in a product of activations: it has to give zero where a channel is zero."""
    return net(lambda self, x: function(self.a(x)) @ self.b(x).sigmoid().mT, a=nn.Linear(4, 8), b=nn.Linear(4, 8))  # type: ignore[operator]


MODULES = (
    nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish, nn.Hardswish, nn.Sigmoid,
    nn.Hardsigmoid, nn.Tanh, nn.Hardtanh, nn.Softplus, nn.Softsign, nn.Hardshrink, nn.Softshrink, nn.Tanhshrink,
    nn.LogSigmoid, nn.RReLU, nn.Identity, nn.Dropout, nn.AlphaDropout,
)  # fmt: skip
ZERO = {
    "relu",
    "gelu",
    "silu",
    "tanh",
    "abs",
    "square",
    "sin",
    "sign",
    "floor",
    "sqrt_of_square",
    "dropout",
    "mul_scalar",
}
NOT_ZERO = {"sigmoid", "exp", "cos", "softplus", "add_scalar", "hardsigmoid", "eq"}
FUNCTIONS = {
    "relu": F.relu,
    "gelu": F.gelu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "abs": torch.abs,
    "square": torch.square,
    "sin": torch.sin,
    "sign": torch.sign,
    "floor": torch.floor,
    "sqrt_of_square": lambda x: x.square().sqrt(),
    "dropout": lambda x: F.dropout(x, 0.5, False),
    "mul_scalar": lambda x: x * 2.0,
    "sigmoid": torch.sigmoid,
    "exp": torch.exp,
    "cos": torch.cos,
    "softplus": F.softplus,
    "add_scalar": lambda x: x + 1,
    "hardsigmoid": F.hardsigmoid,
    "eq": lambda x: (x == 0).to(x.dtype),
}

NETS = {
    "clamping, rounding, powers": (
        lambda: vectors(lambda self, x: (x.clamp(-1, 1).round() + x.pow(2)).clamp_min(0.1).log()),
        X,
        8,
    ),
    "arithmetic of two branches": (
        lambda: net(
            lambda self, x: self.out(self.a(x) * self.b(x).sigmoid() - self.c(x) / 3),
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 8),
            c=nn.Linear(4, 8),
            out=nn.Linear(8, 2),
        ),
        X,
        8,
    ),
    "a parameter for each channel": (
        lambda: vectors(lambda self, x: x * self.scale + self.shift, scale=parameter(8), shift=parameter(1, 8)),
        X,
        8,
    ),
    "a buffer for each channel": (
        lambda: vectors(lambda self, x: (x - self.mean) / self.std, mean=torch.zeros(8), std=torch.ones(8)),
        X,
        8,
    ),
    "a table for each channel": (
        lambda: vectors(lambda self, x: 1 - x * torch.arange(8, device=x.device).cos().to(x.dtype)),
        X,
        8,
    ),
    "tables of two dimensions, a condition and a maximum": (
        lambda: vectors(
            lambda self, x: torch.where(
                (t := torch.linspace(-1, 1, 16, dtype=x.dtype).view(2, 1, 8)) > 0, torch.max(t, x), x + t
            )
        ),
        X,
        8,
    ),
    "a residual of the input": (
        lambda: net(
            lambda self, x: self.b(self.a(x).sigmoid() + x) + x.mean(),
            a=nn.Linear(4, 4),
            b=nn.Linear(4, 2),
        ),
        X,
        4,
    ),
    "an input that is normalised by buffers stays whole": (
        lambda: net(
            lambda self, x: self.a((x - self.mean) / self.scale),
            mean=torch.zeros(4),
            scale=torch.ones(4),
            a=nn.Linear(4, 2),
        ),
        X,
        0,
    ),
    "a table that is written into": (
        lambda: vectors(lambda self, x: torch.arange(8.0).to(x).expand(x.shape).clone().mul_(x)),
        X,
        0,
    ),
    "a mask of one column": (
        lambda: net(lambda self, x, mask: self.out(mask * self.a(x).sigmoid()), a=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        (X, torch.rand(3, 1)),
        8,
    ),
    "a mask as wide as the channels": (
        lambda: net(lambda self, x, mask: self.out(mask * self.a(x)), a=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        (X, torch.rand(3, 8)),
        8,
    ),
    "a scalar for each image": (
        lambda: net(
            lambda self, x: self.out(self.a(x) * self.s(x.mean((2, 3)))[:, :, None, None]),
            a=nn.Conv2d(3, 8, 1),
            s=nn.Linear(3, 1),
            out=nn.Conv2d(8, 2, 1),
        ),
        image(),
        8,
    ),
    "maximum and minimum": (
        lambda: vectors(
            lambda self, x: torch.minimum(torch.maximum(x, self.low), self.high), low=parameter(8), high=parameter(8)
        ),
        X,
        8,
    ),
    "where": (lambda: vectors(lambda self, x: torch.where(x > 0, x, self.slope * x), slope=parameter(8)), X, 8),
    "masked fill": (lambda: vectors(lambda self, x: x.masked_fill(x < 0, 0.5)), X, 8),
    "lerp": (lambda: vectors(lambda self, x: torch.lerp(x, self.b, 0.3), b=parameter(8)), X, 8),
    "a ternary": (
        lambda: vectors(lambda self, x: torch.addcmul(self.b, x, self.c, value=0.5), b=parameter(8), c=parameter(8)),
        X,
        8,
    ),
    "in place": (lambda: vectors(lambda self, x: operator.iadd(x.sigmoid_().mul_(2), 1).relu_()), X, 8),
    "in place makes zeros something else": (
        lambda: net(
            lambda self, x: (F.hardsigmoid(y := self.a(x), inplace=True), y)[1] @ self.b(x).sigmoid().mT,
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 8),
        ),
        tokens(),
        0,
    ),
    "in place through a view makes zeros something else": (
        lambda: net(
            lambda self, x: ((y := self.a(x)).view(-1, 8).add_(1), y)[1] @ self.b(x).sigmoid().mT,
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 8),
        ),
        tokens(),
        0,
    ),
    "copies and casts": (
        lambda: vectors(lambda self, x: x.clone().contiguous().detach().to(x.dtype).type_as(x)),
        X,
        8,
    ),
    "prelu of one slope": (lambda: vectors(lambda self, x: self.act(x), act=nn.PReLU()), X, 8),
    "prelu of many slopes": (lambda: vectors(lambda self, x: self.act(x), act=nn.PReLU(8)), X, 8),
    "prelu of many slopes on images": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.PReLU(8), nn.Conv2d(8, 2, 1)),
        image(),
        8,
    ),
    "functional prelu": (lambda: vectors(lambda self, x: F.prelu(x, self.slope), slope=parameter(8)), X, 8),
    "gated linear units": (
        lambda: net(lambda self, x: self.out(F.glu(self.a(x))), a=nn.Linear(4, 8), out=nn.Linear(4, 2)),
        X,
        4,
    ),
    "a gated module over images": (
        lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GLU(1), nn.Conv2d(4, 2, 1)),
        image(),
        4,
    ),
    "spatial dropout": (lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout2d(), nn.Conv2d(8, 2, 1)), image(), 8),
    "a constant tensor is not masked": (
        lambda: net(
            lambda self, x: (self.a(x) + torch.arange(1.0, 9.0)) @ self.b(x).sigmoid().mT,
            a=nn.Linear(4, 8),
            b=nn.Linear(4, 8),
        ),
        tokens(),
        0,
    ),
    "the logarithm of what may be zero": (
        lambda: net(lambda self, x: self.out(self.a(x).abs().log()), a=nn.Linear(4, 8), out=nn.Linear(8, 2)),
        X,
        None,
    ),
    "zeros and ones like the channels": (
        lambda: vectors(lambda self, x: x + torch.zeros_like(x) + torch.ones_like(x)),
        X,
        8,
    ),
}


def test_a_tensor_that_is_a_plain_attribute_is_not_masked() -> None:
    model = net(
        lambda self, x: (self.a(x).sigmoid() * self.plain) @ self.b(x).sigmoid().mT,
        a=nn.Linear(4, 8),
        b=nn.Linear(4, 8),
    )
    object.__setattr__(model, "plain", torch.rand(8, dtype=torch.float64))
    check_invariant(model, tokens(), 0)


test_elementwise_ops_keep_the_invariant = invariant_test(NETS)


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_activation_modules_pass_channels(kind: type[nn.Module]) -> None:
    check_invariant(nn.Sequential(nn.Linear(4, 8), kind(), nn.Linear(8, 2)), X, 8, plans=1, other_batch=False)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_product_of_activations_needs_zeros_where_channels_are_removed(name: str) -> None:
    check_invariant(product(FUNCTIONS[name]), tokens(), 8 if name in ZERO else 0, plans=1)
