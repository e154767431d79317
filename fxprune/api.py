"""prune(): the stages in a row."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
import torch
from torch import fx, nn

from fxprune.analysis import analyze
from fxprune.channels import Block, ChannelGraph, Scores
from fxprune.compensation.compensate import ALL_PARTS, HOLDOUT, Compensation
from fxprune.compensation.holdout import clusters_of
from fxprune.compensation.samples import can_make_samples, make_samples
from fxprune.data import Batch, Data, Inputs, calibration_batch, check_labels, run_model
from fxprune.depth import best_depth, blocks_in_order
from fxprune.errors import CannotScoreError, FxpruneError, warn
from fxprune.gates.learning import learn_gates
from fxprune.latency.budget import plan_for_latency
from fxprune.latency.channels import time_channels
from fxprune.losses import are_class_labels, number_of_classes
from fxprune.memory import plan_for_memory
from fxprune.planning.budgets import Request, as_patterns, budgets_of, flops_target, latency_share
from fxprune.planning.make import check_reachable, plan_for, removable_blocks
from fxprune.planning.plan import Plan
from fxprune.progress import Progress, shown
from fxprune.provenance import pruning_notes, set_pruning_notes
from fxprune.rewriting import rewrite
from fxprune.running.copies import copy_module
from fxprune.running.devices import check_values
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.scoring.criteria import FROM_DATA, Method, check_method, scores
from fxprune.tracing.aliasing import written_attributes
from fxprune.tracing.tracer import trace

__all__ = ["prune"]

# Steps of gate learning on samples, and how many made samples each takes. Not tuned.
_STEPS, _BATCH = 20, 32
# The fraction of the samples that a fast run looks at. Not tuned.
_FAST = 0.25


def prune(
    model: nn.Module,
    flops: float | None = None,
    *,
    latency: float | str | None = None,
    params: float | None = None,
    memory: float | None = None,
    example_inputs: Inputs | None = None,
    data: Data | None = None,
    method: Method | None = None,
    compensate: bool = True,
    samples: int = 128,
    ignore: str | Iterable[str] = (),
    round_to: int | Literal["auto"] = "auto",
    min_channels: int = 1,
    depth: bool | None = None,
    width: bool = True,
    quality: Literal["fast", "normal", "best"] = "normal",
    seed: int = 0,
    progress: bool | Progress = True,
) -> fx.GraphModule:
    """Make a model smaller: to a budget of FLOPs, time, parameters or memory, or several of them.

    The model is traced and its channels are found and scored; a plan removes those with the lowest scores until the
    budget holds; the model is rewritten without them, and its weights are changed to give the original's outputs on
    samples again. Without data, these are photographs in scikit-image for a model that takes images, random tokens for
    one of text, and inputs made from the statistics in the model's BatchNorms for another
    (`fxprune.compensation.samples`); any other model is pruned by "relevance" and not compensated.

    Args:
        model: any module that can be traced; it is not changed.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs per sample, as fvcore
            counts them. Default: 0.5, or all of them if there is another budget below what the model has.
        latency: a budget of time for the example on the model's device, with the number of threads set in torch: a
            fraction of what the model takes, or a time with its unit ("3ms"; s, ms or us). Channels are then chosen by
            the time that they save, and the result is measured, in turns with the model if a fraction is given. With
            ``latency=1`` the FLOPs are the only limit, and time decides which channels go.
        params: a budget of parameters; up to 1 a fraction of the model's, above 1 a number of them.
        memory: a budget of the activations that exist at the same time in eval; up to 1 a fraction of the model's,
            above 1 a number of bytes per sample. Inputs and weights do not count, nor what an op allocates for itself.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments. Default: the first sample of
            `data`, or without data the inputs that a timm or torchvision model is made for.
        data: a DataLoader or any iterable of batches, with or without labels, see `fxprune.data`.
        method: how channels are scored, see `fxprune.scores`, or "dagger": by gates that `fxprune.learn_gates` learns
            in one pass over all of `data`, or in 20 steps on made samples. Default: "surgeon" if there are samples
            to compensate on, else "relevance".
        compensate: whether to fit the remaining weights to the original's outputs (`fxprune.compensate`). False gives
            slices of the original's weights, and is fast.
        samples: how many samples scoring and compensation use, the first of `data`, or at most so many photographs.
        ignore: names or glob patterns of modules to leave whole.
        round_to: the widths that change become multiples of this; "auto" for multiples that the device computes
            without waste, see `fxprune.make_plan`.
        min_channels: so many channels of each group stay.
        depth: whether blocks, such as residual branches and dense layers, may be left out whole. Which and how many
            is measured on the samples (`fxprune.depth`); with "dagger" they go in the order of their gates. Default:
            True where there are samples. False leaves all blocks, and is faster.
        width: whether channels may be removed; False for blocks alone.
        quality: how much work goes into the choice where there are samples. "fast" looks at a quarter of them, and
            leaves no block out unless `depth` is True. "best" learns gates too, in 20 steps from the scores, on samples
            that are not held out, and takes their plan if held-out samples prefer it; it is "normal" where nothing is
            compensated and no block may go.
        seed: of everything random.
        progress: True shows bars in a terminal, False nothing; a function is called with the progress
            (`fxprune.progress.Progress`).

    Returns:
        A GraphModule with the original's `state_dict` keys; `fxprune.plan_of` returns what was kept.

    Raises:
        UnreachableBudgetError: no plan meets the budget.
        CannotScoreError: the method needs samples, and this model cannot be scored on them.
        FxpruneError: the model cannot be traced, the data cannot be used or is missing for the method, or another
            argument is wrong; the message says why and what to do.

    Warns:
        FxpruneWarning: no method was given and there are no samples, or the model cannot be scored on them, so that it
            is pruned by "relevance" and not compensated; or the model does something in training that the result does
            not do.

    Examples:
        >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 2, 1))
        >>> small = prune(model, flops=0.5, example_inputs=torch.zeros(1, 3, 8, 8))
        >>> small.get_parameter("0.weight").shape
        torch.Size([8, 3, 3, 3])
    """
    request = Request(flops, latency, params, memory, round_to, as_patterns(ignore), min_channels, depth, width)
    if quality not in ("fast", "normal", "best"):
        raise FxpruneError(f"quality (={quality!r}) must be 'fast', 'normal' or 'best'")
    if quality == "fast":
        samples = math.ceil(_FAST * samples)
    if method is not None:
        check_method(method, ("dagger",))
    with shown(progress) as show:
        if method == "dagger" and hasattr(data, "__next__"):
            # The first pass would use up an iterator.
            data = list(data)  # type: ignore[arg-type]
        batch = None if data is None else calibration_batch(data, samples, model)
        graph = analyze(_traced(model, example_inputs, batch))
        if compensate or latency is not None or not (method == "random" or callable(method)):
            check_values("prune", graph.module)
        if batch is not None:
            _check_data(graph, batch)
        by_samples = method == "dagger" or method in FROM_DATA
        if depth is None:
            at_hand = batch is not None or ((compensate or by_samples) and can_make_samples(graph))
            request = replace(request, depth=(at_hand and quality != "fast") or not width)
        check_reachable(graph, request)
        if latency is not None:
            graph = time_channels(graph, progress=show)
            check_reachable(graph, request)
        blocks = removable_blocks(graph, request)
        demanded = bool(blocks) and (depth is True or not width)
        try:
            origin = ""
            if batch is None and (compensate or by_samples or demanded):
                batch, origin = _made_samples(graph, samples, method, demanded, seed, show)
            if batch is not None and (compensate or blocks or method in (None, "surgeon")):
                # Scoring and compensation split the samples by the same clusters.
                batch = replace(batch, clusters=clusters_of(graph.module, batch))
            by = method or ("relevance" if batch is None else "surgeon")
            chosen = _scored(graph, request, by, data, batch, seed, show)
            if batch is None or not (compensate or blocks):
                return _noted(rewrite(graph, _planned(model, graph, chosen, request)), by, origin)
            run = Compensation.of(graph, batch, HOLDOUT, seed, show, parts=ALL_PARTS if compensate else ())
            if method == "dagger" and width:
                order = iter(sorted(blocks, key=lambda block: chosen[block.channel]))
            else:
                order = blocks_in_order(graph, blocks, budgets_of(graph, request), batch, show)
            best = best_depth(graph, order, lambda gone: _planned(model, graph, chosen, request, gone), run)
            if quality == "best" and width and by != "dagger":
                fit, _ = run.samples
                learned = _learned_scores(graph, request, fit, _epochs(fit), lambda _: chosen, seed, show)
                order = iter(sorted(blocks, key=lambda block: learned[block.channel]))
                other = best_depth(graph, order, lambda gone: _planned(model, graph, learned, request, gone), run)
                if other.error < best.error:
                    best, by = other, "dagger"
            # Without widths to choose, nothing was scored.
            return _noted(run.finish(best), by if width else "", origin)
        except CannotScoreError as error:
            if by_samples or demanded or (method is not None and data is not None):
                raise
            reason = str(error).partition("\n")[0]
            how = "not compensated" if method is not None else "cut by relevance and not compensated"
            warn(f"{how}: {reason}")
        request = replace(request, depth=False)
        chosen = scores(graph, method or "relevance", seed=seed)
        return _noted(rewrite(graph, _planned(model, graph, chosen, request)), method or "relevance", "")


def _noted(small: fx.GraphModule, method: Method, origin: str) -> fx.GraphModule:
    """The same model, which says how its channels were scored, and on what if the user gave no data."""
    name = method if isinstance(method, str) else getattr(method, "__name__", "a function")
    set_pruning_notes(small, replace(pruning_notes(small), method=name, samples=origin))
    return small


def _traced(model: nn.Module, example_inputs: Inputs | None, batch: Batch | None) -> fx.GraphModule:
    """The traced model, on the example given or else on a sample of the data."""
    if example_inputs is not None or batch is None:
        return _trace_apart(model, example_inputs)
    try:
        return _trace_apart(model, batch.example)
    except FxpruneError as error:
        raise FxpruneError(
            f"{error} The example was the first sample of data, of shape {batch.rows(0, 1).shapes}: data must yield "
            "batches, samples along the first dimension, preprocessed as the model wants them"
        ) from error


def _trace_apart(model: nn.Module, inputs: Inputs | None) -> fx.GraphModule:
    """The traced model, with copies of the weights if it writes into them, as layers of bounded norm do."""
    traced = trace(model, inputs, copy=False)
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return trace(model, inputs) if written_attributes(traced) & weights else traced


def _check_data(graph: ChannelGraph, batch: Batch) -> None:
    """Check that the model runs on a sample, and that labels, if they are class numbers, are among its classes."""
    one = batch.rows(0, 1)
    with torch.no_grad(), in_eval_without_grad(graph.module):
        outputs = run_model(graph.module, one)
    if one.labels is not None and are_class_labels(outputs, one.labels):
        check_labels(batch, number_of_classes(outputs))


def _scored(
    graph: ChannelGraph,
    request: Request,
    method: Method,
    data: Data | None,
    batch: Batch | None,
    seed: int,
    show: Progress,
) -> Scores:
    """The scores of channels; of no consequence if none may go."""
    if not request.width:
        return np.zeros(graph.num_channels)
    if method == "dagger":
        if data is None:
            assert batch is not None
            made = batch.split(_BATCH)
            return _learned_scores(graph, request, made, _epochs(made), "surgeon", seed, show)
        return _learned_scores(graph, request, data, 1, "surgeon", seed, show)
    return scores(graph, method, data=batch, seed=seed, progress=show)


def _made_samples(
    graph: ChannelGraph, most: int, method: Method | None, depth: bool, seed: int, show: Progress
) -> tuple[Batch, str]:
    """Samples for a user who gave none, and what they are."""
    made = make_samples(graph, most, seed=seed, progress=show)
    if made is None:
        what = "leaving blocks out" if depth else f"method {method!r}" if method else "compensation"
        instead = ", or depth=False" if depth else ""
        raise CannotScoreError(
            f"{what} needs data, and none can be made for this model, which reads no tokens and has not one "
            "floating-point input, or one that is no image and no BatchNorm that remembers statistics: give data, a "
            "loader or a list of batches" + instead
        )
    return made.batch, made.origin


def _learned_scores(
    graph: ChannelGraph,
    request: Request,
    data: Data | Sequence[Batch],
    epochs: int,
    start: Method,
    seed: int,
    show: Progress,
) -> Scores:
    """The scores of gates that are learned on batches."""
    share = min(flops_target(graph, request) / graph.flops.total, latency_share(graph, request))
    return learn_gates(
        graph,
        data,
        flops=share,
        depth=bool(request.depth),
        ignore=request.ignore,
        epochs=epochs,
        start=start,
        seed=seed,
        progress=show,
    ).scores


def _epochs(batches: Sequence[Batch]) -> int:
    """How often to walk through few batches."""
    return math.ceil(_STEPS / len(batches))


def _planned(
    model: nn.Module, graph: ChannelGraph, chosen: Scores, request: Request, without: Sequence[Block] = ()
) -> Plan:
    def make(request: Request) -> Plan:
        if request.latency is None or request.latency == 1:
            return plan_for(graph, chosen, request, without)
        return plan_for_latency(graph, chosen, copy_module(model), request, without)

    return make(request) if request.memory is None else plan_for_memory(graph, request, make)
