"""`fxprune inspect`."""

from __future__ import annotations

import typer

from fxprune.analysis import analyze
from fxprune.cli import common
from fxprune.cli.models import build, inputs_of
from fxprune.models import example_inputs
from fxprune.tracing.tracer import trace

__all__ = ["inspect"]


def inspect(
    model: common.Model, arguments: common.Arguments = None, weights: common.Weights = None,
    input_shape: common.Input = None, as_json: common.AsJson = False, debug: common.Debug = False,
) -> None:  # fmt: skip
    """Show a model's channels and blocks: which are pruned together, which cannot be pruned, and why."""
    stages = common.Stages()
    given = inputs_of(input_shape)
    with stages("load"):
        network = build(model, arguments, weights, False)
        inputs = given or example_inputs(network)
    with stages("analyze"):
        graph = analyze(trace(network, inputs, copy=False))
    if not as_json:
        typer.echo(str(graph))
        return
    groups = [
        {"name": group.name, "channels": len(group), "repeats": group.repeats, "last_resort": group.last_resort,
         "dimensions": list(map(str, group.dimensions))}
        for group in graph.groups
    ]  # fmt: skip
    frozen = [
        {"reason": each.reason, "channels": len(each), "dimensions": list(map(str, each.dimensions))}
        for each in graph.frozen
    ]
    blocks = [{"name": block.name, "flops": block.flops, "parameters": block.tensors} for block in graph.blocks]
    total = graph.flops.total
    common.print_json({"model": model, "flops": total, "groups": groups, "frozen": frozen, "blocks": blocks})
