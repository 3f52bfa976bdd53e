"""Commands that change a process, and the one that says beforehand what would happen."""

from __future__ import annotations

import errno
import sys
import time
from pathlib import Path
from typing import Any

import click

from livepatch.attach.client import Client, NotPrepared
from livepatch.core.model import LivepatchError

from .common import (
    BLOCKERS,
    DONE,
    blocker_rows,
    each_process,
    json_option,
    one_pid_option,
    output,
    pid_option,
    task_rows,
    warning,
)
from .settle import State, settle

#: Seconds between two looks at who stays in the way, at first and at most.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 1.0

_PatchFile = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


_timeout_option = click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=30.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for all tasks to move.",
)
_on_stall_option = click.option(
    "--on-stall",
    type=click.Choice(["reverse", "keep", "force"]),
    default="reverse",
    show_default=True,
    help="If not all tasks have moved by then: go back, let it go on, or move them by force (inconsistently).",
)


def _connect(pid: int) -> Client:
    """The agent of a process, brought into it first if it was not prepared and that is possible."""
    try:
        return Client(pid)
    except NotPrepared:
        from livepatch.attach import remote

        return remote.attach(pid)


@click.command("load")
@click.argument("file", type=_PatchFile)
@one_pid_option
@_timeout_option
@_on_stall_option
@json_option
def load_command(file: Path, pid: int, timeout: float, on_stall: str) -> int:
    """Load a patch into a process: all of it takes effect, or nothing.

    FILE is an archive made by `livepatch build`, or a patch written by hand (a .py file). Waits until
    every task of the process runs the new code.
    """
    with _connect(pid) as client:
        known = {patch["name"] for patch in client.call("list")}

        def find(other: Client) -> State | None:
            return next((patch for patch in other.call("list") if patch["name"] not in known), None)

        status, state = settle(client, lambda: client.send_file("load", file), find, timeout=timeout, on_stall=on_stall)
        if status == DONE:
            output.say(f"'{state['name']}' is loaded into process {pid}: {_extent(state)}.")
    if state.get("stalled") == "reversed" and not state["transition"]:
        # Nothing of it is to stay behind; the same file can be loaded again. The old connection may be in
        # disorder.
        with Client(pid) as client:
            client.call("unload", name=state["name"])
    output.result({"pid": pid, **state})
    return status


def _extent(state: State) -> str:
    functions = sum(len(obj["functions"]) for obj in state["objects"] if obj["patched"])
    waiting = [obj["name"] for obj in state["objects"] if not obj["patched"]]
    said = f"{functions} {'function' if functions == 1 else 'functions'} patched"
    if waiting:
        said += f" ({', '.join(waiting)} not imported yet: patched when it is)"
    return said


@click.command("disable")
@click.argument("name")
@one_pid_option
@_timeout_option
@_on_stall_option
@click.option("--unload", is_flag=True, help="Unload the patch as well, when it is disabled.")
@json_option
def disable_command(name: str, pid: int, timeout: float, on_stall: str, unload: bool) -> int:
    """Take a patch back: every task returns to the code without it.

    If the patch is just being loaded, this reverses that.
    """
    with Client(pid) as client:
        status, state = settle(
            client,
            lambda: client.call("write_enabled", name=name, value="0"),
            lambda other: other.call("status", name=name),
            timeout=timeout,
            on_stall=on_stall,
        )
        if status == DONE and unload:
            client.call("unload", name=name)
        if status == DONE:
            output.say(f"'{name}' is {'unloaded' if unload else 'disabled'} in process {pid}.")
    output.result({"pid": pid, **state, "unloaded": status == DONE and unload})
    return status


@click.command("enable")
@click.argument("name")
@one_pid_option
@_timeout_option
@_on_stall_option
@json_option
def enable_command(name: str, pid: int, timeout: float, on_stall: str) -> int:
    """Reverse the running disable of a patch.

    A patch that is disabled cannot be enabled again: unload it and load it anew.
    """
    with Client(pid) as client:

        def begin() -> State:
            try:
                state: State = client.call("write_enabled", name=name, value="1")
            except LivepatchError as error:
                if error.errno != errno.ENOENT:
                    raise
                raise LivepatchError(errno.ENOENT, f"{error} Only a running disable can be reversed.") from None
            return state

        status, state = settle(
            client, begin, lambda other: other.call("status", name=name), timeout=timeout, on_stall=on_stall
        )
        if status == DONE:
            output.say(f"'{name}' is enabled in process {pid}.")
    output.result({"pid": pid, **state})
    return status


