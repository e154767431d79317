"""Models on a GPU: all works there, with data from main memory, and what comes back is there too.

Without a GPU the same is tried on a device that only checks that nothing meets what lies elsewhere.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from other_device import other_device
from torch import Tensor, nn

import fxprune
from fxprune.compensation.samples import make_samples
from fxprune.errors import FxpruneError
from fxprune.provenance import pruning_notes
from fxprune.running.devices import check_values, device_of, on_device_of

WITHOUT_DATA = ("relevance", "l1", "l2", "uniform", "batchnorm", "fpgm", "random")
FROM_DATA = ("surgeon", "fisher", "taylor", "dagger")


@pytest.fixture(params=["emulated", "cuda"])
def device(request: pytest.FixtureRequest) -> Iterator[torch.device]:
    if request.param == "emulated":
        with other_device() as found:
            yield found
    elif torch.cuda.is_available():
        yield torch.device("cuda", 0)
    else:
        pytest.skip("needs a GPU")


class Net(nn.Module):
    """Constants, a buffer, a residual, a grouped convolution, attention, a norm of tokens, an op without a rule."""

    mean: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.full((1, 3, 1, 1), 0.1))
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.branch = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, groups=4), nn.BatchNorm2d(16), nn.SiLU())
        self.widen = nn.Conv2d(16, 24, 2, stride=2)
        self.norm = nn.LayerNorm(24)
        self.attention = nn.MultiheadAttention(24, 4, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(24, 40), nn.GELU(), nn.Linear(40, 24))
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem((x - self.mean) / torch.tensor([0.5, 0.6, 0.7], device=x.device).view(1, 3, 1, 1))
        x = x + self.branch(x) * torch.linspace(0, 1, x.shape[-1], device=x.device)
        x = torch.celu(self.widen(x)).flatten(2).transpose(1, 2)
        y = self.norm(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        x = x + self.mlp(F.layer_norm(x, (24,)))
        return self.head(x.mean(1))


def trained_on_chance(device: torch.device) -> nn.Module:
    torch.manual_seed(0)
    net = Net()
    net(torch.randn(32, 3, 8, 8))
    return net.eval().to(device)


def batches() -> list[tuple[Tensor, Tensor]]:
    torch.manual_seed(1)
    return [(torch.randn(16, 3, 8, 8), torch.arange(16) % 5) for _ in range(3)]


def is_on(model: nn.Module, device: torch.device) -> bool:
    return {tensor.device for tensor in (*model.parameters(), *model.buffers())} == {device}


def test_tensors_go_where_the_model_is_if_that_is_one_place_with_values(device: torch.device) -> None:
    net = trained_on_chance(device)
    assert device_of(net) == device
    moved = on_device_of(net, ({"x": torch.zeros(2)}, [3]))
    assert moved[0]["x"].device == device
    assert moved[1] == [3]
    for elsewhere in (nn.Linear(2, 2, device="meta"), nn.ReLU(), nn.ModuleList([net, nn.Linear(2, 2, device="meta")])):
        assert on_device_of(elsewhere, torch.zeros(2)).device.type == "cpu"
    assert device_of(nn.ReLU()) is None


@pytest.mark.parametrize("method", FROM_DATA)
@pytest.mark.parametrize("labelled", [True, False], ids=["labels", "no labels"])
def test_pruned_on_data_from_main_memory(method: str, labelled: bool, device: torch.device) -> None:
    net = trained_on_chance(device)
    data = batches() if labelled else [inputs for inputs, _ in batches()]
    pruned = fxprune.prune(net, 0.6, data=data, method=method, progress=False)
    assert is_on(pruned, device)
    assert is_on(net, device)
    assert fxprune.verify(net, pruned) <= 1e-9
    inputs = batches()[0][0].to(device)
    assert pruned(inputs).device == device


@pytest.mark.parametrize("method", WITHOUT_DATA)
def test_scored_as_in_main_memory(method: str, device: torch.device) -> None:
    net = trained_on_chance(device)
    here = fxprune.analyze(fxprune.trace(trained_on_chance(torch.device("cpu")), torch.zeros(1, 3, 8, 8)))
    there = fxprune.analyze(fxprune.trace(net, torch.zeros(1, 3, 8, 8, device=device)))
    assert len(here.groups) == len(there.groups)
    expected, found = (torch.from_numpy(fxprune.scores(graph, method)) for graph in (here, there))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("method", ["surgeon", "fisher", "taylor"])
def test_scored_on_data_as_in_main_memory(method: str, device: torch.device) -> None:
    graphs = [
        fxprune.analyze(fxprune.trace(trained_on_chance(where), torch.zeros(1, 3, 8, 8, device=where)))
        for where in (torch.device("cpu"), device)
    ]
    expected, found = (torch.from_numpy(fxprune.scores(graph, method, data=batches())) for graph in graphs)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-4 * float(expected.max()))


def test_pruned_without_data(device: torch.device) -> None:
    net = trained_on_chance(device)
    pruned = fxprune.prune(net, 0.6, example_inputs=torch.zeros(1, 3, 8, 8, device=device), progress=False)
    assert pruning_notes(pruned).compensated
    assert is_on(pruned, device)
    graph = fxprune.analyze(fxprune.trace(net, torch.zeros(1, 3, 8, 8, device=device)))
    made = make_samples(graph)
    assert made is not None
    assert {tensor.device for tensor in made.batch.inputs} == {device}


def test_the_example_may_lie_in_main_memory(device: torch.device) -> None:
    net = trained_on_chance(device)
    pruned = fxprune.prune(net, 0.6, example_inputs=torch.zeros(1, 3, 8, 8), method="l2", compensate=False)
    assert is_on(pruned, device)
    assert fxprune.verify(net, pruned) <= 1e-9
    if device.type == "cuda":
        # The emulation is in the way of the jit's trace, by which fvcore counts.
        assert fxprune.count_flops(pruned, torch.zeros(1, 3, 8, 8)) == fxprune.plan_of(pruned).flops


def test_gates_are_bit_for_bit_the_model(device: torch.device) -> None:
    net = trained_on_chance(device)
    graph = fxprune.analyze(fxprune.trace(net, torch.zeros(1, 3, 8, 8, device=device)))
    gated = fxprune.insert_gates(graph)
    inputs = batches()[0][0].to(device)
    assert torch.equal(gated(inputs).cpu(), graph.module(inputs).cpu())
    assert is_on(fxprune.remove_gates(gated), device)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_budget_of_time_on_a_gpu() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(*(nn.Conv2d(64 if k else 3, 64, 3, padding=1) for k in range(6))).eval().cuda()
    inputs = torch.randn(8, 3, 96, 96, device="cuda")
    with warnings.catch_warnings():
        # Another process may be on the GPU.
        warnings.simplefilter("ignore", fxprune.FxpruneWarning)
        pruned = fxprune.prune(net, latency=0.8, example_inputs=inputs, method="l2", compensate=False, progress=False)
    whole, small = fxprune.measure_latency([net, pruned], inputs)
    assert small.seconds < whole.seconds
    assert fxprune.verify(net, pruned) <= 1e-9


def test_fine_tuned_saved_and_loaded(device: torch.device, tmp_path: Path) -> None:
    net = trained_on_chance(device)
    pruned = fxprune.prune(net, 0.6, data=batches(), method="l2", progress=False)
    tuned = fxprune.finetune(pruned, batches(), teacher=net, epochs=1, progress=False)
    assert is_on(tuned, device)
    fxprune.save(tuned, tmp_path / "small.safetensors")
    loaded = fxprune.load(tmp_path / "small.safetensors", original=Net().eval())
    inputs = batches()[0][0]
    here = copy.deepcopy(tuned).to("cpu").eval()(inputs)
    torch.testing.assert_close(loaded.eval()(inputs), here)
    report = fxprune.report(pruned, original=net, measure=device.type == "cuda")
    assert str(fxprune.plan_of(pruned).flops) in str(report.to_dict())


def small_net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 2, 1)).eval()


def on_meta(which: str) -> nn.Module:
    """The net without values: of all that it has, of a parameter, or of a buffer."""
    net = small_net()
    if which == "weight":
        net[3].weight = nn.Parameter(net[3].weight.to("meta"))
    elif which == "buffer":
        net[1].running_mean = net[1].running_mean.to("meta")
    return net.to("meta") if which == "all" else net


EXAMPLE = torch.zeros(2, 3, 8, 8)


@pytest.mark.parametrize("which", ["all", "weight", "buffer", "nothing"])
@pytest.mark.parametrize("on", ["cpu", "meta"])
def test_a_model_on_the_meta_device_is_analysed_counted_and_cut_at_random(which: str, on: str) -> None:
    model, x = on_meta(which), EXAMPLE.to(on)
    expected = fxprune.count_flops(small_net(), EXAMPLE)
    assert fxprune.count_flops(model, x) == expected
    assert fxprune.analyze(fxprune.trace(model, x)).flops.total == expected
    small = fxprune.prune(model, 0.5, example_inputs=x, method="random", compensate=False, progress=False)
    plan = fxprune.plan_of(small)
    assert fxprune.count_flops(small, x) == plan.flops <= expected // 2
    assert [name for name, tensor in small.named_parameters() if tensor.is_meta] == [
        name for name, tensor in model.named_parameters() if tensor.is_meta
    ]
    restored = fxprune.rewrite(fxprune.analyze(fxprune.trace(small_net(), EXAMPLE)), plan)
    assert fxprune.verify(small_net(), restored) <= 1e-9


@pytest.mark.parametrize("which", ["all", "weight", "buffer"])
def test_what_needs_values_says_so_of_a_model_on_the_meta_device(which: str, tmp_path: Path) -> None:
    net, model, data = small_net(), on_meta(which), [EXAMPLE]
    graph = fxprune.analyze(fxprune.trace(model, EXAMPLE))
    small = fxprune.prune(net, 0.5, example_inputs=EXAMPLE, compensate=False, progress=False)
    empty = fxprune.rewrite(graph, fxprune.plan_of(small))
    calls: dict[str, Callable[[], object]] = {
        "prune": lambda: fxprune.prune(model, 0.5, example_inputs=EXAMPLE),
        "prune by l2": lambda: fxprune.prune(model, 0.5, example_inputs=EXAMPLE, method="l2", compensate=False),
        "prune on data": lambda: fxprune.prune(model, 0.5, data=data),
        "prune to a time": lambda: fxprune.prune(model, latency=0.5, example_inputs=EXAMPLE),
        **{
            f"scores by {method}": lambda method=method: fxprune.scores(graph, method, data=data)  # type: ignore[misc]
            for method in (*WITHOUT_DATA, *FROM_DATA)
            if method not in ("random", "dagger")
        },
        "learn_gates": lambda: fxprune.learn_gates(graph, data, progress=False),
        "verify": lambda: fxprune.verify(model, small),
        "verify of an empty one": lambda: fxprune.verify(net, empty),
        "compensate": lambda: fxprune.compensate(model, small, data),
        "compensate an empty one": lambda: fxprune.compensate(net, empty, data),
        "restore_class": lambda: fxprune.restore_class(net, empty),
        "report": lambda: fxprune.report(small, original=model),
        "finetune": lambda: fxprune.finetune(empty, data, teacher=net),
        "finetune after a teacher": lambda: fxprune.finetune(small, data, teacher=model),
        "save": lambda: fxprune.save(empty, tmp_path / "small.safetensors"),
        "export": lambda: fxprune.export(empty, tmp_path / "small.pt2"),
        "measure_latency": lambda: fxprune.measure_latency(empty),
    }
    for call in calls.values():
        with pytest.raises(FxpruneError, match=r"Sequential has \S+ (and \d+ more tensors )?on the meta device"):
            call()
    assert fxprune.report(small, original=model, measure=False).flops.after == fxprune.plan_of(small).flops


def test_the_first_of_the_tensors_without_values_is_named() -> None:
    check_values("this", small_net(), nn.ReLU())
    with pytest.raises(FxpruneError, match=r"Sequential has 3\.weight on the meta device, without .* that this needs"):
        check_values("this", small_net(), on_meta("weight"))
    with pytest.raises(FxpruneError, match=r"Sequential has 0\.weight and 8 more tensors on"):
        check_values("this", on_meta("all"))
