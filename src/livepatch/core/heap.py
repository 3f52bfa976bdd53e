"""Asking the garbage collector who refers to what.

It also shows what nobody may hold: a tuple that the interpreter is just filling (`tuple(f(x) for x in y)` in another
thread) must have one reference when it gets its final size, or the program that makes it gets a SystemError; and to
look into it kills the process. So what was not asked for is dropped at the very instant at which it was found.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial, reduce
from itertools import chain, compress, islice, starmap
from operator import call, is_not, not_, or_
from typing import Any

from .instant import at_once, once

#: Some interpreters (3.12) freeze a few hundred objects by themselves. The heap of any program has thousands.
_ITS_OWN = 1000
#: Of how many tuples it is asked who holds them.
_TUPLES = 200


def referrers(*things: object, of: type | tuple[type, ...]) -> list[Any]:
    """`gc.get_referrers`, which passes over frozen objects, without passing over them: those of these classes."""
    with thawed():
        return at_once(_only(_referring(things), of if isinstance(of, tuple) else (of,)))


def holders(*things: object) -> list[Any]:
    """All that refer to these things; tuples only if something else refers to them, and is not a tuple itself."""
    with thawed():
        found = at_once(_other_than(_referring(things), tuple))
        tuples = _only(_referring(things), (tuple,), _TUPLES)
        around = at_once(_other_than(starmap(gc.get_referrers, map(tuple, iter([tuples]))), tuple))
    asked = set(map(id, things))
    for holder in around:
        if type(holder) is not partial or holder.func is not gc.get_referrers:  # that was how we asked
            inside = (thing for thing in gc.get_referents(holder) if is_a(thing, tuple) and thing is not things)
            found += [thing for thing in inside if not asked.isdisjoint(map(id, gc.get_referents(thing)))]
    return list({id(holder): holder for holder in found}.values())


def instances(cls: type) -> list[Any]:
    """All objects of a class that the collector knows, frozen or not."""
    with thawed():
        return at_once(_only(once(gc.get_objects), (cls,)))


def size() -> int:
    """How many objects the collector knows."""
    with thawed():
        return int(at_once(map(len, once(gc.get_objects)))[0])


def counted(cls: type, *others: type) -> tuple[int, list[Any]]:
    """How often something refers to a class, as each of its instances does if it was made by a specification, and the
    instances of it and others at the very same instant. Counts of the same expression compare."""
    wanted = _only(_referring((cls, *others)), (cls, *others))  # in any case: it counts
    looks: tuple[Callable[[], Any], ...] = (partial(sys.getrefcount, cls), partial(list, wanted if others else ()))
    count, found = map(call, looks)
    return count, found


def is_a(thing: object, cls: type | tuple[type, ...]) -> bool:
    """`isinstance` for any object of the program. That asks the object itself, too, and proxies answer for others,
    raise, or, as lazy modules do, import something.
    """
    return issubclass(type(thing), cls)


def _referring(things: tuple[object, ...]) -> Iterator[list[Any]]:
    return once(partial(gc.get_referrers, *things))


def _only(found: Iterator[list[Any]], classes: tuple[type, ...], limit: int | None = None) -> Iterator[Any]:
    """Those of these classes, told by C alone: a metaclass is not asked."""
    things: list[Any] = []
    are = (map(_is_subclass(cls), map(type, things)) for cls in classes)
    return _through(things, found, islice(compress(things, reduce(partial(map, or_), are)), limit))


def _other_than(found: Iterator[list[Any]], cls: type) -> Iterator[Any]:
    things: list[Any] = []
    return _through(things, found, compress(things, map(not_, map(_is_subclass(cls), map(type, things)))))


def _through(things: list[Any], found: Iterator[list[Any]], chosen: Iterator[Any]) -> Iterator[Any]:
    """What is chosen of the things, which are in the list for that long.

    It is cleared, since it may be in a circle: the collector has found what goes through it, too.
    """
    return filter(partial(is_not, None), chain(map(things.extend, found), chosen, once(things.clear)))


def _is_subclass(cls: type) -> Callable[[type], bool]:
    return partial(type.__subclasscheck__, cls)


@contextmanager
def thawed() -> Iterator[None]:
    """A server that forks calls `gc.freeze()` first; its functions are all frozen then."""
    frozen = gc.get_freeze_count() > _ITS_OWN
    if frozen:
        gc.unfreeze()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()
