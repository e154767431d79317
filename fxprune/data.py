"""Data as users have it: what a loader yields, read as a `Batch` and checked.

`data` is a DataLoader or any other iterable whose items are one of

- a tensor: the model's only input;
- a pair ``(inputs, labels)``, where inputs are a tensor, a tuple of positional inputs or a dict of keyword inputs, and
  labels may be None;
- a dict of keyword inputs; one of the keys "labels", "label" and "target" holds the labels and is no input;
- a `Batch`.

A bare tensor, a bare dict of tensors, and a bare `Batch`, is one batch.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.devices import on_device_of

__all__ = [
    "Batch",
    "Batches",
    "calibration_batch",
    "check_labels",
    "placeholder_values",
    "read_batch",
    "run_model",
    "running_on",
]

_LABEL_KEYS = ("labels", "label", "target")
_FORMS = "give a tensor, a pair (inputs, labels) or a dict of keyword inputs"
# The label that torch's cross-entropy leaves out.
_IGNORED = -100


@dataclass(frozen=True, eq=False)
class Batch:
    """What a model is called with, and the labels, if any.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        labels: class numbers (N,) or (N, ...), class probabilities (N, C), or None.
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Tensor | None = None

    @property
    def size(self) -> int:
        """The number of samples: the first dimension of the first input."""
        return int(next(leaf for leaf in self._inputs() if leaf.dim()).shape[0])

    @property
    def shapes(self) -> str:
        """The inputs' shapes in words, for messages."""
        return ", ".join(str(tuple(leaf.shape)) for leaf in self._inputs())

    @property
    def example(self) -> Any:
        """One sample, as `example_inputs` take it."""
        one = self.rows(0, 1)
        return dict(one.kwargs) if one.kwargs else one.args

    def to(self, device: torch.device | str) -> Batch:
        """The same batch on a device."""
        # What is brought to main memory in the background may be read before it is there.
        background = torch.device(device).type != "cpu"
        return self._map(lambda leaf: leaf.to(device, non_blocking=background))

    def on_device_of(self, model: nn.Module) -> Batch:
        """The same batch where the model is."""
        return Batch(*on_device_of(model, (self.args, dict(self.kwargs), self.labels)))

    def rows(self, start: int, stop: int) -> Batch:
        """The samples from start to stop; what does not run over the samples stays whole."""
        size = self.size
        return self._map(lambda leaf: leaf[start:stop] if leaf.dim() and leaf.shape[0] == size else leaf)

    def take(self, numbers: Tensor) -> Batch:
        """The samples of these numbers; what does not run over the samples stays whole."""
        size = self.size
        return self._map(lambda leaf: leaf[numbers] if leaf.dim() and leaf.shape[0] == size else leaf)

    def split(self, size: int) -> list[Batch]:
        """The batch in pieces of at most `size` samples."""
        return [self.rows(start, start + size) for start in range(0, self.size, size)]

    def _inputs(self) -> list[Tensor]:
        return trees.tensors((self.args, dict(self.kwargs)))

    def _map(self, change: Any) -> Batch:
        args, kwargs, labels = trees.map_tensors(change, (self.args, dict(self.kwargs), self.labels))
        return Batch(args, kwargs, labels)


class Batches:
    """Data that can be walked again and again: each item read as a Batch and checked.

    Args:
        data: see the head of this module.
        num_classes: where given, class numbers must be below it.

    Raises:
        FxpruneError: now, when the data can be walked only once or not at all; while walking, when there is no batch or
            one cannot be used.

    Examples:
        >>> [batch.size for batch in Batches([torch.zeros(4, 3), torch.zeros(2, 3)])]
        [4, 2]
    """

    def __init__(self, data: Any, num_classes: int | None = None) -> None:
        if isinstance(data, Iterator):
            raise FxpruneError(
                f"data (a {type(data).__name__}) can be walked only once, and more than one pass is needed: "
                "give list(data), or an object that starts again at each iter()"
            )
        self.data: Iterable[Any] = _as_iterable(data)
        self.num_classes = num_classes

    def __len__(self) -> int:
        """The number of batches.

        Raises:
            TypeError: the data does not tell.
        """
        return len(self.data)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[Batch]:
        return _walk(self.data, self.num_classes)


