"""Scores and budgets -> a plan."""

from __future__ import annotations

import difflib
import fnmatch
import functools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from fxprune.channels import Block, ChannelGraph, Group, Scores, size_of
from fxprune.errors import FxpruneError, UnreachableBudgetError, warn
from fxprune.planning.alignment import preferred_multiple
from fxprune.planning.budgets import FEMTOSECONDS, Budget, Request, as_patterns, budgets_of, shares_of
from fxprune.planning.plan import Plan, plan_keeping
from fxprune.planning.selection import choose, fewest, units_of

__all__ = ["check_reachable", "lowest_flops", "make_plan", "plan_for", "removable_blocks", "without_ignored"]

# Channels that go as a last resort also go where the others leave more of the budget unused. Not tuned.
_LEAST_USED = 0.98
# So much of the tightest budget a plan uses if its channels are small enough.
_CLOSE = 0.995


def make_plan(
    graph: ChannelGraph,
    scores: Scores,
    *,
    flops: float | None = None,
    latency: float | str | None = None,
    params: float | None = None,
    memory: float | None = None,
    round_to: int | Literal["auto"] = 1,
    min_channels: int = 1,
    ignore: str | Iterable[str] = (),
    without: str | Iterable[str] = (),
) -> Plan:
    """Choose the channels to keep: those with the lowest scores go until the budgets hold.

    Removed channels come back, best first, as long as they fit into what is left of the budgets. Groups that are a last
    resort stay whole where the others meet the budgets and use at least 98 % of the tightest one.

    Args:
        graph: the analysed model.
        scores: one number per channel, as from `fxprune.scores`.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs per sample. Default: half
            of them, or all if there is another budget below what the model has.
        latency: a budget of time, as a fraction of the model's or with its unit ("3ms"), predicted from what
            `fxprune.time_channels` measured.
        params: a budget of parameters; up to 1 a fraction of the model's, above 1 a number of them.
        memory: a budget of the activations that exist at the same time in eval, as predicted (`graph.memory`); up to 1
            a fraction of the model's, above 1 a number of bytes per sample.
        round_to: the widths that change become multiples of this, those of attention heads too; "auto" for the widths
            that the device of the weights computes without waste (`fxprune.planning.alignment`), or for half of that, a
            quarter and so on if less than 99.5 % of the tightest budget would be used otherwise.
        min_channels: so many channels of each group stay.
        ignore: names or glob patterns of modules to leave whole; a name covers all modules below it.
        without: names of blocks (`graph.blocks`) that are left out.

    Returns:
        A plan within every budget, which uses at least 99.5 % of the tightest one if channels are small enough.

    Raises:
        UnreachableBudgetError: no plan meets the budgets.
        FxpruneError: an argument has the wrong type or is out of range, or a pattern matches nothing.

    Examples:
        >>> import torch
        >>> from fxprune import analyze, scores, trace
        >>> model = torch.nn.Sequential(torch.nn.Linear(4, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
        >>> graph = analyze(trace(model, torch.zeros(1, 4)))
        >>> plan = make_plan(graph, scores(graph, "l2"), flops=0.5)
        >>> len(plan.kept["0.weight"][0]), plan.flops / plan.flops_before
        (16, 0.5)
    """
    blocks = {block.name: block for block in graph.blocks}
    names = as_patterns(without)
    for name in names:
        if name not in blocks:
            close = difflib.get_close_matches(name, blocks, n=3, cutoff=0.4)
            hint = f"; close names are {', '.join(close)}" if close else "; graph.blocks lists them"
            raise FxpruneError(f"without (={name!r}) is no block of the model{hint}")
    request = Request(flops, latency, params, memory, round_to, as_patterns(ignore), min_channels)
    return plan_for(graph, scores, request, [blocks[name] for name in names])


