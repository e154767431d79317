"""Pruned models are exported and compiled, and what comes out computes what they do.

`FXPRUNE_EXPORT=1 pytest tests/files/test_exporting.py` tries all models of the cross-section, which takes an hour.
"""

from __future__ import annotations

import io
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.coverage import HERE, random_model
from torch import Tensor, fx, nn

import fxprune
from fxprune import FxpruneError
from fxprune.running import trees
from fxprune.tracing.notes import trace_notes
from fxprune.verification import largest_error

ALL = bool(int(os.environ.get("FXPRUNE_EXPORT", "0")))
MODELS = (HERE / "models-fast.txt").read_text().split() if ALL else ["timm:test_vit"]


class Net(nn.Module):
    """Convolutions, attention and an auxiliary output."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, stride=2)
        self.norm = nn.BatchNorm2d(16)
        self.qkv = nn.Linear(16, 48)
        self.head = nn.Linear(16, 5)

    def forward(self, image: Tensor, scale: Tensor) -> dict[str, Tensor]:
        x = torch.relu(self.norm(self.conv(image)))
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(tokens).reshape(x.shape[0], tokens.shape[1], 3, 4, 4).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return {"logits": self.head(mixed.mean(1)) * scale, "features": x}


def pruned_net() -> fx.GraphModule:
    torch.manual_seed(0)
    inputs = {"image": torch.randn(1, 3, 9, 9), "scale": torch.ones(1, 1)}
    return fxprune.prune(Net(), example_inputs=inputs, method="l2", compensate=False)


def pruned_model(spec: str) -> fx.GraphModule:
    pytest.importorskip(spec.partition(":")[0])
    return fxprune.prune(random_model(spec), method="l2", compensate=False)


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_a_file_is_written_that_runs_at_any_batch_size(tmp_path: Path, suffix: str) -> None:
    pruned = pruned_net().train()
    state = {name: value.clone() for name, value in pruned.state_dict().items()}
    if suffix == "onnx":
        onnxruntime = pytest.importorskip("onnxruntime")
    path = tmp_path / "new" / f"net.{suffix}"
    assert fxprune.export(pruned, path) <= 1e-5
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
    assert pruned.training
    assert all(torch.equal(value, state[name]) for name, value in pruned.state_dict().items())
    image, scale = torch.randn(7, 3, 9, 9), torch.rand(7, 1)
    expected = pruned.eval()(image, scale)
    if suffix == "onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        assert [given.name for given in session.get_inputs()] == ["image", "scale"]
        got = [torch.from_numpy(x) for x in session.run(None, {"image": image.numpy(), "scale": scale.numpy()})]
    else:
        got = list(torch.export.load(path).module()(image=image, scale=scale).values())
    for a, b in zip(expected.values(), got, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_a_fixed_batch_is_the_example_inputs_own(tmp_path: Path) -> None:
    def reshaped(self: Any, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.body(x)).reshape(3, -1))

    model = type("Fixed", (nn.Module,), {"forward": reshaped})()
    model.body, model.head = nn.Linear(4, 8), nn.Linear(8, 2)
    pruned = fxprune.prune(model, 0.9, example_inputs=torch.randn(3, 4), compensate=False)
    with pytest.raises(FxpruneError, match="dynamic_batch=False"):
        fxprune.export(pruned, tmp_path / "net.pt2")
    assert list(tmp_path.iterdir()) == []
    assert fxprune.export(pruned, tmp_path / "net.pt2", dynamic_batch=False) == 0.0


def test_what_cannot_be_exported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pruned = pruned_net()
    with pytest.raises(FxpruneError, match=r"path .*net\.pth'\) must end in \.onnx or \.pt2"):
        fxprune.export(pruned, tmp_path / "net.pth")
    with pytest.raises(FxpruneError, match=r"no common first dimension.*dynamic_batch=False"):
        fxprune.export(nn.Linear(2, 2), tmp_path / "net.pt2", ())
    with pytest.raises(FxpruneError, match=r"torch\.export cannot export Linear: .*dynamic_batch=False"):
        fxprune.export(nn.Linear(2, 2), tmp_path / "net.pt2", torch.ones(1, 3))
    with pytest.raises(FxpruneError, match=r"differ from the model's by .* more than tolerance \(=-1\)"):
        fxprune.export(pruned, tmp_path / "net.pt2", tolerance=-1)
    with monkeypatch.context() as patch:
        other = io.BytesIO()
        args = (torch.ones(2, 3, 9, 9), torch.ones(2, 1))
        torch.export.save(torch.export.export(Net().eval(), args), other)
        patch.setattr("fxprune.files.exporting._to_archive", lambda program: other.getvalue())
        with pytest.raises(FxpruneError, match=r"fails when it runs at batch size 1: .*dynamic_batch=False"):
            fxprune.export(pruned, tmp_path / "net.pt2")
    with monkeypatch.context() as patch:
        patch.setattr("importlib.import_module", _missing)
        with pytest.raises(FxpruneError, match=r"needs onnx .*pip install 'fxprune\[export\]'"):
            fxprune.export(pruned, tmp_path / "net.onnx")
    assert list(tmp_path.iterdir()) == []


def _missing(name: str) -> Any:
    raise ImportError(f"No module named {name}")


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
@pytest.mark.parametrize("spec", MODELS)
def test_a_real_model_is_exported(tmp_path: Path, spec: str, suffix: str) -> None:
    if suffix == "onnx":
        pytest.importorskip("onnxruntime")
    assert fxprune.export(pruned_model(spec), tmp_path / f"model.{suffix}") <= 1e-4


@pytest.mark.parametrize("spec", MODELS)
def test_a_real_model_is_compiled(spec: str) -> None:
    pruned = pruned_model(spec)
    (x,), _ = trace_notes(pruned).example_inputs
    # Without a C++ compiler everything but the generated code is tried.
    backend = "inductor" if shutil.which("g++") and ALL else "aot_eager"
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        torch.compiler.reset()
        compiled = torch.compile(pruned, backend=backend, fullgraph=True)
        for each in (x, torch.cat([x, x.flip(-1), 0.5 * x])):
            assert largest_error(trees.tensors(pruned(each)), trees.tensors(compiled(each))) <= 1e-4
