"""The result is a plain GraphModule: readable, of its own, and at home wherever PyTorch models go."""

from __future__ import annotations

import copy
import io
import operator
import pickle
import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import onnxruntime
import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from invariant import image, net, prunable, randomise, tokens
from refusals import small
from torch import Tensor, fx, nn

import fxprune
from fxprune import FxpruneError, rewriting
from fxprune.provenance import pruning_notes, set_pruning_notes
from fxprune.rewriting import original_graph


def make(name: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    if name == "resnet18":
        model: nn.Module = torchvision.models.resnet18(num_classes=10)
    elif name == "transformer":
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        model = nn.Sequential(nn.Linear(4, 16), encoder, nn.Linear(16, 2))
        return model.eval(), tokens(5, 4)
    else:
        model = timm.create_model(name, num_classes=10)
    return model.eval(), image(size=160 if name == "test_vit" else 32)


@pytest.fixture(scope="module", params=["resnet18", "test_vit", "test_efficientnet", "test_convnext", "transformer"])
def pair(request: pytest.FixtureRequest) -> tuple[nn.Module, torch.fx.GraphModule, Tensor]:
    model, x = make(request.param)
    return model, fxprune.prune(model, 0.5, example_inputs=x, compensate=False), x


def assert_same(expected: nn.Module, got: Callable[[Tensor], Tensor], x: Tensor, tolerance: float = 0.0) -> None:
    with torch.no_grad():
        torch.testing.assert_close(got(x), expected(x), rtol=tolerance, atol=tolerance)


def test_half_of_the_flops_are_left_and_the_invariant_holds(
    pair: tuple[nn.Module, torch.fx.GraphModule, Tensor],
) -> None:
    model, pruned, x = pair
    assert fxprune.verify(model, pruned, x) <= 1e-9
    counted = fxprune.count_flops(pruned, x)
    assert counted == fxprune.plan_of(pruned).flops <= fxprune.count_flops(model, x) / 2


def test_copies_and_pickles_are_the_same(pair: tuple[nn.Module, torch.fx.GraphModule, Tensor]) -> None:
    _, pruned, x = pair
    for other in (copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        assert_same(pruned, other, x)
        assert fxprune.plan_of(other) == fxprune.plan_of(pruned)


def test_functions_whose_own_name_is_not_where_they_live_are_pickled() -> None:
    model = net(
        lambda self, x: self.head(F.adaptive_max_pool2d(F.max_pool2d(self.a(x), 2), 1).flatten(1)),
        a=nn.Conv2d(3, 8, 3),
        head=nn.Linear(8, 2),
    )
    pruned = fxprune.prune(model.eval(), 0.5, example_inputs=image(), compensate=False)
    assert_same(pruned, pickle.loads(pickle.dumps(pruned)), image())
    assert_same(pruned, copy.deepcopy(pruned), image())


def test_operators_of_other_libraries_are_pickled() -> None:
    model = net(
        lambda self, x: self.head(torchvision.ops.deform_conv2d(self.a(x), self.offset(x), self.weight, padding=1)),
        a=nn.Conv2d(3, 8, 1),
        offset=nn.Conv2d(3, 18, 3, padding=1),
        weight=nn.Parameter(torch.randn(8, 8, 3, 3)),
        head=nn.Conv2d(8, 2, 1),
    )
    pruned = fxprune.prune(model.eval(), 0.7, example_inputs=image(), compensate=False)
    assert_same(pruned, pickle.loads(pickle.dumps(pruned)), image())


def test_torch_save_and_the_state_dict_bring_it_back(pair: tuple[nn.Module, torch.fx.GraphModule, Tensor]) -> None:
    model, pruned, x = pair
    file = io.BytesIO()
    torch.save(pruned.state_dict(), file)
    file.seek(0)
    graph = fxprune.analyze(fxprune.trace(model, x))
    again = fxprune.rewrite(graph, fxprune.plan_of(pruned))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert_same(pruned, again, x)


def test_it_compiles(pair: tuple[nn.Module, torch.fx.GraphModule, Tensor]) -> None:
    _, pruned, x = pair
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_same(pruned, torch.compile(pruned, backend="eager", fullgraph=True), x, 1e-5)


def test_it_exports_with_a_free_batch(pair: tuple[nn.Module, torch.fx.GraphModule, Tensor]) -> None:
    _, pruned, x = pair
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exported = torch.export.export(pruned, (x,), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
        assert_same(pruned, exported.module(), torch.cat([x, x * 0.5, x]), 1e-5)


def test_a_step_of_training_moves_every_weight(pair: tuple[nn.Module, torch.fx.GraphModule, Tensor]) -> None:
    _, pruned, x = pair
    trained = copy.deepcopy(pruned).train()
    trained(x).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in trained.parameters())


def test_the_original_is_untouched(pair: tuple[nn.Module, torch.fx.GraphModule, Tensor]) -> None:
    model, pruned, _ = pair
    assert list(model.state_dict()) == list(pruned.state_dict())
    mine = {p.data_ptr() for p in model.parameters()}
    assert not mine & {p.data_ptr() for p in pruned.parameters()}, "no memory is shared"


@pytest.mark.parametrize("name", ["resnet18", "test_vit"])
def test_it_runs_in_onnxruntime(name: str) -> None:
    model, x = make(name)
    pruned = fxprune.prune(model, 0.5, example_inputs=x, compensate=False)
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(pruned, (x,), dynamo=True, verbose=False)
    assert program is not None
    program.save(file)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(got, pruned(x).numpy(), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet18", "test_efficientnet"])
def test_the_whole_budget_is_the_identity_bit_for_bit(name: str) -> None:
    model, x = make(name)
    whole = fxprune.prune(model, 1.0, example_inputs=x, compensate=False)
    original = copy.deepcopy(model)
    for training in (False, True):
        outputs = []
        for candidate in (original, whole):
            candidate.train(training)
            torch.manual_seed(1)
            outputs.append(candidate(x))
        assert torch.equal(*outputs)
    assert all(
        torch.equal(a, b) for a, b in zip(original.state_dict().values(), whole.state_dict().values(), strict=True)
    )


@pytest.mark.parametrize("name", ["resnet18", "test_convnext"])
def test_what_was_pruned_is_pruned_again(name: str) -> None:
    model, x = make(name)
    once = fxprune.prune(model, 0.6, example_inputs=x, compensate=False)
    twice = fxprune.prune(once, 0.6, example_inputs=x, compensate=False)
    assert fxprune.verify(once, twice, x) <= 1e-9
    total = fxprune.count_flops(model, x)
    assert 0.34 * total < fxprune.count_flops(twice, x) == fxprune.plan_of(twice).flops <= 0.36 * total
    assert list(twice.state_dict()) == list(model.state_dict())


def test_literals_are_patched_and_the_code_stays_readable() -> None:
    model = net(lambda self, x: self.b(self.a(x).view(-1, 8 * 36)), a=nn.Conv2d(3, 8, 1), b=nn.Linear(288, 2))
    graph = fxprune.analyze(fxprune.trace(randomise(model), image().double()))
    plan = fxprune.make_plan(graph, fxprune.scores(graph), flops=0.5)
    pruned = fxprune.rewrite(graph, plan)
    kept = len(plan.kept["a.weight"][0])
    assert f"(-1, {kept * 36})" in pruned.code
    assert "288" in graph.module.code


def test_modules_say_what_they_are_now() -> None:
    model = randomise(
        nn.Sequential(
            nn.Conv2d(3, 8, 1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, groups=8),
            nn.PReLU(8),
            nn.ConvTranspose2d(8, 6, 1),
            nn.GroupNorm(3, 6),
            nn.Flatten(),
            nn.Linear(96, 4),
            nn.LayerNorm(4),
            nn.Linear(4, 2),
        )
    )
    pruned = fxprune.prune(model, 0.4, example_inputs=image().double(), compensate=False)
    for name, module in pruned.named_modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.shape[:2] == (module.out_channels, module.in_channels // module.groups), name
        elif isinstance(module, nn.ConvTranspose2d):
            assert module.weight.shape[:2] == (module.in_channels, module.out_channels // module.groups), name
        elif isinstance(module, nn.Linear):
            assert module.weight.shape == (module.out_features, module.in_features), name
        elif isinstance(module, nn.BatchNorm2d):
            assert module.weight.shape == (module.num_features,), name
        elif isinstance(module, nn.GroupNorm):
            assert module.weight.shape == (module.num_channels,), name


def test_frozen_weights_stay_frozen_and_the_mode_is_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.Dropout(), nn.Conv2d(8, 2, 1))
    model[0].weight.requires_grad_(False)
    for training in (True, False):
        pruned = fxprune.prune(model.train(training), 0.5, example_inputs=image(), compensate=False)
        assert [p.requires_grad for p in pruned.parameters()] == [False, True, True, True]
        assert pruned.training == training
        assert model.training == training


def test_half_precision_and_its_dtype_are_kept() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1)).to(torch.bfloat16)
    pruned = fxprune.prune(model, 0.5, example_inputs=image().to(torch.bfloat16), compensate=False)
    assert {p.dtype for p in pruned.parameters()} == {torch.bfloat16}
    assert pruned(image().to(torch.bfloat16)).dtype is torch.bfloat16
    assert fxprune.verify(model, pruned) <= 1e-9


def test_a_pruned_model_and_its_copies_know_their_plan_and_their_original() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), compensate=False)
    for each in (pruned, copy.deepcopy(pruned), pickle.loads(pickle.dumps(pruned))):
        notes = pruning_notes(each)
        assert notes.plan == fxprune.plan_of(pruned)
        assert notes.original.tensors["0.weight"] == ((8, 3, 1, 1), "float32")
        assert notes.compensated == ()
    set_pruning_notes(pruned, replace(pruning_notes(pruned), compensated=("ridge",)))
    assert pruning_notes(copy.deepcopy(pruned)).compensated == ("ridge",)


