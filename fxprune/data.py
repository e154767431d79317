"""Data as users have it: read as `Batch`es and checked, once.

`data` is a DataLoader or any other iterable whose items are one of

- a tensor: the model's only input;
- a pair ``(inputs, labels)``, where inputs are a tensor, a tuple of positional inputs or a dict of keyword inputs, and
  labels may be None;
- a dict of keyword inputs; one of the keys "labels", "label" and "target" holds the labels and is not an input;
- a `Batch`.

A bare tensor, a bare dict of tensors and a bare `Batch` are one batch.

Public functions read their data with `Batches`, `calibration_batch` or `read_batch`, which check its form, that there
are samples, and that inputs are finite numbers. Then a batch is marked as checked, and is not checked again. The first
two can also move batches to a model's device; functions inside fxprune expect them there. Labels are checked by
`check_labels`: against the number of classes once it is known.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.batch import (
    BATCH_DIM,
    SAMPLES_PER_PASS,
    Batch,
    Inputs,
    placeholder_values,
    run_model,
    running_on,
)

__all__ = [
    "BATCH_DIM",
    "SAMPLES_PER_PASS",
    "Batch",
    "Batches",
    "Data",
    "Inputs",
    "calibration_batch",
    "check_labels",
    "placeholder_values",
    "read_batch",
    "run_model",
    "running_on",
]

Data: TypeAlias = "Iterable[Any] | Mapping[str, Any] | Tensor | Batch"
"""Samples in one of the forms above."""

_LABEL_KEYS = ("labels", "label", "target")
_FORMS = "give a tensor, a pair (inputs, labels) or a dict of keyword inputs"
# torch's cross-entropy ignores this label.
_IGNORED = -100


class Batches:
    """Data as checked batches, in any number of passes.

    Args:
        data: see the head of this module.
        num_classes: if given, class numbers must be below it.
        model: if given, batches are moved to its device.

    Raises:
        FxpruneError: now, if the data is not an iterable or allows only one pass; during a pass, if there is no batch
            or a batch cannot be used.

    Examples:
        >>> [batch.size for batch in Batches([torch.zeros(4, 3), torch.zeros(2, 3)])]
        [4, 2]
    """

    def __init__(self, data: Data, num_classes: int | None = None, model: nn.Module | None = None) -> None:
        if isinstance(data, Iterator):
            raise FxpruneError(
                f"data (a {type(data).__name__}) allows only one pass, and more than one is needed: "
                "give list(data), or an object that starts again at each iter()"
            )
        self.data: Iterable[Any] = _as_iterable(data)
        self.num_classes, self.model = num_classes, model

    def __len__(self) -> int:
        """The number of batches.

        Raises:
            TypeError: the data does not have a length.
        """
        return len(self.data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        return _pass_over(self.data, self.num_classes, self.model)


def calibration_batch(data: Data, size: int, model: nn.Module | None = None) -> Batch:
    """The first `size` samples of the data as one checked batch, or all of them if there are fewer.

    Args:
        data: see the head of this module; one pass over it is made, or less.
        size: the number of samples.
        model: if given, the batch is moved to its device.

    Raises:
        FxpruneError: there is no sample, a batch cannot be used, or the shapes of batches differ.

    Examples:
        >>> calibration_batch([torch.zeros(4, 3), torch.zeros(4, 3)], 6).size
        6
    """
    if size < 1:
        raise FxpruneError(f"size (={size}) must be at least 1")
    found: list[Batch] = []
    missing = size
    for batch in _pass_over(_as_iterable(data)):
        found.append(batch if batch.size <= missing else batch.rows(0, missing))
        missing -= found[-1].size
        if missing <= 0:
            break
    joined = found[0] if len(found) == 1 else _joined(found)
    return joined if model is None else joined.on_device_of(model)


def read_batch(item: Any, position: int = 0) -> Batch:
    """One item of the data (see the head of this module) as a checked batch.

    Args:
        item: the item.
        position: its number in the data, for messages.

    Raises:
        FxpruneError: its form is unknown, or it has no samples, or inputs that are NaN or infinite.

    Examples:
        >>> read_batch((torch.zeros(2, 3), torch.tensor([0, 1]))).labels
        tensor([0, 1])
    """
    batch = item if isinstance(item, Batch) else _read(item, position)
    if batch.checked:
        return batch
    _check_types(batch, position)
    _check_values(batch, position)
    return replace(batch, checked=True)


def check_labels(batch: Batch, num_classes: int | None, position: int = 0) -> None:
    """Check that there is one label for each sample, and that class numbers are from 0 to below `num_classes`.

    Raises:
        FxpruneError: a label cannot be used.
    """
    labels = batch.labels
    if labels is None:
        return
    if labels.dim() == 0 or labels.shape[BATCH_DIM] != batch.size:
        raise FxpruneError(
            f"batch {position} of data has {batch.size} samples, but labels of shape {tuple(labels.shape)}: "
            "give one label for each sample"
        )
    if labels.is_floating_point():
        if not bool(labels.isfinite().all()):
            raise FxpruneError(f"batch {position} of data has labels that are NaN or infinite: correct or remove them")
        return
    used = labels[labels != _IGNORED]
    if used.numel() == 0:
        return
    low, high = int(used.min()), int(used.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        upper = "" if num_classes is None else f" to {num_classes - 1}, since the model has {num_classes} outputs"
        raise FxpruneError(
            f"batch {position} of data has label {low if low < 0 else high}: class numbers run from 0{upper}; "
            f"label what is to be ignored {_IGNORED}"
        )


def _as_iterable(data: Any) -> Iterable[Any]:
    # A tensor would iterate over its rows, and a dict over its keys: that is never meant.
    if isinstance(data, (Tensor, Mapping, Batch)):
        return [data]
    if isinstance(data, (str, bytes)) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise FxpruneError(
            f"data (a {type(data).__name__}) is not an iterable of batches: give a DataLoader or a list; "
            f"for each batch {_FORMS}"
        )
    return data  # type: ignore[no-any-return]


def _pass_over(data: Iterable[Any], num_classes: int | None = None, model: nn.Module | None = None) -> Iterator[Batch]:
    position = -1
    for position, item in enumerate(data):
        batch = read_batch(item, position)
        check_labels(batch, num_classes, position)
        yield batch if model is None else batch.on_device_of(model)
    if position < 0:
        raise FxpruneError(
            f"data (a {type(data).__name__}) yields no batch: give at least one; a DataLoader with drop_last=True "
            "needs at least as many samples as its batch size"
        )


def _read(item: Any, position: int) -> Batch:
    inputs, labels = item, None
    if isinstance(item, (tuple, list)):
        if len(item) not in (1, 2):
            raise FxpruneError(
                f"batch {position} of data is a {type(item).__name__} of {len(item)}: {_FORMS}; "
                "give several positional inputs as ((first, second, ...), labels), where labels may be None"
            )
        inputs, labels = item[0], item[1] if len(item) == 2 else None
    if isinstance(inputs, Mapping):
        key = next((key for key in _LABEL_KEYS if key in inputs), None)
        if key is not None and labels is None:
            labels = inputs[key]
            inputs = {name: value for name, value in inputs.items() if name != key}
        return Batch((), dict(inputs), labels)
    return Batch(tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}, labels)


def _check_types(batch: Batch, position: int) -> None:
    if batch.labels is not None and not isinstance(batch.labels, Tensor):
        raise FxpruneError(
            f"batch {position} of data has labels of type {type(batch.labels).__name__}: give a tensor or None"
        )
    for leaf in trees.leaves((batch.args, dict(batch.kwargs))):
        if not isinstance(leaf, (Tensor, bool, int, float, type(None))):
            hint = "torch.from_numpy turns arrays into tensors" if hasattr(leaf, "__array__") else _FORMS
            raise FxpruneError(f"batch {position} of data has an input of type {type(leaf).__name__}: {hint}")
    if not any(tensor.dim() for tensor in batch.inputs):
        raise FxpruneError(f"batch {position} of data has no input that is a tensor of samples: {_FORMS}")


def _check_values(batch: Batch, position: int) -> None:
    if batch.size == 0:
        raise FxpruneError(f"batch {position} of data has no samples (shapes {batch.shapes}): remove it")
    for tensor in batch.inputs:
        # The sum is faster than a look at each value, but may overflow.
        if tensor.is_floating_point() and not math.isfinite(tensor.sum()) and (bad := int((~tensor.isfinite()).sum())):
            raise FxpruneError(
                f"batch {position} of data has {bad} NaN or infinite values in an input of shape "
                f"{tuple(tensor.shape)}: correct or remove these samples"
            )


def _joined(batches: Sequence[Batch]) -> Batch:
    """All samples in one batch; in each batch, the tensors of its size are those with a batch dimension."""
    columns, forms = [], []
    for batch in batches:
        leaves, nesting = trees.flatten((batch.args, dict(batch.kwargs), batch.labels))
        columns.append(leaves)
        forms.append((nesting, [isinstance(leaf, Tensor) for leaf in leaves]))
        if forms[-1] != forms[0]:
            raise FxpruneError("the batches of data have different inputs or labels: all items must have one form")
    joined = [_joined_leaf(leaves, batches[0].size) for leaves in zip(*columns, strict=True)]
    args, kwargs, labels = trees.unflatten(joined, nesting)
    return Batch(args, kwargs, labels, checked=True)


def _joined_leaf(leaves: tuple[Any, ...], size: int) -> Any:
    first = leaves[0]
    if not isinstance(first, Tensor) or not first.dim() or first.shape[BATCH_DIM] != size:
        return first
    for leaf in leaves:
        if leaf.shape[1:] != first.shape[1:]:
            raise FxpruneError(
                f"the batches of data have shapes {tuple(first.shape)} and {tuple(leaf.shape)}: "
                "all dimensions but the first must agree"
            )
    return torch.cat(leaves)
