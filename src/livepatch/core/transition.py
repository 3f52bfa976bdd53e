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

One lock makes the check from outside safe. A task that has not moved reads its state in its trampoline, after the
trampoline's frame exists, and under the switch lock if anybody is looking; a checker holds the lock, and says that it
looks, from before it takes the snapshot of the stacks until it has written the states (`looking`). So while a checker
looks, affected frames can only disappear; and whoever found that nobody looks has a frame that the next checker sees.
A task that has moved takes no lock: it finds itself among those who are where all are going. The lock is re-entrant
(signal handlers and finalizers call patched functions too) and a leaf; `switch.py` tells what happens when foreign code
runs under it all the same. Everything below must be in order at every instant for somebody who comes in between.

There may be a million tasks, and one that serves others may be waiting for the lock. So nothing is done for every
task under one hold of it: they are listed before the first may move, in slices between which others run (`unhurried`),
a reversal exchanges the two sets that they are in, and what remains of these is let go of in slices as well.

What a stack does not show is counted: `suspended.py` follows generators and coroutines, which outlive calls, and
`calls` counts the ordinary calls a task has under way, should somebody switch stacks below Python.

A task born after `init` has no affected frame, so it needs no check: it is noticed at its first trampoline
and takes the state of its creator.

This file knows no symbol, no attribute, no import and no function: it is tested with fake tasks. The legal sequence:

    init -> start -> (reverse)* -> try_complete ... -> complete        force may come anywhere between
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from . import originals
from .kind import IDLE, PATCHED, UNPATCHED, Kind
from .pace import unhurried
from .stacks import Footprint, Stack, stack
from .suspended import Suspended, find
from .switch import promptly
from .switch import switch_lock as switch_lock

if TYPE_CHECKING:
    from .journal import Record

#: What a trampoline hands back when its call ends: where it was counted, and in which task.
Token = tuple[dict[Hashable, int], Hashable]

#: Fake signals are due when this many rounds were in vain, and again after as many.
SIGNALS_TIMEOUT = 15

#: Stands for all tasks in a look: that the transition is over.
_ALL = object()

#: Threads that are no tasks: livepatch's own.
exempt_threads: set[int] = set()


class World(set[Hashable]):
    """The tasks that are in one state, within one transition."""

    __slots__ = ("state",)

    def __init__(self, state: int) -> None:
        super().__init__()
        self.state = state

    def emptied(self) -> Iterator[Hashable]:
        """The tasks, each of which is forgotten when it has been given."""
        while self:
            yield self.pop()


