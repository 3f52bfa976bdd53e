"""Asking the garbage collector who refers to what."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: Some interpreters (3.12) freeze a few hundred objects by themselves. The heap of any program has thousands.
_ITS_OWN = 1000


def referrers(*things: object) -> list[Any]:
    """`gc.get_referrers`, which passes over frozen objects, without passing over them."""
    with _thawed():
        return gc.get_referrers(*things)


def instances(cls: type) -> list[Any]:
    """All objects of a class that the collector knows, frozen or not."""
    with _thawed():
        return [thing for thing in gc.get_objects() if isinstance(thing, cls)]


@contextmanager
def _thawed() -> Iterator[None]:
    """A server that forks calls `gc.freeze()` first; its functions are all frozen then."""
    frozen = gc.get_freeze_count() > _ITS_OWN
    if frozen:
        gc.unfreeze()
    try:
        yield
    finally:
        if frozen:
            gc.freeze()
