"""The pruned network as an object of the model's own class."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError


class Net(nn.Module):
    """With a method that a training script calls, a depthwise layer and a weight that is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.norm = nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.first = nn.Conv2d(16, 16, 1)
        self.second = nn.Conv2d(16, 16, 1)
        self.second.weight = self.first.weight
        self.head = nn.Linear(16, 5)

    def features(self, x: Tensor) -> Tensor:
        x = self.depthwise(self.norm(self.stem(x)).relu())
        return self.second(self.first(x).relu()).relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3)))

    def loss(self, x: Tensor, labels: Tensor) -> Tensor:
        return nn.functional.cross_entropy(self(x), labels)


class Halves(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both = nn.Conv2d(3, 16, 3)
        self.part = nn.Conv2d(8, 24, 1)
        self.head = nn.Conv2d(32, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.both(x).relu().chunk(2, dim=1)
        return self.head(torch.cat([self.part(left).relu(), right], dim=1))


class OverChannels(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x).mean((2, 3))) + self.norm(self.stem(x)).mean((1, 2, 3))[:, None]


def _pruned(net: nn.Module, **options: object) -> torch.fx.GraphModule:
    settings = {"flops": 0.5, "method": "random", "compensate": False, "progress": False, **options}
    return fxprune.prune(net, example_inputs=torch.zeros(1, 3, 8, 8), **settings)


def _first_go_first(graph: fxprune.ChannelGraph) -> np.ndarray:
    return np.arange(graph.num_channels, dtype=float)


def test_the_class_its_methods_and_the_modes_are_the_models_own() -> None:
    net = Net().eval()
    net.norm.train()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    pruned = _pruned(net)
    own = fxprune.restore_class(net, pruned)
    assert type(own) is Net
    assert [module.training for module in own.modules()] == [module.training for module in net.modules()]
    x = torch.randn(4, 3, 8, 8)
    assert torch.allclose(own.eval()(x), pruned.eval()(x), atol=1e-6)
    own.loss(x, torch.tensor([0, 1, 2, 3])).backward()
    assert own.stem.out_channels == own.stem.weight.shape[0] == own.depthwise.groups < 16
    assert own.second.weight is own.first.weight
    assert fxprune.count_flops(own, x[:1]) == fxprune.plan_of(pruned).flops
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_weights_are_those_of_the_pruned_model_as_it_is_now_and_not_shared_with_it() -> None:
    net = Net().eval()
    pruned = _pruned(net).eval()
    with torch.no_grad():
        pruned.get_parameter("stem.weight").mul_(2)
    own = fxprune.restore_class(net, pruned)
    x = torch.randn(2, 3, 8, 8)
    wanted = pruned(x)
    assert torch.allclose(own(x), wanted, atol=1e-6)
    with torch.no_grad():
        own.head.weight.zero_()
    assert torch.equal(pruned(x), wanted)


def test_a_forward_that_supposes_widths_is_refused_with_its_place_and_works_with_these_left_whole() -> None:
    net = Halves().eval()
    with pytest.raises(FxpruneError, match=r"Halves does not run .*test_restoring\.py:\d+.*part\(left\).*ignore="):
        fxprune.restore_class(net, _pruned(net, method=_first_go_first))
    pruned = _pruned(net, flops=0.8, method=_first_go_first, ignore="both")
    assert type(fxprune.restore_class(net, pruned)) is Halves


def test_a_forward_that_runs_and_gives_something_else_is_refused() -> None:
    net = OverChannels().eval()
    with pytest.raises(FxpruneError, match=r"OverChannels with the pruned weights differs from the pruned graph by"):
        fxprune.restore_class(net, _pruned(net))


def test_another_model_than_was_pruned_is_refused() -> None:
    with pytest.raises(FxpruneError, match=r"^Halves has no \S+, which was pruned: give the model that was pruned$"):
        fxprune.restore_class(Halves(), _pruned(Net().eval()))


def test_inputs_that_do_not_fit_are_refused() -> None:
    net = Net().eval()
    with pytest.raises(FxpruneError, match="the pruned graph does not run on these inputs"):
        fxprune.restore_class(net, _pruned(net), torch.zeros(1, 4, 8, 8))


def test_what_has_no_plan_is_refused() -> None:
    with pytest.raises(FxpruneError, match="plan"):
        fxprune.restore_class(Net(), Net())


def test_the_order_of_older_versions_is_refused_with_the_call() -> None:
    net = Net().eval()
    call = r"call restore_class\(original, pruned, example_inputs=None\)$"
    with pytest.raises(
        FxpruneError, match=rf"original was pruned and pruned was not: the original comes first, {call}"
    ):
        fxprune.restore_class(_pruned(net), net)
    with pytest.raises(FxpruneError, match=call):
        fxprune.restore_class(pruned=_pruned(net), model=net)
