"""When the next round of the running transition is due, and who is woken to do it.

Rounds follow each other after 1, 2, 4 ... milliseconds, up to a second; and one follows at once when something has
happened that lets the transition complete.
"""

from __future__ import annotations

from typing import Protocol

from . import originals
from .lists import changing

#: Seconds between the first two rounds, and between two at most.
FIRST_WAIT, LONGEST_WAIT = 0.001, 1.0


class Driver(Protocol):
    """Whoever calls `tick()`."""

    def wake(self) -> None:
        """A round is due. Called from any thread, under any lock: must not block."""


_driver: Driver | None = None
_due = 0.0
_wait = FIRST_WAIT


def set_driver(driver: Driver | None) -> Driver | None:
    """From now on `driver` is woken when a round is due. Returns the one before."""
    global _driver
    before, _driver = _driver, driver
    return before


def next_round() -> float | None:
    """Seconds until the next round is due; None without a transition."""
    return None if changing() is None else max(0.0, _due - originals.monotonic())


def wake() -> None:
    """Have the driver ask when the next round is due."""
    if _driver is not None:
        _driver.wake()


def at_once() -> None:
    """Something happened that lets the transition complete: a round is due."""
    global _due
    _due = 0.0
    wake()


def from_the_first() -> None:
    """The next wait is the shortest one again."""
    global _wait
    _wait = FIRST_WAIT


def soon() -> None:
    """Tasks have been told to move: the next round is due after the shortest wait."""
    global _due
    from_the_first()
    _due = originals.monotonic() + _wait
    wake()


def begun() -> None:
    """A round is being done; the one after it waits twice as long."""
    global _due, _wait
    _due = originals.monotonic() + _wait
    _wait = min(_wait * 2, LONGEST_WAIT)
