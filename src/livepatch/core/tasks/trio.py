"""trio tasks, anyio's on trio included.

They are checked like those of asyncio: by a callback in their own loop's thread (trio runs it in a task of its own),
where all others are suspended and what they may have of the version to be left is known (`suspended.py`).

A task born during the transition takes the state of whoever spawned it. trio is imported by nobody here.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable
from types import FrameType
from typing import Any

from .. import blockers, originals
from ..heap import referrers
from ..kind import Kind, View
from ..model import TaskStatus
from ..stacks import stack
from ..suspended import frame_of, stack_of_coroutine
from ..transition import Transition, switch_lock
from .boundaries import between_works, is_work

#: The longest that a check may hold up a loop, in seconds.
SLICE = 0.001


def _suspended(run: Any) -> list[Any]:
    return [task for task in list(run.tasks) if frame_of(task.coro) is not None]


def _trio() -> Any:
    """trio's core, once it is there and whole."""
    module = sys.modules.get("trio._core._run")
    return module if module is not None and "trio.lowlevel" in sys.modules and hasattr(module, "Runner") else None


class Runs(Kind):
    """The kind of trio's tasks; a run is what is an event loop elsewhere."""

    label = library = "trio"

    def __init__(self) -> None:
        self._transition: Transition | None = None
        self._noticed: set[Any] = set()
        self._ended: list[Any] = []  # runs that do not go on in this process
        self._left: Any = None  # the task that was running when its thread forked this process
        self._scheduled: set[int] = set()  # runs with a callback under way
        self._spawn: tuple[Any, Any] | None = None  # the class of runs, and how that makes a task

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        modules = sys.modules
        context: Any = None

        def look() -> Hashable:
            nonlocal context
            if context is None:
                trio = _trio() if "trio" in modules else None
                if trio is None:
                    return fallback()
                context = trio.GLOBAL_RUN_CONTEXT
            task: Hashable = getattr(context, "task", None)
            return fallback() if task is None or task is self._left else task

        return look

    def _is_task(self, task: object) -> bool:
        trio = _trio()
        return trio is not None and isinstance(task, trio.Task)

    def tasks(self) -> list[Any]:
        trio = _trio()
        if trio is None:
            return []
        runs = referrers(trio.Runner, of=trio.Runner)
        left = {id(run) for run in self._ended}
        return [task for run in runs if id(run) not in left for task in _suspended(run)]

    def left_behind(self) -> Iterable[tuple[Hashable, object]]:
        return [(task, task.coro) for run in self._ended for task in _suspended(run)]

    def name(self, task: Hashable) -> str | None:
        return str(task.name) if self._is_task(task) else None  # type: ignore[attr-defined]

    def notice(self, task: Hashable) -> None:
        if self._is_task(task):
            self._noticed.add(task)

    def root(self, task: Hashable) -> FrameType | None:
        return frame_of(task.coro) if self._is_task(task) else None  # type: ignore[attr-defined]

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        self._scheduled, self._noticed = set(), set()
        trio = _trio()
        if trio is not None:
            # trio goes on to say that this task runs; but its run will hardly go on, and check it.
            self._left = getattr(trio.GLOBAL_RUN_CONTEXT, "task", None)
            self._ended = referrers(trio.Runner, of=trio.Runner)
        return []

    def creator(self, task: Hashable) -> Hashable | None:
        nursery = task.parent_nursery if self._is_task(task) else None  # type: ignore[attr-defined]
        return nursery.parent_task if nursery is not None else None

    def inspect(self, transition: Transition) -> None:
        trio = _trio()
        if trio is None:
            return
        runs: dict[int, tuple[Any, list[Any]]] = {}
        with switch_lock:
            for task in list(self._noticed):
                if frame_of(task.coro) is None:
                    transition.forget(task)
                    self._noticed.discard(task)
                elif task in transition.pending or transition.boundary:  # also for the sake of the run's own thread
                    runs.setdefault(id(task._runner), (task._runner, []))[1].append(task)
        for run, tasks in runs.values():
            if id(run) not in self._scheduled:
                self._schedule(trio, transition, run, tasks)

    def _schedule(self, trio: Any, transition: Transition, run: Any, tasks: list[Any]) -> None:
        scheduled = self._scheduled

        def check() -> None:
            """Idle switching: runs in a task of its own while no other one of this run does."""
            deadline = originals.monotonic() + SLICE
            with transition.looking():
                if transition.over:
                    tasks.clear()
                thread = originals.get_ident()
                own = stack(sys._getframe(1))
                transition.look_at_self(thread, own, between_works)
                while tasks and originals.monotonic() < deadline:
                    task = tasks.pop()
                    frames = stack_of_coroutine(task.coro) if task is not transition.current() else own
                    if not frames:
                        transition.forget(task)
                    elif task in transition.pending:
                        if transition.suspended.unowned():
                            transition.suspended.claim_chain(task.coro, task)
                        transition.uncount(task)
                        if transition.movable(task) and (not transition.boundary or between_works(frames)):
                            transition.switch(task, "idle")
            if tasks:
                run.entry_queue.run_sync_soon(check)
            else:
                scheduled.discard(id(run))

        scheduled.add(id(run))
        try:
            run.entry_queue.run_sync_soon(check)
        except trio.RunFinishedError:
            scheduled.discard(id(run))

    # -- a new task takes the state of its spawner ---------------------------------------------------

    def start(self, transition: Transition) -> None:
        self._transition = transition
        self._scheduled = set()  # what was scheduled may never have run
        trio = _trio()
        if trio is None or self._spawn is not None:
            return
        spawn = trio.Runner.spawn_impl
        self._spawn = trio.Runner, spawn

        def spawn_impl(run: Any, *args: Any, **kwargs: Any) -> Any:
            task = spawn(run, *args, **kwargs)
            current = self._transition
            if current is not None:
                starts_work = current.boundary and is_work(getattr(task.coro, "cr_code", None))
                current.inherit(task, None if starts_work else current.current())
            return task

        trio.Runner.spawn_impl = spawn_impl

    def stop(self, transition: Transition) -> None:
        """Callbacks still under way see that the transition is over."""
        self._transition = None
        self._noticed = set()
        if self._spawn is not None:
            cls, spawn = self._spawn
            cls.spawn_impl = spawn
            self._spawn = None

    def statuses(self, view: View) -> list[TaskStatus]:
        found = []
        for task in self.tasks():
            frames = stack_of_coroutine(task.coro)
            asleep = bool(frames) and frames[-1].f_back is None
            origin = blockers.defined(getattr(task.coro, "cr_code", task.coro))
            sketch = blockers.Sketch(
                self.label, task.name, hex(id(task)), frames, origin=origin, asleep=asleep, coroutine=task.coro
            )
            found.append(blockers.status(view, task, sketch))
        return found


KIND = Runs()
