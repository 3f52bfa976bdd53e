"""Who stands in the way of a transition, said so that somebody can do something about it.

A transition waits for tasks. Whoever waits for the transition wants to know of each: what it is and where it came from,
which function holds it and for how long, and what would let it go. The kinds of tasks know who their tasks are and
what is on their stacks; `status` makes the rest of a `TaskStatus` from that, the same way for all of them.

**What would let it go** is told by `explain`, from the frames alone, by a table of rules: the first that has an answer
gives it, and what the task waits for just now is added, by another table. To add a case, add a rule or an entry.

**For how long.** Nothing looks at stacks while no transition runs, so at the first look nothing is known. Each look
remembers who was in the way (`memory`), for the next one to tell who has been there ever since. Frames cannot be kept
for that, they would keep the locals of a call alive that has ended. Their ids can, but an id is used again: a worker
that calls the same function over and over again shows a frame at the same address, each time in another call. So
equal ids say nothing. It is the same call if, besides, one of these holds:

* the coroutine or generator that runs it is the same object, which is kept by weak reference;
* the thread has not run in between: the system counts how often it switched to it;
* every call from the outermost frame on is made by a place that is passed only once, because it is not inside of a loop
  and calls the function by its name, so that nothing written in C can call it more than once either.

When none of these does, it may be another call, and it counts as such.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Hashable, Sequence
from itertools import pairwise
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, NamedTuple

from . import flow, originals, trampoline
from .codes import ASYNC_GENERATOR, GENERATOR
from .kind import View
from .model import TaskStatus
from .redirect import redirections
from .stacks import Footprint, Stack, describe
from .suspended import chain, frame_of
from .tasks import boundaries  # which imports its siblings, and these us: they use nothing of us before they are called
from .transition import switch_lock

#: Seconds after which a call that is still there is said to last.
LASTING = 10.0

#: What is said first, after its name, of a function that does not return from where it is.
NEVER = "never returns: mark it immediate"


class Track(NamedTuple):
    """How a task that has frames of its own is found again.

    `source` stands for the task, such as its `Thread`, and is kept by weak reference. `look` gives its stack, or None
    if that cannot be had just now. `runs` gives something that is another one each time the task has run, or None if
    that is not known.
    """

    source: object
    look: Callable[[Any], Stack | None]
    runs: Callable[[Any], object] = lambda source: None


# -- what would let it go --------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """What is known of a task that is in the way.

    `frames` is its stack or await chain and `affected` those frames that it must leave, each innermost first. It is
    `lasting` if the outermost of these was there ten seconds ago, `asleep` if it is suspended, and `boundary` if it may
    only move between two pieces of work. `thing` is a generator or coroutine that belongs to no task, and `holder` says
    in words who holds it, if that is known.
    """

    kind: str
    frames: Sequence[FrameType] = ()
    affected: Sequence[FrameType] = ()
    lasting: bool = False
    asleep: bool = False
    boundary: bool = False
    thing: object = None
    holder: str = ""

    @property
    def outer(self) -> Sequence[FrameType]:
        """The frames outside of those that must be left, innermost first."""
        last = self.affected[-1] if self.affected else None
        return next((self.frames[at + 1 :] for at, frame in enumerate(self.frames) if frame is last), self.frames)


#: What wakes a suspended task, by kind.
ASLEEP = {
    "asyncio": "goes on when the future it awaits is done",
    "trio": "goes on when what it awaits is done",
    "greenlet": "goes on when another greenlet switches to it",
}

#: When a task can move that has nothing in its way, if that is not at the next round, by kind.
TURNS = {"asyncio": "moves when its loop is idle"}

#: What a piece of work is called, by the package that runs it, if it is not a request.
WORKS = {
    "asgiref": "job",
    "celery": "job",
    "concurrent": "job",
    "trio": "job",
}

#: What waits for work and also calls it (see `tasks/boundaries.py`), and what that is called.
CALLERS = {
    "anyio._backends._asyncio.WorkerThread.run": "job",
    "asyncio.events.Handle._run": "callback",
    "billiard.pool.Worker.workloop": "job",
    "concurrent.futures.process._process_worker": "job",
    "http.server.BaseHTTPRequestHandler.handle_one_request": "request",
    "multiprocessing.pool.worker": "job",
}

#: What tasks wait in, by the end of its name, and for what. The first that fits.
WAITS = (
    ("", (".sleep",)),
    ("a process", (".waitpid", ".Popen.wait", ".communicate")),
    ("a socket", (".accept", "._accept", ".recv", ".recv_into", ".recvfrom", ".sendall", ".connect", ".do_handshake")),
    ("a file or socket", (".select", ".poll")),
    ("input", (".input", ".readline", ".readinto", ".read")),
    ("a lock", (".acquire", ".wait", ".Thread.join", "Queue.get", "Queue.put")),
)


def explain(case: Case) -> str:
    """What would let a task go, and what it waits for just now: one line, without a full stop."""
    said = next((said for rule in RULES if (said := rule(case))), "")
    return "; ".join(part for part in (said, _waits(case.frames)) if part)


def _suspended(case: Case) -> str | None:
    if case.thing is None:
        return None
    held = f"held by {case.holder}: " if case.holder else ""
    if getattr(case.thing, "cr_running", None) is False and not getattr(case.thing, "cr_suspended", True):
        return f"{held}never started, goes when it is awaited or closed"
    return f"{held}goes when it is exhausted or closed"


def _never(case: Case) -> str | None:
    if not case.affected or not flow.never_returns(case.affected[-1]):
        return None
    if case.affected[-1].f_code.co_flags & (
        GENERATOR | ASYNC_GENERATOR
    ):  # whoever resumes it may let it go in the middle
        return "goes when it is exhausted or closed"
    return f"{_name(case.affected[-1])}() {NEVER}{_or_what_else(case.affected[-1])}"


def _between(case: Case) -> str | None:
    if not case.boundary:
        return None
    unit = _work(case.frames) or ("task" if case.kind in ASLEEP else None)
    return f"moves at the end of the {unit}" if unit else "moves when it calls livepatch.update_patch_state()"


def _in_work(case: Case) -> str | None:
    unit = _work(case.outer) if case.affected else None
    return f"returns when the current {unit} ends" if unit else None


def _asleep(case: Case) -> str | None:
    return ASLEEP.get(case.kind) if case.affected and case.asleep else None


def _outermost(case: Case) -> str | None:
    if not (case.affected and case.lasting and all(_is_frame_of_library(frame) for frame in case.outer)):
        return None
    name = _name(case.affected[-1])
    return f"{name}() is all that runs here: if it never returns, mark it immediate{_or_what_else(case.affected[-1])}"


def _or_what_else(frame: FrameType) -> str:
    """How an archive says so of the function of a frame, and what can be done instead."""
    module = dict.get(frame.f_globals, "__name__", "*")
    # As the main program it does not have the name that the builder knows it by.
    name = f"{'*' if module == '__main__' else module}:{frame.f_code.co_qualname}"
    return f" (livepatch build --immediate '{name}') or patch what it calls"


def _returns(case: Case) -> str | None:
    return f"goes when {_name(case.affected[-1])}() returns" if case.affected else None


#: Who is asked in which order what would let a task go.
RULES: tuple[Callable[[Case], str | None], ...] = (
    _suspended,
    _never,
    _between,
    _in_work,
    _asleep,
    _outermost,
    _returns,
)


def _work(frames: Sequence[FrameType]) -> str | None:
    """What the innermost piece of work is called in the middle of which these frames are."""
    for frame in frames:
        name = _dotted(frame)
        if boundaries.is_work(frame.f_code):
            return WORKS.get(name.partition(".")[0], "request")
        if name in CALLERS:
            return CALLERS[name]
    return None


def _waits(frames: Sequence[FrameType]) -> str:
    """What a task waits for, as far as its innermost frames tell: the library's, and the call that they make."""
    names = []
    for frame in frames:
        if not boundaries.is_library(frame.f_code.co_filename):
            break
        package = _dotted(frame).partition(".")[0]
        names.append(f"{package}.{frame.f_code.co_qualname}")
    inner = flow.called(frames[0]) if frames else ""
    if inner.startswith("with"):
        return "waits in a with statement" if inner == "with" else f"waits for a lock in {inner!r}"
    for name in [inner, *names]:
        for what, ends in WAITS:
            if f".{name}".endswith(ends):
                return f"waits {f'for {what} ' if what else ''}in {names[-1] if names else name}"
    return ""


