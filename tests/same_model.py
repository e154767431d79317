"""A traced model against the original: the same outputs and the same state."""

from __future__ import annotations

import copy
from typing import Any

import timm
import torch
from torch import fx, nn

__all__ = ["assert_same", "make", "targets"]


def make(name: str, **settings: Any) -> nn.Module:
    model: nn.Module = timm.create_model(name, **settings).eval()
    for module in model.modules():
        # Otherwise layer scales of 1e-6 and zero-initialised norms would hide most of the model.
        for parameter in module.parameters(recurse=False):
            nn.init.normal_(parameter, 0.5 if parameter.ndim == 1 else 0.0, 0.1)
    return model


def assert_same(model: nn.Module, traced: nn.Module, *args: Any, **kwargs: Any) -> None:
    """Bit for bit: outputs in eval, outputs and buffers after one step of training."""
    assert list(traced.state_dict()) == list(model.state_dict())
    model, traced = copy.deepcopy(model), copy.deepcopy(traced)
    for training in (False, True):
        outputs = []
        for candidate in (model, traced):
            candidate.train(training)
            torch.manual_seed(1)
            with torch.no_grad():
                outputs.append(candidate(*args, **kwargs))
        torch.testing.assert_close(outputs[1], outputs[0], rtol=0, atol=0, equal_nan=True)
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, traced.state_dict()[name]), name


def targets(traced: fx.GraphModule, op: str = "call_function") -> list[Any]:
    return [node.target for node in traced.graph.nodes if node.op == op]
