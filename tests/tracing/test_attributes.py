"""What users read of a model, as its configuration, is there on the traced and the pruned model."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import trace

X = torch.randn(2, 8)


class Described(nn.Module):
    """A model with attributes of many kinds."""

    task = "detect"
    head: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(8, 8), nn.Linear(8, 3)
        self.names = {0: "cat", 1: "dog", 2: "cow"}
        self.num_classes = 3
        self.stride = (8, 16)
        self.config = SimpleNamespace(hidden=8, act="relu")
        self.pretrained_cfg = {"mean": (0.5,), "input_size": (8,)}
        self.default_cfg = self.pretrained_cfg
        self.meta_layers = [self.f]
        self.tables = {"anchors": torch.zeros(3)}
        # An object of a class that no pickle can name.
        self.local = type("Local", (), {})()
        self.owner = SimpleNamespace(model=self)
        self.act = torch.relu
        self.code_book = lambda x: x

    @property
    def width(self) -> int:
        return self.f.out_features

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.act(self.f(x)))  # type: ignore[no-any-return]


def made_of(tmp_path: Path) -> list[nn.Module]:
    model = Described().eval()
    pruned = fxprune.prune(model, 0.5, example_inputs=X, compensate=False)
    fxprune.save(pruned, tmp_path / "model.safetensors")
    loaded = fxprune.load(tmp_path / "model.safetensors", original=Described())
    return [
        trace(model, X), pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned)), trace(pruned, X), loaded,
        fxprune.compensate(model, pruned, [torch.randn(8, 8)]),
    ]  # fmt: skip


def test_plain_attributes_are_those_of_the_original(tmp_path: Path) -> None:
    model = Described()
    for made in made_of(tmp_path):
        for name in ("names", "num_classes", "stride", "config", "pretrained_cfg", "default_cfg", "task"):
            assert getattr(made, name) == getattr(model, name), name
        assert made.pretrained_cfg is made.default_cfg


def test_modules_tensors_functions_and_what_cannot_be_copied_are_left_out(tmp_path: Path) -> None:
    for made in made_of(tmp_path):
        for name in ("meta_layers", "tables", "local", "owner", "act", "code_book", "width"):
            assert not hasattr(made, name), name


def test_the_attributes_are_copies() -> None:
    model = Described()
    traced = trace(model, X)
    traced.names[0] = "horse"  # type: ignore[operator, index]
    assert model.names[0] == "cat"


class Misnamed(nn.Module):
    """Its attributes have names of every GraphModule."""

    def __init__(self) -> None:
        super().__init__()
        self.f, self.h = nn.Linear(8, 8), nn.Linear(8, 3)
        self.graph, self.code, self.meta, self.class_name = 1, 2, 3, "x"

    def forward(self, x: Tensor) -> Tensor:
        return self.h(self.f(x).relu())  # type: ignore[no-any-return]


def test_what_a_graph_module_owns_is_its_own() -> None:
    pruned = fxprune.prune(Misnamed().eval(), 0.5, example_inputs=X, compensate=False)
    assert isinstance(pruned.code, str)
    assert isinstance(pruned.graph, torch.fx.Graph)
    assert isinstance(pruned.meta, dict)


def test_timm_reads_the_same_preprocessing() -> None:
    timm = pytest.importorskip("timm")
    model = timm.create_model("test_vit", pretrained=False).eval()
    model.pretrained_cfg["mean"] = model.default_cfg["mean"] = (0.25, 0.5, 0.75)
    pruned = fxprune.prune(model, 0.7, compensate=False)
    assert timm.data.resolve_model_data_config(pruned) == timm.data.resolve_model_data_config(model)
    assert pruned.num_classes == model.num_classes