def plan_for(graph: ChannelGraph, scores: Scores, request: Request, without: Iterable[Block] = ()) -> Plan:
    """`make_plan` for a request, with these blocks left out.

    Raises:
        UnreachableBudgetError: no plan meets the budgets.
        FxpruneError: there is nothing to prune, a pattern matches nothing, or the latency needs the time of channels.
    """
    if request.latency is not None and graph.latency is None:
        raise FxpruneError(
            f"latency (={request.latency!r}) needs the time of channels: give what fxprune.time_channels returns"
        )
    start = graph.all_but(without)
    for budget in budgets_of(graph, request):
        if budget.target > budget.polynomial.total:
            total = budget.polynomial.total
            has = f"{total / FEMTOSECONDS * 1e3:.3g} ms" if budget.name == "latency" else f"{total:,}"
            warn(
                f"{budget.name} (={getattr(request, budget.name)!r}) is above what the model has, {has} for the "
                "example: this budget removes nothing"
            )
    budgets, groups = budgets_of(graph, request), _groups(graph, request, start)
    willing = [group for group in groups if not group.last_resort]
    for chosen in (willing, groups):
        best = None
        for multiple in _multiples(graph, request):
            units = units_of(chosen, scores, multiple, request.min_channels)
            alive = choose(budgets, units, start)
            if alive is None:
                continue
            if len(chosen) < len(groups) and _used(budgets, alive) < _LEAST_USED:
                others = [group for group in groups if group.last_resort]
                units = units.then(units_of(others, scores, multiple, request.min_channels))
                closer = choose(budgets, units, start)
                alive = alive if closer is None else max(alive, closer, key=functools.partial(_used, budgets))
            best = alive if best is None else max(best, alive, key=functools.partial(_used, budgets))
            if _used(budgets, best) >= _CLOSE:
                break
        if best is not None:
            shares: dict[str, Any] = {f"{name}_target": share for name, share in shares_of(graph, request).items()}
            return replace(plan_keeping(graph, best), flops_target=budgets[0].target, **shares)
    raise _unreachable(graph, request, budgets)


def _used(budgets: Sequence[Budget], alive: npt.NDArray[np.bool_]) -> float:
    """The part of a budget that these channels use: of the one that they use most."""
    return max(budget.polynomial(alive) / max(budget.target, 1) for budget in budgets)


def check_reachable(graph: ChannelGraph, request: Request) -> None:
    """Find out before the work whether there are plans that meet a request, whatever the scores.

    A latency is checked if `fxprune.time_channels` has measured the graph.

    Raises:
        UnreachableBudgetError: there are none.
        FxpruneError: there is nothing to prune, or a pattern matches nothing.
    """
    budgets, left = budgets_of(graph, request), _fewest(graph, request)
    if not all(budget.holds(left) for budget in budgets):
        raise _unreachable(graph, request, budgets)


def lowest_flops(graph: ChannelGraph, request: Request) -> int:
    """The FLOPs of a graph when everything has gone that a request lets go."""
    return graph.flops(_fewest(graph, request))


def _multiples(graph: ChannelGraph, request: Request) -> list[int]:
    """The multiples to try, in order; each divides the one before it."""
    if request.round_to != "auto":
        return [request.round_to]
    multiple = preferred_multiple(graph.module)
    return [multiple >> k for k in range(multiple.bit_length())]


def _groups(graph: ChannelGraph, request: Request, start: npt.NDArray[np.bool_]) -> list[Group]:
    """The groups that may lose channels, of those that are left with the blocks at the start."""
    if not request.width:
        return []
    if not graph.flops.total:
        raise FxpruneError(
            "in eval the model has no operation whose FLOPs are counted, such as a convolution or a linear layer: "
            "there is nothing to prune"
        )
    ignored = _ignored_channels(graph, request.ignore)
    gone = {name for block in graph.blocks if not start[block.channel] for name in block.tensors}
    return [
        group
        for group in graph.groups
        if not ignored[group.channels].any()
        and start[group.channels].any()
        and any(d.parameter not in gone for d in group.dimensions)
    ]


def _fewest(graph: ChannelGraph, request: Request) -> npt.NDArray[np.bool_]:
    """The channels and blocks left when everything goes that may go."""
    start = graph.all_but(removable_blocks(graph, request))
    groups, multiple = _groups(graph, request, start), _multiples(graph, request)[-1]
    return fewest(units_of(groups, np.zeros(graph.num_channels), multiple, request.min_channels), start)


def removable_blocks(graph: ChannelGraph, request: Request) -> tuple[Block, ...]:
    """The blocks that a request lets go.

    Raises:
        FxpruneError: there are none, and channels may not go either; or a pattern matches nothing.
    """
    if not request.depth:
        return ()
    tensors, channels = _ignored_tensors(graph, request.ignore), _ignored_channels(graph, request.ignore)
    left = tuple(
        block for block in graph.blocks if tensors.isdisjoint(block.tensors) and not channels[block.channels].any()
    )
    if not left and not request.width:
        why = "all of its blocks are ignored" if graph.blocks else "it has no block that can be left out"
        raise FxpruneError(f"width=False leaves nothing to prune in this model: {why}. Give width=True")
    return left


