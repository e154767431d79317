"""The tensors of a checkpoint: what may be written of them, and how they are read back to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.files.record import KEY, Record, damaged
from fxprune.running.copies import named_tensors

__all__ = ["Checkpoint", "opened", "put_tensors", "read_tensors", "storable", "unusual_strides"]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that is open for reading.

    Attributes:
        path: where it is.
        record: what it says of its model.
        file: the open safetensors file.
    """

    path: Path
    record: Record
    file: Any

    def stored(self, name: str) -> str:
        """The name that a tensor is stored under."""
        return self.record.aliases.get(name, name)

    def tensor(self, name: str) -> Tensor:
        """A tensor of the pruned model."""
        tensor: Tensor = self.file.get_tensor(self.stored(name))
        return tensor

    def shape(self, name: str) -> list[int]:
        """Its shape, without reading it."""
        shape: list[int] = self.file.get_slice(self.stored(name)).get_shape()
        return shape


@contextmanager
def opened(path: Path) -> Iterator[Checkpoint]:
    """The checkpoint, open.

    Raises:
        FxpruneError: there is no such file, it is not a safetensors file (the message says if it is a pickle), or it
            has no record that can be read.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(KEY)
            if text is None:
                raise FxpruneError(
                    f"{str(path)!r} is a safetensors file, but not one that fxprune.save wrote: load it with "
                    "safetensors.torch.load_file, or prune the model anew"
                )
            yield Checkpoint(path, Record.read(path, text), file)
    except FileNotFoundError:
        raise FxpruneError(f"there is no file {str(path)!r}") from None
    except (OSError, SafetensorError) as error:
        if _is_pickle(path):
            raise FxpruneError(
                f"{str(path)!r} is a pickle, as torch.save writes, whatever its name: fxprune never unpickles, since "
                "that can run any code. Load it yourself if you trust it, and write it with fxprune.save"
            ) from error
        raise FxpruneError(
            f"{str(path)!r} cannot be read as safetensors: {error}; it is cut short, damaged, or something else"
        ) from error


def _is_pickle(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError:
        return False
    return head.startswith((b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"))


def read_tensors(checkpoint: Checkpoint, pruned: nn.Module) -> dict[str, Tensor]:
    """The tensors of a file by the names that they are stored under.

    Raises:
        FxpruneError: they are not those that the model has.
    """
    path, wanted, there = str(checkpoint.path), named_tensors(pruned), set(checkpoint.file.keys())
    names = {name: checkpoint.stored(name) for name in wanted}
    missing = [name for name, stored in names.items() if stored not in there]
    if missing:
        raise FxpruneError(f"{path!r} has no tensor {missing[0]} (nor {len(missing) - 1} others): it is damaged")
    extra = sorted(there - set(names.values()))
    if extra:
        raise FxpruneError(f"{path!r} has a tensor {extra[0]}, which the model does not: it is damaged")
    read: dict[str, Tensor] = {}
    for name, stored in names.items():
        shape, expected = checkpoint.shape(name), list(wanted[name].shape)
        if shape != expected:
            raise FxpruneError(f"{path!r}: {stored} has shape {shape}, but its plan makes {expected}")
        if stored not in read:
            tensor, strides = checkpoint.tensor(name), checkpoint.record.strides.get(stored)
            try:
                # Into memory of its own: the file's is not aligned, and the last bits of a product depend on that.
                read[stored] = tensor.clone() if strides is None else _with_strides(tensor, strides)
            except ValueError as error:
                raise damaged(checkpoint.path, f"{stored}: {error}") from error
    return read


def put_tensors(checkpoint: Checkpoint, pruned: nn.Module, read: Mapping[str, Tensor]) -> None:
    """Give the model the tensors that were read, tied as they were."""
    parameters: dict[str, nn.Parameter] = {}
    frozen = set(checkpoint.record.frozen)
    for prefix, module in pruned.named_modules(remove_duplicate=False):
        for entries in (module._parameters, module._buffers):
            for key, old in entries.items():
                if old is None:
                    continue
                stored = checkpoint.stored(f"{prefix}.{key}" if prefix else key)
                value = read[stored]
                if isinstance(old, nn.Parameter):
                    learns = stored not in frozen
                    if learns and not (value.is_floating_point() or value.is_complex()):
                        raise FxpruneError(
                            f"{str(checkpoint.path)!r}: {stored} is {value.dtype}, which cannot be trained"
                        )
                    value = parameters.setdefault(stored, nn.Parameter(value, learns))
                # Not into the dict: recurrent modules keep lists of their weights besides.
                setattr(module, key, value)


def storable(pruned: nn.Module) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a model, each under its first name, and the first name of each further one.

    Raises:
        FxpruneError: the model holds what a file of tensors cannot.
    """
    tensors = named_tensors(pruned)
    for name in pruned.state_dict():
        if name not in tensors:
            raise FxpruneError(f"{name} in the state_dict is no parameter or buffer: a checkpoint cannot hold it")
    first: dict[int, str] = {}
    for name, tensor in tensors.items():
        first.setdefault(id(tensor), name)
        if tensor.device.type == "meta" or tensor.layout != torch.strided:
            raise FxpruneError(f"{name} is on {tensor.device} with layout {tensor.layout}: it cannot be saved")
    aliases = {name: first[id(tensor)] for name, tensor in tensors.items() if first[id(tensor)] != name}
    return {name: tensors[name].detach() for name in first.values()}, aliases


def unusual_strides(tensor: Tensor) -> list[int] | None:
    """The strides of a tensor that fills its memory in another order than its dimensions stand in."""
    strides = tensor.stride()
    if strides == torch.empty(tensor.shape, device="meta").stride():
        return None
    return list(strides) if torch.empty_like(tensor, device="meta").stride() == strides else None


def _with_strides(tensor: Tensor, strides: list[int]) -> Tensor:
    """A copy in memory of its own.

    Raises:
        ValueError: the strides leave gaps or overlap.
    """
    extent = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    if min(strides) < 0 or max(strides) >= 2**40 or extent != tensor.numel():
        raise ValueError(f"{strides} are no strides of a tensor of shape {list(tensor.shape)}")
    return torch.empty_strided(tensor.shape, strides, dtype=tensor.dtype).copy_(tensor)
