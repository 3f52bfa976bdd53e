"""What a transition costs past a thousand threads, and past a hundred thousand asyncio tasks or a million."""

from __future__ import annotations

import asyncio
import gc
import itertools
import statistics
import threading
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import livepatch as lp

from . import targets
from .enable import TEN_FUNCTIONS, seconds_to_enable
from .measure import Row


def sleeping_threads(quick: bool) -> list[Row]:
    """Every thread has to be looked at; none is in the way."""
    targets.module(TEN_FUNCTIONS)
    wake, number, times = threading.Event(), 1000, []
    threads = [threading.Thread(target=wake.wait) for _ in range(number)]
    for thread in threads:
        thread.start()
    for _ in range(3 if quick else 20):
        patch = targets.patch(TEN_FUNCTIONS)
        times.append(seconds_to_enable(patch))
        targets.take_back(patch)
    wake.set()
    for thread in threads:
        thread.join()
    found = statistics.median(times) * 1000
    return [Row("enable past 1,000 sleeping threads", "≤ 100 ms", f"{found:.0f} ms", found <= 100)]


def suspended_tasks(quick: bool) -> list[Row]:
    """Ten functions that no task is in."""
    return _rows(10_000 if quick else 100_000, runs=1 if quick else 3)


def million_tasks(quick: bool) -> list[Row]:
    """The same with ten times as many: three gigabytes of tasks."""
    return _rows(1_000_000, runs=1)


def _rows(number: int, runs: int) -> list[Row]:
    crossings = [_cross(number) for _ in range(runs)]
    best = min(crossings, key=lambda crossing: crossing.stall)  # others on this machine make it longer, never shorter
    expected = 2 * number / 100_000
    return [
        Row(
            f"enable past {number:,} suspended asyncio tasks",
            f"≤ {expected:.0f} s",
            f"{best.whole:.2f} s, {best.listing:.2f} s of it to list them",
            best.whole <= expected if number >= 100_000 else None,
        ),
        Row(
            f"longest stall of that loop, after the listing of {number:,} tasks",
            "≤ 5 ms",
            f"{best.stall * 1000:.1f} ms (during the listing {best.listing_stall * 1000:.0f} ms,"
            f" before it {best.quiet * 1000:.1f} ms)",
            best.stall <= 0.005 if number >= 100_000 else None,
        ),
    ]


class _Crossing(NamedTuple):
    """One transition past many tasks, in seconds."""

    whole: float
    listing: float
    stall: float
    listing_stall: float
    quiet: float


def _cross(number: int) -> _Crossing:
    """The loop goes on meanwhile: a callback that calls itself notices for how long it was not called."""
    targets.module(TEN_FUNCTIONS)
    patch = targets.patch(TEN_FUNCTIONS)
    beats: list[float] = []
    beating = True

    def beat() -> None:
        beats.append(time.perf_counter())
        if beating:
            loop.call_soon(beat)

    def enable() -> tuple[float, float, float]:
        time.sleep(0.2)
        begun = time.perf_counter()
        lp.enable_patch(patch)
        listed = time.perf_counter()  # enabling returns when the tasks are listed and the first round is over
        assert lp.wait(patch.name, 120)
        return begun, listed, time.perf_counter()

    async def main() -> tuple[float, float, float]:
        nonlocal loop, beating
        loop = asyncio.get_running_loop()
        async with _suspended(number, asyncio.Event().wait):
            loop.call_soon(beat)
            found = await asyncio.to_thread(enable)
            beating = False
        return found

    loop: asyncio.AbstractEventLoop
    begun, listed, ended = asyncio.run(main())
    targets.take_back(patch)
    return _Crossing(
        ended - begun,
        listed - begun,
        _longest_gap(beats, listed, ended),
        _longest_gap(beats, begun, listed),
        _longest_gap(beats, beats[0], begun),
    )


@asynccontextmanager
async def _suspended(number: int, function: Callable[[], Coroutine[Any, Any, object]]) -> AsyncIterator[None]:
    """So many tasks that run a function and wait in it. What the collector makes of them is not to be measured."""
    gc.disable()
    tasks = [asyncio.create_task(function()) for _ in range(number)]
    await asyncio.sleep(0.5)
    gc.enable()
    yield
    gc.disable()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    gc.enable()


#: Tasks that are in the middle of what is patched: none of them can move before it is through.
_HANDLER = """
async def handle(gate):
    await gate.wait()
    return "old"
"""


def tasks_inside(quick: bool) -> list[Row]:
    """Every task is suspended in the patched function itself: what a server with open websockets has."""
    number = 2_000 if quick else 100_000
    target = targets.module(_HANDLER)
    patch = targets.patch(_HANDLER)
    beats: list[float] = []

    async def main() -> tuple[float, float]:
        beating, gate, loop = True, asyncio.Event(), asyncio.get_running_loop()

        def beat() -> None:
            beats.append(time.perf_counter())
            if beating:
                loop.call_soon(beat)

        async with _suspended(number, lambda: target.handle(gate)):
            await asyncio.to_thread(lp.enable_patch, patch)
            loop.call_soon(beat)
            begun = time.perf_counter()
            await asyncio.sleep(3)
            beating = False
            assert lp.patches()[0].left == number
            work = time.process_time()
            await asyncio.sleep(3)
            return begun, time.process_time() - work

    begun, work = asyncio.run(main())
    targets.take_back(patch)
    stall = _longest_gap(beats, begun, beats[-1])
    return [
        Row(
            f"longest stall of a loop with {number:,} tasks inside of what is patched, after the listing",
            "≤ 5 ms",
            f"{stall * 1000:.1f} ms; looking at them in rounds takes {work / 3 * 100:.0f}% of a processor",
            stall <= 0.005 if number >= 100_000 else None,
        )
    ]


def memory(quick: bool) -> list[Row]:
    """What a transition keeps for each asyncio task, while it runs and when it is over."""
    number = 2_000 if quick else 100_000
    target = targets.module(targets.SOURCE)
    patch = targets.patch(targets.SOURCE)

    async def main() -> tuple[int, int]:
        async with _suspended(number, asyncio.Event().wait):
            tracemalloc.start()
            with targets.held(target, patch):
                while lp.patches()[0].left > 2:
                    await asyncio.sleep(0.01)
                kept = tracemalloc.get_traced_memory()[0]
            assert await asyncio.to_thread(lp.wait, patch.name, 60)
            gc.collect()
            left = tracemalloc.get_traced_memory()[0]
            tracemalloc.stop()
            return kept, left

    kept, left = asyncio.run(main())
    targets.take_back(patch)
    return [
        Row(
            "memory of a transition, for each asyncio task that there is",
            "≤ 200 bytes, and 0 afterwards",
            f"{kept / number:.0f} bytes, {left / number:.0f} afterwards",
            kept / number <= 200 and left / number < 5 if number >= 100_000 else None,
        )
    ]


def _longest_gap(beats: list[float], begun: float, ended: float) -> float:
    """The longest time without a beat, of those that reach into the given span."""
    pairs = itertools.pairwise(beats)
    return max((after - before for before, after in pairs if after > begun and before < ended), default=0.0)
