"""A plan: which channels stay."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fxprune.channels import ChannelGraph
from fxprune.errors import FxpruneError

__all__ = [
    "Plan",
    "RemovedBlock",
    "composed",
    "plan_from_json",
    "plan_keeping",
    "plan_since",
    "plan_to_json",
]


_SHARES = ("latency_target", "params_target", "memory_target")


@dataclass(frozen=True)
class RemovedBlock:
    """A block that is left out.

    Attributes:
        ends: the parameters and buffers at its end; where these are zero, the original does without the block too.
        tensors: all parameters and buffers that go with it.
    """

    ends: tuple[str, ...]
    tensors: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Plan:
    """What is kept of a model.

    Attributes:
        kept: parameter or buffer name -> {dimension: kept indices, ascending}; lists only what loses indices and stays.
        flops: FLOPs of the pruned model, equal to fvcore's count.
        flops_before: FLOPs of the model that the plan is for.
        flops_target: the budget of FLOPs.
        latency_target: the budget of time, as a fraction of the model's; 1 if there was none.
        removed: the blocks that are left out, by name.
        params_target: the budget of parameters, as a fraction of the model's; 1 if there was none.
        memory_target: that of the activations that exist at the same time, likewise.
    """

    kept: Mapping[str, Mapping[int, list[int]]]
    flops: int
    flops_before: int
    flops_target: int
    latency_target: float = 1.0
    removed: Mapping[str, RemovedBlock] = field(default_factory=dict)
    params_target: float = 1.0
    memory_target: float = 1.0

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Plan):
            return NotImplemented
        mine, others = ((each.kept, each.flops, each.flops_before, each.removed) for each in (self, other))
        return mine == others

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        others = "".join(f", {name}={value:g}" for name, value in self.shares.items() if value < 1)
        share = self.flops / max(self.flops_before, 1)
        blocks = f", {len(self.removed)} blocks removed" if self.removed else ""
        return (
            f"Plan({self.flops:,} of {self.flops_before:,} FLOPs ({share:.1%}), {len(self.kept)} tensors cut{blocks}, "
            f"flops_target={self.flops_target:,}{others})"
        )

    @property
    def shares(self) -> dict[str, float]:
        """The budgets that are fractions, by name."""
        return {name: getattr(self, name) for name in _SHARES}

    @property
    def gone(self) -> frozenset[str]:
        """The names of the parameters and buffers that go with removed blocks."""
        return frozenset(name for block in self.removed.values() for name in block.tensors)

    def cut(self, name: str, tensor: Tensor) -> Tensor:
        """The kept part of a parameter or buffer, or of an optimizer's state for it.

        Dimensions of size 1 stay as they are: their one entry is for all indices.

        Args:
            name: of the parameter or buffer.
            tensor: of its original size.

        Returns:
            A new tensor, or the same one if the plan keeps all of it.

        Raises:
            FxpruneError: the tensor is too small for the plan.
        """
        kept = self._kept_of(name, tensor)
        # Cut the dimension that loses most first: then there is less to copy.
        for d, stays in sorted(kept.items(), key=lambda item: len(item[1]) / tensor.shape[item[0]]):
            tensor = tensor.index_select(d, _as_tensor(stays).to(tensor.device))
        return tensor

    def zero_(self, name: str, tensor: Tensor, fill: float = 0.0) -> None:
        """Set the removed entries of a parameter or buffer to zero, or to `fill`, in place.

        Of a removed block these are all entries of the tensors at its end.

        Raises:
            FxpruneError: the tensor is too small for the plan.
        """
        if any(name in block.ends for block in self.removed.values()):
            tensor.fill_(fill)
            return
        for d, stays in self._kept_of(name, tensor).items():
            gone = torch.ones(tensor.shape[d], dtype=torch.bool)
            gone[_as_tensor(stays)] = False
            tensor.index_fill_(d, gone.nonzero().flatten().to(tensor.device), fill)

    def padded(self, name: str, tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor that was cut, back in its original shape, with zeros for the removed entries."""
        for d, stays in self.kept.get(name, {}).items():
            size = (*tensor.shape[:d], shape[d], *tensor.shape[d + 1 :])
            tensor = tensor.new_zeros(size).index_copy_(d, _as_tensor(stays).to(tensor.device), tensor)
        return tensor

    def _kept_of(self, name: str, tensor: Tensor) -> dict[int, list[int]]:
        kept = self.kept.get(name, {})
        for d, stays in kept.items():
            if d >= tensor.dim() or (tensor.shape[d] != 1 and stays[-1] >= tensor.shape[d]):
                raise FxpruneError(
                    f"{name} has shape {tuple(tensor.shape)}, and the plan keeps index {stays[-1]} of its dimension "
                    f"{d}: this is not the model that was pruned"
                )
        return {d: stays for d, stays in kept.items() if tensor.shape[d] != 1}


