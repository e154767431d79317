"""The tensors of a checkpoint come back to the bit; any other file is refused, and nothing in it is executed."""

from __future__ import annotations

import os
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from checkpoints import Block, assert_same, pruned_block
from invariant import image, net
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError
from fxprune.files.tensors import storable, unusual_strides
from fxprune.training.snapshots import save_snapshot


class Malice:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("write", ["torch", "old torch", "pickle"])
def test_a_pickle_is_refused_and_not_executed(tmp_path: Path, write: str) -> None:
    path, trace_of_it = tmp_path / "small.safetensors", tmp_path / "executed"
    if write == "pickle":
        path.write_bytes(pickle.dumps(Malice(trace_of_it)))
    else:
        torch.save({"a": Malice(trace_of_it)}, path, _use_new_zipfile_serialization=write == "torch")
    with pytest.raises(FxpruneError, match=r"small\.safetensors' is a pickle.*fxprune never unpickles.*fxprune\.save"):
        fxprune.load(path, original=Block())
    assert not trace_of_it.exists()


def test_a_truncated_file_is_refused(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    content = (tmp_path / "small").read_bytes()
    for size in (0, 4, 100, len(content) // 2, len(content) - 1):
        (tmp_path / "small").write_bytes(content[:size])
        with pytest.raises(FxpruneError, match=r"cannot be read as safetensors: .*cut short"):
            fxprune.load(tmp_path / "small", original=Block())


def test_other_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FxpruneError, match="there is no file"):
        fxprune.load(tmp_path / "missing", original=Block())
    with pytest.raises(FxpruneError, match="cannot be read as safetensors"):
        fxprune.load(tmp_path, original=Block())
    (tmp_path / "text").write_text("nothing of the kind, but long enough for a header")
    with pytest.raises(FxpruneError, match="cannot be read as safetensors"):
        fxprune.load(tmp_path / "text", original=Block())
    save_file(Block().stem.state_dict(), tmp_path / "weights")
    with pytest.raises(FxpruneError, match=r"not one that fxprune\.save wrote"):
        fxprune.load(tmp_path / "weights", original=Block())
    save_snapshot(tmp_path / "run", {"step": 1})
    with pytest.raises(FxpruneError, match=r"not one that fxprune\.save wrote"):
        fxprune.load(tmp_path / "run", original=Block())


def test_missing_and_extra_tensors_are_refused(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    with safe_open(tmp_path / "small", framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(tmp_path / "small")
    save_file({**tensors, "more": torch.zeros(1)}, tmp_path / "small", metadata=metadata)
    with pytest.raises(FxpruneError, match="has a tensor more, which the model does not"):
        fxprune.load(tmp_path / "small", original=Block())
    del tensors["scale"]
    save_file(tensors, tmp_path / "small", metadata=metadata)
    with pytest.raises(FxpruneError, match="has no tensor scale"):
        fxprune.load(tmp_path / "small", original=Block())


def test_modes_frozen_weights_and_memory_formats_come_back(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    pruned.train()
    pruned.norm.eval()
    pruned.stem.requires_grad_(False)
    pruned.to(memory_format=torch.channels_last)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=Block())
    assert_same(loaded, pruned)
    assert loaded.stem.weight.is_contiguous(memory_format=torch.channels_last)
    x = image().to(memory_format=torch.channels_last)
    assert torch.equal(loaded.eval()(x), pruned.eval()(x))


def test_recurrent_weights_come_back(tmp_path: Path) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.out(torch.relu(self.inner(self.lstm(x)[0])))

    model = net(forward, lstm=nn.LSTM(4, 6, batch_first=True), inner=nn.Linear(6, 8), out=nn.Linear(8, 3))
    pruned = fxprune.prune(model, 0.9, example_inputs=torch.randn(2, 5, 4), compensate=False)
    fxprune.save(pruned, tmp_path / "small")
    loaded = fxprune.load(tmp_path / "small", original=model)
    x = torch.randn(2, 5, 4)
    assert torch.equal(loaded(x), pruned(x))


def test_other_tools_read_the_weights(tmp_path: Path) -> None:
    _, pruned = pruned_block()
    fxprune.save(pruned, tmp_path / "small")
    tensors = load_file(tmp_path / "small")
    assert set(pruned.state_dict()) - set(tensors) == {"second.weight"}
    assert torch.equal(tensors["stem.weight"], pruned.stem.weight)


def test_tied_tensors_are_stored_once_and_only_dense_ones_are_stored() -> None:
    _, pruned = pruned_block()
    tensors, aliases = storable(pruned)
    assert aliases == {"second.weight": "first.weight"}
    assert "second.weight" not in tensors
    assert not tensors["first.weight"].requires_grad
    with pytest.raises(FxpruneError, match=r"is on meta .* cannot be saved"):
        storable(pruned.to("meta"))


def test_strides_are_told_where_they_are_not_those_of_the_shape() -> None:
    image = torch.zeros(2, 3, 4, 4)
    assert unusual_strides(image) is None
    assert unusual_strides(image.to(memory_format=torch.channels_last)) == [48, 1, 12, 3]
    assert unusual_strides(image[:, ::2]) is None, "it has gaps"
