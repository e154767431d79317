"""The command line: one module for each verb, a thin wrapper of the function of that name."""

from fxprune.cli.app import app, main

__all__ = ["app", "main"]
