"""Convolutional networks for images and videos, with the blocks of the literature."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Cases, conv
from invariant import image
from torch import nn

CASES = Cases()


@CASES.model(
    image(3, 8),
    10,
    a=conv(3, 6),
    mlp=nn.Sequential(nn.Conv2d(6, 4, 1, bias=False), nn.ReLU(), nn.Conv2d(4, 6, 1, bias=False)),
    spatial=nn.Conv2d(2, 1, 3, padding=1, bias=False),
    b=nn.Conv2d(6, 2, 1),
)
def channel_and_spatial_attention(self, x):
    """CBAM."""
    x = self.a(x)
    x = x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))
    s = torch.cat([x.mean(1, keepdim=True), torch.max(x, dim=1, keepdim=True)[0]], dim=1)
    return self.b(x * torch.sigmoid(self.spatial(s)))


@CASES.model(
    image(3, 8),
    10,
    a=conv(3, 6),
    fc=nn.Sequential(nn.Linear(6, 4), nn.ReLU(inplace=True), nn.Linear(4, 6), nn.Sigmoid()),
    b=nn.Conv2d(6, 2, 1),
)
def squeeze_and_excite_by_views(self, x):
    x = self.a(x)
    b, c, _, _ = x.size()
    y = x.mean(dim=(2, 3)).view(b, c)
    y = self.fc(y).view(b, c, 1, 1)
    return self.b(x * y.expand_as(x))


@CASES.model(image(), 0, a=nn.Conv2d(3, 8, 1), c=nn.Conv1d(1, 1, 3, padding=1), o=nn.Conv2d(8, 2, 1))
def attention_by_a_convolution_over_channels(self, x):
    """ECA."""
    y = self.a(x)
    return self.o(y * self.c(y.mean((2, 3)).unsqueeze(1)).sigmoid().transpose(1, 2).unsqueeze(-1))


@CASES.model(
    image(3, 8),
    18,
    stem=nn.Conv2d(3, 6, 2, 2),
    depthwise=nn.Conv2d(6, 6, 3, padding=1, groups=6),
    norm=nn.LayerNorm(6),
    up=nn.Linear(6, 12),
    gamma=nn.Parameter(torch.zeros(1, 1, 1, 12)),
    beta=nn.Parameter(torch.zeros(1, 1, 1, 12)),
    down=nn.Linear(12, 6),
    head=nn.Linear(6, 2),
)
def convnext_with_global_response_norm(self, x):
    x = self.stem(x)
    y = F.gelu(self.up(self.norm(self.depthwise(x).permute(0, 2, 3, 1))))
    g = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
    y = self.gamma * (y * (g / (g.mean(dim=-1, keepdim=True) + 1e-6))) + self.beta + y
    return self.head((x + self.down(y).permute(0, 3, 1, 2)).mean([-2, -1]))


@CASES.model(
    image(3, 8),
    16,
    stem=conv(3, 6),
    paths=nn.ModuleList([conv(6, 6), conv(6, 6, 5)]),
    reduce=nn.Conv2d(6, 4, 1),
    select=nn.Conv2d(4, 12, 1),
    head=nn.Conv2d(6, 2, 1),
)
def selective_kernel(self, x):
    x = self.stem(x)
    paths = torch.stack([path(x) for path in self.paths], dim=1)
    weights = self.select(self.reduce(paths.sum(1).mean((2, 3), keepdim=True)).relu())
    weights = weights.view(weights.shape[0], 2, -1, 1, 1).softmax(dim=1)
    return self.head((paths * weights).sum(dim=1))


class Ghost(nn.Module):
    def __init__(self, a, b):
        super().__init__()
        self.b = b
        self.primary, self.cheap = conv(a, b // 2, 1), conv(b // 2, b // 2, groups=b // 2)

    def forward(self, x):
        x = self.primary(x)
        return torch.cat([x, self.cheap(x)], dim=1)[:, : self.b, :, :]


@CASES.model(image(3, 8), 7, a=Ghost(3, 8), b=Ghost(8, 6), head=nn.Conv2d(6, 2, 1))
def ghost_modules(self, x):
    return self.head(self.b(self.a(x)))


@CASES.model(image(4, 8), 2, stem=conv(4, 8), branch=conv(4, 4, groups=2), head=nn.Conv2d(8, 2, 1))
def shuffle_unit(self, x):
    a, b = self.stem(x).chunk(2, dim=1)
    x = torch.cat((a, self.branch(b)), dim=1)
    batch, channels, height, width = x.data.size()
    x = x.view(batch, 2, channels // 2, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return self.head(x.view(batch, -1, height, width))


@CASES.model(
    image(3, 8),
    12,
    a=conv(3, 12),
    b=conv(12, 12, groups=3),
    shuffle=nn.ChannelShuffle(3),
    c=conv(12, 12, groups=2),
    head=nn.Conv2d(12, 2, 1),
)
def shuffled_channels(self, x):
    x = self.c(self.shuffle(self.b(self.a(x))))
    b, c, h, w = x.size()
    return self.head(x.reshape(b, 2, c // 2, h, w).permute(0, 2, 1, 3, 4).flatten(1, 2))


@CASES.model(
    image(3, 8),
    2,
    a=conv(3, 8),
    c=nn.Conv2d(8, 16, 3, padding=1, groups=4),
    reduce=nn.Conv2d(8, 4, 1, groups=2),
    select=nn.Conv2d(4, 16, 1, groups=2),
    head=nn.Conv2d(8, 2, 1),
)
def split_attention(self, x):
    """ResNeSt."""
    x = self.c(self.a(x)).relu()
    b, channels = x.shape[:2]
    parts = torch.split(x, channels // 2, 1)
    g = self.select(self.reduce(F.adaptive_avg_pool2d(sum(parts), 1)).relu())
    g = g.view(b, 2, 2, -1).transpose(1, 2).softmax(1).reshape(b, -1, 1, 1)
    weights = torch.split(g, channels // 2, 1)
    return self.head(sum(a * q for a, q in zip(weights, parts, strict=False)))


@CASES.model(image(3, 8), 8, a=conv(3, 4), b=conv(4, 8, stride=2), c=nn.Conv2d(8, 2, 1))
def shortcut_that_drops_pixels_and_pads_channels(self, x):
    x = self.a(x)
    y = self.b(x)
    return self.c(y + F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 2)))


@CASES.model(
    image(4, 8),
    6,
    stem=nn.Conv2d(4, 8, 3, padding=1),
    n1=nn.GroupNorm(4, 8),
    grouped=nn.Conv2d(8, 16, 3, padding=1, groups=2),
    n2=nn.GroupNorm(8, 16),
    back=nn.Conv2d(16, 8, 1),
    head=nn.Conv2d(8, 2, 1),
)
def resnext_with_group_norm(self, x):
    x = self.n1(self.stem(x)).relu()
    return self.head(x + self.back(self.n2(self.grouped(x)).relu()))


@CASES.model(
    image(3, 8),
    11,
    stem=nn.Conv2d(3, 5, 3, padding=1),
    mix=nn.Linear(5 * 4, 6),
    back=nn.Linear(6, 5 * 4),
    head=nn.Conv2d(5, 2, 1),
)
def patches_by_unfold(self, x):
    x = self.stem(x)
    p = F.unfold(x, 2, stride=2).transpose(1, 2)
    p = self.back(self.mix(p).relu()).transpose(1, 2)
    return self.head(x + F.fold(p, x.shape[-2:], 2, stride=2))


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), r=nn.Conv2d(3, 4, 1), w=nn.Conv2d(4, 18, 1), o=nn.Conv2d(8, 2, 1))
def involution(self, x):
    kernels = self.w(self.r(x)).view(x.shape[0], 2, 9, 6, 6).unsqueeze(2)
    patches = F.unfold(self.a(x), 3, padding=1).view(x.shape[0], 2, 4, 9, 6, 6)
    return self.o((kernels * patches).sum(3).view(x.shape[0], 8, 6, 6))


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(16, 2, 1))
def concatenated_with_its_negative(self, x):
    return self.o(torch.cat([self.a(x), -self.a(x)], 1).relu())


@CASES.model(
    image(3, 8), 11, a=nn.Conv2d(3, 6, 3, padding=1), c=nn.Conv2d(6, 5, 3, padding=1, bias=False), f=nn.Conv2d(5, 3, 1)
)
def central_differences(self, x):
    """Kernel positions stay, although another convolution sums over them."""
    x = self.a(x)
    y = self.c(x)
    return self.f((y - 0.7 * F.conv2d(x, self.c.weight.sum(2).sum(2)[:, :, None, None])).relu())


@CASES.model(
    image(3, 8),
    6,
    a=conv(3, 6),
    scale=nn.Parameter(torch.ones(1)),
    k=torch.tensor([1.0, 2, 1])[:, None] * torch.tensor([1.0, 2, 1])[None] / 16,
    head=nn.Conv2d(6, 2, 1),
)
def blur_between_layers(self, x):
    x = self.scale * F.relu(self.a(x)) ** 2
    k = self.k[None, None].repeat(x.shape[1], 1, 1, 1)
    return self.head(F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), k, stride=2, groups=x.shape[1]))


@CASES.model(image(3, 8), 14, a=conv(3, 8), b=conv(8, 6), head=nn.Conv2d(6, 2, 1))
def temporal_shift(self, x):
    x = self.a(x)
    _n, c, _h, _w = x.size()
    fold = c // 4
    o = torch.zeros_like(x)
    o[:, :fold, :-1] = x[:, :fold, 1:]
    o[:, fold : 2 * fold, 1:] = x[:, fold : 2 * fold, :-1]
    o[:, 2 * fold :] = x[:, 2 * fold :]
    return self.head(self.b(o))


@CASES.model(
    torch.randn(2, 1, 4, 6, 6),
    20,
    a=nn.Conv3d(1, 6, 3, padding=1),
    norm=nn.BatchNorm3d(6),
    spatial=nn.Conv3d(6, 8, (1, 3, 3)),
    temporal=nn.Conv3d(8, 6, (3, 1, 1)),
    head=nn.Linear(6, 2),
)
def convolutions_in_space_and_time(self, x):
    x = F.max_pool3d(self.norm(self.a(x)).relu(), (1, 2, 2))
    x = self.temporal(self.spatial(x).relu())
    return self.head(F.adaptive_avg_pool3d(x, 1).flatten(1))


@CASES.model(torch.randn(2, 4, 3, 6, 6), 14, a=nn.Conv2d(3, 8, 1), t=nn.Conv1d(8, 6, 2), o=nn.Linear(6, 2))
def frames_as_a_batch(self, x):
    x = self.a(x.reshape(-1, 3, 6, 6)).mean((2, 3)).view(2, -1, 8)
    return self.o(self.t(x.transpose(1, 2)).mean(-1))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_convolutional_network_is_pruned_correctly(case):
    case.check()
