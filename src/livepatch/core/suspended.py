"""Frames that no stack shows: suspended generators, coroutines and async generators of patched functions.

A suspended frame outlives the call that made it, and resuming it enters no trampoline. So every such object made
by a version of a patched function is known here: those that existed when the transition started, found by asking
the garbage collector who refers to the code, and those begun since, reported by their trampoline.

Each has an owner, the task that runs it. It keeps its owner from moving as long as it has a frame. One without a
known owner could be resumed by anybody and keeps everybody; `claim` gives it to the task in whose chain it is seen.
A generator may wander, too: one begun in one worker thread is resumed in another. While such a one is alive, tasks
that have moved do not take the fast path, and calls made from inside of it stay in its world.

Suspended greenlets are whole stacks that no thread shows. Those that hold affected frames when the transition starts
keep everybody; what a greenlet enters later is counted with its thread's calls (`transition.py`).
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Hashable, Iterable
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from .heap import instances, referrers
from .model import TaskStatus
from .stacks import Footprint, describe, walk

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
        self._greenlets: list[weakref.ref[Any]] = []
        #: Codes to look for when a transition starts, in either direction; set by whoever knows the functions.
        self.codes: list[CodeType] = []

    def start(self, footprint: Footprint) -> list[object]:
        """A direction was chosen: find what exists already. What is returned must die outside of the lock."""
        self._forbidden, self._expected = footprint.forbidden, footprint.expected
        self._footprint = footprint
        found = find(self.codes)
        for thing in found:
            self.add(thing, None)
        library = sys.modules.get("greenlet")
        greenlets = instances(library.greenlet) if library is not None else []
        self._greenlets = [weakref.ref(g) for g in greenlets if footprint.affected(walk(g.gr_frame))]
        return found + greenlets

    def greenlets(self) -> list[Any]:
        """Those that held affected frames at the start and may still; a running one does not show what it holds."""
        known = [greenlet for reference in self._greenlets if (greenlet := reference()) is not None]
        held = [g for g in known if not g.dead and (g.gr_frame is None or self._footprint.affected(walk(g.gr_frame)))]
        self._greenlets = [weakref.ref(greenlet) for greenlet in held]
        return held

    def add(self, thing: object, owner: Hashable | None) -> Entry:
        """Follow an object; the first owner it was given stays."""
        entry = self._by_id.get(id(thing))
        if entry is None:
            entry = Entry(thing, owner, self._forget)
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

    def disown(self, task: Hashable) -> None:
        """A task has ended. What it leaves behind belongs to nobody known."""
        for key, entry in list(self._by_owner.pop(task, {}).items()):
            if entry.live() is not None:
                entry.owner = None
                self._by_owner.setdefault(None, {})[key] = entry

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
        live = [entry.live() for entry in entries if entry.code in self._forbidden]
        found = [thing for thing in live if thing is not None]
        return found + self.greenlets() if owner is None and self._greenlets else found

    def blocks(self, task: Hashable) -> bool:
        """This task owns one, or somebody unknown does."""
        return bool(self._by_owner or self._greenlets) and bool(self.of(task) or self.of(None))

    def live(self) -> list[object]:
        """All in code to be left."""
        return [thing for owner in {None, *list(self._by_owner)} for thing in self.of(owner)]

    def clear(self) -> None:
        """Follow nothing any more."""
        self._by_id.clear()
        self._by_owner.clear()
        self._greenlets.clear()


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
