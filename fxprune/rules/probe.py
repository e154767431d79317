"""An op without a rule is run on small real tensors, to see whether it works on each channel alone.

It does when dropping indices of a dimension before the op or after it gives the same result. Then the channels pass
through; otherwise they are frozen. Operands may have the same channels in different dimensions, and an op may have
several results.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import fx

from fxprune.channels import Labels, size_of
from fxprune.rules.registry import Op, freeze_labels
from fxprune.rules.size import map_values

__all__ = ["probe"]

_LARGEST = 2_000_000
_SMALL = 5
# A dimension of an operand.
_Place: TypeAlias = "tuple[fx.Node, int]"


class _Sample:
    """Real stand-ins for the tensors of one call; equal sizes stay equal when they are made small."""

    def __init__(self, op: Op, labelled: Collection[fx.Node], small: bool) -> None:
        self._op = op
        self._random = torch.Generator().manual_seed(0)
        self._sizes: dict[int, int] = {1: 1}
        self._small = small
        self.tensors = {n: self._real(n.meta["value"]) for n in op.node.all_input_nodes if _is_float(n.meta["value"])}
        for node in self.tensors.keys() - labelled:
            # Foreign code may take these for indices, without a check, as `roi_align` does: below 1 they are 0.
            self.tensors[node].uniform_(generator=self._random)
        self.state: dict[str, torch.Tensor] = {}
        if op.module is not None:
            named = (*op.module.named_parameters(), *op.module.named_buffers())
            self.state = {name: self._real(tensor).abs() + 0.1 for name, tensor in named if _is_float(tensor)}

    def size(self, n: int) -> int:
        """The stand-in's size for a dimension of size `n`."""
        return self._sizes.setdefault(n, min(n, _SMALL + len(self._sizes))) if self._small else n

    def _real(self, value: torch.Tensor) -> torch.Tensor:
        shape = [self.size(n) for n in value.shape]
        return torch.randn(shape, generator=self._random, dtype=torch.float64)

    def run(
        self, tensors: dict[fx.Node, torch.Tensor], state: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, ...] | None:
        """The op's results; None where the op fails, as foreign code may in any way."""
        node = self._op.node

        def load(argument: fx.Node) -> Any:
            return tensors[argument].clone() if argument in tensors else argument.meta["value"]

        args, kwargs = fx.node.map_arg(node.args, load), fx.node.map_arg(node.kwargs, load)
        try:
            if self._op.module is not None:
                result = torch.func.functional_call(self._op.module, state, args, kwargs)
            elif node.op == "call_method":
                result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
        except Exception:
            return None
        results = _results(result)
        return None if any(tensor.device.type == "meta" for tensor in results) else results or None


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def _results(value: Any) -> tuple[torch.Tensor, ...]:
    """The tensors that an op gives; none where it gives anything else."""
    results = tuple(value) if isinstance(value, (tuple, list)) else (value,)
    return results if all(isinstance(result, torch.Tensor) for result in results) else ()


def probe(op: Op, labels: dict[fx.Node, Labels]) -> Any:
    """The labels of the output of an op without a rule; `labels` has those of its tensor arguments."""
    labelled = {node: x for node, x in labels.items() if x.labelled}
    results = _results(op.value)
    if not labelled or not results or not all(_is_float(node.meta["value"]) for node in labelled):
        freeze_labels(op, list(labels.values()), f"no rule for {op.name}")
        return map_values(op.value)
    elements = sum(result.numel() for result in results) + sum(int(np.prod(x.shape)) for x in labels.values())
    out = [Labels.plain(result.shape) for result in results]
    with torch.no_grad():
        # Full-size samples cost most, and few ops need them.
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
    labelled: dict[fx.Node, Labels],
    out: list[Labels],
) -> bool:
    """Try dimensions as those of the same channels; where that is right, `out` gets them."""
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
            weight = op.weight(name, (k,))
            assert weight is not None
            dim = op.unite(dim, weight.dims[k])
        for number, (d, zero) in enumerate(zip(found, trial.keeps_zero(found), strict=True)):
            if d is not None:
                out[number] = out[number].replace(d, dim, zero=zero)
        return True
    return False


class _Trial:
    """Whether an op commutes with losing indices of some operands' dimensions (and of the state that matches)."""

    def __init__(self, sample: _Sample, places: Sequence[_Place], labelled: dict[fx.Node, Labels]) -> None:
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
        """Of each result the dimension that loses the same indices, None where it stays as it is; None if it does not.

        One result at least has to lose some.
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
        """Whether each result is zero at an index where the state, and the operands that are known to be, are zero."""
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
