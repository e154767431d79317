"""Arguments of calls: what stands for them in the graph, and what the call is run with on the meta device."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from fxprune.errors import FxpruneError
from fxprune.running.copies import META
from fxprune.tracing.graph_builder import GraphBuilder, Origin
from fxprune.tracing.limits import CallPlace, TypeUse, reads_dtype_at
from fxprune.tracing.sizes import TracedNumber, TracedPieces, plain, untraced_type
from fxprune.tracing.unknown import Unknown
from fxprune.tracing.user_code import call_place, user_frame

__all__ = ["Lowered", "LoweredCall", "Lowering", "with_later"]

# What the graph takes for an argument, what runs on the meta device for it, and what it is computed from.
Lowered: TypeAlias = tuple[Argument, Any, Origin]

_LITERALS = frozenset({int, float, str, bool, complex, type(None), type(...), torch.memory_format, torch.layout})
# What torch takes types of Python for.
_DTYPES: dict[Any, torch.dtype] = {int: torch.int64, float: torch.float64, bool: torch.bool, complex: torch.complex128}


def with_later(made: Any, entries: Mapping[str, Any]) -> Any:
    """A dataclass that is a dict, too, with further entries at its end, in another order than that of its fields."""
    for name, value in entries.items():
        setattr(made, name, value)
    return made


def _set_later(names: Sequence[str], fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields from the first one on that comes in `names` after one which it stands before."""
    order = [*fields]
    kept = [name for name in names if name in fields]
    ordered = next((k for k in range(1, len(kept)) if order.index(kept[k]) < order.index(kept[k - 1])), len(kept))
    return {name: fields[name] for name in kept[ordered:]}


class ForeignTypeError(FxpruneError):
    """An object that is neither a tensor nor a container of tensors was to become part of the graph."""


class LoweredCall(NamedTuple):
    """The arguments of a call in the graph, those to run it with, and what they are computed from."""

    args: tuple[Argument, ...]
    kwargs: dict[str, Argument]
    values: list[Any]
    named_values: dict[str, Any]
    origin: Origin

    @property
    def all_values(self) -> tuple[Any, ...]:
        """All that the call is run with."""
        return *self.values, *self.named_values.values()