def read_batch(item: Any, position: int = 0) -> Batch:
    """Read one item of the data (see the head of this module) and check its inputs.

    Raises:
        FxpruneError: it has another form, no sample, or inputs that are NaN or infinite.

    Examples:
        >>> read_batch((torch.zeros(2, 3), torch.tensor([0, 1]))).labels
        tensor([0, 1])
    """
    if isinstance(item, Batch):
        _check_inputs(item, position)
        return item
    inputs, labels = item, None
    if isinstance(item, (tuple, list)):
        if len(item) == 1:
            inputs = item[0]
        elif len(item) == 2:
            inputs, labels = item
        else:
            raise FxpruneError(
                f"batch {position} of data is a {type(item).__name__} of {len(item)}: {_FORMS}; "
                "several positional inputs are ((first, second, ...), labels), where labels may be None"
            )
    if isinstance(inputs, Mapping):
        key = next((key for key in _LABEL_KEYS if key in inputs), None)
        if key is not None and labels is None:
            labels = inputs[key]
            inputs = {name: value for name, value in inputs.items() if name != key}
        args, kwargs = (), dict(inputs)
    else:
        args, kwargs = tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,), {}
    _check_types(args, kwargs, labels, position)
    batch = Batch(args, kwargs, labels)
    _check_inputs(batch, position)
    return batch


def calibration_batch(data: Any, size: int) -> Batch:
    """The first `size` samples of the data as one batch; fewer where the data ends before.

    Raises:
        FxpruneError: there is no sample, a batch cannot be used, or batches have different shapes.

    Examples:
        >>> calibration_batch([torch.zeros(4, 3), torch.zeros(4, 3)], 6).size
        6
    """
    if size < 1:
        raise FxpruneError(f"size (={size}) must be at least 1")
    found: list[Batch] = []
    missing = size
    # A single pass: a generator will do.
    for batch in _walk(_as_iterable(data), None):
        found.append(batch if batch.size <= missing else batch.rows(0, missing))
        missing -= found[-1].size
        if missing <= 0:
            break
    return found[0] if len(found) == 1 else _joined(found)


def run_model(model: nn.Module, batch: Batch) -> Any:
    """Call the model on a batch.

    Raises:
        FxpruneError: the model does not take these inputs.
    """
    with running_on(batch):
        return model(*batch.args, **batch.kwargs)


def placeholder_values(graph: fx.Graph, batch: Batch) -> dict[fx.Node, Any]:
    """What each placeholder of a graph stands for when the graph is called with a batch; `*args` is one of them."""
    nodes = [node for node in graph.nodes if node.op == "placeholder"]
    named = {str(node.target) for node in nodes}
    left = list(batch.args)
    values: dict[fx.Node, Any] = {}
    for node in nodes:
        target = str(node.target)
        if target.startswith("**"):
            values[node] = {name: value for name, value in batch.kwargs.items() if name not in named}
        elif target.startswith("*"):
            values[node], left = tuple(left), []
        elif target in batch.kwargs:
            values[node] = batch.kwargs[target]
        else:
            values[node] = left.pop(0) if left else node.args[0]
    return values


