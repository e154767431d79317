"""What training runs share."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import nn

from fxprune import FxpruneError
from fxprune.training.runs import digest, frozen, make_accelerator, of_main_process


def test_without_accelerate_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(FxpruneError, match=r"pip install 'fxprune\[train\]'"), make_accelerator():
        pass


def test_a_precision_holds_for_one_run() -> None:
    for precision in ("bf16", "no"):
        with make_accelerator(precision) as accelerator:
            assert accelerator.mixed_precision == precision
    with pytest.raises(FxpruneError, match=r"^mixed_precision \(='fp7'\) cannot be used: "), make_accelerator("fp7"):
        pass


def test_one_process_has_its_own_tensor_of_the_main_process() -> None:
    with make_accelerator():
        assert of_main_process(torch.arange(3)).tolist() == [0, 1, 2]


def test_a_frozen_model_is_a_copy_in_eval_without_gradients() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout())
    still = frozen(model, torch.device("cpu"))
    assert still is not None
    assert not still.training
    assert not any(parameter.requires_grad for parameter in still.parameters())
    assert model.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert frozen(None, torch.device("cpu")) is None


def test_the_digest_is_of_names_shapes_types_and_values() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    same = copy.deepcopy(model)
    assert digest(model) == digest(same)
    others = [copy.deepcopy(model) for _ in range(3)]
    with torch.no_grad():
        others[0][0].bias[1] += 1e-6
        others[1][1].running_mean += 1
    others[2].double()
    assert len({digest(each) for each in (model, *others)}) == 4
