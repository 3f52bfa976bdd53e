"""`sys.remote_exec` (Python 3.14 and newer, PEP 768): run a script in the main thread of another interpreter.

It reports success as soon as the request is noted. If the main thread is blocked, nothing happens until it wakes up,
and nobody is told.

It insists on the same version at both ends. If ours is another, the target's own executable does it, inside the
target's root and pid namespace if those are not ours.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from livepatch.core import cpython
from livepatch.core.model import LivepatchError

from .processes import NoAccess, Process

#: Seconds that the interpreter which asks may take.
_TIMEOUT = 5.0

#: The namespaces that decide which files and which processes one sees.
_SPACES = ("ns/mnt", "ns/pid")

_HELPER = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"


def request(process: Process, script: str) -> None:
    """Ask the target to run the script, from an interpreter of its version."""
    command, user = interpreter(process)
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


def interpreter(process: Process) -> tuple[list[str], dict[str, Any]]:
    """The beginning of a command that runs an interpreter of the target's version beside the target, and
    as which user.

    The target's own executable may be anybody's: it never gets another user's rights than the target has.
    """
    here = all(os.path.samefile(f"/proc/{process.pid}/{what}", f"/proc/self/{what}") for what in ("root", *_SPACES))
    if here and cpython.REMOTE_EXEC and (3, process.minor) == cpython.VERSION:
        return [sys.executable], {}
    if "python" not in os.path.basename(process.executable):
        raise LivepatchError(
            errno.ENOEXEC,
            f"Process {process.pid} has its Python inside {process.executable}; run livepatch with Python"
            f" {process.python} to attach to it, or have it call livepatch.start_agent().",
        )
    group = os.stat(f"/proc/{process.pid}").st_gid
    if here:
        user = {"user": process.uid, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}
        return [process.executable], user
    root = os.readlink(f"/proc/{process.pid}/root").rstrip("/")
    enter = ["nsenter", f"--target={process.pid}", "--mount", "--pid", "--root", "--wd"]
    enter += [f"--setuid={process.uid}", f"--setgid={group}"] if os.geteuid() == 0 else []
    return [*enter, "--", process.executable.removeprefix(root)], {}


def disabled(process: Process) -> bool:
    if any("disable-remote-debug" in word or "disable_remote_debug" in word for word in process.command):
        return True
    try:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(b"PYTHON_DISABLE_REMOTE_DEBUG=") for entry in environment)
