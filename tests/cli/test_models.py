from __future__ import annotations

from pathlib import Path

import pytest
import torch
from command_line import MODEL, PRUNE, assert_fails
from torch import nn

from fxprune.cli.models import inputs_of


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("none.pth", "none.pth does not exist"),
        ("bad.pth", "bad.pth cannot be loaded safely as a state dict"),
        ("list.pth", "list.pth holds a list, not a state dict"),
        ("other.pth", "other.pth does not fit the model"),
    ],
)
def test_weights_that_cannot_be_used_are_refused(tmp_path: Path, file: str, message: str) -> None:
    (tmp_path / "bad.pth").write_bytes(b"no weights")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(nn.Linear(2, 2).state_dict(), tmp_path / "other.pth")
    assert_fails(*PRUNE, "--weights", tmp_path / file, "-o", tmp_path / "x.safetensors", message=message)
    assert not (tmp_path / "x.safetensors").exists()


def test_names_that_are_not_models_are_refused() -> None:
    assert_fails("inspect", "nothing", message="is not understood")
    assert_fails("inspect", "timm:nope_nope", message="timm")


def test_arguments_need_a_key_and_a_value_and_the_model(small: Path) -> None:
    message = "--arg: 'width' is not KEY=VALUE, such as num_classes=10; see"
    assert_fails("inspect", MODEL, "--arg", "width", message=message, code=2)
    assert_fails("verify", small, "--arg", "width=16", message="--arg width=16: needs --model", code=2)


def test_weights_need_an_original_that_is_known(small: Path, weights: Path) -> None:
    assert_fails("verify", small, "--weights", weights, message="--model")


def test_inputs_of_shapes_are_the_same_each_time() -> None:
    first, second = inputs_of(["1,3,8x8"]), inputs_of(["1,3,8x8"])
    assert first is not None
    assert second is not None
    assert first[0].shape == (1, 3, 8, 8)
    assert torch.equal(first[0], second[0])
    assert inputs_of(None) is None
    assert_fails("inspect", MODEL, "--input", "a,b", message="'a,b' is not a shape, such as 1,3,224,224", code=2)
