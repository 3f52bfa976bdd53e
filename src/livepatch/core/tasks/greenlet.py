"""Greenlets: plain ones, gevent's and eventlet's.

A greenlet is a task of its own, with a stack that is in nobody's frames while it is suspended (`gr_frame`), and in its
thread's while it runs. The thread itself, as a task, is its main greenlet. An asyncio or trio task that has some of
its code run by greenlets, as SQLAlchemy does, is one task with several stacks: whoever asks from within gets that
task, since those kinds are asked first; its suspended greenlets are found in its await chain (`suspended.py`).

From another thread one cannot see which greenlet a thread runs just now. What can be had in one step is whether a
greenlet is suspended together with the stack that a thread shows: if it is not, that stack, or another thread's, is
its own.

The library tells of no new greenlet. One that nobody has met has no affected frame of this transition, but may push
its thread's own stack out of sight. So when a thread shows a stack with another outermost frame than before, nothing is
said of it until the heap has been asked for all greenlets again.

Whose state a new greenlet takes: gevent notes the spawner, for eventlet we do, elsewhere it is the parent.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import FrameType
from typing import Any

from .. import blockers, originals
from ..heap import instances
from ..kind import Kind, View
from ..model import TaskStatus
from ..stacks import Look, Stack, stack, stack_of, thread_stack, thread_stacks
from ..suspended import greenlets_in
from ..transition import Transition, exempt_threads, switch_lock
from . import asyncio, boundaries, trio


def _library() -> Any:
    """The module, once it is there and whole."""
    module = sys.modules.get("greenlet")
    return module if hasattr(module, "getcurrent") else None


def _main_of(greenlet: Any) -> Any:
    while greenlet.parent is not None:
        greenlet = greenlet.parent
    return greenlet


def _suspended(greenlet: Any) -> Look:
    return partial(getattr, greenlet, "gr_frame")


class Greenlets(Kind):
    """The kind of greenlets that are not part of another task."""

    label = library = "greenlet"

    def __init__(self) -> None:
        self._noticed: set[Any] = set()
        self._forget()
        self._eventlet: tuple[Any, Any] | None = None  # its class of greenlets, and how that makes one

    def _forget(self) -> None:
        self._transition: Transition | None = None
        self._mains: dict[int, Any] = {}  # main greenlets, by thread
        self._homeless: list[Any] = []  # those whose thread is not known
        self._roots: dict[int, FrameType] = {}  # outermost frames of threads, known to be those of their main greenlets
        self._surveys = 0
        self._survey_is_due = False
        self._strange: dict[int, tuple[FrameType, int]] = {}  # outermost frames to be explained by a survey after this

    # -- which there are ---------------------------------------------------------------------------

    def current_or(self, fallback: Callable[[], Hashable]) -> Callable[[], Hashable]:
        modules = sys.modules
        current: Any = None

        def look() -> Hashable:
            nonlocal current
            if current is None:
                library = _library() if "greenlet" in modules else None
                if library is None:
                    return fallback()
                current = library.getcurrent
            greenlet: Any = current()
            return fallback() if greenlet.parent is None else greenlet

        return look

    def _survey(self) -> list[Any]:
        """All that have begun and not ended, the main ones apart; find out whose the main ones are."""
        library = _library()
        if library is None:
            return []
        me = originals.get_ident()
        if me not in exempt_threads:
            self._mains[me] = _main_of(library.getcurrent())
        # Those of a thread that has ended are dead, although they may look as if they ran.
        found = [greenlet for greenlet in instances(library.greenlet) if greenlet and not greenlet.dead]
        self._surveys += 1
        mains = {id(main): main for main in map(_main_of, found)}
        for greenlet in found:
            thread = getattr(greenlet, "thread_ident", None)  # gevent's hubs know
            if isinstance(thread, int):
                self._mains[thread] = _main_of(greenlet)
        known = {id(main) for main in self._mains.values()}
        self._homeless = [main for key, main in mains.items() if key not in known]
        return [greenlet for greenlet in found if greenlet.parent is not None]

    def _owners(self) -> dict[int, Any]:
        """The asyncio or trio task that a greenlet is seen to be part of, by the greenlet's id."""
        tasks = [(task, task.get_coro()) for task in asyncio.KIND.tasks()]
        tasks += [(task, task.coro) for task in trio.KIND.tasks()]
        return {id(greenlet): task for task, coroutine in tasks for greenlet in greenlets_in(coroutine)}

    def tasks(self) -> list[Any]:
        if _library() is None:
            return []
        self._strange = {ident: (frames[-1], self._surveys) for ident, frames in thread_stacks().items() if frames}
        found = self._survey()
        owners = self._owners() if found else {}
        return [greenlet for greenlet in found if id(greenlet) not in owners]

    def name(self, task: Hashable) -> str | None:
        library = _library()
        return _name(task) if library is not None and isinstance(task, library.greenlet) else None

    def notice(self, task: Hashable) -> None:
        library = _library()
        if library is not None and isinstance(task, library.greenlet):
            self._noticed.add(task)

    def after_fork(self, tasks: Iterable[Hashable]) -> list[Hashable]:
        library = _library()
        if library is None:
            return []
        main = _main_of(library.getcurrent())
        return [task for task in tasks if isinstance(task, library.greenlet) and _main_of(task) is main]

    def creator(self, task: Hashable) -> Hashable | None:
        library = _library()
        if library is None or not isinstance(task, library.greenlet):
            return None
        greenlet: Any = task
        self._mains[originals.get_ident()] = _main_of(greenlet)  # it runs, and this is its first call
        spawner = getattr(greenlet, "spawning_greenlet", None)
        creator = (spawner() if callable(spawner) else None) or greenlet.parent
        return originals.get_ident() if creator is None or creator.parent is None else creator

    def start(self, transition: Transition) -> None:
        self._transition = transition
        if _library() is None:
            return
        if transition.labels & {asyncio.KIND.label, trio.KIND.label}:
            found = self._survey()
            owners = self._owners() if found else {}
            for greenlet in found:
                stacks = self._stacks(greenlet)
                if stacks is None or any(map(transition.footprint.affected, stacks)):
                    # Without an owner it may be part of any task: that will be known when it is seen in a chain.
                    transition.suspended.add_greenlet(greenlet, owners.get(id(greenlet)), self._stacks)
        self._watch_eventlet()

    def stop(self, transition: Transition) -> None:
        self._noticed = set()
        self._forget()
        if self._eventlet is not None:
            cls, init = self._eventlet
            if cls.__dict__.get("__init__") is not init:
                cls.__init__ = init
            self._eventlet = None

    def _watch_eventlet(self) -> None:
        """Its greenlets are children of the hub, whoever spawned them."""
        module = sys.modules.get("eventlet.greenthread")
        if module is None or self._eventlet is not None:
            return
        init = module.GreenThread.__init__
        self._eventlet = module.GreenThread, init

        def __init__(greenlet: Any, *args: Any, **kwargs: Any) -> None:
            init(greenlet, *args, **kwargs)
            transition = self._transition
            if transition is not None:
                transition.inherit(greenlet, transition.current())

        module.GreenThread.__init__ = __init__

    # -- where they are ----------------------------------------------------------------------------

    def beneath(self, task: Hashable) -> Iterable[Stack]:
        library = _library()
        if library is None:
            return
        greenlet = library.getcurrent()
        while greenlet is not task and greenlet.parent is not None:
            greenlet = greenlet.parent
            yield stack(greenlet.gr_frame)

    def inspect(self, transition: Transition) -> None:
        library = _library()
        if library is None:
            return
        kept: list[list[Stack]] = []
        with transition.looking():
            if self._survey_is_due:
                self._survey()
                self._survey_is_due = False
            known = list(self._noticed)
            for greenlet in known:
                if greenlet.dead:
                    transition.forget(greenlet)
                    self._noticed.discard(greenlet)
                elif greenlet in transition.pending:
                    stacks = self._stacks(greenlet)
                    if stacks is None:
                        continue
                    kept.append(stacks)
                    if transition.boundary and not all(map(boundaries.between_works, stacks)):
                        continue
                    if transition.movable(greenlet) and not any(map(transition.footprint.affected, stacks)):
                        transition.switch(greenlet, "stack check")
        del known, kept

    def _stacks(self, greenlet: Any) -> list[Stack] | None:
        """All that may be this one's."""
        own = stack_of(_suspended(greenlet))
        if own or not greenlet:
            return [own or []]
        return self._shown(greenlet, [ident for ident in sys._current_frames() if ident not in exempt_threads])

    def _shown(self, greenlet: Any, threads: list[int]) -> list[Stack] | None:
        """What these threads show while the greenlet is not suspended."""
        stacks = [thread_stack(ident, _suspended(greenlet)) for ident in threads]
        return None if None in stacks else stacks  # type: ignore[return-value]

    def stacks_of_thread(self, ident: int, shown: Stack | None, *, sure: bool = True) -> list[Stack] | None:
        """All stacks that may be this thread's own, as a task; None if that cannot be said now.

        `shown` is what it has just shown, if somebody has looked. Who need not be `sure` only wants to tell people.
        """
        shown = thread_stack(ident) if shown is None else shown
        if shown is None or not shown or _library() is None or shown[-1] is self._roots.get(ident):
            return None if shown is None else [shown]
        if ident in self._mains:
            mains = [self._mains[ident]]
        else:
            mains = self._homeless
            root, surveys = self._strange.get(ident, (None, 0))
            if not sure:
                pass
            elif root is not shown[-1] or surveys == self._surveys:
                # A greenlet that we have not heard of may have pushed the thread's own stack out of sight.
                if root is not shown[-1]:
                    self._strange[ident] = shown[-1], self._surveys
                self._survey_is_due = True
                return None
            elif not mains:
                self._roots[ident] = shown[-1]
                del self._strange[ident]
        stacks = [] if mains else [shown]
        for main in mains:
            own = stack_of(_suspended(main))
            found = [own] if own else self._shown(main, [ident])
            if found is None:
                return None
            stacks += found
        return stacks

    def statuses(self, view: View) -> list[TaskStatus]:
        with switch_lock:
            greenlets = self._survey()
            owners = self._owners() if greenlets else {}
            greenlets = [greenlet for greenlet in greenlets if id(greenlet) not in owners]
            # One that runs in another thread may have the stack of any: that is nothing to tell people.
            kept: list[list[Stack]] = [
                stacks if len(stacks := self._stacks(each) or []) == 1 else [[]] for each in greenlets
            ]
            if self._transition is None:
                self._forget()
        return [
            blockers.status(view, greenlet, _sketch(greenlet, stacks))
            for greenlet, stacks in zip(greenlets, kept, strict=True)
        ]


def _name(greenlet: Any) -> str:
    return str(getattr(greenlet, "name", "") or type(greenlet).__name__)


def _sketch(greenlet: Any, stacks: list[Stack] | None) -> blockers.Sketch:
    """What `blockers.py` is told of one."""
    own = stacks[0] if stacks is not None and len(stacks) == 1 else []
    origin = blockers.defined(own[-1].f_code) if own else ""
    name, asleep = _name(greenlet), greenlet.gr_frame is not None
    track = blockers.Track(greenlet, lambda source: stack_of(_suspended(source)))
    return blockers.Sketch("greenlet", name, hex(id(greenlet)), own, stacks, origin, asleep, track=track)


KIND = Greenlets()
