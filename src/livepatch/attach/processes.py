"""What a process is, from outside: read from `/proc`, without touching it.

Whether it is a Python is told by what it has mapped: an executable called `python3.X`, a `libpython3.X`,
or an extension module built for one; and first of all by the executable itself (`program.py`). That finds interpreters
that are embedded in another program too, and it is not fooled by programs that merely mention Python on their command
line. The exact version is for the agent to say. Pythons that livepatch cannot serve (2.7, PyPy) are found as well:
whoever looks for one shall be told why not.

Another user's process shows the caller nothing but its command line. That is good enough to list it, and
for nothing else.

A process is addressed by the pid that the caller sees. It may live in a container: then it calls itself
something else (`NSpid`), and its `/tmp` is found under `/proc/PID/root`.
"""

from __future__ import annotations

import errno
import os
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

from livepatch.agent import places
from livepatch.core.model import LivepatchError

from . import program

# After the version: t free-threaded; d, m and u are other ways to build it, which do not matter here.
_PYTHON = re.compile(rb"/(?:lib)?python([23]\.\d+)(t?)[dmu]*(?:\.so[.\d]*)?$")
_EXTENSION = re.compile(rb"\.cpython-3(\d+)(t?)[dmu]*-[^/]*\.so$")
_PYPY = re.compile(rb"/(?:lib)?pypy(\d(?:\.\d+)?)?(?:-c)?(?:\.so[.\d]*)?$")
_MUSL = re.compile(rb"/ld-musl-[^/]*$", re.MULTILINE)

#: What the command line of a Python begins with, where nothing better can be seen.
_COMMAND = re.compile(r"(?:^|/)(python|pypy)(\d(?:\.\d+)?t?)?$")


#: Of a socket in /proc/PID/net/unix: it accepts connections.
_LISTENS = 0x10000


class NoAccess(LivepatchError):
    """There is no such process (any more), it is no Python, or it is not ours to touch."""


@dataclass(frozen=True)
class Process:
    """A running process. `python` is its version as "3.X" (with "t" if free-threaded), "PyPy 3.X", or, guessed from
    its command line, perhaps only "3" or "?"; None if it is no Python.
    """

    pid: int
    inner_pid: int
    uid: int
    executable: str
    command: list[str]
    python: str | None
    #: Its C library is musl.
    musl: bool = False
    #: The caller may look into it; otherwise `executable` is empty and `python` a guess.
    open: bool = True

    @property
    def title(self) -> str:
        """The command line on one line, roughly as one would type it."""
        import shlex

        line = " ".join(shlex.join(self.command).split()) or self.executable
        return "".join(letter if letter.isprintable() else "?" for letter in line)  # it is not for our terminal

    @property
    def brief(self) -> str:
        """The same without the folders of the interpreter and of its program: they are long, and hide what runs."""
        words = list(self.command)
        script = next((at for at, word in enumerate(words) if at and not word.startswith("-")), 0)
        for at in {0, script}:
            if words and os.path.basename(os.path.dirname(words[at])) == "bin" and " " not in words[at]:
                words[at] = os.path.basename(words[at])
        return replace(self, command=words).title

    @property
    def free_threaded(self) -> bool:
        """Whether its Python has no GIL to rely on."""
        return (self.python or "").endswith("t")

    @property
    def version(self) -> tuple[int, int]:
        """Of a CPython, as far as it is known; else zeros."""
        found = re.match(r"(\d+)\.(\d+)", self.python or "")
        return (int(found[1]), int(found[2])) if found else (0, 0)

    @property
    def inner_owner(self) -> tuple[int, int]:
        """The user and the group that the process acts as, by the numbers of its own user namespace."""
        numbers = owner(self.pid)
        try:
            if os.path.samefile(f"/proc/{self.pid}/ns/user", "/proc/self/ns/user"):
                return numbers
        except OSError:
            return numbers
        return _inner(self.pid, "uid_map", numbers[0]), _inner(self.pid, "gid_map", numbers[1])

    def sockets(self) -> Iterator[str]:
        """Where its agent's socket may be, likeliest first."""
        inner_uid = self.inner_owner[0]
        tried = set()
        for base in map(self.inside, places.BASES):
            for uid in (inner_uid, 0):
                tried.add(path := f"{base}/{places.PREFIX}{uid}/{self.inner_pid}{places.SOCKET}")
                yield path
        # Started by another user than it is now.
        for base in map(self.inside, places.BASES):
            for name in _list(base):
                path = f"{base}/{name}/{self.inner_pid}{places.SOCKET}"
                if name.startswith(places.PREFIX) and path not in tried:
                    yield path

    def listens_unseen(self) -> bool:
        """An agent listens in there, whether its socket can be found or not: the kernel knows what it was called."""
        name = re.compile(rf"/{places.PREFIX}\d+/{self.inner_pid}{re.escape(places.SOCKET)}$")
        try:
            with open(f"/proc/{self.pid}/net/unix", encoding="utf-8", errors="replace") as lines:
                rows = [line.split() for line in lines if name.search(line.rstrip("\n"))]
        except OSError:
            return False
        sockets = {f"socket:[{row[6]}]" for row in rows if int(row[3], 16) & _LISTENS}
        return bool(sockets) and any(
            _target(f"/proc/{self.pid}/fd/{number}") in sockets for number in _list(f"/proc/{self.pid}/fd")
        )

    def inside(self, path: str) -> str:
        """An absolute path of the process, which may have another root, as ours."""
        root = f"/proc/{self.pid}/root"
        return root + path if os.access(root, os.X_OK) else path


