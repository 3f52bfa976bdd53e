"""What a call costs: of a patched function, of its hand-written replacement, and while a transition runs."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import livepatch as lp

from . import targets
from .measure import Row, caller, difference, in_turns, ratio

_COUNT = 20_000


def _rounds(quick: bool) -> int:
    return 40 if quick else 400


def from_source(quick: bool) -> list[Row]:
    """A function patched from source carries the new code itself."""
    target = targets.module(targets.SOURCE)
    native = targets.module(targets.newer(targets.SOURCE), "bench_native")
    twin = targets.module(targets.newer(targets.SOURCE), "bench_twin")
    patch = targets.patch(targets.SOURCE)
    lp.enable_patch(patch, timeout=60)
    assert target.f(1) == "new"
    sides = [caller(module.f, "1") for module in (target, native, twin)]
    rounds = in_turns(sides, count=_COUNT, rounds=_rounds(quick))
    targets.take_back(patch)
    found, noise = ratio(rounds, 0, 1), ratio(rounds, 2, 1)
    return [
        Row(
            "call of a function patched from source, after the transition / native",
            "≤ 1.02",
            f"{found:.3f} (native / native {noise:.3f})",
            found <= 1.02,
        )
    ]


def by_hand(quick: bool) -> list[Row]:
    """A replacement written by hand has globals of its own and is reached through a forwarder."""
    target = targets.module(targets.SOURCE)
    native = targets.module(targets.newer(targets.SOURCE), "bench_native")

    def f(a: Any, b: Any = 2) -> str:
        return "new"

    patch = lp.Patch("bench", [lp.Object(targets.NAME, [lp.Func("f", f)])])
    lp.enable_patch(patch, timeout=60)
    assert target.f(1) == "new"
    rounds = in_turns([caller(target.f, "1"), caller(native.f, "1")], count=_COUNT, rounds=_rounds(quick))
    targets.take_back(patch)
    found = difference(rounds, 0, 1)
    return [
        Row(
            "call of a hand-written replacement, after the transition",
            "≤ native + 60 ns",
            f"native + {found:.0f} ns",
            found <= 60,
        )
    ]


def in_transition(quick: bool) -> list[Row]:
    """While a transition runs every call asks which version its task is to use."""
    rows = []
    for label, inside in (("a thread", _in_thread), ("an asyncio task", _in_task)):
        for moved, reach in ((True, 250), (False, 600)):
            found = inside(moved, quick)
            state = "moved" if moved else "not yet moved"
            rows.append(
                Row(
                    f"call during a transition, in {label} that has {state}",
                    f"≤ native + {reach} ns",
                    f"native + {found:.0f} ns",
                    found <= reach,
                )
            )
    return rows


def _in_thread(moved: bool, quick: bool) -> float:
    target, patch, compare = _prepare(quick)

    def measure() -> float:
        with targets.held(target, patch):
            _until(lambda: target.f(1) == ("new" if moved else "old"))
            return compare()

    # From inside of `outer` a thread cannot move: it entered before the transition began.
    found: float = measure() if moved else target.outer(measure)
    targets.take_back(patch)
    return found


def _in_task(moved: bool, quick: bool) -> float:
    target, patch, compare = _prepare(quick)

    async def main() -> float:
        if not moved:
            found: float = target.outer(measure)
            return found
        with targets.held(target, patch):
            while target.f(1) != "new":
                await asyncio.sleep(0.001)
            return compare()

    def measure() -> float:
        with targets.held(target, patch):
            assert target.f(1) == "old"
            return compare()

    found = asyncio.run(main())
    targets.take_back(patch)
    return found


def _prepare(quick: bool) -> Any:
    target = targets.module(targets.SOURCE)
    native = targets.module(targets.newer(targets.SOURCE), "bench_native")

    def compare() -> float:
        sides = [caller(module.f, "1") for module in (target, native)]
        return difference(in_turns(sides, count=_COUNT // 10, rounds=_rounds(quick)), 0, 1)

    return target, targets.patch(targets.SOURCE), compare


def _until(condition: Any) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, "the task did not reach the state that is to be measured"
        time.sleep(0.001)
