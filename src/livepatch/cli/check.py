"""The command that says beforehand what a patch would do to a process, and if it does not fit, in what way."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from livepatch.attach.client import Client
from livepatch.fleet.selection import Selection
from livepatch.fleet.transaction import has_none_of_it
from livepatch.screens.words import functions_of, warning

from . import candidates
from .common import Connect, agent_options, describe, each_process, json_option, output, show_blockers, show_walks
from .targets import pids_of, targets_option

State = dict[str, Any]

_File = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

#: Seconds between two looks at who stays in the way, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0
#: Lines of a difference that are shown; --json has both sources.
_LINES = 20


@click.command("check")
@click.argument("file", type=_File, shell_complete=candidates.patch_files)
@targets_option
@click.option(
    "--watch",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="If tasks are in the way, see for so long which of them stay there; 0 does not wait.",
)
@agent_options
@json_option
def check_command(file: Path, selection: Selection, watch: float, connect: Connect) -> int:
    """Say whether a patch fits a process, what it would change, and who would stand in the way; changes
    nothing.

    Of an archive it says which release was found there, function by function whether it is what the patch was built
    for and what it is if not, and which other patches' versions it would lie in front of. The exit status is 1 if
    the patch does not fit.

    If it goes through live instances, it says of which classes, how many there are, and for how long all threads stop
    while they are listed.

    The agent is brought into the process if it is not there yet. A patch written by hand (a .py file) is
    executed to be checked.
    """

    def look(client: Client) -> dict[str, Any]:
        found = client.send_file("check", file)
        if has_none_of_it(found) and client.pid not in selection.pids:
            output.say(f"Process {client.pid} has none of the modules that the patch changes, and would be left alone.")
            return {**found, "error": None, "unconcerned": True}
        error = found.get("error")
        if error is not None:
            output.say(f"{file.name} does not fit process {client.pid}. Found there:")
        else:
            output.say(f"'{found['name']}' fits process {client.pid}. It would change:")
        _show(found)
        if error is not None:
            output.warn(error["sentence"])
            return {**found, "error": describe(error["errno"], error["sentence"])}
        show_walks(found)
        if found["blocking"]:
            output.say("In the way now, if they stay there:")
            show_blockers(found["blocking"])
        else:
            output.say("No task is in the way now.")
        return {**found, "stay": _watched(client, found["blocking"], watch) if watch else []}

    return each_process(pids_of(selection), look, connect=connect)


def _show(found: State) -> None:
    """What an archive finds here, in detail; of a patch written by hand, the functions."""
    if not found.get("modules"):  # nor does an agent that is older than this command tell them
        rows = [[obj["name"], function] for obj in found.get("objects", ()) for function in functions_of(obj)]
        output.table(["MODULE", "FUNCTION"], rows)
        return
    for release in found["releases"]:
        output.say(_release(release))
    would = _would(found)
    rows = [
        [module["name"], function["name"], function["state"], would(function), _why(function)]
        for module in found["modules"]
        for function in module["functions"]
    ]
    if rows:
        output.table(["MODULE", "FUNCTION", "FOUND", "WOULD BE", "WHY"], rows)
    for module in found["modules"]:
        for fate, names in module["names"].items():
            later = "" if module["imported"] else ", when it is imported"
            output.say(f"{fate.replace('_', ' ')} in {module['name']}{later}: {', '.join(names)}")
        for function in module["functions"]:
            for line in _difference(module, function):
                output.say(line)


def _release(release: State) -> str:
    """Which release was found, and which is expected."""
    name, imported, installed = release["name"], release["imported"], release["installed"]
    found = f"{name} {imported} is imported" if imported else f"The version of the imported {name} is not known"
    if installed is not None:
        found += f" and {installed} is on disk"
    return f"{found}; the patch makes {release['to']} of {release['from']}."


def _would(found: State) -> Callable[[State], str]:
    """What a function would be with the patch, in words."""

    def word(function: State) -> str:
        if "error" in found:
            return "-"
        if function["state"] == "not imported":
            return "active when imported"
        if function["state"] == "not defined here":
            return "left out"
        others = ", ".join(f"'{name}'" for name in function["patches"])
        active = "active at once" if function.get("immediate") else "active"  # an older agent does not tell
        if not others:
            return active
        return f"{active}, {'instead of' if found['replace'] else 'in front of'} {others}"

    return word


def _why(function: State) -> str:
    """What there is to say about it: why it does not fit, or why it takes no part in the transition."""
    return function["how"] or (function["reason"] if function.get("immediate") else "") or "-"


def _difference(module: State, function: State) -> Iterator[str]:
    """The lines in which a function differs from what the patch expects, if both sources are known."""
    expected, live = function["expected"], function["live"]
    if expected is None or live is None:
        return
    names = f"{function['name']} expected", f"{function['name']} in {module['file']}"
    lines = list(difflib.unified_diff(expected.splitlines(), live.splitlines(), *names, lineterm="", n=1))
    yield from lines[:_LINES]
    if len(lines) > _LINES:
        yield f"... and {len(lines) - _LINES} lines more"


def _watched(client: Client, tasks: list[State], watch: float) -> list[State]:
    """Those that are in the very same call until the end of the time; it is over early when there are none."""
    if not tasks:
        return []
    output.say(f"Seeing which of them stay there, for up to {watch:g} s ...")
    until, pause = time.monotonic() + watch, _FIRST_PAUSE
    stay, idents = tasks, {(task["kind"], task["ident"]) for task in tasks}
    over = False
    while stay and not over:  # of whom nobody has looked at again nothing is said: at least once
        time.sleep(max(0.0, min(pause, until - time.monotonic())))
        asked = time.monotonic()
        over = asked >= until
        stay = [task for task in client.call("still") if (task["kind"], task["ident"]) in idents]
        # Never more than a tenth of the target's time.
        pause = max(min(pause * 2, _LONGEST_PAUSE), 10 * (time.monotonic() - asked))
    if stay and output.terminal:
        output.say("These were there all the time:")
        show_blockers(stay)
    else:
        for task in stay:
            output.warn(warning(task))
    if not stay:
        output.say("None of them was seen to stay.")
    elif len(stay) < len(tasks):
        output.say(f"{len(stay)} of {len(tasks)} were seen to stay.")
    return stay
