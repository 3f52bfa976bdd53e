"""Bring the agent into a running Python 3.14+ that was not prepared, with `sys.remote_exec`.

The interpreter offers to run a script in the main thread of another one at its next safe point. It
reports success as soon as the request is noted; if the main thread is blocked, nothing happens until it
wakes up, and nobody is told. So the acknowledgement is the agent's own: its socket answers. If it does
not come in time, the script is made empty, because it may still be read hours later (and must exist then,
or the interpreter complains), and the user is told where the main thread sits.

`sys.remote_exec` insists on the same version at both ends. If ours is another, the target's own
executable does it, inside the target's root and pid namespace if those are not ours.

What the target needs, a script and the agent as one zip, goes where its agent puts its socket, below the
target's own `/tmp`. That is a directory in a world that somebody else may control, and we may be root:
every step goes through a directory descriptor and follows no symbolic link. The script only starts a
thread; the imports happen there, while the main thread goes on. They are all done when the agent answers,
so that the zip can go, too.
"""

from __future__ import annotations

import errno
import io
import os
import secrets
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import livepatch
from livepatch.agent import places
from livepatch.core import cpython
from livepatch.core.model import LivepatchError

from .client import Client, NotPrepared
from .processes import NoAccess, Process, alive

#: Seconds until the agent must have answered.
TIMEOUT = 5.0

#: What travels: the public face, and the layers that run in a patched process.
_TRAVELS = ("__init__.py", "core", "agent", "archive")

_SCRIPT = """\
def livepatch_attach():
    import _thread, os
    if os.getpid() != {pid}:
        return
    def start():
        import importlib, sys
        sys.path.append({zip!r})
        try:
            import livepatch
            if not os.path.isdir(livepatch.__path__[0]):
                # In a zip, ours or that of another attach at this instant, and both go away once the agent answers.
                for name in {modules!r}:
                    importlib.import_module(name)
            livepatch.start_agent()
        except BaseException as error:
            for name in [name for name in sys.modules if name.partition(".")[0] == "livepatch"]:
                if {zip!r} in str(sys.modules[name].__spec__.origin):
                    del sys.modules[name]
            try:
                with open({failure!r}, "w") as file:
                    file.write(str(error) or type(error).__name__)
            except OSError:
                pass
        finally:
            sys.path.remove({zip!r})
            sys.path_importer_cache.pop({zip!r}, None)
    _thread.start_new_thread(start, ())
livepatch_attach()
del livepatch_attach
"""

#: The namespaces that decide which files and which processes one sees.
_SPACES = ("ns/mnt", "ns/pid")

_HELPER = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"

#: What a main thread may wait in: how the kernel's name for the place begins, and what that means.
_WAITS = {
    "futex": "for a lock or another thread",
    "ep_poll": "for events (epoll)",
    "do_epoll": "for events (epoll)",
    "do_poll": "for events (poll)",
    "poll_schedule": "for events (poll or select)",
    "do_select": "for events (select)",
    "hrtimer_nanosleep": "in a sleep",
    "do_nanosleep": "in a sleep",
    "inet_csk_accept": "for a connection (accept)",
    "do_accept": "for a connection (accept)",
    "unix_": "for data from a Unix socket",
    "sk_wait_data": "for data from a socket",
    "wait_woken": "for data from a socket or terminal",
    "pipe_": "for data in a pipe",
    "anon_pipe": "for data in a pipe",
    "do_wait": "for a child process",
    "do_sigtimedwait": "for a signal",
    "__do_sys_pause": "for a signal",
}


def attach(pid: int, *, timeout: float = TIMEOUT) -> Client:
    """The agent of this process, brought into it if it is not there yet.

    Raises NotPrepared if its Python is too old for that, NoAccess, or LivepatchError with the reason,
    after which the process is as it was.
    """
    try:
        return Client(pid)
    except NotPrepared as unprepared:
        process = unprepared.process
        _require_remote_exec(unprepared)
    try:
        with _files(process) as files:
            script = f"{files.stem}.py"
            files.write(f"{files.stem}.zip", _agent_zip())
            files.write(script, _script(process, files).encode())
            _remote_exec(process, files.inside(script))
            return _await_agent(process, files, timeout)
    except OSError:
        if alive(pid):
            raise
        raise NoAccess(errno.ESRCH, f"Process {pid} ended during the attach.") from None


def _require_remote_exec(unprepared: NotPrepared) -> None:
    process = unprepared.process
    if process.free_threaded:
        raise LivepatchError(
            errno.ENOEXEC, f"Process {process.pid} is a free-threaded Python, which livepatch does not support."
        )
    if not process.takes_remote_exec:
        raise unprepared
    if _disabled(process):
        raise LivepatchError(
            errno.EPERM,
            f"Process {process.pid} was started with remote debugging disabled (PYTHON_DISABLE_REMOTE_DEBUG or"
            " -X disable-remote-debug); start it without, or with `livepatch run -- ...`.",
        )


