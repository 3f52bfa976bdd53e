"""Who holds an object: as a proof for the transition, and as words for people.

As a proof (`held_only_by`): an object to which all references there are come from the frame of a suspended coroutine,
or from objects of which this is true, can be reached by no one but whoever resumes that coroutine. References are
counted as the collector counts them when it looks for garbage: an object's count, less those found. What is in a cycle
or may be had through a weak reference is not proven; neither is what an extension holds without telling the collector.

For people (`held_by`): the way from an object back to something that has a name, such as "a list in app.Pool.jobs".
The collector knows who refers to what, but each question is a pass over the heap, so it is asked for several objects
at once, and only when somebody wants to read the answer. It does not know what the frames that run hold. Where asking
a frame for its local variables leaves no trace (`cpython.LOCALS_ARE_A_VIEW`), these are looked through; before, a frame
keeps a copy of what it was asked for, which would hold up the very object that everybody waits for. What only a stack
of values holds (`for`, `with`) has no name at all; a frame that runs and mentions the generator's function is a good
guess, and said to be one.
"""

from __future__ import annotations

import gc
import sys
import weakref
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain, islice
from types import CellType, FrameType, FunctionType, GetSetDescriptorType, MemberDescriptorType, MethodType, ModuleType
from typing import Any, NamedTuple

from . import cpython
from .heap import holders, is_a
from .stacks import describe

#: With how many objects one coroutine is credited before the count is given up.
_OBJECTS = 300
#: How far back a name is looked for, and among how many objects at each step.
_STEPS, _WIDTH = 7, 200
#: How many frames that run are searched for a local variable.
_FRAMES = 2000

# -- as a proof ------------------------------------------------------------------------------------------------


def held_only_by(roots: Sequence[object]) -> list[object]:
    """All that can be reached only through these suspended coroutines, which themselves are left out.

    Nothing of it can change while nobody resumes them: that is for the caller to make sure of.
    """
    things = list(roots)  # but for what we count, nothing else refers to what is in here
    places = {id(root): at for at, root in enumerate(things)}
    counted = [0] * len(things)
    proven = [True] * len(things)
    to_expand = list(range(len(things)))
    while to_expand and len(things) < _OBJECTS:
        for at in to_expand:
            for thing in gc.get_referents(things[at]) if _is_small(things[at]) else ():
                if gc.is_tracked(thing):
                    place = places.setdefault(id(thing), len(things))
                    if place == len(things):
                        things.append(thing)
                        counted.append(0)
                        proven.append(False)
                    counted[place] += 1
            thing = None
        counts = list(map(sys.getrefcount, things))
        to_expand = [at for at, known in enumerate(proven) if not known and counts[at] - _IN_A_LIST == counted[at]]
        to_expand = [at for at in to_expand if _is_known_strongly(things[at])]
        for at in to_expand:
            proven[at] = True
    return [thing for at, thing in enumerate(things) if proven[at] and at >= len(roots)]


#: What the interpreter says of an object that a list alone refers to, when asked in this way.
(_IN_A_LIST,) = map(sys.getrefcount, [object()])


def _is_known_strongly(thing: object) -> bool:
    """Nobody can have it through a weak reference. Of generators some are kept, to close those that are left over."""
    return weakref.getweakrefcount(thing) == 0 or any(hasattr(type(thing), name) for name in _FRAMES_OF)


_FRAMES_OF = "cr_frame", "gi_frame", "ag_frame"


def _is_small(thing: object) -> bool:
    return not is_a(thing, (list, tuple, dict, set, deque)) or len(thing) < _OBJECTS  # type: ignore[arg-type]


# -- as words --------------------------------------------------------------------------------------------------


class _Step(NamedTuple):
    """An object on the way from what is asked for to a name: the words so far, and its key if a dict holds it."""

    thing: object
    asked: int
    words: tuple[str, ...] = ()
    key: object = None


def held_by(things: list[Any]) -> list[str]:
    """For each object what holds it, by the shortest way to a name, or as far as that can be followed."""
    names = [""] * len(things)
    steps = [_Step(thing, at) for at, thing in enumerate(things)]
    way = list(steps)
    been = {(id(step.thing), step.asked) for step in steps}
    for _ in range(_STEPS):
        steps = [step for step in _outwards(steps, things, names) if (id(step.thing), step.asked) not in been][:_WIDTH]
        been |= {(id(step.thing), step.asked) for step in steps}
        way += steps
        if not steps:
            break
    for step in reversed(way):  # the furthest comes first
        if not names[step.asked]:
            words = [*step.words, "a dict"] if step.key is not None else step.words
            names[step.asked] = " in ".join([*words, _running(step.thing, things[step.asked])])
    return names


