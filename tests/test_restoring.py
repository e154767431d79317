"""The pruned network as an object of the model's own class."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from invariant import image, masks, plan_for, randomise
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


class Leaky(nn.Module):
    """The activation after the sum changes what is left; the branch has another stride than the block's input."""

    def __init__(self, stride: int = 1) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(8, 12, 3, stride, padding=1), nn.BatchNorm2d(12)
        self.b, self.project = nn.Conv2d(12, 8, 1), nn.Conv2d(8, 8, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        out = self.b(self.norm(self.a(x)).relu())
        out += self.project(x)
        return nn.functional.leaky_relu(out)


class Decoder(nn.Module):
    """What a block gives is made larger before it is concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Sequential(nn.Conv2d(8, 8, 2, 2), nn.ReLU(), nn.Conv2d(8, 6, 1))
        self.head = nn.Conv2d(14, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        grown = nn.functional.interpolate(self.b(x), size=x.shape[2:])
        return self.head(torch.cat([self.a(x), grown], 1).relu())


class Mixed(nn.Module):
    """A block of which parts that are concatenated are blocks themselves."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = (nn.Sequential(nn.Conv2d(8, 4, 1), nn.ReLU()) for _ in range(3))
        self.join = nn.Conv2d(12, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.leaky_relu(x + self.join(torch.cat([self.a(x), self.b(x), self.c(x)], 1)))


class Pairs(nn.Module):
    """The branch wants its channels in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        assert y.shape[1] % 2 == 0, "one channel makes no pair"
        return nn.functional.elu(x + self.b(y.relu()))


@pytest.mark.parametrize("make", [Leaky, lambda: Leaky(2), Decoder, Mixed])
def test_a_block_that_is_no_module_stays_narrow_while_channels_go(make: Callable[[], nn.Module]) -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), make(), make(), nn.Conv2d(8, 2, 1)))
    x = image(size=8).double()
    graph = fxprune.analyze(fxprune.trace(net, x))
    assert len(graph.blocks) >= 2
    for alive in masks(graph, 4):
        small = fxprune.rewrite(graph, plan_for(graph, alive))
        with torch.no_grad():
            for parameter in small.parameters():
                parameter.mul_(1.1)
        own = fxprune.restore_class(net, small)
        assert type(own[1]) is type(net[1])
        for mode in (False, True):
            torch.testing.assert_close(own.train(mode)(2 * x), small.train(mode)(2 * x), rtol=1e-9, atol=1e-12)
        count, least = (sum(p.numel() for p in each.parameters()) for each in (own, small))
        assert least <= count <= least + 150


def test_a_block_that_needs_its_width_keeps_it() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Pairs(), nn.Conv2d(8, 2, 1)))
    graph = fxprune.analyze(fxprune.trace(net, image().double()))
    alive = graph.all_but(graph.blocks)
    stream = next(group for group in graph.groups if len(group.dimensions) > 4)
    alive[stream.channels[:3]] = False
    small = fxprune.rewrite(graph, plan_for(graph, alive))
    own = fxprune.restore_class(net, small)
    assert own[1].a.weight.shape == (8, 5, 1, 1)
    torch.testing.assert_close(own(image().double()), small(image().double()), rtol=1e-9, atol=1e-12)


def test_a_model_that_was_pruned_in_stages_does_without_its_blocks() -> None:
    net = randomise(nn.Sequential(nn.Conv2d(3, 8, 1), Leaky(), Leaky(), Decoder(), nn.Conv2d(8, 2, 1)))
    x = image(size=8).double()
    small = net
    for _ in range(2):
        graph = fxprune.analyze(fxprune.trace(small, x))
        alive = next(masks(graph, 1)) & graph.all_but(graph.blocks[:1])
        small = fxprune.rewrite(graph, plan_for(graph, alive))
    assert len(fxprune.plan_of(small).removed) >= 2
    torch.testing.assert_close(fxprune.restore_class(net, small)(x), small(x), rtol=1e-9, atol=1e-12)
