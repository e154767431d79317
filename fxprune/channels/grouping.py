"""Ids become channels, and channels that live on the same dimensions groups."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import fx

from fxprune.channels import ChannelGraph, Dim, Dimension, Frozen, Group, Ids, Labels, Size, map_labels
from fxprune.channels.polynomial import Term, build_polynomial

__all__ = ["Resolved", "collect"]

# The channel of every id, the reasons of frozen channels and those of last-resort ones.
Resolved: TypeAlias = tuple[Ids, dict[int, str], dict[int, str]]


def collect(
    traced: fx.GraphModule,
    resolved: Resolved,
    parameters: Mapping[str, Sequence[Dim]],
    labels_of: dict[str, Any],
    costs: dict[str, list[Term]],
    contractions: dict[str, tuple[tuple[str, int], ...]],
    remarks: tuple[str, ...],
) -> ChannelGraph:
    """Turn ids into channel numbers, and gather the channels that live on the same dimensions."""
    channel_of, frozen_reasons, last_resort_reasons = resolved
    num_channels = int(channel_of.max()) + 1 if len(channel_of) else 0
    converted: dict[int, Ids] = {}

    def to_channels(dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        if id(dim) not in converted:
            converted[id(dim)] = channel_of[dim]
        return converted[id(dim)]

    def convert(label: Any) -> Any:
        if isinstance(label, Labels):
            return Labels(tuple(to_channels(dim) for dim in label.dims), label.zero)
        return label if label.ids is None else Size(converted.setdefault(id(label.ids), channel_of[label.ids]), True)

    named = {name: tuple(to_channels(dim) for dim in dims) for name, dims in parameters.items()}
    labels = {name: map_labels(convert, tree) for name, tree in labels_of.items()}
    in_channels = {
        name: tuple(Term(item.coefficient, tuple(channel_of[factor] for factor in item.factors)) for item in terms)
        for name, terms in costs.items()
    }
    groups, frozen = _groups(named, list(converted.values()), num_channels, frozen_reasons, last_resort_reasons)
    return ChannelGraph(
        module=traced,
        labels=labels,
        parameters=named,
        groups=groups,
        frozen=frozen,
        flops=build_polynomial(itertools.chain.from_iterable(in_channels.values()), num_channels),
        costs=in_channels,
        num_channels=num_channels,
        contractions=contractions,
        remarks=remarks,
    )


def _groups(
    named: dict[str, tuple[Dim, ...]],
    carried: list[Ids],
    num_channels: int,
    frozen_reasons: dict[int, str],
    last_resort_reasons: dict[int, str],
) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    """Channels with the same set of dimensions form a group; the reasons tell groups apart too.

    The dimensions of activations (`carried`) count as well: then each dimension is made of whole groups, and none is
    left empty as long as no group is.
    """
    reasons = [("", ""), *dict.fromkeys((*_kinds(frozen_reasons, last_resort_reasons).values(),))]
    number = {reason: k for k, reason in enumerate(reasons)}
    kind = np.zeros(num_channels, dtype=np.uint64)
    for channel, reason in _kinds(frozen_reasons, last_resort_reasons).items():
        kind[channel] = number[reason]
    signature = _signatures(carried, num_channels)
    # Channels of different kinds differ in this sum as in the signature: 64 bits do not meet by chance.
    _, label = np.unique(signature + kind * np.uint64(0x9E3779B97F4A7C15), return_inverse=True)
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(num_channels + 1))
    groups: list[Group] = []
    frozen: list[Frozen] = []
    taken: Counter[str] = Counter()
    dimensions, repeats = _members(named, label, num_channels)
    for which, on in dimensions.items():
        channels = order[bounds[which] : bounds[which + 1]]
        frozen_for, last_resort_for = reasons[int(kind[channels[0]])]
        if frozen_for:
            frozen.append(Frozen(frozen_for, channels, tuple(on)))
        else:
            most = int(repeats[channels].max())
            groups.append(Group(_group_name(on, taken), channels, tuple(on), most, last_resort_for))
    return tuple(groups), tuple(frozen)


def _kinds(frozen_reasons: dict[int, str], last_resort_reasons: dict[int, str]) -> dict[int, tuple[str, str]]:
    """Channel -> (why it is frozen, why it is a last resort)."""
    last_resort = {channel: ("", reason) for channel, reason in last_resort_reasons.items()}
    return last_resort | {channel: (reason, "") for channel, reason in frozen_reasons.items()}


def _signatures(carried: list[Ids], num_channels: int) -> npt.NDArray[np.uint64]:
    """One number per channel, equal for channels that are on the same dimensions (a sum of random numbers)."""
    random = np.random.default_rng(0)
    signature = np.zeros(num_channels, dtype=np.uint64)
    seen: set[bytes] = set()
    for dim in carried:
        content = dim.tobytes()
        if content not in seen:
            seen.add(content)
            signature[dim] += random.integers(1, 2**63, dtype=np.uint64)
    return signature


def _members(
    named: dict[str, tuple[Dim, ...]], label: Ids, num_channels: int
) -> tuple[dict[int, list[Dimension]], npt.NDArray[np.int64]]:
    """Group number -> the parameters' dimensions it is on, and how often each channel occurs where it does most."""
    repeats = np.zeros(num_channels, dtype=np.int64)
    dimensions: dict[int, list[Dimension]] = {}
    on_dim: dict[int, list[int]] = {}
    for name, dims in named.items():
        for d, dim in enumerate(dims):
            if isinstance(dim, int):
                continue
            if id(dim) not in on_dim:
                channels, counts = np.unique(dim, return_counts=True)
                repeats[channels] = np.maximum(repeats[channels], counts)
                on_dim[id(dim)] = np.unique(label[channels]).tolist()
            for which in on_dim[id(dim)]:
                dimensions.setdefault(which, []).append(Dimension(name, d))
    return dimensions, repeats


def _group_name(dimensions: list[Dimension], taken: Counter[str]) -> str:
    """The module that owns the first dimension; numbered where several groups start there."""
    name = dimensions[0].parameter.rpartition(".")[0] or dimensions[0].parameter
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
