"""Asking the garbage collector who refers to what."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import call
from typing import Any

#: Some interpreters (3.12) freeze a few hundred objects by themselves. The heap of any program has thousands.
_ITS_OWN = 1000


def referrers(*things: object) -> list[Any]:
    """`gc.get_referrers`, which passes over frozen objects, without passing over them."""
    with thawed():
        return [holder for holder in gc.get_referrers(*things) if holder is not things]


def counted(cls: type, look: Callable[[type], Any] = id) -> tuple[int, Any]:
    """How often something refers to a class, as each of its instances does if it was made by a specification, and what
    `look` (in C) says of it at the very same instant. Counts of the same expression compare."""
    count, seen = map(call, (partial(sys.getrefcount, cls), partial(look, cls)))
    return count, seen


def instances(cls: type) -> list[Any]:
    """All objects of a class that the collector knows, frozen or not."""
    with thawed():
        return [thing for thing in gc.get_objects() if is_a(thing, cls)]


def is_a(thing: object, cls: type | tuple[type, ...]) -> bool:
    """`isinstance` for any object of the program. That asks the object itself, too, and proxies answer for others,
    raise, or, as lazy modules do, import something.
    """
    return issubclass(type(thing), cls)


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
