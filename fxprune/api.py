"""prune(): the stages in a row."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from torch import fx, nn

from fxprune.analysis import analyze
from fxprune.channels import ChannelGraph
from fxprune.criteria import Scores, scores
from fxprune.planning import make_plan
from fxprune.rewriting import rewrite
from fxprune.tracing import trace

__all__ = ["prune"]


def prune(
    model: nn.Module,
    flops: float = 0.5,
    *,
    example_inputs: Any = None,
    method: str | Callable[[ChannelGraph], Scores] = "relevance",
    ignore: str | Iterable[str] = (),
    round_to: int = 1,
) -> fx.GraphModule:
    """Make a model smaller, so that it costs at most `flops`.

    Args:
        model: any traceable module; it is not changed.
        flops: the budget; up to 1 a fraction of the model's FLOPs, above 1 a number of FLOPs as fvcore counts them.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments; for timm and torchvision models
            the default is what they are made for.
        method: how channels are scored, see `fxprune.scores`.
        ignore: names or glob patterns of modules to leave whole.
        round_to: widths that are changed become multiples of this.

    Returns:
        A GraphModule with the original's `state_dict` keys; `fxprune.plan_of` tells what was kept.

    Raises:
        FxpruneError: the model cannot be traced, or the budget cannot be met; the message says why and what to do.
    """
    graph = analyze(trace(model, example_inputs, copy=False))
    plan = make_plan(graph, scores(graph, method), flops=flops, round_to=round_to, ignore=ignore)
    return rewrite(graph, plan)
