"""Which channels stay: those with the lowest scores go until every budget holds, then those that still fit come back.

Channels go in units: one channel, or as many as a multiple of widths asks for. A large unit may leave much of a budget
unused; then other units are tried in its place.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fxprune.channels import Group, Ids, Scores
from fxprune.channels.polynomial import Polynomial
from fxprune.planning.budgets import Budget
from fxprune.planning.nearby import best_nearby

__all__ = ["Units", "choose", "fewest", "units_of"]

# The least part of a budget that a plan should use, which `fxprune.make_plan` states. None of these numbers is tuned.
_LEAST_USED = 0.995
# Once this part of a budget is used, no more channels come back.
_FULL = 1 - 1e-4
# Parts of a budget to aim at, in this order, until a plan is within the other budgets too.
_TIGHTER = (1.0, 0.995, 0.98, 0.95, 0.9)
# Limits to the time that exchanges take: groups, units of a group at a time, and rounds.
_MOST_GROUPS, _MOST_UNITS, _MOST_ROUNDS = 30, 12, 3


@dataclass(frozen=True, eq=False)
class Units:
    """All channels that may be removed, in the order in which they go.

    Unit `k` is `channels[bounds[k] : bounds[k + 1]]`, which are of group number `group[k]` and go together.
    """

    group: Ids
    channels: Ids
    bounds: Ids

    def __len__(self) -> int:
        return len(self.group)

    def of(self, k: int) -> Ids:
        """The channels of unit `k`."""
        return self.channels[self.bounds[k] : self.bounds[k + 1]]

    def then(self, others: Units) -> Units:
        """These, and after all of them the units of other groups."""
        return Units(
            np.concatenate([self.group, others.group + self.group.max(initial=-1) + 1]),
            np.concatenate([self.channels, others.channels]),
            np.concatenate([self.bounds, others.bounds[1:] + self.bounds[-1]]),
        )


def units_of(groups: Sequence[Group], scores: Scores, round_to: int, least: int = 1) -> Units:
    """All that may be removed, lowest scores first.

    Args:
        groups: that may lose channels.
        scores: of all channels.
        round_to: the widths that change become multiples of this.
        least: so many channels of each group stay, or the next multiple; all, where there are no more.
    """
    # numpy cannot concatenate nothing, if there is no group.
    members, sizes, means = [np.empty(0, np.int64)], [np.empty(0, np.int64)], [np.empty(0)]
    for group in groups:
        step = round_to // math.gcd(round_to, group.common)
        order = group.channels[np.argsort(scores[group.channels], kind="stable")]
        # The remainder of the width by the multiple goes first.
        stay = -(-least // step) * step
        size = np.full(max(-(-(len(order) - stay) // step), 0), step, dtype=np.int64)
        size[:1] = len(order) % step or step
        order = order[: size.sum()]
        mean = np.add.reduceat(scores[order], np.cumsum(size) - size) / size if len(size) else np.empty(0)
        members.append(order)
        sizes.append(size)
        # The means ascend, except for rounding errors; without these a stable sort keeps the order within a group.
        means.append(np.maximum.accumulate(mean))
    flat, size, score = np.concatenate(members), np.concatenate(sizes), np.concatenate(means)
    group_of = np.repeat(np.arange(-1, len(groups)), [len(size) for size in sizes])
    starts = np.cumsum(size) - size
    order = np.argsort(score, kind="stable")
    size = size[order]
    bounds = np.concatenate([[0], np.cumsum(size)])
    within = np.arange(bounds[-1]) - np.repeat(bounds[:-1], size)
    return Units(group_of[order], flat[np.repeat(starts[order], size) + within], bounds)


class _State:
    """The kept channels and their cost, updated with each change."""

    def __init__(self, polynomial: Polynomial, start: npt.NDArray[np.bool_]) -> None:
        self._polynomial = polynomial
        self._start = start
        self.alive: npt.NDArray[np.bool_] = start.copy()
        self._forms, self._forms_from = _index(polynomial.channel_of, polynomial.form_of, polynomial.num_channels)
        row = np.repeat(np.arange(len(polynomial.products)), polynomial.products.shape[1])
        self._terms, self._terms_from = _index(polynomial.products.ravel(), row, polynomial.num_forms)
        # Of each term the number of its sum.
        self._sum_of = np.searchsorted(polynomial.starts, np.arange(len(polynomial.products)), side="right") - 1
        self.is_one_sum = len(polynomial.starts) <= 1
        self._refresh()

    def _refresh(self) -> None:
        self._sizes = self._polynomial.sizes(self.alive)
        self._sums = self._polynomial.sums(self._sizes)
        self.cost = int(self._sums.max())

    def remove_first(self, units: Units, count: int) -> None:
        """Keep all channels of the start except those of the first `count` units."""
        self.alive[:] = self._start
        self.alive[units.channels[: units.bounds[count]]] = False
        self._refresh()

    def set_alive(self, alive: npt.NDArray[np.bool_]) -> int:
        """Keep these channels; returns their cost."""
        self.alive[:] = alive
        self._refresh()
        return int(self.cost)

    def try_change(self, channels: Ids, sign: int, lowest: float, highest: float) -> bool:
        """Bring channels back (+1) or remove them (-1) if that leaves the cost within limits; whether it did."""
        forms = np.concatenate([self._forms[self._forms_from[c] : self._forms_from[c + 1]] for c in channels])
        touched = np.unique(forms)
        terms = [self._terms[self._terms_from[form] : self._terms_from[form + 1]] for form in touched]
        rows = np.unique(np.concatenate([*terms, np.empty(0, np.int64)]))
        products, coefficients = self._polynomial.products[rows], self._polynomial.coefficients[rows]
        before = self._sizes[products].prod(axis=1)
        np.add.at(self._sizes, forms, sign)
        sums = self._sums.copy()
        np.add.at(sums, self._sum_of[rows], coefficients * (self._sizes[products].prod(axis=1) - before))
        cost = int(sums.max())
        if not lowest <= cost <= highest:
            np.add.at(self._sizes, forms, -sign)
            return False
        self.alive[channels] = sign > 0
        self._sums, self.cost = sums, cost
        return True


def _index(keys: Ids, values: Ids, count: int) -> tuple[Ids, Ids]:
    """The values sorted by key, and where each key starts: the values of `k` are from `start[k]` to `start[k + 1]`."""
    order = np.argsort(keys, kind="stable")
    return values[order], np.searchsorted(keys[order], np.arange(count + 1))


def choose(budgets: Sequence[Budget], units: Units, start: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_] | None:
    """The channels that stay, or None if a budget is out of reach.

    Args:
        budgets: what they may cost.
        units: all that may go.
        start: the channels and blocks that are there (number of channels,).
    """
    # Units go in one order for all budgets: as long as nothing comes back, the plan for the tightest meets the others.
    states = [(_State(budget.polynomial, start), budget.target) for budget in budgets]
    removed = max(_remove_until(state, units, target) for state, target in states)
    for state, target in states:
        state.remove_first(units, removed)
        if state.cost > target:
            return None
    if len(budgets) > 1:
        _put_back(states, units, removed)
        if any(state.cost >= _LEAST_USED * target for state, target in states):
            return states[0][0].alive
    for share in _TIGHTER:
        for budget in budgets:
            alive = _choose_one(budget.polynomial, units, start, math.floor(share * budget.target))
            if alive is not None and all(other.holds(alive) for other in budgets):
                return alive
    return states[0][0].alive


def fewest(units: Units, start: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The channels left of those at the start when all units go."""
    alive: npt.NDArray[np.bool_] = start.copy()
    alive[units.channels] = False
    return alive


