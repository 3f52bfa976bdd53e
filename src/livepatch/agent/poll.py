"""Waiting for descriptors with `poll`, whatever others have made of it.

`selectors` would do, but eventlet takes its selectors away, and gevent puts cooperative ones in their place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from livepatch.core import originals

READ, WRITE = 1, 4  # POLLIN and POLLOUT, everywhere


class Key(NamedTuple):
    """What is waited for, and who is to be called then."""

    fileno: int
    events: int
    call: Callable[[], object]


class Poll:
    """Calls for descriptors that are ready. What is registered is a number, or has `fileno()`."""

    def __init__(self) -> None:
        self._poll = originals.poll_type()()
        self._keys: dict[int, Key] = {}

    def register(self, thing: Any, events: int, call: Callable[[], object]) -> None:
        """Have `call` called when one of the events has happened; in place of an earlier call."""
        number = thing if isinstance(thing, int) else thing.fileno()
        self._keys[number] = Key(number, events, call)
        self._poll.register(number, events)

    def unregister(self, thing: Any) -> None:
        """Not any more. Nothing if it was not registered."""
        number = thing if isinstance(thing, int) else thing.fileno()
        if self._keys.pop(number, None) is not None:
            self._poll.unregister(number)

    def key(self, thing: Any) -> Key:
        """What is registered."""
        return self._keys[thing if isinstance(thing, int) else thing.fileno()]

    def __len__(self) -> int:
        return len(self._keys)

    def wait(self, seconds: float | None) -> list[Callable[[], object]]:
        """The calls that are due, after at most so many seconds; None: however long it takes."""
        milliseconds = None if seconds is None else max(0, math.ceil(seconds * 1000))
        ready = self._poll.poll(milliseconds)
        return [self._keys[number].call for number, _ in ready if number in self._keys]
