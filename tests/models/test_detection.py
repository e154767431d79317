"""Detectors and segmentation models as people write them: pyramids, heads of several levels, skip connections."""

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
    28,
    down=nn.ModuleList([conv(3, 4), conv(4, 6), conv(6, 8)]),
    up=nn.ModuleList([conv(8 + 6, 6), conv(6 + 4, 4)]),
    head=nn.Conv2d(4, 2, 1),
)
def unet_with_a_list_of_skips(self, x):
    skips = []
    for stage in self.down:
        x = stage(x)
        skips.append(x)
        x = F.max_pool2d(x, 2)
    x = F.interpolate(x, scale_factor=2)
    for k, stage in enumerate(self.up):
        x = F.interpolate(x, size=skips[-2 - k].shape[-2:], mode="bilinear")
        x = stage(torch.cat([x, skips[-2 - k]], 1))
    return self.head(x)


class C2f(nn.Module):
    def __init__(self, a, b, n):
        super().__init__()
        self.c = b // 2
        self.cv1, self.cv2 = conv(a, 2 * self.c, 1), conv((2 + n) * self.c, b, 1)
        self.m = nn.ModuleList(nn.Sequential(conv(self.c, self.c), conv(self.c, self.c)) for _ in range(n))

    def forward(self, x):
        y = list(self.cv1(x).chunk(2, 1))
        y.extend(m(y[-1]) + y[-1] for m in self.m)
        return self.cv2(torch.cat(y, 1))


@CASES.model(
    image(3, 8),
    72,
    layers=nn.ModuleList([conv(3, 8), C2f(8, 8, 2), conv(8, 8, stride=2), C2f(8, 8, 1)]),
    sppf=nn.Sequential(conv(8, 4, 1), conv(16, 8, 1)),
    heads=nn.ModuleList([nn.Conv2d(8, 2 * 5, 1), nn.Conv2d(8, 2 * 5, 1)]),
)
def yolo_with_routes_by_index(self, x):
    saved = []
    for layer in self.layers:
        x = layer(x)
        saved.append(x)
    y = [self.sppf[0](x)]
    for _ in range(3):
        y.append(F.max_pool2d(y[-1], 5, 1, 2))
    saved[-1] = self.sppf[1](torch.cat(y, 1))
    outputs = []
    for head, k in zip(self.heads, (1, -1), strict=True):
        z = head(saved[k])
        b, _, h, w = z.shape
        outputs.append(z.view(b, 2, 5, h, w).permute(0, 1, 3, 4, 2).contiguous())
    return outputs


@CASES.model(
    image(3, 8),
    6,
    a=conv(3, 6),
    b=nn.Conv2d(6, 6, 3, 2, 1),
    tower=conv(6, 6),
    classes=nn.Conv2d(6, 4, 3, padding=1),
    boxes=nn.Conv2d(6, 2, 3, padding=1),
    scales=nn.ParameterList([nn.Parameter(torch.ones(1)) for _ in range(2)]),
)
def heads_shared_by_levels(self, x):
    """As RetinaNet's."""
    levels = [self.a(x)]
    levels.append(self.b(levels[0]))
    classes, boxes = [], []
    for level, scale in zip(levels, self.scales, strict=False):
        f = self.tower(self.tower(level))
        c = self.classes(f)
        n, _, h, w = c.shape
        classes.append(c.view(n, 2, 2, h, w).permute(0, 3, 4, 1, 2).reshape(n, -1, 2))
        boxes.append((self.boxes(f) * scale).exp().flatten(2))
    return torch.cat(classes, 1), torch.cat(boxes, 2)


@CASES.model(
    image(3, 8),
    23,
    stages=nn.ModuleList([conv(3, 4), conv(4, 6, stride=2), conv(6, 8, stride=2)]),
    lateral=nn.ModuleList([nn.Conv2d(c, 5, 1) for c in (4, 6, 8)]),
    w=nn.Parameter(torch.ones(2, 2)),
    fuse=nn.ModuleList(nn.Sequential(nn.Conv2d(5, 5, 3, padding=1, groups=5), nn.Conv2d(5, 5, 1)) for _ in range(2)),
    head=nn.Conv2d(5, 2, 1),
)
def weighted_pyramid(self, x):
    features = [x := stage(x) for stage in self.stages]
    features = [lateral(f) for lateral, f in zip(self.lateral, features, strict=True)]
    w = F.relu(self.w)
    w = w / (w.sum(1, keepdim=True) + 1e-4)
    for i in range(1, -1, -1):
        above = F.interpolate(features[i + 1], size=features[i].shape[-2:])
        features[i] = self.fuse[i]((features[i] * w[i, 0] + above * w[i, 1]) * torch.sigmoid(features[i]))
    return [self.head(f) for f in features]


@CASES.made(image(3, 8), 11)
class AnchorsAndStridesOfEachLevel(nn.Module):
    """The grid of each level is filled with the stride of the level, which is an entry of a tensor."""

    def __init__(self):
        super().__init__()
        self.stem = conv(3, 6)
        self.down = conv(6, 5, stride=2)
        self.heads = nn.ModuleList([nn.Conv2d(6, 4, 1), nn.Conv2d(5, 4, 1)])
        # Neither a parameter nor a buffer.
        self.stride = torch.tensor([8.0, 16.0])

    def forward(self, x):
        a = self.stem(x)
        levels = [head(f) for head, f in zip(self.heads, (a, self.down(a)), strict=True)]
        strides = [
            level.new_full((level.shape[2] * level.shape[3], 1), stride)
            for level, stride in zip(levels, self.stride, strict=True)
        ]
        return torch.cat([level.flatten(2) for level in levels], 2).mT * torch.cat(strides)


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), c=nn.Conv2d(8, 15, 1))
def anchors_out_of_channels(self, x):
    return self.c(self.a(x)).permute(0, 2, 3, 1).reshape(x.shape[0], -1, 5)


@CASES.model(
    image(3, 8),
    23,
    stem=conv(3, 6),
    branches=nn.ModuleList([conv(6, 4, 1), nn.Conv2d(6, 4, 3, padding=2, dilation=2)]),
    pool=nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6, 4, 1), nn.ReLU()),
    project=conv(12, 5, 1),
    head=nn.Conv2d(5, 2, 1),
)
def atrous_spatial_pyramid(self, x):
    size = x.shape[-2:]
    x = self.stem(x)
    parts = [branch(x) for branch in self.branches]
    parts.append(F.interpolate(self.pool(x), size=size, mode="bilinear", align_corners=False))
    return self.head(self.project(torch.cat(parts, dim=1)))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_for_detection_or_segmentation_is_pruned_correctly(case):
    case.check()
