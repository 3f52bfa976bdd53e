"""Frames that no stack shows: suspended generators, coroutines and async generators of patched functions.

A suspended frame outlives the call that made it, and resuming it enters no trampoline. So every such object made
by a version of a patched function is known here: those that existed when the transition started, found by asking
the garbage collector who refers to the code, and those begun since, reported by their trampoline.

Each has an owner, the task that runs it, and keeps its owner from moving as long as it has a frame. Who runs those that
were found is not written anywhere; they are claimed for a task that shows, at any time, that it is the one:

* `claim_chain`: what a suspended coroutine of the task awaits, as far as that can be followed, and what nobody but
  these coroutines can reach (`holders.py`): an iterator of a `for`, a context manager that was entered, an ExitStack,
  an awaitable of somebody's own making with a coroutine behind it.
* `claim_stack`: a generator that the task is just executing.

One without a known owner could be resumed by anybody and keeps everybody.

An owner may hand over what it has: a generator begun in one worker thread is resumed in another, a coroutine that was
not awaited yet is put into a queue. These *wander*. While such a one is alive, tasks that have moved do not take the
fast path, and calls made from inside of it stay in its world. Only a coroutine that is being awaited does not wander:
Python lets nobody else await it.

Suspended greenlets are whole stacks that no thread shows. They are tasks of their own (`tasks/greenlet.py`), unless
they serve a task of another kind, as SQLAlchemy's do: there, those of before the transition are known here, and what
they enter later is counted with the task's calls (`transition.py`).
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from functools import partial
from types import AsyncGeneratorType, CodeType, CoroutineType, FrameType, GeneratorType
from typing import Any

from .codes import ASYNC_GENERATOR, COROUTINE, GENERATOR, ITERABLE_COROUTINE
from .heap import is_a, referrers
from .holders import held_by, held_only_by
from .model import TaskStatus
from .stacks import Footprint, Stack, describe, stack_of, thread_stack

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
    found = referrers(*codes, of=FrameOwner) if codes else []
    found = [thing for thing in found if frame_of(thing) is not None]
    return [thing for thing in found if not _lost(thing)] if forked else found


#: This process is a forked child.
forked = False
#: A generator may go from one stack to another between two looks, but not between all of these.
_LOOKS = 3


def _lost(thing: object) -> bool:
    """In a forked child: another thread was running it in the parent. It runs for ever, and on nobody's stack.

    Its own frame must not be followed outwards: the memory of that thread's stack may be gone.
    """
    if "greenlet" in sys.modules:  # it may be on the stack of a suspended one
        return False
    frame = frame_of(thing)
    for _ in range(_LOOKS):
        if not (getattr(thing, "gi_running", False) or getattr(thing, "cr_running", False)):
            return False
        for ident in sys._current_frames():
            shown = thread_stack(ident)
            if shown is None or frame in shown:
                return False
    return True


#: Of how many it is looked for what holds them, when somebody asks: it takes several passes over the heap.
NAMED = 50


def statuses_of(things: list[object], state: int) -> list[TaskStatus]:
    """Those that belong to no task, as blockers; `origin` says what holds them."""
    held = held_by(things[:NAMED]) + [""] * len(things[NAMED:])
    return [_status(thing, state, holder) for thing, holder in zip(things, held, strict=True)]


def _status(thing: object, state: int, holder: str) -> TaskStatus:
    frame = frame_of(thing)
    origin = f"held by {holder}" if holder else ""
    shown = describe(frame) if frame is not None else "finished"
    return TaskStatus("suspended", type(thing).__name__, hex(id(thing)), state, [shown], [shown], origin=origin)


#: All stacks that something may have, or None if that cannot be said.
Stacks = list[Stack] | None


class Entry:
    """One such object, by weak reference, with the code that it runs and the task that it belongs to."""

    __slots__ = ("code", "key", "owner", "reference", "wanders")

    def __init__(self, thing: object, owner: Hashable | None, gone: Callable[[Entry], None]) -> None:
        frame = frame_of(thing)
        self.code = id(frame.f_code) if frame is not None else 0
        self.key = id(thing)
        self.owner = owner
        self.wanders = owner is None or not isinstance(thing, CoroutineType)
        self.reference = weakref.ref(thing, lambda _: gone(self))

    def live(self) -> object | None:
        """The object, if it can still run."""
        thing = self.reference()
        return thing if thing is not None and frame_of(thing) is not None else None

    def holding(self, footprint: Footprint) -> object | None:
        """The object, if it would go on in code to be left."""
        return self.live() if self.code in footprint.forbidden else None


class GreenletEntry(Entry):
    """A greenlet, which has a whole stack; `look` gives all that may be its, or None if that cannot be said just now.
    The stack of the running one is looked at by whoever asks.
    """

    __slots__ = ("look",)

    def __init__(
        self, thing: object, owner: Hashable | None, gone: Callable[[Entry], None], look: Callable[[Any], Stacks]
    ) -> None:
        super().__init__(thing, owner, gone)
        self.wanders = False
        self.look = look

    def holding(self, footprint: Footprint) -> object | None:
        thing: Any = self.reference()
        if not thing or thing.dead or thing is sys.modules["greenlet"].getcurrent():
            return None
        stacks = self.look(thing)
        return thing if stacks is None or any(map(footprint.affected, stacks)) else None


def _any(test: Callable[[Entry], object], entries: dict[int, Entry] | None) -> bool:
    """Whether one of them passes. There may be very many, and the first will do."""
    while entries:
        try:
            return any(map(test, entries.values()))
        except RuntimeError:  # one vanished meanwhile
            continue
    return False


class Suspended:
    """The suspended frames of a transition. All methods are called under the switch lock.

    Entries vanish by themselves when their object dies, at any time and without the lock: hence the copies made
    by one call in C before anything is walked. `list` makes them in one step; `tuple` may run the collector in the
    middle of it.
    """

    def __init__(self) -> None:
        self._by_id: dict[int, Entry] = {}
        self._by_owner: dict[Hashable | None, dict[int, Entry]] = {}
        self._wandering: dict[int, Entry] = {}
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
            entry = Entry(thing, owner, self._forget)
            self._enter(entry)
        return entry

    def add_greenlet(self, greenlet: object, owner: Hashable | None, look: Callable[[Any], Stacks]) -> None:
        """Follow a greenlet that may be in code to be left, as a part of the task `owner`, or of any."""
        if id(greenlet) not in self._by_id:
            self._enter(GreenletEntry(greenlet, owner, self._forget, look))

    def _enter(self, entry: Entry) -> None:
        self._by_id[entry.key] = entry
        self._by_owner.setdefault(entry.owner, {})[entry.key] = entry
        if entry.wanders:
            self._wandering[entry.key] = entry

    def _forget(self, entry: Entry) -> None:
        for entries in (self._by_id, self._wandering, self._by_owner.get(entry.owner, {})):
            entries.pop(entry.key, None)

    def claim_chain(self, coroutine: object, owner: Hashable) -> None:
        """What hangs on the coroutine of a task that does not run just now, and cannot while this is being done."""
        links = [link for link in chain(coroutine) if isinstance(link, FrameOwner) or _wraps(link)]
        for link in links:
            self._claim(link, owner, awaited=isinstance(link, CoroutineType))
        for greenlet in greenlets_in(coroutine):  # they serve this task
            self._claim(greenlet, owner, awaited=False)
        del link
        if self._by_owner.get(None):
            for thing in held_only_by(links):
                self._claim(thing, owner, awaited=False)

    def claim_stack(self, stack: Sequence[FrameType], owner: Hashable) -> None:
        """These frames, innermost first, were on the stack of this task."""
        unowned = self._by_owner.get(None)
        if not unowned or not any(frame.f_code.co_flags & GENERATOR for frame in stack):
            return
        mine = set()
        for frame in reversed(stack):
            if frame.f_code.co_flags & _AWAITS:  # from here inwards it is a task that an event loop runs
                break
            mine.add(id(frame))
        for entry in list(unowned.values()):
            thing = entry.live()
            if isinstance(thing, GeneratorType) and id(thing.gi_frame) in mine:
                self._claim(thing, owner, awaited=False)

    def _claim(self, thing: object, owner: Hashable, awaited: bool) -> None:
        entry = self._by_id.get(id(thing))
        if entry is not None and entry.owner is None:
            self._by_owner[None].pop(entry.key, None)
            entry.owner = owner
            self._by_owner.setdefault(owner, {})[entry.key] = entry
            if awaited:
                entry.wanders = False
                self._wandering.pop(entry.key, None)

    def disown(self, task: Hashable) -> None:
        """A task has ended. What it leaves behind belongs to nobody known."""
        for key, entry in list(self._by_owner.pop(task, {}).items()):
            thing = entry.live()
            if thing is not None:
                entry.owner, entry.wanders = None, True
                self._by_owner.setdefault(None, {})[key] = self._wandering[key] = entry

    def owners(self) -> list[Hashable]:
        """The tasks that own one."""
        return [owner for owner in list(self._by_owner) if owner is not None]

    def pass_on(self, task: Hashable, heir: Hashable) -> None:
        """Another task goes on with what this one was doing."""
        for key, entry in list(self._by_owner.pop(task, {}).items()):
            entry.owner = heir
            self._by_owner.setdefault(heir, {})[key] = entry

    def drop_lost(self) -> None:
        """In a forked child: let go of what other threads were running."""
        for entry in list(self._by_id.values()):
            if _lost(entry.live()):
                self._forget(entry)

    def drop(self, task: Hashable) -> None:
        """A task does not exist in this process; what it was in the middle of will never go on."""
        for entry in list(self._by_owner.pop(task, {}).values()):
            self._by_id.pop(entry.key, None)
            self._wandering.pop(entry.key, None)

    def drop_chains(self, left: Iterable[tuple[Hashable, object]]) -> None:
        """The same for what hangs on the coroutines of such tasks; they are asked for only if something is nobody's."""
        if self._by_owner.get(None):
            for task, coroutine in left:
                self.claim_chain(coroutine, task)
                self.drop(task)

    def strays(self, entry: Entry) -> bool:
        """A generator in code to be left is alive, and anybody may resume it."""
        return entry.wanders and entry.code in self._forbidden and entry.live() is not None

    def runs_ahead(self, entry: Entry) -> bool:
        """A generator in code to move to is alive, and anybody may resume it, also who has not moved."""
        return entry.wanders and entry.code in self._expected and entry.live() is not None

    def any_strays(self) -> bool:
        """There is one of the former."""
        return _any(self.strays, self._wandering)

    def any_ahead(self) -> bool:
        """There is one of the latter."""
        return _any(self.runs_ahead, self._wandering)

    def of(self, owner: Hashable | None) -> list[object]:
        """Those in code to be left that belong to this task; to None: to nobody known."""
        entries = list(self._by_owner.get(owner, {}).values())
        return [thing for entry in entries if (thing := entry.holding(self._footprint)) is not None]

    def _holds(self, entry: Entry) -> bool:
        return entry.holding(self._footprint) is not None

    def unowned(self) -> bool:
        """There is one in code to be left that belongs to nobody known."""
        return _any(self._holds, self._by_owner.get(None))

    def blocks(self, task: Hashable) -> bool:
        """This task owns one, or somebody unknown does."""
        return _any(self._holds, self._by_owner.get(task)) or self.unowned()

    def any_live(self) -> bool:
        """There is one in code to be left."""
        return _any(self._holds, self._by_id)

    def apart(self) -> list[object]:
        """All in code to be left, but for greenlets that are part of a task, and of what that shows."""
        owned = [thing for owner in list(self._by_owner) if owner is not None for thing in self.of(owner)]
        return self.of(None) + [thing for thing in owned if not hasattr(thing, "gr_frame")]

    def clear(self) -> None:
        """Follow nothing any more."""
        self._by_id.clear()
        self._by_owner.clear()
        self._wandering.clear()


_AWAITS = COROUTINE | ASYNC_GENERATOR | ITERABLE_COROUTINE

#: What the interpreter puts between a coroutine and what it awaits, and shows to the collector only.
_WRAPPERS = {"async_generator_asend", "async_generator_athrow", "anext_awaitable", "coroutine_wrapper"}


def _wraps(awaitable: object) -> bool:
    return type(awaitable).__name__ in _WRAPPERS and type(awaitable).__module__ == "builtins"


def chain(awaitable: object) -> Iterator[object]:
    """What a suspended coroutine waits for, outermost first, as far as it can be followed."""
    while awaitable is not None:
        yield awaitable
        if _wraps(awaitable):
            # The first that it refers to is what it stands for; what was sent comes after.
            known = (r for r in gc.get_referents(awaitable) if is_a(r, FrameOwner) or _wraps(r))
            awaitable = next(known, None)
            continue
        for name in ("cr_await", "gi_yieldfrom", "ag_await"):
            following = getattr(awaitable, name, None)
            if following is not None:
                break
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
    return [thing for link in chain(coroutine) for thing in gc.get_referents(link) if is_a(thing, cls)]
