"""Commands that report every error in one line, in the command line itself too."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup

from fxprune.cli.common import running

__all__ = ["PlainGroup", "Verb"]

# The class of click, or of the copy of click in newer versions of typer.
_BadParameter: Any = typer.BadParameter
_UsageError: Any = _BadParameter.__mro__[1]


class Verb(TyperCommand):
    """A command that reports an error in one line, unless its option `debug` is given."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        with running(ctx.params["debug"]):
            return super().invoke(ctx)


class PlainGroup(TyperGroup):
    """Commands that report a usage error as what was given, what is wrong and where to look, with exit code 2."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **options: Any,
    ) -> Any:
        """Run a command, then exit Python unless `standalone_mode` is false."""
        if not standalone_mode:
            return super().main(args, prog_name, complete_var, False, windows_expand_args, **options)
        given = list(sys.argv[1:] if args is None else args)
        try:
            code = super().main(args, prog_name, complete_var, False, windows_expand_args, **options)
        except _UsageError as error:
            typer.echo(f"fxprune: {_line(error, given)}", err=True)
            sys.exit(error.exit_code)
        except typer.Abort:
            typer.echo("fxprune: aborted", err=True)
            sys.exit(1)
        sys.exit(code if isinstance(code, int) else 0)


def _line(error: Any, given: list[str]) -> str:
    command = "fxprune" if error.ctx is None else error.ctx.command_path
    if type(error) is not _BadParameter:
        return f"{_plain(error.format_message())}; see {command} --help"
    names: list[str] = [error.param_hint] if error.param_hint else error.param.opts
    value = _value(given, names)
    named = names[-1] if value is None or repr(value) in error.message else f"{names[-1]} {value}"
    return f"{named}: {_plain(error.message)}; see {command} --help"


def _plain(text: str) -> str:
    """The text in one line, to stand after a colon."""
    text = " ".join(text.split()).rstrip(".")
    return text[:1].lower() + text[1:]


def _value(given: list[str], names: Sequence[str]) -> str | None:
    """The value given for an option."""
    for word, following in zip(given, [*given[1:], None], strict=True):
        name, separator, value = word.partition("=")
        if name in names:
            return value if separator else following
    return None
