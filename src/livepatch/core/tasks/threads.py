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

from .. import cpython, originals
from ..model import TaskStatus
from ..stacks import Stack, describe, thread_stacks
from ..transition import Kind, Transition, View, exempt_threads, switch_lock
from . import boundaries, greenlet

#: What starts threads: who starts one through `threading`, and who calls C directly.
_STARTERS = (threading, cpython.THREAD_STARTER), (_thread, "start_new_thread")


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

    def notice(self, task: Hashable) -> None:
        if isinstance(task, int):
            self._idents.add(task)

    def finished(self) -> list[Hashable]:
        # One that was just started is not there either, before its first line: it keeps the state of its creator. If
        # that has not moved, nothing is lost, since who is unknown begins there.
        alive, pending = sys._current_frames(), self._transition.pending if self._transition is not None else ()
        ended = [ident for ident in self._idents if ident not in alive and ident in pending]
        self._idents.difference_update(ended)
        return list(ended)

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        return [originals.get_ident()]

    def inspect(self, transition: Transition) -> None:
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
                if transition.movable(ident) and not any(map(transition.footprint.affected, stacks)):
                    transition.switch(ident, "stack check")

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
        found = []
        kept = []  # see inspect
        with switch_lock:
            shown = thread_stacks()
            for ident in sys._current_frames():
                if ident in exempt_threads:
                    continue
                stacks = greenlet.KIND.stacks_of_thread(ident, shown.get(ident))
                kept.append(stacks)
                frames = stacks[0] if stacks else []
                blocking = []
                if ident in view.pending:
                    affected = [frame for each in stacks or [] if (frame := view.footprint.affected(each)) is not None]
                    blocking = view.blocking(ident, affected)
                    if stacks is None:
                        blocking = ["(its stack is unreliable: it switches greenlets all the time)"]
                if ident in view.calls and not blocking:
                    blocking = ["a patched function, on a stack that is not this thread's own just now"]
                thread = known.get(ident)
                found.append(
                    TaskStatus(
                        kind=self.label,
                        name=thread.name if thread is not None else "(not started by threading)",
                        ident=str((thread and thread.native_id) or ident),
                        patch_state=view.state_of(ident),
                        blocking=blocking,
                        stack=[describe(frame) for frame in frames],
                    )
                )
        return found


KIND = Threads()
