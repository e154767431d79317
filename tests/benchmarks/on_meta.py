"""Checks of a model on the meta device, without weights: it is traced, analysed, planned and rewritten.

They need hardly any memory and so cover every model, but cannot tell whether values are right.
"""

from __future__ import annotations

import importlib
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

import fxprune
from fxprune.errors import FxpruneError
from fxprune.models import example_inputs, load_model
from fxprune.planning.plan import plan_keeping
from fxprune.running import trees

__all__ = ["CHECKS", "NEEDED", "PREFIX", "SLACK", "all_models", "backbone_of_detector", "plan_without_blocks"]

PREFIX = "meta:"
BUDGET = 0.5
# How far below the budget the FLOPs may be, as a fraction of the original's.
SLACK = 0.0025

Result = dict[str, Any]
State = dict[str, Any]


def all_models() -> list[str]:
    """Every model of timm and torchvision: first one of each family, then the second of each, and so on."""
    timm, registry = importlib.import_module("timm"), importlib.import_module("timm.models._registry")
    models = importlib.import_module("torchvision.models")
    families: dict[str, list[str]] = {}
    for name in timm.list_models():
        families.setdefault(f"timm {registry._model_to_module[name]}", []).append(f"timm:{name}")
    for name in models.list_models():
        family = f"torchvision {models.get_model_builder(name).__module__}"
        families.setdefault(family, []).append(f"torchvision:{name}")
    deepest = max(map(len, families.values()))
    rounds = ([names[k] for names in families.values() if k < len(names)] for k in range(deepest))
    return [PREFIX + name for names in rounds for name in names]


def backbone_of_detector(model: nn.Module) -> nn.Module:
    """The model, or the backbone of a torchvision detector, whose other parts depend on the values of boxes."""
    if not type(model).__module__.startswith("torchvision.models.detection"):
        return model
    backbone = model.backbone
    assert isinstance(backbone, nn.Module)
    return backbone


def _build(spec: str, state: State, result: Result) -> None:
    name = spec.removeprefix(PREFIX)
    with torch.device("meta"):
        try:
            model = load_model(name).eval()
        except FxpruneError:
            # Some models compute their widths with tensors.
            with torch.device("cpu"):
                model = load_model(name).eval().to("meta")
        state["model"] = backbone_of_detector(model)
        detects = state["model"] is not model
        state["inputs"] = (torch.randn(1, 3, 320, 320),) if detects else example_inputs(model)
    result["family"] = type(state["model"]).__module__


def _trace(spec: str, state: State, result: Result) -> None:
    start = time.process_time()
    state["traced"] = fxprune.trace(state["model"], state["inputs"])
    result["trace_seconds"] = round(time.process_time() - start, 3)
    result["nodes"] = len(state["traced"].graph.nodes)


def _analyze(spec: str, state: State, result: Result) -> None:
    start = time.process_time()
    graph = state["graph"] = fxprune.analyze(state["traced"])
    result["analyze_seconds"] = round(time.process_time() - start, 3)
    result["groups"] = len(graph.groups)
    result["channels"] = sum(map(len, graph.groups))
    result["blocks"] = len(graph.blocks)
    frozen: Counter[str] = Counter()
    for item in graph.frozen:
        # Without the name of the node, so that equal reasons are counted together.
        frozen[item.reason.partition(" (")[0]] += len(item.channels)
    result["frozen"] = dict(frozen.most_common())


def _plan(spec: str, state: State, result: Result) -> None:
    start = time.process_time()
    graph = state["graph"]
    # Weights on the meta device have no values, so the scores are random.
    plan = state["plan"] = fxprune.make_plan(graph, fxprune.scores(graph, "random"), flops=BUDGET)
    result["plan_seconds"] = round(time.process_time() - start, 3)
    result.update(flops_before=plan.flops_before, flops_after=plan.flops)
    result["ratio"] = round(plan.flops / plan.flops_before, 6)
    lowest, highest = (share * plan.flops_before for share in (BUDGET - SLACK, BUDGET))
    assert lowest <= plan.flops <= highest, f"FLOPs ratio {result['ratio']}"


def _rewrite(spec: str, state: State, result: Result) -> None:
    start = time.process_time()
    state["pruned"] = fxprune.rewrite(state["graph"], state["plan"])
    seconds = (result[f"{name}_seconds"] for name in ("trace", "analyze", "plan"))
    result["prune_seconds"] = round(sum(seconds) + time.process_time() - start, 3)
    assert state["model"].state_dict().keys() == state["pruned"].state_dict().keys(), "state_dict keys differ"


def _shape(spec: str, state: State, result: Result) -> None:
    with torch.no_grad():
        before = _shapes(state["model"](*state["inputs"]))
        after = _shapes(state["pruned"](*state["inputs"]))
    assert before == after, f"output shape {before} became {after}"


def _predicted(spec: str, state: State, result: Result) -> None:
    """fvcore cannot run on the meta device, so the pruned model is analysed again, with its actual shapes."""
    again = fxprune.analyze(fxprune.trace(state["pruned"], state["inputs"])).flops.total
    assert again == state["plan"].flops, f"predicted {state['plan'].flops:,} FLOPs, the pruned model has {again:,}"


def plan_without_blocks(graph: fxprune.ChannelGraph) -> fxprune.Plan:
    """A plan that leaves out about half of the blocks, and up to half of the channels of each group."""
    random = np.random.default_rng(0)
    alive = graph.all_but([block for block in graph.blocks if random.random() < 0.5])
    for group in graph.groups:
        alive[random.choice(group.channels, random.integers(len(group) // 2 + 1), replace=False)] = False
    return plan_keeping(graph, alive)


def _blocks(spec: str, state: State, result: Result) -> None:
    """The checks after the plan again, without half of the blocks."""
    if state["graph"].blocks:
        plan = plan_without_blocks(state["graph"])
        without = {**state, "plan": plan, "pruned": fxprune.rewrite(state["graph"], plan)}
        left = [name for name in state["model"].state_dict() if name not in plan.gone]
        assert left == list(without["pruned"].state_dict()), "state_dict keys are not those of what is left"
        _shape(spec, without, result)
        _predicted(spec, without, result)


def _shapes(output: Any) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in trees.tensors(output)]


CHECKS: dict[str, Callable[[str, State, Result], None]] = {
    "build": _build,
    "trace": _trace,
    "analyze": _analyze,
    "plan": _plan,
    "rewrite": _rewrite,
    "shape": _shape,
    "predicted": _predicted,
    "blocks": _blocks,
}
NEEDED = CHECKS.keys() - {"shape", "predicted", "blocks"}