@click.command("force")
@click.argument("name")
@one_pid_option
@click.option("--yes", is_flag=True, help="Do not ask.")
@_timeout_option
@json_option
def force_command(name: str, pid: int, yes: bool, timeout: float) -> int:
    """End a running transition by force, wherever the remaining tasks are.

    Their calls go on in the version in which they began while new calls run the other one: both worlds at
    once in the same task. After a forced disable the patch can never be unloaded.
    """
    with Client(pid) as client:
        state = client.call("status", name=name, blockers=5)
        if not yes:
            if not sys.stdin.isatty():
                raise LivepatchError(errno.EPERM, "Force gives up consistency; say --yes if that is meant.")
            _ask(state)
        status, state = settle(
            client,
            lambda: client.call("force", name=name),
            lambda other: other.call("status", name=name),
            timeout=timeout,
            on_stall="keep",
        )
        if status == DONE:
            goal = "enabled" if state["enabled"] else "disabled"
            output.say(f"'{name}' is {goal} in process {pid}, by force.")
            if state["forced"]:
                output.say("It can never be unloaded: tasks may still be inside of it.")
    output.result({"pid": pid, **state})
    return status


def _ask(state: State) -> None:
    if state["transition"]:
        click.echo(
            f"{state['left']} of {state['total']} tasks are still in code that '{state['name']}' changes:", err=True
        )
        for kind, task, where in task_rows(state["blocking"]):
            click.echo(f"  {kind} {task}: {where}", err=True)
    consequence = "these tasks will run old and new code side by side"
    if not state["enabled"]:
        consequence += ", and the patch can never be unloaded"
    click.confirm(f"After force {consequence}. Do it?", abort=True, err=True)


@click.command("unload")
@click.argument("name")
@one_pid_option
@json_option
def unload_command(name: str, pid: int) -> int:
    """Forget a disabled patch, so that it can be loaded again."""
    with Client(pid) as client:
        client.call("unload", name=name)
    output.say(f"'{name}' is unloaded from process {pid}.")
    output.result({"pid": pid, "name": name, "unloaded": True})
    return DONE


@click.command("check")
@click.argument("file", type=_PatchFile)
@pid_option
@click.option(
    "--watch",
    type=click.FloatRange(min=0),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="If tasks are in the way, see for so long which of them stay there; 0 does not wait.",
)
@json_option
def check_command(file: Path, pids: tuple[int, ...], watch: float) -> int:
    """Say whether a patch fits a process, what it would change, and who would stand in the way; changes
    nothing.

    The agent is brought into the process if it is not there yet. A patch written by hand (a .py file) is
    executed to be checked.
    """

    def look(client: Client) -> dict[str, Any]:
        found = client.send_file("check", file)
        output.say(f"'{found['name']}' fits process {client.pid}. It would change:")
        rows = [[obj["name"], function] for obj in found["objects"] for function in obj["functions"]]
        output.table(["MODULE", "FUNCTION"], rows)
        if found["blocking"]:
            output.say("In the way now, if they stay there:")
            output.table(BLOCKERS, blocker_rows(found["blocking"]))
        else:
            output.say("No task is in the way now.")
        return {**found, "stay": _watched(client, found["blocking"], watch) if watch else []}

    return each_process(pids, look, connect=_connect)


def _watched(client: Client, tasks: list[State], watch: float) -> list[State]:
    """Those that are in the very same call until the end of the time; it is over early when there are none."""
    if not tasks:
        return []
    output.say(f"Seeing which of them stay there, for up to {watch:g} s ...")
    deadline, pause = time.monotonic() + watch, _FIRST_PAUSE
    stay, idents = tasks, {(task["kind"], task["ident"]) for task in tasks}
    while stay and (left := deadline - time.monotonic()) > 0:
        time.sleep(min(pause, left))
        pause = min(pause * 2, _LONGEST_PAUSE)
        stay = [task for task in client.call("still") if (task["kind"], task["ident"]) in idents]
    for task in stay:
        output.warn(warning(task))
    if not stay:
        output.say("None of them stayed.")
    elif len(stay) < len(tasks):
        output.say(f"{len(tasks) - len(stay)} of {len(tasks)} did not stay.")
    return stay
