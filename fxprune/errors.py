"""What fxprune raises, and its warnings."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["CannotScoreError", "FxpruneError", "FxpruneWarning", "UnreachableBudgetError", "called_as"]

P = ParamSpec("P")
R = TypeVar("R")


class FxpruneError(Exception):
    """Something given cannot be used; the message says what was given, what is wrong and what to do.

    The caller's model and data are as they were before the call.
    """


class CannotScoreError(FxpruneError):
    """This model cannot be scored or compensated on samples; a method that needs no data may still prune it."""


class UnreachableBudgetError(FxpruneError):
    """No plan meets the budget, of FLOPs or of latency."""


class FxpruneWarning(UserWarning):
    """fxprune did something other than what is usual; the message says what and why."""


def called_as(call: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a public function: arguments that it does not take, such as an older version's, are refused with `call`.

    Examples:
        >>> @called_as("shout(text)")
        ... def shout(text):
        ...     return text.upper()
        >>> shout(word="hey")
        Traceback (most recent call last):
        fxprune.errors.FxpruneError: shout: missing a required argument: 'text': call shout(text)
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                raise FxpruneError(f"{function.__name__}: {error}: call {call}") from None
            return function(*args, **kwargs)

        return checked

    return decorate
