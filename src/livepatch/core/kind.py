"""What the state machine needs to know of a kind of tasks.

`transition.py` moves tasks and knows none. All that it asks is a method of `Kind`: who runs here, who is there, who
made whom; and at every round, to look. The kinds that Python has are in `tasks/`, one file each; `tasks.kinds` is a
list, to which other libraries' may be added.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from .model import TaskStatus
from .stacks import Footprint, Stack, describe

if TYPE_CHECKING:
    from .transition import Transition

#: States of a task: no transition runs, it uses the version below the patch, or the patch's.
IDLE, UNPATCHED, PATCHED = -1, 0, 1


class Everything:
    """A container of all there is."""

    def __contains__(self, item: object) -> bool:
        return True


class View:
    """What the listing of tasks needs to know of a transition; without arguments, none runs."""

    def __init__(
        self,
        footprint: Footprint | None = None,
        state_of: Callable[[Hashable], int] = lambda task: IDLE,
        pending: Container[Hashable] = (),
        calls: Container[Hashable] = (),
        boundary: bool = False,
        since: Callable[[Hashable], float | None] = lambda task: None,
    ) -> None:
        self.footprint = footprint or Footprint()
        self.state_of = state_of
        self.pending = pending
        self.calls = calls
        self.boundary = boundary
        self.since = since

    def blocking(self, task: Hashable, affected: Sequence[FrameType]) -> list[str]:
        """What keeps a task from moving: these frames of it, outermost last, or that it is not at a boundary."""
        if task not in self.pending:
            return []
        if self.boundary and not affected:
            return ["(in the middle of its work: it moves at a boundary, such as the end of a request)"]
        return [describe(frame) for frame in affected]


class Kind:
    """One kind of task. Every method may be called from any thread; those marked so, under the switch lock.

    The first four are what a kind must have; what is said of the others does, where nothing is known.
    """

    label: str
    #: The module without which there is no task of this kind.
    library = "sys"

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        """A function that gives the running task of this kind, or what the fallback says if there is none."""
        raise NotImplementedError

    def tasks(self) -> Iterable[Hashable]:
        """All live tasks. Called without the switch lock, when all trampolines are there and nobody may move yet."""
        raise NotImplementedError

    def inspect(self, transition: Transition) -> None:
        """One round: move the tasks of this kind that can be moved, now or from a callback."""
        raise NotImplementedError

    def statuses(self, view: View) -> list[TaskStatus]:
        """All live tasks, for people."""
        raise NotImplementedError

    def name(self, task: Hashable) -> str | None:
        """What people call a task; None if it is of another kind. May run the application's code."""
        return None

    def creator(self, task: Hashable) -> Hashable | None:
        """The task whose state a newly noticed one takes, if that is known. Called under the switch lock."""
        return None

    def root(self, task: Hashable) -> FrameType | None:
        """The outermost frame of a running task, if it is of this kind and does not have the stack for itself."""
        return None

    def beneath(self, task: Hashable) -> Iterable[Stack]:
        """Stacks of the running task other than the one it runs on just now. Called under the switch lock."""
        return ()

    def notice(self, task: Hashable) -> None:
        """This task, perhaps of another kind, has a state from now on; again when it has to move again. Called under
        the switch lock, or while all tasks are being listed."""

    def finished(self) -> list[Hashable]:
        """Those of the noticed tasks that can never run again. Called under the switch lock."""
        return []

    def before_fork(self) -> None:
        """This thread is about to fork. Called under the switch lock, at every fork; must be cheap."""

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        """In a child that this thread has just forked: those that may go on. Called under the switch lock."""
        return []

    def left_behind(self) -> Iterable[tuple[Hashable, object]]:
        """In a child: tasks that are in memory and will never go on, each with its coroutine."""
        return ()

    def start(self, transition: Transition) -> None:
        """A transition starts to move tasks: hook the creation of tasks. Called under the switch lock, and again at
        every reversal."""

    def nudge(self, transition: Transition) -> None:
        """The fake signal: wake the pending tasks, where something can."""

    def stop(self, transition: Transition) -> None:
        """The transition is over: take the hooks away."""