@contextmanager
def running_on(batch: Batch) -> Iterator[None]:
    """Within it, the errors of a model that does not take the batch become an FxpruneError."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise FxpruneError(
            f"the model does not run on data of shapes {batch.shapes}: {type(error).__name__}: {reason}; "
            "make the data yield what the model's forward takes, samples along the first dimension"
        ) from error


def check_labels(batch: Batch, num_classes: int | None, position: int = 0) -> None:
    """Check that there is a label for each sample, and that class numbers run from 0 to below `num_classes`.

    Raises:
        FxpruneError: a label cannot be used.
    """
    labels = batch.labels
    if labels is None:
        return
    if labels.dim() == 0 or labels.shape[0] != batch.size:
        raise FxpruneError(
            f"batch {position} of data has {batch.size} samples and labels of shape {tuple(labels.shape)}: "
            "give one label each"
        )
    if labels.is_floating_point():
        if not bool(labels.isfinite().all()):
            raise FxpruneError(f"batch {position} of data has NaN or infinite labels: mend or leave out these samples")
        return
    used = labels[labels != _IGNORED]
    if used.numel() == 0:
        return
    low, high = int(used.min()), int(used.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        upper = "" if num_classes is None else f" to {num_classes - 1}, the model has {num_classes} outputs"
        raise FxpruneError(
            f"batch {position} of data has label {low if low < 0 else high}: class numbers run from 0{upper}; "
            f"{_IGNORED} marks what to leave out"
        )


def _as_iterable(data: Any) -> Iterable[Any]:
    # A tensor is an iterable of its rows, a dict of its keys: neither is ever meant.
    if isinstance(data, (Tensor, Mapping, Batch)):
        return [data]
    if isinstance(data, (str, bytes)) or not (isinstance(data, Iterable) or hasattr(data, "__getitem__")):
        raise FxpruneError(
            f"data (a {type(data).__name__}) is no iterable of batches: give a DataLoader or a list; "
            f"for each batch {_FORMS}"
        )
    return data  # type: ignore[no-any-return]


def _walk(data: Iterable[Any], num_classes: int | None) -> Iterator[Batch]:
    position = -1
    for position, item in enumerate(data):
        batch = read_batch(item, position)
        check_labels(batch, num_classes, position)
        yield batch
    if position < 0:
        raise FxpruneError(
            f"data (a {type(data).__name__}) yields no batch: give at least one; a DataLoader with drop_last=True "
            "needs as many samples as its batch size"
        )


def _check_types(args: tuple[Any, ...], kwargs: Mapping[str, Any], labels: Any, position: int) -> None:
    if labels is not None and not isinstance(labels, Tensor):
        raise FxpruneError(
            f"batch {position} of data has labels of type {type(labels).__name__}: give a tensor or None"
        )
    leaves = trees.leaves((args, dict(kwargs)))
    for leaf in leaves:
        if not isinstance(leaf, (Tensor, bool, int, float, type(None))):
            hint = "torch.from_numpy turns arrays into tensors" if hasattr(leaf, "__array__") else _FORMS
            raise FxpruneError(f"batch {position} of data has an input of type {type(leaf).__name__}: {hint}")
    if not any(isinstance(leaf, Tensor) and leaf.dim() for leaf in leaves):
        raise FxpruneError(f"batch {position} of data has no input that is a tensor of samples: {_FORMS}")


def _check_inputs(batch: Batch, position: int) -> None:
    if batch.size == 0:
        raise FxpruneError(f"batch {position} of data has no sample (shapes {batch.shapes}): leave it out")
    for leaf in batch._inputs():
        # A sum is quicker to look at than all that is in it; it may overflow.
        if leaf.is_floating_point() and not math.isfinite(leaf.sum()) and (bad := int((~leaf.isfinite()).sum())):
            raise FxpruneError(
                f"batch {position} of data has {bad} NaN or infinite values in an input of shape {tuple(leaf.shape)}: "
                "mend or leave out these samples"
            )


def _joined(batches: Sequence[Batch]) -> Batch:
    """One batch of all samples; each batch says which of its tensors run over its samples."""
    columns, specs = [], []
    for batch in batches:
        leaves, spec = trees.flatten((batch.args, dict(batch.kwargs), batch.labels))
        columns.append(leaves)
        specs.append((spec, [isinstance(leaf, Tensor) for leaf in leaves]))
        if specs[-1] != specs[0]:
            raise FxpruneError(
                "the batches of data have different inputs or labels: every item must have the same form"
            )
    joined = [_joined_leaf(leaves, batches) for leaves in zip(*columns, strict=True)]
    return Batch(*trees.unflatten(joined, spec))


def _joined_leaf(leaves: tuple[Any, ...], batches: Sequence[Batch]) -> Any:
    first = leaves[0]
    if not isinstance(first, Tensor) or not first.dim() or first.shape[0] != batches[0].size:
        return first
    for leaf in leaves:
        if leaf.shape[1:] != first.shape[1:]:
            raise FxpruneError(
                f"the batches of data have shapes {tuple(first.shape)} and {tuple(leaf.shape)}: "
                "all but the first dimension must agree"
            )
    return torch.cat(leaves)
