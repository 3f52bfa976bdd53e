"""Threads: daemons, `_thread`'s, and those of C code that enter Python.

A thread is identified by its ident, which is used again when it has ended. That does no harm: a new thread has an
empty stack, so either state is right for it, and one started through `threading` is given its creator's anew.

Its stack is what `sys._current_frames()` shows. The snapshot is one step, but the frames in it are the live ones: the
thread runs on while they are walked. What may happen meanwhile, and why it is harmless, is told in `transition.py` and
`stacks.py`. A thread that is not in the snapshot has ended, or has no Python frame and hence nothing to leave.

A thread that runs an event loop shows the frames of the asyncio task it is just running, too. That is only
too careful: the loop's callback looks again when no task runs. One that runs greenlets shows the running one only:
then its own stack is what `greenlet.py` finds.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from .. import blockers, cpython, originals
from ..kind import Kind, View
from ..model import TaskStatus
from ..stacks import Stack, thread_stack, thread_stacks
from ..transition import Transition, exempt_threads, switch_lock
from . import boundaries, greenlet

#: What starts threads: who starts one through `threading`, and who calls C directly.
_STARTERS = (threading, cpython.THREAD_STARTER), (_thread, "start_new_thread")


#: The name of one that nobody has given one.
_UNNAMED = "(not started by threading)"


class Threads(Kind):
    """The kind that every process has."""

    label = "thread"

    def __init__(self) -> None:
        self._transition: Transition | None = None
        self._starters: list[tuple[Any, str, Any, Any]] = []  # module, name, what was there, what is there now
        self._idents: set[int] = set()  # of all that have a state, perhaps of some that ended

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        return originals.get_ident

    def tasks(self) -> Iterable[int]:
        return list(sys._current_frames())

    def name(self, task: Hashable) -> str | None:
        if not isinstance(task, int):
            return None
        thread = threading._active.get(task)  # type: ignore[attr-defined]
        return thread.name if thread is not None else _UNNAMED

    def notice(self, task: Hashable) -> None:
        if isinstance(task, int):
            self._idents.add(task)

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        me = originals.get_ident()
        self._idents &= {me}
        return [me]

    def finished(self) -> list[Hashable]:
        # One that was just started is not there either, before its first line: it keeps the state of its creator. If
        # that has not moved, nothing is lost, since who is unknown begins there.
        alive, pending = set(sys._current_frames()), self._transition.pending if self._transition is not None else ()
        ended = [ident for ident in self._idents if ident not in alive and ident in pending]
        self._idents.difference_update(ended)
        return list(ended)

    def inspect(self, transition: Transition) -> None:
        stacks: list[Stack] | None
        kept: list[list[Stack]] = []  # frames, and with them what dies with a frame, must not die under the lock
        me = originals.get_ident()
        with transition.looking():
            shown = thread_stacks()
            for ident in sys._current_frames():
                if ident not in transition.pending:
                    continue
                stacks = greenlet.KIND.stacks_of_thread(ident, shown.get(ident))
                if stacks is None:
                    continue  # unreliable: perhaps in the next round
                kept.append(stacks)
                if ident in transition.calls and not any(map(transition.footprint.entered, stacks)):
                    transition.uncount(ident)
                # Whoever does this round has called us: that is a boundary.
                if transition.boundary and ident != me and not all(map(boundaries.between_works, stacks)):
                    continue
                if transition.suspended.unowned():
                    transition.suspended.claim_stack(stacks[0], ident)
                if transition.movable(ident) and not any(map(transition.footprint.affected, stacks)):
                    transition.switch(ident, "stack check")
        # Our own frame is in there, too: else all of them would live until the collector comes.
        kept, shown, stacks = [], {}, None

    # -- a new thread takes the state of the thread that starts it ---------------------------------

    def start(self, transition: Transition) -> None:
        self._transition = transition
        if transition.boundary:
            boundaries.hook(transition)
        for module, name in _STARTERS if not self._starters else ():
            starter = getattr(module, name)
            setattr(module, name, ours := self._starting(starter))
            self._starters.append((module, name, starter, ours))

    def _starting(self, starter: Callable[..., Any]) -> Callable[..., Any]:
        def start(*args: Any, **kwargs: Any) -> Any:
            transition = self._transition
            if transition is None:  # somebody has kept this function
                return starter(*args, **kwargs)
            # This keeps the new thread in its first trampoline until its state is written.
            with transition.looking():
                started = starter(*args, **kwargs)
                ident = cpython.thread_ident(started, kwargs)
                if ident is not None:
                    transition.inherit(ident, transition.current())
            return started

        return start

    def stop(self, transition: Transition) -> None:
        boundaries.unhook()
        self._transition = None
        self._idents = set()
        while self._starters:
            module, name, before, ours = self._starters.pop()
            if getattr(module, name) is ours:  # else somebody came after us
                setattr(module, name, before)

    def statuses(self, view: View) -> list[TaskStatus]:
        known = {thread.ident: thread for thread in threading.enumerate()}
        with switch_lock:
            idents = [ident for ident in sys._current_frames() if ident not in exempt_threads]
            shown = thread_stacks()
            kept = [greenlet.KIND.stacks_of_thread(ident, shown.get(ident), sure=False) for ident in idents]
        found = [
            blockers.status(view, ident, _sketch(ident, known.get(ident), stacks))
            for ident, stacks in zip(idents, kept, strict=True)
        ]
        kept, shown = [], {}  # there, too
        return found


def _sketch(ident: int, thread: threading.Thread | None, stacks: list[Stack] | None) -> blockers.Sketch:
    """What `blockers.py` is told of a thread. One that a dummy stands for may have ended long ago."""
    frames = stacks[0] if stacks else []
    if thread is None or isinstance(thread, threading._DummyThread):
        name = thread.name if thread is not None else _UNNAMED
        native = (thread and thread.native_id) or ident
        origin = "foreign thread (_thread or C code)" + (f", {blockers.defined(frames[-1].f_code)}" if frames else "")
        return blockers.Sketch("thread", name, str(native), frames, stacks, origin)
    native, track = thread.native_id or ident, blockers.Track(thread, _look, _switches)
    return blockers.Sketch("thread", thread.name, str(native), frames, stacks, _origin(thread), track=track)


def _origin(thread: threading.Thread) -> str:
    if thread is threading.main_thread():
        return "main thread"
    run, target = type(thread).run, thread.__dict__.get("_target")
    if isinstance(thread, threading.Timer):
        target = thread.function
    elif run is not threading.Thread.run:
        return blockers.defined(run)
    pool = sys.modules.get("concurrent.futures.thread")
    if pool is not None and target is pool._worker:
        return "worker of ThreadPoolExecutor"
    return blockers.defined(target) if target is not None else ""


def _look(thread: threading.Thread) -> Stack | None:
    return thread_stack(thread.ident or 0) if threading.Thread.is_alive(thread) else []


def _switches(thread: threading.Thread) -> str | None:
    """How often the system has switched to a thread, or away from it: as long as it waits, that stays the same."""
    try:
        with open(f"/proc/self/task/{thread.native_id}/status", encoding="ascii", errors="replace") as lines:
            return "".join(line for line in lines if "ctxt_switches" in line) or None
    except OSError:
        return None


KIND = Threads()
