"""How things are measured: two sides in turns, and what becomes of many short rounds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import repeat
from typing import Any


@dataclass(frozen=True)
class Row:
    """One line of the table. `met` is None if this machine or this Python cannot tell."""

    what: str
    reach: str
    measured: str
    met: bool | None

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


#: Times of one round, in nanoseconds per call, one for each side.
Round = Sequence[float]

_CALLS = 10  # per turn of the loop, so that the loop itself weighs little


def caller(function: Callable[..., Any], arguments: str) -> Callable[[int], float]:
    """A function that makes at least so many calls and returns nanoseconds per call."""
    return expression(f"f({arguments})", f=function)


def expression(text: str, **names: Any) -> Callable[[int], float]:
    """The same for any expression.

    Compiled anew for each: the interpreter specializes a place for what it meets there.
    """
    source = f"""
def run(count):
    turns = repeat(None, count // {_CALLS})
    start = clock()
    for _ in turns:
        {f"{text}; " * _CALLS}
    return (clock() - start) / (count // {_CALLS} * {_CALLS})
"""
    namespace: dict[str, Any] = {**names, "clock": time.perf_counter_ns, "repeat": repeat}
    exec(compile(source, "<bench>", "exec"), namespace)
    run: Callable[[int], float] = namespace["run"]
    return run


def in_turns(sides: Sequence[Callable[[int], float]], *, count: int, rounds: int) -> list[Round]:
    """Let the sides take turns, each making so many calls; every other round the other way round."""
    for side in sides:
        side(count)
    found = []
    for number in range(rounds):
        order = range(len(sides)) if number % 2 else range(len(sides) - 1, -1, -1)
        times = {position: sides[position](count) for position in order}
        found.append([times[position] for position in range(len(sides))])
    return found


def ratio(rounds: Sequence[Round], a: int, b: int) -> float:
    """Side a over side b: the median, since both met the same disturbances."""
    return statistics.median(times[a] / times[b] for times in rounds)


def difference(rounds: Sequence[Round], a: int, b: int) -> float:
    """Side a minus side b."""
    return _undisturbed(rounds, a) - _undisturbed(rounds, b)


def _undisturbed(rounds: Sequence[Round], side: int) -> float:
    """What a call takes when nobody else has the processor: the time below which a tenth of the rounds were."""
    return statistics.quantiles((times[side] for times in rounds), n=10)[0]
