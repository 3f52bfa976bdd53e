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

import sys
import threading
from collections.abc import Callable, Hashable, Iterable
from typing import Any

from .. import cpython, originals
from ..model import TaskStatus
from ..stacks import Stack, describe
from ..transition import Kind, Transition, View, exempt_threads, switch_lock
from . import boundaries, greenlet

_STARTER = getattr(threading, cpython.THREAD_STARTER)


class Threads(Kind):
    """The kind that every process has."""

    label = "thread"

    def __init__(self) -> None:
        self._transition: Transition | None = None
        self._starter: Any = None

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        return originals.get_ident

    def tasks(self) -> Iterable[int]:
        return list(sys._current_frames())

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        return [originals.get_ident()]

    def finished(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        alive = sys._current_frames()
        return [task for task in tasks if isinstance(task, int) and task not in alive]

    def inspect(self, transition: Transition) -> None:
        kept: list[list[Stack]] = []  # frames, and with them what dies with a frame, must not die under the lock
        me = originals.get_ident()
        with switch_lock:
            for ident in sys._current_frames():
                if ident not in transition.pending:
                    continue
                stacks = greenlet.KIND.stacks_of_thread(ident)
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
        if self._starter is None:
            self._starter = getattr(threading, cpython.THREAD_STARTER)
            setattr(threading, cpython.THREAD_STARTER, self._start_thread)

    def _start_thread(self, *args: Any, **kwargs: Any) -> Any:
        # The lock keeps the new thread out of its first trampoline until its state is written.
        starter, transition = self._starter or _STARTER, self._transition
        if transition is None:  # somebody who came after us has kept this method
            return starter(*args, **kwargs)
        with switch_lock:
            started = starter(*args, **kwargs)
            ident = cpython.thread_ident(started, kwargs)
            if ident is not None:
                transition.inherit(ident, transition.current())
        return started

    def stop(self, transition: Transition) -> None:
        boundaries.unhook()
        if self._starter is not None:
            if getattr(threading, cpython.THREAD_STARTER) == self._start_thread:
                setattr(threading, cpython.THREAD_STARTER, self._starter)
                self._starter = None
            self._transition = None

    def statuses(self, view: View) -> list[TaskStatus]:
        known = {thread.ident: thread for thread in threading.enumerate()}
        found = []
        kept = []  # see inspect
        with switch_lock:
            for ident in sys._current_frames():
                if ident in exempt_threads:
                    continue
                stacks = greenlet.KIND.stacks_of_thread(ident)
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
