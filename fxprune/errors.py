"""What fxprune raises, and what it warns of."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["FxpruneError", "FxpruneWarning", "called_as"]

P = ParamSpec("P")
R = TypeVar("R")


class FxpruneError(Exception):
    """Something that was given cannot be used; the message says what, why and what to do.

    Nothing of the caller's has been changed when this is raised.
    """


class FxpruneWarning(UserWarning):
    """Something was done in another way than usual; the message says how and why."""


def called_as(call: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a public function refuse arguments that it does not take, those of older versions above all, by its call.

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
