"""Losses for gradients: with labels, with the most likely class, and in random directions."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fxprune import trace
from fxprune.errors import CannotScoreError
from fxprune.losses import distillation_loss
from fxprune.scoring.output_losses import output_losses


def losses(outputs: object, labels: torch.Tensor | None = None, probes: int = 1) -> list[torch.Tensor]:
    return list(output_losses(nn.Identity(), outputs, labels, probes, torch.Generator().manual_seed(0)))


def test_class_labels_give_the_cross_entropy_and_other_labels_are_ignored() -> None:
    outputs, labels = torch.randn(6, 4), torch.arange(6) % 4
    (loss,) = losses(outputs, labels, probes=3)
    torch.testing.assert_close(loss, F.cross_entropy(outputs, labels, reduction="sum"))
    assert len(losses(outputs, torch.randn(6, 2), probes=3)) == 3


def test_without_labels_and_probes_it_is_the_most_likely_class() -> None:
    outputs = torch.randn(6, 4)
    (loss,) = losses(outputs, probes=0)
    torch.testing.assert_close(loss, F.cross_entropy(outputs, outputs.argmax(1), reduction="sum"))


@pytest.mark.parametrize(("labels", "probes"), [(torch.tensor([0, 2, 1]), 1), (None, 0), (None, 1)])
def test_class_probabilities_give_the_losses_of_class_scores(labels: torch.Tensor | None, probes: int) -> None:
    head, x = nn.Linear(4, 3), torch.randn(3, 4)

    def gradient(model: nn.Module) -> torch.Tensor:
        random = torch.Generator().manual_seed(0)
        (loss,) = output_losses(model, model(x), labels, probes, random)
        return torch.autograd.grad(loss, head.weight)[0]

    torch.testing.assert_close(gradient(trace(nn.Sequential(head, nn.Softmax(1)), x, copy=False)), gradient(head))


@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 2)], ids=["class scores", "a map"])
def test_squared_gradients_of_probes_are_the_curvature_of_the_distillation_loss(shape: tuple[int, ...]) -> None:
    outputs = torch.randn(shape, generator=torch.Generator().manual_seed(2)).double().requires_grad_(True)
    gradients = [torch.autograd.grad(loss, outputs)[0] for loss in losses(outputs, probes=4000)]
    got = torch.stack(gradients).square().mean(0)
    hessian = torch.autograd.functional.hessian(
        lambda x: distillation_loss(x, outputs.detach(), temperature=1.0), outputs.detach()
    )
    # The loss is a mean over samples, the probes are sums over them.
    expected = hessian.reshape(outputs.numel(), -1).diagonal().reshape(shape) * len(outputs)
    torch.testing.assert_close(got, expected, rtol=0.15, atol=0.01)


def test_outputs_that_have_no_such_loss_are_refused() -> None:
    with pytest.raises(CannotScoreError, match="need class scores"):
        losses(torch.randn(6), probes=0)
    with pytest.raises(CannotScoreError, match="floating-point outputs"):
        losses(torch.arange(6))


@pytest.mark.parametrize("shape", [(), (0, 3)], ids=["a number", "nothing found"])
def test_outputs_without_samples_give_a_finite_loss(shape: tuple[int, ...]) -> None:
    assert all(loss.isfinite() for loss in losses(torch.ones(shape).requires_grad_()))
