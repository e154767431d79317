"""The errors that users may catch, and the refusal of arguments of older versions."""

from __future__ import annotations

import inspect

import pytest

import fxprune
from fxprune.errors import called_as


def test_every_public_error_is_an_fxprune_error_with_a_docstring() -> None:
    public = [getattr(fxprune, name) for name in fxprune.__all__]
    errors = [value for value in public if inspect.isclass(value) and issubclass(value, Exception)]
    raised = [error for error in errors if not issubclass(error, Warning)]
    assert {error.__name__ for error in raised} >= {"CannotScoreError", "DivergenceError", "UnreachableBudgetError"}
    assert all(issubclass(error, fxprune.FxpruneError) for error in raised)
    assert all(inspect.getdoc(error) for error in errors)


def test_arguments_that_a_function_does_not_take_are_refused_with_its_call() -> None:
    @called_as("shout(text, *, loud=False)")
    def shout(text: str, *, loud: bool = False) -> str:
        return text.upper() if loud else text

    assert shout("a", loud=True) == "A"
    for arguments in ({"word": "a"}, {}, {"text": "a", "volume": 3}):
        with pytest.raises(fxprune.FxpruneError, match=r"^shout: .*: call shout\(text, \*, loud=False\)$"):
            shout(**arguments)
    with pytest.raises(TypeError, match="inside"):
        called_as("fail()")(lambda: (_ for _ in ()).throw(TypeError("inside")))().__next__()
