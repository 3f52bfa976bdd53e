"""Frames that no stack shows: suspended generators, coroutines and async generators of patched functions.

A suspended frame outlives the call that made it, and resuming it enters no trampoline. So every such object made
by a version of a patched function is known here: those that existed when the transition started, found by asking
the garbage collector who refers to the code, and those begun since, reported by their trampoline.

Each has an owner, the task that runs it. It keeps its owner from moving as long as it has a frame. One without a
known owner could be resumed by anybody and keeps everybody; `claim` gives it to the task in whose chain it is seen.
A generator may wander, too: one begun in one worker thread is resumed in another. While such a one is alive, tasks
that have moved do not take the fast path, and calls made from inside of it stay in its world.

Suspended greenlets are whole stacks that no thread shows. They are tasks of their own (`tasks/greenlet.py`), unless
they serve a task of another kind, as SQLAlchemy's do: there, those of before the transition are known here, and what
they enter later is counted with the task's calls (`transition.py`).
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from .heap import referrers
from .model import TaskStatus
from .stacks import Footprint, Stack, describe, stack_of

FrameOwner = GeneratorType, CoroutineType, AsyncGeneratorType


def frame_of(thing: object) -> FrameType | None:
    """The frame of a generator, coroutine or async generator; None when it has finished."""
    for name in ("cr_frame", "gi_frame", "ag_frame", "gr_frame"):
        try:
            frame: FrameType | None = getattr(thing, name)
        except AttributeError:
            continue
        return frame
    return None


def find(codes: list[CodeType]) -> list[object]:
    """All of them that exist and have a frame of one of these codes: one pass over the heap."""
    found = referrers(*codes) if codes else []
    return [thing for thing in found if isinstance(thing, FrameOwner) and frame_of(thing) is not None]


def status_of(thing: object, state: int) -> TaskStatus:
    """One that belongs to no task, as a blocker."""
    frame = frame_of(thing)
    shown = describe(frame) if frame is not None else "finished"
    return TaskStatus("suspended", type(thing).__name__, hex(id(thing)), state, [shown], [shown])


class Entry:
    """One such object, by weak reference, with the code that it runs and the task that it belongs to."""

    __slots__ = ("code", "key", "owner", "reference", "wanders")

    def __init__(self, thing: object, owner: Hashable | None, gone: Callable[[Entry], None]) -> None:
        frame = frame_of(thing)
        self.code = id(frame.f_code) if frame is not None else 0
        self.key = id(thing)
        self.owner = owner
        self.wanders = not isinstance(thing, CoroutineType)
        self.reference = weakref.ref(thing, lambda _: gone(self))

    def live(self) -> object | None:
        """The object, if it can still run."""
        thing = self.reference()
        return thing if thing is not None and frame_of(thing) is not None else None

    def holding(self, footprint: Footprint) -> object | None:
        """The object, if it would go on in code to be left."""
        return self.live() if self.code in footprint.forbidden else None


class GreenletEntry(Entry):
    """A greenlet, which has a whole stack. A running one does not show whether it holds anything."""

    __slots__ = ()

    def __init__(self, thing: object, owner: Hashable | None, gone: Callable[[Entry], None]) -> None:
        super().__init__(thing, owner, gone)
        self.wanders = False

    def holding(self, footprint: Footprint) -> object | None:
        thing: Any = self.reference()
        if not thing:  # ended, or dead
            return None
        frames = stack_of(partial(getattr, thing, "gr_frame"))
        return thing if not frames or footprint.affected(frames) else None


class Suspended:
    """The suspended frames of a transition. All methods are called under the switch lock.

    Entries vanish by themselves when their object dies, at any time and without the lock: hence the copies made
    by one call in C before anything is walked. `list` makes them in one step; `tuple` may run the collector in the
    middle of it.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Entry] = {}
        self._by_owner: dict[Hashable | None, dict[int, Entry]] = {}
        self._forbidden: set[int] = set()
        self._expected: set[int] = set()
        self._footprint = Footprint()
        #: Codes to look for when a transition starts, in either direction; set by whoever knows the functions.
        self.codes: list[CodeType] = []

    def start(self, footprint: Footprint) -> list[object]:
        """A direction was chosen: find what exists already. What is returned must die outside of the lock."""
        self._forbidden, self._expected = footprint.forbidden, footprint.expected
        self._footprint = footprint
        found = find(self.codes)
        for thing in found:
            self.add(thing, None)
        return found

    def add(self, thing: object, owner: Hashable | None) -> Entry:
        """Follow an object; the first owner it was given stays."""
        entry = self._by_id.get(id(thing))
        if entry is None:
            entry = (GreenletEntry if hasattr(thing, "gr_frame") else Entry)(thing, owner, self._forget)
            self._by_id[entry.key] = entry
            self._by_owner.setdefault(owner, {})[entry.key] = entry
        return entry

    def _forget(self, entry: Entry) -> None:
        self._by_id.pop(entry.key, None)
        self._by_owner.get(entry.owner, {}).pop(entry.key, None)

    def claim(self, thing: object, owner: Hashable) -> None:
        """`thing` was seen in the chain of this task."""
        entry = self._by_id.get(id(thing))
        if entry is not None and entry.owner is None:
            self._by_owner[None].pop(entry.key, None)
            entry.owner = owner
            self._by_owner.setdefault(owner, {})[entry.key] = entry

    def claim_chain(self, coroutine: object, owner: Hashable) -> None:
        """All that hangs on what this task runs is its own: what it awaits, and greenlets that serve it."""
        for link in chain(coroutine):
            self.claim(link, owner)
        for greenlet in greenlets_in(coroutine):
            self.claim(greenlet, owner)

    def disown(self, task: Hashable) -> None:
        """A task has ended. What it leaves behind belongs to nobody known."""
        for key, entry in list(self._by_owner.pop(task, {}).items()):
            if entry.live() is not None:
                entry.owner = None
                self._by_owner.setdefault(None, {})[key] = entry

    def owners(self) -> list[Hashable]:
        """The tasks that own one."""
        return [owner for owner in list(self._by_owner) if owner is not None]

    def pass_on(self, task: Hashable, heir: Hashable) -> None:
        """Another task goes on with what this one was doing."""
        for key, entry in list(self._by_owner.pop(task, {}).items()):
            entry.owner = heir
            self._by_owner.setdefault(heir, {})[key] = entry

    def drop(self, task: Hashable) -> None:
        """A task does not exist in this process; what it was in the middle of will never go on."""
        for entry in list(self._by_owner.pop(task, {}).values()):
            self._by_id.pop(entry.key, None)

    def strays(self, entry: Entry) -> bool:
        """A generator in code to be left is alive, and anybody may resume it."""
        return entry.wanders and entry.code in self._forbidden and entry.live() is not None

    def runs_ahead(self, entry: Entry) -> bool:
        """A generator in code to move to is alive, and anybody may resume it, also who has not moved."""
        return entry.wanders and entry.code in self._expected and entry.live() is not None

    def any_strays(self) -> bool:
        """There is one of the former."""
        return any(self.strays(entry) for entry in list(self._by_id.values()))

    def any_ahead(self) -> bool:
        """There is one of the latter."""
        return any(self.runs_ahead(entry) for entry in list(self._by_id.values()))

    def of(self, owner: Hashable | None) -> list[object]:
        """Those in code to be left that belong to this task; to None: to nobody known."""
        entries = list(self._by_owner.get(owner, {}).values())
        return [thing for entry in entries if (thing := entry.holding(self._footprint)) is not None]

    def unowned(self) -> bool:
        """There is one in code to be left that belongs to nobody known."""
        return bool(self.of(None))

    def blocks(self, task: Hashable) -> bool:
        """This task owns one, or somebody unknown does."""
        return bool(self._by_owner) and bool(self.of(task) or self.of(None))

    def live(self) -> list[object]:
        """All in code to be left."""
        return [thing for owner in {None, *list(self._by_owner)} for thing in self.of(owner)]

    def clear(self) -> None:
        """Follow nothing any more."""
        self._by_id.clear()
        self._by_owner.clear()