def examine(pid: int) -> Process:
    """What this pid is. Raises NoAccess if there is no such process or the caller may not look at it."""
    fields = status(pid)
    if int(fields["Tgid"]) != pid:
        raise NoAccess(errno.ESRCH, f"{pid} is a thread of process {fields['Tgid']}; use --pid {fields['Tgid']}.")
    thread = pid
    if _is_over(fields):
        # The main thread alone may have ended. The kernel shows nothing of the process there then, but all of it at any
        # of the threads that go on.
        others = [int(name) for name in _list(f"/proc/{pid}/task") if int(name) != pid]
        if not others:
            raise _ended(pid, fields)
        thread = others[0]
    uid = int(fields["Uid"].split()[1])
    try:
        executable = os.readlink(f"/proc/{thread}/exe")
        with open(f"/proc/{thread}/maps", "rb") as file:
            maps = file.read()
    except (FileNotFoundError, ProcessLookupError):  # a thread of the kernel, or it is just ending
        executable, maps = fields["Name"], b""
    except PermissionError:
        raise NoAccess(errno.EACCES, closed(pid, uid)) from None
    if not maps and not alive(pid):  # it had its memory a moment ago
        raise _ended(pid, fields)
    inner_pid = int(fields.get("NSpid", str(pid)).split()[-1])
    executable = executable.removesuffix(" (deleted)")
    own = program.of(thread) if maps else program.Program()
    python = own.python or _python_version(maps)
    return Process(pid, inner_pid, uid, executable, command_of(pid), python, own.musl or bool(_MUSL.search(maps)))


def closed(pid: int, uid: int) -> str:
    """Why the caller may not look into a process of this user, and what to do."""
    if os.geteuid() == 0:
        return (
            f"This root may not look into process {pid}, of user {uid}: it lacks the capability CAP_SYS_PTRACE, which"
            " containers withhold (`docker run --cap-add SYS_PTRACE`); run livepatch outside, or as that user."
        )
    who = f"belongs to user {uid}" if uid != os.geteuid() else "does not let its own user look into it"
    return f"Process {pid} {who}; run livepatch as that user or as root."


def require_python(pid: int) -> Process:
    """`examine`, for a process that must be a Python."""
    process = examine(pid)
    if process.python is None:
        raise NoAccess(
            errno.ENOEXEC, f"Process {pid} ({process.title[:60]}) is no Python; `livepatch ps` lists those that are."
        )
    return process


