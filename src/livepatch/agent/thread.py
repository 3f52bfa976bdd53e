"""The agent's one thread: it drives transitions on, and serves the socket if there is one.

It is started by the first `wake()` (a transition is pending) or by `serve()`, whichever comes first, and
then sleeps in `poll()` until a round is due, a client speaks, or somebody rings the bell.

`wake()` is called by the core from wherever a transition gets something to do: any thread, signal
handlers and finalizers included, in the middle of anything. So it may neither block nor take a lock that
the code it interrupts could hold. Starting the thread through `threading` would (its bookkeeping has a
lock), hence `start_new_thread`; that exactly one starts it is decided by a lock that is tried, never waited for.

Two things happen to a long-lived process that an agent must survive:

* **fork**: a program that has one thread must go on forking as one that has one thread (everything else
  invites deadlocks, and from 3.12 on a warning). So the thread ends before a fork and is started again
  after it; if it is busy just then, the fork waits a moment and no longer. The child shares the
  descriptors with its parent: it makes a new `Agent`, and a new socket if its parent had one. Not at once:
  most children that live for a moment only, or that become another program, need none, and would leave it behind.
  A child that was forked in a thread ends when that thread does, since it is the last; so the agent must end, too.
* **closing all descriptors**, as programs do that turn themselves into daemons. Their numbers come back
  as somebody else's files. So the agent writes to, reads from and closes a number only after making sure
  that it is still the same pipe or socket (device and inode), uses `poll` rather than `epoll` (which has
  a number of its own that could be lost), and makes everything anew when something is gone. It notices
  because the other end of the bell is among the things that were closed.

Nothing here goes through `threading`, `time`, `select` or `socket` as a program sees them: gevent and eventlet replace
those, and the thread has to run when no greenlet does.

The thread blocks all signals: a program with one thread may block some itself to take them with `sigwait`, and
the system would then hand them to the thread that does not.
"""

from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found] # the other one makes enumerations of it all
import atexit
import errno
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from livepatch.core import lists, log, originals, registry
from livepatch.core.model import LivepatchError, PatchStatus
from livepatch.core.tasks import exempt_thread
from livepatch.core.transition import exempt_threads

from . import methods, patchfile, places, poll, rpc, server, startup
from .turns import turns

#: Seconds that a fork waits for the thread at most.
_FORK_PATIENCE = 0.2
#: The same while it reads an archive, and imports what that needs: nobody could import that in the child.
_IMPORT_PATIENCE = 5.0
#: Seconds after a fork until the child opens its socket.
_CHILDHOOD = 0.03
#: Seconds between two looks whether anybody else is left, in a process whose first thread has ended.
_LONELY = 0.05
#: Seconds until a round is tried again that another thread's operation was in the way of.
_ANOTHER_TRY = 0.01
#: Log lines that are kept for followers until the thread gets to them.
_LINES_LIMIT = 4096
#: Seconds between two looks whether the socket is still there, while there is nothing to do.
_CARE = 60.0
#: The same while there is something to do anyway.
_LEISURE = 1.0


class Descriptor:
    """One of our descriptors, with what proves that the number is still ours."""

    def __init__(self, number: int) -> None:
        self.number = number
        self._mark = os.fstat(number)

    def ours(self) -> bool:
        """Whether nobody closed it (and perhaps opened something else under its number)."""
        try:
            return os.path.samestat(os.fstat(self.number), self._mark)
        except OSError:
            return False


class Bell:
    """A pipe to ourselves, to get the thread out of `poll()`."""

    def __init__(self) -> None:
        reader, writer = os.pipe()
        os.set_blocking(reader, False)
        os.set_blocking(writer, False)
        self.reader, self.writer = Descriptor(reader), Descriptor(writer)

    def ours(self) -> bool:
        return self.reader.ours() and self.writer.ours()

    def ring(self) -> None:
        """Never blocks: a full pipe rings already."""
        if self.writer.ours():
            with suppress(OSError):
                originals.write(self.writer.number, b"\0")

    def silence(self) -> None:
        with suppress(OSError):
            originals.read(self.reader.number, 4096)

    def close(self) -> None:
        for end in (self.reader, self.writer):
            if end.ours():
                os.close(end.number)


