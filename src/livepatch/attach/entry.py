"""Bring the agent into a running process that was not prepared; the acknowledgement is the agent's own answer.

If it does not come in time, the script is taken back, and the user is told where the main thread sits. An interpreter
that was asked to run it (`remote_exec`) may do so hours later: all that it finds then is a request that takes itself
away.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from livepatch.core.model import LivepatchError

from . import bundle, remote, seccomp, way
from .client import Client, NotPrepared
from .files import Files, files_for
from .injector import Injector
from .mark import HELP, RUN, WAKE
from .processes import NoAccess, Process, alive, status

#: Seconds until the agent must have answered.
TIMEOUT = 5.0

#: Seconds that it has for the rest when it has begun to let the agent in, which only slow C code holds up then.
_ARRIVES = 30.0

#: Seconds after which a main thread that has not run a script is taken to be blocked.
_AWAKE = 0.05

#: Seconds between two looks whether the agent is there: most only for its socket where it usually is, which costs next
#: to nothing while the process and the helper need the machine, but every so many for it anywhere, and the process.
_LOOK, _THOROUGH = 0.005, 10

#: How often it is looked where a main thread sits that the helper stops now and then.
_LOOKS = 20

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
    try:
        with _alone(process, timeout / 2) as waited:
            with suppress(NotPrepared):
                return Client(pid)  # who was at it before us has brought it
            return _bring(process, ways, timeout - waited)
    except OSError:
        if alive(pid):
            raise
        raise NoAccess(errno.ESRCH, f"Process {pid} ended during the attach.") from None


def _bring(process: Process, ways: tuple[str, ...], timeout: float) -> Client:
    """The agent, which the process must have let in after so many seconds."""
    with ExitStack() as stack:
        injector: Injector | None = None
        if way.REMOTE_EXEC not in ways:  # there is no way without a helper, so it starts while the rest is made ready
            injector = stack.enter_context(Injector(process, timeout))
        ways = _through_filters(process, ways)
        files = stack.enter_context(files_for(process))
        files.write(files.failure, b"")
        agent = bundle.agent(process)
        files.write(files.bundle, agent)
        files.write(files.script, bundle.script(process, files, len(agent)).encode())
        return _await_agent(process, files, ways, injector, timeout)


def _through_filters(process: Process, ways: tuple[str, ...]) -> tuple[str, ...]:
    """Those of the ways that the process's system call filters leave. Raises NoAccess if that is none."""
    pid = process.pid
    refusal = seccomp.examine(pid, seccomp.agent(process.version))
    if not refusal and way.PENDING_CALL in ways:
        refusal = seccomp.examine(pid, seccomp.CODE)
        if refusal and way.REMOTE_EXEC in ways:
            return (way.REMOTE_EXEC,)
    if refusal:
        raise NoAccess(errno.EPERM, refusal)
    return ways


@contextmanager
def _alone(process: Process, patience: float) -> Iterator[float]:
    """One attach to a process at a time: an interpreter has room for one request only, a thread for one tracer.

    The lock is on a file that only those can open who may attach, and that is gone with the process. Who keeps it for
    longer than so many seconds holds up nobody. Gives the seconds that were waited: none if nobody had it, however slow
    the machine is.
    """
    with open(f"/proc/{process.pid}/environ", "rb") as file:
        began, waited = time.monotonic(), 0.0
        while waited < patience:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(0.01)
            waited = time.monotonic() - began
        yield waited


def _await_agent(
    process: Process, files: Files, ways: Collection[str], injector: Injector | None, timeout: float
) -> Client:
    asked = way.REMOTE_EXEC in ways and _ask(process, files, way.PENDING_CALL not in ways)
    mode = RUN if not asked else HELP if way.PENDING_CALL in ways else WAKE
    sleeps = status(process.pid)["State"].startswith("S")
    likely, looks = list(process.sockets()), 0
    refusal: LivepatchError | None = None
    began = time.monotonic()
    arrives = False
    with ExitStack() as stack:
        while True:
            left = began + timeout - time.monotonic()
            if left <= 0 and not arrives:
                files.remove(files.script)
                arrives = not files.remove(files.bundle)
                timeout += _ARRIVES * arrives
                left += _ARRIVES * arrives
            due = not asked or left < timeout - _AWAKE
            if injector is None and (due or sleeps):  # it needs a moment to start
                injector = stack.enter_context(Injector(process, timeout, mode=mode))
            if injector is not None and due and not injector.begun:
                injector.begin(files.inside(files.script))
            looks += 1
            if left <= 0 or looks % _THOROUGH == 0 or any(map(os.path.exists, likely)):
                with suppress(NotPrepared):
                    return Client(process.pid, timeout=max(left, _ARRIVES))  # it is there, and may be slow to answer
            failure = files.read(files.failure)
            if failure:
                raise LivepatchError(errno.ENOEXEC, _failed(process, failure))
            try:
                if injector is not None and refusal is None:
                    injector.done()
            except LivepatchError as error:
                if not asked:
                    raise
                refusal = error  # the interpreter was asked, too, and may still come by
            if left <= 0:
                if arrives:
                    raise LivepatchError(errno.ETIMEDOUT, _busy(process, timeout))
                raise refusal or LivepatchError(errno.ETIMEDOUT, _blocked(process, timeout))
            time.sleep(_LOOK)


def _ask(process: Process, files: Files, only_way: bool) -> bool:
    """Whether the interpreter could be asked to run the script. Raises LivepatchError if that is the only way."""
    files.write(files.request, bundle.request(files).encode())
    try:
        remote.request(process, files.inside(files.request), lambda: files.remove(files.request))
    except LivepatchError:
        if only_way:
            raise
        return False
    return True


def _failed(process: Process, failure: str) -> str:
    if failure.startswith("No module named "):  # a packed program has only what it uses itself
        return (
            f"Process {process.pid} lacks a part of the standard library that the agent needs ({failure}); pack the"
            " program with livepatch in it (PyInstaller: --hidden-import livepatch), or run it with a whole Python."
        )
    return f"The agent did not start in process {process.pid}: {failure}"


def _busy(process: Process, timeout: float) -> str:
    return (
        f"Process {process.pid} has begun to let the agent in, but is too busy to be done with that within"
        f" {round(timeout, 2):g} s; the agent will be there in a while, so try again then."
    )


def _blocked(process: Process, timeout: float) -> str:
    """Where the main thread sits, and what to do about it."""
    place = ""
    for _ in range(_LOOKS):
        try:
            place = Path(f"/proc/{process.pid}/task/{process.pid}/wchan").read_text().strip("0\n")
        except OSError:
            break
        if place != "ptrace_stop":  # by our helper, for a moment
            break
        time.sleep(_LOOK)
    meaning = next((what for start, what in _WAITS.items() if place.startswith(start)), None)
    if meaning:
        where = f"is blocked in a system call, waiting {meaning}"
    elif place:
        where = f"is blocked in a system call ({place})"
    else:
        where = "is busy in code that is not Python's"
    return (
        f"Process {process.pid} did not let the agent in within {round(timeout, 2):g} s: its main thread {where};"
        " make it do something (send it a request) and try again, or start it with `livepatch run -- ...`."
    )