def composed(first: Plan, second: Plan) -> Plan:
    """The plan for a model that was pruned by one plan, and then again by a second one.

    If the two count FLOPs for inputs of different sizes, the FLOPs before are scaled from the first plan's.
    """
    kept = {name: dict(by_dim) for name, by_dim in first.kept.items()}
    for name, by_dim in second.kept.items():
        for d, stays in by_dim.items():
            left = kept.setdefault(name, {}).get(d)
            kept[name][d] = stays if left is None else [left[k] for k in stays]
    same = second.flops_before == first.flops
    before = first.flops_before if same else round(first.flops_before * second.flops_before / max(first.flops, 1))
    shares = {name: share * second.shares[name] for name, share in first.shares.items()}
    removed = dict(first.removed)
    for name, block in second.removed.items():
        names = itertools.chain([name], (f"{name}#{k}" for k in itertools.count(2)))
        free = next(each for each in names if each not in removed)
        removed[free] = block
    gone = {name for block in removed.values() for name in block.tensors}
    kept = {name: by_dim for name, by_dim in kept.items() if name not in gone}
    return Plan(kept, second.flops, before, second.flops_target, removed=removed, **shares)


def plan_since(first: Plan, both: Plan) -> Plan:
    """The second plan, of the first and of what `composed` makes of the two.

    Raises:
        ValueError: `both` keeps what the first plan removes.
    """
    kept: dict[str, dict[int, list[int]]] = {}
    gone, earlier = both.gone, list(first.removed.values())
    removed = {name: block for name, block in both.removed.items() if block not in earlier}
    lost = (by_dim.keys() - both.kept.get(name, {}).keys() for name, by_dim in first.kept.items() if name not in gone)
    if any(lost) or len(removed) + len(earlier) != len(both.removed):
        raise ValueError("the first plan removes what both keep")
    for name, by_dim in both.kept.items():
        for d, stays in by_dim.items():
            left = first.kept.get(name, {}).get(d)
            if left is not None:
                place = {index: k for k, index in enumerate(left)}
                if not place.keys() >= set(stays):
                    raise ValueError(f"the first plan removes what both keep of {name}")
                stays = [place[index] for index in stays]
            if left is None or len(stays) < len(left):
                kept.setdefault(name, {})[d] = stays
    shares = {name: both.shares[name] / share for name, share in first.shares.items()}
    return Plan(kept, both.flops, first.flops, both.flops_target, removed=removed, **shares)


def _as_tensor(indices: list[int]) -> Tensor:
    # Ten times faster than torch.tensor(indices).
    return torch.from_numpy(np.array(indices, dtype=np.int64))


def _kept_indices(graph: ChannelGraph, alive: npt.NDArray[np.bool_]) -> dict[str, dict[int, list[int]]]:
    """`Plan.kept` of the plan that keeps the channels and blocks marked in `alive`."""
    kept: dict[str, dict[int, list[int]]] = {}
    gone = {name for block in graph.blocks if not alive[block.channel] for name in block.tensors}
    # Dimensions that carry the same channels share one list.
    indices: dict[int, list[int]] = {}
    for name, dims in graph.parameters.items():
        for d, dim in enumerate(() if name in gone else dims):
            if isinstance(dim, int):
                continue
            if id(dim) not in indices:
                indices[id(dim)] = np.flatnonzero(alive[dim]).tolist()
            if len(indices[id(dim)]) < len(dim):
                kept.setdefault(name, {})[d] = indices[id(dim)]
    return kept


def _removed_blocks(graph: ChannelGraph, alive: npt.NDArray[np.bool_]) -> dict[str, RemovedBlock]:
    """`Plan.removed` of the plan that keeps the channels and blocks marked in `alive`."""
    gone = (block for block in graph.blocks if not alive[block.channel])
    return {block.name: RemovedBlock(block.ends, block.tensors) for block in gone}


