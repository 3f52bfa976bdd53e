"""The clock by which rounds are made.

Tests of applications stand still in time: they replace `time.monotonic` (freezegun does), and a transition whose next
round is due in a millisecond would never have one. Nobody replaces the system's clocks when they are asked for by
number; and where one of these is replaced below Python (time-machine), it is the one that tells the date.
"""

from __future__ import annotations

from time import CLOCK_MONOTONIC, clock_gettime


def monotonic() -> float:
    """Seconds since some instant: what `time.monotonic` gives as long as nobody has replaced it."""
    return clock_gettime(CLOCK_MONOTONIC)
