"""A fingerprint is the same for the same architecture, whatever its weights, and says how others differ."""

from __future__ import annotations

import pytest
import torch
from invariant import image
from torch import nn

import fxprune
from fxprune.tracing.fingerprint import Fingerprint, fingerprint


def print_of(*layers: nn.Module) -> Fingerprint:
    return fingerprint(fxprune.trace(nn.Sequential(*layers), image()))


def test_weights_and_the_batch_are_no_part_of_it() -> None:
    first, second = print_of(nn.Conv2d(3, 4, 1), nn.ReLU()), print_of(nn.Conv2d(3, 4, 1), nn.ReLU())
    assert first == second
    assert first.difference(second) == ""
    assert first.model == "Sequential"
    assert first.tensors == {"0.weight": ((4, 3, 1, 1), "float32"), "0.bias": ((4,), "float32")}
    assert first == fingerprint(fxprune.trace(nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU()), image(batch=5)))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Conv2d(3, 5, 1)], "0.weight has shape [5, 3, 1, 1] in it, not [4, 3, 1, 1]"),
        ([nn.Conv2d(3, 4, 1, bias=False)], "it has no 0.bias"),
        ([nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)], "it has 1.weight (and 4 more) besides"),
        ([nn.Conv2d(3, 4, 1, padding=1)], "its tensors fit, but its operations or their settings differ"),
        ([nn.Conv2d(3, 4, 1), nn.ReLU()], "its tensors fit, but its operations or their settings differ"),
    ],
)
def test_the_first_difference_is_said(layers: list[nn.Module], message: str) -> None:
    base = print_of(nn.Conv2d(3, 4, 1))
    assert base.difference(print_of(*layers)) == message
    assert (base.difference(print_of(*layers), operations=False) == "") == ("operations" in message)


def test_ties_are_a_part_of_it() -> None:
    tied = [nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False)]
    tied[1].weight = tied[0].weight
    base = print_of(*tied)
    assert base.ties == (("0.weight", "1.weight"),)
    untied = print_of(nn.Conv2d(3, 3, 1, bias=False), nn.Conv2d(3, 3, 1, bias=False))
    assert base.difference(untied) == "in it, 0.weight and 1.weight are not one tensor"
    assert untied.difference(base) == "it ties other tensors"


def test_misfit_compares_shapes_alone() -> None:
    base = print_of(nn.Conv2d(3, 4, 1))
    assert base.misfit({"0.bias": torch.zeros(4, dtype=torch.float16)}) == ""
    assert base.misfit({"0.bias": torch.zeros(5)}) == "0.bias has shape [5] in it, not [4]"
    assert base.misfit({"head": torch.zeros(5)}) == "it has head besides"
