"""The consistency state machine: how a process moves from one version of a set of functions to another.

The promise. While a transition runs, every task runs either only the old or only the new versions of the patched
functions, and it moves from one to the other at an instant at which none of them is on its stack.

What does not work. Exchanging the functions one by one tears every call that is under way. Stopping all tasks is
not possible in Python. Looking at another thread's stack and then writing down that it may use the new version is
two steps, and the thread may enter an old function between them.

What is done. Every patched function is first replaced by a trampoline that asks `choose()` which version its task
is to use; the answer is the old one for everybody until all trampolines are in place (`init`). From `start` on,
tasks are moved one at a time, in three ways:

1. Stack check: a round looks at the stacks of threads from outside (`tasks/threads.py`).
2. Exit switching: a task that returns from its outermost trampoline looks at its own stack (`leave`).
3. Idle switching: a callback in each event loop runs when none of the loop's tasks does (`tasks/asyncio.py`).

One lock makes the check from outside safe. A task that has not moved takes the switch lock in its trampoline,
after the trampoline's frame exists, and reads its state under it; a checker holds the lock from before it takes
the snapshot of the stacks until it has written the states. So while a checker looks, affected frames can only
disappear. A task that has moved takes no lock: it finds the present target as its state, and a target is an object
of its own for every transition and direction. The lock is re-entrant (signal handlers and finalizers call patched
functions too), a leaf, and never held while foreign code runs.

What a stack does not show is counted: `suspended.py` follows generators and coroutines, which outlive calls, and
`calls` counts the ordinary calls a task has under way, should somebody switch stacks below Python.

A task born after `init` has no affected frame, so it needs no check: it is noticed at its first trampoline
and takes the state of its creator.

This file knows no symbol, no attribute, no import and no function: it is tested with fake tasks. The legal sequence:

    init -> start -> (reverse)* -> try_complete ... -> complete        force may come anywhere between
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Container, Hashable, Iterable, Sequence
from types import CodeType, FrameType
from typing import Protocol

from .model import TaskStatus
from .stacks import Footprint, describe, walk
from .suspended import Suspended

#: What a trampoline hands back when its call ends: in which direction it began, and in which task.
Token = tuple[int, Hashable]

IDLE, UNPATCHED, PATCHED = -1, 0, 1

#: Fake signals are due when this many rounds were in vain, and again after as many.
SIGNALS_TIMEOUT = 15

#: The switch lock, see above. Lock order: the registry's mutex, then this one.
switch_lock = threading.RLock()

#: Threads that are no tasks: livepatch's own.
exempt_threads: set[int] = set()


class Goal:
    """The state of a task within one transition; compared by identity only."""

    __slots__ = ("state",)

    def __init__(self, state: int) -> None:
        self.state = state


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
    ) -> None:
        self.footprint = footprint or Footprint()
        self.state_of = state_of
        self.pending = pending
        self.calls = calls
        self.boundary = boundary

    def blocking(self, task: Hashable, affected: Sequence[FrameType]) -> list[str]:
        """What keeps a task from moving: these frames of it, outermost last, or that it is not at a boundary."""
        if task not in self.pending:
            return []
        if self.boundary and not affected:
            return ["(in the middle of its work: it moves at a boundary, such as the end of a request)"]
        return [describe(frame) for frame in affected]


class Kind(Protocol):
    """One kind of task. Every method may be called from any thread; those marked so, under the switch lock."""

    label: str

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        """A function that gives the running task of this kind, or what the fallback says if there is none."""

    def tasks(self) -> Iterable[Hashable]:
        """All live tasks. Called under the switch lock."""

    def creator(self, task: Hashable) -> Hashable | None:
        """The task whose state a newly noticed one takes, if that is known. Called under the switch lock."""

    def root(self, task: Hashable) -> FrameType | None:
        """The outermost frame of a running task, if it is of this kind and does not have the stack for itself."""

    def finished(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        """Those of the tasks that can never run again. Called under the switch lock."""

    def start(self, transition: Transition) -> None:
        """A transition starts to move tasks: hook the creation of tasks, where that is needed."""

    def inspect(self, transition: Transition) -> None:
        """One round: move the tasks of this kind that can be moved, now or from a callback."""

    def nudge(self, transition: Transition) -> None:
        """The fake signal: wake the pending tasks, where something can."""

    def stop(self, transition: Transition) -> None:
        """The transition is over: take the hooks away."""

    def statuses(self, view: View) -> list[TaskStatus]:
        """All live tasks, for people."""


class Transition:
    """One run from UNPATCHED to PATCHED or back, for one patch."""

    def __init__(
        self,
        target_state: int,
        kinds: list[Kind],
        footprint: Callable[[int], Footprint],
        wake: Callable[[], None],
        *,
        boundary: bool = False,
    ) -> None:
        """`footprint(state)` gives what tasks must leave to reach a state; `wake` asks for a round soon.

        With `boundary`, tasks move only between two pieces of work, never in the middle of one.
        """
        self.kinds = kinds
        self.wake = wake
        self.boundary = boundary
        #: The task that runs in this thread: the first kind that knows one decides.
        self.current: Callable[[], Hashable] = threading.get_ident
        for kind in reversed(kinds):
            self.current = kind.current_or(self.current)
        self._footprint = footprint
        self._goals = (Goal(UNPATCHED), Goal(PATCHED))
        self.initial = self._goals[1 - target_state]
        self.goal = self._goals[target_state]
        #: What tasks are moving to. The same as `initial` until all trampolines are installed.
        self.target = self.initial
        #: The state at which a trampoline need not ask: `target`, or nobody's while a suspended frame of the
        #: version to be left may be resumed by a task that has moved.
        self.fast = self.target
        #: A suspended frame of the version to move to may be resumed by a task that has not moved.
        self.ahead = False
        self.states: dict[Hashable, Goal] = {}
        #: The tasks that still have to move: TIF_PATCH_PENDING.
        self.pending: set[Hashable] = set()
        #: Ordinary calls under way in the version to be left, by task.
        self.calls: dict[Hashable, int] = {}
        self.suspended = Suspended()
        self.footprint = Footprint()
        self.over = False  # every task has moved
        self.gone = False  # and no function carries a trampoline any more
        self.total = 0
        self.rounds = 0
        self._epoch = 0
        self.started = time.monotonic()
        #: How many tasks moved in which way, for reports and tests.
        self.moved = {"stack check": 0, "exit": 0, "idle": 0, "force": 0}

    # -- what trampolines ask ------------------------------------------------------------------------

    def choose(self, counted: bool, frame: FrameType | None) -> tuple[int | None, Token | None]:
        """The state whose version a trampoline must call, and a token for `leave` if the task has not moved.

        No state when the transition is gone: then the function itself is to be called, which carries its code
        directly by now, or the trampoline of another transition.

        For the slow path only; `frame` is the caller of the trampoline, whose own frame exists already. An
        ordinary call is `counted`, a generator or coroutine is tracked.
        """
        with switch_lock:
            if self.over:
                return None if self.gone else self.goal.state, None
            task = self.current()
            if task in exempt_threads:
                return self.initial.state, None
            goal = self._state_of(task)
            moved = goal is self.target and self.target is self.goal
            if (self.fast is not self.target) if moved else self.ahead:
                # A generator may be resumed by a task of the other world: it stays in its own, with all that it calls.
                inside = self.footprint.innermost(frame, self._root(task))
                if inside is (self.footprint.forbidden if moved else self.footprint.expected):
                    return 1 - goal.state, None
            if moved:
                return goal.state, None
            if counted:
                self.calls[task] = self.calls.get(task, 0) + 1
            return goal.state, (self._epoch, task)

    def _state_of(self, task: Hashable) -> Goal:
        goal = self.states.get(task)
        if goal is None:
            goal = self.initial
            if self.target is self.goal:
                for kind in self.kinds:
                    creator = kind.creator(task)
                    if creator is not None:
                        goal = self.states.get(creator, goal)
                        break
            self.states[task] = goal
            if goal is not self.target:
                self.pending.add(task)
        return goal

    def track(self, frame_owner: object) -> None:
        """A trampoline made a generator or coroutine of a version and is about to run it."""
        with switch_lock:
            task = self.current()
            if self.over or task in exempt_threads:
                return
            entry = self.suspended.add(frame_owner, task)
            if self.suspended.strays(entry):
                self.fast = Goal(self.target.state)
            self.ahead = self.ahead or self.suspended.runs_ahead(entry)

    def leave(self, token: Token, counted: bool, switch: bool, frame: FrameType | None) -> None:
        """Exit switching: the trampoline called by `frame` returns in a task that had not moved when it entered.

        Without `switch`, the call is over but something that it stands for is not yet.
        """
        epoch, task = token
        with switch_lock:
            if self.over or epoch != self._epoch:
                return
            if counted:
                left = self.calls.pop(task, 1) - 1
                if left:
                    self.calls[task] = left
                    return
            if (
                switch and not self.boundary and task == self.current()
            ):  # a generator may end in another task, whose stack says nothing about this one
                self._exit(task, frame)

    def update(self, frame: FrameType | None) -> None:
        """The running task, whose innermost frame of its own is `frame`, asks to be moved."""
        with switch_lock:
            if not self.over:
                self._exit(self.current(), frame)

    def _exit(self, task: Hashable, frame: FrameType | None) -> None:
        movable = task in self.pending and self.movable(task)
        if movable and not self.footprint.affected(walk(frame), self._root(task)):
            self.switch(task, "exit")

    def _root(self, task: Hashable) -> FrameType | None:
        return next((root for kind in self.kinds if (root := kind.root(task)) is not None), None)

    def inherit(self, task: Hashable, creator: Hashable) -> None:
        """A task is being created, and cannot have reached a trampoline yet."""
        with switch_lock:
            if not self.over and self.target is self.goal:
                goal = self.states[task] = self._state_of(creator)
                (self.pending.discard if goal is self.target else self.pending.add)(task)

    def state_of(self, task: Hashable) -> int:
        """The state of a task, for people."""
        return self.states.get(task, self.initial).state

    # -- what the kinds of tasks use, under the switch lock ------------------------------------------

    def movable(self, task: Hashable) -> bool:
        """Nothing but the frames of its stack could keep this task from moving."""
        return self.target is self.goal and task not in self.calls and not self.suspended.blocks(task)

    def uncount(self, task: Hashable) -> None:
        """No trampoline is on this task's stack. Whatever is counted was torn away by an exception.

        Signal handlers raise anywhere. But where stacks are switched below Python, the count is all there is to go by.
        """
        if task in self.calls and "greenlet" not in sys.modules:
            del self.calls[task]

    def switch(self, task: Hashable, way: str) -> None:
        """Move a task. The caller has made sure, under this same hold of the lock, that it may."""
        self.pending.discard(task)
        self.states[task] = self.target
        self.moved[way] += 1
        if not self.pending:
            self.wake()

    # -- the life of a transition, in order ----------------------------------------------------------

    def start(self) -> None:
        """All trampolines are installed: list the tasks, and let them move from now on."""
        with switch_lock:
            for kind in self.kinds:
                for task in kind.tasks():
                    if task not in exempt_threads:
                        self.states[task] = self.initial
            self.total = len(self.states)
            kept = self._start()
        del kept

    def _start(self) -> list[object]:
        self.footprint = self._footprint(self.goal.state)
        kept = self.suspended.start(self.footprint)
        self._epoch += 1
        self.calls.clear()
        self.target = self.goal
        self.pending = {task for task, goal in self.states.copy().items() if goal is not self.target}
        self.rounds = 0
        self._renew_fast()
        for kind in self.kinds:
            kind.start(self)
        return kept

    def cancel(self) -> None:
        """Nobody was told to move: everybody is where it was."""
        with switch_lock:
            self.initial, self.goal = self.goal, self.initial
            self.over = True
            kept = dict(self.states)
            self.states.clear()
        del kept

    def reverse(self) -> None:
        """Go back. Whoever has not moved is in the new target state already, wherever it is."""
        with switch_lock:
            self.initial, self.goal = self.goal, self.initial
            kept = self._start()
        del kept

    def renew(self, codes: list[CodeType]) -> None:
        """More functions belong to the patch now; `codes` are those whose frames may be suspended."""
        with switch_lock:
            self.footprint = self._footprint(self.goal.state)
            self.suspended.codes = codes
            kept = self.suspended.start(self.footprint)
            self._renew_fast()
        del kept

    def keep_only_current(self) -> None:
        """After a fork, under the switch lock: no other task exists in this process, and none ever ends."""
        alive = {self.current(), threading.get_ident()}
        for task in set(self.states) - alive:
            self.states.pop(task)
            self.pending.discard(task)
            self.calls.pop(task, None)
            self.suspended.drop(task)

    def force(self) -> None:
        """Move everybody who is left, wherever it is: the promise is broken from here on."""
        with switch_lock:
            for task in list(self.pending):
                self.switch(task, "force")
            self.calls.clear()
            self.suspended.clear()
            self._renew_fast()
        self.wake()

    def try_complete(self) -> bool:
        """One round. True when every task has moved; whoever asks from now on gets the target's version."""
        for kind in self.kinds:
            kind.inspect(self)
        kept: list[object] = []
        with switch_lock:
            for kind in self.kinds:
                for task in kind.finished(self.pending.copy()):
                    kept.append(task)
                    self.forget(task)
            self._renew_fast()
            if not self.pending and not self.suspended.live():
                self.over = True
                kept.append(dict(self.states))
                self.states.clear()
                return True
        if self.rounds and self.rounds % SIGNALS_TIMEOUT == 0:
            for kind in self.kinds:
                kind.nudge(self)
        self.rounds += 1
        return False

    def forget(self, task: Hashable) -> None:
        """A task has ended. The caller holds the lock, and a reference for as long as it does."""
        self.states.pop(task, None)
        self.pending.discard(task)
        self.calls.pop(task, None)
        self.suspended.disown(task)

    def _renew_fast(self) -> None:
        strays = self.target is self.goal and self.suspended.any_strays()
        self.fast = Goal(self.target.state) if strays else self.target
        self.ahead = self.target is self.goal and self.suspended.any_ahead()

    def stop(self) -> None:
        """Nothing calls a trampoline any more, or will: let go of the hooks and of all tasks."""
        for kind in self.kinds:
            kind.stop(self)
        self.gone = True
        # These know code objects, trampolines too, which know this transition: the collector cannot see such a cycle.
        self.suspended = Suspended()
        self.footprint = Footprint()
        self.pending.clear()
