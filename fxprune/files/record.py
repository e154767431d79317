"""The record of a checkpoint: all that it holds besides tensors, as JSON.

It is read as if an attacker had written it: whatever is not as it should be raises an error.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fxprune.errors import FxpruneError
from fxprune.files.packing import pack, unpack
from fxprune.models import Source
from fxprune.planning.plan import plan_from_json, plan_to_json
from fxprune.provenance import PruningNotes
from fxprune.running.calls import Call
from fxprune.tracing.fingerprint import Fingerprint
from fxprune.tracing.notes import TraceNotes

__all__ = ["KEY", "Record", "damaged", "kind_of", "versions"]

# The key of the record in the metadata of the file.
KEY = "fxprune"
_FORMAT = 1
# A file cannot make its reader allocate more than this for the example inputs: 8 GiB in float32. Not tuned.
_MOST_ELEMENTS = 2**31
# What a damaged record makes Python raise while it is read.
_MALFORMED = (ValueError, KeyError, TypeError, AttributeError, RecursionError, OverflowError)

Kind: TypeAlias = "tuple[tuple[int, ...], str]"
"""The shape and the dtype of a tensor."""


@dataclass(frozen=True)
class Record:
    """What a checkpoint says of its model.

    Attributes:
        pruning: the plan, the original's architecture and the compensation.
        trace: what the pruned model knows of its trace, but for the example inputs.
        versions: of the libraries that the file was written with, by name.
        inputs: the nesting of the example inputs, packed; their values are not stored.
        input_kinds: the tensors of the example inputs.
        aliases: name of a tied tensor -> the name that it is stored under.
        strides: of the tensors whose memory is in another order than their dimensions.
        frozen: names of the parameters that require no gradient.
        training: paths of the modules in training mode.
        more: plain values that others have put into `meta` of the model.
    """

    pruning: PruningNotes
    trace: TraceNotes
    versions: Mapping[str, str]
    inputs: Any
    input_kinds: Mapping[str, Kind]
    aliases: Mapping[str, str]
    strides: Mapping[str, list[int]]
    frozen: tuple[str, ...]
    training: tuple[str, ...]
    more: Mapping[str, Any]

    def to_json(self) -> str:
        """The record as text, for the metadata of the file."""
        source = self.trace.source
        notes = {
            "compensated": self.pruning.compensated,
            "samples": self.pruning.samples,
            "method": self.pruning.method,
            "notes": list(self.trace.remarks),
            "values_read": dict(self.trace.values_read),
            "leaves": list(self.trace.leaves),
            "constant_places": dict(self.trace.constant_places),
        }
        value = {
            "format": _FORMAT,
            "versions": self.versions,
            "source": None if source is None else asdict(source),
            "original": asdict(self.pruning.original),
            "plan": plan_to_json(self.pruning.plan),
            "stages": [plan_to_json(plan) for plan in self.pruning.stages],
            "inputs": {"structure": self.inputs, "tensors": self.input_kinds},
            "aliases": self.aliases,
            "strides": self.strides,
            "frozen": self.frozen,
            "training": self.training,
            "meta": _plain({**self.more, **notes}),
        }
        return json.dumps(value, separators=(",", ":"))

    @classmethod
    def read(cls, path: Path, text: str) -> Record:
        """The record of the file at `path`.

        Raises:
            FxpruneError: it is damaged, or has a newer format.
        """
        try:
            value = json.loads(text)
            version = value["format"]
            if type(version) is int and version > _FORMAT:
                raise FxpruneError(
                    f"{str(path)!r} has format {version} of fxprune {value.get('versions', {}).get('fxprune')}; "
                    f"fxprune {_version_of('fxprune')} reads formats up to {_FORMAT}: upgrade fxprune"
                )
            if type(version) is not int or version != _FORMAT:
                raise ValueError(f"its format is {version!r}")
            return cls._checked(value)
        except _MALFORMED as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
            raise damaged(path, reason[:200]) from error

    @classmethod
    def _checked(cls, value: dict[str, Any]) -> Record:
        original, source, inputs = value["original"], value["source"], value["inputs"]
        kinds = _kinds(original["tensors"])
        architecture = Fingerprint(
            _text(original["model"]),
            kinds,
            tuple(tuple(map(_text, names)) for names in original["ties"]),
            _text(original["operations"]),
        )
        shapes = {name: shape for name, (shape, _) in kinds.items()}
        plan, stages = plan_from_json(value["plan"], shapes), value.get("stages", [])
        if not isinstance(stages, list):
            raise ValueError("the plans of the stages are not a list")
        more = {_text(key): unpack(item, {}) for key, item in value["meta"].items()}
        return cls(
            pruning=PruningNotes(
                plan,
                architecture,
                tuple(map(_text, more.pop("compensated", ()))),
                tuple(plan_from_json(stage, shapes) for stage in stages),
                _text(more.pop("samples", "")),
                _text(more.pop("method", "")),
            ),
            trace=TraceNotes(
                remarks=tuple(map(_text, more.pop("notes", ()))),
                source=None if source is None else Source(_text(source["spec"]), dict(source["arguments"])),
                values_read=dict(more.pop("values_read", {})),
                leaves=tuple(map(_text, more.pop("leaves", ()))),
                constant_places={name: tuple(place) for name, place in more.pop("constant_places", {}).items()},
            ),
            versions={_text(name): str(version) for name, version in value["versions"].items() if version is not None},
            inputs=inputs["structure"],
            input_kinds=_kinds(inputs["tensors"]),
            aliases={_text(name): _text(other) for name, other in value["aliases"].items()},
            strides={_text(name): [int(n) for n in strides] for name, strides in value["strides"].items()},
            frozen=tuple(map(_text, value["frozen"])),
            training=tuple(map(_text, value["training"])),
            more=more,
        )

    def example_inputs(self, path: Path) -> Call:
        """Inputs of the recorded shapes: floats are standard normal from a fixed seed, booleans true, integers zero.

        Raises:
            FxpruneError: the record is damaged.
        """
        generator = torch.Generator().manual_seed(0)
        if sum(math.prod(shape) for shape, _ in self.input_kinds.values()) > _MOST_ELEMENTS:
            raise damaged(path, "the example inputs do not fit into memory")
        tensors = {name: _example(kind, generator) for name, kind in self.input_kinds.items()}
        try:
            args, kwargs = unpack(self.inputs, tensors)
            call: Call = tuple(args), dict(kwargs)
        except _MALFORMED as error:
            raise damaged(path, "the example inputs are not the arguments of a call") from error
        if all(call):
            raise damaged(path, "the example inputs are positional and by keyword")
        return call


def damaged(path: Path, reason: object) -> FxpruneError:
    """The error for a file whose record is not as it should be."""
    return FxpruneError(f"{str(path)!r}: its record is damaged: {reason}; take another copy of the file")


def kind_of(tensor: Tensor) -> Kind:
    """The shape and the dtype of a tensor."""
    return tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")


def versions() -> dict[str, str]:
    """The versions of fxprune and of what models are built with, as far as they are installed."""
    found = {name: _version_of(name) for name in ("fxprune", "torch", "timm", "torchvision")}
    return {name: version for name, version in found.items() if version is not None}


def _version_of(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _plain(values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that JSON can hold; others belong to the session, not to the model."""
    plain = {}
    for key, value in values.items():
        tensors: dict[str, Tensor] = {}
        try:
            packed = pack(value, tensors, key)
        except FxpruneError:
            continue
        if not tensors:
            plain[key] = packed
    return plain


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{value!r:.40} stands where a name should")
    return value


def _kinds(entries: Any) -> dict[str, Kind]:
    return {_text(name): _kind(entry) for name, entry in entries.items()}


def _kind(entry: Any) -> Kind:
    shape, dtype = entry
    if not isinstance(shape, list) or not all(type(n) is int and 0 <= n < 2**40 for n in shape) or len(shape) > 32:
        raise ValueError(f"{shape!r:.40} is no shape")
    if not isinstance(dtype, str) or not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise ValueError(f"{dtype!r:.40} is no dtype")
    return tuple(shape), dtype


def _example(kind: Kind, generator: torch.Generator) -> Tensor:
    shape, dtype = kind[0], getattr(torch, kind[1])
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator).to(dtype)
    return torch.ones(shape, dtype=dtype) if dtype == torch.bool else torch.zeros(shape, dtype=dtype)
