"""A saved model comes back to the bit, and neither saving nor loading changes a model."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from checkpoints import Block, assert_same, pruned_block, record_of
from invariant import image
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.provenance import pruning_notes
from fxprune.running.copies import named_tensors
from fxprune.tracing.notes import trace_notes


def test_a_model_comes_back_to_the_bit(tmp_path: Path) -> None:
    model, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "new" / "small.safetensors")
    fresh, state = Block(), torch.random.get_rng_state()
    loaded = fxprune.load(tmp_path / "new" / "small.safetensors", original=fresh)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert_same(loaded, pruned)
    assert loaded.code == pruned.code
    assert loaded.second.weight is loaded.first.weight
    x = image(batch=3)
    assert torch.equal(loaded(x), pruned(x))
    assert fxprune.verify(model, loaded) < 1e-9
    # And once more, from what was loaded.
    fxprune.save(loaded, tmp_path / "again")
    assert record_of(tmp_path / "again") == record_of(tmp_path / "new" / "small.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("when", ["before", "after"])
def test_dtypes_come_back(tmp_path: Path, dtype: torch.dtype, when: str) -> None:
    model = Block().to(dtype if when == "before" else torch.float32)
    inputs = image().to(dtype if when == "before" else torch.float32)
    pruned = fxprune.prune(model, example_inputs=inputs, compensate=False).to(dtype)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=Block())
    assert_same(loaded, pruned)
    assert torch.equal(loaded(image().to(dtype)), pruned(image().to(dtype)))
    assert trace_notes(loaded).example_inputs[0][0].dtype == inputs.dtype


def test_compensated_trained_and_copied_models_come_back(tmp_path: Path) -> None:
    model, pruned = pruned_block()
    batch = torch.randn(32, 3, 6, 6)
    compensated = fxprune.compensate(model, pruned, batch)
    trained = fxprune.finetune(compensated, [(batch, torch.arange(32) % 5)], progress=False)
    for k, each in enumerate([compensated, trained, copy.deepcopy(trained), pickle.loads(pickle.dumps(trained))]):
        fxprune.save(each, tmp_path / str(k))
        loaded = fxprune.load(tmp_path / str(k), original=model)
        assert_same(loaded, each)
        assert pruning_notes(loaded).compensated == pruning_notes(compensated).compensated


def test_the_original_and_the_pruned_model_are_not_changed(tmp_path: Path) -> None:
    model, pruned = pruned_block()
    before = {id(tensor): tensor.clone() for each in (model, pruned) for tensor in named_tensors(each).values()}
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=model)
    after = {id(tensor): tensor for each in (model, pruned) for tensor in named_tensors(each).values()}
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        for tensor in loaded.parameters():
            tensor.add_(1)
    assert all(torch.equal(before[key], after[key]) for key in before)


def test_the_original_goes_by_name(tmp_path: Path) -> None:
    for call in (lambda: fxprune.load(tmp_path / "s", Block()), lambda: fxprune.load(tmp_path / "s", model=Block())):
        with pytest.raises(FxpruneError, match=r"^load: .* argument.*: call load\(path, original=model\)$"):
            call()


def test_what_cannot_be_saved_is_named(tmp_path: Path) -> None:
    with pytest.raises(FxpruneError, match="Block has no plan"):
        fxprune.save(Block(), tmp_path / "small")
    _, pruned = pruned_block()
    for source, arguments, message in (
        ("os:getcwd", {}, "only timm:NAME and torchvision:NAME"),
        ("timm:resnet18", {"norm_layer": nn.BatchNorm2d}, "the arguments of timm:resnet18 must be numbers"),
        (None, {"num_classes": 3}, "num_classes given without source="),
    ):
        with pytest.raises(FxpruneError, match=message):
            fxprune.save(pruned, tmp_path / "small", source=source, **arguments)
    with pytest.raises(FxpruneError, match="on the meta device, without the values that save needs"):
        fxprune.save(copy.deepcopy(pruned).to("meta"), tmp_path / "small")
    assert list(tmp_path.iterdir()) == []


class ReadsAll(nn.Module):
    """Reads more values of a parameter than are saved."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        wide = torch.outer(self.first.bias.repeat(20), self.first.bias.repeat(20))
        return self.second(self.first(x).relu()) + sum(wide.tolist()[3])


def test_a_model_that_reads_too_many_values_to_save_them_is_not_saved(tmp_path: Path) -> None:
    pruned = fxprune.prune(ReadsAll(), 0.6, example_inputs=torch.randn(2, 8), compensate=False)
    with pytest.raises(FxpruneError, match="the code of ReadsAll reads values of its parameters"):
        fxprune.save(pruned, tmp_path / "model.safetensors")
