"""Losses whose gradients say how much the outputs depend on something: with labels, and without."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fxprune.data import Batch, check_labels
from fxprune.errors import CannotScoreError
from fxprune.losses import (
    are_class_labels,
    as_class_scores,
    class_loss,
    float_outputs,
    main_output,
    number_of_classes,
    separated,
)

__all__ = ["output_losses"]


def output_losses(
    model: nn.Module, outputs: object, labels: Tensor | None, probes: int, random: torch.Generator
) -> Iterator[Tensor]:
    """Scalars whose gradients are sums over the samples.

    With class labels it is one, the cross-entropy. Labels of another kind are ignored. Without labels, there is one
    for each probe, in a random direction: the expectation of the squared gradient is the curvature of
    `fxprune.losses.distillation_loss` to the outputs as they are. Without probes, it is the cross-entropy with the most
    likely class.

    Args:
        model: the traced model.
        outputs: of the model.
        labels: of the samples; None without.
        probes: the number of directions.
        random: of the directions.

    Raises:
        CannotScoreError: the outputs have no such loss.
    """
    scores = as_class_scores(model, outputs)
    if labels is not None and are_class_labels(outputs, labels):
        check_labels(Batch((main_output(outputs),), {}, labels), number_of_classes(outputs))
        yield class_loss(scores, labels) * len(labels)
    elif not probes:
        output = main_output(scores)
        if output.dim() < 2 or not output.is_floating_point() or output.shape[1] < 2:
            raise CannotScoreError(
                f"first-order scores without labels need class scores (N, C, ...), and the model's output has shape "
                f"{tuple(output.shape)}: give labels, or another method"
            )
        yield F.cross_entropy(output, output.detach().argmax(1), reduction="sum")
    else:
        leaves = float_outputs(separated(model, outputs))
        if not leaves:
            raise CannotScoreError(
                "scores from data need floating-point outputs, and the model has none: use a method without data"
            )
        for _ in range(probes):
            yield torch.stack([(leaf * _direction(leaf.detach(), len(leaves), random)).sum() for leaf in leaves]).sum()


def _direction(output: Tensor, outputs: int, random: torch.Generator) -> Tensor:
    """A random direction whose covariance is the Hessian of the distillation loss by one of so many outputs."""
    noise = torch.randn(output.shape, generator=random).to(output)
    if outputs == 1 and output.dim() == 2 and output.shape[1] > 1:
        # diag(p) - p p^T: of the KL divergence.
        chance = output.float().softmax(1)
        noise = noise * chance.sqrt()
        return (noise - chance * noise.sum(1, keepdim=True)).to(output)
    size = output.float().square().mean() * math.prod(output.shape[1:]) * outputs
    return noise * (2 / size.clamp_min(1e-30)).sqrt().to(output)
