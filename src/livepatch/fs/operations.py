"""What the kernel asks of a file system, answered with attributes.

It behaves as sysfs does where one can see it: a file has 4096 bytes until it is read (those of tasks none, as under
/proc), ends with a newline, is read as a whole when its beginning is, and each write is one store, wherever in the file
it goes. Nothing can be made or removed. Its modes decide for everybody, root included, already in `access`:
`test -w` tells the truth. Only whoever mounted it comes here at all; the agents check the same user again.
"""

from __future__ import annotations

import errno
import itertools
import os
import stat
import time
from collections.abc import Callable
from typing import Any, NoReturn

from livepatch.core.model import LivepatchError

from .targets import Target, Targets


class Handle:
    """An open file, and what was read of it."""

    def __init__(self, target: Target, path: str) -> None:
        self.target = target
        self.path = path
        self.content: bytes | None = None


def _refusing(number: int) -> Callable[..., NoReturn]:
    def operation(*arguments: object) -> NoReturn:
        raise OSError(number, os.strerror(number))

    return operation


class Operations:
    """Called by the binding, from several threads at a time. An OSError becomes its errno."""

    use_ns = True  # the binding asks: times are in nanoseconds

    def __init__(self, targets: Targets, mounted: Callable[[], None]) -> None:
        """`mounted` is called once, when the mount can be used."""
        self._targets = targets
        self._mounted = mounted
        self._since = time.time_ns()
        self._handles: dict[int, Handle] = {}
        self._numbers = itertools.count(1)

    def init(self, path: str) -> None:
        self._mounted()

    # -- directories and attributes ----------------------------------------------------------------------------

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        if path == "/":
            return self._attributes(stat.S_IFDIR | 0o755, os.geteuid(), os.getegid())
        target, below = self._target(path)
        mode = target.st_mode(below)
        uid, gid = target.owner()
        size = 4096 if stat.S_ISREG(mode) and below.startswith("livepatch/") else 0
        return self._attributes(mode, uid, gid, size)

    def readdir(self, path: str, fh: int) -> list[str]:
        if path == "/":
            names = [str(pid) for pid in self._targets.list()]
        else:
            target, below = self._target(path)
            names = target.listdir(below)
        return [".", "..", *names]

    def access(self, path: str, wanted: int) -> None:
        if path == "/":
            mode = 0o755
        else:
            target, below = self._target(path)
            mode = target.st_mode(below)
        if wanted & ~(mode >> 6):
            raise LivepatchError(errno.EACCES, f"{path} has mode {stat.S_IMODE(mode):04o}.")

    # -- files -------------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        wanted = {os.O_RDONLY: os.R_OK, os.O_WRONLY: os.W_OK}.get(flags & os.O_ACCMODE, os.R_OK | os.W_OK)
        self.access(path, wanted)
        number = next(self._numbers)
        self._handles[number] = Handle(*self._target(path))
        return number

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        handle = self._handles[fh]
        if offset == 0 or handle.content is None:
            text = handle.target.read(handle.path)
            handle.content = (text + "\n").encode("utf-8", "surrogateescape") if text else b""
        return handle.content[offset : offset + size]

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        handle = self._handles[fh]
        handle.target.write(handle.path, data.decode("utf-8", "replace"))
        return len(data)

    def truncate(self, path: str, length: int, fh: int | None = None) -> None:
        self.access(path, os.W_OK)

    def release(self, path: str, fh: int) -> None:
        self._handles.pop(fh, None)

    # -- what sysfs refuses, too -------------------------------------------------------------------------------

    create = mknod = _refusing(errno.EACCES)
    mkdir = rmdir = unlink = rename = link = symlink = chmod = chown = utimens = _refusing(errno.EPERM)

    def _attributes(self, mode: int, uid: int, gid: int, size: int = 0) -> dict[str, Any]:
        times = dict.fromkeys(("st_atime", "st_mtime", "st_ctime"), self._since)
        return {"st_mode": mode, "st_nlink": 1, "st_uid": uid, "st_gid": gid, "st_size": size, **times}

    def _target(self, path: str) -> tuple[Target, str]:
        """The process that a path is about, and the path below its directory."""
        pid, _, below = path.lstrip("/").partition("/")
        if not (pid.isascii() and pid.isdigit()) or len(pid) > 10 or pid.startswith("0"):
            raise LivepatchError(errno.ENOENT, f"{path} does not exist.")
        return self._targets.find(int(pid)), below
