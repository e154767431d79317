"""prune(): the stages in a row."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn

from fxprune.analysis import analyze
from fxprune.channels import ChannelGraph, Scores
from fxprune.compensation.compensate import compensate as compensated
from fxprune.compensation.synthesis import synthesize
from fxprune.data import Batch, calibration_batch, check_labels, run_model
from fxprune.errors import FxpruneError, FxpruneWarning
from fxprune.gates.learning import learn_gates
from fxprune.latency.budget import UnreachableLatencyError, plan_for_latency
from fxprune.latency.channels import time_channels
from fxprune.losses import are_class_labels, number_of_classes
from fxprune.planning.budgets import check_latency, flops_target
from fxprune.planning.make import make_plan
from fxprune.progress import Progress, shown
from fxprune.rewriting import rewrite
from fxprune.running.copies import copy_module
from fxprune.running.eval_mode import in_eval_without_grad
from fxprune.scoring.criteria import FROM_DATA, check_method, scores
from fxprune.tracing.aliasing import written_attributes
from fxprune.tracing.tracer import trace

__all__ = ["prune"]


def prune(
    model: nn.Module,
    flops: float | None = None,
    *,
    latency: float | None = None,
    example_inputs: Any = None,
    data: Any = None,
    method: str | Callable[[ChannelGraph], Scores] | None = None,
    compensate: bool = True,
    samples: int = 128,
    ignore: str | Iterable[str] = (),
    round_to: int | Literal["auto"] = 1,
    seed: int = 0,
    progress: bool | Progress = True,
) -> fx.GraphModule:
    """Make a model smaller, so that it costs at most `flops` or takes at most `latency`.

    Channels are scored, a plan is made that meets the budget, the model is rewritten, and the weights that stay are
    made to do what the whole model does on samples. Without data these are made from the model's own BatchNorm
    statistics (`fxprune.compensation.synthesis`); a model without any is cut by "relevance" and not compensated.

    Args:
        model: any traceable module; it is not changed.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs as fvcore counts them.
            Default: 0.5, or where a latency is given, no limit.
        latency: a budget of time, as a fraction of what the model takes on its device on the example, with as many
            threads as torch is set to. Channels are then chosen by the time that they save, and the result is measured
            beside the model. With ``latency=1`` a budget of FLOPs is the limit, and time decides what goes.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; the default is the first sample
            of `data`, and without data what timm and torchvision models are made for.
        data: a DataLoader or any iterable of batches, with or without labels, see `fxprune.data`.
        method: how channels are scored, see `fxprune.scores`, or "dagger": gates that `fxprune.learn_gates` learns in
            one pass over all of `data`, or 20 over synthetic samples. Default: "surgeon" where there are samples to
            compensate on, else "relevance".
        compensate: whether the weights that stay make up for those that go (`fxprune.compensate`). False gives the bare
            cut, slices of the original's weights, and is quick.
        samples: how many of the first samples of `data` scores and compensation look at.
        ignore: names or glob patterns of modules to leave whole.
        round_to: widths that are changed become multiples of this; "auto" for what the device likes, see `make_plan`.
        seed: fixes all that is random.
        progress: show bars in a terminal while samples are made, read and compensated on, or call this function.

    Returns:
        A GraphModule with the original's `state_dict` keys; `fxprune.plan_of` tells what was kept.

    Raises:
        FxpruneError: the model cannot be traced, the data cannot be used or is missing for the method, or the budget
            cannot be met; the message says why and what to do.

    Warns:
        FxpruneWarning: no method was asked for, and the model cannot be scored on samples: it is cut by "relevance".
            Or the model runs code in training that the result does not have.
    """
    with shown(progress) as show:
        # A generator would be used up by the first look.
        data = list(data) if method == "dagger" and hasattr(data, "__next__") else data
        batch = None if data is None else calibration_batch(data, samples).on_device_of(model)
        graph = analyze(_traced(model, example_inputs, batch))
        # What cannot be is said before the work.
        if batch is not None:
            _check_data(graph, batch)
        if method is not None:
            check_method(method, ("dagger",))
        settings: dict[str, Any] = {"flops": flops, "round_to": round_to, "ignore": ignore}
        unscored = np.zeros(graph.num_channels)
        if latency is not None:
            check_latency(latency)
            make_plan(graph, unscored, **{**settings, "flops": flops_target(graph, flops, latency)})
            graph = time_channels(graph)
        make_plan(graph, unscored, latency=latency, **settings)
        reads = method in ("dagger", *FROM_DATA)
        if batch is None and (reads or compensate):
            made = synthesize(graph, seed=seed, progress=show)
            batch = None if made is None else Batch((made,), {})
            if batch is None and reads:
                raise FxpruneError(
                    f"method {method!r} needs data, and none can be made from this model, which has no BatchNorm "
                    "statistics or not one input: give data, a loader or a list of batches, or another method"
                )

        def pruned_by(method: str | Callable[[ChannelGraph], Scores], batch: Batch | None) -> fx.GraphModule:
            if method == "dagger":
                assert batch is not None
                given, epochs = (batch, 20) if data is None else (data, 1)
                share = min(flops_target(graph, flops, latency) / graph.flops.total, latency or 1.0)
                chosen = learn_gates(graph, given, flops=share, epochs=epochs, seed=seed, progress=show).scores
            else:
                chosen = scores(graph, method, data=batch, seed=seed, progress=show)
            if latency is None or latency == 1:
                plan = make_plan(graph, chosen, **settings)
            else:
                plan = plan_for_latency(graph, chosen, copy_module(model), latency, **settings)
            pruned = rewrite(graph, plan)
            if not compensate or batch is None or plan.flops == plan.flops_before:
                return pruned
            return compensated(graph, pruned, batch, seed=seed, progress=show)

        if method is not None:
            return pruned_by(method, batch)
        if batch is None or not (compensate or data is not None):
            return pruned_by("relevance", None)
        try:
            return pruned_by("surgeon", batch)
        except UnreachableLatencyError:
            raise
        except FxpruneError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(f"cut by relevance and not compensated: {reason}", FxpruneWarning, stacklevel=2)
            return pruned_by("relevance", None)


def _traced(model: nn.Module, example_inputs: Any, batch: Batch | None) -> fx.GraphModule:
    """Trace with the example given, or else with a sample of the data."""
    if example_inputs is not None or batch is None:
        return _of_its_own(model, example_inputs)
    try:
        return _of_its_own(model, batch.example)
    except FxpruneError as error:
        raise FxpruneError(
            f"{error} The example was the first sample of data, of shape {batch.rows(0, 1).shapes}: data must yield "
            "batches, samples along the first dimension, preprocessed as the model wants them"
        ) from error


def _of_its_own(model: nn.Module, inputs: Any) -> fx.GraphModule:
    """The traced model, with copies of the weights if running it writes into them, as layers of bounded norm do."""
    traced = trace(model, inputs, copy=False)
    weights = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    return trace(model, inputs) if written_attributes(traced) & weights else traced


def _check_data(graph: ChannelGraph, batch: Batch) -> None:
    """Check that the model runs on a sample, and that the labels, if they are those of classes, are among its own."""
    one = batch.rows(0, 1)
    with torch.no_grad(), in_eval_without_grad(graph.module):
        outputs = run_model(graph.module, one)
    if one.labels is not None and are_class_labels(outputs, one.labels):
        check_labels(batch, number_of_classes(outputs))