def _remove_until(state: _State, units: Units, target: int) -> int:
    """Remove as few of the first units as meet the target, or all if none do; returns how many."""
    low, high = 0, len(units)
    while low < high:
        middle = (low + high) // 2
        state.remove_first(units, middle)
        low, high = (low, middle) if state.cost <= target else (middle + 1, high)
    state.remove_first(units, low)
    return low


def _choose_one(
    polynomial: Polynomial, units: Units, start: npt.NDArray[np.bool_], target: int
) -> npt.NDArray[np.bool_] | None:
    """The channels that stay for a single budget, or None if it is out of reach."""
    state = _State(polynomial, start)
    low = _remove_until(state, units, target)
    if state.cost > target:
        return None
    _put_back([(state, target)], units, low)
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
        queues = [
            [units.of(k) for k in np.flatnonzero(units.group == group).tolist()] for group in np.unique(units.group)
        ]
        best = best_nearby(polynomial, queues[:_MOST_GROUPS], best, _LEAST_USED * target, target)
    return best


def _exchange(state: _State, units: Units, best: npt.NDArray[np.bool_], target: int) -> npt.NDArray[np.bool_]:
    """Remove a few more units of one group and fill what that frees from another, if that uses more of the budget."""
    queues = [np.flatnonzero(units.group == group).tolist() for group in np.unique(units.group)][:_MOST_GROUPS]
    for _ in range(_MOST_ROUNDS):
        before = best_cost = state.set_alive(best)
        base = best
        for giving, taking in itertools.permutations(range(len(queues)), 2):
            if best_cost >= _LEAST_USED * target:
                return best
            going = [k for k in queues[giving] if base[units.of(k)].all()][:_MOST_UNITS]
            coming = [k for k in reversed(queues[taking]) if not base[units.of(k)].any()][:_MOST_UNITS]
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


def _put_back(states: Sequence[tuple[_State, int]], units: Units, removed: int) -> None:
    """Restore removed units, best first, as long as they fit; a group is done when its next unit does not.

    Args:
        states: of the same channels, each with its target.
        units: all that may go.
        removed: how many of the first are gone.
    """
    full: set[int] = set()
    groups = len(np.unique(units.group[:removed]))
    for k in reversed(range(removed)):
        # Where the largest of several sums is full, others need not be.
        if all(state.is_one_sum and state.cost >= _FULL * target for state, target in states) or len(full) == groups:
            return
        group = int(units.group[k])
        if group in full:
            continue
        for number, (state, target) in enumerate(states):
            if not state.try_change(units.of(k), 1, 0, target):
                full.add(group)
                for other, _ in states[:number]:
                    other.try_change(units.of(k), -1, 0, math.inf)
                break


def _step_around(state: _State, units: Units, following: int, target: int) -> None:
    """From just above the target, remove only units small enough to leave the least part of it in use."""
    closed: set[int] = set()
    for k in range(following, len(units)):
        if state.cost <= target:
            return
        group = int(units.group[k])
        if group not in closed and not state.try_change(units.of(k), -1, _LEAST_USED * target, math.inf):
            closed.add(group)
