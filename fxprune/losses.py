"""Losses on a model's outputs, whatever form these have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.running import trees

__all__ = ["are_class_labels", "class_loss", "distillation_loss", "float_outputs", "main_output", "number_of_classes"]


def main_output(outputs: Any) -> Tensor:
    """The tensor that labels speak of: the only output, the one called "logits" or "out", or else the first.

    Raises:
        FxpruneError: there is no tensor among the outputs.
    """
    if isinstance(outputs, Tensor):
        return outputs
    for key in ("logits", "out"):
        found = outputs.get(key) if isinstance(outputs, Mapping) else getattr(outputs, key, None)
        if isinstance(found, Tensor):
            return found
    first = next(iter(trees.tensors(outputs)), None)
    if first is None:
        raise FxpruneError(f"the model's output (a {type(outputs).__name__}) has no tensor: a loss needs one")
    return first


def number_of_classes(outputs: Any) -> int | None:
    """How many classes the outputs tell apart; None where they are no scores (N, C, ...) of classes."""
    output = main_output(outputs)
    return int(output.shape[1]) if output.dim() >= 2 and output.is_floating_point() else None


def are_class_labels(outputs: Any, labels: Tensor) -> bool:
    """Whether labels are class numbers (N, ...) or class probabilities (N, C, ...) of a main output (N, C, ...)."""
    output = main_output(outputs)
    numbers = not labels.is_floating_point()
    return output.dim() >= 2 and labels.shape == (output.shape[:1] + output.shape[2:] if numbers else output.shape)


def class_loss(outputs: Any, labels: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """Cross-entropy of the main output (N, C, ...) with class numbers (N, ...) or class probabilities (N, C, ...).

    Raises:
        FxpruneError: outputs and labels do not fit each other.
    """
    output = main_output(outputs)
    numbers = not labels.is_floating_point()
    if not are_class_labels(outputs, labels):
        raise FxpruneError(
            f"labels of shape {tuple(labels.shape)} and type {labels.dtype} do not fit the model's output of shape "
            f"{tuple(output.shape)}: give class numbers (N, ...) or probabilities (N, C, ...), or a loss of your own"
        )
    return F.cross_entropy(output.float(), labels.long() if numbers else labels, label_smoothing=label_smoothing)


def distillation_loss(student: Any, teacher: Any, temperature: float = 2.0) -> Tensor:
    """How far the student's outputs are from the teacher's.

    A single output (N, C) is taken for class scores: temperature squared times the KL divergence of the softened
    probabilities (Hinton et al., 2015). Of anything else (several outputs, dense maps) it is the mean squared error
    over the teacher's mean square, averaged over the outputs. Where one of the two has auxiliary outputs that the other
    lacks, the main outputs are compared.

    Args:
        student: the outputs that are trained.
        teacher: the outputs to reach; no gradient flows into them.
        temperature: of the softmax.
    """
    pairs = list(zip(float_outputs(student), float_outputs(teacher), strict=False))
    if len(float_outputs(student)) != len(float_outputs(teacher)) or not pairs:
        pairs = [(main_output(student), main_output(teacher))]
    for mine, theirs in pairs:
        if mine.shape != theirs.shape:
            raise FxpruneError(
                f"student and teacher give outputs of shapes {tuple(mine.shape)} and {tuple(theirs.shape)}: "
                "a teacher must do the student's task"
            )
    if len(pairs) == 1 and pairs[0][0].dim() == 2 and pairs[0][0].shape[1] > 1:
        mine, theirs = (F.log_softmax(side.float() / temperature, dim=1) for side in pairs[0])
        return F.kl_div(mine, theirs.detach(), reduction="batchmean", log_target=True) * temperature**2
    return torch.stack([_relative_error(mine.float(), theirs.detach().float()) for mine, theirs in pairs]).mean()


def _relative_error(mine: Tensor, theirs: Tensor) -> Tensor:
    return F.mse_loss(mine, theirs) / theirs.square().mean().clamp(min=1e-12)


def float_outputs(outputs: Any) -> list[Tensor]:
    """The floating-point tensors among the outputs, in order."""
    return [tensor for tensor in trees.tensors(outputs) if tensor.is_floating_point()]
