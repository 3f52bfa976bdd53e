"""What the commands share: exit statuses, options, and one way to show things.

Output is made for a person at a terminal, for a pipe (the same words, nothing cut off, no color) and,
with `--json`, for a program: then stdout has exactly one JSON document, also when the command fails, and
the sentence for the person goes to stderr as ever. `rich` is imported only where something is drawn on a
terminal, and what speaks to processes only by commands that do.
"""

from __future__ import annotations

import errno
import functools
import json
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from livepatch.core.model import LivepatchError
from livepatch.screens.words import BLOCKERS, blocker_rows

if TYPE_CHECKING:
    from livepatch.attach.client import Client
    from livepatch.attach.processes import Process

DONE, REFUSED, USAGE, STALLED, NO_PROCESS, INTERRUPTED = 0, 1, 2, 3, 4, 130

_Command = TypeVar("_Command", bound=Callable[..., Any])


class Output:
    """Where a command's words go.

    If they cannot be written (a full disk, a terminal that is gone), `lost` says why, and the command goes on: what it
    does to processes must not end half-way because nobody reads about it.
    """

    def __init__(self) -> None:
        self.json = False
        self.lost: OSError | None = None

    def begin(self) -> None:
        """Another command line."""
        self.json, self.lost = False, None

    def status(self, status: int) -> int:
        """The exit status of a command whose words are all that it does."""
        return max(status, REFUSED) if self.lost is not None else status

    def _write(self, text: str, *, err: bool = False) -> None:
        try:
            click.echo(text, err=err)
        except OSError as error:
            self.lost = self.lost or error

    def say(self, line: str = "") -> None:
        """A line for a person; a program gets the result only."""
        if not self.json:
            self._write(line)

    def warn(self, line: str) -> None:
        """A line for the person even if a program reads the result."""
        self._write(f"livepatch: {line}", err=True)

    def result(self, value: Any) -> None:
        """What a program gets; a person has been told already."""
        if self.json:
            self._write(json.dumps(value, indent=2))

    def fail(self, number: int, sentence: str) -> None:
        self.warn(sentence)
        self.result({"error": describe(number, sentence)})

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Rows for a person, in columns."""
        if self.json:
            return
        if self.terminal:
            self.draw(lambda draw, width: draw.table(columns, rows, width))
            return
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            self._write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())

    @property
    def terminal(self) -> bool:
        """Whether a person sits in front of it, and lines may be drawn instead of said."""
        return not self.json and sys.stdout.isatty()

    def draw(self, drawing: Callable[[ModuleType, int], Any]) -> None:
        """Draw what a function makes of the module `draw` and the width; only on a terminal."""
        from livepatch.screens import draw

        console = draw.console()
        try:
            console.print(drawing(draw, console.width))
        except OSError as error:
            self.lost = self.lost or error


output = Output()


def describe(number: int, sentence: str) -> dict[str, Any]:
    """An error as a program gets it."""
    return {"errno": number, "symbol": errno.errorcode.get(number, str(number)), "sentence": sentence}


def json_option(command: _Command) -> _Command:
    """`--json`, for every command that shows something."""

    def switch(ctx: click.Context, option: click.Parameter, value: bool) -> None:
        output.json = value

    return click.option(
        "--json", is_flag=True, is_eager=True, expose_value=False, callback=switch, help="Print JSON, for programs."
    )(command)


Connect = Callable[[int], "Client"]


def method_option(command: _Command) -> _Command:
    """`--method`."""
    from livepatch.attach import way

    return click.option(
        "--method",
        type=click.Choice(way.METHODS),
        default=way.AUTO,
        show_default=True,
        help="Insist on one way into a process that was not prepared.",
    )(command)


def agent_options(command: _Command) -> _Command:
    """How a command that needs the agent gets it: the command is given `connect`, a function from a pid to a client."""

    @method_option
    @click.option("--no-attach", is_flag=True, help="Refuse a process that has no agent yet; do not bring it in.")
    @functools.wraps(command)
    def with_agent(*arguments: Any, method: str, no_attach: bool, **options: Any) -> Any:
        def connect(pid: int) -> Client:
            from livepatch.attach.client import Client

            return Client(pid) if no_attach else attached(pid, method=method)

        return command(*arguments, connect=connect, **options)

    return cast(_Command, with_agent)


def attached(pid: int, **options: Any) -> Client:
    """A connection to the agent of a process, which is brought in if it is not there; that is recorded."""
    from livepatch.attach.client import Client, NotPrepared

    try:
        return Client(pid)
    except NotPrepared as error:
        from livepatch.attach import entry
        from livepatch.observe import trail

        with trail.recorded("attach", targets=[trail.process_of(error.process)]):
            return entry.attach(pid, **options)


def each_process(
    pids: Sequence[int],
    look: Callable[[Client], dict[str, Any]],
    connect: Connect | None = None,
    unprepared: Callable[[Process], dict[str, Any]] | None = None,
    *,
    apart: bool = True,
) -> int:
    """Have a look at several processes, one after another; what one refuses does not keep us from the next.

    Where there is no agent, `unprepared` knows the answer, if it is given. The JSON is a list with one object for each
    process, whether there is one or many. One with an `error` counts as refused. `apart`: there is a line between two.
    """
    from livepatch.attach.client import Client, NotPrepared, Unreachable
    from livepatch.attach.processes import NoAccess

    results: list[dict[str, Any]] = []
    worst = DONE
    for position, pid in enumerate(dict.fromkeys(pids)):
        if position and apart:
            output.say()
        try:
            with (connect or Client)(pid) as client:
                results.append({"pid": pid, "prepared": True, **look(client)})
            worst = max(worst, REFUSED if results[-1].get("error") else DONE)
        except LivepatchError as error:
            if isinstance(error, NotPrepared) and not isinstance(error, Unreachable) and unprepared is not None:
                results.append({"pid": pid, "prepared": False, **unprepared(error.process)})
                continue
            output.warn(str(error))
            results.append({"pid": pid, "error": describe(error.errno or errno.EINVAL, str(error))})
            worst = max(worst, NO_PROCESS if isinstance(error, NoAccess) else REFUSED)
    output.result(results)
    return output.status(worst)


def show_blockers(tasks: Sequence[dict[str, Any]]) -> None:
    """Tasks that are in the way, and what would let them go."""
    if output.terminal:
        output.draw(lambda draw, width: draw.blockers(tasks))
    else:
        output.table(BLOCKERS, blocker_rows(tasks))


def show_walks(found: dict[str, Any]) -> None:
    """Whose live instances a patch goes through, and what that costs; an older agent does not tell."""
    if not found.get("instances"):
        return
    output.say("It goes through live instances; for each time, all threads stop while they are listed:")
    rows = [
        [
            walk["class"],
            "-" if walk["live"] is None else str(walk["live"]),
            str(walk["objects"]),
            f"{walk['seconds']:.3f} s",
        ]
        for walk in found["instances"]
    ]
    output.table(["CLASS", "INSTANCES", "OBJECTS ON THE HEAP", "STOP"], rows)
