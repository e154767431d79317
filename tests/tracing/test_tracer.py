"""The traced model is the model: in eval, in training, at other sizes, with the modules that the user wants whole."""

from __future__ import annotations

import random
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import timm
import torch
from invariant import net
from same_model import assert_same, make, targets
from torch import Tensor, nn

import fxprune
from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.tracing.checks import check_argument, check_as_traced, check_rank
from fxprune.tracing.notes import trace_notes
from fxprune.tracing.tracer import trace

MODELS: list[tuple[str, dict[str, Any], int]] = [
    ("test_resnet", {"drop_path_rate": 0.3, "drop_rate": 0.2}, 64),
    ("test_efficientnet", {"drop_path_rate": 0.3, "drop_rate": 0.2}, 64),
    ("test_vit", {"drop_rate": 0.1, "proj_drop_rate": 0.1, "attn_drop_rate": 0.2, "drop_path_rate": 0.2}, 160),
    ("test_convnext", {"drop_path_rate": 0.2}, 64),
    ("test_byobnet", {"drop_path_rate": 0.2}, 64),
    ("regnety_002", {"drop_path_rate": 0.2}, 32),
    ("levit_128s", {"drop_path_rate": 0.2, "depth": (1, 1, 1)}, 224),
    ("ghostnet_050", {"drop_rate": 0.2}, 32),
    ("densenet121", {"drop_rate": 0.2, "block_config": (2, 2), "growth_rate": 8}, 64),
    ("mobilenetv3_small_050", {}, 64),
]


@pytest.mark.parametrize(("name", "settings", "size"), MODELS, ids=[name for name, _, _ in MODELS])
def test_a_traced_model_is_the_model_in_eval_and_in_training(name: str, settings: dict[str, Any], size: int) -> None:
    model = make(name, **settings)
    traced = trace(model, torch.randn(1, 3, size, size))
    assert_same(model, traced, torch.randn(3, 3, size, size))
    assert not any("training" in note for note in trace_notes(traced).remarks)


def test_swin_is_the_same_at_another_batch_size() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224", img_size=56, depths=(2, 2), num_heads=(2, 4), embed_dim=16, window_size=7,
        drop_path_rate=0.2, attn_drop_rate=0.1, proj_drop_rate=0.1,
    ).eval()  # fmt: skip
    assert_same(model, trace(model, torch.randn(1, 3, 56, 56)), torch.randn(2, 3, 56, 56))


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext", "mobilenetv3_small_050"])
def test_other_resolutions_work_where_they_do_in_the_model(name: str) -> None:
    model = make(name)
    assert_same(model, trace(model, torch.randn(1, 3, 64, 64)), torch.randn(2, 3, 96, 80))


def test_same_padding_is_computed_from_the_size() -> None:
    model = make("tf_mobilenetv3_small_minimal_100")
    assert_same(model, trace(model, torch.randn(1, 3, 64, 64)), torch.randn(2, 3, 75, 83))


def test_the_model_is_left_as_it_was() -> None:
    model = make("levit_128s", depth=(1, 1, 1)).train()
    model.get_submodule("stages.0").eval()
    modes = {name: module.training for name, module in model.named_modules()}
    before = {name: (id(tensor), tensor.clone()) for name, tensor in model.state_dict(keep_vars=True).items()}
    dictionaries = {name: set(vars(module)) for name, module in model.named_modules()}
    state = torch.get_rng_state()
    traced = trace(model, torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0)))
    assert torch.equal(torch.get_rng_state(), state)
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert {name: set(vars(module)) for name, module in model.named_modules()} == dictionaries
    assert all(not getattr(module, "attention_bias_cache", None) for module in model.modules())
    for name, tensor in model.state_dict(keep_vars=True).items():
        assert before[name][0] == id(tensor)
        assert torch.equal(before[name][1], tensor)
    assert all(module.training == modes[name] for name, module in traced.named_modules() if name in modes)
    assert nn.Module.__call__.__module__ == "torch.nn.modules.module"
    assert "training" not in vars(nn.Module)


def test_the_graph_is_tidy() -> None:
    traced = trace(make("test_vit"), torch.randn(1, 3, 160, 160))
    assert not any(isinstance(module, nn.Identity) for module in traced.modules())
    unused = [node for node in traced.graph.nodes if not node.users and node.op not in ("output", "placeholder")]
    assert {node.target for node in unused} <= {check_argument, check_as_traced, check_rank}
    traced.graph.lint()


class Branching(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Branch()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x) + 1
        return result


