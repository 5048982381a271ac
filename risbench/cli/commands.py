"""What all commands share: -q and -v at any place, help that is not cut, and the refusal of text that is not UTF-8."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand

from risbench import progress
from risbench.cli import processes
from risbench.errors import InputError
from risbench.runs.job import option_label

QUIET, VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")

Function = TypeVar("Function", bound=Callable[..., Any])


class Commands(typer.Typer):
    """A Typer whose commands take -q and -v."""

    def command(self, name: str | None = None, **settings: Any) -> Callable[[Function], Function]:
        """Register a function as a command."""
        return super().command(name, cls=_Command, **settings)


class _Command(TyperCommand):
    def get_short_help_str(self, limit: int = 45) -> str:
        """Return what the list of commands shows: the first paragraph of the help, whole, to be wrapped."""
        return " ".join((self.help or "").partition("\n\n")[0].split())

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        flags = {word for word in args[:end] if word in (*QUIET, *VERBOSE)}
        if flags:
            set_detail(quiet=not flags.isdisjoint(QUIET), verbose=not flags.isdisjoint(VERBOSE))
        rest = super().parse_args(ctx, [word for word in args[:end] if word not in flags] + args[end:])
        for parameter in self.params:
            if parameter.name != "image":  # a picture is opened by its bytes; other paths are stored, or go to Arrow
                _refuse_undecoded(option_label(parameter), ctx.params.get(str(parameter.name)))
        return rest


def set_detail(quiet: bool = False, verbose: bool = False) -> None:
    """Print results and errors only (`quiet`), or also what is done meanwhile (`verbose`).

    Of several processes the first alone warns, since all of them come upon the same things.
    """
    if quiet and verbose:
        raise InputError("--quiet and --verbose contradict each other: leave one of them out.")
    progress.console.quiet = quiet
    warnings = logging.WARNING if processes.is_main() else logging.ERROR
    logging.getLogger().setLevel(logging.ERROR if quiet else logging.INFO if verbose else warnings)


def _refuse_undecoded(name: str, value: Any) -> None:
    """Refuse text and paths with bytes that are not UTF-8, which Python keeps as surrogates."""
    for text in map(str, value if isinstance(value, list | tuple) else [value]):
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            shown = text.encode(errors="backslashreplace").decode()
            cure = "Type it on a terminal that is (export LC_ALL=C.UTF-8), or rename the file"
            raise InputError(f"{name} '{shown}' is not UTF-8. {cure}.")
