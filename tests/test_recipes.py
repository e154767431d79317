"""The recipes run from files on disk to saved weights, on tiny generated data."""

from __future__ import annotations

import gzip
import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file, save_file
from torchvision.models import shufflenet_v2_x0_5

RECIPES = Path(__file__).resolve().parents[1] / "docs" / "recipes"
QUICK = ["--epochs", "1", "--gate-epochs", "1"]


def run(name, monkeypatch, *given):
    monkeypatch.syspath_prepend(str(RECIPES))
    spec = importlib.util.spec_from_file_location(name, RECIPES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.main([str(item) for item in given])


def smaller(weights, before):
    after = load_file(weights)
    return sum(value.numel() for value in after.values()) < 0.9 * sum(value.numel() for value in before.values())


def test_the_cifar10_recipe_reads_the_binary_files(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for name in ("data_batch_1", "data_batch_2", "test_batch"):
        records = random.integers(0, 256, (16, 3073), np.uint8)
        records[:, 0] %= 10
        records.tofile(tmp_path / f"{name}.bin")
    out = tmp_path / "out"
    given = ["--data", tmp_path, "--out", out, "--base-epochs", "1", "--blocks", "1", "--batch-size", "16", *QUICK]
    run("cifar10_resnet56", monkeypatch, *given)
    assert "fine-tuned: test accuracy" in capsys.readouterr().out
    assert (out / "pruned.safetensors").exists()


def test_the_imagenet_recipe_reads_folders_of_images(tmp_path, monkeypatch, capsys):
    random = np.random.default_rng(0)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            folder = tmp_path / split / label
            folder.mkdir(parents=True)
            for k in range(4):
                Image.fromarray(random.integers(0, 256, (40, 48, 3), np.uint8)).save(folder / f"{k}.png")
    weights = {name: value.contiguous() for name, value in shufflenet_v2_x0_5().state_dict().items()}
    save_file(weights, tmp_path / "base.safetensors")
    given = ["--model", "torchvision:shufflenet_v2_x0_5", "--weights", tmp_path / "base.safetensors", "--size", "32"]
    given += ["--data", tmp_path, "--out", tmp_path / "out", "--batch-size", "4", "--workers", "0", *QUICK]
    run("imagenet_resnet50", monkeypatch, *given)
    assert "fine-tuned: test accuracy" in capsys.readouterr().out
    assert smaller(tmp_path / "out" / "pruned.safetensors", weights)


def test_the_fashion_mnist_recipe_runs_on_two_processes(tmp_path):
    random = np.random.default_rng(0)
    for prefix, count in (("train", 32), ("t10k", 10)):
        images = random.integers(0, 256, count * 784, np.uint8).tobytes()
        labels = random.integers(0, 10, count, np.uint8).tobytes()
        (tmp_path / f"{prefix}-images-idx3-ubyte.gz").write_bytes(gzip.compress(bytes(16) + images))
        (tmp_path / f"{prefix}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(bytes(8) + labels))
    # On CPUs `accelerate launch` starts several processes only through MPI; torchrun sets the same environment.
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    given = [
        "--data",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--base-epochs",
        "1",
        "--batch-size",
        "16",
        *QUICK,
    ]
    command = [sys.executable, "-W", "ignore", *launch, str(RECIPES / "fashion_mnist.py"), *given]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "processes: 2" in done.stdout
    # Only one of the two processes prints.
    assert done.stdout.count("fine-tuned: test accuracy") == 1
    assert (tmp_path / "out" / "pruned.safetensors").exists()