def _dotted(frame: FrameType) -> str:
    return f"{dict.get(frame.f_globals, '__name__', '?')}.{frame.f_code.co_qualname}"


def _name(frame: FrameType) -> str:
    return frame.f_code.co_qualname.rpartition("<locals>.")[2]


def _is_frame_of_library(frame: FrameType) -> bool:
    """Not the application's, or only its main module's body."""
    return frame.f_code.co_name == "<module>" or boundaries.is_library(frame.f_code.co_filename)


# -- since when ------------------------------------------------------------------------------------------------------

#: Who calls what it was given, and only once.
_CALL_ONCE = frozenset({"threading.Thread.run", "threading.Timer.run", "runpy._run_code"})


#: How often a stack is asked for that cannot be had.
_LOOKS = 10


class Sighting:
    """A call that was in the way at some look; nothing of it is kept alive."""

    def __init__(self, path: Sequence[FrameType], owner: object, track: Track | None) -> None:
        """`path` leads from the call to the outermost frame; `owner` is the coroutine or generator that runs it."""
        self.since = originals.monotonic()
        #: As it was shown at first, and what is to be said of it once it lasts.
        self.status: TaskStatus | None = None
        self.later = ""
        self._owner = weakref.ref(owner) if owner is not None else None
        self._source = weakref.ref(track.source) if track is not None else None
        self._look = track.look if track is not None else None
        self._runs = track.runs if track is not None else None
        self._marks = _marks(path)
        self._once = all(_passed_once(outer, inner) for inner, outer in pairwise(path))
        self._ran = self._has_run()
        self._asleep = False  # since the task last ran, its stack was seen

    def lasts(self, frames: Sequence[FrameType]) -> bool:
        """It is the very same call that is on this stack now."""
        if self._owner is not None:
            return frame_of(self._owner()) is not None
        if self._source is None or self._source() is None or _marks(frames[-len(self._marks) :]) != self._marks:
            return False
        self._asleep = self._has_not_run()
        return self._once or self._asleep

    def still(self) -> bool | None:
        """It is the very same call that is there now; None if its stack cannot be had."""
        source = self._source() if self._source is not None else None
        if self._look is None or source is None:
            return self.lasts([])
        if self._asleep and self._has_not_run():
            return True
        for _ in range(_LOOKS):
            frames = self._look(source)
            if frames is not None:
                return self.lasts(frames)
            originals.sleep(0.0005)
        return None

    def _has_not_run(self) -> bool:
        return self._ran is not None and self._ran == self._has_run()

    def _has_run(self) -> object:
        source = self._source() if self._source is not None else None
        return self._runs(source) if self._runs is not None and source is not None else None


