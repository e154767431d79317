"""The one exception family of fxprune."""

from __future__ import annotations

__all__ = ["FxpruneError"]


class FxpruneError(Exception):
    """Something that was given cannot be used; the message says what, why and what to do.

    Nothing of the caller's has been changed when this is raised.
    """
