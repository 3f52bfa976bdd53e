"""What it costs to find all instances of a class: a pass over the heap, beside one of the collector."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from statistics import median

import livepatch as lp
from livepatch.core import heap

from .measure import Row

_OTHERS = 900_000
_INSTANCES = 100_000


class _Thing:
    """What is looked for."""


def among_a_million(quick: bool) -> list[Row]:
    """100,000 instances of a class among a million objects."""
    things, others = [_Thing() for _ in range(_INSTANCES)], [[] for _ in range(_OTHERS)]  # type: ignore[var-annotated]

    def walk() -> None:
        for _ in lp.each_instance(_Thing):
            pass

    rounds = 5 if quick else 20
    seconds = {look: median(_seconds(look) for _ in range(rounds)) for look in (walk, _listed, gc.collect)}
    each = seconds[_listed] / heap.size() * 100_000
    found = seconds[_listed] / seconds[gc.collect]
    del things, others
    return [
        Row(
            "stop of all threads for `each_instance`, a million objects / a full collection",
            "≤ 2",
            f"{found:.2f} ({each * 1000:.1f} ms for 100,000 objects; "
            f"and to go through {_INSTANCES:,} instances: {(seconds[walk] - seconds[_listed]) * 1000:.0f} ms)",
            found <= 2,
        )
    ]


def _listed() -> None:
    lp.each_instance(_Thing)


def _seconds(look: Callable[[], object]) -> float:
    begun = time.perf_counter()
    look()
    return time.perf_counter() - begun
