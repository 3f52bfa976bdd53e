"""What the commands share: exit statuses, options, and one way to show things.

Output is made for a person at a terminal, for a pipe (the same words, nothing cut off, no color) and,
with `--json`, for a program: then stdout has exactly one JSON document, also when the command fails, and
the sentence for the person goes to stderr as ever. `rich` is imported only where something is drawn on a
terminal.
"""

from __future__ import annotations

import errno
import functools
import json
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click

from livepatch.attach import way
from livepatch.attach.client import Client, NotPrepared, Unreachable
from livepatch.attach.processes import NoAccess, Process
from livepatch.core.model import LivepatchError

DONE, REFUSED, USAGE, STALLED, NO_PROCESS, INTERRUPTED = 0, 1, 2, 3, 4, 130

#: Where a terminal is too narrow for a table, no column up to this width is broken. Of what is left, the last one,
#: which may be a sentence, gets twice the share of the others.
_SHORT = 12

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
        widths = [max(map(len, cells)) for cells in zip(columns, *rows, strict=True)]
        if sys.stdout.isatty():
            from rich.console import Console
            from rich.table import Table
            from rich.text import Text

            console = Console(soft_wrap=False)
            full = sum(widths) + 2 * len(widths) > console.width
            drawn = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0), expand=full)
            for column, width in zip(columns, widths, strict=True):
                share = (2 if column == columns[-1] else 1) if full and width > _SHORT else None
                drawn.add_column(column, no_wrap=width <= _SHORT, ratio=share, overflow="fold")
            for row in rows:
                drawn.add_row(*(Text(cell) for cell in row))
            try:
                console.print(drawn)
            except OSError as error:
                self.lost = self.lost or error
            return
        for row in (columns, *rows):
            self._write("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


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


Connect = Callable[[int], Client]

method_option = click.option(
    "--method",
    type=click.Choice(way.METHODS),
    default=way.AUTO,
    show_default=True,
    help="Insist on one way into a process that was not prepared.",
)


def agent_options(command: _Command) -> _Command:
    """How a command that needs the agent gets it: the command is given `connect`, a function from a pid to a client."""

    @method_option
    @click.option("--no-attach", is_flag=True, help="Refuse a process that has no agent yet; do not bring it in.")
    @functools.wraps(command)
    def with_agent(*arguments: Any, method: str, no_attach: bool, **options: Any) -> Any:
        def connect(pid: int) -> Client:
            if no_attach:
                return Client(pid)
            from livepatch.attach import entry

            return entry.attach(pid, method=method)

        return command(*arguments, connect=connect, **options)

    return cast(_Command, with_agent)


def each_process(
    pids: Sequence[int],
    look: Callable[[Client], dict[str, Any]],
    connect: Connect = Client,
    unprepared: Callable[[Process], dict[str, Any]] | None = None,
) -> int:
    """Have a look at several processes, one after another; what one refuses does not keep us from the next.

    Where there is no agent, `unprepared` knows the answer, if it is given. The JSON is a list with one object for each
    process, whether there is one or many. One with an `error` counts as refused.
    """
    results: list[dict[str, Any]] = []
    worst = DONE
    for position, pid in enumerate(dict.fromkeys(pids)):
        if position:
            output.say()
        try:
            with connect(pid) as client:
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


def functions_of(obj: dict[str, Any]) -> list[str]:
    """The functions of a module that a patch changes, and which of them at once: an older agent does not say."""
    at_once = obj.get("immediate", ())
    return [f"{name} (immediate)" if name in at_once else name for name in obj["functions"]]


def state_of(patch: dict[str, Any]) -> str:
    """A patch's state in one word, and in transition how far it is."""
    if patch["transition"]:
        goal = "patching" if patch["enabled"] else "unpatching"
        return f"{goal} ({patch['total'] - patch['left']}/{patch['total']})"
    return "enabled" if patch["enabled"] else "disabled"


def task_rows(tasks: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Tasks that wait, in few words: who, and where it sits."""
    return [[task["kind"], task["name"], _where(task)] for task in tasks]


#: The columns of `blocker_rows`.
BLOCKERS = ("KIND", "TASK", "ORIGIN", "IN", "SINCE", "WHAT WOULD LET IT GO")


def blocker_rows(tasks: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Tasks that are in the way, for a table."""
    return [
        [task["kind"], task["name"], near(task["origin"]), near(_where(task)), since(task), task["hint"] or "-"]
        for task in tasks
    ]


def _where(task: dict[str, Any]) -> str:
    return str((task["blocking"] or task["stack"] or ["-"])[0])


def near(text: str) -> str:
    """The same with file names without their folders, where there is no room for more."""
    return re.sub(r"\((?:[^()]*/)?([^()/]+:\d+)\)", r"(\1)", text) or "-"


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


def since(task: dict[str, Any]) -> str:
    """For how long a task is known to be in the way."""
    seconds = task["seconds"]
    if seconds is None:
        return "-"
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def warning(task: dict[str, Any]) -> str:
    """What is said of a task that is likely to stay in the way: where it is, since when, and what can be done."""
    where = (task["blocking"] or [_where(task)])[-1]  # the outermost is the one that it waits for
    known = (task["seconds"] or 0.0) >= 0.5
    said = f"has been in {where} for {since(task)}" if known else f"is in {where}"
    return f"{task['kind']} {task['name']} {said}: {task['hint']}."
