"""`sys.remote_exec` (Python 3.14 and newer, PEP 768): run a script in the main thread of another interpreter.

It reports success as soon as the request is noted. If the main thread is blocked, nothing happens until it wakes up,
and nobody is told.

It insists on the same version at both ends. If ours is another, the target's own executable does it, inside the
target's root and pid namespace if those are not ours.
"""

from __future__ import annotations

import errno
import subprocess

from livepatch.core.model import LivepatchError

from . import beside
from .processes import NoAccess, Process

#: Seconds that the interpreter which asks may take.
_TIMEOUT = 5.0

_HELPER = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"


def request(process: Process, script: str) -> None:
    """Ask the target to run the script, from an interpreter of its version."""
    command, user = beside.interpreter(process)
    command += ["-I", "-S", "-c", _HELPER, str(process.inner_pid), script]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT, env={}, **user
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise LivepatchError(
            errno.ENOEXEC, f"Process {process.pid} cannot be attached to: {command[0]} does not run ({error})."
        ) from None
    if done.returncode:
        said = (done.stderr.strip().splitlines() or [f"{command[0]} ended with status {done.returncode}"])[-1]
        kind, _, text = said.partition(": ")
        if kind == "PermissionError":
            raise NoAccess(
                errno.EPERM,
                f"The system does not let livepatch attach to process {process.pid} ({text}); run it as root, or start"
                " the process with `livepatch run -- ...`.",
            )
        raise LivepatchError(errno.ENOEXEC, f"Process {process.pid} cannot be attached to: {text or said}.")
