"""Models that make or restore images: autoencoders, diffusion, flows, style transfer, super-resolution."""

from __future__ import annotations

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from cases import Cases
from invariant import image, parameter, tokens
from torch import nn

import fxprune
from fxprune.verification import TOLERANCE

CASES = Cases()


@CASES.model(
    image(3, 8),
    20,
    encoder=nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.ReLU(), nn.Conv2d(6, 4, 3, 2, 1), nn.ReLU()),
    narrow=nn.Linear(4 * 2 * 2, 7),
    back=nn.Linear(7, 4 * 2 * 2),
    decoder=nn.Sequential(
        nn.ConvTranspose2d(4, 6, 2, 2), nn.BatchNorm2d(6), nn.ReLU(), nn.ConvTranspose2d(6, 3, 2, 2), nn.Tanh()
    ),
)
def autoencoder(self, x):
    code = self.narrow(torch.flatten(self.encoder(x), 1))
    return self.decoder(self.back(code.tanh()).view(-1, 4, 2, 2)), code


@CASES.model(tokens(), 8, w=parameter(8, 4))
def autoencoder_with_tied_weights(self, x):
    return F.linear(F.linear(x, self.w).relu(), self.w.t())


@CASES.model(
    image(3, 8),
    12,
    head=nn.Conv2d(3, 6, 3, padding=1),
    body=nn.ModuleList(nn.Sequential(nn.Conv2d(6, 6, 3, padding=1), nn.PReLU(6)) for _ in range(2)),
    up=nn.Sequential(nn.Conv2d(6, 6 * 4, 3, padding=1), nn.PixelShuffle(2), nn.Conv2d(6, 3, 3, padding=1)),
)
def super_resolution(self, x):
    y = self.head(x)
    z = y
    for block in self.body:
        z = z + 0.1 * block(z)
    return self.up(y + z) + F.interpolate(x, scale_factor=2.0, mode="bilinear")


class ResidualWithTime(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.n1, self.n2 = nn.GroupNorm(2, a), nn.GroupNorm(2, b)
        self.c1, self.c2 = nn.Conv2d(a, b, 3, padding=1), nn.Conv2d(b, b, 3, padding=1)
        self.time = nn.Linear(12, 2 * b)
        self.shortcut = nn.Conv2d(a, b, 1) if a != b else nn.Identity()

    def forward(self, x, t):
        h = self.c1(F.silu(self.n1(x)))
        scale, shift = self.time(F.silu(t))[:, :, None, None].chunk(2, 1)
        h = self.n2(h) * (1 + scale) + shift
        return self.shortcut(x) + self.c2(F.silu(h))


@CASES.model(
    (image(3, 8), torch.tensor([3, 7])),
    42,
    embed=nn.Sequential(nn.Linear(8, 12), nn.SiLU(), nn.Linear(12, 12)),
    stem=nn.Conv2d(3, 4, 3, padding=1),
    down1=ResidualWithTime(4, 8),
    halve=nn.Conv2d(8, 8, 3, 2, 1),
    down2=ResidualWithTime(8, 8),
    middle=ResidualWithTime(8, 8),
    up1=ResidualWithTime(16, 8),
    up2=ResidualWithTime(12, 4),
    out=nn.Conv2d(4, 3, 3, padding=1),
)
def diffusion_unet(self, x, t):
    frequencies = torch.exp(-math.log(10000) * torch.arange(4, dtype=x.dtype) / 4)
    angles = t[:, None].to(x.dtype) * frequencies[None]
    t = self.embed(torch.cat([angles.cos(), angles.sin()], -1))
    x = self.stem(x)
    a = self.down1(x, t)
    b = self.middle(self.down2(self.halve(a), t), t)
    y = F.interpolate(b, scale_factor=2, mode="nearest")
    y = self.up1(torch.cat([y, a], 1), t)
    return self.out(self.up2(torch.cat([y, x], 1), t))


@CASES.model(
    image(3, 8),
    8,
    shift=nn.Parameter(torch.zeros(1, 12, 1, 1)),
    w=nn.Parameter(torch.randn(12, 12)),
    coupling=nn.Sequential(nn.Conv2d(6, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 12, 3, padding=1)),
)
def invertible_flow(self, x):
    """Squeeze, ActNorm, an invertible 1 x 1 convolution and affine coupling."""
    b, c, h, w = x.shape
    x = x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 1, 3, 5, 2, 4).reshape(b, c * 4, h // 2, w // 2)
    x = F.conv2d(x + self.shift, self.w[:, :, None, None])
    a, z = x.chunk(2, 1)
    p = self.coupling(a)
    shift, scale = p[:, 0::2], torch.sigmoid(p[:, 1::2] + 2)
    z = (z + shift) * scale
    return torch.cat([a, z], 1), scale.log().flatten(1).sum(1) + torch.slogdet(self.w)[1]


@CASES.model(
    (image(6, 8), torch.randn(2, 4)),
    18,
    other_batch=False,
    pre=nn.Conv2d(6, 6, 1),
    w=nn.Parameter(torch.randn(1, 5, 6, 3, 3)),
    style=nn.Sequential(nn.Linear(4, 7), nn.LeakyReLU(0.2), nn.Linear(7, 6)),
    head=nn.Conv2d(5, 2, 1),
)
def modulated_convolution_of_each_sample(self, x, z):
    """StyleGAN2's, with demodulation; the samples are conv groups."""
    x = self.pre(x)
    b, c, h, w = x.shape
    weight = self.w * self.style(z).view(b, 1, c, 1, 1)
    weight = weight * torch.rsqrt(weight.pow(2).sum([2, 3, 4]) + 1e-8).view(b, 5, 1, 1, 1)
    x = F.conv2d(x.reshape(1, b * c, h, w), weight.view(b * 5, c, 3, 3), padding=1, groups=b)
    return self.head(x.view(b, 5, h, w))


@CASES.model(
    (image(), torch.randn(2, 4)),
    13,
    i=nn.Conv2d(3, 5, 1),
    style=nn.Linear(4, 5),
    w=parameter(8, 5, 3, 3),
    o=nn.Conv2d(8, 2, 1),
)
def modulated_input(self, x, z):
    weight = self.w * ((self.w**2).sum((1, 2, 3), keepdim=True) + 1e-8).rsqrt()
    return self.o(F.conv2d(self.i(x) * self.style(z)[:, :, None, None], weight))


@CASES.model(
    (image(), torch.randn(2, 4)),
    8,
    a=nn.Conv2d(3, 8, 1),
    norm=nn.InstanceNorm2d(8),
    film=nn.Linear(4, 16),
    o=nn.Conv2d(8, 2, 1),
)
def feature_wise_modulation(self, x, c):
    """FiLM."""
    scale, shift = self.film(c).chunk(2, 1)
    return self.o(self.norm(self.a(x)) * (1 + scale[..., None, None]) + shift[..., None, None])


@CASES.model((image(), image() * 2), 8, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 2, 1))
def adaptive_instance_norm(self, x, y):
    u, v = self.a(x), self.a(y)
    u = (u - u.mean((2, 3), keepdim=True)) / (u.std((2, 3), keepdim=True) + 1e-5)
    return self.o(u * v.std((2, 3), keepdim=True) + v.mean((2, 3), keepdim=True))


