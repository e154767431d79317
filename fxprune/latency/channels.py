"""How long each node of a model takes, and so how much time its channels cost."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import torch
from torch import fx, nn

from fxprune.channels import ChannelGraph, Labels
from fxprune.channels.polynomial import Polynomial, Term, build_polynomial, term, with_blocks
from fxprune.data import Batch, placeholder_values
from fxprune.latency.measure import Run, check_settings, inference_on, without_collection
from fxprune.planning.budgets import FEMTOSECONDS
from fxprune.progress import Progress, shown
from fxprune.running import trees
from fxprune.running.batch import Inputs
from fxprune.running.calls import Call
from fxprune.running.mode_blocks import modes_of

__all__ = ["time_channels"]


def time_channels(
    graph: ChannelGraph, example_inputs: Inputs | None = None, *, batch_size: int | None = None,
    threads: int | None = None, device: str | torch.device | None = None, warmup: int = 5, repeats: int = 15,
    progress: bool | Progress = False,
) -> ChannelGraph:  # fmt: skip
    """Measure the time that channels cost on this machine.

    The model is run node by node. The time of a node is proportional to its FLOPs or, if it has none, to the size of
    its output; the time of the calls as such is constant, but for blocks that can be left out. Scores per FLOP become
    scores per time for the graph that is returned, and `make_plan` takes a budget of latency for it. (Similar to HALP,
    Shen et al., NeurIPS 2022, which looks latencies up in a table.)

    Args:
        graph: the analysed model; it is not changed.
        example_inputs: as for `fxprune.measure_latency`, like all that follows.
        batch_size: samples per call.
        threads: for torch to compute with.
        device: where to measure; default: where the model is.
        warmup: calls before the timed ones.
        repeats: timed runs.
        progress: show bars in a terminal, or call this function with the runs done.

    Returns:
        The same graph with `latency`, a polynomial in the kept channels, in femtoseconds.

    Raises:
        FxpruneError: as `fxprune.measure_latency`.
    """
    check_settings(repeats, warmup, threads, batch_size)
    with shown(progress) as show, inference_on(threads), ExitStack() as stack:
        run = Run.of(graph.module, example_inputs, batch_size, device, stack)
        run.warm_up(warmup)
        stack.enter_context(without_collection())
        assert isinstance(run.model, fx.GraphModule)
        stepper = _Stepper(run.model, run.wait)
        for number in range(repeats):
            run.time()
            stepper.run_on(run.fresh_call())
            show("measure", number + 1, repeats, {})
        calling = _seconds_of_a_call(run.wait)
    return replace(graph, latency=_polynomial(graph, stepper.seconds, calling, min(run.times)))


class _Stepper(fx.Interpreter):
    """Runs a model node by node and keeps the shortest time of each: disturbances only make a node slower."""

    def __init__(self, module: fx.GraphModule, wait: Callable[[], object]) -> None:
        super().__init__(module)
        self.wait = wait
        self.seconds: dict[str, float] = {}

    def run_on(self, call: Call) -> None:
        """Run once on these arguments."""
        values = placeholder_values(self.graph, Batch(*call))
        self.wait()
        self.run(initial_env=values, enable_io_processing=False)

    def run_node(self, n: fx.Node) -> object:
        """Run one node and take its time."""
        start = time.perf_counter()
        result = super().run_node(n)
        self.wait()
        self.seconds[n.name] = min(self.seconds.get(n.name, math.inf), time.perf_counter() - start)
        return result


def _seconds_of_a_call(wait: Callable[[], object]) -> float:
    """The time of a node that does nothing."""
    nothing = fx.symbolic_trace(nn.Sequential(*(nn.Identity() for _ in range(20))))
    stepper = _Stepper(nothing, wait)
    for _ in range(3):
        stepper.run_on(((torch.zeros(()),), {}))
    return min(stepper.seconds[node.name] for node in nothing.graph.nodes if node.op == "call_module")


def _polynomial(graph: ChannelGraph, seconds: Mapping[str, float], calling: float, whole: float) -> Polynomial:
    """Time in femtoseconds.

    Args:
        graph: the analysed model.
        seconds: of each node that is called, the call as such included.
        calling: the seconds of a call as such.
        whole: the seconds of the whole model; what the nodes leave of it is constant.
    """
    terms: list[Term] = []
    left = round(whole * FEMTOSECONDS)
    every = np.ones(graph.num_channels, dtype=bool)
    modes = modes_of(graph.module.graph)
    for node in graph.module.graph.nodes:
        _, of_training = modes.get(node, ("", False))
        if of_training or node.op not in ("call_module", "call_function", "call_method"):
            continue
        took = round(max(seconds[node.name] - calling, 0.0) * FEMTOSECONDS)
        left -= took
        sets = graph.optional.get(node.name, ((),))
        parts = graph.costs.get(node.name) or with_blocks(_of_outputs(graph.labels.get(node.name)), sets)
        total = sum(part(every) for part in parts)
        terms.extend(Term(part.coefficient * took // max(total, 1), part.factors) for part in parts)
        if node.name in graph.optional:
            # A call goes with its block.
            fixed = round(min(calling, seconds[node.name]) * FEMTOSECONDS)
            left -= fixed
            terms.extend(with_blocks([term(fixed)], sets))
    terms.append(term(max(left, 0)))
    return build_polynomial(terms, graph.num_channels)


def _of_outputs(labels: object) -> Sequence[Term]:
    """Terms for the entries of the tensors in a node's result; constant where there are none."""
    tensors = (leaf for leaf in trees.leaves(labels) if isinstance(leaf, Labels))
    return [term(*leaf.dims) for leaf in tensors] or [term(1)]
