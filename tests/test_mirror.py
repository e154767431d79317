"""Tests mirror the package: fxprune/planning/budgets.py is tested in tests/planning/test_budgets.py."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
PACKAGE = TESTS.parent / "fxprune"
# Modules that need no test file of their own, as "package/module.py".
EXCEPTIONS: frozenset[str] = frozenset()


def untested() -> list[str]:
    """The modules without a test file of their name; those like __init__.py do not count."""
    modules = [path.relative_to(PACKAGE) for path in sorted(PACKAGE.rglob("*.py")) if not path.name.startswith("__")]
    missing = [path for path in modules if not (TESTS / path.parent / f"test_{path.name}").exists()]
    return [path.as_posix() for path in missing if path.as_posix() not in EXCEPTIONS]


def test_each_module_has_a_test_file_of_its_name() -> None:
    assert untested() == []


def test_each_exception_is_a_module() -> None:
    assert [name for name in EXCEPTIONS if not (PACKAGE / name).exists()] == []