def _outwards(steps: list[_Step], things: list[Any], names: list[str]) -> list[_Step]:
    """One step back from each; `names` is filled where that is a name."""
    wanted: dict[int, list[_Step]] = {}
    for step in steps:
        if not names[step.asked]:
            wanted.setdefault(id(step.thing), []).append(step)
    found = []
    ask = tuple([same[0].thing for same in wanted.values()])
    for holder in holders(*ask) if ask else ():
        if holder is ask or holder is things or type(holder) is _Step or _is_ours(holder):
            continue
        for key in wanted.keys() & set(map(id, gc.get_referents(holder))):
            for step in wanted[key]:
                words, name = _words(holder, step)
                if name:
                    names[step.asked] = names[step.asked] or " in ".join([*words, name])
                else:
                    held_as = _key(holder, step.thing) if issubclass(type(holder), dict) else None
                    found.append(_Step(holder, step.asked, words, held_as))
    return found


def _is_ours(holder: object) -> bool:
    """A frame of livepatch's that is over, and not collected yet."""
    name = holder.f_globals.get("__name__") if type(holder) is FrameType else None
    return type(name) is str and name.partition(".")[0] == __name__.partition(".")[0]


def _words(holder: Any, step: _Step) -> tuple[tuple[str, ...], str]:
    """The words so far, with this holder's if it has no name; and its name if it has."""
    cls = type(holder)
    words = step.words
    if issubclass(cls, type) and step.key is not None:
        return words, f"{_title(holder)}.{step.key}"
    if step.key is not None and _namespace(holder) is not step.thing:
        words = *words, "a dict"
    if issubclass(cls, dict):
        name = dict.get(holder, "__name__")
        module = sys.modules.get(name) if type(name) is str else None
        if type(module) is ModuleType and module.__dict__ is holder:
            return words, f"{name}.{_key(holder, step.thing)}"
        return words, ""  # whose dict it is shows one step further
    if cls is FunctionType:
        return words, f"function {holder.__module__}.{holder.__qualname__}"
    if cls in (MethodType, CellType) or (cls is tuple and type(step.thing) is CellType):
        return words, ""
    frame = holder if cls is FrameType else _frame_of(holder)
    if frame is not None:
        return words, _local(frame, step.thing) or describe(frame)
    if cls.__module__ == "contextlib":
        return ("an ExitStack" if hasattr(cls, "pop_all") else "a context manager",), ""
    asyncio = sys.modules.get("asyncio")
    if asyncio is not None and issubclass(cls, getattr(asyncio, "Task", ())):
        return words, f"task {holder.get_name()}"
    attribute = step.key if _namespace(holder) is step.thing else _attribute(holder, step.thing)
    if attribute is not None and cls.__module__ != "functools":
        return words, f"{_title(cls)}.{attribute}"
    return (*words, ("an " if cls.__name__[0] in "aeiou" else "a ") + cls.__name__), ""


def _title(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"


def _key(holder: Any, thing: object) -> object:
    return next((key for key, value in list(dict.items(holder)) if value is thing), "?")


def _namespace(holder: object) -> object:
    """An instance's `__dict__`, without running code of its class."""
    for cls in type(holder).__mro__:
        found = cls.__dict__.get("__dict__")
        if isinstance(found, GetSetDescriptorType):
            return found.__get__(holder)
    return None


def _attribute(holder: object, thing: object) -> str | None:
    """The name under which an instance has it: there may be no dict until somebody asks for it, or there are slots."""
    namespace = _namespace(holder)
    if type(namespace) is dict and (names := [key for key, value in namespace.items() if value is thing]):
        return str(names[0])
    for cls in type(holder).__mro__:
        for name, slot in list(cls.__dict__.items()):
            if type(slot) is MemberDescriptorType:
                try:
                    if slot.__get__(holder) is thing:
                        return name
                except AttributeError:  # an empty one
                    continue
    return None


def _frame_of(holder: object) -> FrameType | None:
    """That of a generator, coroutine or async generator."""
    for name in _FRAMES_OF:
        slot: Any = type(holder).__dict__.get(name)
        if type(slot) in (GetSetDescriptorType, MemberDescriptorType):
            frame: FrameType | None = slot.__get__(holder)
            return frame
    return None


def _local(frame: FrameType, thing: object) -> str:
    """The local variable that it is in a frame, if that can be asked for."""
    for name, value in list(frame.f_locals.items()) if cpython.LOCALS_ARE_A_VIEW else ():
        if value is thing:
            return f"local {name} of {describe(frame)}"
    return ""


def _running(thing: object, asked: object) -> str:
    """The call that holds something, where the collector knows of none."""
    frames = list(islice(chain.from_iterable(map(_walk, sys._current_frames().values())), _FRAMES))
    owner = thing.__self__ if type(thing) is MethodType else None  # a running `with` has the `__exit__` of its manager
    for frame in frames:
        if local := _local(frame, thing) or (owner is not None and _local(frame, owner)):
            return local
    own = _frame_of(asked)
    likely = [frame for frame in frames if own is not None and own.f_code.co_name in frame.f_code.co_names]
    return f"a call that is running, probably {describe(likely[0])}" if likely else "a call that is running"


def _walk(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        if frame.f_globals is not globals():  # ours would hold what is asked for in a cycle with themselves
            yield frame
        frame = frame.f_back
