"""The files of Python packages that are loaded, and what is found in them, which is looked for once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any, TypeAlias

__all__ = ["found_in", "modules_of", "package_of"]

# An object or a namespace, a name there, and what else is to be known of that.
_Entry: TypeAlias = tuple[Any, ...]
_Find: TypeAlias = Callable[[ModuleType], Iterable[_Entry]]

# What was loaded when it was last looked, and that by package: thousands of files may be.
_loaded: tuple[dict[str, Any], dict[str, list[ModuleType]]] = {}, {}
# By what was looked for and the identities of the files; with these, so that there are no others of these identities.
_found: dict[tuple[_Find, tuple[int, ...]], tuple[Sequence[ModuleType], Sequence[_Entry]]] = {}
_MOST_FOUND = 20_000


def package_of(name: str) -> str:
    """The package that a module with this name is in."""
    return name.partition(".")[0]


def modules_of(packages: set[str]) -> list[ModuleType]:
    """The files of these packages that are loaded."""
    global _loaded
    before, by_package = _loaded
    if before != sys.modules:
        before, by_package = dict(sys.modules), {}
        for name, module in before.items():
            if isinstance(module, ModuleType):
                by_package.setdefault(package_of(name), []).append(module)
        _loaded = before, by_package
    return [module for package in sorted(packages) for module in by_package.get(package, ())]


def found_in(modules: Sequence[ModuleType], find: _Find) -> Sequence[_Entry]:
    """What `find` finds in these files, each entry once; the file that is run may get more names as it runs."""
    run = [module for module in modules if module.__name__ == "__main__"]
    if not run:
        return _found_in(modules, find)
    entries = _found_in([module for module in modules if module.__name__ != "__main__"], find)
    return _once([entries, *map(find, run)])


def _found_in(modules: Sequence[ModuleType], find: _Find) -> Sequence[_Entry]:
    key = find, tuple(map(id, modules))
    if key not in _found:
        found = _once([find(modules[0])] if len(modules) == 1 else [_found_in([each], find) for each in modules])
        if len(_found) >= _MOST_FOUND:
            _found.clear()
        _found[key] = modules, found
    return _found[key][1]


def _once(found: Iterable[Iterable[_Entry]]) -> Sequence[_Entry]:
    return list({(id(entry[0]), entry[1]): entry for entries in found for entry in entries}.values())
