"""`functools` caches around patched functions.

A cache keeps results of the version that made them, and stores a result when the call, and the trampoline around it, is
over. So caches are emptied when a transition completes, and who leaves such a trampoline is not moved by that. What a
`cached_property` has computed belongs to the instances by now: it stays, and the log says so.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

from . import log
from .heap import referrers

_CACHE = functools._lru_cache_wrapper


def clear(touched: Iterable[FunctionType]) -> None:
    """Empty the caches around these functions: they hold results of the other version."""
    functions = {id(function): function for function in touched}
    for cache in _all(_CACHE, functools.cached_property) if functions else ():
        inside = next((functions[id(thing)] for thing in _behind(cache) if id(thing) in functions), None)
        if inside is not None and type(cache) is _CACHE:
            cache.cache_clear()
        elif inside is not None:
            log.notice(f"what the cached property '{inside.__qualname__}' has left in instances stays")


def cached() -> set[int]:
    """The ids of all that is behind a cache."""
    return {id(thing) for cache in _all(_CACHE) for thing in _behind(cache)}


def _all(*kinds: type) -> list[Any]:
    return [thing for thing in referrers(*kinds) if type(thing) in kinds]


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
