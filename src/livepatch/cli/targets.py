"""The options that say which processes a command is about."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any, TypeVar

import click

from livepatch.fleet.selection import Selection

from . import candidates

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _expressions(ctx: click.Context, option: click.Parameter, texts: tuple[str, ...]) -> tuple[re.Pattern[str], ...]:
    try:
        return tuple(re.compile(text) for text in texts)
    except re.error as error:
        raise click.BadParameter(f"{error.pattern!r} is no regular expression: {error}.") from None


def targets_option(command: _Command) -> _Command:
    """`--pid`, `--tree` and `--name`, all repeatable; the command gets a `selection`, which is never empty."""

    @functools.wraps(command)
    def required(*args: Any, selection: Selection, **kwargs: Any) -> Any:
        if selection == Selection():
            raise click.UsageError("Say which process: --pid N, --tree N or --name TEXT.")
        return command(*args, selection=selection, **kwargs)

    return selection_option(required)  # type: ignore[return-value]


def selection_option(command: _Command) -> _Command:
    """The same for a command that can do without: then its `selection` is empty."""

    @functools.wraps(command)
    def chosen(*args: Any, **kwargs: Any) -> Any:
        return command(*args, selection=Selection(*(kwargs.pop(key) for key in ("pids", "trees", "names"))), **kwargs)

    number = click.IntRange(min=1)
    options = (
        click.option(
            "--pid",
            "pids",
            type=number,
            multiple=True,
            metavar="N",
            help="The process; may be repeated.",
            shell_complete=candidates.processes,
        ),
        click.option(
            "--tree",
            "trees",
            type=number,
            multiple=True,
            metavar="N",
            help="The process and all that descend from it, as far as they are Python.",
            shell_complete=candidates.processes,
        ),
        click.option(
            "--name",
            "names",
            multiple=True,
            metavar="TEXT",
            callback=_expressions,
            help="All Python processes in whose command line this regular expression is found, as with pgrep -f.",
        ),
    )
    for option in reversed(options):
        chosen = option(chosen)
    return chosen  # type: ignore[return-value]


def pids_of(selection: Selection) -> list[int]:
    """The processes to look at, one after another: those that were given, there or not, and those that are found."""
    given = list(dict.fromkeys(selection.pids))
    found = [each.pid for each in selection.require()] if selection.grows and not given else []
    if selection.grows and given:
        found = [each.pid for each in selection.find()]
    return [*given, *(pid for pid in found if pid not in given)]
