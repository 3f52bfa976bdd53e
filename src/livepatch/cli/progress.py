"""How waiting for a transition is shown: a bar on a terminal with those who hold it up, else a line now and then."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from livepatch.fleet.members import Member
from livepatch.fleet.transaction import Transaction
from livepatch.screens.words import task_rows

from .common import output

#: What is shown: how far the transaction is, and who stood in the way at the last look that asked for it.
Show = Callable[[Transaction, dict[Member, list[dict[str, Any]]]], None]

#: At how many places the slowest tasks are shown, and how many processes: they shall fit on a screen.
_PLACES, _PROCESSES = 4, 8


@contextmanager
def progress(timeout: float) -> Iterator[Show]:
    """To be called at every look, until so many seconds have passed."""
    if output.json or not sys.stderr.isatty():
        yield _lines()
        return
    bar = _Bar(timeout)
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
    """A bar of moved tasks and what it waits for, drawn once a transition takes long enough to be seen."""

    PATIENCE = 0.3

    def __init__(self, timeout: float) -> None:
        self._begun = time.monotonic()
        self._timeout = timeout
        self._tasks = _Tasks()
        self._live: Any = None

    def show(self, transaction: Transaction, blocking: dict[Member, list[dict[str, Any]]]) -> None:
        total, left = self._tasks.count(transaction)
        if self._live is None:
            if time.monotonic() - self._begun < self.PATIENCE:
                return
            from rich.live import Live

            from livepatch.screens import draw

            # Drawn at every look; more often there is nothing new.
            self._live = Live(console=draw.console(stderr=True), auto_refresh=False, transient=True)
            self._live.start()
        self._live.update(self._drawn(transaction, blocking, total, left), refresh=True)

    def stop(self) -> None:
        if self._live is not None:
            self._live.stop()

    def _drawn(
        self, transaction: Transaction, blocking: dict[Member, list[dict[str, Any]]], total: int, left: int
    ) -> Any:
        from rich.console import Group
        from rich.padding import Padding
        from rich.text import Text

        from livepatch.screens import draw

        seconds = int(time.monotonic() - self._begun)
        limit = f" of {self._timeout:g}" if self._timeout < 1e6 else ""
        several = not transaction.alone
        parts: list[Any] = [Text(_doing(transaction), style="bold")] if several else []
        what = "  all of them" if several else _doing(transaction)
        parts.append(draw.progress(f"{what} ", total, left, f"{seconds}{limit} s"))
        pending = transaction.pending()
        for member in pending[:_PROCESSES] if several else ():
            parts.append(draw.progress(f"  process {member.pid} ", *_of(member), _how(member)))
        if several and len(pending) > _PROCESSES:
            parts.append(Text(f"  and {len(pending) - _PROCESSES} more processes", style="dim"))
        for member, tasks in list(blocking.items())[:_PLACES]:
            if tasks:
                of = f" of process {member.pid}" if several else ""
                parts.append(Text(f"waiting for these tasks{of}:" if len(tasks) > 1 else f"waiting for this task{of}:"))
                places = max(1, _PLACES // len(blocking))
                parts.append(Padding(draw.blockers(tasks, most=places), (0, 0, 0, 2)))
        return Group(*parts)


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


def _of(member: Member) -> tuple[int, int]:
    return (member.state["total"], member.state["left"]) if member.state is not None else (0, 0)


def _how(member: Member) -> str:
    """What is to be known of a process that is not done, besides its tasks."""
    if member.silent:
        return "does not answer"
    return "" if member.in_transition else "was started meanwhile"


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
