"""`functools` caches around patched functions.

A cache keeps results of the version that made them, and stores a result when the call, and the trampoline around it, is
over. So caches are emptied when a transition completes, and who leaves such a trampoline is not moved by that.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from types import FunctionType, MethodType
from typing import Any

from .heap import referrers


def clear(touched: Iterable[FunctionType]) -> None:
    """Empty the caches around these functions: they hold results of the other version."""
    functions = {id(function) for function in touched}
    for cache in _caches() if functions else ():
        if any(id(thing) in functions for thing in _behind(cache)):
            cache.cache_clear()


def cached() -> set[int]:
    """The ids of all that is behind a cache."""
    return {id(thing) for cache in _caches() for thing in _behind(cache)}


def _caches() -> list[Any]:
    kind_of_cache = functools._lru_cache_wrapper
    return [thing for thing in referrers(kind_of_cache) if type(thing) is kind_of_cache]


def _behind(thing: Any) -> Iterator[Any]:
    """What a callable wraps, outermost first, as far as `functools` and methods tell."""
    for _ in range(100):  # somebody may have made a circle
        if isinstance(thing, functools.partial):
            thing = thing.func
        elif isinstance(thing, MethodType):
            thing = thing.__func__
        elif isinstance(thing, FunctionType | functools._lru_cache_wrapper):
            thing = vars(thing).get("__wrapped__")
        else:
            return
        yield thing
