"""Programs of `torch.export`: their operators are torch's functions, so that the same is pruned as in the model."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from invariant import net, randomise
from torch import Tensor, nn

import fxprune
from fxprune import plan_of
from fxprune.tracing.aten import _FUNCTIONS, as_function


def program(model: nn.Module, x: Tensor, *, decomposed: bool = False) -> nn.Module:
    """What runs an exported model, of any batch."""
    batch = {0: torch.export.Dim("batch", max=1024)}
    exported = torch.export.export(model.eval(), (x,), dynamic_shapes=(batch,))
    return (exported.run_decompositions() if decomposed else exported).module()


def _image_net(self: Any, x: Tensor) -> Tensor:
    y = self.norm(F.max_pool2d(F.relu(self.a(x), inplace=True), 2))
    y = y + F.pad(self.b(F.avg_pool2d(y, 2)), (1, 1, 1, 1))[:, :, 1:3, 1:-1].repeat_interleave(2, 2).roll(1, 3)[
        ..., :3
    ].mean((2, 3), keepdim=True)
    y = F.interpolate(F.silu(y), scale_factor=2, mode="bilinear") + F.interpolate(y, size=(6, 6))
    first, second = F.group_norm(self.c(y), 2).split([4, 4], 1)
    return self.d(F.hardswish(torch.cat([first, second * 2], 1)).flatten(1).unflatten(1, (8, -1)).amax(2))


def _token_net(self: Any, x: Tensor) -> Tensor:
    x = self.norm(self.embed(x))
    q, k, v = self.qkv(x).reshape(x.shape[0], -1, 3, 2, 4).permute(2, 0, 3, 1, 4).unbind(0)
    y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape[0], -1, 8)
    x = F.dropout(self.project(y), 0.1, self.training) + x
    return self.head(F.gelu(x[:, 1:]).mean(1).softmax(-1))


def _image_and_model() -> tuple[nn.Module, Tensor]:
    model = net(
        _image_net, a=nn.Conv2d(3, 8, 3, padding=1), norm=nn.BatchNorm2d(8), b=nn.Conv2d(8, 8, 1),
        c=nn.Conv2d(8, 8, 3, padding=1), d=nn.Linear(8, 3),
    )  # fmt: skip
    return model, torch.randn(2, 3, 6, 6)


def _tokens_and_model() -> tuple[nn.Module, Tensor]:
    model = net(
        _token_net, embed=nn.Embedding(10, 8), norm=nn.LayerNorm(8), qkv=nn.Linear(8, 24), project=nn.Linear(8, 8),
        head=nn.Linear(8, 3),
    )  # fmt: skip
    return model, torch.randint(0, 10, (2, 5))


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("make", [_image_and_model, _tokens_and_model])
def test_a_program_is_pruned_as_the_model_that_it_was_made_of(make: Any, decomposed: bool) -> None:
    model, x = make()
    model = randomise(model).float().eval()
    exported = program(model, x, decomposed=decomposed)
    traced = fxprune.trace(exported, x)
    assert not any("aten" in str(node.target) for node in traced.graph.nodes)
    more = torch.cat([x, x.flip(0), x])
    torch.testing.assert_close(traced(more), model(more))
    pruned = fxprune.prune(exported, 0.5, example_inputs=x, compensate=False)
    assert pruned(more).shape == model(more).shape
    assert fxprune.verify(exported, pruned) <= 1e-12
    before, plan = plan_of(fxprune.prune(model, 0.5, example_inputs=x, compensate=False)), plan_of(pruned)
    assert plan.flops / plan.flops_before == pytest.approx(before.flops / before.flops_before, abs=0.01)


def test_a_program_is_pruned_with_its_data_and_read_from_a_file(tmp_path: Any) -> None:
    model = randomise(timm.create_model("resnet10t", num_classes=7)).float()
    exported = program(model, x := torch.randn(2, 3, 64, 64))
    before = {name: value.clone() for name, value in exported.state_dict().items()}
    assert fxprune.count_flops(exported, x) == fxprune.count_flops(model, x)
    pruned = fxprune.prune(exported, 0.6, example_inputs=x, data=[torch.randn(4, 3, 64, 64) for _ in range(3)])
    assert fxprune.verify(exported, pruned) <= 1e-12
    fxprune.save(pruned, tmp_path / "pruned.safetensors")
    assert torch.equal(fxprune.load(tmp_path / "pruned.safetensors", original=exported)(x), pruned(x))
    assert all(torch.equal(value, before[name]) for name, value in exported.state_dict().items())


@pytest.mark.parametrize("name", sorted(_FUNCTIONS))
def test_every_operator_of_the_table_is_one_of_aten(name: str) -> None:
    packet = getattr(torch.ops.aten, name)
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    assert overloads
    assert all(as_function(overload) is _FUNCTIONS[name] for overload in overloads)


def test_operators_of_others_are_left_as_they_are() -> None:
    assert as_function(torch.ops.prims.add.default) is None
    assert as_function(torch.relu) is None
