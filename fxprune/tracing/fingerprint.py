"""What a traced model is, apart from the values of its weights: a checkpoint recognises its model by it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import fx, nn

from fxprune.running.copies import named_tensors
from fxprune.tracing.spelling import name_of, spell

__all__ = ["Fingerprint", "fingerprint"]


@dataclass(frozen=True)
class Fingerprint:
    """An architecture.

    Attributes:
        model: the name of the model's class.
        tensors: name of each parameter and buffer -> its shape and dtype.
        ties: groups of names that are one tensor.
        operations: a digest of the traced ops, their arguments and the settings of their modules.
    """

    model: str
    tensors: Mapping[str, tuple[tuple[int, ...], str]]
    ties: tuple[tuple[str, ...], ...]
    operations: str

    def difference(self, other: Fingerprint, *, operations: bool = True) -> str:
        """The first difference of another architecture, in words; empty if they are the same.

        Args:
            other: what is compared; the dtype of its weights does not matter.
            operations: whether the ops are compared too.
        """
        missing = [name for name in self.tensors if name not in other.tensors]
        if missing:
            return f"it has no {_some(missing)}"
        misfit = self.misfit(other.tensors)
        if misfit:
            return misfit
        if self.ties != other.ties:
            untied = [tie for tie in self.ties if tie not in other.ties]
            return f"in it, {' and '.join(untied[0])} are not one tensor" if untied else "it ties other tensors"
        if operations and self.operations != other.operations:
            return "its tensors fit, but its operations or their settings differ"
        return ""

    def misfit(self, tensors: Mapping[str, torch.Tensor | tuple[tuple[int, ...], str]]) -> str:
        """The first of these tensors that the architecture has not, or has in another shape, in words; else empty."""
        for name, tensor in tensors.items():
            theirs = tuple(tensor.shape) if isinstance(tensor, torch.Tensor) else tensor[0]
            if name not in self.tensors:
                return f"it has {_some([extra for extra in tensors if extra not in self.tensors])} besides"
            shape = self.tensors[name][0]
            if shape != theirs:
                return f"{name} has shape {list(theirs)} in it, not {list(shape)}"
        return ""


def fingerprint(traced: fx.GraphModule) -> Fingerprint:
    """The architecture of a traced model."""
    tensors = named_tensors(traced)
    names: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        names.setdefault(id(tensor), []).append(name)
    return Fingerprint(
        type(traced).__name__,
        {name: (tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")) for name, tensor in tensors.items()},
        tuple(tuple(tied) for tied in names.values() if len(tied) > 1),
        _digest(traced),
    )


def _some(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{names[0]} (and {len(names) - 1} more)"


def _digest(traced: fx.GraphModule) -> str:
    number = {node: k for k, node in enumerate(traced.graph.nodes)}
    modules = dict(traced.named_modules(remove_duplicate=False))
    digest = hashlib.sha256()
    for node in traced.graph.nodes:
        target = node.target if isinstance(node.target, str) else name_of(node.target)
        settings = _settings(modules[target]) if node.op == "call_module" else ""
        line = f"{node.op} {target} {settings} {spell(node.args, number)} {spell(node.kwargs, number)}\n"
        digest.update(line.encode())
    return digest.hexdigest()


def _settings(module: nn.Module) -> str:
    """What a module prints of its settings, such as a stride or an epsilon, which its weights do not show."""
    # A container may be one node.
    inner = "".join(f" {name}{_settings(child)}" for name, child in module.named_children())
    return f"{type(module).__name__}({module.extra_repr()}){inner}"
