"""What forward asks of autograd, beside computing: hooks on gradients, frozen parameters, gradients of earlier steps.

A graph has none of it. What changes nothing but what a caller sees (`retain_grad`) is passed over; the rest is said.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.recorder import Recorder, SpecialCall
from fxprune.tracing.spelling import first_few
from fxprune.tracing.user_code import asked_by_model

__all__ = ["GRADIENTS_DIFFER", "GRADIENT_CALLS", "backward_hooks_are_lost"]

# How a remark starts that becomes a warning.
GRADIENTS_DIFFER = "Gradients in training are not those of the model"


def _register_hook(recorder: Recorder, func: Any, tensor: Tensor, hook: Any) -> RemovableHandle:
    _note(recorder, f"puts a hook on the gradient of a tensor (`{func.__name__}`), which the graph has not. Let an "
          "autograd.Function change the gradient in its place")  # fmt: skip
    return RemovableHandle(OrderedDict())


def _requires_grad_(recorder: Recorder, func: Any, tensor: Tensor, requires_grad: bool = True) -> Tensor:
    if isinstance(tensor, nn.Parameter) and tensor.requires_grad != requires_grad:
        what = "thaws" if requires_grad else "freezes"
        _note(recorder, f"{what} a parameter, which the graph does not. Set its `requires_grad` before the model is "
              "trained")  # fmt: skip
    return tensor.requires_grad_(requires_grad)


def _set_requires_grad(recorder: Recorder, func: Any, tensor: Tensor, requires_grad: bool) -> None:
    _requires_grad_(recorder, func, tensor, requires_grad)


def _retain_grad(recorder: Recorder, func: Any, tensor: Tensor) -> None:
    """For who looks at `tensor.grad` afterwards."""


def _grad(recorder: Recorder, func: Any, tensor: Tensor) -> Tensor | None:
    if isinstance(tensor, nn.Parameter) and asked_by_model():
        _note(recorder, "reads the gradient of a parameter from an earlier step, which the graph takes for None")
    return func(tensor)  # type: ignore[no-any-return]


def _note(recorder: Recorder, what: str) -> None:
    recorder.builder.remarks.append(f"{GRADIENTS_DIFFER}: forward in {recorder.scopes.described} {what}.")


GRADIENT_CALLS: dict[Any, SpecialCall] = {
    Tensor.register_hook: _register_hook,
    Tensor.register_post_accumulate_grad_hook: _register_hook,
    Tensor.requires_grad_: _requires_grad_,
    vars(torch._C.TensorBase)["requires_grad"].__set__: _set_requires_grad,
    Tensor.retain_grad: _retain_grad,
    vars(torch._C.TensorBase)["grad"].__get__: _grad,
}


def backward_hooks_are_lost(builder: GraphBuilder) -> list[str]:
    """The remark on modules with hooks on their gradients, where the graph has what they compute and not their call."""
    called = {str(node.target) for node in builder.graph.nodes if node.op == "call_module"}
    lost = [
        f"`{path or type(builder.root).__name__}`"
        for path, module in builder.root.named_modules()
        if path not in called and (module._backward_hooks or module._backward_pre_hooks)
    ]
    remark = (
        f"{GRADIENTS_DIFFER}: the backward hooks of {first_few(lost, 3)} are not in the graph, which has what these "
        "modules compute. Register them on layers, or name the modules in `trace(..., leaves=...)`."
    )
    return [remark] if lost else []