def plan_keeping(graph: ChannelGraph, alive: npt.NDArray[np.bool_]) -> Plan:
    """The plan that keeps the channels and blocks marked in `alive`, whatever the budget."""
    flops, total = graph.flops(alive), graph.flops.total
    return Plan(_kept_indices(graph, alive), flops, total, total, removed=_removed_blocks(graph, alive))


def plan_to_json(plan: Plan) -> dict[str, Any]:
    """A plan as values for JSON; lists of indices, which many dimensions share, are there once."""
    lists: dict[tuple[int, ...], int] = {}
    kept = {
        name: {str(d): lists.setdefault(tuple(stays), len(lists)) for d, stays in by_dim.items()}
        for name, by_dim in plan.kept.items()
    }
    return {
        "flops": plan.flops,
        "flops_before": plan.flops_before,
        "flops_target": plan.flops_target,
        **plan.shares,
        "indices": [list(stays) for stays in lists],
        "kept": kept,
        "removed": {name: [list(block.ends), list(block.tensors)] for name, block in plan.removed.items()},
    }


def plan_from_json(value: Any, shapes: Mapping[str, tuple[int, ...]]) -> Plan:
    """The plan that `plan_to_json` wrote, for a model with tensors of these shapes.

    Raises:
        ValueError: it is not a plan, or not for such a model.
    """
    if not isinstance(value, dict):
        raise ValueError(f"the plan is a {type(value).__name__}, not an object")
    flops, before, target = (_natural(value.get(key), key) for key in ("flops", "flops_before", "flops_target"))
    shares = {name: value.get(name, 1.0) for name in _SHARES}
    for name, share in shares.items():
        if type(share) not in (int, float) or not 0 < share <= 1:
            raise ValueError(f"{name} is {share!r}, not a fraction in (0, 1]")
    lists, by_name = value.get("indices"), value.get("kept")
    if not isinstance(lists, list) or not all(isinstance(stays, list) for stays in lists):
        raise ValueError("the plan's indices are not a list of lists")
    for stays in lists:
        if not stays or not all(type(k) is int for k in stays) or stays[0] < 0:
            raise ValueError("a list of kept indices is empty, or holds something other than indices")
        if not all(a < b for a, b in pairwise(stays)):
            raise ValueError("a list of kept indices is not ascending")
    if not isinstance(by_name, dict) or not all(isinstance(by_dim, dict) for by_dim in by_name.values()):
        raise ValueError("the plan's kept dimensions are not an object of objects")
    kept: dict[str, dict[int, list[int]]] = {}
    for name, by_dim in by_name.items():
        shape = shapes.get(name)
        if shape is None:
            raise ValueError(f"the plan prunes {name!r}, which the model does not have")
        for key, number in by_dim.items():
            if key not in map(str, range(len(shape))):
                raise ValueError(f"the plan prunes {name} in dimension {key!r} of {len(shape)}")
            if type(number) is not int or not 0 <= number < len(lists):
                raise ValueError(f"the plan has no list of indices {number!r} for {name}")
            if lists[number][-1] >= shape[int(key)]:
                raise ValueError(
                    f"the plan keeps index {lists[number][-1]} of {name} in dimension {key} of size {shape[int(key)]}"
                )
            kept.setdefault(name, {})[int(key)] = lists[number]
    shares = {name: float(share) for name, share in shares.items()}
    return Plan(kept, flops, before, target, removed=_removed_from_json(value.get("removed", {}), shapes), **shares)


def _removed_from_json(value: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, RemovedBlock]:
    if not isinstance(value, dict) or not all(isinstance(both, list) and len(both) == 2 for both in value.values()):
        raise ValueError("the plan's removed blocks are not an object of pairs")
    removed: dict[str, RemovedBlock] = {}
    for name, (ends, tensors) in value.items():
        for names in (ends, tensors):
            if not isinstance(names, list) or not names or not all(isinstance(n, str) and n in shapes for n in names):
                raise ValueError(f"the removed block {name!r} does not list tensors of the model")
        removed[name] = RemovedBlock(tuple(ends), tuple(tensors))
    return removed


def _natural(value: Any, key: str) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{key} is {value!r}, not a number of FLOPs")
    return value
