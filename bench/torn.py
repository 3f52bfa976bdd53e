"""Torn observations: calls that met the old version of one function and the new one of another.

Four threads and thirty asyncio tasks call f, which calls g, which calls h, as fast as they can, with a switch interval
of 20 µs, while a patch of all three goes in and out. Exchanging the functions one by one, as hot reloaders do,
goes through the same harness: if that tore nothing, the harness would be blind.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType

import livepatch as lp
from livepatch.core.codes import definitions

from . import targets
from .measure import Row

_THREADS, _TASKS, _BATCH = 4, 30, 200

#: f calls g, and g calls h.
IN_THREADS = """
def f(x):
    v = "old"
    return v, *g(x)
def g(x):
    for i in range(x % 9): pass
    return "old", h()
def h():
    return "old"
"""
_IN_TASKS = """
import asyncio
async def f(x):
    v = "old"
    if not x % 7: await asyncio.sleep(0)
    return v, *await g(x)
async def g(x):
    if not x % 11: await asyncio.sleep(0)
    return "old", h()
def h():
    return "old"
"""


class Count:
    """What was observed. Every worker adds to a list of its own."""

    def __init__(self) -> None:
        self.stop = False
        self.done: list[int] = []
        self.torn: list[int] = []

    def worker(self) -> int:
        self.done.append(0)
        self.torn.append(0)
        return len(self.done) - 1


def hammer_threads(target: ModuleType, count: Count) -> Iterator[None]:
    """Runs the workers between its two halves."""

    def work() -> None:
        me, done, torn = count.worker(), count.done, count.torn
        while not count.stop:
            for x in range(_BATCH):
                f, g, h = target.f(x)
                if f != g or g != h:
                    torn[me] += 1
            done[me] += _BATCH

    workers = [threading.Thread(target=work) for _ in range(_THREADS)]
    for worker in workers:
        worker.start()
    yield
    count.stop = True
    for worker in workers:
        worker.join()


def hammer_tasks(target: ModuleType, count: Count) -> Iterator[None]:
    """The same for the tasks of a loop in a thread of its own."""

    async def work() -> None:
        me, done, torn = count.worker(), count.done, count.torn
        while not count.stop:
            for x in range(_BATCH):
                f, g, h = await target.f(x)
                if f != g or g != h:
                    torn[me] += 1
            done[me] += _BATCH

    async def main() -> None:
        await asyncio.gather(*(work() for _ in range(_TASKS)))

    loop = threading.Thread(target=asyncio.run, args=(main(),))
    loop.start()
    yield
    count.stop = True
    loop.join()


@contextmanager
def _switching() -> Iterator[None]:
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        yield
    finally:
        sys.setswitchinterval(interval)


def _hammer(
    source: str, hammer: Callable[[ModuleType, Count], Iterator[None]], change: Callable[[ModuleType], None], calls: int
) -> tuple[int, int, int]:
    """Change the module back and forth until so many calls were made: calls, torn calls, changes."""
    target, count, changes = targets.module(source), Count(), 0
    with _switching(), contextmanager(hammer)(target, count):
        while sum(count.done) < calls:
            change(target)
            changes += 1
    return sum(count.done), sum(count.torn), changes


def _patched(source: str) -> Callable[[ModuleType], None]:
    def change(target: ModuleType) -> None:
        patch = targets.patch(source)
        lp.enable_patch(patch)
        targets.take_back(patch)
        threading.Event().wait(0.002)

    return change


def _naive(source: str) -> Callable[[ModuleType], None]:
    code = compile(targets.newer(source), "naive.py", "exec")
    new = {found.name: found.code for found in definitions(code)}

    def change(target: ModuleType) -> None:
        functions = [getattr(target, name) for name in new]
        old = [function.__code__ for function in functions]
        for codes in (list(new.values()), old):
            for function, code in zip(functions, codes, strict=True):
                function.__code__ = code
            threading.Event().wait(0.002)

    return change


def torn(quick: bool) -> list[Row]:
    """No call sees half of a patch."""
    wanted = 200_000 if quick else 10_000_000
    calls = torn_calls = changes = naive_torn = naive_calls = 0
    for source, hammer, share in ((IN_THREADS, hammer_threads, 0.7), (_IN_TASKS, hammer_tasks, 0.3)):
        done = _hammer(source, hammer, _patched(source), int(wanted * share))
        calls, torn_calls, changes = calls + done[0], torn_calls + done[1], changes + 2 * done[2]
        done = _hammer(source, hammer, _naive(source), wanted // 40)
        naive_calls, naive_torn = naive_calls + done[0], naive_torn + done[1]
    measured = (
        f"{torn_calls} of {calls:,} in {changes:,} transitions (exchanged naively: {naive_torn:,} of {naive_calls:,})"
    )
    enough = calls >= 10_000_000 and naive_torn > 0
    return [
        Row(
            "torn observations while patches go in and out",
            "0 of ≥ 10 million calls",
            measured,
            False if torn_calls else (True if enough else None),
        )
    ]
