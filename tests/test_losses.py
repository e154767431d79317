"""Losses on outputs of any form."""

from __future__ import annotations

from collections import namedtuple
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import image, net
from torch import Tensor, nn

from fxprune import FxpruneError, trace
from fxprune.losses import (
    are_class_labels,
    class_loss,
    distillation_loss,
    float_outputs,
    main_output,
    number_of_classes,
    separated,
)

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


def detector(join: Callable[[Tensor, Tensor], Any]) -> nn.Module:
    """Boxes (N, 4, P), scores (N, 2, P) and what becomes of them."""
    return net(lambda self, x: join(*self.head(x).flatten(2).split([4, 2], 1)), head=nn.Conv2d(3, 6, 1))


@pytest.mark.parametrize(
    ("join", "shapes"),
    [
        (lambda boxes, scores: torch.cat((boxes, scores), 1), [(4, 36), (2, 36)]),
        (lambda boxes, scores: torch.cat([boxes, scores, boxes], dim=-2), [(4, 36), (2, 36), (4, 36)]),
        (lambda boxes, scores: torch.cat((boxes, scores), 1).transpose(1, 2).contiguous(), [(36, 4), (36, 2)]),
        (lambda boxes, scores: torch.cat((boxes, scores), 1)[:, None].permute(0, 1, 3, 2), [(1, 36, 6)]),
        (lambda boxes, scores: torch.cat((boxes.permute(2, 0, 1), scores.permute(2, 0, 1)), 2).permute(1, 2, 0),
         [(4, 36), (2, 36)]),
        (lambda boxes, scores: (boxes, torch.cat((scores, boxes), 1)), [(4, 36), (2, 36), (4, 36)]),
        (lambda boxes, scores: torch.cat(boxes.split(2, 1), 1), [(2, 36), (2, 36)]),
        (lambda boxes, scores: torch.cat((boxes, scores[:, :0], torch.empty(0)), 1), [(4, 36)]),
        (lambda boxes, scores: torch.cat((boxes, scores[:, :0], scores), 1), [(4, 36), (2, 36)]),
        (lambda boxes, scores: boxes, [(4, 36)]),
        (lambda boxes, scores: torch.cat((boxes, boxes)), [(4, 36)]),
        (lambda boxes, scores: torch.cat((boxes.mean(2), scores.mean(2)), 1), [(6,)]),
    ],
)  # fmt: skip
def test_outputs_are_separated_into_what_they_are_joined_from(
    join: Callable[[Tensor, Tensor], Any], shapes: list[tuple[int, ...]]
) -> None:
    model = detector(join)
    graph = trace(model, image())
    outputs = graph(image())
    parts = float_outputs(separated(graph, outputs))
    assert [tuple(part.shape[1:]) for part in parts] == shapes
    assert separated(model, outputs) is outputs
    assert sum(part.numel() for part in parts) == sum(tensor.numel() for tensor in float_outputs(outputs))


@pytest.mark.parametrize("transposed", [False, True])
def test_a_box_counts_by_the_chance_that_there_is_one(transposed: bool) -> None:
    def join(boxes: Tensor, scores: Tensor) -> Tensor:
        joined = torch.cat((boxes, scores.sigmoid()), 1)
        return joined.transpose(1, 2) if transposed else joined

    graph = trace(detector(join), image())
    wanted = torch.full((1, 6, 36), 2.0)
    # Of the first place it is certain that there is something, of the others that there is nothing.
    wanted[:, 4:], wanted[:, 4, 0] = 0.001, 0.999

    def lost(place: int) -> float:
        changed = wanted.clone()
        changed[:, :4, place] += 1
        sides = (side.mT if transposed else side for side in (changed, wanted))
        return float(distillation_loss(*(separated(graph, side) for side in sides)))

    assert lost(0) > 1e4 * lost(1) > 0


def test_scores_count_beside_boxes_that_are_larger() -> None:
    graph = trace(detector(lambda boxes, scores: torch.cat((1e3 * boxes, scores), 1)), image())
    outputs = graph(image()).detach()
    changed = outputs.clone()
    changed[:, 4:] = 0
    assert distillation_loss(changed, outputs) < 1e-3
    assert distillation_loss(*(separated(graph, side) for side in (changed, outputs))) == pytest.approx(0.5, rel=1e-3)


def test_what_is_joined_in_other_sizes_is_compared_as_it_is() -> None:
    graph = trace(
        net(lambda self, x: torch.cat((self.a(x).flatten(2), self.a(x[..., :2]).flatten(2)), 2), a=nn.Conv2d(3, 2, 1)),
        image(),
    )
    assert len(separated(graph, graph(image()))) == 2
    larger = graph(torch.randn(2, 3, 8, 8))
    assert separated(graph, larger) is larger


class EndingIn(nn.Module):
    def __init__(self, end: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.head, self.end = nn.Linear(3, 5), end

    def forward(self, x: Tensor) -> Tensor:
        return self.end(self.head(x))


@pytest.mark.parametrize(
    "end",
    [
        lambda x: x.softmax(1),
        lambda x: F.softmax(x, dim=-1).to(torch.float32),
        nn.Softmax(1),
    ],
)
def test_class_probabilities_are_compared_as_what_they_are(end: Callable[[Tensor], Tensor]) -> None:
    model, x, y = EndingIn(end), torch.randn(4, 3), torch.randn(4, 3)
    traced = trace(model, x)
    with torch.no_grad():
        found = distillation_loss(separated(traced, traced(y)), separated(traced, traced(x)))
        assert found == pytest.approx(float(distillation_loss(model.head(y), model.head(x))), rel=1e-4)
    # A probability of zero has a logarithm, too.
    assert separated(traced, torch.tensor([[0.0, 1.0]])).isfinite().all()


def test_a_softmax_over_samples_gives_no_class_probabilities() -> None:
    model = trace(nn.Sequential(nn.Linear(3, 5), nn.Softmax(0)), torch.randn(4, 3))
    outputs = model(torch.randn(4, 3))
    assert separated(model, outputs) is outputs


@pytest.mark.parametrize("end", [torch.sigmoid, nn.Sigmoid()])
def test_each_of_several_probabilities_is_compared_for_itself(end: Callable[[Tensor], Tensor]) -> None:
    model, x, y = EndingIn(end), torch.randn(4, 3), torch.randn(4, 3)
    traced = trace(model, x)
    with torch.no_grad():
        p, q = model(x), model(y)
        found = distillation_loss(separated(traced, q), separated(traced, p), temperature=1.0)
    divergence = p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()
    assert found == pytest.approx(float(divergence.mean()), rel=1e-4)
    assert separated(traced, torch.tensor([[0.0, 1.0]])).isfinite().all()
