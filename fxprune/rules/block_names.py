"""What blocks are called: by the modules that their parameters belong to."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from fxprune.channels.graph import Block

__all__ = ["common_owner", "module_of", "numbered", "owners"]


def module_of(name: str) -> str:
    """The path of the module that a tensor belongs to; of what a parametrization computes it from, the layer's."""
    return f".{name.rpartition('.')[0]}".partition(".parametrizations")[0].removeprefix(".")


def owners(name: str) -> Iterator[str]:
    """The paths of the modules that a tensor is in."""
    path = module_of(name)
    while path:
        yield path
        path = path.rpartition(".")[0]


def common_owner(names: Iterable[str]) -> str:
    """The innermost module that owns all of some tensors; empty if that is the model."""
    paths = [module_of(name).split(".") for name in names]
    same = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return ".".join(parts[0] for parts in same)


def numbered(blocks: Sequence[Block]) -> tuple[Block, ...]:
    """The same blocks, numbered where several have one name."""
    taken: Counter[str] = Counter()
    named = []
    for block in blocks:
        taken[block.name] += 1
        count = taken[block.name]
        named.append(block if count == 1 else replace(block, name=f"{block.name}#{count}"))
    return tuple(named)