class Lowering:
    """Lowers arguments into the graph that a builder makes.

    With `pieces`, the tensors that one node cut from another go in as that node, however many there are. With
    `lenient`, entries that cannot be part of a graph are left out of mappings and dataclasses, with a remark.
    """

    def __init__(self, builder: GraphBuilder, types: Mapping[CallPlace, CodeType | None]) -> None:
        """
        Args:
            builder: of the graph.
            types: the code that is known to have read a type from a tensor, by where the type is used; None where the
                type is named.
        """
        self._builder = builder
        self._types = types
        # For each dtype the code that has read it from a tensor, the last one at the end: where, and the tensor's node.
        self._dtypes: dict[torch.dtype, dict[CodeType, tuple[int, fx.Node]]] = {}

    def lower_call(self, args: Iterable[Any], kwargs: Mapping[str, Any], *, pieces: bool = False) -> LoweredCall:
        """The arguments of a call."""
        lowered, values, origin = self._lower_all(args, pieces)
        named, named_values, origin_of_named = self._lower_all(kwargs.values())
        return LoweredCall(
            lowered,
            dict(zip(kwargs, named, strict=True)),
            values,
            dict(zip(kwargs, named_values, strict=True)),
            max(origin, origin_of_named),
        )

    def lower_output(self, output: Any) -> Lowered:
        """What the model returns."""
        return self._lower(output, pieces=True, lenient=True)

    def _lower_all(
        self, args: Iterable[Any], pieces: bool = False, lenient: bool = False
    ) -> tuple[tuple[Argument, ...], list[Any], Origin]:
        lowered = [self._lower(arg, pieces, lenient) for arg in args]
        return (
            tuple(argument for argument, _, _ in lowered),
            [value for _, value, _ in lowered],
            max((origin for _, _, origin in lowered), default=Origin.CONSTANTS),
        )

    def _lower(self, arg: Any, pieces: bool = False, lenient: bool = False) -> Lowered:
        kind = type(arg)
        if kind in _LITERALS:
            return arg, arg, Origin.CONSTANTS
        if isinstance(arg, Tensor):
            node = self._builder.node_of(arg)
            return node, arg if arg.is_meta else node.meta["value"], self._builder.origin[node]
        if isinstance(arg, TracedNumber):
            node = arg.node()
            return node, plain(arg), self._builder.origin[node]
        if kind is Unknown:
            raise arg.error
        if kind is torch.device:
            known = self._builder.find(arg)
            return (arg, META, Origin.CONSTANTS) if known is None else (known, META, self._builder.origin[known])
        if kind is torch.dtype:
            return self._lower_dtype(arg), arg, Origin.CONSTANTS
        if isinstance(arg, TracedPieces) and pieces:
            return arg.node, arg.untraced(), self._builder.origin[arg.node]
        if isinstance(arg, (tuple, list)):
            items, values, origin = self._lower_all(arg, pieces, lenient)
            if hasattr(arg, "_fields"):
                value = cast(Any, kind)._make(values)
                node = self._builder.create_node("call_function", kind, items, {}, value, origin)
                return node, value, origin
            return (list(items), values, origin) if isinstance(arg, list) else (items, tuple(values), origin)
        if kind is slice:
            (start, stop, step), values, origin = self._lower_all((arg.start, arg.stop, arg.step))
            return slice(start, stop, step), slice(*values), origin
        if dataclasses.is_dataclass(arg) and not isinstance(arg, type):
            given = {field.name: getattr(arg, field.name) for field in dataclasses.fields(arg)}
            given = {name: value for name, value in given.items() if value is not None}
            kwargs, _, origin = self._lower_entries(given, pieces, lenient)
            later = _set_later([*arg], kwargs) if isinstance(arg, dict) else {}
            first = {name: value for name, value in kwargs.items() if name not in later}
            node = self._builder.create_node("call_function", kind, (), first, arg, origin)
            if later:
                node = self._builder.create_node("call_function", with_later, (node, later), {}, arg, origin)
            return node, arg, origin
        if isinstance(arg, dict):
            entries, found, origin = self._lower_entries(arg, pieces, lenient)
            if kind is not OrderedDict:
                return entries, found, origin
            node = self._builder.create_node("call_function", kind, ([*entries.items()],), {}, kind(found), origin)
            return node, node.meta["value"], origin
        if kind is range:
            return self._lower(list(arg))
        if kind is np.ndarray:
            return self._lower(torch.from_numpy(arg.copy()))
        arg = untraced_type(arg)
        if arg in _DTYPES:
            return _DTYPES[arg], arg, Origin.CONSTANTS
        if isinstance(arg, np.generic):
            return self._lower(arg.item())
        raise ForeignTypeError(f"an object of type `{kind.__module__}.{kind.__qualname__}` cannot be part of a graph")

    def _lower_entries(
        self, entries: dict[str, Any], pieces: bool, lenient: bool
    ) -> tuple[dict[str, Argument], dict[str, Any], Origin]:
        lowered = {}
        for name, value in entries.items():
            try:
                lowered[name] = self._lower(value, pieces, lenient)
            except ForeignTypeError as error:
                if not lenient:
                    raise
                self._builder.remarks.append(f"`{name}` is left out of what the model returns: {error}.")
        return (
            {name: argument for name, (argument, _, _) in lowered.items()},
            {name: value for name, (_, value, _) in lowered.items()},
            max((origin for _, _, origin in lowered.values()), default=Origin.CONSTANTS),
        )

    # -- dtypes: objects that all tensors share, so that the code that uses one tells where it comes from --

    def note_dtype(self, dtype: torch.dtype, tensor: Tensor) -> None:
        """The model's code has read a dtype from a tensor."""
        frame = user_frame(generated=True)
        if frame is not None:
            reads = self._dtypes.setdefault(dtype, {})
            reads.pop(frame.f_code, None)
            reads[frame.f_code] = frame.f_lasti, self._builder.node_of(tensor)

    def source_of_limits(self, dtype: torch.dtype, frame: FrameType) -> fx.Node | None:
        """The tensor that the type was read from whose limits the model's code asks for in a frame."""
        reads = self._dtypes.get(dtype, {})
        reader, certain = None, not reads
        if reads:
            reader = latest = next(reversed(reads))
            place = reads_dtype_at(frame)
            certain = latest is frame.f_code and place == reads[latest][0]
            if place is None and frame.f_code in reads:
                # From a variable, and not from a property or what another function gives.
                reader = frame.f_code
        return self._source(dtype, reader, certain, frame, of_limits=True)

    def _lower_dtype(self, dtype: torch.dtype) -> Argument:
        """The dtype of a tensor, if the code that uses it has read it from one, and else a literal.

        Where the code names that dtype, too, or another function has read it, that is a guess.
        """
        frame = user_frame(generated=True)
        reads = self._dtypes.get(dtype, {})
        if frame is None or not reads:
            return dtype if frame is None else self._part(dtype, self._source(dtype, None, True, frame))
        names, own, latest = frame.f_code.co_names, frame.f_code in reads, next(reversed(reads))
        named = str(dtype).removeprefix("torch.") in names or (dtype is torch.float32 and "float" in names)
        certain = named != own and (named or latest is frame.f_code)
        if (named and certain) or not (certain or dtype.is_floating_point):
            return self._part(dtype, self._source(dtype, None, True, frame))
        return self._part(dtype, self._source(dtype, frame.f_code if own else latest, certain, frame))

    def _part(self, dtype: torch.dtype, node: fx.Node | None) -> Argument:
        return dtype if node is None else self._builder.create_part(getattr, node, "dtype", dtype)

    def _source(
        self, dtype: torch.dtype, reader: CodeType | None, certain: bool, frame: FrameType, *, of_limits: bool = False
    ) -> fx.Node | None:
        """The tensor that a type was read from last by `reader`, or by the code that is known to have read it."""
        place = call_place(frame)
        if place in self._types:
            reader, certain = self._types[place], True
        self._builder.type_uses.append(TypeUse(dtype, reader, certain, of_limits, place))
        known = self._dtypes.get(dtype, {}).get(reader) if reader is not None else None
        return None if known is None else known[1]
