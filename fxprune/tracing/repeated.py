"""Lists that a size repeats, as `[length] * x.shape[0]`: the graph makes a tensor of one for any size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["Repeated"]


class Repeated(list[Any]):
    """`items * number`. What asks for its length or its entries ties the graph to the size.

    Attributes:
        items: what is repeated.
        number: how often, a traced one.
    """

    items: list[Any]
    number: Any

    @staticmethod
    def of(items: list[Any], number: Any, times: int) -> Repeated:
        """The list; `times` is the number without its history."""
        made = Repeated(items * times)
        made.items, made.number = items, number
        return made


def _tying(name: str) -> Callable[..., Any]:
    method = getattr(list, name)

    def tying(self: Repeated, *args: Any, **kwargs: Any) -> Any:
        self.number.as_traced()
        return method(self, *args, **kwargs)

    return tying


for _name in (
    "__iter__", "__len__", "__getitem__", "__setitem__", "__delitem__", "__contains__", "__reversed__", "__add__",
    "__iadd__", "__mul__", "__imul__", "__rmul__", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__",
    "append", "clear", "copy", "extend", "index", "insert", "pop", "remove", "reverse", "sort",
):  # fmt: skip
    setattr(Repeated, _name, _tying(_name))
