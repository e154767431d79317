"""Scores + budget -> Plan."""

from __future__ import annotations

import difflib
import fnmatch
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.channels import ChannelGraph, Group, Ids
from fxprune.criteria import Scores
from fxprune.errors import FxpruneError
from fxprune.plan import Plan, kept_indices

__all__ = ["make_plan"]

_LEAST_USED = 0.995


@dataclass(frozen=True, eq=False)
class _Unit:
    """Channels of one group that go together; within a group units go in order."""

    group: int
    score: float
    channels: Ids


def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    *,
    flops: float = 0.5,
    round_to: int = 1,
    ignore: str | Iterable[str] = (),
) -> Plan:
    """Choose the channels to keep: the lowest scores go until the budget is met, then what still fits comes back.

    Args:
        graph: the analysed model.
        scores: one number per channel, as from `fxprune.scores`.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs.
        round_to: widths that are changed become multiples of this.
        ignore: names or glob patterns of modules to leave whole; a name covers all below it.

    Returns:
        A plan with at most the budget's FLOPs, and no less than 99.5 % of it where channels are fine enough.

    Raises:
        FxpruneError: the budget is not a number, not positive, or cannot be reached; a pattern matches nothing.
    """
    total = graph.flops.total
    target = _target(flops, total)
    if isinstance(round_to, bool) or not isinstance(round_to, int) or round_to < 1:
        raise FxpruneError(f"round_to (={round_to!r}) must be a whole number of at least 1")
    ignored = _ignored_channels(graph, [ignore] if isinstance(ignore, str) else list(ignore))
    groups = [group for group in graph.groups if not ignored[group.channels].any()]
    willing = [group for group in groups if not group.reluctant]
    alive = None
    for chosen in (willing, groups):
        units = sorted(_units(chosen, scores, round_to), key=lambda unit: unit.score)
        alive = _choose(graph, units, target) if alive is None else alive
    if alive is None:
        raise FxpruneError(_unreachable(graph, units, target, total, ignored))
    return Plan(kept_indices(graph, alive), graph.flops(alive), total, target)


def _target(flops: float, total: int) -> int:
    if isinstance(flops, bool) or not isinstance(flops, (int, float, np.integer, np.floating)):
        raise FxpruneError(f"flops (={flops!r}) must be a number: a fraction in (0, 1], or a count above 1")
    if not flops > 0 or math.isinf(flops):
        raise FxpruneError(f"flops (={flops!r}) must be positive and finite: a fraction in (0, 1], or a count above 1")
    return math.floor(flops * total) if flops <= 1 else math.floor(flops)


def _ignored_channels(graph: ChannelGraph, patterns: Sequence[str]) -> npt.NDArray[np.bool_]:
    ignored = np.zeros(graph.num_channels, dtype=bool)
    names = {name for name, _ in graph.module.named_modules() if name} | set(graph.parameters)
    for pattern in patterns:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f"; close names are {', '.join(close)}" if close else ""
            raise FxpruneError(f"ignore pattern {pattern!r} matches no module of the model{hint}")
        for name, dims in graph.parameters.items():
            path = name.split(".")
            if any(".".join(path[:k]) in hits for k in range(1, len(path) + 1)):
                for dim in dims:
                    if not isinstance(dim, int):
                        ignored[dim] = True
    return ignored


def _units(groups: Sequence[Group], scores: Scores, round_to: int) -> Iterable[_Unit]:
    """Every removal that is allowed: at least one channel, or one multiple, of each group stays."""
    for number, group in enumerate(groups):
        step = round_to // math.gcd(round_to, group.repeats)
        order = group.channels[np.argsort(scores[group.channels], kind="stable")]
        first = len(order) % step or step
        for start, stop in _steps(first, step, len(order) - step):
            channels = order[start:stop]
            yield _Unit(number, float(scores[channels].mean()), channels)


def _steps(first: int, step: int, most: int) -> Iterable[tuple[int, int]]:
    start, stop = 0, first
    while stop <= most:
        yield start, stop
        start, stop = stop, stop + step


