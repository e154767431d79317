"""The test oracle: for any plan, the pruned model equals the original with the removed channels set to zero."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx, nn

import fxprune
from fxprune.planning.plan import plan_keeping
from fxprune.running import trees
from fxprune.verification import TOLERANCE, largest_error, mask

__all__ = [
    "NotSaved",
    "check_invariant",
    "check_training",
    "image",
    "masks",
    "net",
    "parameter",
    "plan_for",
    "prunable",
    "randomise",
    "tokens",
]


def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
    """The model in float64 and eval mode with random parameters and float buffers; zeros and ones would hide errors."""
    generator = torch.Generator().manual_seed(seed)
    model.double().eval()
    model._apply(lambda tensor: tensor.cdouble() if tensor.is_complex() else tensor)
    with torch.no_grad():
        for tensor in model.parameters():
            dtype = tensor.dtype if tensor.is_complex() else torch.float32
            tensor.copy_(torch.randn(tensor.shape, generator=generator, dtype=dtype) * 0.3 + 0.2)
        for tensor in model.buffers():
            if tensor.is_floating_point():
                tensor.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)
    return model


def prunable(graph: fxprune.ChannelGraph) -> int:
    """The number of channels that can be pruned."""
    return sum(len(group) for group in graph.groups)


def masks(graph: fxprune.ChannelGraph, plans: int, seed: int = 0) -> Iterator[npt.NDArray[np.bool_]]:
    """Random plans, as masks of the channels and blocks that stay: at least one channel of each group.

    If there are blocks, the second plan leaves out all, and the others some.
    """
    random, of_blocks = np.random.default_rng(seed), np.random.default_rng(seed)
    for k in range(plans):
        alive = np.ones(graph.num_channels, dtype=bool)
        for group in graph.groups:
            # The first plan keeps one channel of each group: a width of 1 breaks broadcasting and squeezing.
            kept = 1 if k == 0 else random.integers(1, len(group) + 1)
            alive[group.channels] = False
            alive[random.choice(group.channels, kept, replace=False)] = True
        gone = of_blocks.random(len(graph.blocks)) < (1.0 if k == 1 else 0.5)
        alive &= graph.all_but(block for block, goes in zip(graph.blocks, gone, strict=True) if goes)
        yield alive


def plan_for(graph: fxprune.ChannelGraph, alive: npt.NDArray[np.bool_]) -> fxprune.Plan:
    """The plan that keeps these channels and blocks."""
    return plan_keeping(graph, alive)


def to_double(inputs: Any) -> Any:
    """The inputs in float64."""
    return trees.map_tensors(lambda t: t.double() if t.is_floating_point() else t, inputs)


def doubled(inputs: Any) -> Any:
    """The inputs at twice their batch size; the second half differs from the first."""
    return trees.map_tensors(lambda t: torch.cat([t, t.flip(-1) * 0.7 if t.is_floating_point() else t]), inputs)


def check_invariant(
    model: nn.Module,
    inputs: Any,
    channels: int | None = None,
    *,
    plans: int = 2,
    other_batch: bool = True,
    seed: int = 0,
) -> fxprune.ChannelGraph:
    """Prune a model by random plans and check everything that must hold for each result.

    Args:
        model: any module; it gets random weights.
        inputs: a tensor, a tuple or a dict.
        channels: how many channels must be prunable; otherwise a rule that freezes everything would pass.
        plans: how many random plans.
        other_batch: whether the first dimension of the inputs is the batch, so that it may be twice as large.
        seed: of the weights and plans.
    """
    randomise(model, seed)
    inputs = to_double(inputs)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    traced = fxprune.trace(model, inputs)
    code = traced.code
    graph = fxprune.analyze(traced)
    assert graph.flops.total == fxprune.count_flops(model, inputs), "the polynomial is not what fvcore counts"
    for alive in masks(graph, plans, seed):
        _check_plan(model, graph, alive, inputs, other_batch)
    assert traced.code == code, "the traced model was changed"
    assert list(model.state_dict()) == list(state)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, state[name]), f"{name} of the original was changed"
    if channels is not None:
        assert prunable(graph) == channels, f"{prunable(graph)} channels are prunable, expected {channels}\n{graph}"
    return graph


def _check_plan(
    model: nn.Module, graph: fxprune.ChannelGraph, alive: npt.NDArray[np.bool_], inputs: Any, other_batch: bool
) -> fx.GraphModule:
    plan = plan_for(graph, alive)
    pruned = fxprune.rewrite(graph, plan)
    error = fxprune.verify(model, pruned, inputs)
    assert error <= TOLERANCE, f"the pruned model is off by {error:.1e}\n{graph}\n{pruned.code}"
    counted = fxprune.count_flops(pruned, inputs)
    assert plan.flops == counted, f"predicted {plan.flops} FLOPs, counted {counted}\n{graph}\n{pruned.code}"
    assert list(pruned.state_dict()) == [name for name in model.state_dict() if name not in plan.gone]
    for name, tensor in pruned.state_dict().items():
        shape = list(model.state_dict()[name].shape)
        for d, kept in plan.kept.get(name, {}).items():
            shape[d] = len(kept)
        assert list(tensor.shape) == shape, name
    if other_batch:
        error = fxprune.verify(model, pruned, doubled(inputs))
        assert error <= TOLERANCE, f"at twice the batch the pruned model is off by {error:.1e}\n{pruned.code}"
    return pruned


def check_training(model: nn.Module, inputs: Any, flops: float = 0.5) -> fx.GraphModule:
    """Prune a model without dropout and check that a step of training is that of the zero-masked original.

    Its outputs and its buffers afterwards are compared, at the batch of the inputs and at twice that.

    Returns:
        The pruned model.
    """
    randomise(model)
    inputs = to_double(inputs)
    pruned = fxprune.prune(model, flops, example_inputs=inputs, method="random", compensate=False)
    assert fxprune.verify(model, pruned, inputs) <= TOLERANCE
    plan = fxprune.plan_of(pruned)
    for given in (inputs, doubled(inputs)):
        results = []
        for made in (mask(model, plan), copy.deepcopy(pruned)):
            torch.manual_seed(0)
            with torch.enable_grad():
                outputs = made.train()(*given) if isinstance(given, tuple) else made.train()(given)
            results.append(([x.detach() for x in trees.tensors(outputs)], dict(made.named_buffers())))
        (expected, before), (got, after) = results
        assert largest_error(expected, got) <= TOLERANCE
        for name, tensor in after.items():
            wanted = before.get(name, tensor)
            for d, kept in plan.kept.get(name, {}).items():
                wanted = wanted.index_select(d, torch.as_tensor(kept))
            torch.testing.assert_close(tensor, wanted, rtol=1e-9, atol=1e-9)
    return pruned


@dataclass(frozen=True)
class NotSaved:
    """A buffer that is not in the `state_dict`."""

    tensor: Tensor


def net(forward: Any, **parts: Any) -> nn.Module:
    """A module with the given `forward` and parts: modules, parameters, and tensors, which become buffers."""
    made: nn.Module = type("Net", (nn.Module,), {"forward": forward})()
    for name, part in parts.items():
        if isinstance(part, NotSaved):
            made.register_buffer(name, part.tensor, persistent=False)
        elif isinstance(part, Tensor) and not isinstance(part, nn.Parameter):
            made.register_buffer(name, part)
        else:
            setattr(made, name, part)
    return made


def parameter(*shape: int) -> nn.Parameter:
    """A parameter; its values do not matter."""
    return nn.Parameter(torch.zeros(shape))


def image(channels: int = 3, size: int = 6, batch: int = 2) -> Tensor:
    """A batch of images."""
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def tokens(length: int = 5, width: int = 4, batch: int = 2) -> Tensor:
    """A batch of sequences."""
    return torch.randn(batch, length, width, generator=torch.Generator().manual_seed(1))
