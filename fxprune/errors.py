"""What fxprune raises, and its warnings."""

from __future__ import annotations

import functools
import inspect
import sys
import warnings
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["CannotScoreError", "FxpruneError", "FxpruneWarning", "UnreachableBudgetError", "called_as", "warn"]

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


def warn(message: str) -> None:
    """Warn, with the line outside of this package from which it was called, however deep in it the warning arises.

    Examples:
        >>> with warnings.catch_warnings(record=True) as caught:
        ...     warnings.simplefilter("always")
        ...     warn("nothing was removed")
        >>> caught[0].message
        FxpruneWarning('nothing was removed')
    """
    level, frame = 2, sys._getframe(1)
    # `contextlib` stands in between where a context decorates a function.
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _NOT_CALLERS:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, FxpruneWarning, stacklevel=level)


_NOT_CALLERS = (__name__.partition(".")[0], "contextlib")


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
