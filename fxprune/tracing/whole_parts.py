"""FLOPs of parts that stay whole since their code follows the values of the input: those for the example.

Such a part may do nothing for zeros, as experts do nothing without tokens, so that its node tells nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import fx, nn

from fxprune.errors import FxpruneError
from fxprune.flops import count_flops
from fxprune.running.calls import Call
from fxprune.running.copies import copy_module, parameters_and_buffers
from fxprune.tracing.traced_module import copy_to_run

__all__ = ["FLOPS_OF_WHOLE", "note_flops"]

# Among the values that were read of a model: the FLOPs of its parts that stay whole.
FLOPS_OF_WHOLE = "FLOPs of parts that stay whole"


def note_flops(
    traced: fx.GraphModule, paths: Iterable[str], call: Call, earlier: Mapping[str, Any]
) -> dict[str, list[int]]:
    """Keep in the `meta` of the nodes of these parts how many FLOPs they have for the example.

    Args:
        traced: the traced model, whose graph is changed.
        paths: of its parts.
        call: of the example.
        earlier: values that an earlier trace has read of the model.

    Returns:
        The FLOPs of each call of each part; none where the model has no values, or does not run.
    """
    counts = earlier.get(FLOPS_OF_WHOLE)
    if counts is None:
        counts = _count(traced, {*paths}, call)
    for path, each in counts.items():
        nodes = [node for node in traced.graph.nodes if node.op == "call_module" and node.target == path]
        for node, flops in zip(nodes, each, strict=False):
            node.meta["flops"] = flops
    return dict(counts)


def _count(traced: fx.GraphModule, paths: set[str], call: Call) -> dict[str, list[int]]:
    if not paths or any(tensor.is_meta for tensor in parameters_and_buffers(traced)):
        return {}
    model, counts = copy_to_run(traced).eval(), {path: list[int]() for path in paths}
    args, kwargs = call
    with ExitStack() as hooks:
        for path, each in counts.items():

            def note(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any], each: list[int] = each) -> None:
                each.append(count_flops(_WithCall(copy_module(module, hooks=False), named), given))

            hooks.callback(model.get_submodule(path).register_forward_pre_hook(note, with_kwargs=True).remove)
        try:
            with torch.no_grad():
                model(*args, **kwargs)
        except FxpruneError:
            return {}
    return counts


class _WithCall(nn.Module):
    """A module with the named arguments of its call."""

    def __init__(self, module: nn.Module, named: dict[str, Any]) -> None:
        super().__init__()
        self.module, self.named = module, named

    def forward(self, *given: Any) -> Any:
        return self.module(*given, **self.named)
