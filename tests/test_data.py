"""Data as users have it: forms that are read, input that is refused, and the losses."""

from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune import FxpruneError
from fxprune.data import Batches, calibration_batch, read_batch, run_model
from fxprune.losses import class_loss, distillation_loss, main_output, number_of_classes

X = torch.arange(12.0).reshape(4, 3)
Y = torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize(
    ("item", "args", "keywords", "labelled"),
    [
        (X, 1, [], False),
        ([X], 1, [], False),
        ((X, Y), 1, [], True),
        ([X, Y], 1, [], True),
        ((X, None), 1, [], False),
        (((X, X), Y), 2, [], True),
        ({"x": X, "mask": X}, 0, ["x", "mask"], False),
        ({"x": X, "labels": Y}, 0, ["x"], True),
        ({"x": X, "label": Y}, 0, ["x"], True),
        ({"x": X, "target": Y}, 0, ["x"], True),
        (({"x": X}, Y), 0, ["x"], True),
        ({"x": X, "return_dict": True}, 0, ["x", "return_dict"], False),
    ],
)
def test_every_documented_form_is_read(item, args, keywords, labelled):
    batch = read_batch(item)
    assert (len(batch.args), list(batch.kwargs), batch.labels is not None) == (args, keywords, labelled)
    assert batch.size == 4


@pytest.mark.parametrize("data", [X, {"x": X}, [X], DataLoader(TensorDataset(X), batch_size=4)])
def test_a_bare_tensor_or_dict_is_one_batch(data):
    assert [batch.size for batch in Batches(data)] == [4]


def test_batches_can_be_walked_again():
    batches = Batches(DataLoader(TensorDataset(X, Y), batch_size=2))
    assert len(batches) == 2
    assert (
        [batch.labels.tolist() for batch in batches] == [batch.labels.tolist() for batch in batches] == [[0, 1], [2, 1]]
    )


def test_a_generator_serves_one_pass_and_is_refused_for_several():
    assert calibration_batch((X for _ in range(2)), 8).size == 8
    with pytest.raises(FxpruneError, match=r"generator\) allows only one pass.*list\(data\)"):
        Batches(X for _ in range(2))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (None, "NoneType.* is not an iterable"),
        ("path/to/data", "str.* is not an iterable"),
        ([], "list.* yields no batch"),
        (DataLoader(TensorDataset(X), batch_size=8, drop_last=True), "DataLoader.* yields no batch.*drop_last"),
        ([X, X.numpy()], "batch 1 .*ndarray.*from_numpy"),
        (["cat.jpg"], "batch 0 .*type str"),
        ([(X, X, X)], "tuple of 3.*several positional inputs"),
        ([(X, [0, 1, 2, 1])], "labels of type list"),
        ([torch.tensor(1.0)], "no input that is a tensor of samples"),
        ([{"flag": True}], "no input that is a tensor of samples"),
        ([X[:0]], "has no sample"),
        ([X, X / torch.tensor([1.0, 0.0, 1.0])], r"batch 1 .* 4 NaN or infinite values .* \(4, 3\)"),
        ([X * math.nan], "12 NaN"),
        ([(X, Y[:3])], r"4 samples, but labels of shape \(3,\)"),
        ([(X, torch.tensor(1))], r"labels of shape \(\)"),
        ([(X, Y - 1)], "label -1: class numbers run from 0 to 2, since the model has 3 outputs"),
        ([(X, Y), (X, Y + 1)], "batch 1 of data has label 3"),
        ([(X, X * math.inf)], "labels that are NaN or infinite"),
    ],
)
def test_unusable_data_is_named_with_what_to_do(data, message):
    with pytest.raises(FxpruneError, match=message):
        list(Batches(data, num_classes=3))


def test_large_values_whose_sum_overflows_are_no_error():
    assert len(list(Batches([torch.full((4, 3), 3e38), torch.full((4, 3), 6e4).half()]))) == 2


def test_the_label_that_torch_ignores_is_no_error():
    assert len(list(Batches([(X, torch.tensor([-100, 0, 1, 2]))], num_classes=3))) == 1


