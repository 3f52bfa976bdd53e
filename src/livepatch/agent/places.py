"""Where an agent's socket is, and why nobody else can put one there.

`/tmp/livepatch-<uid>/<pid>.sock`, both numbers as the process itself sees them, or the same below `/dev/shm` where
`/tmp` takes none: a container with a read-only root has often no other place. Both are everybody's, so the directory
is what protects: it must be a real directory (no symbolic link), belong to the user, and be closed to everybody else;
if somebody else made it first, nothing is put into it. The sticky bit of `/tmp` keeps it ours from then on.

A process that was killed leaves its socket behind. Whoever starts an agent in the directory clears such
leftovers away: those of processes that are gone *and* on which nobody listens any more (the process may
merely be invisible from here, in another pid namespace that shares this `/tmp`).
"""

from __future__ import annotations

import _socket as socket  # what gevent and eventlet do not replace
import errno
import os
import stat

from livepatch.core.model import LivepatchError

PREFIX = "livepatch-"
SOCKET = ".sock"


#: Where everybody may put something, best first. Paired with Process.sockets in attach/processes.py.
BASES = ("/tmp", "/dev/shm")


def directory_of(uid: int, base: str = BASES[0]) -> str:
    """The socket directory of a user's processes."""
    return f"{base}/{PREFIX}{uid}"


def socket_path(base: str = BASES[0]) -> str:
    """Where this process's socket belongs, now: a fork or a change of user moves it."""
    return f"{directory_of(os.geteuid(), base)}/{os.getpid()}{SOCKET}"


def ensure_directory(base: str = BASES[0]) -> str:
    """Make this user's socket directory, or make sure that it is one, and return it.

    Raises LivepatchError(EACCES) if what is there is not a directory that only this user can enter, and any other
    OSError if it cannot be made there.
    """
    path = directory_of(os.geteuid(), base)
    try:
        os.mkdir(path, 0o700)
    except FileExistsError:
        pass
    problem = directory_problem(os.lstat(path), os.geteuid())
    if problem:
        raise LivepatchError(errno.EACCES, f"{path} {problem}; remove it, then start the agent again.")
    return path


def directory_problem(found: os.stat_result, uid: int) -> str | None:
    """What is wrong with a socket directory of this user, as the end of a sentence, or None."""
    if stat.S_ISLNK(found.st_mode):
        return "is a symbolic link and not a directory"
    if not stat.S_ISDIR(found.st_mode):
        return "is not a directory"
    if found.st_uid != uid:
        return f"belongs to user {found.st_uid} and not to user {uid}"
    if found.st_mode & 0o077:
        return "is open to other users (it must have mode 0700)"
    return None


def clear_leftovers(directory: str) -> None:
    """Remove what processes that are gone left in this directory of ours; never fails."""
    try:
        names = os.listdir(directory)
    except OSError:
        return
    for name in names:
        pid = name.partition(".")[0]
        path = f"{directory}/{name}"
        if not pid.isdigit() or _runs(int(pid)) or (name.endswith(SOCKET) and _answers(path)):
            continue
        try:
            os.unlink(path)
        except OSError:
            pass


def _runs(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def _answers(path: str) -> bool:
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.setblocking(False)
        probe.connect(path)
    except ConnectionRefusedError:
        return False
    except OSError:
        pass
    finally:
        probe.close()
    return True
