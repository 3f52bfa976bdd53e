"""How waiting for a transition is shown: a bar on a terminal, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from livepatch.fleet.members import Member
from livepatch.fleet.transaction import Transaction
from livepatch.fleet.words import task_rows

from .common import output

#: What is shown: how far the transaction is, and who stood in the way at the last look that asked for it.
Show = Callable[[Transaction, dict[Member, list[dict[str, Any]]]], None]


@contextmanager
def progress() -> Iterator[Show]:
    """To be called at every look."""
    if output.json or not sys.stderr.isatty():
        yield _lines()
        return
    bar = _Bar()
    try:
        yield bar.show
    finally:
        bar.stop()


def _lines() -> Show:
    last, said, tasks = "", time.monotonic(), _Tasks()

    def show(transaction: Transaction, blocking: dict[Member, list[dict[str, Any]]]) -> None:
        nonlocal last, said
        total, left = tasks.count(transaction)
        line = f"{_doing(transaction)}: {left} of {total} tasks left{_slowest(blocking)}"
        if line != last and time.monotonic() - said >= 1.0:
            last, said = line, time.monotonic()
            output.say(line)

    return show


class _Bar:
    """A bar of moved tasks, drawn once a transition takes long enough to be seen."""

    PATIENCE = 0.3

    def __init__(self) -> None:
        self._begun = time.monotonic()
        self._tasks = _Tasks()
        self._progress: Any = None
        self._task: Any = None

    def show(self, transaction: Transaction, blocking: dict[Member, list[dict[str, Any]]]) -> None:
        total, left = self._tasks.count(transaction)
        if self._progress is None:
            if time.monotonic() - self._begun < self.PATIENCE:
                return
            self._draw(transaction, total)
        self._progress.update(
            self._task,
            description=_doing(transaction),
            total=total,
            completed=total - left,
            waits=_slowest(blocking),
        )

    def stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()

    def _draw(self, transaction: Transaction, total: int) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=40 if transaction.alone else 20),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[waits]}", markup=False),
            console=Console(stderr=True),
            transient=True,
        )
        self._task = self._progress.add_task(_doing(transaction), total=total, waits="")
        self._progress.start()


class _Tasks:
    """All tasks that were to move, also in processes that are done, and those that have not."""

    def __init__(self) -> None:
        self._totals: dict[Member, int] = {}

    def count(self, transaction: Transaction) -> tuple[int, int]:
        left = 0
        for member in transaction.moving():
            if member.state is not None:
                self._totals[member] = max(member.state["total"], self._totals.get(member, 0))
                left += member.state["left"]
        return sum(self._totals.values()), left


def _doing(transaction: Transaction) -> str:
    said = f"{'patching' if transaction.enabled else 'unpatching'} '{transaction.name}'"
    if transaction.alone:
        return said
    return f"{said} in {len(transaction.members)} processes, {len(transaction.pending())} not done"


def _slowest(blocking: dict[Member, list[dict[str, Any]]]) -> str:
    for member, tasks in blocking.items():
        for kind, name, where in task_rows(tasks):
            process = f" of process {member.pid}" if len(blocking) > 1 else ""
            return f", waiting for {kind} {name}{process} in {where}"
    return ""