@CASES.model(image(), 0, a=nn.Conv2d(3, 8, 1))
def gram_matrix(self, x):
    f = self.a(x).flatten(2)
    return f @ f.transpose(1, 2) / (f.shape[1] * f.shape[2])


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_generative_model_is_pruned_correctly(case):
    case.check()


class MergedInEval(nn.Module):
    """Two convolutions beside a third in training; in eval one, whose weight is made from theirs."""

    def __init__(self, a, b):
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(a, 2 * a, 1), nn.Conv2d(2 * a, b, 3)
        self.side, self.merged = nn.Conv2d(a, b, 1), nn.Conv2d(a, b, 3, padding=1)

    def merge(self):
        first, second = self.wide.weight.data.clone(), self.narrow.weight.data.clone()
        weight = F.conv2d(first.permute(1, 0, 2, 3), second, padding=2).flip(2, 3).permute(1, 0, 2, 3)
        bias = (second * self.wide.bias.data.reshape(1, -1, 1, 1)).sum((1, 2, 3)) + self.narrow.bias.data
        self.merged.weight.data = (weight + F.pad(self.side.weight.data, [1] * 4)).contiguous()
        self.merged.bias.data = bias + self.side.bias.data

    def forward(self, x):
        if self.training:
            return self.narrow(self.wide(F.pad(x, [1] * 4))) + self.side(x)
        self.merge()
        return self.merged(x)


class Upscaler(nn.Module):
    def __init__(self):
        super().__init__()
        self.mean = torch.rand(1, 3, 1, 1)
        self.layers = nn.Sequential(MergedInEval(3, 8), nn.SiLU(), MergedInEval(8, 12), nn.SiLU(), MergedInEval(12, 12))

    def forward(self, x):
        self.mean = self.mean.type_as(x)
        return F.pixel_shuffle(self.layers(x - self.mean), 2)


def test_layers_that_are_merged_in_eval_are_pruned_as_fvcore_counts_them_and_trained_in_their_own_class():
    torch.manual_seed(0)
    model, x = Upscaler().eval(), image(3, 8)
    state = copy.deepcopy(model.state_dict())
    small = fxprune.prune(model, 0.5, example_inputs=x, compensate=False, method="l2")
    plan, before = fxprune.plan_of(small), fxprune.count_flops(model, x)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert fxprune.count_flops(small, x) == plan.flops <= 0.5 * before
    assert fxprune.verify(model, small, x) <= TOLERANCE
    # The model's input are colours, so the mean of each stays.
    assert small.get_buffer("_tensor_constant0").shape == (1, 3, 1, 1)
    own = fxprune.restore_class(model, small)
    assert (own.training, own(x).shape) == (False, small(x).shape)
    torch.testing.assert_close(own.train()(x), small(x), rtol=0, atol=1e-5)
    torch.testing.assert_close(own(x), small.train()(x), rtol=0, atol=1e-6)