def _inner(pid: int, name: str, number: int) -> int:
    """What a user namespace calls a user or group of ours."""
    try:
        with open(f"/proc/{pid}/{name}") as text:
            ranges = [tuple(map(int, line.split())) for line in text]
    except OSError:
        return number
    return next((inner + number - outer for inner, outer, n in ranges if outer <= number < outer + n), number)


def owner(pid: int) -> tuple[int, int]:
    """The user and the group that a process acts as. Raises NoAccess if it has ended."""
    fields = status(pid)
    if not alive(pid):
        raise NoAccess(errno.ESRCH, f"Process {pid} has ended.")
    return int(fields["Uid"].split()[1]), int(fields["Gid"].split()[1])


def alive(pid: int) -> bool:
    """Whether the process still runs (a zombie does not, unless it is only the main thread that has ended)."""
    return _goes_on(pid) or any(_goes_on(int(name)) for name in _list(f"/proc/{pid}/task"))


def _goes_on(thread: int) -> bool:
    try:
        return not _is_over(status(thread))
    except NoAccess:
        return False


def _is_over(fields: dict[str, str]) -> bool:
    """A thread has ended, or is ending so that it has no memory any more; the kernel's own never have any."""
    kernels = "2" in (fields["Pid"], fields["PPid"])
    return fields["State"].startswith(("Z", "X")) or ("VmSize" not in fields and not kernels)


def _ended(pid: int, fields: dict[str, str]) -> NoAccess:
    if not fields["State"].startswith("Z"):
        return NoAccess(errno.ESRCH, f"Process {pid} is just ending.")
    return NoAccess(
        errno.ESRCH,
        f"Process {pid} has ended and is a zombie: its parent, process {fields['PPid']}, has not asked for its"
        " exit status.",
    )


def pythons() -> Iterator[Process]:
    """All Python processes, this one excepted; those that the caller may not look into, as it seems from outside."""
    for pid in sorted(int(name) for name in _list("/proc") if name.isdigit()):
        if pid == os.getpid():
            continue
        process: Process | None
        try:
            process = examine(pid)
        except NoAccess as error:
            process = _guess(pid) if error.errno == errno.EACCES else None
        if process is not None and process.python is not None:
            yield process


def status(pid: int) -> dict[str, str]:
    """What the kernel says of a process or a thread, by field. Raises NoAccess if there is none."""
    try:
        with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as lines:
            return dict(line.rstrip("\n").split(":\t", 1) for line in lines if ":\t" in line)
    except (FileNotFoundError, ProcessLookupError):
        raise NoAccess(errno.ESRCH, f"There is no process {pid}; `livepatch ps` lists the Python processes.") from None


def _guess(pid: int) -> Process | None:
    """A process that one may not look into, if its command line looks like a Python's."""
    command = command_of(pid)
    found = _COMMAND.search(command[0]) if command else None
    if found is None:
        return None
    try:
        uid = int(status(pid)["Uid"].split()[1])
    except NoAccess:
        return None
    version = found[2] or "?"
    return Process(pid, pid, uid, "", command, f"PyPy {version}" if found[1] == "pypy" else version, open=False)


def _python_version(maps: bytes) -> str | None:
    """By names: the first that tells, but a free-threaded one has a second name for its executable, without the t."""
    names = [name for line in maps.splitlines() if (name := _named(line))]
    return next((name for name in names if name.endswith("t")), names[0] if names else None)


def _named(line: bytes) -> str | None:
    path = b"/" + line.removesuffix(b" (deleted)").partition(b"/")[2]
    if found := _PYTHON.search(path):
        return (found[1] + found[2]).decode()
    if found := _EXTENSION.search(path):
        return f"3.{int(found[1])}{found[2].decode()}"
    if found := _PYPY.search(path):
        return f"PyPy {(found[1] or b'?').decode()}"
    return None


def command_of(pid: int) -> list[str]:
    """Its command line, word by word; nothing if there is no such process, or it has none."""
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as cmdline:
            words = cmdline.read().split(b"\0")[:-1]
    except OSError:
        return []
    return [word.decode(sys.getfilesystemencoding(), "replace") for word in words]


def _target(link: str) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _list(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except OSError:
        return []
