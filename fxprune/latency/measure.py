"""How long models take on this machine."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import overload

import torch
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.running import trees
from fxprune.running.batch import Inputs
from fxprune.running.calls import Call, batch_size_of, with_batch
from fxprune.running.copies import copy_module, parameters_and_buffers
from fxprune.running.devices import check_values
from fxprune.running.eval_mode import in_eval
from fxprune.running.randomness import preserve_rng_state
from fxprune.tracing.notes import call_of

__all__ = ["Latency", "Run", "check_settings", "inference_on", "measure_latency", "without_collection"]


@dataclass(frozen=True)
class Latency:
    """How long a model takes, and how that was measured.

    Attributes:
        seconds: the median of one call.
        spread: the interquartile range, in seconds.
        repeats: the number of timed calls.
        warmup: the number of calls before them that were not timed.
        batch_size: samples per call; None for inputs without a first dimension.
        threads: the number of threads that torch computed with.
        device: such as "cpu" or "cuda:0 (NVIDIA H100 80GB HBM3)".
        dtype: of the weights.
        memory_format: "contiguous" or "channels_last", of weights and inputs.
    """

    seconds: float
    spread: float
    repeats: int
    warmup: int
    batch_size: int | None
    threads: int
    device: str
    dtype: str
    memory_format: str

    def __str__(self) -> str:
        batch = "" if self.batch_size is None else f"batch {self.batch_size}, "
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}"
        how = f"{batch}{self.device}, {threads}, {self.dtype}, {self.memory_format}"
        spread = f"interquartile range {self.spread * 1e3:.2g} ms"
        return f"{self.seconds * 1e3:.3g} ms ({spread}, {self.repeats} calls; {how})"


@overload
def measure_latency(
    model: nn.Module, example_inputs: Inputs | None = None, *, batch_size: int | None = None,
    threads: int | None = None, device: str | torch.device | None = None, warmup: int = 5, repeats: int = 30,
) -> Latency: ...  # fmt: skip


@overload
def measure_latency(
    model: Sequence[nn.Module], example_inputs: Inputs | None = None, *, batch_size: int | None = None,
    threads: int | None = None, device: str | torch.device | None = None, warmup: int = 5, repeats: int = 30,
) -> tuple[Latency, ...]: ...  # fmt: skip


def measure_latency(
    model: nn.Module | Sequence[nn.Module],
    example_inputs: Inputs | None = None,
    *,
    batch_size: int | None = None,
    threads: int | None = None,
    device: str | torch.device | None = None,
    warmup: int = 5,
    repeats: int = 30,
) -> Latency | tuple[Latency, ...]:
    """Time the forward pass of a model, or of several that take turns.

    A machine that is warm, shared or saving power changes its speed from minute to minute: compare only what was
    measured in one call, ``measure_latency([model, pruned])``. The models run in eval mode without gradients; then
    mode, buffers, inputs, random states and the number of threads are as before. Floating-point inputs get the dtype of
    the weights, and images the memory format of the convolutions.

    Args:
        model: one model or a sequence of them. They are not changed.
        example_inputs: a tensor, a tuple of arguments or a dict of keyword arguments, the same for all models; default
            as for `fxprune.trace`.
        batch_size: repeat or shorten the inputs to this number of samples; default: as they are.
        threads: for torch to compute with; default: as set.
        device: where to measure; default: where the model is. On another device a copy is measured.
        warmup: calls of each model before the timed ones.
        repeats: timed calls of each model.

    Returns:
        A `Latency`, or a tuple of them for a sequence.

    Raises:
        FxpruneError: an argument is out of range, the device is not there, or the model fails on the inputs.
    """
    check_settings(repeats, warmup, threads, batch_size)
    models = [model] if isinstance(model, nn.Module) else list(model)
    if not models or not all(isinstance(each, nn.Module) for each in models):
        raise FxpruneError(f"model (={model!r:.60}) must be a module or a sequence of modules")
    with inference_on(threads), ExitStack() as stack:
        runs = [Run.of(each, example_inputs, batch_size, device, stack) for each in models]
        for run in runs:
            run.warm_up(warmup)
        stack.enter_context(without_collection())
        for turn in range(repeats):
            # There and back, so that no model always runs after the same other one.
            for run in runs if turn % 2 else reversed(runs):
                run.time()
        measured = tuple(run.latency(warmup) for run in runs)
    return measured[0] if isinstance(model, nn.Module) else measured


@dataclass(frozen=True, eq=False)
class Run:
    """One model's calls.

    Attributes:
        model: on the device, in eval.
        call: its arguments, on the device.
        device: where it is.
        dtype: of the weights.
        channels_last: whether images are in channels-last memory format.
        wait: returns when the device has done its work.
        times: seconds of the timed calls.
    """

    model: nn.Module
    call: Call
    device: torch.device
    dtype: torch.dtype
    channels_last: bool
    wait: Callable[[], object]
    times: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        model: nn.Module,
        inputs: Inputs | None,
        batch_size: int | None,
        device: str | torch.device | None,
        stack: ExitStack,
    ) -> Run:
        """Move a model and its inputs to the device; the model is in eval until `stack` is left."""
        check_values("measuring time", model)
        call = call_of(model, inputs)
        if batch_size is not None:
            size = batch_size_of(call)
            if size is None:
                raise FxpruneError(f"batch_size (={batch_size}) given, but the inputs have no first dimension")
            call = with_batch(call, size, batch_size)
        tensors = list(parameters_and_buffers(model))
        here = tensors[0].device if tensors else torch.device("cpu")
        there = here if device is None else _device(device)
        if there.type == "meta":
            raise FxpruneError("device (='meta') computes nothing, and nothing can be timed on it: give another")
        if there != here:
            with torch.inference_mode(False):
                model = copy_module(model).to(there)
        stack.enter_context(in_eval(model))
        weights = [parameter for parameter in model.parameters() if parameter.is_floating_point()]
        dtype = weights[0].dtype if weights else torch.get_default_dtype()
        images = [weight for weight in weights if weight.dim() == 4] or trees.tensors(call)
        channels_last = any(map(_is_channels_last, images))

        def place(tensor: Tensor) -> Tensor:
            tensor = tensor.to(there, dtype) if tensor.is_floating_point() else tensor.to(there)
            return tensor.to(memory_format=torch.channels_last) if channels_last and tensor.dim() == 4 else tensor

        wait = (lambda: None) if there.type == "cpu" else torch.get_device_module(there).synchronize
        return cls(model, trees.map_tensors(place, call), there, dtype, channels_last, wait)

    def warm_up(self, calls: int) -> None:
        """Make calls that are not timed."""
        for _ in range(calls):
            self._seconds()

    def time(self) -> None:
        """Time one call."""
        self.times.append(self._seconds())

    def fresh_call(self) -> Call:
        """A copy of the arguments: the model may write into them."""
        return trees.map_tensors(torch.clone, self.call)

    def _seconds(self) -> float:
        args, kwargs = self.fresh_call()
        try:
            self.wait()
            start = time.perf_counter()
            self.model(*args, **kwargs)
            self.wait()
            return time.perf_counter() - start
        except Exception as error:
            shapes = [list(x.shape) for x in trees.tensors(self.call)]
            raise FxpruneError(
                f"{type(self.model).__name__} fails on inputs of shapes {shapes}: {type(error).__name__}: {error}"
            ) from error

    def latency(self, warmup: int) -> Latency:
        """The result of the timed calls."""
        quartiles = (
            statistics.quantiles(self.times, n=4, method="inclusive") if len(self.times) > 1 else [0.0, 0.0, 0.0]
        )
        device = str(self.device)
        if self.device.type == "cuda":
            device = f"cuda:{self.device.index or 0} ({torch.cuda.get_device_name(self.device)})"
        return Latency(
            statistics.median(self.times),
            quartiles[2] - quartiles[0],
            len(self.times),
            warmup,
            batch_size_of(self.call),
            torch.get_num_threads(),
            device,
            str(self.dtype).removeprefix("torch."),
            "channels_last" if self.channels_last else "contiguous",
        )


def check_settings(repeats: int, warmup: int, threads: int | None, batch_size: int | None) -> None:
    """Check that the settings of a measurement are in range."""
    least = {"repeats": (repeats, 1), "warmup": (warmup, 0), "threads": (threads, 1), "batch_size": (batch_size, 1)}
    for name, (value, lowest) in least.items():
        if value is not None and value < lowest:
            raise FxpruneError(f"{name} (={value}) must be at least {lowest}")


def _device(device: str | torch.device) -> torch.device:
    try:
        # A tensor's device has a number, which "cuda" lacks.
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError) as error:
        raise FxpruneError(f"device (={str(device)!r}) cannot be used: {str(error).splitlines()[0]}") from error


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


@contextmanager
def inference_on(threads: int | None) -> Iterator[None]:
    """Within it, torch is in inference mode and computes with this number of threads; None leaves the number as it is.

    Afterwards the number of threads and the states of random generators are as before.
    """
    before = torch.get_num_threads()
    try:
        if threads is not None:
            torch.set_num_threads(threads)
        with torch.inference_mode(), preserve_rng_state():
            yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def without_collection() -> Iterator[None]:
    """Within it, Python collects no garbage, which would be timed along with what it interrupts."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
