"""What a process is, from outside: read from `/proc`, without touching it.

Whether it is a Python is told by what it has mapped: an executable called `python3.X`, a `libpython3.X`,
or an extension module built for one. That finds interpreters that are embedded in another program too,
and it is not fooled by programs that merely mention Python on their command line. The exact version is
for the agent to say.

A process is addressed by the pid that the caller sees. It may live in a container: then it calls itself
something else (`NSpid`), and its `/tmp` is found under `/proc/PID/root`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass

from livepatch.agent import places
from livepatch.core.model import LivepatchError

_PYTHON = re.compile(rb"/(?:lib)?python(3\.\d+)(t?)(?:\.so[.\d]*|d)?$")
_EXTENSION = re.compile(rb"\.cpython-3(\d+)(t?)-[^/]*\.so$")


class NoAccess(LivepatchError):
    """There is no such process (any more), it is no Python, or it is not ours to touch."""


@dataclass(frozen=True)
class Process:
    """A running process. `python` is its version as "3.X" (with "t" if free-threaded), None if it is no
    Python.
    """

    pid: int
    inner_pid: int
    uid: int
    executable: str
    command: list[str]
    python: str | None

    @property
    def title(self) -> str:
        """The command line on one line, roughly as one would type it."""
        import shlex

        return " ".join(shlex.join(self.command).split()) or self.executable

    @property
    def free_threaded(self) -> bool:
        """Whether its Python has no GIL to rely on."""
        return (self.python or "").endswith("t")

    @property
    def minor(self) -> int:
        """The X of Python 3.X."""
        return int((self.python or "3.0").rstrip("t").partition(".")[2])

    @property
    def takes_remote_exec(self) -> bool:
        """Whether the agent can be brought into it although it was not prepared (PEP 768)."""
        return self.minor >= 14 and not self.free_threaded

    @property
    def inner_uid(self) -> int:
        """What the process calls its user, which may be another number in a user namespace of its own."""
        try:
            if os.path.samefile(f"/proc/{self.pid}/ns/user", "/proc/self/ns/user"):
                return self.uid
            with open(f"/proc/{self.pid}/uid_map") as text:
                ranges = [[int(number) for number in line.split()] for line in text]
        except OSError:
            return self.uid
        return next((inner + self.uid - outer for inner, outer, n in ranges if outer <= self.uid < outer + n), self.uid)

    def sockets(self) -> Iterator[str]:
        """Where its agent's socket may be, likeliest first."""
        tried = set()
        for base in map(self.inside, places.BASES):
            for uid in (self.inner_uid, 0):
                tried.add(path := f"{base}/{places.PREFIX}{uid}/{self.inner_pid}{places.SOCKET}")
                yield path
        # Started by another user than it is now.
        for base in map(self.inside, places.BASES):
            for name in _list(base):
                path = f"{base}/{name}/{self.inner_pid}{places.SOCKET}"
                if name.startswith(places.PREFIX) and path not in tried:
                    yield path

    def inside(self, path: str) -> str:
        """An absolute path of the process, which may have another root, as ours."""
        root = f"/proc/{self.pid}/root"
        return root + path if os.access(root, os.X_OK) else path


def examine(pid: int) -> Process:
    """What this pid is. Raises NoAccess if there is no such process or the caller may not look at it."""
    fields = _status_fields(pid)
    if fields is None or fields["State"].startswith(("Z", "X")):
        raise NoAccess(errno.ESRCH, f"There is no process {pid}; `livepatch ps` lists the Python processes.")
    if int(fields["Tgid"]) != pid:
        raise NoAccess(errno.ESRCH, f"{pid} is a thread of process {fields['Tgid']}; use --pid {fields['Tgid']}.")
    uid = int(fields["Uid"].split()[1])
    try:
        executable = os.readlink(f"/proc/{pid}/exe")
        with open(f"/proc/{pid}/maps", "rb") as maps:
            python = _python_version(maps.read())
    except (FileNotFoundError, ProcessLookupError):  # a thread of the kernel, or it is just ending
        executable, python = fields["Name"], None
    except PermissionError:
        who = f"belongs to user {uid}" if uid != os.geteuid() else "does not let its own user look into it"
        raise NoAccess(errno.EACCES, f"Process {pid} {who}; run livepatch as that user or as root.") from None
    inner_pid = int(fields.get("NSpid", str(pid)).split()[-1])
    return Process(pid, inner_pid, uid, executable.removesuffix(" (deleted)"), _command(pid), python)


def require_python(pid: int) -> Process:
    """`examine`, for a process that must be a Python."""
    process = examine(pid)
    if process.python is None:
        raise NoAccess(
            errno.ENOEXEC, f"Process {pid} ({process.title[:60]}) is no Python; `livepatch ps` lists those that are."
        )
    return process


def owner(pid: int) -> tuple[int, int]:
    """The user and the group that a process acts as. Raises NoAccess if it has ended."""
    fields = _status_fields(pid)
    if fields is None or fields["State"].startswith(("Z", "X")):
        raise NoAccess(errno.ESRCH, f"Process {pid} has ended.")
    return int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not)."""
    fields = _status_fields(pid)
    return fields is not None and not fields["State"].startswith(("Z", "X"))


def pythons() -> Iterator[Process]:
    """All Python processes that the caller may look at, this one excepted."""
    for pid in sorted(int(name) for name in _list("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        try:
            process = examine(pid)
        except NoAccess:
            continue
        if process.python is not None:
            yield process


def _python_version(maps: bytes) -> str | None:
    for line in maps.splitlines():
        path = line.removesuffix(b" (deleted)").partition(b"/")[2]
        found = _PYTHON.search(b"/" + path) if path else None
        if found:
            return (found[1] + found[2]).decode()
        found = _EXTENSION.search(path)
        if found:
            return f"3.{int(found[1])}{found[2].decode()}"
    return None


def _status_fields(pid: int) -> dict[str, str] | None:
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as status:
            return dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        return None


def _command(pid: int) -> list[str]:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            words = cmdline.read().split(b"\0")[:-1]
    except OSError:
        return []
    return [word.decode(sys.getfilesystemencoding(), "replace") for word in words]


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
