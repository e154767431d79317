"""The recorded graph, the modules that it calls, all that has state, and the model's attributes, put together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn

from fxprune.running.copies import DeepcopyTensorsWith, copy_module, parameters_and_buffers
from fxprune.tracing.attributes import plain_attributes
from fxprune.tracing.graph_builder import GraphBuilder
from fxprune.tracing.library_modules import is_library_module
from fxprune.tracing.traced_module import TracedModule

__all__ = ["assemble"]


def assemble(model: nn.Module, builder: GraphBuilder, convert: Callable[[Tensor], Tensor]) -> TracedModule:
    """The traced model: it has the parameters, buffers and plain attributes of `model`, under the same names.

    Args:
        model: the original; not changed.
        builder: of its graph.
        convert: what becomes of a tensor: the same one, or a copy.
    """
    memo: dict[int, Any] = {id(tensor): convert(tensor) for tensor in parameters_and_buffers(model)}
    paths = {str(node.target) for node in builder.graph.nodes if node.op == "call_module"}
    called = {id(model.get_submodule(path)) for path in paths - builder.added_modules.keys()}
    made: dict[int, nn.Module | None] = {}

    def copy_of(module: nn.Module) -> nn.Module | None:
        """A module with its state; None for one that has no state and is not called."""
        if id(module) not in made:
            if id(module) in called or (module is not model and is_library_module(module)):
                needed = id(module) in called or any(True for _ in parameters_and_buffers(module))
                with DeepcopyTensorsWith(convert):
                    made[id(module)] = copy_module(module, memo, hooks=False) if needed else None
            else:
                made[id(module)] = container_of(module)
        return made[id(module)]

    def container_of(module: nn.Module) -> nn.Module | None:
        container = nn.Module()
        container.training = module.training
        container._non_persistent_buffers_set = set(module._non_persistent_buffers_set)
        for name, parameter in module._parameters.items():
            container._parameters[name] = None if parameter is None else memo[id(parameter)]
        for name, buffer in module._buffers.items():
            container._buffers[name] = None if buffer is None else memo[id(buffer)]
        for name, child in module._modules.items():
            part = None if child is None else copy_of(child)
            if part is not None:
                container._modules[name] = part
        empty = not (container._modules or container._parameters or container._buffers)
        return None if empty and module is not model else container

    root = cast(nn.Module, copy_of(model))
    for name, tensor in builder.constants.items():
        root.register_buffer(name, convert(tensor), persistent=False)
    for path, module in builder.added_modules.items():
        _install(root, path, module, model)
    traced = TracedModule.assemble(root, builder.graph, type(model).__name__)
    tables = traced._parameters.keys() | traced._buffers.keys() | traced._modules.keys()
    vars(traced).update({name: value for name, value in plain_attributes(model).items() if name not in tables})
    return traced


def _install(root: nn.Module, path: str, module: nn.Module, model: nn.Module) -> None:
    """Put a module that the graph has in addition at its path, in the mode of the module that it is in."""
    parent, original = root, model
    *prefix, name = path.split(".")
    for part in prefix:
        original = cast(nn.Module, original._modules[part])
        if part not in parent._modules:
            parent._modules[part] = nn.Module()
            parent._modules[part].training = original.training  # type: ignore[union-attr]
        parent = cast(nn.Module, parent._modules[part])
    module.train(parent.training)
    parent._modules[name] = module