#: In place of a world: this task has to ask.
NOBODY = World(IDLE)


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
        #: How many modules there were at the last `find_current`; with another number it is due.
        self.modules = 0
        self.find_current()
        self._footprint = footprint
        worlds = World(UNPATCHED), World(PATCHED)
        #: Where everybody is in the beginning, and where everybody is to go; a reversal exchanges them.
        self.initial = worlds[1 - target_state]
        self.goal = worlds[target_state]
        #: What tasks are moving to. The same as `initial` until all trampolines are installed.
        self.target = self.initial
        #: The tasks that need not ask in a trampoline: `target`, or nobody while a suspended frame of the version
        #: to be left may be resumed by a task that has moved.
        self.fast = self.target
        #: The tasks that need not ask either, since they have not moved and nobody is about to move them: `initial`, or
        #: nobody while somebody looks, or while a suspended frame of the version to move to may be resumed by one.
        self.stay = NOBODY
        self.ahead = False  # there is such a frame
        #: Ordinary calls under way in the version to be left, by task; another dict for every direction.
        self.calls: dict[Hashable, int] = {}
        #: Since when all that have not moved are pending, but for those that came later.
        self.begun = 0.0
        self._later: dict[Hashable, float] = {}
        #: Where tasks returned to from an outermost call when they could not move, by the ids of code: from there they
        #: do not look again before the next round. Walking the stack every time is dear.
        self._held: dict[Hashable, set[int]] = {}
        #: The present look of a checker: who was first, by task: a world if the checker was, else False.
        self._look: dict[Hashable, World | bool] = {}
        #: An intruder has begun a generator or coroutine, perhaps while somebody was counting them.
        self._wild = False
        self.suspended = Suspended()
        self.footprint = Footprint()
        self.ready = False  # all trampolines are installed
        self.listed = False  # all tasks are known
        self.over = False  # every task has moved
        self.gone = False  # and no function carries a trampoline any more
        self.total = 0
        self.labels: set[str] = set()  # of the kinds that had tasks when it started
        self.rounds = 0
        self.started = originals.monotonic()
        #: How many tasks moved in which way, for reports and tests.
        self.moved = {"stack check": 0, "exit": 0, "idle": 0, "force": 0}
        self.reversals = 0
        self.record: Record | None = None  # of every move, if somebody wants it

    @property
    def pending(self) -> World:
        """The tasks that still have to move: TIF_PATCH_PENDING."""
        return self.initial

    def find_current(self) -> None:
        """Make `look`, which gives the task that runs in this thread: the first kind that knows one decides.

        Kinds whose library nobody has imported are not asked. One that is imported later makes `sys.modules` longer;
        should it have become shorter by as much in the same moment, the next round notices.
        """
        count = len(sys.modules)
        look: Callable[[], Hashable] = originals.get_ident
        for kind in reversed(self.kinds):
            if kind.library in sys.modules:
                look = kind.current_or(look)
        self.look = look
        self.modules = count  # last: others ask without a lock

    def current(self) -> Hashable:
        """The task that runs in this thread."""
        if len(sys.modules) != self.modules:
            self.find_current()
        return self.look()

    # -- what trampolines ask ------------------------------------------------------------------------

    @promptly
    def choose(self, counted: bool, frame: FrameType | None) -> tuple[int | None, Token | None]:
        """The state whose version a trampoline must call, and a token for `leave` if the task has not moved.

        No state when the transition is gone: then the function itself is to be called, which carries its code
        directly by now, or the trampoline of another transition.

        For the slow path only; `frame` is the caller of the trampoline, whose own frame exists already. An
        ordinary call is `counted`, a generator or coroutine is tracked.
        """
        if self.over:
            return None if self.gone else self.goal.state, None
        task = self.current()
        if task in exempt_threads:
            return self.initial.state, None
        goal = self._state_of(task)
        moved = goal is self.target and self.target is self.goal
        if (self.fast is not self.target) if moved else self.ahead:
            # A generator may be resumed by a task of the other world: it stays in its own, with all that it calls.
            world = self.footprint.world(frame, self._root(task))
            if world is not None and world != goal.state:
                return world, None
        if moved:
            return goal.state, None
        if counted:
            self.calls[task] = self.calls.get(task, 0) + 1
        return goal.state, (self.calls, task)

    def _intrude(self, method: Callable[..., Any], *args: Any) -> Any:
        """The running task waits no longer for the lock. Whoever holds it must not rely on what it has seen of it."""
        task = self.current()
        world = self._look.setdefault(task, False)
        if isinstance(world, World):  # it has just been moved, although that may not have been written down yet
            self._put(task, world)
        result = method(self, *args)
        # Now it is among those that are waited for. If that was too late, it is where all others are.
        if self._look.setdefault(_ALL, False):
            self.over = True
            result = method(self, *args)
        return result

    def _state_of(self, task: Hashable) -> World:
        world = self._known(task)
        if world is None:
            world = self.initial
            if self.target is self.goal:
                for kind in self.kinds:
                    creator = kind.creator(task)
                    if creator is not None:
                        world = self._known(creator) or world
                        break
            self._put(task, world)
        return world

    def knows(self, task: Hashable) -> bool:
        """This task has a state."""
        return self._known(task) is not None

    def _known(self, task: Hashable) -> World | None:
        return self.goal if task in self.goal else self.initial if task in self.initial else None

    def _put(self, task: Hashable, world: World) -> None:
        (self.initial if world is self.goal else self.goal).discard(task)
        world.add(task)
        if world is not self.target:
            self._later[task] = originals.monotonic()
        self._notice(task)

    def _notice(self, task: Hashable) -> None:
        for kind in self.kinds:
            kind.notice(task)

    @promptly
    def track(self, frame_owner: object) -> None:
        """A trampoline made a generator or coroutine of a version and is about to run it."""
        task = self.current()
        if self.over or task in exempt_threads:
            return
        if not switch_lock._is_owned():
            self._wild = True
        entry = self.suspended.add(frame_owner, task)
        if self.suspended.strays(entry):
            self.fast = World(self.target.state)
        self.ahead = self.ahead or self.suspended.runs_ahead(entry)
        if self.ahead:
            self.stay = NOBODY

    def leave(self, token: Token, counted: bool, switch: bool, frame: FrameType | None) -> None:
        """Exit switching: the trampoline called by `frame` returns in a task that had not moved when it entered.

        Without `switch`, the call is over but something that it stands for is not yet.
        """
        if (not counted or self.returned(token)) and switch:
            self.exit(token, frame)

    def returned(self, token: Token) -> bool:
        """The first half of `leave`, of an ordinary call and without a lock: whether to have a look at the stack."""
        calls, task = token
        left = calls.get(task, 1) - 1
        if left > 0:
            calls[task] = left
            return False
        calls.pop(task, None)
        held = self._held.get(task)
        if held is None:
            return True
        try:
            return id(sys._getframe(2).f_code) not in held
        except ValueError:  # nobody called the trampoline
            return True

    @promptly
    def exit(self, token: Token, frame: FrameType | None) -> None:
        """The second half: look, and move."""
        calls, task = token
        # A generator may end in another task, whose stack says nothing about this one.
        if not self.over and calls is self.calls and task == self.current():
            if not self.boundary:
                self._exit(task, frame)
            if frame is not None:
                self._held.setdefault(task, set()).add(id(frame.f_code))

    @promptly
    def update(self, frame: FrameType | None) -> None:
        """The running task, whose innermost frame of its own is `frame`, asks to be moved."""
        if not self.over:
            self._exit(self.current(), frame)

    @promptly
    def leave_work(self, between: Callable[[Stack], bool], frame: FrameType | None) -> None:
        """The running task has returned from a piece of work to `frame`, and may be between two of them."""
        if not self.over and between(stack(frame)):
            self._exit(self.current(), frame)

    def follow(self, leader: Hashable | None, between: Callable[[Stack], bool], frame: FrameType | None) -> None:
        """The running task is between two pieces of work, and begins one that is a part of what another task is doing.

        It takes the state of that one, even if it had moved: no affected frame is on its stack, so either is right.
        Without a leader, that is the state in which all have been at first.
        """
        with self.looking():
            if self.over or self.target is not self.goal:
                return
            own = stack(frame)
            task, world = self.current(), self.initial if leader is None else self._state_of(leader)
            if between(own) and not self.footprint.affected(own):
                self._put(task, world)

    def _exit(self, task: Hashable, frame: FrameType | None) -> None:
        movable = task in self.pending and self.movable(task)
        if movable and not self.footprint.affected(stack(frame), self._root(task)):
            for kind in self.kinds:
                if any(map(self.footprint.affected, kind.beneath(task))):
                    return
            self.switch(task, "exit")

    def _root(self, task: Hashable) -> FrameType | None:
        return next((root for kind in self.kinds if (root := kind.root(task)) is not None), None)

    @promptly
    def inherit(self, task: Hashable, creator: Hashable | None) -> None:
        """A task is being created, and cannot have reached a trampoline yet. Without a creator it is a piece of work of
        its own, which begins at a boundary."""
        if not self.over and self.target is self.goal:
            world = self.target if creator is None else self._state_of(creator)
            if self._look.get(task) is not False:  # else it has come into a trampoline already
                self._put(task, world)

    def state_of(self, task: Hashable) -> int:
        """The state of a task, for people."""
        return (self._known(task) or self.initial).state

    def since(self, task: Hashable) -> float:
        """Since when a pending task has been: every round since then has found something in its way."""
        return self._later.get(task, self.begun)

    # -- what the kinds of tasks use, under the switch lock ------------------------------------------

    def movable(self, task: Hashable) -> bool:
        """Nothing but the frames of its stack could keep this task from moving."""
        return self.target is self.goal and task not in self.calls and not self.suspended.blocks(task)

    def look_at_self(self, task: Hashable, own: Stack, between: Callable[[Stack], bool]) -> None:
        """Idle switching of the thread that runs an event loop, from a callback in which nothing else runs there."""
        movable = task in self.pending and self.movable(task) and not self.footprint.affected(own)
        if movable and (not self.boundary or between(own)):
            self.switch(task, "idle")

    def uncount(self, task: Hashable) -> None:
        """No trampoline is on this task's stack. Whatever is counted was torn away by an exception.

        Signal handlers raise anywhere. But where stacks are switched below Python, the count is all there is to go by.
        """
        if "greenlet" not in sys.modules:
            self.calls.pop(task, None)

    @contextmanager
    def looking(self) -> Iterator[None]:
        """Hold the switch lock, and let nobody choose without it: for whoever looks at others and moves them."""
        inside = switch_lock._is_owned()
        with switch_lock:
            nested, self.stay = self.stay is NOBODY, NOBODY
            if not inside:
                self._look = {}
            try:
                yield
            finally:
                if not nested:
                    self._renew_stay()

    def switch(self, task: Hashable, way: str) -> None:
        """Move a task. The caller has made sure, within this same `looking` or as the task itself, that it may."""
        assert way == "exit" or self.stay is NOBODY, "whoever moves others has to be `looking`"
        if self._look.setdefault(task, self.target) is not self.target:
            return
        self.goal.add(task)
        self.initial.discard(task)
        self.moved[way] += 1
        if self.record is not None:
            self.record.moved(task, way)
        if not self.pending:
            self.wake()

    # -- the life of a transition, in order ----------------------------------------------------------

    def start(self) -> None:
        """All trampolines are installed: list the tasks, and let them move from now on.

        Nobody moves while they are listed. Who is born meanwhile has no affected frame, or came through a trampoline
        and is listed by that; who ends is found by the first look.
        """
        for kind in self.kinds:
            for task in unhurried(kind.tasks()):
                if task not in exempt_threads:
                    self.initial.add(task)
                    kind.notice(task)
                    self.labels.add(kind.label)
        if self.record is not None:
            self.record.learn(list(self.initial), self.kinds)
        for thing in unhurried(find(self.suspended.codes)):  # so that `_start` meets few that are new
            with switch_lock:
                self.suspended.add(thing, None)
        with switch_lock:
            self.listed = True
            self.total = len(self.initial)
            kept = self._start()
        del kept

    def _start(self) -> list[object]:
        # Until it is known what is suspended, everybody looks on the stack whose world a call is made in.
        self.fast, self.ahead, self.stay = World(self.target.state), True, NOBODY
        self._look = {}
        self._mark()
        kept = self.suspended.start(self.footprint)
        self._drop_left_behind()
        self.calls, self._held, self._later = {}, {}, {}
        self.begun = originals.monotonic()
        self.target = self.goal
        self.rounds = 0
        self._renew_fast()
        for kind in self.kinds:
            kind.start(self)
        return kept

    def _mark(self) -> None:
        footprint = self._footprint(self.goal.state)
        footprint.state = self.goal.state
        self.footprint = footprint

    def cancel(self) -> None:
        """Nobody was told to move: everybody is where it was."""
        with switch_lock:
            self.stay = NOBODY
            self.initial, self.goal, self.over = self.goal, self.initial, True  # in one step

    def reverse(self) -> None:
        """Go back. Whoever has not moved is in the new target state already, wherever it is."""
        with switch_lock:
            self.fast, self.ahead, self.stay = World(self.target.state), True, NOBODY
            self.initial, self.goal = self.goal, self.initial
            self.reversals += 1
            kept = self._start()
            moved = list(self.pending)
        del kept
        for task in unhurried(moved):
            with switch_lock:
                self._notice(task)

    def renew(self, codes: list[CodeType]) -> None:
        """More functions belong to the patch now; `codes` are those whose frames may be suspended."""
        with switch_lock:
            self._mark()
            self.suspended.codes = codes
            kept = self.suspended.start(self.footprint)
            self._drop_left_behind()
            self._renew_fast()
        del kept

    def keep_only(self, forker: Hashable) -> None:
        """In a forked child, under the switch lock: no task exists in this process but those that the kinds know to be
        left. If `forker`, the one that has forked, is none of them, then its thread goes on with what it was doing, and
        shows it on its stack.
        """
        known = {*self.initial, *self.goal, *self.calls, *self.suspended.owners(), forker}
        alive = {task for kind in self.kinds for task in kind.after_fork(known)}
        if forker not in alive and forker is not None:
            heir = originals.get_ident()
            self._put(heir, self._state_of(forker))
            self.suspended.pass_on(forker, heir)
        for task in known - alive:
            self.initial.discard(task)
            self.goal.discard(task)
            self._held.pop(task, None)
            self._later.pop(task, None)
            self.calls.pop(task, None)
            self.suspended.drop(task)
        self.suspended.drop_lost()
        self._drop_left_behind()

    def _drop_left_behind(self) -> None:
        """In a forked child: nobody will ever resume what hangs on the tasks of loops that ran in other threads."""
        self.suspended.drop_chains(left for kind in self.kinds for left in kind.left_behind())

    def force(self) -> None:
        """Move everybody who is left, wherever it is: the promise is broken from here on."""
        with switch_lock:
            self.moved["force"] += len(self.pending)
            for task in self.pending:
                if self.record is not None:
                    self.record.moved(task, "force")
            self.goal |= self.pending
            self.pending.clear()
            self.calls.clear()
            self.suspended.clear()
            self._renew_fast()
        self.wake()

    def try_complete(self) -> bool:
        """One round. True when every task has moved; whoever asks from now on gets the target's version."""
        self.find_current()
        kept: list[object] = []
        if not self.listed:
            self.start()  # an exception has cut it off
        elif self.target is not self.goal:
            with switch_lock:
                kept += self._start()  # or this
        self._held.clear()
        for kind in self.kinds:
            kind.inspect(self)
        with self.looking():
            for kind in self.kinds:
                for task in kind.finished():
                    kept.append(task)
                    self.forget(task)
            self._renew_fast()
            if not self.over and not self.pending and not self.suspended.any_live():
                self.over = bool(self._look.setdefault(_ALL, True))
            if self.over:
                return True
        if self.rounds and self.rounds % SIGNALS_TIMEOUT == 0:
            for kind in self.kinds:
                kind.nudge(self)
        self.rounds += 1
        return False

    @promptly
    def forget(self, task: Hashable) -> None:
        """A task has ended. The caller keeps a reference for as long as anybody holds the lock."""
        self.goal.discard(task)
        self.calls.pop(task, None)
        self._held.pop(task, None)
        self._later.pop(task, None)
        self.suspended.disown(task)
        if task in self.initial:
            self.initial.discard(task)
            if self.record is not None:
                self.record.moved(task, "ended")
            if not self.initial and not self.over:
                self.wake()

    def _renew_fast(self) -> None:
        moving = self.target is self.goal
        strays = World(self.target.state) if moving and self.suspended.any_strays() else self.target
        ahead = moving and self.suspended.any_ahead()
        # Each of these lines is one step, without a call: what an intruder says comes before it or after it.
        self.fast = strays if not self._wild else self.fast
        self.ahead = ahead or self._wild
        self._renew_stay()

    def _renew_stay(self) -> None:
        self.stay = self.initial if self.target is self.goal and not self.ahead and not self.over else NOBODY

    def stop(self) -> None:
        """Nothing calls a trampoline any more, or will: let go of the hooks and of all tasks."""
        for kind in self.kinds:
            kind.stop(self)
        self.gone = True
        self.calls, self._held = {}, {}
        # These know code objects, trampolines too, which know this transition: the collector cannot see such a cycle.
        self.suspended = Suspended()
        self.footprint = Footprint()
        self._later.clear()
        for world in (self.initial, self.goal):
            for _ in unhurried(world.emptied()):
                pass
            world.clear()  # gives back its room, too
