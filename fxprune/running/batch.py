"""A batch of samples, and running a model on it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.devices import on_device_of
from fxprune.running.regions import leaving_regions

__all__ = ["BATCH_DIM", "SAMPLES_PER_PASS", "Batch", "Inputs", "placeholder_values", "run_model", "running_on"]

Inputs: TypeAlias = "Tensor | Sequence[Any] | Mapping[str, Any]"
"""The inputs of a call as users give them: one tensor, a tuple of arguments, or a dict of keyword arguments."""

BATCH_DIM = 0
"""The dimension of inputs, labels and outputs along which the samples lie."""

SAMPLES_PER_PASS = 16
"""How many samples scoring and compensation run at a time; it bounds the memory they need. Not tuned."""


@dataclass(frozen=True, eq=False)
class Batch:
    """The inputs of a model for a number of samples, and their labels.

    Attributes:
        args: positional inputs.
        kwargs: keyword inputs.
        labels: class numbers (N,) or (N, ...), class probabilities (N, C), or None.
        clusters: the number of each sample's cluster (N,), or None. Samples of one cluster are alike, such as frames of
            a film: none of them judges what was fitted to another (`fxprune.compensation.holdout`).
        checked: whether `fxprune.data` has checked the inputs, which it then does not do again.

    Examples:
        >>> batch = Batch((torch.zeros(4, 3),), {}, labels=torch.tensor([0, 1, 1, 0]))
        >>> batch.size, batch.rows(0, 2).labels
        (4, tensor([0, 1]))
    """

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    labels: Tensor | None = None
    clusters: Tensor | None = None
    checked: bool = False

    @property
    def inputs(self) -> list[Tensor]:
        """The tensors among the inputs."""
        return trees.tensors((self.args, dict(self.kwargs)))

    @property
    def size(self) -> int:
        """The number of samples: the size of the first input that has a batch dimension."""
        return int(next(tensor for tensor in self.inputs if tensor.dim()).shape[BATCH_DIM])

    @property
    def shapes(self) -> str:
        """The shapes of the inputs in words, for messages."""
        return ", ".join(str(tuple(tensor.shape)) for tensor in self.inputs)

    @property
    def example(self) -> Inputs:
        """The first sample, in the form of `example_inputs`."""
        one = self.rows(0, 1)
        return dict(one.kwargs) if one.kwargs else one.args

    def to(self, device: torch.device | str) -> Batch:
        """The batch on another device."""
        # A copy to main memory in the background might be read before it is complete.
        background = torch.device(device).type != "cpu"
        return self._map(lambda tensor: tensor.to(device, non_blocking=background))

    def on_device_of(self, model: nn.Module) -> Batch:
        """The batch on the device of a model."""
        args, kwargs, labels = on_device_of(model, (self.args, dict(self.kwargs), self.labels))
        return replace(self, args=args, kwargs=kwargs, labels=labels)

    def rows(self, start: int, stop: int) -> Batch:
        """The samples from start to stop; tensors without a batch dimension stay whole."""
        return self._select(lambda tensor: tensor[start:stop])

    def take(self, numbers: Tensor) -> Batch:
        """The samples with these numbers; tensors without a batch dimension stay whole."""
        return self._select(lambda tensor: tensor[numbers])

    def split(self, size: int = SAMPLES_PER_PASS) -> list[Batch]:
        """The batch in pieces of at most `size` samples."""
        return [self.rows(start, start + size) for start in range(0, self.size, size)]

    def _select(self, part: Callable[[Tensor], Tensor]) -> Batch:
        size = self.size
        return self._map(lambda x: part(x) if x.dim() and x.shape[BATCH_DIM] == size else x)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Batch:
        parts = (self.args, dict(self.kwargs), self.labels, self.clusters)
        return Batch(*trees.map_tensors(change, parts), checked=self.checked)


def run_model(model: nn.Module, batch: Batch, raises: type[FxpruneError] = FxpruneError) -> Any:
    """Call the model on a batch.

    Raises:
        FxpruneError: the model does not take these inputs; of the class `raises`.
    """
    with running_on(batch, raises):
        return model(*batch.args, **batch.kwargs)


@contextmanager
def running_on(batch: Batch, raises: type[FxpruneError] = FxpruneError) -> Iterator[None]:
    """Within it, errors of a model that does not take the batch become errors of the class `raises`."""
    try:
        # Regions that are open when a node fails.
        with leaving_regions():
            yield
    except (raises, torch.OutOfMemoryError):
        raise
    except FxpruneError as error:
        # A check in the traced graph says itself what is wrong with the inputs.
        raise raises(str(error)) from error
    except (RuntimeError, TypeError, ValueError, IndexError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise raises(
            f"the model does not run on data of shapes {batch.shapes}: {type(error).__name__}: {reason}; "
            "the data must yield what the model's forward takes, with samples along the first dimension"
        ) from error


def placeholder_values(graph: fx.Graph, batch: Batch) -> dict[fx.Node, Any]:
    """The value of each placeholder of a graph when the graph is called with a batch; `*args` is one placeholder."""
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
