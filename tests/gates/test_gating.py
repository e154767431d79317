"""Gates are put into a graph and taken out again; closed ones are the cut."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.coverage import random_model
from invariant import image, masks, plan_for, randomise, to_double, tokens
from layer_nets import RECURRENT, SPECTRAL, WRITTEN_OUT, Dense, Inception
from mutate import Patch, attribute
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

import fxprune
from fxprune.gates import gating, insert_gates, remove_gates
from fxprune.gates.cost import cost_of_gates
from fxprune.gates.dagger import Description
from fxprune.gates.gating import dagger_of, descriptions, gate, gated_groups
from fxprune.layers.gate_places import gate_places
from fxprune.models import example_inputs
from fxprune.rewriting import alive_channels
from fxprune.running import trees
from fxprune.verification import TOLERANCE, largest_error, relative_error

MODELS = (
    "timm:test_resnet",
    "timm:test_vit",
    "timm:test_nfnet",
    "timm:test_convnext",
    "torchvision:shufflenet_v2_x0_5",
)


def _graph(spec: str) -> tuple[torch.nn.Module, Any, fxprune.ChannelGraph]:
    pytest.importorskip(spec.partition(":")[0])
    model = random_model(spec)
    inputs = example_inputs(model)
    return model, inputs, fxprune.analyze(fxprune.trace(model, inputs))


def _set_gates(gated: torch.fx.GraphModule, graph: fxprune.ChannelGraph, alive: np.ndarray[Any, Any]) -> None:
    channels = np.concatenate([group.channels for group in gated_groups(graph, last_resort=True)])
    dagger_of(gated).set_logits(torch.from_numpy(np.where(alive[channels], 1.0, -1.0)))


@pytest.mark.parametrize("spec", MODELS)
def test_open_gates_change_no_bit_and_closed_gates_are_the_rewritten_model(spec: str) -> None:
    model, inputs, graph = _graph(spec)
    gated = insert_gates(graph, last_resort=True).eval()
    with torch.no_grad():
        for a, b in zip(trees.tensors(model(*inputs)), trees.tensors(gated(*inputs)), strict=True):
            assert torch.equal(a, b)
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.5)
    pruned = fxprune.rewrite(graph, plan).double().eval()
    _set_gates(gated, graph, alive_channels(graph, plan))
    doubled = [x.double() for x in inputs]
    with torch.no_grad():
        expected, got = (trees.tensors(net(*doubled)) for net in (pruned, gated.double()))
    assert largest_error(expected, got) <= TOLERANCE


GATED_INSIDE = {
    **{name: (make, tokens()) for name, (make, _) in RECURRENT.items()},
    **{name: (make, image()) for name, make in SPECTRAL.items()},
    **{name: (make, image()) for name, make in WRITTEN_OUT.items() if "deviation" not in name},
    "weight norm": (lambda: nn.Sequential(*(weight_norm(nn.Linear(a, b)) for a, b in ((4, 8), (8, 2)))), tokens()),
}


@pytest.mark.parametrize("name", GATED_INSIDE)
def test_gates_stand_where_a_layer_sums_over_channels_within_itself(name: str) -> None:
    torch.manual_seed(0)
    make, inputs = GATED_INSIDE[name]
    model, inputs = randomise(make()), to_double(inputs)
    graph = fxprune.analyze(fxprune.trace(model, inputs))
    gated = insert_gates(graph, last_resort=True).eval()
    with torch.no_grad():
        # Not to the bit: of float64 products, BLAS rounds the last one by the address of the weights.
        assert torch.allclose(gated(inputs), model(inputs), rtol=1e-14, atol=0)
        for alive in masks(graph, 2):
            _set_gates(gated, graph, alive)
            expected = fxprune.rewrite(graph, plan_for(graph, alive)).eval()(inputs)
            assert relative_error(expected, gated(inputs)) <= TOLERANCE
    plain = remove_gates(gated)
    assert plain.code == graph.module.code
    assert [type(m).__name__ for m in plain.modules()] == [type(m).__name__ for m in graph.module.modules()]
    with torch.no_grad():
        assert torch.equal(plain(inputs), model(inputs))


@pytest.mark.parametrize("spec", MODELS[:2])
def test_removing_gates_gives_the_traced_model_back(spec: str) -> None:
    _, _, graph = _graph(spec)
    gated = insert_gates(graph)
    plain = remove_gates(gated)
    assert plain.code == graph.module.code
    before, after = graph.module.state_dict(), plain.state_dict()
    assert list(before) == list(after)
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert sum(isinstance(module, Description) for module in gated.modules()) == len(gated_groups(graph))


def test_gates_depend_on_the_weights_alone() -> None:
    _, inputs, graph = _graph("timm:test_resnet")
    gated = insert_gates(graph)
    random = torch.Generator().manual_seed(1)

    def logits() -> Tensor:
        return dagger_of(gated).logits([describe(*weights) for describe, weights in descriptions(gated)]).detach()

    with torch.no_grad():
        for name, parameter in dagger_of(gated).named_parameters():
            if name.endswith(("direct", "out")):
                parameter.normal_(generator=random)
    before = logits()
    with torch.no_grad():
        gated(*(x + 1.0 for x in inputs))
    assert torch.equal(logits(), before)
    weights = [name for name, tensor in graph.module.named_parameters() if tensor.dim() == 4]
    with torch.no_grad():
        gated.get_parameter(weights[1]).mul_(torch.rand(gated.get_parameter(weights[1]).shape, generator=random))
    assert not torch.equal(logits(), before)


class _Various(nn.Module):
    """Layers whose weights are shared, grouped, padded by reflection, computed, or as large as no activation."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1, padding_mode="reflect")
        self.twice = nn.Conv2d(8, 8, 3, padding=1, padding_mode="circular")
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 12, 3, groups=2)
        self.computed = nn.Parameter(torch.randn(6, 12, 1, 1))
        self.transposed = nn.ConvTranspose2d(6, 5, 2)
        self.large = nn.Linear(5, 2000)
        self.last = nn.Linear(2000, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).sigmoid()
        x = x + self.twice(self.twice(x).sigmoid())
        x = self.grouped(self.depthwise(x.sigmoid()).sigmoid()).sigmoid()
        x = nn.functional.conv2d(x, self.computed - self.computed.mean()).sigmoid()
        return self.last(self.large(self.transposed(x).mean((2, 3)).sigmoid()).sigmoid())


