"""The tensors of a checkpoint: what may be written of them, and how they are read back to the bit."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fxprune.errors import FxpruneError
from fxprune.files.record import Record
from fxprune.running.copies import named_tensors

__all__ = [
    "opened", "put_tensors", "read_tensors", "refuse_what_is_no_tensor", "unshared", "unusual_strides",
]  # fmt: skip


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The file, open.

    Raises:
        FxpruneError: there is none, or it is no safetensors file; a pickle is told as one.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file
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


def read_tensors(path: Path, record: Record, pruned: nn.Module, file: Any) -> dict[str, Tensor]:
    """The file's tensors, if they are those that the model has."""
    wanted, there = named_tensors(pruned), set(file.keys())
    names = {name: record.aliases.get(name, name) for name in wanted}
    missing = [name for name, stored in names.items() if stored not in there]
    if missing:
        raise FxpruneError(f"{str(path)!r} has no tensor {missing[0]} (nor {len(missing) - 1} others): it is damaged")
    extra = sorted(there - set(names.values()))
    if extra:
        raise FxpruneError(f"{str(path)!r} has a tensor {extra[0]}, which the model does not: it is damaged")
    for name, stored in names.items():
        shape, expected = file.get_slice(stored).get_shape(), list(wanted[name].shape)
        if shape != expected:
            raise FxpruneError(f"{str(path)!r}: {stored} has shape {shape}, but its plan makes {expected}")
    read = {}
    for stored in set(names.values()):
        tensor, strides = file.get_tensor(stored), record.strides.get(stored)
        try:
            # Into memory of its own: the file's is not aligned, and the last bits of a product depend on that.
            read[stored] = tensor.clone() if strides is None else _with_strides(tensor, strides)
        except ValueError as error:
            raise FxpruneError(f"{str(path)!r}: its record is damaged: {stored}: {error}") from error
    return read


def put_tensors(path: Path, record: Record, pruned: nn.Module, read: Mapping[str, Tensor]) -> None:
    """Give the model the tensors that were read, tied as they were."""
    parameters: dict[str, nn.Parameter] = {}
    for prefix, module in pruned.named_modules(remove_duplicate=False):
        for entries in (module._parameters, module._buffers):
            for key, old in entries.items():
                if old is None:
                    continue
                name = f"{prefix}.{key}" if prefix else key
                stored = record.aliases.get(name, name)
                value = read[stored]
                if isinstance(old, nn.Parameter):
                    learns = stored not in record.frozen
                    if learns and not (value.is_floating_point() or value.is_complex()):
                        raise FxpruneError(f"{str(path)!r}: {stored} is {value.dtype}, which cannot be trained")
                    value = parameters.setdefault(stored, nn.Parameter(value, learns))
                # Not into the dict: recurrent modules keep lists of their weights besides.
                setattr(module, key, value)


def refuse_what_is_no_tensor(pruned: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Raise FxpruneError for what a file of tensors cannot hold."""
    for name in pruned.state_dict():
        if name not in tensors:
            raise FxpruneError(f"{name} in the state_dict is no parameter or buffer: a checkpoint cannot hold it")
    for name, tensor in tensors.items():
        if tensor.device.type == "meta" or tensor.layout != torch.strided:
            raise FxpruneError(f"{name} is on {tensor.device} with layout {tensor.layout}: it cannot be saved")


def unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Views of one memory are copied, which safetensors asks for."""
    seen: set[int] = set()
    result = {}
    for name, tensor in tensors.items():
        storage = tensor.untyped_storage().data_ptr()
        result[name] = tensor.clone() if storage in seen else tensor
        seen.add(storage)
    return result


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
