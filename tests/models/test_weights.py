"""Weights that are computed, tied, masked, bounded or kept in unusual places."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from cases import Cases, conv
from invariant import NotSaved, image, net, parameter, tokens
from torch import nn
from torch.nn.utils import parametrizations

import fxprune
from fxprune.verification import TOLERANCE

CASES = Cases()
pytestmark = pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")


def convolutions(wrap):
    return nn.Sequential(wrap(nn.Conv2d(3, 6, 3)), nn.ReLU(), wrap(nn.Conv2d(6, 5, 3)), nn.ReLU(), nn.Conv2d(5, 2, 1))


def linear_layers(wrap):
    return nn.Sequential(wrap(nn.Linear(4, 8)), nn.ReLU(), nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2))


@CASES.made(image(3, 8), 11)
def weight_norm_by_parametrization():
    return convolutions(parametrizations.weight_norm)


@CASES.made(image(3, 8), 11)
def weight_norm_by_hook():
    return convolutions(nn.utils.weight_norm)


@CASES.made(tokens(), 14)
def weight_norm_by_hook_of_one_layer():
    return linear_layers(nn.utils.weight_norm)


@CASES.model(
    image(3, 8),
    11,
    a=parametrizations.spectral_norm(nn.Conv2d(3, 6, 3)),
    b=nn.Conv2d(6, 5, 3),
    c=nn.Conv2d(5, 2, 1),
)
def spectral_norm_by_parametrization(self, x):
    return self.c(self.b(self.a(x).relu()).relu())


@CASES.made(tokens(), 14)
def spectral_norm_by_hook():
    return linear_layers(nn.utils.spectral_norm)


@CASES.model(
    image(3, 8),
    6,
    a=nn.Conv2d(3, 6, 3, padding=1),
    b=nn.Conv2d(6, 2, 1),
    scale=torch.ones(6),
    shift=NotSaved(torch.zeros(1, 6, 1, 1)),
)
def buffers_of_channels(self, x):
    return self.b((self.a(x) * self.scale[None, :, None, None] + self.shift).sigmoid())


@CASES.model(image(), 11, w=parameter(8, 4, 1, 1), b=parameter(8), o=nn.Conv2d(6, 2, 1))
def slice_of_a_weight(self, x):
    return self.o(F.conv2d(x, self.w[:6, :3], self.b[:6]))


@CASES.model(
    image(),
    13,
    i=nn.Conv2d(3, 5, 1),
    w=parameter(8, 5, 3, 3),
    m=torch.ones(8, 5, 3, 3),
    b=parameter(8),
    o=nn.Conv2d(8, 2, 1),
)
def mask_of_a_weight(self, x):
    return self.o(F.conv2d(self.i(x), self.w * self.m, self.b).relu())


@CASES.model(image(), 13, i=nn.Conv2d(3, 5, 1), w=parameter(8, 5), o=nn.Conv2d(8, 2, 1))
def view_of_a_weight(self, x):
    return self.o(F.conv2d(self.i(x), self.w.view(8, 5, 1, 1)).relu())


@CASES.model(tokens(), 8, p=nn.ParameterList([parameter(4, 8), parameter(4, 8)]), o=nn.Linear(8, 2))
def list_of_parameters(self, x):
    return self.o(x @ self.p[0] + x @ self.p[1])


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), p=parameter(1, 8, 3, 3), o=nn.Conv2d(8, 2, 1))
def interpolated_position_embedding(self, x):
    return self.o(self.a(x) + F.interpolate(self.p, size=x.shape[2:], mode="bilinear"))


@CASES.model(
    image(),
    13,
    other_batch=False,
    i=nn.Conv2d(3, 5, 1),
    g=nn.Linear(3, 4),
    w=parameter(4, 8, 5, 3, 3),
    o=nn.Conv2d(8, 2, 1),
)
def kernels_mixed_by_einsum(self, x):
    mix = self.g(x.mean((2, 3))).softmax(-1)
    kernels = torch.einsum("bk,koihw->boihw", mix, self.w).reshape(-1, 5, 3, 3)
    y = F.conv2d(self.i(x).view(1, -1, 6, 6), kernels, padding=1, groups=x.shape[0])
    return self.o(y.view(x.shape[0], 8, 6, 6))


@CASES.model(
    image(3, 8),
    9,
    other_batch=False,
    stem=conv(3, 6),
    route=nn.Linear(6, 3),
    w=nn.Parameter(torch.randn(3, 5 * 6 * 9)),
    head=nn.Conv2d(5, 2, 1),
)
def kernels_mixed_by_matmul(self, x):
    x = self.stem(x)
    b, c, h, w = x.shape
    k = (self.route(x.mean((2, 3))).sigmoid() @ self.w).view(b * 5, c, 3, 3)
    y = F.conv2d(x.reshape(1, b * c, h, w), k, padding=1, groups=b)
    return self.head(y.view(b, 5, y.size(2), y.size(3)))


@CASES.model(
    image(3, 8),
    19,
    stem=nn.Conv2d(3, 16, 1),
    route=nn.Linear(16, 3),
    w=nn.Parameter(torch.randn(3, 15 * 16 * 9)),
    head=nn.Conv2d(15, 2, 1),
)
def kernels_mixed_for_fewer_samples_than_channels(self, x):
    """So that a conv group is not taken for a channel."""
    x = self.stem(x).relu()
    b, c, h, w = x.shape
    k = (self.route(x.mean((2, 3))).sigmoid() @ self.w).view(b * 15, c, 3, 3)
    y = F.conv2d(x.reshape(1, b * c, h, w), k, padding=1, groups=b)
    return self.head(y.view(b, 15, h, w))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_with_unusual_weights_is_pruned_correctly(case):
    case.check()


class ConvOfBoundedNorm(nn.Conv2d):
    def forward(self, x):
        self.weight.data = torch.renorm(self.weight.data, p=2, dim=0, maxnorm=0.5)
        return super().forward(x)


class LinearOfBoundedNorm(nn.Linear):
    def forward(self, x):
        with torch.no_grad():
            self.weight.copy_(self.weight.renorm(2, 0, 0.5))
        return super().forward(x)


def test_weights_that_forward_bounds_are_bounded_in_the_graph_and_left_alone_in_the_model():
    torch.manual_seed(0)
    features = (nn.Conv2d(3, 8, 3), nn.ReLU(), ConvOfBoundedNorm(8, 12, 3), nn.ReLU(), nn.Flatten())
    model = nn.Sequential(*features, LinearOfBoundedNorm(12 * 16, 10), nn.ReLU(), nn.Linear(10, 2)).eval()
    with torch.no_grad():
        model[2].weight.mul_(9)
        model[5].weight.mul_(9)
    state = copy.deepcopy(model.state_dict())
    x = image(3, 8)
    with torch.no_grad():
        torch.testing.assert_close(fxprune.trace(model, x)(x), copy.deepcopy(model)(x), rtol=0, atol=0)
    for settings in ({"compensate": False}, {"data": [x]}):
        pruned = fxprune.prune(model, 0.5, example_inputs=x, **settings)
        assert fxprune.verify(model, pruned, x) <= TOLERANCE
        assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


class CausalConv(nn.Conv2d):
    """Sees only what is above and to the left, as PixelCNN's."""

    def __init__(self, a, b, k):
        super().__init__(a, b, k, padding=k // 2)
        self.register_buffer("mask", torch.ones_like(self.weight))
        self.mask[:, :, k // 2, k // 2 :] = 0
        self.mask[:, :, k // 2 + 1 :] = 0

    def forward(self, x):
        self.weight.data *= self.mask
        return super().forward(x)


def shifted_weight(self, x):
    """Forward makes entries of removed channels, which are zero, different from zero."""
    self.b.weight.data.mul_(1.0).add_(0.1)
    return self.head(self.b(self.a(x).sigmoid()))


@pytest.mark.parametrize(
    ("model", "x", "channels"),
    [
        (
            nn.Sequential(CausalConv(1, 8, 5), nn.ReLU(), CausalConv(8, 6, 3), nn.ReLU(), nn.Conv2d(6, 2, 1)),
            image(1),
            14,
        ),
        (net(shifted_weight, a=nn.Linear(4, 8), b=nn.Linear(8, 6), head=nn.Linear(6, 2)), torch.randn(3, 4), 6),
    ],
    ids=["masked", "not masked"],
)
def test_zeros_of_weights_that_are_masked_in_place_stay_zeros(model, x, channels):
    # Each forward changes the weights, so that copies are compared that have run once.
    small = fxprune.prune(model.eval(), 0.6, example_inputs=x, compensate=False, method="l2")
    assert fxprune.verify(model, small, x) <= TOLERANCE
    graph = fxprune.analyze(fxprune.trace(model, x))
    assert sum(map(len, graph.groups)) == channels


class ScaledByAttributes(nn.Module):
    """Its channels are combined with tensors that are neither parameters nor buffers."""

    def __init__(self):
        super().__init__()
        self.scale, self.shifts = torch.rand(8, 1, 1), [torch.rand(8)]
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)

    def forward(self, x):
        return self.b(self.a(x) * self.scale + self.shifts[0][:, None, None])


def test_tensors_that_are_attributes_are_cut_in_the_models_own_class_too():
    model, x = ScaledByAttributes().eval(), image(3, 8)
    small = fxprune.prune(model, 0.6, example_inputs=x, compensate=False, method="l2")
    own = fxprune.restore_class(model, small)
    assert len(own.scale) == len(own.shifts[0]) == small.get_parameter("a.weight").shape[0] < 8
    assert (len(model.scale), len(model.shifts[0])) == (8, 8)
    assert torch.equal(own(x), small(x))