def test_a_calibration_batch_has_the_first_samples_of_every_input():
    data = [({"x": X + 10 * k, "scale": torch.tensor(2.0), "flag": True}, Y) for k in range(5)]
    batch = calibration_batch(data, 10)
    assert batch.kwargs["x"].shape == (10, 3)
    assert torch.equal(batch.kwargs["x"][4:8], X + 10)
    assert batch.kwargs["flag"] is True
    assert batch.kwargs["scale"].dim() == 0
    assert batch.labels.tolist() == [*Y.tolist(), *Y.tolist(), 0, 1]
    assert calibration_batch(data, 1000).size == 20


def test_a_calibration_batch_needs_one_shape():
    with pytest.raises(FxpruneError, match=r"shapes \(4, 3\) and \(4, 2\)"):
        calibration_batch([X, X[:, :2]], 8)
    with pytest.raises(FxpruneError, match="different inputs"):
        calibration_batch([X, (X, Y)], 8)
    with pytest.raises(FxpruneError, match="size"):
        calibration_batch([X], 0)


def test_a_batch_splits_into_pieces_that_join_to_itself():
    batch = read_batch(({"x": X, "scale": torch.ones(1)}, Y))
    pieces = batch.split(3)
    assert [piece.size for piece in pieces] == [3, 1]
    assert torch.equal(torch.cat([piece.kwargs["x"] for piece in pieces]), X)
    assert torch.equal(torch.cat([piece.labels for piece in pieces]), Y)
    assert all(piece.kwargs["scale"].shape == (1,) for piece in pieces)


def test_a_model_that_does_not_take_the_data_says_so_with_the_shapes():
    with pytest.raises(FxpruneError, match=r"does not run on data of shapes \(4, 3\): RuntimeError"):
        run_model(nn.Linear(5, 2), read_batch(X))
    with pytest.raises(FxpruneError, match=r"does not run on data.*TypeError"):
        run_model(nn.Linear(3, 2), read_batch(((X, X), Y)))


def test_the_main_output_is_found_in_any_form():
    aux = namedtuple("aux", ["logits", "other"])
    for outputs in (X, (X, Y), {"aux": Y, "out": X}, {"logits": X}, aux(X, Y)):
        assert main_output(outputs) is X
    assert number_of_classes(X) == 3
    assert number_of_classes(Y) is None
    with pytest.raises(FxpruneError, match="no tensor"):
        main_output(None)


def test_class_loss_is_cross_entropy():
    assert class_loss(X, Y) == F.cross_entropy(X, Y)
    assert class_loss({"logits": X}, F.one_hot(Y).float()) == pytest.approx(float(F.cross_entropy(X, Y)))
    dense = torch.randn(2, 3, 4, 4)
    assert class_loss(dense, torch.zeros(2, 4, 4, dtype=torch.long)) == F.cross_entropy(
        dense, torch.zeros(2, 4, 4).long()
    )
    with pytest.raises(FxpruneError, match=r"labels of shape \(4, 1\) .* output of shape \(4, 3\)"):
        class_loss(X, Y[:, None])


def test_distillation_of_class_scores_is_the_divergence_of_the_softened_probabilities():
    student, teacher = torch.randn(5, 7), torch.randn(5, 7)
    p, q = (teacher / 3).softmax(1), (student / 3).softmax(1)
    assert distillation_loss(student, teacher, 3.0) == pytest.approx(
        float((p * (p / q).log()).sum(1).mean() * 9), rel=1e-5
    )
    assert distillation_loss(student, student, 3.0) == pytest.approx(0, abs=1e-6)
    # Class scores say the same when all are raised by a constant.
    assert distillation_loss(teacher + 5, teacher) == pytest.approx(0, abs=1e-6)


def test_distillation_of_other_outputs_is_the_relative_error_and_sends_no_gradient_to_the_teacher():
    student = torch.randn(2, 3, 4, 4, requires_grad=True)
    teacher = torch.randn(2, 3, 4, 4, requires_grad=True)
    loss = distillation_loss((student, student), (teacher, teacher))
    with torch.no_grad():
        expected = float((student - teacher).square().mean() / teacher.square().mean())
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert teacher.grad is None


def test_distillation_compares_main_outputs_where_one_side_has_auxiliary_ones():
    assert distillation_loss((X, X + 1), X) == pytest.approx(0, abs=1e-6)
    with pytest.raises(FxpruneError, match=r"shapes \(4, 3\) and \(4, 2\)"):
        distillation_loss(X, X[:, :2])
