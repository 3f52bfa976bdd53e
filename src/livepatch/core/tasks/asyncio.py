"""asyncio tasks, uvloop's included: the tasks are asyncio's own there.

Tasks are checked by a callback in their own loop's thread, scheduled from the round. While it runs, no task of that
loop does: all of them are suspended, and none can have an ordinary function on a stack. What they may have is
suspended coroutines and generators of the version to be left, and those are known (`suspended.py`). The callback
first gives the ones that have no owner yet to the task in whose await chain it finds them. It works in slices of a
millisecond, so that a hundred thousand tasks do not hold up the loop.

The thread that runs the loop is checked there as well: with no task running, its stack is its own.

A task born during the transition takes the state of its creator, since half of asyncio (`gather`, and `wait_for` on
3.11) makes a task of what looks like a call. The task factory of each loop tells who that is; it is ours for as long
as the transition runs. In a loop that was not there yet when the transition started, it is the thread.

A loop that does not run cannot run a callback; its tasks cannot run either, and are checked from outside.

asyncio is imported by nobody here: a process that does not use it does not pay for it.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Hashable, Iterable
from types import FrameType
from typing import Any

from .. import cpython
from ..model import TaskStatus
from ..stacks import describe, walk
from ..suspended import chain, frame_of
from ..transition import Transition, View, switch_lock

#: The longest that a check may hold up a loop, in seconds.
SLICE = 0.001


def _asyncio() -> Any:
    """The module, once it is there and whole."""
    module = sys.modules.get("asyncio")
    return module if hasattr(module, "current_task") and hasattr(module, "_get_running_loop") else None


def _loop_of(task: Any) -> Any:
    return task.get_loop()


class Loops:
    """The kind of asyncio tasks."""

    label = "asyncio"

    def __init__(self) -> None:
        self._scheduled: set[int] = set()  # loops with a callback under way
        self._loops: list[Any] = []  # loops that had pending tasks at the last look
        self._transition: Transition | None = None
        self._factories: dict[int, tuple[Any, Any, Any]] = {}  # loop, its factory, ours
        self._creators: dict[int, Hashable] = {}  # by thread: who is creating a task just now

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        modules = sys.modules
        running: Any = None
        current: Any = None

        def look() -> Hashable:
            nonlocal running, current
            if running is None:
                asyncio = _asyncio() if "asyncio" in modules else None
                if asyncio is None:
                    return fallback()
                current, running = asyncio.current_task, asyncio._get_running_loop
            loop = running()
            if loop is not None:
                task: Hashable = current(loop)
                if task is not None:
                    return task
            return fallback()

        return look

    def tasks(self) -> list[Any]:
        asyncio = _asyncio()
        return cpython.asyncio_tasks(asyncio) if asyncio is not None else []

    def _is_task(self, task: object) -> bool:
        asyncio = _asyncio()
        return asyncio is not None and isinstance(task, asyncio.Future)

    def creator(self, task: Hashable) -> Hashable | None:
        thread = threading.get_ident()
        return self._creators.get(thread, thread) if self._is_task(task) else None

    def root(self, task: Hashable) -> FrameType | None:
        return frame_of(task.get_coro()) if self._is_task(task) else None  # type: ignore[attr-defined]

    def finished(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        return []  # seen by the callback

    def inspect(self, transition: Transition) -> None:
        asyncio = _asyncio()
        if asyncio is None:
            return
        if self._loops and all(loop.is_running() and id(loop) in self._scheduled for loop in self._loops):
            return  # every loop is at it
        future = asyncio.Future
        by_loop: dict[int, tuple[Any, list[Any]]] = {}
        with switch_lock:
            for task in transition.pending.copy():  # a finalizer may run a new task right here
                if isinstance(task, future):
                    loop = task.get_loop()
                    by_loop.setdefault(id(loop), (loop, []))[1].append(task)
        self._loops = [loop for loop, _ in by_loop.values()]
        running = asyncio._get_running_loop()
        for loop, tasks in by_loop.values():
            if loop is running or not loop.is_running():
                self._check_now(transition, tasks)
            elif id(loop) not in self._scheduled:
                self._schedule(transition, loop, tasks)

    def _schedule(self, transition: Transition, loop: Any, tasks: list[Any]) -> None:
        scheduled = self._scheduled

        def check() -> None:
            """Idle switching: runs in the loop's thread while no task of the loop does."""
            with switch_lock:
                if transition.over:
                    tasks.clear()
                else:
                    thread = threading.get_ident()
                    if (
                        thread in transition.pending
                        and transition.movable(thread)
                        and not transition.footprint.affected(walk(sys._getframe(1)))
                    ):
                        transition.switch(thread, "idle")
                    self._check(transition, tasks, time.monotonic() + SLICE)
            if tasks:
                loop.call_soon(check)
            else:
                scheduled.discard(id(loop))
                if not transition.over:
                    transition.wake()

        scheduled.add(id(loop))
        try:
            loop.call_soon_threadsafe(check)
        except RuntimeError:  # closed meanwhile
            scheduled.discard(id(loop))

    def _check_now(self, transition: Transition, tasks: list[Any]) -> None:
        """A loop that does not run, or whose thread is doing this round and runs no other of its tasks."""
        current = transition.current()
        with switch_lock:
            if current in tasks:
                tasks.remove(current)
                clean = not transition.footprint.affected(walk(sys._getframe(1)), self.root(current))
                if clean and current in transition.pending and transition.movable(current):
                    transition.switch(current, "stack check")
            self._check(transition, tasks, time.monotonic() + 3600)

    def _check(self, transition: Transition, tasks: list[Any], deadline: float) -> None:
        """Move what can be moved, take it off the list, and stop at the deadline."""
        nobodys = transition.suspended.of(None)
        while tasks and time.monotonic() < deadline:
            task = tasks.pop()
            if task.done():
                transition.forget(task)
            elif task in transition.pending:
                for link in chain(task.get_coro()) if nobodys else ():
                    transition.suspended.claim(link, task)
                transition.uncount(task)
                if transition.movable(task) and not transition.boundary:
                    transition.switch(task, "idle")

    def start(self, transition: Transition) -> None:
        """Loops are looked for anew; what was scheduled may never have run."""
        self._loops, self._scheduled = [], set()
        self._transition = transition
        loops = {id(loop): loop for task in transition.states if self._is_task(task) and (loop := _loop_of(task))}
        for key, loop in loops.items():
            if key not in self._factories:
                before = loop.get_task_factory()
                self._factories[key] = loop, before, self._factory(before)
                loop.set_task_factory(self._factories[key][2])

    def _factory(self, before: Any) -> Callable[..., Any]:
        make = before or (lambda loop, coroutine, **options: _asyncio().Task(coroutine, loop=loop, **options))

        def create(loop: Any, coroutine: Any, **options: Any) -> Any:
            transition, thread = self._transition, threading.get_ident()
            if transition is None:  # somebody has kept this factory
                return make(loop, coroutine, **options)
            outer, creator = self._creators.get(thread), transition.current()
            self._creators[thread] = creator
            try:
                task = make(loop, coroutine, **options)
            finally:
                if outer is None:
                    self._creators.pop(thread, None)
                else:
                    self._creators[thread] = outer
            with switch_lock:
                if task not in transition.states and not task.done():  # an eager one has begun to run
                    transition.inherit(task, creator)
            task.add_done_callback(self._ended)
            return task

        return create

    def _ended(self, task: Any) -> None:
        """There may be millions of them before a transition completes."""
        transition = self._transition
        if transition is not None:
            with switch_lock:
                transition.forget(task)

    def nudge(self, transition: Transition) -> None:
        """The round has scheduled a callback in every loop already."""

    def stop(self, transition: Transition) -> None:
        """Callbacks still under way see that the transition is over."""
        self._loops = []
        self._transition = None
        for loop, before, ours in self._factories.values():
            if loop.get_task_factory() is ours:
                loop.set_task_factory(before)
        self._factories = {}

    def statuses(self, view: View) -> list[TaskStatus]:
        found = []
        for task in self.tasks():
            frames = [frame for link in chain(task.get_coro()) if (frame := frame_of(link)) is not None]
            affected = [f for f in frames if id(f.f_code) in view.footprint.forbidden]
            found.append(
                TaskStatus(
                    kind=self.label,
                    name=task.get_name(),
                    ident=hex(id(task)),
                    patch_state=view.state_of(task),
                    blocking=view.blocking(task, affected[::-1]),
                    stack=[describe(frame) for frame in reversed(frames)],
                )
            )
        return found


KIND = Loops()
