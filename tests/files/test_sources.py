"""How the original is built: what is saved of it, and what is believed of a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import assert_same, change, pruned_block, with_value

import fxprune
from fxprune import FxpruneError
from fxprune.files.sources import source_to_store, trusted_source
from fxprune.models import Source, load_model
from fxprune.tracing.notes import trace_notes


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            {"spec": "os:getcwd", "arguments": {}},
            "only timm:NAME and torchvision:NAME are built because a file says so",
        ),
        ({"spec": "timm:hf-hub:someone/model", "arguments": {}}, "only timm:NAME and torchvision:NAME"),
        ({"spec": "timm:local-dir:x", "arguments": {}}, "only timm:NAME and torchvision:NAME"),
        (
            {"spec": "timm:test_resnet", "arguments": {"checkpoint_path": "x.pth"}},
            "with checkpoint_path='x.pth'",
        ),
        ({"spec": "timm:test_resnet", "arguments": {"pretrained": True}}, "with pretrained=True, which is not passed"),
        ({"spec": "timm:test_resnet", "arguments": {"num_classes": 10**12}}, "with num_classes=1000000000000"),
        ({"spec": "timm:test_resnet", "arguments": {"num_classes": {"a": 1}}}, "with num_classes="),
        ({"spec": "timm:test_vit", "arguments": {}}, "timm:test_vit is another model: it has cls_token .* besides"),
        ({"spec": "timm:no_such_net", "arguments": {}}, "timm has no 'no_such_net'"),
    ],
)
def test_a_file_cannot_have_anything_built_but_models(tmp_path: Path, source: Any, message: str) -> None:
    pytest.importorskip("timm")
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    change(tmp_path / "small", with_value("source", value=source))
    with pytest.raises(FxpruneError, match=message):
        fxprune.load(tmp_path / "small")


@pytest.mark.parametrize(
    ("spec", "arguments"),
    [("timm:test_resnet", {"num_classes": 7}), ("timm:test_vit", {"img_size": 96}), ("torchvision:squeezenet1_1", {})],
)
def test_a_library_model_needs_no_original(tmp_path: Path, spec: str, arguments: dict[str, Any]) -> None:
    pytest.importorskip(spec.partition(":")[0])
    pruned = fxprune.prune(load_model(spec, **arguments).eval(), method="l2", compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small")
    assert_same(loaded, pruned)
    (x,), _ = trace_notes(loaded).example_inputs
    assert torch.equal(loaded(x), pruned(x))


def test_timm_models_say_what_they_are_and_others_can_be_told(tmp_path: Path) -> None:
    timm, models = pytest.importorskip("timm"), pytest.importorskip("torchvision.models")
    pruned = fxprune.prune(timm.create_model("test_resnet", num_classes=3, in_chans=1), method="l2", compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    assert_same(fxprune.load(tmp_path / "small"), pruned)
    pruned = fxprune.prune(models.squeezenet1_1(num_classes=3), method="l2", compensate=False)
    fxprune.save(pruned, tmp_path / "other")
    with pytest.raises(FxpruneError, match="does not say how the original is built: give it as original="):
        fxprune.load(tmp_path / "other")
    fxprune.save(pruned, tmp_path / "other", source="torchvision:squeezenet1_1", num_classes=3)
    assert_same(fxprune.load(tmp_path / "other"), pruned)


def test_only_harmless_arguments_of_the_libraries_are_believed() -> None:
    source = Source("timm:resnet18", {"num_classes": 10, "img_size": [96, 96], "global_pool": "avg"})
    assert trusted_source("small", source) is source
    for spec, arguments in (
        ("torch.nn:Linear", {}),
        ("timm:hf-hub:a/b", {}),
        ("timm:resnet18", {"pretrained": True}),
        ("timm:resnet18", {"global_pool": "../weights"}),
        ("timm:resnet18", {"img_size": [96] * 5}),
    ):
        with pytest.raises(FxpruneError, match=r"^small .*: give the original as original=$"):
            trusted_source("small", Source(spec, arguments))


def test_a_source_that_json_cannot_hold_is_left_out_unless_it_was_asked_for() -> None:
    known = Source("torch.nn:Linear", {"dtype": torch.float16})
    assert source_to_store(None, {}, known) is None
    assert source_to_store(None, {}, None) is None
    assert source_to_store(None, {}, Source("a.b:c", {"size": (2, 3)})) == Source("a.b:c", {"size": [2, 3]})
    with pytest.raises(FxpruneError, match="must be numbers, strings and lists"):
        source_to_store("timm:x", {"num_classes": torch.float16}, known)