class Farewell:
    """Dies with the thread that made it, and tells the agent."""

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    def __del__(self) -> None:
        self._agent.left_alone = True
        self._agent.wake()


class Agent:
    """The thread and the socket of one process; a forked child makes another."""

    def __init__(self) -> None:
        self.server: server.Server | None = None
        self.left_alone = False  # the thread with which the process is to end has ended
        self._opens: float | None = None  # when the socket is to be opened
        self._cared = 0.0  # when we last looked whether it is there
        self._last = originals.local()
        self._claim = originals.allocate_lock()  # held, for good, by whoever starts the thread
        self._serving = originals.RLock()
        self._pausing = originals.RLock()  # over the next two
        self._forkers: list[int] = []  # threads that fork just now; twice, if a signal handler forks as well
        self._alive = False  # the thread was started and has not decided to end
        self._idents = (0, 0)  # of the thread: Python's and the system's
        self._poll = poll.Poll()
        self._bell: Bell | None = None
        self._listener: Descriptor | None = None
        self._mutex_taken = False  # at the last look: another thread enables or disables a patch
        self._lines: deque[tuple[float, str]] = deque(maxlen=_LINES_LIMIT)
        self._shown: dict[str, PatchStatus] = {}

    # -- called from any thread --------------------------------------------------------------------

    def wake(self) -> None:
        """Make the thread look whether a round is due, and start it if it is not running yet; never blocks."""
        bell = self._bell
        if bell is not None:
            bell.ring()
        elif self._claim.acquire(blocking=False):
            # Whoever comes here meanwhile rings no bell, and need not: the thread begins by looking.
            try:
                self._hang_bell()
                self._start()
            except BaseException as error:
                if not self._alive:
                    self._take_bell_down()
                    self._claim.release()
                if not isinstance(error, OSError | RuntimeError):  # a signal handler raised
                    raise
                # No descriptor or thread to be had: the next wake tries again.

    def serve(self) -> str:
        """Have a socket, start the thread if need be, and return the socket's path.

        Raises LivepatchError if the socket cannot be made, or no thread be started.
        """
        with self._serving:
            self.wake()
            if self._bell is None:
                raise LivepatchError(errno.EAGAIN, "The agent's thread cannot be started in this process.")
            if self.server is None:
                self._open_first()
            else:
                self._listen_anew(self.server)
            self.wake()
            assert self.server is not None
            return self.server.path

    def serve_soon(self) -> None:
        """In a forked child: have a socket in a moment, if there is still this process by then."""
        self._opens = originals.monotonic() + _CHILDHOOD
        self.wake()

    def promise_again(self) -> None:
        """In a forked child, before anything else runs there: be asked once more what to do at the end.

        A child of multiprocessing begins by forgetting what it was to do at its end, perhaps a moment after `_promise`;
        then it asks who wants to promise anew. It must not be told so later: it may just be going through who does.
        """
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.register_after_fork(self, Agent._promise)

    def serves(self) -> bool:
        """It has a socket, or will have."""
        return self.server is not None or self._opens is not None

    def end_with_this_thread(self) -> None:
        """The running thread is not the one that ends the process when it ends, but the last one."""
        self._last.farewell = Farewell(self)

    def pause(self) -> None:
        """Before a fork: end the thread."""
        with self._pausing:
            self._forkers.append(originals.get_ident())
        if not self._alive or originals.get_ident() == self._idents[0]:
            return
        self.wake()
        deadline = originals.monotonic() + _FORK_PATIENCE
        while self._alive or os.path.exists(f"/proc/self/task/{self._idents[1]}"):
            late = originals.monotonic() - deadline
            if late > (_IMPORT_PATIENCE if patchfile.reading else 0.0):
                return
            originals.sleep(0.0001)

    def resume(self) -> None:
        """After a fork, in the parent: start the thread again if it was there.

        Of a fork that had already called its hooks when ours was registered, there was no `pause`.
        """
        with self._pausing:
            with suppress(ValueError):
                self._forkers.remove(originals.get_ident())
            if not self._forkers and not self._alive and self._bell is not None:
                with suppress(RuntimeError):  # the interpreter is just ending
                    self._start()

    def abandon(self) -> None:
        """In a forked child: let go of what is the parent's."""
        self._take_bell_down()
        if self.server is not None and self._listener is not None and self._listener.ours():
            for sock in self.server.sockets():
                sock.close()
        self._forget_log()

    # -- the thread --------------------------------------------------------------------------------

    def _hang_bell(self) -> None:
        bell = Bell()
        self._poll.register(bell.reader.number, poll.READ, bell.silence)
        self._bell = bell

    def _take_bell_down(self) -> None:
        bell, self._bell = self._bell, None
        if bell is not None:
            self._poll.unregister(bell.reader.number)
            bell.close()

    def _open(self) -> None:
        self._opens = None
        self.server = server.Server(self._poll, lambda line, client: rpc.answer(line, methods.METHODS, client))
        self._listener = Descriptor(self.server.listener.fileno())

    def _open_first(self) -> None:
        """Once in a process, under `_serving`."""
        self._open()
        atexit.register(self._remove_socket)
        self._promise()

    def _promise(self) -> None:
        """The same as `atexit` for a child of multiprocessing, which ends without that."""
        util = sys.modules.get("multiprocessing.util")
        if util is not None:
            util.Finalize(None, self._remove_socket, exitpriority=-100)

    def _open_now(self) -> None:
        try:
            with self._serving:
                if self.server is None:
                    self._open_first()
        except LivepatchError as error:
            self._opens = None
            log.warning(f"the agent of the parent process is not continued here: {error}")

    def _start(self) -> None:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())  # the new thread inherits it
        try:
            self._alive = True
            originals.start_new_thread(self._run, ())
        except RuntimeError:
            self._alive = False
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _run(self) -> None:
        pid, ident = os.getpid(), originals.get_ident()
        self._idents = ident, originals.get_native_id()
        exempt_thread(ident)
        named = threading.get_ident() == ident  # not so if somebody has replaced the threads by greenlets
        if named:
            with suppress(Exception):  # of a `threading` that the program has changed, and nothing depends on it
                _name_this_thread("livepatch")
        going = True
        while going:
            try:
                going = self._goes_on() and os.getpid() == pid  # foreign code that a client had us run may have forked
                if going:
                    self._turn()
            except BaseException as error:  # a program that ends its threads does not mean this one
                log.error(f"the agent failed with {type(error).__name__}: {error}")
                turns.rest()
                originals.sleep(1.0)
        turns.rest()
        # The next thread may get the same ident, and is somebody else's.
        exempt_threads.discard(ident)
        if named:
            with suppress(Exception):
                threading.current_thread()._delete()  # type: ignore[attr-defined]

    def _goes_on(self) -> bool:
        with self._pausing:
            self._alive = not self._forkers and not (self.left_alone and len(sys._current_frames()) == 1)
            if self.left_alone and not self._alive and not self._forkers:
                self._remove_socket()
            return self._alive

    def _sleeps(self) -> float | None:
        """For how long at most."""
        due = registry.next_round()
        if due is not None and self._mutex_taken:
            due = max(due, _ANOTHER_TRY)
        if due is None:
            due = startup.due()
        if self._opens is not None:
            due = min(max(0.0, self._opens - originals.monotonic()), due if due is not None else _CHILDHOOD)
        if due is None and self.server is not None:
            due = _CARE
        if self.left_alone:
            due = min(_LONELY, due if due is not None else _LONELY)
        rest = turns.rests_in()
        if rest is not None:
            due = min(rest, due if due is not None else rest)
        return due

    def _turn(self) -> None:
        """Sleep until there is something to do, and do it."""
        calls = self._poll.wait(self._sleeps())
        if not self._ours():
            self._start_over()
            return
        self._take_turns(calls)
        for call in calls:
            call()
        due = registry.next_round()
        if due is not None and due <= 0:
            self._tick()
        if startup.due() is not None:
            startup.catch_up()
        if self._opens is not None and self._opens <= originals.monotonic():
            self._open_now()
        if self.server is not None:
            self._care_for(self.server)
            self._publish(self.server)

    def _take_turns(self, calls: Sequence[Callable[[], object]]) -> None:
        """See to it that clients are served soon where others compute, see `turns.py`."""
        assert self._bell is not None
        if any(call != self._bell.silence for call in calls):
            turns.serve()
        elif turns.rests_in() == 0:
            turns.rest()

    def _care_for(self, running: server.Server) -> None:
        """Whoever cleans up /tmp may take our socket away, and nobody else could tell us."""
        if self._cared + _LEISURE <= originals.monotonic():
            self._cared = originals.monotonic()
            turns.mend()
            if not running.is_reachable():
                with suppress(LivepatchError), self._serving:
                    self._listen_anew(running)

    def _listen_anew(self, running: server.Server) -> None:
        """Under `_serving`, in any thread; another one may have done it just before."""
        if running.is_reachable():
            return
        before = running.listen_anew()
        self._listener = Descriptor(running.listener.fileno())  # first: the thread looks whether this is open
        before.close()
        log.notice(f"the agent's socket was gone and is made anew, {running.path}")

    def _tick(self) -> None:
        """Make a round, unless another thread is in an operation: who only reads must not wait for its callbacks."""
        self._mutex_taken = not lists.mutex.acquire(blocking=False)
        if not self._mutex_taken:
            try:
                registry.tick()
            finally:
                lists.mutex.release()

    def _ours(self) -> bool:
        return self._bell is not None and self._bell.ours() and (self._listener is None or self._listener.ours())

    def _start_over(self) -> None:
        """Our descriptors were closed under us: make new ones and never touch the old numbers again."""
        originals.sleep(1.0)  # whoever closes one after the other is to be done with it first
        with self._serving:
            self._take_bell_down()
            served, self._poll = self.server, poll.Poll()
            self._hang_bell()
            if served is not None:
                for sock in served.sockets():
                    sock.detach()
                self._open()

    def _remove_socket(self) -> None:
        if self.server is not None and self.server.path in map(places.socket_path, places.BASES):
            with suppress(OSError):
                os.unlink(self.server.path)

    # -- events ------------------------------------------------------------------------------------

    def _publish(self, running: server.Server) -> None:
        """Tell the followers the new log lines and what became of transitions."""
        followers = [connection for connection in running.connections if connection.follows]
        if not followers:
            self._forget_log()
            return
        if self._on_log not in log.listeners:
            log.listeners.append(self._on_log)
            self._shown = {patch.name: patch for patch in registry.patches()}
        events = []
        while self._lines:
            seconds, sentence = self._lines.popleft()
            events.append(rpc.notification("log", {"time": seconds, "line": sentence}))
        before, self._shown = self._shown, {patch.name: patch for patch in registry.patches()}
        for name in before.keys() | self._shown.keys():
            change = _change(name, before.get(name), self._shown.get(name))
            if change:
                events.append(rpc.notification("transition", change))
        for connection in followers:
            for line in events:
                connection.push(line)

    def _on_log(self, now: float, line: str) -> None:
        self._lines.append((now, line))
        self.wake()

    def _forget_log(self) -> None:
        if self._on_log in log.listeners:
            log.listeners.remove(self._on_log)
            self._lines.clear()


def _name_this_thread(name: str) -> None:
    """Have `threading` know it by this name, until it calls its `_delete`.

    From 3.13 on `threading` forgets a thread that it has not started by an object that dies with it and then takes a
    lock. In a child, that is before anybody makes the lock anew which a thread that is not there had. So without that.
    """
    thread = threading.current_thread()
    thread.name = name
    local: Any = getattr(threading, "_thread_local_info", None)
    if hasattr(local, "_track_dummy_thread_ref"):
        del local._track_dummy_thread_ref
        with threading._active_limbo_lock:  # type: ignore[attr-defined]
            threading._active[thread.ident] = thread  # type: ignore[attr-defined]


def _change(name: str, before: PatchStatus | None, now: PatchStatus | None) -> dict[str, object] | None:
    """What a follower is told about a patch: its state, or that it is listed no more."""
    if now is None:
        return {"name": name, "listed": False}
    shown = ("enabled", "transition", "left")
    if before is not None and all(getattr(before, what) == getattr(now, what) for what in shown):
        return None
    return {
        "name": name,
        "listed": True,
        "enabled": now.enabled,
        "transition": now.transition,
        "total": now.total,
        "left": now.left,
    }
