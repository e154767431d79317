"""What fxprune raises, and what it warns of."""

from __future__ import annotations

__all__ = ["FxpruneError", "FxpruneWarning"]


class FxpruneError(Exception):
    """Something that was given cannot be used; the message says what, why and what to do.

    Nothing of the caller's has been changed when this is raised.
    """


class FxpruneWarning(UserWarning):
    """Something was done in another way than usual; the message says how and why."""