def test_weights_are_gated_where_they_can_be_and_activations_elsewhere() -> None:
    torch.manual_seed(0)
    model = _Various().double().eval()
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    graph = fxprune.analyze(fxprune.trace(model, x))
    gated = insert_gates(graph, last_resort=True)
    # What the depthwise convolution hands on is gated at the next one.
    assert "depthwise" not in {place.node for place in gate_places(graph)}
    names = [str(node.args[0]) for node in gated.graph.nodes if node.target is gate]
    assert sum("weight" in name for name in names) >= 3
    assert torch.equal(gated(x), model(x))
    assert remove_gates(gated).code == graph.module.code
    assert [type(m) for m in remove_gates(gated).children()] == [type(m) for m in graph.module.children()]
    for seed in range(3):
        plan = fxprune.make_plan(graph, fxprune.scores(graph, "random", seed=seed), flops=0.5)
        _set_gates(gated, graph, alive_channels(graph, plan))
        assert torch.allclose(gated(x), fxprune.rewrite(graph, plan)(x), rtol=1e-10, atol=1e-12)


def test_gated_weights_stay_channels_last() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 9, 9).contiguous(memory_format=torch.channels_last)
    gated = insert_gates(fxprune.analyze(fxprune.trace(model, x)))
    assert gated(x).is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(gated(x), model(x))