class Branch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            return x
        return -x * self.scale


def test_control_flow_on_the_input_says_where_and_what_to_do() -> None:
    with pytest.raises(FxpruneError, match=r"`block` \(Branch\).*test_tracer\.py:\d+.*if x\.sum\(\) > 0.*leaves="):
        trace(Branching(), torch.randn(2, 3))
    traced = trace(Branching(), torch.randn(2, 3), leaves=("block",))
    assert_same(Branching(), traced, torch.randn(2, 3))
    assert_same(Branching(), trace(Branching(), torch.randn(2, 3), leaves=(Branch,)), -torch.ones(2, 3))


def test_what_was_traced_can_be_traced_again() -> None:
    """The second time its containers are bare modules, some with nothing in them but a pooling layer."""
    model = make("resnet18")
    once = trace(model, torch.randn(1, 3, 64, 64))
    assert_same(model, trace(once, torch.randn(1, 3, 64, 64)), torch.randn(1, 3, 64, 64))


class OwnTrain(nn.Module):
    def __init__(self, freezes: bool) -> None:
        super().__init__()
        self.conv, self.norm, self.freezes = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), freezes

    def train(self, mode: bool = True) -> OwnTrain:
        super().train(mode)
        if self.freezes:
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


@pytest.mark.parametrize("freezes", [True, False])
def test_a_train_that_leaves_modules_in_eval_is_noted(freezes: bool) -> None:
    expected = r"The graph trains as a whole. `train\(\)` of `0` leaves a part as it is"
    with pytest.warns(FxpruneWarning, match=expected) if freezes else nullcontext():
        traced = trace(nn.Sequential(OwnTrain(freezes)), torch.randn(2, 3, 4, 4))
    assert len(trace_notes(traced).remarks) == freezes


def test_random_numbers_of_python_and_numpy_in_eval_are_warned_of() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.a(x) * random.random() + float(np.random.rand())  # type: ignore[no-any-return]  # noqa: NPY002

    with pytest.warns(FxpruneWarning, match="draws from NumPy or Python in eval are constants"):
        trace(net(forward, a=nn.Linear(4, 8)), torch.randn(3, 4))


class Keypoints(nn.Module):
    """How many it finds depends on the values."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.head = nn.Linear(8, width)

    def forward(self, x: Tensor) -> Tensor:
        found = self.head(x).flatten(0, -2)
        return found[found[:, 0] > 0]


def _found_by_a_part(self: Any, x: Tensor) -> Any:
    y = self.b(self.a(x).relu())
    return self.c(y), self.find(y) * 2


def test_a_small_part_whose_code_follows_values_stays_whole() -> None:
    parts = {"a": nn.Linear(4, 16), "b": nn.Linear(16, 8), "c": nn.Linear(8, 8), "find": Keypoints()}
    model, x = net(_found_by_a_part, **parts), torch.randn(9, 4)
    with pytest.warns(
        FxpruneWarning, match="A part stays whole: the code of `find` follows the values.*FLOPs .* an estimate"
    ):
        traced = trace(model, x)
    assert "find" in targets(traced, "call_module")
    for batch in (3, 20):
        assert_same(model, traced, torch.randn(batch, 4))
    with pytest.warns(FxpruneWarning, match="stays whole"):
        pruned = fxprune.prune(model.double(), 0.7, example_inputs=x.double(), compensate=False)
    for training in (False, True):
        assert fxprune.verify(model, pruned, torch.randn(7, 4).double(), training=training) <= 1e-9


def test_a_model_with_as_many_results_as_its_values_say_is_cut_by_relevance() -> None:
    parts = {"a": nn.Linear(4, 16), "b": nn.Linear(16, 8), "c": nn.Linear(8, 8), "find": Keypoints()}
    model, x = net(_found_by_a_part, **parts).eval(), torch.randn(9, 4)
    with pytest.warns(FxpruneWarning) as warned:
        pruned = fxprune.prune(model, 0.7, example_inputs=x, data=torch.randn(40, 4))
    assert any("sizes" in str(each.message) and "relevance" in str(each.message) for each in warned)
    assert fxprune.verify(model, pruned, x) <= 1e-9


def test_a_part_that_is_most_of_the_model_does_not_stay_whole() -> None:
    model = net(lambda self, x: self.find(self.a(x)), a=nn.Linear(4, 8), find=Keypoints(32))
    with pytest.warns(FxpruneWarning, match="Values of the input decide how large"):
        traced = trace(model, torch.randn(9, 4))
    assert_same(model, traced, torch.randn(20, 4))
