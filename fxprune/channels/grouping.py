"""From ids to channels, and from channels on the same dimensions to groups."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
from torch import fx

from fxprune.channels.graph import ChannelGraph, Dimension, Frozen, Group
from fxprune.channels.ids import Dim, Ids, Labels, LabelTree, Resolved, Size, map_labels
from fxprune.channels.polynomial import Term, build_largest, build_polynomial

__all__ = ["collect"]


def collect(
    traced: fx.GraphModule,
    resolved: Resolved,
    parameters: Mapping[str, Sequence[Dim]],
    labels_of: Mapping[str, LabelTree],
    costs: Mapping[str, Sequence[Term]],
    memory: Sequence[Sequence[Term]],
    contractions: Mapping[str, tuple[tuple[str, int], ...]],
    remarks: tuple[str, ...] = (),
    held: Mapping[str, tuple[tuple[str, int], ...]] | None = None,
) -> ChannelGraph:
    """Turn ids into channel numbers, and gather the channels on the same dimensions.

    Args:
        traced: the traced model.
        resolved: the channel of every id.
        parameters: the dimensions of parameters and buffers, by name.
        labels_of: what the value of every node carries, by node name.
        costs: the FLOPs of every node that has any, by node name.
        memory: the bytes of the activations that exist at the same time, at several moments.
        contractions: as in `ChannelGraph`.
        remarks: as in `ChannelGraph`.
        held: as in `ChannelGraph`.
    """
    channel_of = resolved.channel_of
    num_channels = int(channel_of.max()) + 1 if len(channel_of) else 0
    converted: dict[int, Ids] = {}

    def to_channels(dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim
        if id(dim) not in converted:
            converted[id(dim)] = channel_of[dim]
        return converted[id(dim)]

    def convert(label: Labels | Size) -> Labels | Size:
        if isinstance(label, Labels):
            return Labels(tuple(to_channels(dim) for dim in label.dims), label.zero)
        return label if label.ids is None else Size(converted.setdefault(id(label.ids), channel_of[label.ids]), True)

    named = {name: tuple(to_channels(dim) for dim in dims) for name, dims in parameters.items()}
    labels = {name: map_labels(convert, tree) for name, tree in labels_of.items()}

    def convert_term(item: Term) -> Term:
        return Term(item.coefficient, tuple(channel_of[factor] for factor in item.factors))

    in_channels = {name: tuple(map(convert_term, terms)) for name, terms in costs.items()}
    # Many dimensions have equal contents; each counts once.
    carried = list({dim.tobytes(): dim for dim in converted.values()}.values())
    groups, frozen = _groups(named, carried, num_channels, _reasons(resolved))
    return ChannelGraph(
        module=traced,
        labels=labels,
        parameters=named,
        groups=groups,
        frozen=frozen,
        flops=build_polynomial(itertools.chain.from_iterable(in_channels.values()), num_channels),
        memory=build_largest((map(convert_term, terms) for terms in memory), num_channels),
        costs=in_channels,
        num_channels=num_channels,
        contractions=contractions,
        remarks=remarks,
        held=held or {},
    )


def _groups(
    named: Mapping[str, tuple[Dim, ...]],
    carried: Sequence[Ids],
    num_channels: int,
    reason_of: Mapping[int, tuple[str, str]],
) -> tuple[tuple[Group, ...], tuple[Frozen, ...]]:
    """Channels with the same set of dimensions and the same reason form a group.

    The dimensions of activations (`carried`) count as well. Each dimension is then made of whole groups, so none is
    left empty as long as no group is.
    """
    reasons = [("", ""), *dict.fromkeys(reason_of.values())]
    number = {reason: k for k, reason in enumerate(reasons)}
    kind = np.zeros(num_channels, dtype=np.uint64)
    for channel, reason in reason_of.items():
        kind[channel] = number[reason]
    signature = _signatures(carried, num_channels)
    # Channels that differ in kind or signature differ in this sum: 64 bits do not collide by chance.
    _, label = np.unique(signature + kind * np.uint64(0x9E3779B97F4A7C15), return_inverse=True)
    order = np.argsort(label, kind="stable")
    bounds = np.searchsorted(label[order], np.arange(num_channels + 1))
    groups: list[Group] = []
    frozen: list[Frozen] = []
    taken: Counter[str] = Counter()
    dimensions, repeats = _members(named, label, num_channels)
    common = _common_counts(carried, num_channels)
    for which, on in dimensions.items():
        channels = order[bounds[which] : bounds[which + 1]]
        frozen_for, last_resort_for = reasons[int(kind[channels[0]])]
        if frozen_for:
            frozen.append(Frozen(frozen_for, channels, tuple(on)))
        else:
            most = int(repeats[channels].max())
            shared = int(np.gcd.reduce(common[channels]))
            groups.append(Group(_group_name(on, taken), channels, tuple(on), most, last_resort_for, shared))
    return tuple(groups), tuple(frozen)


def _reasons(resolved: Resolved) -> dict[int, tuple[str, str]]:
    """Channel -> (why it is frozen, why it is a last resort), one of the two empty."""
    last_resort = {channel: ("", reason) for channel, reason in resolved.last_resort.items()}
    return last_resort | {channel: (reason, "") for channel, reason in resolved.frozen.items()}


def _signatures(carried: Sequence[Ids], num_channels: int) -> npt.NDArray[np.uint64]:
    """One number per channel, equal for channels on the same dimensions: a sum of random numbers, one a dimension."""
    random = np.random.default_rng(0)
    signature = np.zeros(num_channels, dtype=np.uint64)
    for dim in carried:
        signature[dim] += random.integers(1, 2**63, dtype=np.uint64)
    return signature


def _common_counts(carried: Sequence[Ids], num_channels: int) -> npt.NDArray[np.int64]:
    """For each channel the greatest common divisor of the numbers of its indices in all dimensions that have it."""
    common = np.zeros(num_channels, dtype=np.int64)
    for dim in carried:
        channels, counts = np.unique(dim, return_counts=True)
        common[channels] = np.gcd(common[channels], counts)
    return common


def _members(
    named: Mapping[str, tuple[Dim, ...]], label: Ids, num_channels: int
) -> tuple[dict[int, list[Dimension]], npt.NDArray[np.int64]]:
    """The dimensions of parameters by group number, and how often each channel occurs in the one where it does most."""
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
    """The module that owns the first dimension, with a number where several groups start there."""
    name = dimensions[0].parameter.rpartition(".")[0] or dimensions[0].parameter
    taken[name] += 1
    return name if taken[name] == 1 else f"{name}#{taken[name]}"
