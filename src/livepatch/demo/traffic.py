"""What the load generator reports, kept with the time of every answer, and the log of the service's agent beside it.

The generator and this process read the same monotonic clock, so what was answered between two moments here can be
picked out: while nothing happened, and while a patch went in or out.
"""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from livepatch.attach.client import Client
from livepatch.core.model import LivepatchError

Span = tuple[float, float]


@dataclass(frozen=True)
class Latency:
    """How long answers took, in milliseconds."""

    answers: int
    median: float
    p99: float

    @classmethod
    def of(cls, milliseconds: Sequence[float]) -> Latency:
        found = sorted(milliseconds)
        if not found:
            return cls(0, 0.0, 0.0)
        return cls(len(found), found[len(found) // 2], found[int(len(found) * 0.99)])


class Traffic:
    """Reads the reports of the load generator in a thread."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.answers: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.opened = 0
        self.orders = 0
        self.highest_order = 0
        self._process = process
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            report: dict[str, Any] = json.loads(line)
            self.failed += report["failed"]
            self.answers += [(when, latency) for when, latency in report["answered"]]
            self.opened = report["opened"]
            self.orders, self.highest_order = report["orders"], report["highest_order"]

    def finish(self) -> None:
        """Let the generator end, and read what it had still to say."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._thread.join(10.0)
        if self._process.wait(10.0):
            self.failed.append(f"the load generator ended with status {self._process.returncode}")

    def latency(self, spans: Sequence[Span]) -> Latency:
        """Of the answers that came in one of these spans."""
        return Latency.of([ms for when, ms in tuple(self.answers) if any(a <= when <= b for a, b in spans)])

    def recent(self) -> tuple[float, list[float]]:
        """Of the last five seconds: answers per second, and the slowest in each of twenty slices."""
        now = time.monotonic()
        slices = [0.0] * 20
        for when, ms in reversed(tuple(self.answers)):
            age = now - when
            if age >= 5.0:
                break
            place = 19 - int(age * 4)
            slices[place] = max(slices[place], ms)
        # The last second is not whole: reports come ten times a second.
        count = sum(1.2 <= now - when < 4.2 for when, _ in tuple(self.answers)[-10_000:])
        return count / 3, slices


class Transitions:
    """Follows the log of the service's agent: when transitions began and ended, and how many tasks they moved."""

    def __init__(self, pid: int) -> None:
        self.milliseconds: list[float] = []
        self.tasks = 0
        self._client = Client(pid)
        self._client.call("subscribe")
        self._ended = False
        self._begun: deque[float] = deque()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        while not self._ended:
            try:
                event = self._client.event(0.1)
            except (LivepatchError, OSError):
                return
            if event is None:
                continue
            told = event["params"]
            # When it was logged, if the agent says so; else when we heard of it.
            now = told.get("time", time.monotonic())
            if event["method"] == "transition":
                self.tasks = max(self.tasks, told.get("total", 0))
            elif event["method"] == "log" and told["line"].endswith(" transition"):
                if ": starting " in told["line"]:
                    self._begun.append(now)
            elif event["method"] == "log" and told["line"].endswith(" complete") and self._begun:
                self.milliseconds.append((now - self._begun.popleft()) * 1000)

    def wait_for(self, number: int) -> float:
        """The duration of the transition of this number, in milliseconds; the agent tells it right after its end."""
        deadline = time.monotonic() + 5.0
        while len(self.milliseconds) < number:
            if time.monotonic() > deadline:
                raise LivepatchError(0, "the agent of the demo's service did not report a transition.")
            time.sleep(0.01)
        return self.milliseconds[number - 1]

    def stop(self) -> None:
        self._ended = True
        self._thread.join(5.0)
        self._client.close()
