"""Snapshots come back as they were, and a failed write leaves the previous one whole."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from fxprune import FxpruneError
from fxprune.training.runs import make_accelerator
from fxprune.training.snapshots import load_snapshot, restore_run, save_run, save_snapshot


def test_any_nesting_comes_back_with_its_types(tmp_path):
    state = {
        "weights": {
            "a.b": torch.randn(2, 3),
            "int": torch.arange(3),
            "half": torch.ones(2).bfloat16(),
            "scalar": torch.tensor(1.5),
        },
        "groups": [{"lr": 0.1, "betas": (0.9, 0.999), "params": [0, 1], "none": None}],
        "by_number": {0: torch.zeros(1), 7: {"step": 3}},
        "odd": {"$": "tensor", "name": "x"},
        "best": math.inf,
        "done": True,
    }
    save_snapshot(tmp_path / "new" / "run.safetensors", state)
    back = load_snapshot(tmp_path / "new" / "run.safetensors")
    for name, tensor in state.pop("weights").items():
        other = back["weights"][name]
        assert other.dtype == tensor.dtype
        assert torch.equal(other, tensor)
    back.pop("weights")
    assert torch.equal(back["by_number"].pop(0), state["by_number"].pop(0))
    assert back == state


def test_model_and_optimizer_resume_from_it(tmp_path):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    save_snapshot(tmp_path / "s", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    state = load_snapshot(tmp_path / "s")
    other = torch.optim.AdamW(model.parameters())
    other.load_state_dict(state["optimizer"])
    assert all(
        torch.equal(a["exp_avg"], b["exp_avg"])
        for a, b in zip(optimizer.state.values(), other.state.values(), strict=True)
    )
    model.load_state_dict(state["model"])


def test_tied_and_strided_tensors_are_stored(tmp_path):
    weight = torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last)
    save_snapshot(tmp_path / "s", [weight, weight, weight[1:]])
    assert all(
        torch.equal(a, b) for a, b in zip(load_snapshot(tmp_path / "s"), [weight, weight, weight[1:]], strict=True)
    )


def test_what_cannot_be_stored_is_named(tmp_path):
    with pytest.raises(FxpruneError, match=r"state\.a\.1 \(a set\) cannot be saved"):
        save_snapshot(tmp_path / "s", {"a": [1, {2}]})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("where", ["fsync", "fdopen", "replace"])
def test_a_write_that_fails_midway_leaves_the_previous_one_whole(tmp_path, monkeypatch, where):
    path = tmp_path / "run.safetensors"
    save_snapshot(path, {"step": 1})

    def full(*args, **keywords):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        if where == "replace":
            patch.setattr("pathlib.Path.replace", full)
        else:
            patch.setattr(os, where, full)
        with pytest.raises(FxpruneError, match=r"cannot be written: .*No space left.*previous one is whole"):
            save_snapshot(path, {"step": 2})
    assert load_snapshot(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["run.safetensors"]


def test_a_kill_while_writing_leaves_a_whole_one(tmp_path):
    path = tmp_path / "run.safetensors"
    code = (
        "import sys, torch\n"
        "from fxprune.training.snapshots import save_snapshot\n"
        "tensor = torch.zeros(1_000_000)\n"
        "for step in range(10_000):\n"
        "    save_snapshot(sys.argv[1], {'step': step, 'tensor': tensor + step})\n"
    )
    process = subprocess.Popen([sys.executable, "-W", "ignore", "-c", code, str(path)])
    try:
        while not path.exists() and process.poll() is None:
            time.sleep(0.05)
        time.sleep(0.2)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    state = load_snapshot(path)
    assert bool((state["tensor"] == state["step"]).all())


def test_other_files_are_refused(tmp_path):
    with pytest.raises(FxpruneError, match="cannot be read"):
        load_snapshot(tmp_path / "missing")
    (tmp_path / "text").write_text("not a snapshot")
    with pytest.raises(FxpruneError, match=r"cannot be read.*remove it"):
        load_snapshot(tmp_path / "text")
    save_file({"a": torch.zeros(1)}, tmp_path / "weights")
    with pytest.raises(FxpruneError, match="not a snapshot of a training run"):
        load_snapshot(tmp_path / "weights")


def test_a_run_comes_back_with_model_optimizers_and_progress(tmp_path):
    def run():
        torch.manual_seed(0)
        model = nn.Linear(2, 2)
        return model, [torch.optim.Adam(model.parameters(), lr=0.1)]

    model, (optimizer,) = run()
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    with make_accelerator() as accelerator:
        save_run(tmp_path / "s", accelerator, {"seed": 1}, model, [optimizer], {"step": 3})
        other, optimizers = run()
        assert restore_run(tmp_path / "s", accelerator, {"seed": 1}, other, optimizers) == {"step": 3}
        assert torch.equal(other.weight, model.weight)
        assert str(optimizers[0].state_dict()) == str(optimizer.state_dict())
        with pytest.raises(FxpruneError, match=r"differs in seed \(there 1, here 2\)"):
            restore_run(tmp_path / "s", accelerator, {"seed": 2}, other, optimizers)
