"""Gates are put into a graph and taken out again; closed ones are the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.coverage import _randomise
from torch.utils import _pytree as pytree

import fxprune
from fxprune.dagger import Dagger
from fxprune.gating import gate_logits, gated_groups, insert_gates, remove_gates
from fxprune.models import example_inputs, load_model
from fxprune.rewriting import alive_channels

MODELS = (
    "timm:test_resnet",
    "timm:test_vit",
    "timm:test_nfnet",
    "timm:test_convnext",
    "torchvision:shufflenet_v2_x0_5",
)


def _graph(spec: str) -> tuple[torch.nn.Module, Any, fxprune.ChannelGraph]:
    pytest.importorskip(spec.partition(":")[0])
    torch.manual_seed(0)
    model = load_model(spec).eval()
    _randomise(model)
    inputs = example_inputs(model)
    return model, inputs, fxprune.analyze(fxprune.trace(model, inputs))


def _set_gates(gated: torch.fx.GraphModule, graph: fxprune.ChannelGraph, alive: np.ndarray[Any, Any]) -> None:
    modules = [module for module in gated.modules() if isinstance(module, Dagger)]
    for module, group in zip(modules, gated_groups(graph, reluctant=True), strict=True):
        module.open(torch.from_numpy(np.where(alive[group.channels], 1.0, -1.0)))


@pytest.mark.parametrize("spec", MODELS)
def test_open_gates_change_no_bit_and_closed_gates_are_the_rewritten_model(spec: str) -> None:
    model, inputs, graph = _graph(spec)
    gated = insert_gates(graph, reluctant=True).eval()
    with torch.no_grad():
        for a, b in zip(pytree.tree_leaves(model(*inputs)), pytree.tree_leaves(gated(*inputs)), strict=True):
            assert torch.equal(a, b)
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.5)
    pruned = fxprune.rewrite(graph, plan).double().eval()
    _set_gates(gated, graph, alive_channels(graph, plan))
    doubled = [x.double() for x in inputs]
    with torch.no_grad():
        expected = pytree.tree_leaves(pruned(*doubled))
        got = pytree.tree_leaves(gated.double()(*doubled))
    for a, b in zip(expected, got, strict=True):
        assert float((a - b).abs().max() / a.abs().max()) <= 1e-9


@pytest.mark.parametrize("spec", MODELS[:2])
def test_removing_gates_gives_the_traced_model_back(spec: str) -> None:
    _, _, graph = _graph(spec)
    gated = insert_gates(graph)
    plain = remove_gates(gated)
    assert plain.code == graph.module.code
    before, after = graph.module.state_dict(), plain.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert any(isinstance(module, Dagger) for module in gated.modules())


def test_gates_depend_on_the_weights_alone() -> None:
    _, inputs, graph = _graph("timm:test_resnet")
    gated = insert_gates(graph)
    random = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in gated.modules():
            if isinstance(module, Dagger):
                module.direct.normal_(generator=random)
                module.out.normal_(generator=random)
    logits = gate_logits(gated, graph).detach()
    with torch.no_grad():
        gated(*(x + 1.0 for x in inputs))
    assert torch.equal(gate_logits(gated, graph), logits)
    weights = [name for name, tensor in graph.module.named_parameters() if tensor.dim() == 4]
    with torch.no_grad():
        gated.get_parameter(weights[1]).mul_(torch.rand(gated.get_parameter(weights[1]).shape, generator=random))
    assert not torch.equal(gate_logits(gated, graph), logits)
