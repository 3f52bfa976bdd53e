"""asyncio tasks, uvloop's included: the tasks are asyncio's own there.

Tasks are checked by a callback in their own loop's thread, scheduled from the round. While it runs, no task of that
loop does: all of them are suspended, and none can have an ordinary function on a stack. What they may have is
suspended coroutines and generators of the version to be left, and those are known (`suspended.py`). The callback
first gives the ones that have no owner yet to the task in whose await chain it finds them, then moves tasks. It works
in slices of a millisecond, so that a million tasks do not hold up the loop, and later rounds look only at those that
had to stay: each loop's tasks are kept in lists for that, made while the transition lists its tasks.

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
from collections import deque
from collections.abc import Callable, Hashable, Iterable
from types import FrameType
from typing import Any

from .. import blockers, cpython, originals
from ..kind import Kind, View
from ..model import TaskStatus
from ..pace import SLICE
from ..stacks import stack
from ..suspended import frame_of, stack_of_coroutine
from ..transition import Transition, switch_lock
from .boundaries import between_works, is_work

#: So many tasks are looked at between two looks at the clock.
_CHUNK = 64
#: What is on the stack of a thread that runs a loop, if that is written in Python.
_RUNNING = ("run_forever", "run_until_complete")


def _asyncio() -> Any:
    """The module, once it is there and whole."""
    module = sys.modules.get("asyncio")
    return module if hasattr(module, "current_task") and hasattr(module, "_get_running_loop") else None


class _Loop:
    """An event loop and those of its tasks that have not moved, in lists of `_CHUNK`."""

    def __init__(self, loop: Any) -> None:
        self.loop = loop
        self.unclaimed: deque[list[Any]] = deque()  # to be looked at, first for what hangs on them
        self.due: deque[list[Any]] = deque()  # to be looked at
        self.held: deque[list[Any]] = deque()  # to be looked at in the next round
        self.scheduled = False  # a callback is under way

    def add(self, task: Any) -> None:
        if not self.held or len(self.held[-1]) >= _CHUNK:
            self.held.append([])
        self.held[-1].append(task)

    def begin(self) -> bool:
        """Another round: look at all of them. Whether there is one."""
        self.unclaimed += self.due
        self.unclaimed += self.held
        self.due.clear()
        self.held.clear()
        return bool(self.unclaimed)


class Loops(Kind):
    """The kind of asyncio tasks."""

    label = library = "asyncio"

    def __init__(self) -> None:
        self._forked = False  # this process is a child
        self._forker: Any = None  # the loop that runs in a thread which is about to fork
        self._left: list[Any] = []  # loops that ran when this process was forked
        self._loops: dict[int, _Loop] = {}
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
                current, running = cpython.current_task(asyncio), asyncio._get_running_loop
            loop = running()
            if loop is not None:
                task: Hashable = current(loop)
                if task is not None:
                    return task
            return fallback()

        return look

    def tasks(self) -> Iterable[Any]:
        found = self._everywhere()
        return (task for task in found if not self._has_ended(task.get_loop())) if self._forked else found

    def _everywhere(self) -> Iterable[Any]:
        asyncio = _asyncio()
        return cpython.asyncio_tasks(asyncio) if asyncio is not None else ()

    def _is_task(self, task: object) -> bool:
        return isinstance(task, getattr(sys.modules.get("asyncio"), "Future", ()))

    def name(self, task: Hashable) -> str | None:
        return str(task.get_name()) if self._is_task(task) else None  # type: ignore[attr-defined]

    def creator(self, task: Hashable) -> Hashable | None:
        thread = originals.get_ident()
        return self._creators.get(thread, thread) if self._is_task(task) else None

    def root(self, task: Hashable) -> FrameType | None:
        return frame_of(task.get_coro()) if self._is_task(task) else None  # type: ignore[attr-defined]

    def notice(self, task: Any) -> None:
        if self._is_task(task):
            loop = task.get_loop()
            here = self._loops.get(id(loop))
            if here is None:  # in one step: while tasks are listed, those that come are noticed by their own thread
                here = self._loops.setdefault(id(loop), _Loop(loop))
            here.add(task)

    def before_fork(self) -> None:
        asyncio = _asyncio()
        self._forker = asyncio._get_running_loop() if asyncio is not None else None

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        """No loop that ran goes on running in a child; asyncio sees to that."""
        self._forked = True
        self._left += [self._forker] if self._forker is not None else []
        self._left += [here.loop for here in self._loops.values() if here.loop.is_running()]
        for key, here in list(self._loops.items()):
            here.scheduled = False
            if self._has_ended(here.loop):
                del self._loops[key]
        return [task for task in tasks if self._is_task(task) and not self._has_ended(task.get_loop())]  # type: ignore[attr-defined]

    def left_behind(self) -> Iterable[tuple[Hashable, object]]:
        found = self._everywhere() if self._forked else ()
        return [(task, task.get_coro()) for task in found if self._has_ended(task.get_loop())]

    def _has_ended(self, loop: Any) -> bool:
        """It was running when this process was forked, or its parent was."""
        if any(loop is left for left in self._left):
            return True
        thread = getattr(loop, "_thread_id", None)  # other loops do not tell
        if thread is None:
            return False
        frame = sys._current_frames().get(thread)  # an ident may be used again
        return not any(f.f_code.co_name in _RUNNING for f in stack(frame))

    def inspect(self, transition: Transition) -> None:
        asyncio = _asyncio()
        if asyncio is None:
            return
        running = asyncio._get_running_loop()
        for here in list(self._loops.values()):
            if here.loop is running or not here.loop.is_running():
                self._check_now(transition, here)
            elif not here.scheduled:
                self._schedule(transition, here)

    def _schedule(self, transition: Transition, here: _Loop) -> None:
        def check() -> None:
            """Idle switching: runs in the loop's thread while no task of the loop does."""
            kept: list[list[Any]] = []  # a task that ends its life here must not do so under the lock
            more = False
            try:
                with transition.looking():
                    if transition.over:
                        return
                    transition.look_at_self(originals.get_ident(), stack(sys._getframe(1)), between_works)
                    more = self._check(transition, here, kept, originals.monotonic() + SLICE)
            finally:  # also if a signal handler has raised in there: the next round comes back
                here.scheduled = more
            if more:
                here.loop.call_soon(check)

        with switch_lock:
            # The loop's own thread may be caught in the middle of some work at every look from outside.
            here.scheduled = here.begin() or transition.boundary
        if here.scheduled:
            try:
                here.loop.call_soon_threadsafe(check)
            except RuntimeError:  # closed meanwhile
                here.scheduled = False

    def _check_now(self, transition: Transition, here: _Loop) -> None:
        """A loop that does not run, or whose thread is doing this round and runs no other of its tasks."""
        current = transition.current()
        kept: list[list[Any]] = []
        with transition.looking():
            here.begin()
            if current in transition.pending and self._is_task(current):
                clean = not transition.footprint.affected(stack(sys._getframe(1)), self.root(current))
                if clean and transition.movable(current):
                    transition.switch(current, "stack check")
            self._check(transition, here, kept, originals.monotonic() + 3600, current)

    def _check(
        self, transition: Transition, here: _Loop, kept: list[list[Any]], deadline: float, running: object = None
    ) -> bool:
        """Move what can be moved until the deadline; whether there is more to look at."""
        suspended = transition.suspended
        while here.unclaimed:
            if originals.monotonic() > deadline:
                return True
            tasks = here.unclaimed.popleft()
            here.due.append(tasks)
            if suspended.unowned():
                for task in tasks:
                    suspended.claim_chain(task.get_coro(), task)
        while here.due:
            if originals.monotonic() > deadline:
                return True
            kept.append(here.due.popleft())
            for task in kept[-1]:
                if task.done():
                    transition.forget(task)
                    continue
                if task in transition.pending and task is not running:
                    transition.uncount(task)
                    between = not transition.boundary or between_works(stack_of_coroutine(task.get_coro()))
                    if between and transition.movable(task):
                        transition.switch(task, "idle")
                if task in transition.pending:
                    here.add(task)
        return False

    def start(self, transition: Transition) -> None:
        self._transition = transition
        for key, here in self._loops.items():
            if key not in self._factories:
                before = here.loop.get_task_factory()
                self._factories[key] = here.loop, before, self._factory(before)
                here.loop.set_task_factory(self._factories[key][2])

    def _factory(self, before: Any) -> Callable[..., Any]:
        make = before or (lambda loop, coroutine, **options: _asyncio().Task(coroutine, loop=loop, **options))

        def create(loop: Any, coroutine: Any, **options: Any) -> Any:
            transition, thread = self._transition, originals.get_ident()
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
            if not transition.knows(task) and not task.done():  # an eager one has begun to run
                starts_work = transition.boundary and is_work(getattr(task.get_coro(), "cr_code", None))
                transition.inherit(task, None if starts_work else creator)
            task.add_done_callback(self._ended)
            return task

        return create

    def _ended(self, task: Any) -> None:
        """There may be millions of them before a transition completes."""
        transition = self._transition
        if transition is not None:
            transition.forget(task)

    def stop(self, transition: Transition) -> None:
        """Callbacks still under way see that the transition is over."""
        self._loops = {}
        self._transition = None
        for loop, before, ours in self._factories.values():
            if loop.get_task_factory() is ours:
                loop.set_task_factory(before)
        self._factories = {}

    def statuses(self, view: View) -> list[TaskStatus]:
        found = []
        for task in self.tasks():
            coroutine, origin = task.get_coro(), _origin(task)
            frames = stack_of_coroutine(coroutine)
            asleep = bool(frames) and frames[-1].f_back is None
            sketch = blockers.Sketch(
                self.label, task.get_name(), hex(id(task)), frames, origin=origin, asleep=asleep, coroutine=coroutine
            )
            found.append(blockers.status(view, task, sketch))
        return found


def _origin(task: Any) -> str:
    """The function of its coroutine, and the thread that runs its loop, as far as loops say (uvloop's do not)."""
    coroutine, loop = task.get_coro(), task.get_loop()
    made = blockers.defined(getattr(coroutine, "cr_code", None) or getattr(coroutine, "gi_code", None) or coroutine)
    if not loop.is_running():
        return f"{made}, loop is not running"
    thread = threading._active.get(getattr(loop, "_thread_id", None))  # type: ignore[attr-defined]
    return f"{made}, loop of {thread.name}" if thread is not None else made


KIND = Loops()
