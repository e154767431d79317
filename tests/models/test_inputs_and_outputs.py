"""Models with several inputs, and outputs that are dicts, dataclasses and named tuples."""

from __future__ import annotations

from collections import namedtuple
from dataclasses import dataclass, field

import pytest
import torch
import torch.nn.functional as F
from cases import Cases, conv
from invariant import image
from torch import Tensor, nn

CASES = Cases()


@CASES.model(image(3, 8), 6, trunk=conv(3, 6), a=nn.Conv2d(6, 2, 1), b=conv(6, 4))
def output_in_a_dict(self, x):
    x = self.trunk(x)
    return {"logits": self.a(x), "aux": {"features": [self.b(x)]}}


@dataclass
class Result:
    logits: Tensor
    hidden: Tensor | None = None
    extras: dict[str, Tensor] = field(default_factory=dict)


@CASES.model(image(3, 8), 14, a=conv(3, 6), b=conv(6, 8), head=nn.Linear(8, 3))
def output_in_a_dataclass(self, x):
    f = self.b(self.a(x))
    return Result(self.head(f.mean((2, 3))), hidden=f.mean(1), extras={"n": f.amax((1, 2, 3))})


class Features(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = conv(3, 6)

    def forward(self, x):
        x = self.trunk(x)
        return Result(logits=x.mean((2, 3)), hidden=x)


@CASES.model(image(3, 8), 6, features=Features(), head=nn.Linear(6, 3))
def dataclass_between_modules(self, x):
    result = self.features(x)
    return self.head(result.logits + result.hidden.amax((2, 3)))


Heads = namedtuple("Heads", ["boxes", "scores"])


@CASES.model(image(3, 8), 6, trunk=conv(3, 6), a=nn.Conv2d(6, 4, 1), b=nn.Conv2d(6, 2, 1))
def output_in_a_named_tuple(self, x):
    x = self.trunk(x)
    return Heads(self.a(x), self.b(x))


@CASES.model(
    {"pixels": image(3, 8), "state": torch.randn(2, 5)}, 6, vision=conv(3, 6), mlp=nn.Linear(5, 6), head=nn.Linear(6, 2)
)
def inputs_by_keyword(self, pixels, state=None, scale=1.0):
    x = self.vision(pixels).mean((-2, -1))
    if state is not None:
        x = x * self.mlp(state).sigmoid() * scale
    return self.head(x)


@CASES.model(
    (image(3, 8), image(1, 4)), 15, a=conv(3, 6), b=conv(1, 4), mix=nn.Conv2d(10, 5, 1), head=nn.Conv2d(5, 2, 1)
)
def two_inputs_fused(self, x, y):
    y = F.interpolate(self.b(y), size=x.shape[2:], mode="nearest")
    return self.head(self.mix(torch.cat((self.a(x), y), dim=1)).relu())


@CASES.model(
    (image(3, 8), image(3, 8) * 0.5),
    11,
    encoder=nn.Sequential(conv(3, 6), conv(6, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    head=nn.Linear(5, 1),
)
def siamese_encoders(self, x, y):
    a, b = self.encoder(x), self.encoder(y)
    return torch.cat([self.head((a - b).abs()), F.cosine_similarity(a, b, dim=1)[:, None]], 1)


@CASES.model(image(), 8, other_batch=False, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 2))
def everything_squeezed(self, x):
    return self.b(F.adaptive_avg_pool2d(self.a(x), 1).squeeze())


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), b=nn.Linear(8, 1))
def output_of_one_channel_squeezed(self, x):
    return self.b(self.a(x).mean((2, 3))).squeeze(-1)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_with_unusual_inputs_or_outputs_is_pruned_correctly(case):
    case.check()
