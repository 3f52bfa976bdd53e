"""What a shadow variable costs: memory per object, and a lookup beside other ways to know something of an object."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

import livepatch as lp

from .measure import Row, expression, in_turns, ratio

_COUNT = 20_000
_OBJECTS = 50_000
_VARIABLES = 4


class _Parent:
    """Hashed and compared by identity, in C: the best that a WeakKeyDictionary can meet."""

    def __init__(self) -> None:
        self.data = 1


def shadow(quick: bool) -> list[Row]:
    """With many objects that have variables."""
    return [_lookup(quick), _memory()]


def _lookup(quick: bool) -> Row:
    parents = [_Parent() for _ in range(_OBJECTS)]
    for parent in parents:
        lp.shadow.alloc(parent, "id", _made)
    names = {"parent": parents[_OBJECTS // 2], "get": lp.shadow.get, "weak": _weak(parents)}
    sides = [expression(text, **names) for text in ("get(parent, 'id')", "weak[parent]", "parent.data")]
    rounds = in_turns(sides, count=_COUNT, rounds=40 if quick else 400)
    found = ratio(rounds, 0, 1)
    return Row(
        "lookup of a shadow variable / in a WeakKeyDictionary",
        "≤ 1.5",
        f"{found:.2f} (/ read of an attribute: {ratio(rounds, 0, 2):.0f})",
        found <= 1.5,
    )


def _memory() -> Row:
    def variables(count: int) -> Callable[[list[_Parent]], None]:
        def attach(parents: list[_Parent]) -> None:
            for parent in parents:
                for id in range(count):
                    lp.shadow.alloc(parent, id, _made)

        return attach

    first, several, weak = _bytes_each(variables(1)), _bytes_each(variables(_VARIABLES)), _bytes_each(_weak)
    return Row(
        "memory of an object's first shadow variable, without its data",
        "≤ 512 bytes",
        f"{first:.0f} bytes (of {_VARIABLES}: {several:.0f}; in a WeakKeyDictionary: {weak:.0f})",
        first <= 512,
    )


def _made(obj: object) -> int:
    return 1


def _weak(parents: list[_Parent]) -> WeakKeyDictionary[_Parent, int]:
    return WeakKeyDictionary((parent, 1) for parent in parents)  # type: ignore[arg-type]


def _bytes_each(attach: Callable[[list[_Parent]], Any]) -> float:
    """What is allocated, per object, while something is attached to each of many, and stays."""
    parents = [_Parent() for _ in range(_OBJECTS)]
    tracemalloc.start()
    kept = attach(parents)
    found = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del kept
    return found / _OBJECTS