class _State:
    """The kept channels, and their FLOPs kept up to date."""

    def __init__(self, graph: ChannelGraph) -> None:
        self._polynomial = graph.flops
        self.alive = np.ones(graph.num_channels, dtype=bool)
        order = np.argsort(graph.flops.channel_of, kind="stable")
        self._forms = graph.flops.form_of[order]
        self._bounds = np.searchsorted(graph.flops.channel_of[order], np.arange(graph.num_channels + 1))
        self._refresh()

    def _refresh(self) -> None:
        self._sizes = self._polynomial.sizes(self.alive)
        self.flops = self._polynomial.of_sizes(self._sizes)

    def remove_all(self, units: Sequence[_Unit]) -> None:
        self.alive[:] = True
        for unit in units:
            self.alive[unit.channels] = False
        self._refresh()

    def flops_after(self, unit: _Unit, sign: int) -> int:
        """FLOPs if the unit came back (+1) or went (-1)."""
        return self._polynomial.of_sizes(self._changed(unit, sign))

    def apply(self, unit: _Unit, sign: int) -> None:
        self._sizes = self._changed(unit, sign)
        self.alive[unit.channels] = sign > 0
        self.flops = self._polynomial.of_sizes(self._sizes)

    def _changed(self, unit: _Unit, sign: int) -> npt.NDArray[np.int64]:
        sizes = self._sizes.copy()
        for channel in unit.channels:
            np.add.at(sizes, self._forms[self._bounds[channel] : self._bounds[channel + 1]], sign)
        return sizes


def _choose(graph: ChannelGraph, units: Sequence[_Unit], target: int) -> npt.NDArray[np.bool_] | None:
    """The channels that stay, or None when the target is out of reach."""
    state = _State(graph)
    low, high = 0, len(units)
    while low < high:
        middle = (low + high) // 2
        state.remove_all(units[:middle])
        low, high = (low, middle) if state.flops <= target else (middle + 1, high)
    state.remove_all(units[:low])
    if state.flops > target:
        return None
    _put_back(state, units[:low], target)
    if state.flops >= _LEAST_USED * target or low == 0:
        return state.alive
    best, best_flops = state.alive.copy(), state.flops
    state.remove_all(units[: low - 1])
    _step_around(state, units[low:], target)
    return state.alive if best_flops < state.flops <= target else best


def _put_back(state: _State, removed: Sequence[_Unit], target: int) -> None:
    """Restore units, best first, while the budget allows; a group whose next unit does not fit is left."""
    full: set[int] = set()
    for unit in reversed(removed):
        if unit.group in full:
            continue
        if state.flops_after(unit, 1) <= target:
            state.apply(unit, 1)
        else:
            full.add(unit.group)
        if state.flops >= (1 - 1e-4) * target:
            return


def _step_around(state: _State, following: Sequence[_Unit], target: int) -> None:
    """From just above the target, remove only units that are fine enough not to fall short of it."""
    closed: set[int] = set()
    for unit in following:
        if state.flops <= target:
            return
        if unit.group in closed:
            continue
        if state.flops_after(unit, -1) >= _LEAST_USED * target:
            state.apply(unit, -1)
        else:
            closed.add(unit.group)


def _unreachable(
    graph: ChannelGraph, units: Sequence[_Unit], target: int, total: int, ignored: npt.NDArray[np.bool_]
) -> str:
    state = _State(graph)
    state.remove_all(units)
    reasons: Counter[str] = Counter()
    for frozen in graph.frozen:
        reasons[frozen.reason] += len(frozen)
    listed = [f"{count} channels: {reason}" for reason, count in reasons.most_common(5)]
    if ignored.any():
        listed.append(f"{int(ignored.sum())} channels: ignored")
    return (
        f"a budget of {target:,} FLOPs ({target / total:.1%}) cannot be reached: the lowest is {state.flops:,} "
        f"({state.flops / total:.1%}) with one channel left in each group. Frozen are {'; '.join(listed) or 'none'}. "
        "Raise flops, or ignore less."
    )