def chain(awaitable: object) -> Iterable[object]:
    """What a suspended coroutine waits for, outermost first, as far as it can be followed."""
    while awaitable is not None:
        yield awaitable
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            following = getattr(awaitable, name, None)
            if following is not None:
                break
        else:
            following = None
        if following is None and not isinstance(awaitable, FrameOwner):
            # `async for` hides its generator in an async_generator_asend, which only the collector sees through.
            following = next((r for r in gc.get_referents(awaitable) if isinstance(r, AsyncGeneratorType)), None)
        awaitable = following


def stack_of_coroutine(coroutine: object) -> Stack:
    """All frames of a task that waits, innermost first: of what it awaits, and of greenlets that serve it."""
    frames = [frame for link in chain(coroutine) if (frame := frame_of(link)) is not None]
    stacks = [stack_of(partial(getattr, greenlet, "gr_frame")) or [] for greenlet in greenlets_in(coroutine)]
    return [*(frame for frames in stacks for frame in frames), *frames[::-1]]


def greenlets_in(coroutine: object) -> list[Any]:
    """The greenlets that a suspended coroutine, or what it waits for, has at hand."""
    library = sys.modules.get("greenlet")
    cls = getattr(library, "greenlet", None)
    if cls is None:
        return []
    return [thing for link in chain(coroutine) for thing in gc.get_referents(link) if isinstance(thing, cls)]
