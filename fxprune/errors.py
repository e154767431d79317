"""What fxprune raises, and its warnings."""

from __future__ import annotations

__all__ = ["CannotScoreError", "FxpruneError", "FxpruneWarning", "UnreachableBudgetError"]


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
