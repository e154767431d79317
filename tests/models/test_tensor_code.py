"""What forward passes do to tensors directly: slices, writes, masks, hooks, statistics, loops."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import Cases, conv
from invariant import image, parameter, tokens
from torch import nn

CASES = Cases()


@CASES.made(image(3, 8), 11)
class Hooked(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 5, 3), nn.Conv2d(5, 2, 1)
        self.b.register_forward_hook(lambda module, args, output: output.sigmoid() * 2)
        self.b.register_forward_pre_hook(lambda module, args: (args[0].relu(),))

    def forward(self, x):
        return self.c(self.b(self.a(x)))


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return grad * (s + x * s * (1 - s))


@CASES.model(image(3, 8), 6, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 2, 3))
def custom_autograd_function(self, x):
    return self.b(Swish.apply(self.a(x)))


@CASES.model(image(3, 8), 6, a=nn.Conv2d(3, 6, 3, padding=1), b=nn.Conv2d(6, 6, 3, padding=1), c=nn.Conv2d(6, 2, 1))
def in_place_everywhere(self, x):
    x = self.a(x)
    x.sigmoid_()
    y = self.b(x)
    y += x
    y.mul_(0.5).clamp_(min=-0.1)
    y[:, :, 0] = 0.3
    return self.c(y)


@CASES.model(
    tokens(width=8),
    11,
    a=nn.Linear(8, 6),
    b=nn.Linear(6, 5),
    c=nn.Linear(5, 3),
    index=torch.tensor([1, 0, 3, 3, 5, 2]),
)
def variables_of_old_code(self, x):
    """`Variable(x)` is `x.detach()` since torch 0.4; no tracer of torch sees it."""
    x = torch.index_select(self.a(x), 2, torch.autograd.Variable(self.index))
    return self.c(torch.autograd.Variable(self.b(x)).relu())


@CASES.model(image(3, 8), 6, a=nn.Conv2d(3, 6, 3), b=nn.Conv2d(6, 2, 1))
def mean_over_channels_subtracted(self, x):
    x = self.a(x)
    x = x - x.mean(dim=1, keepdim=True)
    return self.b(x / (x.numel() / x.shape[0]))


@CASES.model(image(3, 8), 10, a=nn.Conv2d(3, 6, 3), b=nn.Linear(6, 4), centres=nn.Parameter(torch.randn(5, 4)))
def embedding_of_unit_length(self, x):
    x = self.a(x).relu().mean((2, 3))
    x = x / x.norm(dim=1, keepdim=True)
    return F.linear(F.normalize(self.b(x)), F.normalize(self.centres, dim=1))


@CASES.model(image(3, 8), 18, a=conv(3, 8), f=conv(8, 8), b=conv(4, 6), c=conv(4, 6), head=nn.Conv2d(6, 2, 1))
def slices_with_steps(self, x):
    x = self.f(self.a(x))
    return self.head(self.b(x[:, ::2]) + self.c(x[:, 1::2]))


@CASES.model(image(3, 8), 14, a=conv(3, 8), b=conv(8, 6), head=nn.Conv2d(6, 2, 1))
def written_by_slices(self, x):
    x = self.a(x).clone()
    x[:, :, 0] = 0
    x[:, :, :, 1:3] *= 2
    x[:, 2:4] += 1
    x[:, :2] = x[:, :2].relu()
    return self.head(self.b(x))


@CASES.model(
    image(3, 8), 6, a=conv(3, 6), b=conv(6, 6), head=nn.Conv2d(6, 2, 1), fill=nn.Parameter(torch.zeros(1, 6, 1, 1))
)
def written_by_masks(self, x):
    x = self.a(x)
    y = self.b(x)
    y = torch.where(y > 0, y, self.fill)
    y = y.masked_fill(x < 0, 0.3)
    y = torch.where(x.mean(1, keepdim=True) > 0, y, torch.zeros_like(y))
    y[y > 3] = 0
    return self.head(y)


@CASES.model(image(3, 8), 6, a=conv(3, 6), head=nn.Linear(6, 2))
def order_statistics(self, x):
    x = self.a(x).flatten(2)
    largest = x.sort(-1, descending=True)[0][..., :4].mean(-1)
    middle = x.kthvalue(3, dim=-1)[0] + x.median(-1)[0] + x.quantile(0.5, dim=-1)
    return self.head(largest + middle + x.logsumexp(-1))


@CASES.model(image(3, 8), 12, a=nn.Conv2d(3, 12, 3, padding=1), b=nn.Conv2d(6, 4, 1), d=nn.Conv2d(12, 4, 3))
def cropped_in_space_and_channels(self, x):
    x = self.a(x)
    y = self.d(x)
    return y + self.b(x[:, :6, : y.shape[2], : y.shape[3]])


@CASES.model(tokens(), 0, a=nn.Linear(4, 8))
def loop_over_tokens(self, x):
    return sum(self.a(x)[:, k] for k in range(x.shape[1]))


@CASES.model(image(), 0, a=nn.Conv2d(3, 8, 1))
def loop_over_channels(self, x):
    y = self.a(x)
    return torch.stack([y[:, k].sigmoid() for k in range(y.shape[1])], 1) if y is not None else 0


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(8, 2, 1))
def chosen_by_the_number_of_the_channel(self, x):
    y = self.a(x)
    return self.o(torch.where(torch.arange(8)[None, :, None, None] < 4, y, -y))


@CASES.model((tokens(), torch.rand(2, 5) > 0.5), 8, a=nn.Linear(4, 8), o=nn.Linear(8, 2))
def mask_of_tokens(self, x, mask):
    return self.o(self.a(x) * mask[..., None])


@CASES.model(tokens(), 8, a=nn.Linear(4, 8), w=parameter(8, 2))
def tensor_split(self, x):
    parts = torch.tensor_split(self.a(x), 3, -1)
    return torch.cat([part * k for k, part in enumerate(parts, 1)], -1) @ self.w


@CASES.model(image(), 8, a=nn.Conv2d(3, 8, 1), o=nn.Conv2d(9, 2, 1))
def coordinates_as_a_channel(self, x):
    places = torch.linspace(0, 1, 6, dtype=x.dtype).expand(x.shape[0], 1, 6, 6)
    return self.o(torch.cat([self.a(x), places], 1))


@CASES.model(torch.randn(3, 4), 4, a=nn.Linear(4, 8), o=nn.Linear(2, 2))
def reshape_that_infers_channels(self, x):
    return self.o(self.a(x).reshape(x.shape[0], -1, 4).mean(2))


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_model_of_tensor_code_is_pruned_correctly(case):
    case.check()
