"""Long work in somebody else's process: it leaves the others their turn.

A thread that computes gives up the interpreter every five milliseconds, and only when asked; an event loop, which gives
it up with every look at its sockets, then gets back to work two hundred times a second. So whatever livepatch does for
each of many things, while it holds no lock that others may need, pauses after a millisecond for as long as it takes to
wake somebody who waits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from . import originals

#: The longest that work goes on without a pause, in seconds.
SLICE = 0.001

#: How long a pause is. A shorter one gives up the interpreter and takes it back before anybody has woken up.
PAUSE = 0.00001

#: The clock is looked at after so many things.
_EVERY = 64

T = TypeVar("T")


def unhurried(things: Iterable[T]) -> Iterator[T]:
    """The same things, with pauses between them."""
    until = originals.monotonic() + SLICE
    for number, thing in enumerate(things):
        yield thing
        if not number % _EVERY and originals.monotonic() > until:
            originals.sleep(PAUSE)
            until = originals.monotonic() + SLICE
