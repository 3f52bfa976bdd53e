"""Bring the agent into a running process that was not prepared; the acknowledgement is the agent's own answer.

If it does not come in time, the script is made empty, because it may still be read hours later (and must exist then, or
the interpreter complains), and the user is told where the main thread sits.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Collection
from contextlib import ExitStack
from pathlib import Path

from livepatch.core.model import LivepatchError

from . import bundle, remote, seccomp, way
from .client import Client, NotPrepared
from .files import Files, files_for
from .injection import HELP, RUN, WAKE
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


def attach(pid: int, *, timeout: float = TIMEOUT, method: str = way.AUTO) -> Client:
    """The agent of this process, brought into it within so many seconds if it is not there yet.

    `method` is one of `way.METHODS`: one way to insist on it, or the first that there is, helped by the second if the
    main thread does not run.

    Raises NoAccess, or LivepatchError with the reason, after which the process is as it was.
    """
    try:
        return Client(pid)
    except NotPrepared as unprepared:
        process = unprepared.process
    ways = way.into(process, method)
    calls = seccomp.AGENT if ways == (way.REMOTE_EXEC,) else (*seccomp.CODE, *seccomp.AGENT)
    if refusal := seccomp.examine(pid, calls):
        raise NoAccess(errno.EPERM, refusal)
    try:
        with files_for(process) as files:
            files.write(files.bundle, bundle.agent(process))
            files.write(f"{files.stem}.py", bundle.script(process, files).encode())
            return _await_agent(process, files, ways, timeout)
    except OSError:
        if alive(pid):
            raise
        raise NoAccess(errno.ESRCH, f"Process {pid} ended during the attach.") from None


def _await_agent(process: Process, files: Files, ways: Collection[str], timeout: float) -> Client:
    script = f"{files.stem}.py"
    remotely = way.REMOTE_EXEC in ways
    mode = RUN if not remotely else HELP if way.PENDING_CALL in ways else WAKE
    injector: Injector | None = None
    began = time.monotonic()
    try:
        with ExitStack() as stack:
            if remotely:
                remote.request(process, files.inside(script))
            while True:
                left = began + timeout - time.monotonic()
                if left <= 0:
                    files.empty(script)  # and look once more: it may have been read just before
                if injector is None and (not remotely or left < timeout - _AWAKE):
                    injector = stack.enter_context(Injector(process, files.inside(script), timeout, mode=mode))
                try:
                    client = Client(process.pid, timeout=max(left, 1.0))
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
                if injector is not None and mode != WAKE:
                    injector.done()
                if left <= 0:
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
