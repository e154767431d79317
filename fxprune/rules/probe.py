"""An op without a rule is run on small real tensors, to see whether it treats each channel by itself.

It does if its result is the same whether indices of a dimension are dropped before or after it. Then the channels pass
through; otherwise they are frozen. Operands may have the same channels in different dimensions, and an op may have
several results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from fxprune.channels import Labels, LabelTree, size_of
from fxprune.rules.op import Op, map_values
from fxprune.running.copies import named_tensors
from fxprune.running.one_node import run_node, with_values

__all__ = ["probe"]

# Up to so many elements, samples of full size are tried where small ones fail. Not tuned.
_LARGEST = 2_000_000
# The size of the smallest dimension of a small sample, if not 1.
_SMALL = 5
# A dimension of an operand.
_Place: TypeAlias = "tuple[fx.Node, int]"


class _Sample:
    """Real tensors in place of those of a call; sizes that are equal stay equal when they are made small."""

    def __init__(self, op: Op, labelled: Collection[fx.Node], small: bool) -> None:
        self._op = op
        self._random = torch.Generator().manual_seed(0)
        self._sizes: dict[int, int] = {1: 1}
        self._small = small
        self.tensors = {n: self._real(n.meta["value"]) for n in op.node.all_input_nodes if _is_float(n.meta["value"])}
        for node in self.tensors.keys() - labelled:
            # Foreign code such as `roi_align` uses these as indices without a check. Values below 1 are index 0.
            self.tensors[node].uniform_(generator=self._random)
        self.state: dict[str, torch.Tensor] = {}
        if op.module is not None:
            named = (*op.module.named_parameters(), *op.module.named_buffers())
            self.state = {name: self._real(tensor).abs() + 0.1 for name, tensor in named if _is_float(tensor)}

    def size(self, n: int) -> int:
        """The size that stands for a dimension of size `n`."""
        return self._sizes.setdefault(n, min(n, _SMALL + len(self._sizes))) if self._small else n

    def _real(self, value: torch.Tensor) -> torch.Tensor:
        shape = [self.size(n) for n in value.shape]
        return torch.randn(shape, generator=self._random, dtype=torch.float64)

    def run(
        self, tensors: Mapping[fx.Node, torch.Tensor], state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...] | None:
        """The results of the op; None where it fails, with whatever exception foreign code may raise."""
        node, module = self._op.node, self._op.module

        def load(argument: fx.Node) -> Any:
            return tensors[argument].clone() if argument in tensors else argument.meta["value"]

        args, kwargs = with_values(node, load)
        try:
            if module is None:
                result = run_node(node, args, kwargs)
            else:
                # It may count its calls in a buffer, which the traced model may share with the original.
                others = {name: t.clone() for name, t in named_tensors(module).items() if name not in state}
                result = torch.func.functional_call(module, others | state, args, kwargs)
        except Exception:
            return None
        results = _results(result)
        return None if any(tensor.device.type == "meta" for tensor in results) else results or None


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _can_sample(node: fx.Node, x: Labels) -> bool:
    """Whether random numbers can stand for an operand, which `resize_` and its like may have changed since."""
    value = node.meta["value"]
    return _is_float(value) and tuple(value.shape) == x.shape


def _results(value: Any) -> tuple[torch.Tensor, ...]:
    """The tensors that an op returns; none where it returns anything else."""
    results = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return results if all(isinstance(result, torch.Tensor) for result in results) else ()


def probe(op: Op, labels: Mapping[fx.Node, Labels]) -> LabelTree:
    """The labels of the value of an op without a rule; `labels` are those of its tensor arguments."""
    labelled = {node: x for node, x in labels.items() if x.labelled}
    results = _results(op.value)
    if not labelled or not results or not all(_can_sample(node, x) for node, x in labelled.items()):
        op.freeze(list(labels.values()), f"no rule for {op.name}")
        return map_values(op.value)
    elements = sum(result.numel() for result in results) + sum(int(np.prod(x.shape)) for x in labels.values())
    out = [Labels.plain(result.shape) for result in results]
    with torch.no_grad():
        # Samples of full size cost most, and few ops need them.
        make = functools.cache(lambda small: _Sample(op, labelled.keys(), small))
        samples = [lambda: make(True), *([lambda: make(False)] if elements <= _LARGEST else [])]
        todo = [(node, d) for node, x in labelled.items() for d in x.labelled]
        while todo:
            d = min(d for _, d in todo)
            here = [place for place in todo if place[1] == d]
            size = {size_of(labelled[node].dims[d]) for node, _ in here}
            alike = [(node, e) for node, e in todo if {size_of(labelled[node].dims[e])} == size]
            tried = [here, alike] if len(alike) > len(here) else [here]
            done = next((places for places in tried if _pass(op, samples, places, labelled, out)), None)
            if done is None:
                done = here
                for node, _ in here:
                    op.freeze(labelled[node].dims[d], f"{op.name} mixes channels")
            todo = [place for place in todo if place not in done]
    return out[0] if isinstance(op.value, torch.Tensor) else tuple(out)


def _pass(
    op: Op,
    samples: Sequence[Callable[[], _Sample]],
    places: list[_Place],
    labelled: Mapping[fx.Node, Labels],
    out: list[Labels],
) -> bool:
    """Try some dimensions as dimensions of the same channels; if that works, the labels in `out` get them."""
    dims = [labelled[node].dims[d] for node, d in places]
    for sample in samples:
        trial = _Trial(sample(), places, labelled)
        found = trial.commutes()
        if found is None:
            continue
        dim = dims[0]
        for other in dims[1:]:
            dim = op.unite(dim, other)
        for name, k in trial.state_dims.items():
            dim = op.unite(dim, op.weight(name, (k,)).dims[k])
        for number, (d, zero) in enumerate(zip(found, trial.keeps_zero(found), strict=True)):
            if d is not None:
                out[number] = out[number].replace(d, dim, zero=zero)
        return True
    return False


class _Trial:
    """Whether an op commutes with the loss of indices in some dimensions of operands.

    The dimensions of the module's parameters and buffers that have the same size lose the same indices.
    """

    def __init__(self, sample: _Sample, places: Sequence[_Place], labelled: Mapping[fx.Node, Labels]) -> None:
        self._sample = sample
        self._places = places
        self._labelled = labelled
        sizes = {sample.size(size_of(labelled[node].dims[d])) for node, d in places}
        self._size = sizes.pop()
        matching = {name: [k for k, n in enumerate(t.shape) if n == self._size] for name, t in sample.state.items()}
        self.state_dims = {name: ks[0] for name, ks in matching.items() if ks}
        carrying = {node for node, _ in places}
        others = [t for n, t in sample.tensors.items() if n not in carrying]
        self._clear = (
            not sizes
            and all(len(ks) <= 1 for ks in matching.values())
            and all(self._size not in t.shape for t in others)
        )

    def commutes(self) -> tuple[int | None, ...] | None:
        """For each result the dimension that loses the same indices, or None for a result that loses nothing.

        None if the op does not commute, or if no result loses anything.
        """
        whole = self._sample.run(self._sample.tensors, self._sample.state) if self._clear else None
        if whole is None or self._size < 2:
            return None
        random = np.random.default_rng(0)
        candidates = [[None, *(e for e, n in enumerate(result.shape) if n == self._size)] for result in whole]
        for lost in (1, max(1, self._size // 2)):
            left = np.setdiff1d(np.arange(self._size), random.choice(self._size, lost, replace=False))
            kept = torch.from_numpy(left)
            less = self._without(kept)
            if less is None or len(less) != len(whole):
                return None
            candidates = [
                [e for e in dims if _equal(smaller, result if e is None else result.index_select(e, kept))]
                for dims, smaller, result in zip(candidates, less, whole, strict=True)
            ]
        if any(len(dims) != 1 for dims in candidates):
            return None
        found = tuple(dims[0] for dims in candidates)
        return found if any(d is not None for d in found) else None

    def _without(self, kept: torch.Tensor) -> tuple[torch.Tensor, ...] | None:
        sample = self._sample
        tensors = dict(sample.tensors)
        for node, d in self._places:
            tensors[node] = tensors[node].index_select(d, kept)
        state = {
            name: t.index_select(self.state_dims[name], kept) if name in self.state_dims else t
            for name, t in sample.state.items()
        }
        return sample.run(tensors, state)

    def keeps_zero(self, found: Sequence[int | None]) -> list[bool]:
        """Whether each result is zero at an index where parameters are zero, and operands that are known to be zero."""
        tensors = {n: t.clone() for n, t in self._sample.tensors.items()}
        state = {name: t.clone() for name, t in self._sample.state.items()}
        for node, d in self._places:
            if self._labelled[node].zero[d]:
                tensors[node].select(d, 0).zero_()
        for name, k in self.state_dims.items():
            state[name].select(k, 0).zero_()
        results = self._sample.run(tensors, state)
        if results is None:
            return [False] * len(found)
        return [
            d is not None and bool((result.select(d, 0) == 0).all()) for d, result in zip(found, results, strict=True)
        ]


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-9, atol=1e-9, equal_nan=True)
