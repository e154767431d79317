"""Losses on outputs of any form."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F

from fxprune import FxpruneError
from fxprune.losses import are_class_labels, class_loss, distillation_loss, main_output, number_of_classes

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 2, 1])


def test_the_main_output_is_found_in_any_form() -> None:
    aux = namedtuple("aux", ["logits", "other"])
    for outputs in (X, (X, Y), {"aux": Y, "out": X}, {"logits": X}, aux(X, Y)):
        assert main_output(outputs) is X
    assert number_of_classes(X) == 3
    assert number_of_classes(Y) is None
    with pytest.raises(FxpruneError, match="no tensor"):
        main_output(None)


def test_class_loss_is_cross_entropy() -> None:
    assert class_loss(X, Y) == F.cross_entropy(X, Y)
    assert class_loss({"logits": X}, F.one_hot(Y).float()) == pytest.approx(float(F.cross_entropy(X, Y)))
    dense = torch.randn(2, 3, 4, 4)
    assert class_loss(dense, torch.zeros(2, 4, 4, dtype=torch.long)) == F.cross_entropy(
        dense, torch.zeros(2, 4, 4).long()
    )
    with pytest.raises(FxpruneError, match=r"labels of shape \(4, 1\) .* output of shape \(4, 3\)"):
        class_loss(X, Y[:, None])


def test_distillation_of_class_scores_is_the_divergence_of_the_softened_probabilities() -> None:
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    assert distillation_loss(student, teacher, 3.0) == pytest.approx(
        float((p * (p / q).log()).sum(1).mean() * 9), rel=1e-5
    )
    assert distillation_loss(student, student, 3.0) == pytest.approx(0, abs=1e-6)
    # Class scores say the same when all are raised by a constant.
    assert distillation_loss(teacher + 5, teacher) == pytest.approx(0, abs=1e-6)


def test_distillation_of_other_outputs_is_the_relative_error_and_sends_no_gradient_to_the_teacher() -> None:
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = distillation_loss((student, student), (teacher, teacher))
    with torch.no_grad():
        expected = float((student - teacher).square().mean() / teacher.square().mean())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_distillation_compares_main_outputs_where_one_side_has_auxiliary_ones() -> None:
    assert distillation_loss((X, X + 1), X) == pytest.approx(0, abs=1e-6)
    with pytest.raises(FxpruneError, match=r"shapes \(4, 3\) and \(4, 2\)"):
        distillation_loss(X, X[:, :2])


def test_distillation_compares_outputs_of_the_same_shapes_where_the_main_ones_are_of_other_shapes() -> None:
    """As the maps of a detector, which gives boxes too in eval."""
    maps, boxes = [torch.randn(2, 5, size, size) for size in (4, 2)], torch.randn(2, 5, 20)
    assert distillation_loss(maps, (boxes, maps)) == distillation_loss((boxes, maps), maps) == 0
    with pytest.raises(FxpruneError, match=r"shapes \(2, 5, 4, 4\) and \(2, 5, 20\)"):
        distillation_loss([*maps, X], (boxes, maps, boxes, boxes))


def test_labels_of_classes_are_known_by_their_shape() -> None:
    assert are_class_labels(X, Y)
    assert are_class_labels(X, X.softmax(1))
    assert not are_class_labels(X, Y.float())
    assert not are_class_labels(X, Y[:2])
    assert not are_class_labels(Y, Y)
