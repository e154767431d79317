"""An op without a rule is run on small real tensors, to see whether it works on each channel alone.

It does when dropping indices of a dimension before the op or after it gives the same result. Then the channels pass
through; otherwise they are frozen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import fx

from fxprune.channels import Labels, is_labelled, size_of
from fxprune.rules.registry import Op, freeze_labels
from fxprune.rules.shape import map_values

__all__ = ["probe"]

_LARGEST = 4_000_000
_TRIALS = 2


class _Sample:
    """Real stand-ins for the tensors of one call."""

    def __init__(self, op: Op) -> None:
        self._op = op
        self._random = torch.Generator().manual_seed(0)
        self.tensors = {n: self._real(n.meta["value"]) for n in op.node.all_input_nodes if _is_float(n.meta["value"])}
        self.state: dict[str, torch.Tensor] = {}
        if op.module is not None:
            named = (*op.module.named_parameters(), *op.module.named_buffers())
            self.state = {name: self._real(tensor).abs() + 0.1 for name, tensor in named if _is_float(tensor)}

    def _real(self, value: torch.Tensor) -> torch.Tensor:
        return torch.randn(value.shape, generator=self._random, dtype=torch.float64)

    def run(self, tensors: dict[fx.Node, torch.Tensor], state: dict[str, torch.Tensor]) -> torch.Tensor:
        node = self._op.node

        def load(argument: fx.Node) -> Any:
            return tensors[argument].clone() if argument in tensors else argument.meta["value"]

        args, kwargs = fx.node.map_arg(node.args, load), fx.node.map_arg(node.kwargs, load)
        if self._op.module is not None:
            result = torch.func.functional_call(self._op.module, state, args, kwargs)
        elif node.op == "call_method":
            result = getattr(args[0], str(node.target))(*args[1:], **kwargs)
        else:
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        if not isinstance(result, torch.Tensor):
            raise TypeError("more than one output")
        return result


def _is_float(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.is_floating_point()


def probe(op: Op, labels: dict[fx.Node, Labels]) -> Any:
    """The labels of the output of an op without a rule; `labels` has those of its tensor arguments."""
    name = type(op.module).__name__ if op.module is not None else getattr(op.node.target, "__name__", op.node.target)
    labelled = {node: x for node, x in labels.items() if x.labelled}
    if not labelled or not isinstance(op.value, torch.Tensor):
        freeze_labels(op, list(labels.values()), f"no rule for {name}")
        return map_values(op.value)
    size = sum(np.prod(x.shape) for x in labels.values()) + op.value.numel()
    out = Labels.plain(op.shape)
    if size > _LARGEST or not all(_is_float(node.meta["value"]) for node in labelled):
        freeze_labels(op, list(labels.values()), f"no rule for {name}")
        return out
    with torch.no_grad():
        sample = _Sample(op)
        for distance in range(1, max(len(x.dims) for x in labelled.values()) + 1):
            out = _probe_dimension(op, sample, labelled, out, distance, f"{name} mixes channels")
    return out


def _probe_dimension(
    op: Op, sample: _Sample, labels: dict[fx.Node, Labels], out: Labels, distance: int, reason: str
) -> Labels:
    """Try the dimension at this distance from the first one, in all operands that carry channels there."""
    d = distance - 1
    carrying = {node: x for node, x in labels.items() if d < len(x.dims) and is_labelled(x.dims[d])}
    if not carrying:
        return out
    dims = [x.dims[d] for x in carrying.values()]
    size = size_of(dims[0])
    if any(size_of(dim) != size for dim in dims):
        freeze_labels(op, [Labels((dim,), (False,)) for dim in dims], reason)
        return out
    state_dims = {
        name: [k for k, n in enumerate(tensor.shape) if n == size]
        for name, tensor in sample.state.items()
        if size in tensor.shape
    }
    others = [n for n in op.node.all_input_nodes if n in sample.tensors and n not in carrying]
    ambiguous = any(size in n.meta["value"].shape for n in others) or any(len(ks) > 1 for ks in state_dims.values())
    found = None if ambiguous else _commutes(sample, list(carrying), d, size, state_dims, out.shape)
    if found is None:
        for dim in dims:
            op.freeze(dim, reason)
        return out
    dim = dims[0]
    for other in dims[1:]:
        dim = op.unite(dim, other)
    for name, (k,) in state_dims.items():
        weight = op.weight(name, (k,))
        assert weight is not None
        dim = op.unite(dim, weight.dims[k])
    flags = {node: x.zero[d] for node, x in carrying.items()}
    return out.replace(found, dim, zero=_keeps_zero(sample, flags, d, state_dims, found))


def _drop(sample: _Sample, nodes: list[fx.Node], d: int, state_dims: dict[str, list[int]], kept: torch.Tensor) -> Any:
    tensors = {n: t.index_select(d, kept) if n in nodes else t for n, t in sample.tensors.items()}
    state = {
        name: t.index_select(state_dims[name][0], kept) if name in state_dims else t for name, t in sample.state.items()
    }
    return sample.run(tensors, state)


def _attempt(call: Callable[[], torch.Tensor]) -> torch.Tensor | None:
    try:
        return call()
    except Exception:  # noqa: BLE001 - any failure of foreign code means that the op cannot lose the index
        return None


def _commutes(
    sample: _Sample, nodes: list[fx.Node], d: int, size: int, state_dims: dict[str, list[int]], shape: tuple[int, ...]
) -> int | None:
    """The output dimension that loses the same indices as the input; None where there is none."""
    whole = _attempt(lambda: sample.run(sample.tensors, sample.state))
    if whole is None:
        return None
    random = np.random.default_rng(0)
    candidates = [e for e, n in enumerate(shape) if n == size]
    for trial in range(_TRIALS):
        lost = random.choice(size, 1 + trial * (size // 3), replace=False)
        kept = torch.from_numpy(np.setdiff1d(np.arange(size), lost))
        if not len(kept):
            return None
        less = _attempt(lambda: _drop(sample, nodes, d, state_dims, kept))  # noqa: B023
        if less is None:
            return None
        candidates = [
            e
            for e in candidates
            if less.shape == whole.index_select(e, kept).shape
            and torch.allclose(less, whole.index_select(e, kept), rtol=1e-9, atol=1e-9, equal_nan=True)
        ]
    return candidates[0] if len(candidates) == 1 else (d if d in candidates else None)


def _keeps_zero(
    sample: _Sample, flags: dict[fx.Node, bool], d: int, state_dims: dict[str, list[int]], found: int
) -> bool:
    tensors = {n: t.clone() for n, t in sample.tensors.items()}
    state = {name: t.clone() for name, t in sample.state.items()}
    for node, zero in flags.items():
        if zero:
            tensors[node].select(d, 0).zero_()
    for name, (k,) in state_dims.items():
        state[name].select(k, 0).zero_()
    result = _attempt(lambda: sample.run(tensors, state))
    return result is not None and bool((result.select(found, 0) == 0).all())


