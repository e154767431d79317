"""What is measured is said, the models take turns, and everything is afterwards as before."""

from __future__ import annotations

import gc
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxprune
from fxprune import FxpruneError, Latency, measure_latency


class Recorder(nn.Module):
    """Writes down its calls."""

    def __init__(self, name: str, calls: list[Any], width: int = 4) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.conv = nn.Conv2d(3, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, self.training, torch.is_grad_enabled(), torch.get_num_threads(), x))
        return self.conv(x)


def test_a_model_is_measured_in_eval_and_left_as_it_was() -> None:
    calls: list[Any] = []
    model = nn.Sequential(Recorder("a", calls), nn.BatchNorm2d(4))
    model[1].eval()
    threads, collecting = torch.get_num_threads(), gc.isenabled()
    state = {name: value.clone() for name, value in model.state_dict().items()}
    latency = measure_latency(model, torch.zeros(2, 3, 8, 8), threads=1, warmup=2, repeats=5)
    assert isinstance(latency, Latency)
    assert 0 < latency.seconds < 1
    assert latency.spread >= 0
    assert (latency.repeats, latency.warmup, latency.batch_size, latency.threads) == (5, 2, 2, 1)
    assert (latency.device, latency.dtype, latency.memory_format) == ("cpu", "float32", "contiguous")
    assert len(calls) == 7
    assert {call[1:4] for call in calls} == {(False, False, 1)}
    assert (torch.get_num_threads(), gc.isenabled(), torch.is_grad_enabled()) == (threads, collecting, True)
    assert [module.training for module in model.modules()] == [True, True, True, False]
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert "ms (interquartile range" in str(latency)
    assert "5 calls; batch 2, cpu, 1 thread, float32, contiguous" in str(latency)


def test_several_models_take_turns() -> None:
    calls: list[Any] = []
    models = [Recorder(name, calls) for name in "abc"]
    result = measure_latency(models, torch.zeros(1, 3, 2, 2), warmup=1, repeats=2)
    assert isinstance(result, tuple)
    assert [each.repeats for each in result] == [2, 2, 2]
    assert "".join(call[0] for call in calls) == "abc" + "cba" + "abc"


def test_the_larger_model_takes_longer() -> None:
    small, large = nn.Linear(64, 64), nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(4)))
    large[0] = nn.Linear(64, 1024)
    first, second = measure_latency([small, large], torch.zeros(16, 64), threads=1)
    assert first.seconds < second.seconds


def test_inputs_follow_batch_dtype_and_memory_format() -> None:
    calls: list[Any] = []
    model = Recorder("a", calls).to(torch.bfloat16, memory_format=torch.channels_last)
    model.conv = nn.Conv2d(3, 4, 3).to(torch.bfloat16, memory_format=torch.channels_last)
    latency = measure_latency(model, torch.ones(2, 3, 8, 8), batch_size=5, warmup=0, repeats=1)
    x = calls[0][-1]
    assert (tuple(x.shape), x.dtype) == ((5, 3, 8, 8), torch.bfloat16)
    assert x.is_contiguous(memory_format=torch.channels_last)
    assert (latency.batch_size, latency.dtype, latency.memory_format, latency.spread) == (
        5,
        "bfloat16",
        "channels_last",
        0.0,
    )


def test_a_pruned_model_knows_its_inputs() -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3))
    pruned = fxprune.prune(model, example_inputs=torch.ones(3, 3, 8, 8), compensate=False)
    assert measure_latency(pruned, repeats=1).batch_size == 3
    assert measure_latency(pruned, batch_size=1, repeats=1).batch_size == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"repeats": 0}, r"repeats \(=0\) must be at least 1"),
        ({"warmup": -1}, r"warmup \(=-1\) must be at least 0"),
        ({"threads": 0}, r"threads \(=0\) must be at least 1"),
        ({"batch_size": 0}, r"batch_size \(=0\) must be at least 1"),
        ({"device": "cuda:99"}, r"device \(='cuda:99'\) cannot be used"),
        ({"device": "no such"}, r"device \(='no such'\) cannot be used"),
        ({"example_inputs": torch.ones(1, 2)}, r"Linear fails on inputs of shapes \[\[1, 2\]\]: RuntimeError"),
        (
            {"example_inputs": torch.ones(1, 2), "warmup": 0},
            r"Linear fails on inputs of shapes \[\[1, 2\]\]: RuntimeError",
        ),
        ({"example_inputs": {"input": torch.tensor(1.0)}, "batch_size": 2}, "the inputs have no first dimension"),
        ({"device": "meta"}, "nothing can be timed on it"),
        ({"model": []}, "must be a module or a sequence of modules"),
    ],
)
def test_what_cannot_be_measured_is_named(settings: dict[str, Any], message: str) -> None:
    threads = torch.get_num_threads()
    with pytest.raises(FxpruneError, match=message):
        measure_latency(**{"model": nn.Linear(3, 3), "example_inputs": torch.ones(1, 3), **settings})
    assert torch.get_num_threads() == threads


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_copy_is_measured_on_another_device() -> None:
    model = nn.Linear(3, 3)
    latency = measure_latency(model, torch.ones(1, 3), device="cuda")
    assert latency.device.startswith("cuda:0 (")
    assert model.weight.device.type == "cpu"


def test_a_model_without_weights_is_not_measured() -> None:
    with torch.device("meta"):
        model = nn.Conv2d(3, 4, 1)
    for device in (None, "cpu"):
        with pytest.raises(FxpruneError, match=r"Conv2d has weight and 1 more .*measuring time needs"):
            measure_latency(model, torch.zeros(1, 3, 8, 8), device=device)


class Meddler(nn.Module):
    """Changes its buffers and its inputs, in eval too, and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 1)
        self.register_buffer("in_place", torch.zeros(2))
        self.register_buffer("replaced", torch.zeros(2))

    def forward(self, x: Tensor, shift: Tensor) -> Tensor:
        self.in_place += 1
        self.replaced = self.replaced + 1
        # After two calls on the same tensor there is no such channel.
        shift.add_(1)
        x.mul_(2)
        return self.conv(x)[:, shift] + torch.randn(1, device=x.device)


@pytest.mark.parametrize("graph", [False, True], ids=["measure_latency", "time_channels"])
def test_buffers_inputs_and_random_states_are_left_as_they_were(graph: bool) -> None:
    model, inputs = Meddler(), (torch.ones(1, 3, 4, 4), torch.tensor([1]))
    measured: Any = fxprune.analyze(fxprune.trace(model, inputs, copy=False)) if graph else model
    buffers, state = dict(model.named_buffers()), torch.get_rng_state()
    versions = [parameter._version for parameter in model.parameters()]
    (fxprune.time_channels if graph else measure_latency)(measured, inputs, warmup=2, repeats=2)
    assert all(new is buffers[name] and not new.any() for name, new in model.named_buffers())
    assert [parameter._version for parameter in model.parameters()] == versions
    assert torch.equal(torch.get_rng_state(), state)
    assert (inputs[0] == 1).all()
    assert inputs[1].item() == 1
    assert not any(value.is_inference() for value in model.state_dict().values())
