"""A report of one command: what became of the transition in every process, who moved when and how, who was in the way.

It listens to the transaction and asks the agents twice: before it begins, to record who moves, and at the end, for what
they have recorded. Both are extras: an agent that is older, or does not answer any more, has less on the page and
changes nothing. `page.py` makes the page.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple

from livepatch.core.model import LivepatchError

from . import trail
from .events import BACK, BEGIN, END, FORCE, LOOK, STALL, Event, Seen

#: Seconds that an agent may take for what is asked only for the report.
_PATIENCE = 2.0

#: What marks on the timeline are called.
_MARKS = {STALL: "stalled", BACK: "taken back", FORCE: "forced"}


class Blocker:
    """A task that was in the way, from the first look that has shown it to the last one."""

    def __init__(self, task: dict[str, Any], at: float) -> None:
        self.task = task
        self.first = at
        self.last = at


class Run(NamedTuple):
    """A transition of a process that is over: times are seconds of the monotonic clock."""

    direction: str
    outcome: str
    began: float
    ended: float
    total: int
    reversals: int
    moved: dict[str, int]
    moves: list[dict[str, Any]]


class Course:
    """What became of one process."""

    def __init__(self, seen: Seen) -> None:
        self.seen = seen
        self.begun: float | None = None
        self.left: list[tuple[float, int, int]] = []  # at, of so many tasks, that many had not moved
        self.blockers: dict[tuple[str, str], Blocker] = {}
        self.known: dict[float, Run] = {}  # by when it began
        self.moves: list[dict[str, Any]] = []  # of a transition that is still running
        self.log: list[str] = []
        self.before: list[str] = []
        self.recorded = False

    @property
    def runs(self) -> list[Run]:
        """The transitions that are over, in order."""
        return [self.known[began] for began in sorted(self.known)]

    @property
    def tasks(self) -> int:
        """So many had to move."""
        return max([run.total for run in self.runs] + [total for _, total, _ in self.left], default=0)


class Report:
    """An observer of one transaction."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        """`write` is given the page, and may raise OSError."""
        self._write = write
        self.begun = time.monotonic()
        self.when = time.time()
        self.ended = self.begun
        self.command = ["livepatch", *sys.argv[1:]]
        self.operation = self.patch = ""
        self.archive: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.courses: dict[tuple[int, int], Course] = {}
        self.marks: list[tuple[float, str]] = []

    def __call__(self, event: Event) -> None:
        self.operation, self.patch = event.operation, event.patch or self.patch
        for seen in event.processes:
            course = self.courses.setdefault((seen.pid, seen.started), Course(seen))
            course.seen = seen
            if event.kind == BEGIN:
                self._begin(course, event.at)
            elif event.kind in (LOOK, STALL):
                _look(course, event.at)
            elif event.kind == BACK:  # where it was over already, the way back is another transition
                self._collect(course, again=True)
        if event.kind in _MARKS:
            self.marks.append((event.at, _MARKS[event.kind]))
        elif event.kind == END:
            self._end(event)

    def _begin(self, course: Course, at: float) -> None:
        course.begun = at
        if course.seen.client is None:
            return
        with suppress(LivepatchError):
            course.before = course.seen.client.call("dmesg", timeout=_PATIENCE)
            course.seen.client.call("record", timeout=_PATIENCE)
            course.recorded = True

    def _end(self, event: Event) -> None:
        self.ended, self.error = event.at, event.error
        self.archive = trail.archive_of_params(event.params)
        for course in self.courses.values():
            self._collect(course)
        from .page import page  # at the very end: it keeps nothing waiting

        try:
            self._write(page(self).encode())
        except OSError as error:
            where = f"{error.filename}: " if error.filename else ""
            sys.stderr.write(f"livepatch: The report could not be written: {where}{error.strerror}.\n")

    def _collect(self, course: Course, *, again: bool = False) -> None:
        """What the agent has recorded so far; only of the last transition it still has the moves."""
        seen = course.seen
        if seen.client is None or seen.outcome == "ended" or seen.silent or not seen.client.connected:
            return
        ask = seen.client.call
        with suppress(LivepatchError):
            course.log = _new(course.before, ask("dmesg", timeout=_PATIENCE))
            history = ask("history", timeout=_PATIENCE)
            for over in history["transitions"]:
                run = Run(*(over[key] for key in Run._fields))
                ours = over["patch"] == self.patch and run.ended >= self.begun
                if ours and (run.moves or run.began not in course.known):
                    course.known[run.began] = run
            course.moves = history["running"]
            if again and not (seen.state and seen.state["transition"]):
                ask("record", timeout=_PATIENCE)


def _look(course: Course, at: float) -> None:
    state = course.seen.state
    if state is None or not state["transition"]:
        return
    if not course.left or course.left[-1][1:] != (state["total"], state["left"]):
        course.left.append((at, state["total"], state["left"]))
    for task in state.get("blocking", ()):
        known = course.blockers.setdefault((task["kind"], task["ident"]), Blocker(task, at))
        known.task, known.last = task, at


def _new(before: list[str], now: list[str]) -> list[str]:
    """The lines that were written since, of a log that forgets its oldest lines."""
    for gone in range(len(before) + 1):
        kept = before[gone:]
        if now[: len(kept)] == kept:
            return now[len(kept) :]
    return now