def _marks(path: Sequence[FrameType]) -> list[tuple[int, int, int]]:
    """What is the same as long as a call goes on, and all that called it: where they are, but for the call itself."""
    return [(id(frame), id(frame.f_code), frame.f_lasti if at else 0) for at, frame in enumerate(path)]


def _passed_once(outer: FrameType, inner: FrameType) -> bool:
    """The place that `outer` is at is passed only once, and calls `inner` and nothing else."""
    if flow.may_repeat(outer):
        return False
    by_name = flow.called(outer).rpartition(".")[2] == inner.f_code.co_name
    return by_name or outer.f_code.co_filename == trampoline.FILE or _dotted(outer) in _CALL_ONCE


class Memory:
    """Who was in the way at the last looks. Whoever is found gone is forgotten."""

    #: So many at most: a few tell what is in the way of a transition, and the agent is to stay small.
    LIMIT = 1000

    def __init__(self) -> None:
        self._seen: dict[Hashable, Sighting] = {}

    def seen(self, key: Hashable, sight: Callable[[], Sighting], frames: Sequence[FrameType]) -> Sighting:
        """The sighting that is remembered under this key, if it lasts; else a new one."""
        known = self._seen.get(key)
        if known is None or not known.lasts(frames):
            self._seen.pop(key, None)
            known = sight()
            if len(self._seen) < self.LIMIT:
                self._seen[key] = known
        return known

    def still(self) -> list[TaskStatus]:
        """Those that have been there ever since, with the time that has passed; the others are forgotten."""
        found = []
        for key, sighting in list(self._seen.items()):
            still = sighting.still()
            if still is False:
                self._seen.pop(key, None)
            elif still and sighting.status is not None:
                seconds = originals.monotonic() - sighting.since
                hint = sighting.later if seconds >= LASTING else sighting.status.hint
                found.append(sighting.status._replace(seconds=seconds, hint=hint))
        return found


#: That of this process.
memory = Memory()


# -- all together ----------------------------------------------------------------------------------------------------


