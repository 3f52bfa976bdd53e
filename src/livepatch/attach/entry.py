"""Bring the agent into a running process that was not prepared; the acknowledgement is the agent's own answer.

If it does not come in time, the script is made empty, because it may still be read hours later (and must exist then, or
the interpreter complains), and the user is told where the main thread sits.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from livepatch.core.model import LivepatchError

from . import bundle, remote
from .client import Client, NotPrepared
from .files import Files, files_for
from .injector import Injector
from .processes import NoAccess, Process, alive

#: Seconds until the agent must have answered.
TIMEOUT = 5.0

#: Seconds after which a main thread that has not run a script is taken to be blocked.
_AWAKE = 0.05

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


def attach(pid: int, *, timeout: float = TIMEOUT, method: str = "auto") -> Client:
    """The agent of this process, brought into it within so many seconds if it is not there yet.

    `method` is `remote_exec` or `pending_call` to insist on one, or `auto`: the first where there is it, helped by the
    second if the main thread does not run.

    Raises NoAccess, or LivepatchError with the reason, after which the process is as it was.
    """
    try:
        return Client(pid)
    except NotPrepared as unprepared:
        process = unprepared.process
        remotely = _remotely(unprepared, method)
    try:
        with files_for(process) as files, ExitStack() as stack:
            script = f"{files.stem}.py"
            files.write(files.bundle, bundle.agent(process))
            files.write(script, bundle.script(process, files).encode())
            what = "wake" if method == "remote_exec" else "run"
            inject = partial(Injector, process, files.inside(script), timeout, what=what)
            if remotely:
                remote.request(process, files.inside(script))
            return _await_agent(process, files, timeout, stack, inject, remotely, method)
    except OSError:
        if alive(pid):
            raise
        raise NoAccess(errno.ESRCH, f"Process {pid} ended during the attach.") from None


def _remotely(unprepared: NotPrepared, method: str) -> bool:
    """Whether the interpreter is asked to run the script. Raises LivepatchError if there is no way in."""
    process = unprepared.process
    if method == "pending_call" or (method == "auto" and not process.takes_remote_exec and not process.free_threaded):
        if process.minor < 11:
            raise unprepared
        return False
    if process.free_threaded:
        raise LivepatchError(
            errno.ENOEXEC, f"Process {process.pid} is a free-threaded Python, which livepatch does not support."
        )
    if not process.takes_remote_exec:
        raise unprepared
    if remote.disabled(process):
        raise LivepatchError(
            errno.EPERM,
            f"Process {process.pid} was started with remote debugging disabled (PYTHON_DISABLE_REMOTE_DEBUG or"
            " -X disable-remote-debug); start it without, or with `livepatch run -- ...`.",
        )
    return True


def _await_agent(
    process: Process,
    files: Files,
    timeout: float,
    stack: ExitStack,
    inject: Callable[[], Injector],
    remotely: bool,
    method: str,
) -> Client:
    script = f"{files.stem}.py"
    injector: Injector | None = None
    began = time.monotonic()
    try:
        while True:
            waited = time.monotonic() - began
            late = waited >= timeout
            if late:
                files.empty(script)  # and look once more: it may have been read just before
            if injector is None and waited >= (_AWAKE if remotely else 0):
                injector = stack.enter_context(inject())
            try:
                client = Client(process.pid)
            except NotPrepared:
                pass
            else:
                if remotely and injector is not None:
                    files.empty(script)  # the interpreter may still have been told to read it
                else:
                    files.remove(script)
                return client
            failure = files.read(f"{files.stem}.failed")
            if failure is not None:
                files.remove(script)
                raise LivepatchError(errno.ENOEXEC, f"The agent did not start in process {process.pid}: {failure}")
            if injector is not None:
                injector.done()
            if late:
                raise LivepatchError(errno.ETIMEDOUT, _blocked(process, timeout))
            time.sleep(0.01)
    except BaseException:
        if remotely and alive(process.pid):
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
