"""Commands about processes: start one prepared, list them, bring the agent into one."""

from __future__ import annotations

from typing import Any

import click

from livepatch.attach import processes
from livepatch.attach.client import Client, NotPrepared
from livepatch.core.model import LivepatchError

from .common import DONE, json_option, output

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as env, nohup and the shells have it


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
def run_command(command: tuple[str, ...]) -> int:
    """Start a command so that every Python in it can be patched later.

    \b
      livepatch run -- gunicorn app:app

    The command replaces livepatch: same process, same exit status. Pythons that it starts are prepared, too.
    """
    from livepatch.attach import prepare

    try:
        prepare.run(list(command))
    except OSError as error:
        output.warn(f"{command[0]}: {error.strerror}.")
        return _NOT_FOUND if isinstance(error, FileNotFoundError) else _NOT_EXECUTABLE
    raise AssertionError("execvpe returned")


@click.command("ps")
@json_option
def ps_command() -> int:
    """List the Python processes, and whether they can be patched.

    \b
    AGENT says:  yes         it can be patched at once
                 attachable  the first load brings the agent in (Python 3.14 or newer)
                 no          it must be started with `livepatch run`
    """
    found = [_looked_at(process) for process in processes.pythons()]
    rows = [
        [str(entry["pid"]), entry["python"], entry["agent"], ", ".join(entry["patches"]) or "-", entry["command"]]
        for entry in found
    ]
    output.table(["PID", "PYTHON", "AGENT", "PATCHES", "COMMAND"], rows)
    output.result(found)
    return DONE


def _looked_at(process: processes.Process) -> dict[str, Any]:
    python, agent, patches = process.python, "no", []
    try:
        with Client(process.pid, timeout=1.0) as client:
            python, agent = client.hello["python"], "yes"
            patches = [patch["name"] for patch in client.call("list", timeout=1.0)]
    except NotPrepared:
        if process.takes_remote_exec:
            agent = "attachable"
    except LivepatchError as error:
        agent = f"no: {error}"
    return {
        "pid": process.pid,
        "python": python,
        "uid": process.uid,
        "agent": agent,
        "patches": patches,
        "command": process.title,
    }


@click.command("attach")
@click.argument("pid", type=click.IntRange(min=1))
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the process may take to let the agent in.",
)
@json_option
def attach_command(pid: int, timeout: float) -> int:
    """Bring the agent into a running process that was not prepared (Python 3.14 or newer)."""
    from livepatch.attach import entry

    with entry.attach(pid, timeout=timeout) as client:
        output.say(f"Process {pid} (Python {client.hello['python']}) can be patched.")
        output.result({"pid": pid, "hello": client.hello})
    return DONE
