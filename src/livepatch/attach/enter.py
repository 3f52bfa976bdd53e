"""Become the interpreter of another process, beside it: in its world and with its rights. A program of its own.

    enter.py PID UID GID PATH ARGUMENT...

It goes into the process's namespaces and below its root, becomes user UID and group GID, as the process knows them, and
executes the very file that the process executes, wherever that is and whether or not it still has a name; PATH is what
it tells the file that it is called, so that it finds its library. `nsenter` does not do: it goes by the file's name,
and it wants to drop groups where a user namespace does not let it.

Only the standard library is needed, and only what `-I -S` leaves of it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from contextlib import suppress

_PR_SET_PDEATHSIG, _SIGKILL = 1, 9


def main(pid: str, uid: str, gid: str, path: str, *arguments: str) -> int:
    process = f"/proc/{pid}"
    # All of it is opened first: afterwards /proc may be another one, and the process another user's.
    program = os.open(f"{process}/exe", os.O_PATH | os.O_CLOEXEC)
    root = os.open(f"{process}/root", os.O_PATH | os.O_CLOEXEC)
    spaces = {
        name: os.open(f"{process}/ns/{name}", os.O_RDONLY | os.O_CLOEXEC)
        for name in ("mnt", "pid", "user")
        if not os.path.samefile(f"{process}/ns/{name}", f"/proc/self/ns/{name}")
    }
    elsewhere = bool(spaces) or not os.path.samefile(f"{process}/root", "/proc/self/root")
    privileged = os.geteuid() == 0
    if privileged:
        with suppress(PermissionError):  # where nobody may, nobody has any that count outside
            os.setgroups([])
    # Root has its rights outside, an ordinary user only in a user namespace of its own.
    for name in sorted(spaces, key=["mnt", "pid", "user"].index, reverse=not privileged):
        _check(_libc.setns(spaces[name], 0), f"setns {name}")
    if elsewhere:
        os.chdir(root)
        os.chroot(".")
    child = os.fork()  # a pid namespace has only those in it that are born there
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) & 0xFF
    if privileged or "user" in spaces:
        os.setresgid(int(gid), int(gid), int(gid))
        os.setresuid(int(uid), int(uid), int(uid))
    _check(_libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0), "prctl")
    os.execve(program, [path, *arguments], {})


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        raise OSError(ctypes.get_errno(), f"{os.strerror(ctypes.get_errno())} ({what})")


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
