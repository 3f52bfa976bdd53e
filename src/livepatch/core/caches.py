"""`functools` caches around patched functions.

A cache keeps results of the version that made them, and stores a result when the call, and the trampoline around it, is
over. So caches are emptied when a transition completes, and who leaves such a trampoline is not moved by that. What a
`cached_property` has computed belongs to the instances by now: it stays, and the log says so.

Finding them is a pass over the heap, which holds everybody up. One is made before the transition starts; at its end
only if caches were made meanwhile, which the number of references to their class tells.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

from . import log
from .heap import counted, thawed

#: The caches of the last pass, and how many references to their class were not theirs; the properties of that pass.
_known: tuple[list[weakref.ref[Any]], int] = [], -1
_properties: list[weakref.ref[Any]] = []


def clear(touched: Iterable[FunctionType]) -> None:
    """Empty the caches around these functions: they hold results of the other version."""
    global _known
    functions = {id(function): function for function in touched}
    for cache in _caches() if functions else ():
        if any(id(thing) in functions for thing in _behind(cache)):
            cache.cache_clear()
    for kept in [kept for reference in _properties if (kept := reference()) is not None]:
        for name in {functions[id(thing)].__qualname__ for thing in _behind(kept) if id(thing) in functions}:
            log.notice(f"what the cached property '{name}' has left in instances stays")
    _known = [], -1
    _properties.clear()


def cached() -> set[int]:
    """The ids of all that is behind a cache."""
    return {id(thing) for cache in _find() for thing in _behind(cache)}


def _caches() -> list[Any]:
    known, others = _known
    alive = [cache for reference in known if (cache := reference()) is not None]
    return alive if counted(functools._lru_cache_wrapper)[0] == len(alive) + others else _find()


def _find() -> list[Any]:
    global _known
    with thawed():
        count, found = counted(functools._lru_cache_wrapper, functools.cached_property)
    caches = [thing for thing in found if type(thing) is functools._lru_cache_wrapper]
    _known = [weakref.ref(cache) for cache in caches], count - len(caches)
    _properties[:] = [weakref.ref(thing) for thing in found if type(thing) is functools.cached_property]
    return caches


def _behind(thing: Any) -> Iterator[Any]:
    """What a callable wraps, outermost first, as far as `functools`, methods and wrappers like wrapt's tell."""
    for _ in range(100):  # somebody may have made a circle
        kind = type(thing)
        if issubclass(kind, functools.partial | functools.cached_property):
            thing = thing.func
        elif kind is MethodType:
            thing = thing.__func__
        else:
            try:
                thing = thing.__wrapped__  # of anything: a proxy does not show what it is
            except Exception:
                return
        yield thing
