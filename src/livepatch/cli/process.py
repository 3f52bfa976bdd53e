"""Commands about processes: start one prepared, list them, bring the agent into one."""

from __future__ import annotations

import errno
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import click

from livepatch.attach import processes, way
from livepatch.attach.client import Client, NotPrepared, Unreachable
from livepatch.core.model import LivepatchError
from livepatch.screens.words import state_of

from . import candidates
from .common import DONE, attached, describe, json_option, method_option, output

_NOT_FOUND, _NOT_EXECUTABLE = 127, 126  # as env, nohup and the shells have it

#: Seconds that `ps` gives an agent, and how many it asks at once.
_PATIENCE, _AT_ONCE = 1.0, 32


@click.command("run", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False})
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, shell_complete=candidates.programs)
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


#: What stands in the way, in a few words, by error.
_SHORT: dict[int | None, str] = {errno.EPROTO: "not an agent of this livepatch", errno.ENOTCONN: "its socket is gone"}


@click.command("ps")
@json_option
def ps_command() -> int:
    """List the Python processes, and whether they can be patched.

    \b
    AGENT says  yes         it is there
                attachable  the first command that needs it brings it in
                no answer   it is there, but the process is stopped or busy
                no: ...     why it cannot be brought in; `livepatch attach PID` says what to do

    Nothing is touched: what no agent says is read from /proc. Of other users' processes only root sees more than that
    they are there.
    """
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = [entry for entry in pool.map(_looked_at, processes.pythons()) if entry is not None]
    output.table(["PID", "PYTHON", "AGENT", "PATCHES", "COMMAND"], [_row(entry) for entry in found])
    output.result(found)
    return output.status(DONE)


def _looked_at(process: processes.Process) -> dict[str, Any] | None:
    """What `ps` tells of a process; None if it has ended meanwhile."""
    entry: dict[str, Any] = {
        "pid": process.pid,
        "python": process.python,
        "uid": process.uid,
        "agent": "no",
        "ways": [],
        "patches": [],
        "command": process.title,
        "brief": process.brief,
    }
    deadline = time.monotonic() + _PATIENCE
    try:
        if process.open:
            try:
                with Client(process.pid, timeout=_PATIENCE) as client:
                    patches = client.call("list", timeout=max(deadline - time.monotonic(), 0.001))
                    return {**entry, "agent": "yes", "python": client.hello["python"], "patches": patches}
            except Unreachable:
                raise
            except NotPrepared:
                pass
        return {**entry, "agent": "attachable", "ways": way.into(process)}
    except LivepatchError as error:
        if not processes.alive(process.pid):
            return None
        short = error.short if isinstance(error, way.NoWay) else _SHORT.get(error.errno, str(error))
        refusal = {"short": short, **describe(error.errno or errno.EIO, str(error))}
        return {**entry, "agent": "no answer" if error.errno == errno.ETIMEDOUT else "no", "error": refusal}


def _row(entry: dict[str, Any]) -> list[str]:
    """A process in a line. Of a patch that is simply enabled, the name is enough."""
    agent = f"no: {entry['error']['short']}" if entry["agent"] == "no" else entry["agent"]
    states = ((patch["name"], state_of(patch)) for patch in entry["patches"])
    patches = ", ".join(name if state == "enabled" else f"{name} {state}" for name, state in states)
    return [str(entry["pid"]), str(entry["python"]), agent, patches or "-", entry["brief"]]


@click.command("attach")
@click.argument("pid", type=click.IntRange(min=1), shell_complete=candidates.processes)
@method_option
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    metavar="SECONDS",
    help="How long the process may take to let the agent in.",
)
@json_option
def attach_command(pid: int, method: str, timeout: float) -> int:
    """Bring the agent into a running process that was not prepared.

    Commands that need the agent do that by themselves. What the process notices, and when it is refused, is in
    docs/attach.md.
    """
    with attached(pid, timeout=timeout, method=method) as client:
        output.say(f"Process {pid} (Python {client.hello['python']}) can be patched.")
        output.result({"pid": pid, "hello": client.hello})
    return DONE
