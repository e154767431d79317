"""The errors that users may catch, and the refusal of arguments of older versions."""

from __future__ import annotations

import inspect

import pytest
import torch

import fxprune
from fxprune.errors import called_as, warn


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


def test_a_warning_has_the_line_of_the_caller_outside_of_the_package() -> None:
    with pytest.warns(fxprune.FxpruneWarning, match="^nothing$") as caught:
        warn("nothing")
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    graph = fxprune.analyze(fxprune.trace(model, torch.zeros(1, 4)))
    options = {"params": 1e9, "example_inputs": torch.zeros(1, 4), "method": "l2", "compensate": False}
    with pytest.warns(fxprune.FxpruneWarning, match="above what the model has") as from_make_plan:
        fxprune.make_plan(graph, fxprune.scores(graph, "l2"), params=1e9)
    with pytest.warns(fxprune.FxpruneWarning, match="above what the model has") as from_prune:
        fxprune.prune(model, **options)
    assert {warning.filename for warning in (*caught, *from_make_plan, *from_prune)} == {__file__}
