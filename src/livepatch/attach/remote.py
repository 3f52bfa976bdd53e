"""`sys.remote_exec` (Python 3.14 and newer, PEP 768): run a script in the main thread of another interpreter.

It reports success as soon as the request is noted. If the main thread is blocked, nothing happens until it wakes up,
and nobody is told.

It insists on the same version at both ends. If ours is another, the target's own executable does it, inside the
target's root and pid namespace if those are not ours.

Where that interpreter is killed, or takes too long, nobody knows whether the target has the request. One that has it
and finds no script complains to the program's own errors, so then the script has to stay where it is.
"""

from __future__ import annotations

import errno
import subprocess
from collections.abc import Callable, Mapping
from contextlib import suppress

from livepatch.core.model import LivepatchError

from . import beside
from .processes import NoAccess, Process

#: Seconds that the interpreter which asks may take, and for which Ctrl-C waits for what it has just begun.
_TIMEOUT, _ENDS = 5.0, 1.0

_HELPER = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"

#: The exit status of an interpreter that raised, and so has not asked.
_RAISED = 1


def request(process: Process, script: str, take_back: Callable[[], object]) -> None:
    """Ask the target to run the script, from an interpreter of its version.

    Raises LivepatchError if it was not asked, and perhaps if it was; `take_back` is called where that is certain.
    """
    try:
        command, user = beside.interpreter(process)
    except BaseException:
        take_back()
        raise
    command += ["-I", "-S", "-c", _HELPER, str(process.inner_pid), script]
    try:
        status, errors = _run(command, user, take_back)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LivepatchError(
            errno.ENOEXEC, f"Process {process.pid} cannot be attached to: {command[0]} does not run ({error})."
        ) from None
    if status:
        said = (errors.strip().splitlines() or [f"{command[0]} ended with status {status}"])[-1]
        kind, _, text = said.partition(": ")
        if kind == "PermissionError":
            raise NoAccess(
                errno.EPERM,
                f"The system does not let livepatch attach to process {process.pid} ({text}); run it as root, or start"
                " the process with `livepatch run -- ...`.",
            )
        raise LivepatchError(errno.ENOEXEC, f"Process {process.pid} cannot be attached to: {text or said}.")


def _run(command: list[str], user: Mapping[str, object], take_back: Callable[[], object]) -> tuple[int, str]:
    """The exit status, and what it said. It does not hear of Ctrl-C at a terminal, which would be in the middle."""
    try:
        asking = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env={},
            start_new_session=True,
            **user,  # type: ignore[call-overload]
        )
    except BaseException:
        take_back()
        raise
    with asking:
        try:
            _, errors = asking.communicate(timeout=_TIMEOUT)
        except BaseException:
            with suppress(subprocess.TimeoutExpired):
                asking.wait(_ENDS)
            asking.kill()
            raise
        finally:
            if asking.poll() == _RAISED:
                take_back()
    return asking.returncode, errors
