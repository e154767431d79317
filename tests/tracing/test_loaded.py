"""What is found in loaded files is looked for once, and anew where other files are loaded."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from fxprune.tracing.loaded import found_in, modules_of


def load(monkeypatch: pytest.MonkeyPatch, name: str, **values: Any) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(values)
    monkeypatch.setitem(sys.modules, name, module)
    return module


def numbers(module: ModuleType) -> Iterator[tuple[Any, ...]]:
    looked_at.append(module)
    yield from ((vars(module), name, value) for name, value in vars(module).items() if isinstance(value, int))


looked_at: list[ModuleType] = []


def test_files_are_those_of_the_packages_that_are_loaded_now(monkeypatch: pytest.MonkeyPatch) -> None:
    first = load(monkeypatch, "a_package")
    assert modules_of({"a_package"}) == [first]
    second = load(monkeypatch, "a_package.file")
    load(monkeypatch, "a_package_of_others")
    assert modules_of({"a_package", "no package"}) == [first, second]
    other = load(monkeypatch, "a_package")
    assert modules_of({"a_package"}) == [other, second]
    monkeypatch.setitem(sys.modules, "a_package", "no module")  # type: ignore[misc]
    assert modules_of({"a_package"}) == [second]


def test_a_file_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = load(monkeypatch, "one", a=1), load(monkeypatch, "other", b=2)
    looked_at.clear()
    for files, values in (([one], [1]), ([one, other], [1, 2]), ([other], [2]), ([one, other], [1, 2]), ([], [])):
        assert [value for _, _, value in found_in(files, numbers)] == values
    assert looked_at == [one, other]


def test_the_file_that_is_run_may_get_more_names(monkeypatch: pytest.MonkeyPatch) -> None:
    run, other = load(monkeypatch, "__main__", a=1), load(monkeypatch, "other", b=2)
    assert len(found_in([run, other], numbers)) == 2
    vars(run)["c"] = 3
    assert sorted(value for _, _, value in found_in([run, other], numbers)) == [1, 2, 3]


def test_a_file_under_two_names_has_each_entry_once(monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(monkeypatch, "one", a=1)
    monkeypatch.setitem(sys.modules, "one.again", module)
    assert modules_of({"one"}) == [module, module]
    assert [value for _, _, value in found_in(modules_of({"one"}), numbers)] == [1]
