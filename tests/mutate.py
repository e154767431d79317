"""Ways to break a rule on purpose."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import pytest

from fxprune.rules.registry import Rule

__all__ = ["Patch", "as_if_elementwise", "attribute", "no_flops", "no_rewrite"]

Patch: TypeAlias = Callable[[pytest.MonkeyPatch], None]


def no_rewrite(rule: Rule[Any]) -> Patch:
    """The node stays as it was."""
    return lambda monkeypatch: monkeypatch.setattr(rule, "rewrite_of", None)


def no_flops(rule: Rule[Any]) -> Patch:
    """The op is taken to be free."""
    return lambda monkeypatch: monkeypatch.setattr(rule, "flops_of", None)


def as_if_elementwise(rule: Rule[Any]) -> Patch:
    """Labels pass, whatever the op mixes."""
    return lambda monkeypatch: monkeypatch.setattr(rule, "propagate", lambda op, x, *arguments, **options: x)


def attribute(owner: Any, name: str, value: Any) -> Patch:
    """Any other change."""
    return lambda monkeypatch: monkeypatch.setattr(owner, name, value)
