"""Threads: daemons, `_thread`'s, and those of C code that enter Python.

A thread is identified by its ident, which is used again when it has ended. That does no harm: a new thread has an
empty stack, so either state is right for it, and one started through `threading` is given its creator's anew.

Its stack is what `sys._current_frames()` shows. The snapshot is one step, but the frames in it are the live ones: the
thread runs on while they are walked. What may happen meanwhile, and why it is harmless, is told in `transition.py`.
A thread that is not in the snapshot has ended, or has no Python frame and hence nothing to leave.

A thread that runs an event loop shows the frames of the asyncio task it is just running, too. That is only
too careful: the loop's callback looks again when no task runs.
"""

from __future__ import annotations

import functools
import sys
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from types import CodeType, FrameType, FunctionType
from typing import Any

from .. import cpython
from ..model import TaskStatus
from ..stacks import describe, thread_stack, walk
from ..transition import Transition, View, exempt_threads, switch_lock

_STARTER = getattr(threading, cpython.THREAD_STARTER)


def between_works(frames: list[FrameType]) -> bool:
    """Whether a thread is between two pieces of work, as far as its stack can tell: see `Patch.consistency`.

    That is so for a worker of `concurrent.futures` without a work item, and for whoever has nothing but library code on
    its stack and no request or work item: what waits for connections, signals or other threads. Application code may be
    in the middle of anything.
    """
    codes = [frame.f_code for frame in frames]
    if any(code in codes for code in _functions(_WORKS)):
        return False
    return any(code in codes for code in _functions(_WORKERS)) or all(_is_library(code.co_filename) for code in codes)


#: What runs one piece of work, and what waits for the next, by module.
_WORKS = {
    "concurrent.futures.thread": ("_WorkItem.run",),
    "socketserver": ("BaseServer.process_request", "ThreadingMixIn.process_request_thread"),
    "wsgiref.handlers": ("BaseHandler.run",),
}
_WORKERS = {"concurrent.futures.thread": ("_worker",)}


def _functions(names: Mapping[str, tuple[str, ...]]) -> Iterator[CodeType]:
    for module, functions in names.items():
        for name in functions if module in sys.modules else ():
            function: Any = sys.modules[module]
            for part in name.split("."):
                function = getattr(function, part, None)
            if isinstance(function, FunctionType):
                yield function.__code__


@functools.cache
def _is_library(file: str) -> bool:
    import sysconfig  # not before it is needed: the agent is to stay small

    paths = sysconfig.get_paths()
    return file.startswith(("<frozen ", *(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))))


class Threads:
    """The kind that every process has."""

    label = "thread"

    def __init__(self) -> None:
        self._transition: Transition | None = None
        self._starter: Any = None

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        return threading.get_ident

    def tasks(self) -> Iterable[int]:
        return list(sys._current_frames())

    def creator(self, task: Hashable) -> None:
        return None

    def root(self, task: Hashable) -> None:
        return None

    def finished(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        alive = sys._current_frames()
        return [task for task in tasks if isinstance(task, int) and task not in alive]

    def inspect(self, transition: Transition) -> None:
        kept: list[list[FrameType]] = []
        with switch_lock:
            for ident, frame in sys._current_frames().items():
                if ident not in transition.pending:
                    continue
                frames = thread_stack(ident, frame)
                if frames is None:
                    continue  # perhaps in the next round
                kept.append(frames)
                if ident in transition.calls and not transition.footprint.entered(frames):
                    transition.uncount(ident)
                # Whoever does this round has called us: that is a boundary.
                if transition.boundary and ident != threading.get_ident() and not between_works(frames):
                    continue
                if transition.movable(ident) and not transition.footprint.affected(frames):
                    transition.switch(ident, "stack check")
        # Our own frame is among them: a circle would keep all of them until a collection comes.
        kept.clear()
        frames = frame = None  # type: ignore[assignment]

    # -- a new thread takes the state of the thread that starts it ---------------------------------

    def start(self, transition: Transition) -> None:
        self._transition = transition
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
        if self._starter is not None:
            if getattr(threading, cpython.THREAD_STARTER) == self._start_thread:
                setattr(threading, cpython.THREAD_STARTER, self._starter)
                self._starter = None
            self._transition = None

    def nudge(self, transition: Transition) -> None:
        """Nothing can push a thread out of a function; loops and pools are woken by their own kinds."""

    def statuses(self, view: View) -> list[TaskStatus]:
        known = {thread.ident: thread for thread in threading.enumerate()}
        found = []
        frames = sys._current_frames()  # kept beyond the lock, like every snapshot
        with switch_lock:
            for ident, frame in frames.items():
                if ident in exempt_threads:
                    continue
                affected = view.footprint.affected(walk(frame)) if ident in view.pending else None
                blocking = view.blocking(ident, [affected] if affected is not None else [])
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
                        stack=[describe(f) for f in walk(frame)],
                    )
                )
        return found


KIND = Threads()