class Sketch(NamedTuple):
    """What a kind of tasks says of one of them: who it is, where it came from, and where it is.

    `frames` are those that are shown, innermost first. `stacks` are all that may be its own, or None if that cannot be
    said; without, it is just these frames. One that is a coroutine is found again by that, another by its `track`.
    """

    kind: str
    name: str
    ident: str
    frames: Stack
    stacks: Sequence[Stack] | None = ()
    origin: str = ""
    asleep: bool = False
    coroutine: object = None
    track: Track | None = None


def status(view: View, task: Hashable, sketch: Sketch) -> TaskStatus:
    """A task as an administrator sees it. Called without the switch lock, by who keeps the frames until it returns."""
    stacks = [sketch.frames] if sketch.stacks == () else sketch.stacks
    with switch_lock:
        pending = task in view.pending
        held = [(stack, _affected(view.footprint, stack)) for stack in stacks or () if pending]
        blocking = view.blocking(task, [frame for _, affected in held for frame in affected])
        if pending and stacks is None:
            blocking = ["(its stack is unreliable: it switches all the time)"]
        if task in view.calls and not blocking:
            blocking = [f"a patched function, on a stack that is not this {sketch.kind}'s own just now"]
        state, since = view.state_of(task), view.since(task) if pending else None
    shown = [*map(describe, sketch.frames)]
    made = TaskStatus(sketch.kind, sketch.name, sketch.ident, state, blocking, shown, sketch.origin)
    waited = originals.monotonic() - since if since is not None else 0.0
    if not blocking:
        # During a transition it may wait for nothing but its turn, and for ever if that does not come.
        turn = TURNS.get(sketch.kind) if since is not None else None
        return made if turn is None else made._replace(seconds=waited, hint=turn)
    frames, affected = next(((stack, found) for stack, found in held if found), (sketch.frames, []))
    case = Case(sketch.kind, frames, affected, asleep=sketch.asleep, boundary=view.boundary)
    made = made._replace(seconds=waited, hint=explain(case))
    if not affected:
        return made
    outermost = affected[-1]
    owner = next((link for link in chain(sketch.coroutine) if frame_of(link) is outermost), None)
    path = frames[next(at for at, frame in enumerate(frames) if frame is outermost) :]
    source = sketch.track.source if sketch.track is not None else owner
    key = sketch.kind, id(source), id(outermost.f_code)
    return _remembered(key, made, case, lambda: Sighting(path, owner, sketch.track))


def suspended(made: TaskStatus, thing: object, since: float | None = None) -> TaskStatus:
    """A generator or coroutine that belongs to no task, as a blocker."""
    frame = frame_of(thing)
    case = Case(
        made.kind, [frame] if frame is not None else [], thing=thing, holder=made.origin.removeprefix("held by ")
    )
    made = made._replace(seconds=originals.monotonic() - since if since is not None else 0.0, hint=explain(case))
    return _remembered((made.kind, made.ident), made, case, lambda: Sighting([], thing, None))


def _remembered(key: Hashable, made: TaskStatus, case: Case, sight: Callable[[], Sighting]) -> TaskStatus:
    sighting = memory.seen(key, sight, case.frames)
    later = explain(case._replace(lasting=True))
    known = originals.monotonic() - sighting.since
    made = made._replace(seconds=max(made.seconds or 0.0, known), hint=later if known >= LASTING else made.hint)
    if sighting.status is None:
        sighting.status, sighting.later = made, later
    return made


def stuck(task: TaskStatus) -> bool:
    """It was there ten seconds ago, or will be there for ever: who waits for it should know."""
    return (task.seconds or 0.0) >= LASTING or NEVER in task.hint


def _affected(footprint: Footprint, frames: Sequence[FrameType]) -> list[FrameType]:
    """All frames that a task must leave, innermost first: see `stacks.py`."""
    found, above = [], 0
    for frame in frames:
        code = id(frame.f_code)
        versions = footprint.trampolines.get(code)
        if code in footprint.forbidden or (versions is not None and above not in versions):
            found.append(frame)
        above = code
    return found


def defined(thing: object) -> str:
    """A function and where it is written, "function (file:line)"; of what is none, its type."""
    while isinstance(thing, functools.partial | MethodType):
        thing = thing.func if isinstance(thing, functools.partial) else thing.__func__
    code = thing.__code__ if isinstance(thing, FunctionType) else thing
    if isinstance(code, CodeType):
        if code.co_filename == trampoline.FILE:
            of = (known for known in list(redirections.values()) if any(code is one for one in known.codes()))
            code = next((known.original for known in of), code)
        return f"{code.co_qualname} ({code.co_filename}:{code.co_firstlineno})"
    return type(thing).__qualname__
