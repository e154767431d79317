"""Reports: what was pruned where, what it costs now, and whether it is right."""

from fxprune.reporting.report import Report, report

__all__ = ["Report", "report"]