def test_that_only_last_resort_groups_are_there_to_gate_is_said() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.LayerNorm(8), nn.Linear(8, 2))
    graph = fxprune.analyze(fxprune.trace(model, torch.randn(3, 4)))
    with pytest.raises(fxprune.FxpruneError, match=r"pruned only as a last resort \(normalised over.*last_resort=True"):
        insert_gates(graph)
    assert torch.equal(insert_gates(graph, last_resort=True)(torch.ones(3, 4)), model(torch.ones(3, 4)))


def _error_of_block_gates(model: nn.Module, inputs: Any, plans: int = 3) -> float:
    """How far outputs with closed gates are from those of the model without the blocks.

    Open gates change no bit, and the FLOPs of closed ones are those of the model without the blocks.
    """
    errors = []
    graph = fxprune.analyze(fxprune.trace(model, inputs))
    assert graph.blocks
    gated = insert_gates(graph, last_resort=True, depth=True).eval()
    with torch.no_grad():
        for a, b in zip(trees.tensors(model(*inputs)), trees.tensors(gated(*inputs)), strict=True):
            assert torch.equal(a, b)
    assert remove_gates(gated).code == graph.module.code
    cost = cost_of_gates(graph, gated_groups(graph, last_resort=True), graph.blocks)
    gated, inputs = gated.double(), [x.double() for x in inputs]
    first = sum(cost.sizes)
    # All channels without some blocks; then, as in the plans, blocks and channels.
    alone = [graph.all_but(gone) for gone in (graph.blocks, *((block,) for block in graph.blocks[-4:]))]
    for alive in alone:
        alive[cost.channels[:first]] = True
    for alive in (*alone, *masks(graph, plans)):
        logits = np.where(alive[cost.channels], 1.0, -1.0)
        dagger_of(gated).set_logits(torch.from_numpy(logits))
        kept = cost.alive(logits)
        pruned = fxprune.rewrite(graph, plan_for(graph, kept)).double().eval()
        with torch.no_grad():
            expected, got = (list(trees.tensors(net(*inputs))) for net in (pruned, gated))
        errors.append(largest_error(expected, got))
        assert round(cost.fraction(logits) * cost.total) == fxprune.count_flops(pruned, tuple(inputs))
    return max(errors)


@pytest.mark.parametrize("spec", [*MODELS[:2], MODELS[3]])
def test_a_closed_gate_of_a_block_leaves_the_block_out(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    model = random_model(spec)
    assert _error_of_block_gates(model, example_inputs(model), plans=2) <= TOLERANCE


@pytest.mark.parametrize("make", [Dense, Inception])
def test_a_closed_gate_of_a_concatenated_block_closes_all_of_its_channels(make: type[nn.Module]) -> None:
    assert _error_of_block_gates(randomise(make()).float(), [image()]) <= TOLERANCE


class _Residual(nn.Module):
    """The branch ends in a BatchNorm, which is added in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.head = nn.Conv2d(6, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        branch = self.norm(self.conv(x.relu()))
        branch += x
        return self.head(branch.relu())


def _first_rows(rows: int) -> Any:
    whole = gating._numbers

    def numbers(*given: Any) -> Any:
        number, count = whole(*given)
        return number[:rows], count

    return numbers


@pytest.mark.parametrize(
    ("make", "patch"),
    [
        (_Residual, attribute(gating, "_gate_sums", lambda gates, blocks: None)),
        (Dense, attribute(gating, "_numbers", _first_rows(1))),
        # The channels of a branch that is concatenated twice have gates of two blocks.
        (Inception, attribute(gating, "_numbers", _first_rows(2))),
    ],
)
def test_gates_of_blocks_that_are_left_out_are_noticed(
    make: type[nn.Module], patch: Patch, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = randomise(make()).float()
    assert _error_of_block_gates(model, [image()]) <= TOLERANCE
    patch(monkeypatch)
    with pytest.raises(AssertionError):
        assert _error_of_block_gates(model, [image()]) <= TOLERANCE
