"""Compensation brings a pruned model back towards what the original does."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from invariant import net, randomise
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxprune
from fxprune.compensation.compensate import Compensation, compensate
from fxprune.compensation.correction import _Layers
from fxprune.data import Batch
from fxprune.errors import CannotScoreError
from fxprune.layers.residuals import other_side
from fxprune.losses import distillation_loss
from fxprune.models import example_inputs, load_model
from fxprune.progress import silent
from fxprune.provenance import pruning_notes


def _net() -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 24, 1)),
        *(nn.BatchNorm2d(24), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 5)),
    )
    net.train()
    with torch.no_grad():
        for _ in range(20):
            net(_images(32))
    return net.eval()


def _images(count: int, seed: int | None = None) -> Tensor:
    random = None if seed is None else torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, 4, 4, generator=random)
    return nn.functional.interpolate(coarse, size=12, mode="bilinear")


def _error(model: nn.Module, pruned: nn.Module, inputs: Tensor) -> float:
    with torch.no_grad():
        return float(distillation_loss(pruned.eval()(inputs), model.eval()(inputs), 1.0))


@pytest.mark.parametrize("parts", [{}, {"moments": False}])
def test_outputs_come_closer_on_inputs_that_were_not_fitted(parts: dict[str, bool]) -> None:
    net = _net()
    pruned = fxprune.prune(net, flops=0.6, example_inputs=_images(1, 0), method="l2", compensate=False)
    before = {name: tensor.clone() for name, tensor in pruned.state_dict().items()}
    better = compensate(net, pruned, _images(64, 1), **parts)
    assert _error(net, better, _images(256, 2)) < 0.8 * _error(net, pruned, _images(256, 2))
    assert pruning_notes(better).compensated
    assert all(torch.equal(tensor, before[name]) for name, tensor in pruned.state_dict().items())


def test_moments_are_matched_and_last() -> None:
    net = _net()
    pruned = fxprune.prune(net, flops=0.5, example_inputs=_images(1, 0), method="l2", compensate=False)
    better = compensate(net, pruned, _images(64, 1), ridge=False)
    assert pruning_notes(better).compensated == ("moments",)
    assert _error(net, better, _images(256, 2)) < _error(net, pruned, _images(256, 2))
    for name in ("running_mean", "running_var"):
        assert any(
            not torch.equal(buffer, pruned.get_buffer(path))
            for path, buffer in better.named_buffers()
            if path.endswith(name)
        )


class _Block(nn.Module):
    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.a, self.b, self.between = nn.Conv2d(12, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1), between

    def forward(self, x: Tensor) -> Tensor:
        return x + self.between(self.b(self.a(x).relu()))


@pytest.mark.parametrize("between", [nn.BatchNorm2d(12), nn.Dropout(0.5)], ids=["norm", "dropout"])
def test_a_residual_branch_makes_up_for_the_other_side(between: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    blocks = [_Block(copy.deepcopy(between)) for _ in range(4)]
    head = [nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(48, 5)]
    model = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), *blocks, *head).train()
    with torch.no_grad():
        for _ in range(20):
            model(_images(32))
    model.eval()
    pruned = fxprune.prune(model, flops=0.7, example_inputs=_images(1, 0), method="l2", round_to=1, compensate=False)
    errors = []
    for find in (other_side, lambda node, modules: None):
        monkeypatch.setattr("fxprune.compensation.correction.other_side", find)
        errors.append(_error(model, compensate(model, pruned, _images(64, 1)), _images(256, 2)))
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("other", "own"),
    [(lambda x: x.size(1), lambda x: x), (lambda x: x, lambda x: x.mean((2, 3), keepdim=True))],
    ids=["a number", "a larger tensor"],
)
def test_what_is_not_of_the_same_size_is_no_other_side(
    other: Callable[[Tensor], Any], own: Callable[[Tensor], Tensor]
) -> None:
    torch.manual_seed(0)
    model = net(
        lambda self, x: self.b((other(self.d(self.c(x).relu())) + self.a(own(x))).relu()),
        a=nn.Conv2d(3, 16, 1),
        b=nn.Conv2d(16, 4, 3),
        c=nn.Conv2d(3, 16, 1),
        d=nn.Conv2d(16, 16, 1),
    )
    pruned = fxprune.prune(model, flops=0.5, example_inputs=_images(1, 0), method="l2", compensate=False)
    better = compensate(model, pruned, _images(64, 1))
    assert _error(model, better, _images(64, 2)) < _error(model, pruned, _images(64, 2))


def test_what_was_not_pruned_is_not_changed() -> None:
    net = _net()
    whole = fxprune.prune(net, flops=1.0, example_inputs=_images(1, 0), compensate=False)
    same = compensate(net, whole, _images(16, 1))
    assert all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in same.state_dict().items())


@pytest.mark.parametrize(("count", "fitted"), [(96, 36), (48, 36)])
def test_half_of_many_samples_compare_pruned_models(count: int, fitted: int) -> None:
    net = _net()
    graph = fxprune.analyze(fxprune.trace(net, _images(1, 0)))
    run = Compensation.of(graph, Batch((_images(count, 1),), {}), 0.25, 0, silent)
    coarser = run.coarser()
    assert sum(batch.size for batch in coarser.samples[0]) == fitted
    assert coarser.samples[1] is run.samples[1]
    whole = torch.cat([batch.args[0] for batch in run.samples[0]])
    taken = torch.cat([batch.args[0] for batch in coarser.samples[0]])
    assert all(any(torch.equal(image, each) for each in whole) for image in taken)


def test_a_part_that_does_harm_is_dropped() -> None:
    net = _net()
    pruned = fxprune.prune(net, flops=0.6, example_inputs=_images(1, 0), compensate=False)
    fitted = compensate(net, pruned, _images(64, 1))
    assert _error(net, fitted, _images(64, 1)) <= _error(net, pruned, _images(64, 1))


@pytest.mark.parametrize("spec", ["timm:test_vit", "timm:test_nfnet", "torchvision:shufflenet_v2_x0_5"])
def test_models_of_other_kinds_keep_their_structure(spec: str) -> None:
    pytest.importorskip(spec.partition(":")[0])
    torch.manual_seed(0)
    model = randomise(load_model(spec)).float()
    (example,) = example_inputs(model)
    pruned = fxprune.prune(model, flops=0.7, example_inputs=example, compensate=False)
    batch = torch.cat([example, example.flip(-1), 0.5 * example, example.flip(-2)])
    better = compensate(model, pruned, batch)
    assert better.code == pruned.code
    shapes = {name: tensor.shape for name, tensor in pruned.state_dict().items()}
    assert {name: tensor.shape for name, tensor in better.state_dict().items()} == shapes
    assert all(tensor.isfinite().all() for tensor in better.state_dict().values())


def test_a_holdout_that_is_no_part_is_refused() -> None:
    net = _net()
    pruned = fxprune.prune(net, flops=0.6, example_inputs=_images(1, 0), compensate=False)
    untouched = copy.deepcopy(pruned.state_dict())
    with pytest.raises(fxprune.FxpruneError, match=r"holdout \(=1\)"):
        compensate(net, pruned, _images(8, 1), holdout=1)
    assert all(torch.equal(tensor, untouched[name]) for name, tensor in pruned.state_dict().items())


@pytest.mark.parametrize("layer", [nn.Linear(6, 6), nn.Conv1d(6, 6, 1)], ids=["linear", "convolution"])
def test_layers_that_mix_tokens_are_fitted_on_the_channels_that_are_left(layer: nn.Module) -> None:
    turned = isinstance(layer, nn.Linear)
    torch.manual_seed(0)
    model = net(
        lambda self, x: self.b((self.t(self.a(x).mT).mT if turned else self.t(self.a(x))).relu()),
        a=nn.Linear(4, 12),
        t=layer,
        b=nn.Linear(12, 2),
    )
    inputs = torch.randn(64, 6, 4)
    pruned = fxprune.prune(model, flops=0.6, example_inputs=inputs[:1], method="l2", compensate=False)
    better = compensate(model, pruned, inputs)
    # What is left of the channels is the same in both, so that there is nothing to repair before the last layer.
    assert torch.equal(better.t.weight, model.t.weight)
    assert _error(model, better, torch.randn(64, 6, 4)) < _error(model, pruned, torch.randn(64, 6, 4))


def _pruned() -> tuple[nn.Module, fxprune.TracedModule]:
    net = _net()
    return net, fxprune.prune(net, flops=0.6, example_inputs=_images(1, 0), method="l2", compensate=False)


def test_the_order_and_the_names_of_older_versions_are_refused_with_the_call_to_make() -> None:
    net, pruned = _pruned()
    call = re.escape("fxprune.compensate(original, pruned, data)")
    with pytest.raises(fxprune.FxpruneError, match=f"the original comes first, call {call}"):
        compensate(pruned, net, _images(8, 1))
    with pytest.raises(fxprune.FxpruneError, match=f"call {call}"):
        compensate(net, pruned, batch=_images(8, 1))


def test_data_is_a_loader_a_list_or_a_batch_and_all_of_it_is_used() -> None:
    net, pruned = _pruned()
    images = _images(48, 1)
    whole = compensate(net, pruned, images).state_dict()
    for data in ([images[:20], images[20:]], Batch((images,), {}), DataLoader(TensorDataset(images), batch_size=16)):
        state = compensate(net, pruned, data).state_dict()
        assert all(torch.equal(tensor, whole[name]) for name, tensor in state.items())


def test_progress_is_a_function_or_a_bool() -> None:
    net, pruned = _pruned()
    steps: list[tuple[Any, ...]] = []
    shown = compensate(net, pruned, _images(32, 1), progress=lambda *step: steps.append(step[:3])).state_dict()
    nodes = len(pruned.graph.nodes)
    assert steps[:nodes] == [("compensate", k + 1, nodes) for k in range(nodes)]
    for progress in (True, False):
        state = compensate(net, pruned, _images(32, 1), progress=progress).state_dict()
        assert all(torch.equal(tensor, shown[name]) for name, tensor in state.items())


def test_samples_that_the_model_does_not_take_are_named() -> None:
    net, pruned = _pruned()
    with pytest.raises(CannotScoreError, match=r"does not run on data of shapes \(4, 2, 12, 12\)"):
        compensate(fxprune.analyze(fxprune.trace(net, _images(1, 0))), pruned, torch.zeros(4, 2, 12, 12))


class _Residual(nn.Module):
    """A residual branch of two linear layers, as modules or written as products."""

    def __init__(self, write: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        first, second = nn.Linear(8, 24), nn.Linear(24, 8)
        self.write = write
        if write is F.linear:
            self.a, self.b = first, second
            return
        self.aw, self.ab = nn.Parameter(first.weight.detach().T.clone()), nn.Parameter(first.bias.detach().clone())
        self.bw, self.bb = nn.Parameter(second.weight.detach().T.clone()), nn.Parameter(second.bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.write is F.linear:
            return x + self.b(self.a(x).relu())
        return x + self.write(self.write(x, self.aw, self.ab).relu(), self.bw, self.bb)


@pytest.mark.parametrize(
    "write", [lambda x, w, b: x @ w + b, lambda x, w, b: b + torch.matmul(x, w), lambda x, w, b: torch.addmm(b, x, w)]
)
def test_products_are_scored_and_compensated_as_linear_layers_are(write: Any) -> None:
    x = torch.randn(96, 8, generator=torch.Generator().manual_seed(3))
    plain, written = (
        fxprune.prune(_Residual(kind), 0.5, example_inputs=x[:2], data=[x], depth=False, progress=False)
        for kind in (F.linear, write)
    )
    with torch.no_grad():
        torch.testing.assert_close(written(x), plain(x), rtol=1e-3, atol=1e-3)
    bare = fxprune.prune(_Residual(write), 0.5, example_inputs=x[:2], data=[x], compensate=False, progress=False)
    assert _error(_Residual(write), written, x) < 0.8 * _error(_Residual(write), bare, x)


class _Table(nn.Module):
    """A product with a table that the model makes itself, and which its `state_dict` has or has not."""

    def __init__(self, persistent: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(8, 24), nn.Linear(6, 4)
        self.register_buffer("table", torch.randn(24, 6), persistent=persistent)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.a(x).relu() @ self.table)  # type: ignore[no-any-return]


@pytest.mark.parametrize("persistent", [True, False])
def test_what_the_state_dict_has_not_is_not_fitted(persistent: bool) -> None:
    """A file would not have it either."""
    traced = fxprune.trace(_Table(persistent).eval(), torch.randn(2, 8))
    [product] = [node for node in traced.graph.nodes if node.name == "matmul"]
    assert (_Layers(traced).fitted(product) is not None) is persistent
