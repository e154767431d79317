"""The files of Python packages that are loaded, and what is found in them, which is looked for once."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence, Set
from types import ModuleType
from typing import Any, TypeAlias

__all__ = ["found_in", "modules_of", "package_of"]

# An object or a namespace, a name there, and what else is to be known of that.
_Entry: TypeAlias = tuple[Any, ...]
_Find: TypeAlias = Callable[[ModuleType], Iterable[_Entry]]

# What was loaded when it was last looked, that by package, and by packages that were asked for: it may be thousands.
_loaded: tuple[dict[str, Any], dict[str, list[ModuleType]], dict[frozenset[str], Sequence[ModuleType]]] = {}, {}, {}
# By what was looked for and the identity of a file, or of files; with these, so that nothing else has that identity.
_found_in_file: dict[tuple[_Find, int], tuple[ModuleType, Sequence[_Entry]]] = {}
_found: dict[tuple[_Find, int], tuple[Sequence[ModuleType], list[ModuleType], Sequence[_Entry]]] = {}
_MOST_FOUND = 1_000


def package_of(name: str) -> str:
    """The package that a module with this name is in."""
    return name.partition(".")[0]


def modules_of(packages: Set[str]) -> Sequence[ModuleType]:
    """The files of these packages that are loaded: the very same list as before if nothing was loaded since."""
    global _loaded
    before, by_package, asked_for = _loaded
    if before != sys.modules:
        before, by_package, asked_for = dict(sys.modules), {}, {}
        for name, module in before.items():
            if isinstance(module, ModuleType):
                by_package.setdefault(package_of(name), []).append(module)
        _loaded = before, by_package, asked_for
    asked = frozenset(packages)
    if asked not in asked_for:
        asked_for[asked] = [module for package in sorted(asked) for module in by_package.get(package, ())]
    return asked_for[asked]


def found_in(modules: Sequence[ModuleType], find: _Find) -> Sequence[_Entry]:
    """What `find` finds in these files, each entry once; the file that is run may get more names as it runs."""
    key = find, id(modules)
    known = _found.get(key)
    if known is None:
        rest, run = [module for module in modules if not _is_run(module)], [*filter(_is_run, modules)]
        entries = {(id(entry[0]), entry[1]): entry for module in rest for entry in _found_in(module, find)}
        if len(_found) >= _MOST_FOUND:
            _found.clear()
        known = _found[key] = modules, run, list(entries.values())
    _, run, found = known
    return [*found, *(entry for module in run for entry in find(module))] if run else found


def _found_in(module: ModuleType, find: _Find) -> Sequence[_Entry]:
    key = find, id(module)
    if key not in _found_in_file:
        _found_in_file[key] = module, list(find(module))
    return _found_in_file[key][1]


def _is_run(module: ModuleType) -> bool:
    return module.__name__ == "__main__"
