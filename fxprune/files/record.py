"""What a checkpoint says of its model, as JSON; read as if it were written by somebody who means harm."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.files.packing import unpack
from fxprune.models import Source
from fxprune.planning.plan import Plan, plan_from_json
from fxprune.tracing.fingerprint import Fingerprint

__all__ = ["FORMAT", "KEY", "OWN_META", "Record", "trusted_source", "version_of"]

# The key of the record in the metadata of the file.
KEY = "fxprune"
FORMAT = 1
# What a file may ask the libraries for: no argument of these names a file or an address.
_ARGUMENTS = ("num_classes", "in_chans", "img_size", "image_size", "global_pool", "drop_rate", "drop_path_rate",
              "dropout", "aux_logits", "transform_input", "dynamic_img_size", "reg_tokens", "class_token")  # fmt: skip
_SPEC = re.compile(r"(timm|torchvision):[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*")
# A file cannot make its reader allocate more than this for the example inputs (8 GiB in float32).
_MOST_ELEMENTS = 2**31
# Notes of a model that have entries of their own in the record.
OWN_META = ("plan", "original", "source", "example_inputs")


@dataclass(frozen=True)
class Record:
    """What the file says, checked."""

    plan: Plan
    original: Fingerprint
    source: Source | None
    versions: Mapping[str, str]
    inputs: Mapping[str, Any]
    aliases: Mapping[str, str]
    strides: Mapping[str, list[int]]
    frozen: frozenset[str]
    training: frozenset[str]
    meta: Mapping[str, Any]

    @classmethod
    def read(cls, path: Path, file: Any) -> Record:
        """The record of an open safetensors file.

        Raises:
            FxpruneError: there is none, it is of a newer version, or it is damaged.
        """
        text = (file.metadata() or {}).get(KEY)
        if text is None:
            raise FxpruneError(
                f"{str(path)!r} is a safetensors file, but not one that fxprune.save wrote: load it with "
                "safetensors.torch.load_file, or prune the model anew"
            )
        try:
            value = json.loads(text)
            version = value["format"]
            if type(version) is int and version > FORMAT:
                raise FxpruneError(
                    f"{str(path)!r} has format {version} of fxprune {value.get('versions', {}).get('fxprune')}; "
                    f"fxprune {version_of('fxprune')} reads formats up to {FORMAT}: upgrade fxprune"
                )
            if type(version) is not int or version != FORMAT:
                raise ValueError(f"its format is {version!r}")
            return cls.checked(value)
        except FxpruneError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise FxpruneError(
                f"{str(path)!r}: its record is damaged: {reason[:200]}; take another copy of the file"
            ) from error

    @classmethod
    def checked(cls, value: dict[str, Any]) -> Record:
        """The record, if all of it is what it should be; any other error than these three says that it is not."""
        original = value["original"]
        tensors = {_text(name): _tensor_kind(entry) for name, entry in original["tensors"].items()}
        architecture = Fingerprint(
            _text(original["model"]),
            {name: (shape, dtype) for name, (shape, dtype) in tensors.items()},
            tuple(tuple(map(_text, names)) for names in original["ties"]),
            _text(original["operations"]),
        )
        inputs = value["inputs"]
        source = value["source"]
        return cls(
            plan_from_json(value["plan"], {name: shape for name, (shape, _) in tensors.items()}),
            architecture,
            None if source is None else Source(_text(source["spec"]), dict(source["arguments"])),
            {_text(name): str(version) for name, version in value["versions"].items() if version is not None},
            {
                "structure": inputs["structure"],
                "tensors": {_text(name): _tensor_kind(entry) for name, entry in inputs["tensors"].items()},
            },
            {_text(name): _text(other) for name, other in value["aliases"].items()},
            {_text(name): [int(n) for n in strides] for name, strides in value["strides"].items()},
            frozenset(map(_text, value["frozen"])),
            frozenset(map(_text, value["training"])),
            {_text(key): unpack(item, {}) for key, item in value["meta"].items() if key not in OWN_META},
        )

    def example_inputs(self, path: Path) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Inputs of the recorded shapes: standard normal from a fixed seed; zeros and trues where no float is asked."""
        generator = torch.Generator().manual_seed(0)
        kinds: Mapping[str, tuple[tuple[int, ...], str]] = self.inputs["tensors"]
        if sum(math.prod(shape) for shape, _ in kinds.values()) > _MOST_ELEMENTS:
            raise FxpruneError(f"{str(path)!r}: its record is damaged: the example inputs do not fit into memory")
        tensors = {name: _example(shape, getattr(torch, dtype), generator) for name, (shape, dtype) in kinds.items()}
        try:
            args, kwargs = unpack(self.inputs["structure"], tensors)
            return tuple(args), dict(kwargs)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise FxpruneError(
                f"{str(path)!r}: its record is damaged: the example inputs make no call; take another copy of the file"
            ) from error


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} stands where a name should")
    return value


def _tensor_kind(entry: Any) -> tuple[tuple[int, ...], str]:
    shape, dtype = entry
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape) or len(shape) > 32:
        raise ValueError(f"{shape!r:.40} is no shape")
    if not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"{dtype!r:.40} is no dtype")
    return tuple(shape), dtype


def _example(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator) -> Tensor:
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.ones(shape, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)


def trusted_source(path: Path, source: Source | None) -> Source:
    """What a file says of the original's source, if that is a name of timm or torchvision and harmless arguments.

    Raises:
        FxpruneError: it is not, or the file does not say.
    """
    if source is None:
        raise FxpruneError(f"{str(path)!r} does not say how the original is built: give it as model=")
    if not _SPEC.fullmatch(source.spec):
        raise FxpruneError(
            f"{str(path)!r} is of the model {source.spec!r}; only timm:NAME and torchvision:NAME are built on the word "
            "of a file: give the original as model="
        )
    for key, value in source.arguments.items():
        if key not in _ARGUMENTS or not _is_harmless(value):
            raise FxpruneError(
                f"{str(path)!r} asks for {source.spec} with {key}={value!r:.60}, which is not passed on on the word of "
                "a file: give the original as model="
            )
    return source


def _is_harmless(value: Any) -> bool:
    if isinstance(value, list):
        return len(value) <= 4 and all(type(item) is int and 0 < item < 2**16 for item in value)
    if type(value) is int:
        return 0 <= value < 2**24
    return value is None or isinstance(value, (bool, float)) or (isinstance(value, str) and value.isidentifier())


def version_of(distribution: str) -> str | None:
    """The version of an installed distribution; None where it is not installed."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
