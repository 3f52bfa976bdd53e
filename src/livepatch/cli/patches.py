"""Commands that change a process."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import click

from livepatch.archive import format
from livepatch.attach.client import Client
from livepatch.core.model import LivepatchError

from .common import (
    DONE,
    Connect,
    agent_options,
    json_option,
    one_pid_option,
    output,
    show_walks,
    task_rows,
)
from .settle import State, settle

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


@click.command("load")
@click.argument("file", type=_PatchFile)
@one_pid_option
@_timeout_option
@_on_stall_option
@agent_options
@json_option
def load_command(file: Path, pid: int, timeout: float, on_stall: str, connect: Connect) -> int:
    """Load a patch into a process: all of it takes effect, or nothing.

    FILE is an archive made by `livepatch build`, or a patch written by hand (a .py file). Waits until
    every task of the process runs the new code. The agent is brought into the process if it is not there yet.
    """
    with connect(pid) as client:
        known = {patch["name"] for patch in client.call("list")}
        walks = _walks(client, file)

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
    output.result({"pid": pid, **state, **walks})
    return status


def _walks(client: Client, file: Path) -> State:
    """What a patch that goes through live instances is about to cost, shown before anything is touched."""
    try:
        written = file.read_bytes() if file.suffix == ".py" else format.read(file.read_bytes()).hooks or b""
    except LivepatchError:  # the process says why it refuses that
        return {}
    if b"instance" not in written:  # a needless check does no harm
        return {}
    found = client.send_file("check", file)
    show_walks(found)
    return {"instances": found.get("instances", [])}


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
