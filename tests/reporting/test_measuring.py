"""The certificate and the peak memory."""

from __future__ import annotations

import torch
from torch import nn

import fxprune
from fxprune.reporting.measuring import certify, memory_of


def test_a_trained_model_has_its_structure_certified(model: nn.Module, small: nn.Module) -> None:
    trained = fxprune.prune(model, 0.5, example_inputs=torch.zeros(1, 3, 12, 12), compensate=False)
    with torch.no_grad():
        trained.head.weight.add_(1)
    assert certify(model, trained).of == "structure"
    with torch.no_grad():
        trained.head.weight.fill_(float("nan"))
    certificate = certify(model, trained)
    assert not certificate.holds


def test_only_the_structure_is_certified_against_an_original_with_random_weights(
    model: nn.Module, small: nn.Module
) -> None:
    certificate = certify(model, small, random_weights=True)
    assert (certificate.of, certificate.against, certificate.holds) == ("structure", "rebuilt", True)
    small.get_submodule("norm").eps, eps = 0.5, small.get_submodule("norm").eps
    assert not certify(model, small, random_weights=True).holds
    small.get_submodule("norm").eps = eps


def test_the_peak_counts_what_is_alive_at_a_time() -> None:
    chain = nn.Sequential(*(nn.ReLU() for _ in range(5)))
    # The input is the caller's; of the chain's results two are there at a time.
    assert memory_of(chain, torch.zeros(1, 1000)).peak == 2 * 4000
