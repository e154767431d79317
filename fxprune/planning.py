"""Scores + budget -> Plan."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fxprune.alignment import preferred_multiple
from fxprune.channels import ChannelGraph, Group, Ids, Scores, size_of
from fxprune.errors import FxpruneError
from fxprune.plan import Plan, kept_indices
from fxprune.polynomial import Polynomial

__all__ = ["check_latency", "flops_target", "make_plan"]

_LEAST_USED = 0.995
# Parts of the targets to try where two budgets bind.
_TIGHTER = (1.0, 0.995, 0.98, 0.95, 0.9)
_MOST_EXCHANGED, _STEPS, _ROUNDS = 30, 12, 3


@dataclass(frozen=True, eq=False)
class _Units:
    """Everything that may be removed, in the order in which it goes.

    Unit `k` consists of `channels[bounds[k] : bounds[k + 1]]`, all of group `group[k]`: they go together.
    """

    group: Ids
    channels: Ids
    bounds: Ids

    def __len__(self) -> int:
        return len(self.group)

    def of(self, k: int) -> Ids:
        """The channels of unit `k`."""
        return self.channels[self.bounds[k] : self.bounds[k + 1]]


def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    *,
    flops: float | None = None,
    latency: float | None = None,
    round_to: int | Literal["auto"] = 1,
    ignore: str | Iterable[str] = (),
) -> Plan:
    """Choose the channels to keep: the lowest scores go until the budget is met, then what still fits comes back.

    Args:
        graph: the analysed model.
        scores: one number per channel, as from `fxprune.scores`.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs. Default: half of them, or
            where a latency is given, no limit.
        latency: a budget of time, as a fraction of the model's, predicted from what `fxprune.time_channels` measured.
        round_to: widths that are changed become multiples of this; "auto" for what the device of the weights computes
            without waste (`fxprune.alignment`), or half of it, and so on, where the budget cannot be met so.
        ignore: names or glob patterns of modules to leave whole; a name covers all below it.

    Returns:
        A plan within every budget, and no less than 99.5 % of the tightest where channels are fine enough.

    Raises:
        FxpruneError: a budget is not a number, not positive, or cannot be reached; a pattern matches nothing.
    """
    total = graph.flops.total
    target = flops_target(graph, flops, latency)
    budgets = [_Budget(graph.flops, target)]
    if latency is not None:
        budgets.append(_latency_budget(graph, latency))
    multiples = _multiples(graph, round_to)
    ignored = _ignored_channels(graph, [ignore] if isinstance(ignore, str) else list(ignore))
    groups = [group for group in graph.groups if not ignored[group.channels].any()]
    willing = [group for group in groups if not group.reluctant]
    alive = None
    for chosen, multiple in itertools.product((willing, groups), multiples):
        units = _units(chosen, scores, multiple)
        alive = _choose(budgets, units) if alive is None else alive
    if alive is None:
        raise FxpruneError(_unreachable(graph, units, budgets, ignored))
    return Plan(kept_indices(graph, alive), graph.flops(alive), total, target, float(latency or 1.0))


@dataclass(frozen=True, eq=False)
class _Budget:
    """What the kept channels may cost."""

    polynomial: Polynomial
    target: int

    def holds(self, alive: npt.NDArray[np.bool_]) -> bool:
        return self.polynomial(alive) <= self.target


def check_latency(latency: Any) -> None:
    """Check that a budget of time is a fraction."""
    if isinstance(latency, bool) or not isinstance(latency, (int, float, np.integer, np.floating)):
        raise FxpruneError(f"latency (={latency!r}) must be a number: a fraction of the model's in (0, 1]")
    if not 0 < latency <= 1:
        raise FxpruneError(f"latency (={latency!r}) must be a fraction of the model's in (0, 1]")


def _latency_budget(graph: ChannelGraph, latency: Any) -> _Budget:
    check_latency(latency)
    if graph.latency is None:
        raise FxpruneError(
            f"latency (={latency!r}) needs the time of channels: give what fxprune.time_channels returns"
        )
    return _Budget(graph.latency, math.floor(latency * graph.latency.total))


def flops_target(graph: ChannelGraph, flops: Any, latency: Any) -> int:
    """The most FLOPs that a budget allows: half of them by default, all where only the time is limited."""
    if flops is None:
        flops = 0.5 if latency is None else 1.0
    total = graph.flops.total
    if isinstance(flops, bool) or not isinstance(flops, (int, float, np.integer, np.floating)):
        raise FxpruneError(f"flops (={flops!r}) must be a number: a fraction in (0, 1], or a count above 1")
    if not flops > 0 or math.isinf(flops):
        raise FxpruneError(f"flops (={flops!r}) must be positive and finite: a fraction in (0, 1], or a count above 1")
    return math.floor(flops * total) if flops <= 1 else math.floor(flops)


def _multiples(graph: ChannelGraph, round_to: Any) -> list[int]:
    """The multiples to try, in order."""
    if round_to == "auto":
        multiple = preferred_multiple(graph.module)
        return [multiple >> k for k in range(multiple.bit_length())]
    if type(round_to) is not int or round_to < 1:
        raise FxpruneError(f"round_to (={round_to!r}) must be a whole number of at least 1, or 'auto'")
    return [round_to]


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


def _units(groups: Sequence[Group], scores: Scores, round_to: int) -> _Units:
    """All that may be removed, lowest scores first: at least one channel, or one multiple, of each group stays."""
    members, sizes, means = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for group in groups:
        step = round_to // math.gcd(round_to, group.repeats)
        order = group.channels[np.argsort(scores[group.channels], kind="stable")]
        # What is left over by the multiple goes first.
        size = np.full((len(order) - 1) // step, step, dtype=np.int64)
        size[:1] = len(order) % step or step
        order = order[: size.sum()]
        mean = np.add.reduceat(scores[order], np.cumsum(size) - size) / size if len(size) else np.empty(0)
        members.append(order)
        sizes.append(size)
        # They ascend, but for rounding; a stable sort then keeps the units of a group in order.
        means.append(np.maximum.accumulate(mean))
    flat, size, score = np.concatenate(members), np.concatenate(sizes), np.concatenate(means)
    group_of = np.repeat(np.arange(len(sizes)), [len(size) for size in sizes])
    starts = np.cumsum(size) - size
    order = np.argsort(score, kind="stable")
    size = size[order]
    bounds = np.concatenate([[0], np.cumsum(size)])
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], size)
    return _Units(group_of[order], flat[np.repeat(starts[order], size) + within], bounds)


class _State:
    """The kept channels, and what they cost kept up to date."""

    def __init__(self, polynomial: Polynomial) -> None:
        self._polynomial = polynomial
        self.alive = np.ones(polynomial.num_channels, dtype=bool)
        self._forms, self._forms_from = _index(polynomial.channel_of, polynomial.form_of, polynomial.num_channels)
        row = np.repeat(np.arange(len(polynomial.products)), polynomial.products.shape[1])
        self._terms, self._terms_from = _index(polynomial.products.ravel(), row, polynomial.num_forms)
        self._refresh()

    def _refresh(self) -> None:
        self._sizes = self._polynomial.sizes(self.alive)
        self.cost = self._polynomial.of_sizes(self._sizes)

    def remove_first(self, units: _Units, count: int) -> None:
        """All are kept but the channels of the first `count` units."""
        self.alive[:] = True
        self.alive[units.channels[: units.bounds[count]]] = False
        self._refresh()

    def set_alive(self, alive: npt.NDArray[np.bool_]) -> int:
        """These are kept; returns their cost."""
        self.alive[:] = alive
        self._refresh()
        return int(self.cost)

    def try_change(self, channels: Ids, sign: int, lowest: float, highest: float) -> bool:
        """Bring channels back (+1) or remove them (-1), if the cost is then within limits."""
        forms = np.concatenate([self._forms[self._forms_from[c] : self._forms_from[c + 1]] for c in channels])
        touched = np.unique(forms)
        terms = [self._terms[self._terms_from[form] : self._terms_from[form + 1]] for form in touched]
        rows = np.unique(np.concatenate([*terms, np.empty(0, np.int64)]))
        products, coefficients = self._polynomial.products[rows], self._polynomial.coefficients[rows]
        before = self._sizes[products].prod(axis=1)
        np.add.at(self._sizes, forms, sign)
        cost = self.cost + int((coefficients * (self._sizes[products].prod(axis=1) - before)).sum())
        if not lowest <= cost <= highest:
            np.add.at(self._sizes, forms, -sign)
            return False
        self.alive[channels] = sign > 0
        self.cost = cost
        return True


def _index(keys: Ids, values: Ids, count: int) -> tuple[Ids, Ids]:
    """The values by key: those of key `k` lie from `start[k]` to `start[k + 1]`."""
    order = np.argsort(keys, kind="stable")
    return values[order], np.searchsorted(keys[order], np.arange(count + 1))


def _choose(budgets: Sequence[_Budget], units: _Units) -> npt.NDArray[np.bool_] | None:
    """The channels that stay, or None when a target is out of reach."""
    # Units go in the same order for all: what keeps the tightest keeps the others, as long as nothing comes back.
    fewest = min((_without_first(budget, units) for budget in budgets), key=np.count_nonzero)
    if not all(budget.holds(fewest) for budget in budgets):
        return None
    for share in _TIGHTER:
        for budget in budgets:
            alive = _choose_one(budget.polynomial, units, math.floor(share * budget.target))
            if alive is not None and all(other.holds(alive) for other in budgets):
                return alive
    return fewest


def _without_first(budget: _Budget, units: _Units) -> npt.NDArray[np.bool_]:
    """All but the first units, as few of them as the budget allows, if it can be kept."""
    state = _State(budget.polynomial)
    _remove_until(state, units, budget.target)
    return state.alive


def _remove_until(state: _State, units: _Units, target: int) -> int:
    """Remove as few of the first units as the target allows, or all; returns how many."""
    low, high = 0, len(units)
    while low < high:
        middle = (low + high) // 2
        state.remove_first(units, middle)
        low, high = (low, middle) if state.cost <= target else (middle + 1, high)
    state.remove_first(units, low)
    return low


def _choose_one(polynomial: Polynomial, units: _Units, target: int) -> npt.NDArray[np.bool_] | None:
    state = _State(polynomial)
    low = _remove_until(state, units, target)
    if state.cost > target:
        return None
    _put_back(state, units, low, target)
    if state.cost >= _LEAST_USED * target or low == 0:
        return state.alive
    best: npt.NDArray[np.bool_] = state.alive.copy()
    best_cost = state.cost
    state.remove_first(units, low - 1)
    _step_around(state, units, low, target)
    if best_cost < state.cost <= target:
        best, best_cost = state.alive.copy(), state.cost
    if best_cost < _LEAST_USED * target:
        best = _exchange(state, units, best, target)
    return best


def _exchange(state: _State, units: _Units, best: npt.NDArray[np.bool_], target: int) -> npt.NDArray[np.bool_]:
    """Where channels are coarse: a few more units of one group go, and what that frees is filled from another."""
    queues = [np.flatnonzero(units.group == group).tolist() for group in np.unique(units.group)][:_MOST_EXCHANGED]
    for _ in range(_ROUNDS):
        before = best_cost = state.set_alive(best)
        base = best
        for giving, taking in itertools.permutations(range(len(queues)), 2):
            if best_cost >= _LEAST_USED * target:
                return best
            going = [k for k in queues[giving] if base[units.of(k)].all()][:_STEPS]
            coming = [k for k in reversed(queues[taking]) if not base[units.of(k)].any()][:_STEPS]
            for count in range(1, len(going) + 1):
                state.set_alive(base)
                for k in going[:count]:
                    state.try_change(units.of(k), -1, 0, math.inf)
                for k in coming:
                    if not state.try_change(units.of(k), 1, 0, target):
                        break
                if best_cost < state.cost <= target:
                    best, best_cost = state.alive.copy(), state.cost
        if best_cost == before:
            break
    return best


def _put_back(state: _State, units: _Units, removed: int, target: int) -> None:
    """Restore removed units, best first, while the budget allows; a group whose next unit does not fit is left."""
    full: set[int] = set()
    groups = len(np.unique(units.group[:removed]))
    for k in reversed(range(removed)):
        if state.cost >= (1 - 1e-4) * target or len(full) == groups:
            return
        group = int(units.group[k])
        if group not in full and not state.try_change(units.of(k), 1, 0, target):
            full.add(group)


def _step_around(state: _State, units: _Units, following: int, target: int) -> None:
    """From just above the target, remove only units that are fine enough not to fall short of it."""
    closed: set[int] = set()
    for k in range(following, len(units)):
        if state.cost <= target:
            return
        group = int(units.group[k])
        if group not in closed and not state.try_change(units.of(k), -1, _LEAST_USED * target, math.inf):
            closed.add(group)


def _frozen_reasons(graph: ChannelGraph) -> list[tuple[str, int]]:
    """Why channels are frozen, and how many; first what the most weights belong to."""
    counts: Counter[str] = Counter()
    tensors: dict[str, set[str]] = {}
    for frozen in graph.frozen:
        counts[frozen.reason] += len(frozen)
        tensors.setdefault(frozen.reason, set()).update(dimension.parameter for dimension in frozen.dimensions)
    sizes = {name: math.prod(map(size_of, dims)) for name, dims in graph.parameters.items()}
    held = {reason: sum(sizes[name] for name in names) for reason, names in tensors.items()}
    return sorted(counts.items(), key=lambda item: held[item[0]], reverse=True)


def _unreachable(graph: ChannelGraph, units: _Units, budgets: Sequence[_Budget], ignored: npt.NDArray[np.bool_]) -> str:
    state = _State(graph.flops)
    state.remove_first(units, len(units))
    listed = [f"{count} channels: {reason}" for reason, count in _frozen_reasons(graph)[:5]]
    if ignored.any():
        listed.append(f"{int(ignored.sum())} channels: ignored")
    target, total = budgets[0].target, graph.flops.total
    what, raised = f"{target:,} FLOPs ({target / total:.1%})", "flops"
    lowest = f"{state.cost:,} ({state.cost / total:.1%})"
    late = next((budget for budget in budgets[1:] if not budget.holds(state.alive)), None)
    if late is not None:
        total = late.polynomial.total
        what, raised = f"{late.target / total:.1%} of the latency", "latency"
        lowest = f"predicted to be {late.polynomial(state.alive) / total:.1%}"
    return (
        f"a budget of {what} cannot be reached: the lowest is {lowest} with one channel left in each group. "
        f"Frozen are {'; '.join(listed) or 'none'}. Raise {raised}, or ignore less."
        + (f" If {target} % was meant, give {target / 100:g}." if target <= 100 and late is None else "")
    )