def test_the_graph_of_the_original_has_its_channels_and_that_of_the_pruned_model_what_is_left() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 2, 1))
    pruned = fxprune.prune(model, 0.5, example_inputs=image(), compensate=False)
    whole, left = original_graph(model, pruned), original_graph(pruned, pruned)
    assert prunable(whole) == 8
    assert prunable(left) == len(fxprune.plan_of(pruned).kept["0.weight"][0])
    assert original_graph(model, pruned, torch.zeros(1, 3, 12, 12)).flops.total == 2 * whole.flops.total


def test_a_plan_of_another_model_is_refused() -> None:
    model, other = small(), nn.Sequential(nn.Conv2d(3, 9, 3), nn.Conv2d(9, 2, 1))
    plan = fxprune.plan_of(fxprune.prune(model, 0.5, example_inputs=image()))
    graph = fxprune.analyze(fxprune.trace(other, image()))
    with pytest.raises(FxpruneError, match=r"plan (prunes|keeps|removes)"):
        fxprune.rewrite(graph, plan)


@pytest.mark.parametrize(
    ("kept", "message"),
    [
        ({"0.weight": {0: [0, 1]}, "2.weight": {1: [0, 2]}}, "tied to them are removed elsewhere"),
        ({"0.weight": {0: []}, "0.bias": {0: []}, "2.weight": {1: []}}, "without any index"),
        ({"0.weight": {0: [0, 99]}}, "keeps index 99 of 0.weight"),
        ({"0.weight": {2: [0]}}, "which this model does not have as channels|removes frozen channels"),
        ({"4.weight": {0: [0]}, "4.bias": {0: [0]}}, "removes frozen channels of 4.weight.*: model output"),
        ({"nothing": {0: [0]}}, "plan prunes nothing in dimension 0"),
    ],
)
def test_a_plan_that_does_not_hold_together_is_refused(kept: Any, message: str) -> None:
    graph = fxprune.analyze(fxprune.trace(small(), image()))
    with pytest.raises(FxpruneError, match=message):
        fxprune.rewrite(graph, fxprune.Plan(kept, 0, 0, 0))


def test_a_model_that_was_not_pruned_has_no_plan() -> None:
    with pytest.raises(FxpruneError, match=r"Conv2d has no plan: only what .* returns has one"):
        fxprune.plan_of(nn.Conv2d(3, 2, 1))
    with pytest.raises(FxpruneError, match="has no plan"):
        fxprune.verify(small(), small(), image())


def test_a_size_that_any_step_of_a_loop_needs_stays_in_all_of_them() -> None:
    graph = fx.Graph()
    x = y = graph.placeholder("x")
    x.meta["value"] = torch.zeros(2, 3)
    for step in range(4):
        needed, not_needed = graph.call_method("size", (x, 0)), graph.call_method("size", (x, 1))
        y = graph.call_function(operator.mul, (y, 2 if step == 3 else needed))
        for node, value in ((needed, 2), (not_needed, 3), (y, x.meta["value"])):
            node.meta.update(value=value, loop=(0, step))
    graph.output(y)
    rewriting._tidy(graph)
    assert [node.args for node in graph.nodes if node.target == "size"] == [(x, 0)] * 4