def without_ignored(graph: ChannelGraph, ignore: str | Iterable[str]) -> ChannelGraph:
    """The same graph without the groups and the blocks that patterns leave whole.

    Raises:
        FxpruneError: a pattern matches nothing.
    """
    request = Request(ignore=as_patterns(ignore), depth=True)
    ignored = _ignored_channels(graph, request.ignore)
    groups = tuple(group for group in graph.groups if not ignored[group.channels].any())
    return replace(graph, groups=groups, blocks=removable_blocks(graph, request))


def _ignored_channels(graph: ChannelGraph, patterns: Sequence[str]) -> npt.NDArray[np.bool_]:
    ignored = np.zeros(graph.num_channels, dtype=bool)
    for name in _ignored_tensors(graph, patterns):
        for dim in graph.parameters[name]:
            if not isinstance(dim, int):
                ignored[dim] = True
    return ignored


def _ignored_tensors(graph: ChannelGraph, patterns: Sequence[str]) -> set[str]:
    """The parameters and buffers, of those with channels, that patterns cover."""
    ignored: set[str] = set()
    names = {name for name, _ in graph.module.named_modules() if name} | set(graph.parameters)
    for pattern in patterns:
        hits = {name for name in names if fnmatch.fnmatchcase(name, pattern)}
        if not hits:
            close = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f"; close names are {', '.join(close)}" if close else ""
            raise FxpruneError(f"ignore pattern {pattern!r} matches no module of the model{hint}")
        for name in graph.parameters:
            path = name.split(".")
            if any(".".join(path[:k]) in hits for k in range(1, len(path) + 1)):
                ignored.add(name)
    return ignored


def _frozen_reasons(graph: ChannelGraph) -> list[tuple[str, int]]:
    """Why channels are frozen, and how many for each reason; the reason that freezes the most weights comes first."""
    counts: Counter[str] = Counter()
    tensors: dict[str, set[str]] = {}
    for frozen in graph.frozen:
        counts[frozen.reason] += len(frozen)
        tensors.setdefault(frozen.reason, set()).update(dimension.parameter for dimension in frozen.dimensions)
    sizes = {name: math.prod(map(size_of, dims)) for name, dims in graph.parameters.items()}
    held = {reason: sum(sizes[name] for name in names) for reason, names in tensors.items()}
    return sorted(counts.items(), key=lambda item: held[item[0]], reverse=True)


def _unreachable(graph: ChannelGraph, request: Request, budgets: Sequence[Budget]) -> UnreachableBudgetError:
    left, ignored = _fewest(graph, request), _ignored_channels(graph, request.ignore)
    listed = [f"{count} channels: {reason}" for reason, count in _frozen_reasons(graph)[:5]]
    if ignored.any():
        listed.append(f"{int(ignored.sum())} channels: ignored")
    flops, target, total = request.flops or 0.0, budgets[0].target, graph.flops.total
    what, raised = f"{target:,} FLOPs ({target / total:.1%})", "flops"
    lowest = f"{graph.flops(left):,} ({graph.flops(left) / total:.1%})"
    late = next((budget for budget in budgets[1:] if not budget.holds(left)), None)
    if late is not None:
        total, cost, raised = late.polynomial.total, late.polynomial(left), late.name
        if late.name == "latency":
            what, lowest = f"{late.target / total:.1%} of the latency", f"predicted to be {cost / total:.1%}"
        else:
            unit = "parameters" if late.name == "params" else "bytes of activations at a time"
            what = f"{late.target:,} {unit} ({late.target / total:.1%})"
            lowest = f"{cost:,} ({cost / total:.1%})"
    blocks = len(removable_blocks(graph, request))
    left_over = "one channel" if request.min_channels == 1 else f"{request.min_channels} channels"
    how = [f"all {blocks} blocks left out"] * bool(blocks) + [f"{left_over} left in each group"] * request.width
    advice = f"Raise {raised}, or ignore less"
    for name, given in (("depth", request.depth), ("width", request.width)):
        wider = replace(request, depth=True, width=True)
        if not given and all(budget.holds(_fewest(graph, wider)) for budget in budgets):
            advice += f", or give {name}=True, which can reach it"
    return UnreachableBudgetError(
        f"a budget of {what} cannot be reached: the lowest is {lowest} with {' and '.join(how)}. "
        f"Frozen are {'; '.join(listed) or 'none'}. {advice}."
        + (f" If {flops:g} % was meant, give {flops / 100:g}." if 1 < flops <= 100 and late is None else "")
    )
