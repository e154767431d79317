"""An op without a rule is run on small real tensors, to see whether it works on each channel alone.

It does when dropping indices of a dimension before the op or after it gives the same result. Then the channels pass
through; otherwise they are frozen.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.channels import Labels, is_labelled, size_of
from fxprune.rules.registry import Op, freeze_labels
from fxprune.rules.size import map_values

__all__ = ["probe"]

_LARGEST = 2_000_000
_SMALL = 5


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

    def run(self, tensors: dict[fx.Node, torch.Tensor], state: dict[str, torch.Tensor]) -> torch.Tensor | None:
        """The op's result; None where the op fails, as foreign code may in any way."""
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
        return result if isinstance(result, torch.Tensor) and result.device.type != "meta" else None


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def probe(op: Op, labels: dict[fx.Node, Labels]) -> Any:
    """The labels of the output of an op without a rule; `labels` has those of its tensor arguments."""
    labelled = {node: x for node, x in labels.items() if x.labelled}
    single = isinstance(op.value, torch.Tensor)
    if not labelled or not single or not all(_is_float(node.meta["value"]) for node in labelled):
        freeze_labels(op, list(labels.values()), f"no rule for {op.name}")
        return map_values(op.value)
    elements = op.value.numel() + sum(int(np.prod(x.shape)) for x in labels.values())
    out = Labels.plain(op.shape)
    with torch.no_grad():
        # Full-size samples cost most, and few ops need them.
        make = functools.cache(lambda small: _Sample(op, labelled.keys(), small))
        samples = [lambda: make(True), *([lambda: make(False)] if elements <= _LARGEST else [])]
        for d in range(max(len(x.dims) for x in labelled.values())):
            carrying = {node: x for node, x in labelled.items() if d < len(x.dims) and is_labelled(x.dims[d])}
            if carrying:
                out = _probe_dimension(op, samples, carrying, out, d, f"{op.name} mixes channels")
    return out


def _probe_dimension(
    op: Op, samples: Sequence[Callable[[], _Sample]], carrying: dict[fx.Node, Labels], out: Labels, d: int, reason: str
) -> Labels:
    """Try one dimension, in all operands that carry channels there."""
    dims = [x.dims[d] for x in carrying.values()]
    for sample in samples:
        trial = _Trial(sample(), carrying, d)
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
        return out.replace(found, dim, zero=trial.keeps_zero(found))
    for dim in dims:
        op.freeze(dim, reason)
    return out


class _Trial:
    """Whether an op commutes with losing indices of one dimension of some operands (and of the state that matches)."""

    def __init__(self, sample: _Sample, carrying: dict[fx.Node, Labels], d: int) -> None:
        self._sample = sample
        self._carrying = carrying
        self._d = d
        sizes = {sample.size(size_of(x.dims[d])) for x in carrying.values()}
        self._size = sizes.pop()
        matching = {name: [k for k, n in enumerate(t.shape) if n == self._size] for name, t in sample.state.items()}
        self.state_dims = {name: ks[0] for name, ks in matching.items() if ks}
        others = [t for n, t in sample.tensors.items() if n not in carrying]
        self._clear = (
            not sizes
            and all(len(ks) <= 1 for ks in matching.values())
            and all(self._size not in t.shape for t in others)
        )

    def commutes(self) -> int | None:
        """The output dimension that loses the same indices; None where there is none."""
        whole = self._sample.run(self._sample.tensors, self._sample.state) if self._clear else None
        if whole is None or self._size < 2:
            return None
        random = np.random.default_rng(0)
        candidates = [e for e, n in enumerate(whole.shape) if n == self._size]
        for lost in (1, max(1, self._size // 2)):
            left = np.setdiff1d(np.arange(self._size), random.choice(self._size, lost, replace=False))
            kept = torch.from_numpy(left)
            less = self._without(kept)
            candidates = [e for e in candidates if less is not None and _equal(less, whole.index_select(e, kept))]
        return candidates[0] if len(candidates) == 1 else None

    def _without(self, kept: torch.Tensor) -> torch.Tensor | None:
        sample = self._sample
        tensors = {n: t.index_select(self._d, kept) if n in self._carrying else t for n, t in sample.tensors.items()}
        state = {
            name: t.index_select(self.state_dims[name], kept) if name in self.state_dims else t
            for name, t in sample.state.items()
        }
        return sample.run(tensors, state)

    def keeps_zero(self, found: int) -> bool:
        """Whether the output is zero at an index where the state, and the operands that are known to be, are zero."""
        tensors = {n: t.clone() for n, t in self._sample.tensors.items()}
        state = {name: t.clone() for name, t in self._sample.state.items()}
        for node, x in self._carrying.items():
            if x.zero[self._d]:
                tensors[node].select(self._d, 0).zero_()
        for name, k in self.state_dims.items():
            state[name].select(k, 0).zero_()
        result = self._sample.run(tensors, state)
        return result is not None and bool((result.select(found, 0) == 0).all())


def _equal(left: torch.Tensor, right: torch.Tensor) -> bool:
    return left.shape == right.shape and torch.allclose(left, right, rtol=1e-9, atol=1e-9, equal_nan=True)
