"""An interpreter of a process's own version, beside the process: where it sees the same files and the same pids."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

from livepatch.core import cpython
from livepatch.core.model import LivepatchError

from .processes import Process, owner

#: The namespaces that decide which files and which processes one sees.
_SPACES = ("ns/mnt", "ns/pid")


def interpreter(process: Process) -> tuple[list[str], dict[str, Any]]:
    """The beginning of a command that runs it, and as which user. Raises LivepatchError if there is none.

    The target's own executable may be anybody's: it never gets another user's rights than the target has.
    """
    here = all(os.path.samefile(f"/proc/{process.pid}/{what}", f"/proc/self/{what}") for what in ("root", *_SPACES))
    if here and cpython.REMOTE_EXEC and process.version == cpython.VERSION:
        return [sys.executable], {}
    if "python" not in os.path.basename(process.executable):
        raise LivepatchError(
            errno.ENOEXEC,
            f"Process {process.pid} has its Python inside {process.executable}; run livepatch with Python"
            f" {process.python} to attach to it, or have it call livepatch.start_agent().",
        )
    if here and _is(process.executable, process.pid):
        user, group = owner(process.pid)
        return [process.executable], {"user": user, "group": group, "extra_groups": []} if os.geteuid() == 0 else {}
    root = os.readlink(f"/proc/{process.pid}/root").rstrip("/")
    enter = [sys.executable, "-I", "-S", str(Path(__file__).with_name("enter.py")), str(process.pid)]
    return [*enter, *map(str, process.inner_owner), process.executable.removeprefix(root)], {}


def _is(path: str, pid: int) -> bool:
    """Whether the path still leads to what the process executes, and not to nothing or to its next release."""
    try:
        return os.path.samefile(path, f"/proc/{pid}/exe")
    except OSError:
        return False
