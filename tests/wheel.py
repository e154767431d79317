"""Install a wheel into an empty environment, with nothing but what it needs, and prune a model there.

python tests/wheel.py dist/fxprune-0.1.0-py3-none-any.whl
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

USE = """
import importlib.util, pathlib, subprocess, sys
import torch
from torch import nn
import fxprune

assert "site-packages" in fxprune.__file__, fxprune.__file__
for extra in ("timm", "torchvision", "accelerate", "onnx", "sklearn"):
    assert importlib.util.find_spec(extra) is None, f"{extra} is installed; this must test the core alone"
model = nn.Sequential(
    nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.BatchNorm2d(32), nn.ReLU(),
    nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
)
images = torch.randn(64, 3, 12, 12)
for arguments in ({"data": [images]}, {}, {"compensate": False}):
    small = fxprune.prune(model, flops=0.5, example_inputs=images[:1], **arguments)
    assert fxprune.verify(model, small, images[:1]) < 1e-9
    assert fxprune.count_flops(small, images[:1]) <= 0.5 * fxprune.count_flops(model, images[:1])
fxprune.save(small, "small.safetensors")
again = fxprune.load("small.safetensors", original=model)
assert torch.equal(again.eval()(images), small.eval()(images))
subprocess.run([pathlib.Path(sys.executable).with_name("fxprune"), "--help"], check=True, stdout=subprocess.DEVNULL)
print("fxprune from the wheel, torch", torch.__version__, "and Python", sys.version.split()[0], "works")
"""


def main() -> None:
    """The wheel is the argument."""
    wheel = Path(sys.argv[1]).resolve()
    assert "fxprune/py.typed" in zipfile.ZipFile(wheel).namelist(), "py.typed is missing"
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        subprocess.run([python, "-m", "pip", "install", "--quiet", wheel], check=True)
        subprocess.run([python, "-W", "ignore", "-c", USE], check=True, cwd=folder)


if __name__ == "__main__":
    main()
