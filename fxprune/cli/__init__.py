"""The command line: one module a verb, each a thin wrapper of the function of its name."""

from fxprune.cli.app import app, main

__all__ = ["app", "main"]
