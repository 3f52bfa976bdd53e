"""How long a transition takes past a thousand threads, and past a hundred thousand asyncio tasks."""

from __future__ import annotations

import asyncio
import itertools
import statistics
import threading
import time

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
    """The loop goes on meanwhile: a callback that calls itself notices for how long it was not called."""
    number = 10_000 if quick else 100_000
    targets.module(TEN_FUNCTIONS)
    patch = targets.patch(TEN_FUNCTIONS)
    beats: list[float] = []
    beating = True

    async def wait(event: asyncio.Event) -> None:
        await event.wait()

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
        event = asyncio.Event()
        tasks = [asyncio.create_task(wait(event)) for _ in range(number)]
        await asyncio.sleep(0.5)
        loop.call_soon(beat)
        found = await asyncio.to_thread(enable)
        beating = False
        event.set()
        await asyncio.gather(*tasks)
        return found

    loop: asyncio.AbstractEventLoop
    begun, listed, ended = asyncio.run(main())
    targets.take_back(patch)
    whole = ended - begun
    quiet = _longest_gap(beats, beats[0], begun)
    listing = _longest_gap(beats, begun, listed)
    stall = _longest_gap(beats, listed, ended)
    return [
        Row(
            f"enable past {number:,} suspended asyncio tasks",
            "≤ 2 s",
            f"{whole:.2f} s, {listed - begun:.2f} s of it to list them",
            whole <= 2 if number == 100_000 else None,
        ),
        Row(
            f"longest stall of that loop, after the listing of {number:,} tasks",
            "≤ 5 ms",
            f"{stall * 1000:.1f} ms (during the listing {listing * 1000:.0f} ms, before it {quiet * 1000:.1f} ms)",
            stall <= 0.005 if number == 100_000 else None,
        ),
    ]


def _longest_gap(beats: list[float], begun: float, ended: float) -> float:
    """The longest time without a beat, of those that reach into the given span."""
    pairs = itertools.pairwise(beats)
    return max((after - before for before, after in pairs if after > begun and before < ended), default=0.0)