def _disabled(process: Process) -> bool:
    if any("disable-remote-debug" in word or "disable_remote_debug" in word for word in process.command):
        return True
    try:
        environment = Path(f"/proc/{process.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return any(entry.startswith(b"PYTHON_DISABLE_REMOTE_DEBUG=") for entry in environment)


# -- the files that the target reads -----------------------------------------------------------------


class _Files:
    """Our files in the target's socket directory, by name, through the directory's descriptor."""

    def __init__(self, process: Process, directory: int) -> None:
        self._process = process
        self._directory = directory
        self.stem = f"{process.inner_pid}.{secrets.token_hex(4)}"

    def inside(self, name: str) -> str:
        """The path of a file as the target sees it."""
        return f"{places.directory_of(self._process.uid)}/{name}"

    def write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        with open(descriptor, "wb") as file:
            if os.geteuid() == 0:
                os.fchown(descriptor, self._process.uid, -1)
            file.write(data)

    def read(self, name: str) -> str | None:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._directory)
        except OSError:
            return None
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            return file.read(4096)

    def empty(self, name: str) -> None:
        with suppress(OSError):
            os.close(os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, dir_fd=self._directory))

    def remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._directory)


@contextmanager
def _files(process: Process) -> Iterator[_Files]:
    """The target's socket directory, made if need be; what the attach put into it is taken away again."""
    try:
        directory = _open_directory(process)
    except OSError as error:
        if isinstance(error, LivepatchError):
            raise
        raise LivepatchError(
            error.errno or errno.EACCES,
            f"No file can be put into {places.directory_of(process.uid)} for process {process.pid}: {error.strerror}.",
        ) from None
    files = _Files(process, directory)
    try:
        yield files
    finally:
        for suffix in ("zip", "failed"):
            files.remove(f"{files.stem}.{suffix}")
        os.close(directory)


def _open_directory(process: Process) -> int:
    """A descriptor of the target's socket directory, reached one step after the other."""
    path = places.directory_of(process.uid)
    name = os.path.basename(path)
    flags = os.O_RDONLY | os.O_DIRECTORY
    with ExitStack() as opened:

        def enter(step: str, within: int | None = None) -> int:
            descriptor = os.open(step, flags if within is None else flags | os.O_NOFOLLOW, dir_fd=within)
            opened.callback(os.close, descriptor)
            return descriptor

        tmp = enter("tmp", enter(f"/proc/{process.pid}/root"))
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=tmp)
            if os.geteuid() == 0:
                os.chown(name, process.uid, -1, dir_fd=tmp, follow_symlinks=False)
        directory = enter(name, tmp)
        problem = places.directory_problem(os.fstat(directory), process.uid)
        if problem:
            raise LivepatchError(errno.EACCES, f"{path} {problem}; remove it and try again.")
        return os.dup(directory)


def _agent_zip() -> bytes:
    """The part of this package that runs in a patched process, as one zip."""
    package = Path(livepatch.__file__).parent
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for file in _sources(package):
            archive.write(file, Path("livepatch") / file.relative_to(package))
    return content.getvalue()


def _sources(package: Path) -> list[Path]:
    found: list[Path] = []
    for part in _TRAVELS:
        path = package / part
        found += sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return found


def _script(process: Process, files: _Files) -> str:
    package = Path(livepatch.__file__).parent
    modules = [
        ".".join(("livepatch", *file.relative_to(package).with_suffix("").parts)).removesuffix(".__init__")
        for file in _sources(package)
    ]
    return _SCRIPT.format(
        pid=process.inner_pid,
        zip=files.inside(f"{files.stem}.zip"),
        failure=files.inside(f"{files.stem}.failed"),
        modules=modules,
    )


# -- the request and its acknowledgement -------------------------------------------------------------


def _remote_exec(process: Process, script: str) -> None:
    """Ask the target to run the script, from an interpreter of its version."""
    command, user = _helper(process)
    command += ["-I", "-S", "-c", _HELPER, str(process.inner_pid), script]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=TIMEOUT, env={}, **user
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


def _helper(process: Process) -> tuple[list[str], dict[str, Any]]:
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


def _await_agent(process: Process, files: _Files, timeout: float) -> Client:
    script = f"{files.stem}.py"
    deadline = time.monotonic() + timeout
    try:
        while True:
            late = time.monotonic() >= deadline
            if late:
                files.empty(script)  # and look once more: it may have been read just before
            try:
                client = Client(process.pid)
            except NotPrepared:
                pass
            else:
                files.remove(script)
                return client
            failure = files.read(f"{files.stem}.failed")
            if failure is not None:
                files.remove(script)
                raise LivepatchError(errno.ENOEXEC, f"The agent did not start in process {process.pid}: {failure}")
            if late:
                raise LivepatchError(errno.ETIMEDOUT, _blocked(process, timeout))
            time.sleep(0.01)
    except BaseException:
        if alive(process.pid):
            files.empty(script)
        else:
            files.remove(script)
        raise


def _blocked(process: Process, timeout: float) -> str:
    """Where the main thread sits, and what to do about it."""
    try:
        place = Path(f"/proc/{process.pid}/task/{process.pid}/wchan").read_text().strip("0\n")
    except OSError:
        place = ""
    meaning = next((what for start, what in _WAITS.items() if place.startswith(start)), None)
    if meaning:
        where = f"is blocked in a system call, waiting {meaning}"
    elif place:
        where = f"is blocked in a system call ({place})"
    else:
        where = "is busy in code that is not Python's"
    return (
        f"Process {process.pid} did not let the agent in within {timeout:g} s: its main thread {where};"
        " make it do something (send it a request) and try again, or start it with `livepatch run -- ...`."
    )
