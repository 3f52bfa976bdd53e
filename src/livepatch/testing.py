"""Helpers for tests of livepatch and of patches: rounds that are made by hand, and tasks that do not exist.

A transition goes on by itself, in rounds. A test that wants to look at it in the middle takes the rounds over:

    with manual_rounds():
        lp.enable_patch(patch)          # the first round is part of it
        ...                             # whoever blocked it goes on blocking it
        finish()                        # or tick(), once

The state machine itself (`livepatch.core.transition`) knows tasks by the `Kind` protocol only. `FakeKind` is one whose
tasks are `FakeTask`s with a stack that the test writes, as names of functions, outermost first.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import cast

from .core import registry
from .core.model import TaskStatus
from .core.registry import tick
from .core.stacks import Footprint, walk
from .core.transition import PATCHED, UNPATCHED, Transition, View, switch_lock

__all__ = ["FakeKind", "FakeSuspended", "FakeTask", "fake_code", "fake_footprint", "finish", "manual_rounds", "tick"]


class _Nobody:
    """A driver that makes no rounds."""

    def wake(self) -> None:
        pass


@contextmanager
def manual_rounds() -> Iterator[None]:
    """No rounds inside of this but the first of every transition, `tick()` and `finish()`.

    `livepatch.wait` and `timeout=` wait in vain meanwhile. A transition that still runs at the end is handed back to
    whoever makes the rounds otherwise.
    """
    before, next_round = registry.set_driver(_Nobody()), registry.next_round
    # The agent's thread may still be asleep until a round of an earlier transition: it must find none due.
    setattr(registry, "next_round", lambda: None)  # noqa: B010 - a function is no variable to a type checker
    try:
        yield
    finally:
        setattr(registry, "next_round", next_round)  # noqa: B010
        registry.set_driver(before)
        if before is not None and registry.running_transition() is not None:
            before.wake()


def finish(seconds: float = 60.0) -> None:
    """Make rounds until no transition runs. AssertionError, naming the tasks in its way, after `seconds` in vain."""
    deadline = time.monotonic() + seconds
    while registry.running_transition() is not None:
        if time.monotonic() > deadline:
            blocking = [f"{task.kind} {task.name}: {task.blocking}" for task in registry.tasks() if task.blocking]
            raise AssertionError(f"the transition does not complete: {'; '.join(blocking) or 'nobody is in its way'}")
        tick()
        time.sleep(0.001)


# -- tasks that do not exist ---------------------------------------------------------------------------------


@functools.cache
def fake_code(name: str) -> CodeType:
    """A code object for a function that does not exist; the same one for the same name."""
    return compile("", "<fake>", "exec").replace(co_name=name, co_qualname=name)


class _Frame:
    """As much of a frame as a stack check looks at."""

    f_lineno = 1

    def __init__(self, name: str, back: _Frame | None) -> None:
        self.f_code = fake_code(name)
        self.f_back = back


class FakeTask:
    """A task whose stack is `stack`: names of functions, outermost first. Change it at will.

    `creator` is the task whose state it takes when it is first noticed during a transition. One that is not
    `visible` can only move by itself, not by a check from outside. When it is `done`, it never runs again.
    """

    def __init__(self, name: str, *stack: str, creator: FakeTask | None = None, visible: bool = True) -> None:
        self.name = name
        self.stack = list(stack)
        self.creator = creator
        self.visible = visible
        self.done = False

    def frame(self) -> FrameType | None:
        """The innermost frame."""
        frame: _Frame | None = None
        for name in self.stack:
            frame = _Frame(name, frame)
        return cast("FrameType | None", frame)

    def __repr__(self) -> str:
        return f"<FakeTask {self.name}>"


class FakeSuspended:
    """A generator of the function `name` that is suspended, until `frame` is taken away from it."""

    def __init__(self, name: str) -> None:
        self.gi_frame: object | None = _Frame(name, None)


class FakeKind:
    """A kind of such tasks; `running` is the one whose turn it is."""

    label = "fake"

    def __init__(self, *tasks: FakeTask) -> None:
        self.all = list(tasks)
        self.running: FakeTask | None = None
        #: How often a transition started (reversals count), nudged and stopped this kind.
        self.started = self.nudged = self.stopped = 0

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        return lambda: self.running or fallback()

    def tasks(self) -> list[FakeTask]:
        return [task for task in self.all if not task.done]

    def creator(self, task: Hashable) -> FakeTask | None:
        return task.creator if isinstance(task, FakeTask) else None

    def root(self, task: Hashable) -> None:
        return None

    def finished(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        return [task for task in tasks if isinstance(task, FakeTask) and task.done]

    def start(self, transition: Transition) -> None:
        self.started += 1

    def inspect(self, transition: Transition) -> None:
        with switch_lock:
            for task in self.tasks():
                movable = task.visible and task in transition.pending and transition.movable(task)
                if movable and not transition.footprint.affected(walk(task.frame())):
                    transition.switch(task, "stack check")

    def nudge(self, transition: Transition) -> None:
        self.nudged += 1

    def stop(self, transition: Transition) -> None:
        self.stopped += 1

    def statuses(self, view: View) -> list[TaskStatus]:
        found = []
        for task in self.tasks():
            forbidden = [name for name in task.stack if id(fake_code(name)) in view.footprint.forbidden]
            blocking = forbidden if task in view.pending else []
            found.append(
                TaskStatus(self.label, task.name, hex(id(task)), view.state_of(task), blocking[::-1], task.stack[::-1])
            )
        return found


def fake_footprint(
    old: Iterable[str], new: Iterable[str], trampolines: Mapping[str, Iterable[str]] | None = None
) -> Callable[[int], Footprint]:
    """For a `Transition`: what must be left for a state, `new` for UNPATCHED and `old` for PATCHED.

    `trampolines` says for the name of each trampoline which versions it calls.
    """
    names = list(new), list(old)

    def footprint(state: int) -> Footprint:
        made = Footprint()
        for name in names[state - UNPATCHED]:
            made.forbid(fake_code(name))
        for name in names[PATCHED - state]:
            made.expect(fake_code(name))
        for name, versions in (trampolines or {}).items():
            made.add_trampoline(fake_code(name), [fake_code(version) for version in versions])
        return made

    return footprint
