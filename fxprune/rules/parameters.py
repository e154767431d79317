"""Ids of parameters and buffers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import nn

from fxprune.channels import Dim, Ids, IdTable, Labels, is_labelled, size_of
from fxprune.tracing.constants import is_constant

__all__ = ["Parameters"]


class Parameters:
    """Ids of the dimensions of parameters and buffers; names that are tied to one tensor share its ids.

    Args:
        module: the traced model.
        ids: where new ids come from.
        written: as the attribute, of an earlier call of the model.

    Attributes:
        written: the names of what the model writes into: in which dimensions removed channels are zero after that.
    """

    def __init__(self, module: nn.Module, ids: IdTable, written: Mapping[str, tuple[bool, ...]] | None = None) -> None:
        self._ids = ids
        self._tensors: dict[str, torch.Tensor] = {}
        self._canonical: dict[str, str] = {}
        first: dict[int, str] = {}
        for named in (module.named_parameters(remove_duplicate=False), module.named_buffers(remove_duplicate=False)):
            for name, tensor in named:
                self._tensors[name] = tensor
                self._canonical[name] = first.setdefault(id(tensor), name)
        self._dims: dict[str, list[Dim]] = {}
        self._whole: set[tuple[str, int]] = set()
        self.written = dict(written or {})

    def __contains__(self, name: str) -> bool:
        return name in self._tensors

    def canonical(self, name: str) -> str:
        """The first name of the tensor that a name stands for."""
        return self._canonical[name]

    def tensor(self, name: str) -> torch.Tensor:
        """The parameter or buffer of a name."""
        return self._tensors[name]

    def labels(self, name: str, dims: Iterable[int] | None = None) -> Labels:
        """The labels of a parameter or buffer.

        Args:
            name: its name in the model.
            dims: the dimensions that get ids; default: all. A dimension of size 1 or 0 never gets any. The other
                dimensions stay whole, also where the parameter is read elsewhere.
        """
        tensor, name = self._tensors[name], self._canonical[name]
        known = self._dims.setdefault(name, list(tensor.shape))
        given = set(range(tensor.dim()) if dims is None else dims)
        for d in range(tensor.dim()):
            if d in given and not is_labelled(known[d]) and size_of(known[d]) > 1:
                known[d] = self._ids.fresh(size_of(known[d]))
            if d not in given:
                self._whole.add((name, d))
            if (name, d) in self._whole:
                self._ids.freeze(known[d], f"{name} is needed whole in dimension {d}")
        # The original has no such parameter as a constant of the tracer, so zero-masking leaves it as it is.
        zero = self.written.get(name, (not is_constant(name),) * len(known))
        return Labels(tuple(known), zero)

    def write(self, name: str, zero: tuple[bool, ...]) -> None:
        """The model writes into a buffer: from here on removed channels are zero only in the dimensions `zero` says."""
        self.written[self._canonical[name]] = zero

    def of_buffers(self) -> Iterator[Ids]:
        """The labelled dimensions of buffers and constants."""
        for name, dims in self._dims.items():
            if not isinstance(self._tensors[name], nn.Parameter):
                yield from (dim for dim in dims if not isinstance(dim, int))

    def by_name(self) -> dict[str, list[Dim]]:
        """The dimensions of all parameters and buffers that were read, by each of their names."""
        return {name: self._dims[main] for name, main in self._canonical.items() if main in self._dims}
