"""Data as users have it: forms that are read, input that is refused, checks that are made once."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fxprune import Batch, FxpruneError
from fxprune.data import Batches, calibration_batch, read_batch

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


def test_a_checked_batch_is_not_checked_again(monkeypatch):
    looked = []
    monkeypatch.setattr("fxprune.data._check_values", lambda batch, position: looked.append(batch.size))
    batch = calibration_batch([X, X], 6)
    assert batch.checked
    assert looked == [4, 4]
    assert read_batch(batch) is batch
    assert [part.size for part in Batches([batch, batch.rows(0, 2)])] == [6, 2]
    assert looked == [4, 4]


def test_a_batch_of_the_users_own_is_checked():
    with pytest.raises(FxpruneError, match="12 NaN"):
        read_batch(Batch((X * math.nan,), {}))
    with pytest.raises(FxpruneError, match="labels of type list"):
        read_batch(Batch((X,), {}, [0, 1, 2, 1]))


def test_batches_are_moved_to_the_device_of_the_model():
    model = nn.Linear(3, 2)
    assert calibration_batch([X], 4, model).args[0] is X
    assert [batch.args[0] is X for batch in Batches([X], model=model)] == [True]
    # On the meta device tensors have no values, so data stays where it is.
    assert calibration_batch([X], 4, nn.Linear(3, 2, device="meta")).args[0].device.type == "cpu"
