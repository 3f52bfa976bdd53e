"""From the shell to patched, into processes that nobody prepared, while they idle and while they are busy."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .command import archive, cost, environment, livepatch, seconds
from .measure import Row

#: What the target does when it has said that it is ready. `service.answer` is what the patch changes.
_IDLE = "import select; select.epoll().poll()"
_LOOP = "while True: service.answer()"
_THREADS = """
import threading
def allocate():
    while True: [object() for _ in range(1000)]
for _ in range(4): threading.Thread(target=allocate, daemon=True).start()
allocate()
"""
_TARGETS = {
    "that idles": _IDLE,
    "whose main thread computes": _LOOP,
    "with five threads that allocate": _THREADS,
}


def attach(quick: bool) -> list[Row]:
    """`livepatch load` from its start to its end, beside one without an attach and the start of an interpreter."""
    rows = []
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = archive(folder)
        for which, does in _TARGETS.items():
            found, work, prepared, start = [], [], [], []
            for number in range(3 if quick else 15):
                with _target(folder, does) as pid:
                    wall, worked = cost(livepatch("load", file, "--pid", pid))
                    found.append(wall), work.append(worked)
                with _target(folder, does, *livepatch("run", "--")) as pid:
                    prepared.append(seconds(livepatch("load", file, "--pid", pid)))
                start.append(seconds([sys.executable, "-c", "pass"]))
                if number == 0:  # it compiles what later rounds find compiled
                    found.clear(), work.clear(), prepared.clear(), start.clear()
            middle, works, plain, least = (statistics.median(times) * 1000 for times in (found, work, prepared, start))
            rows.append(
                Row(
                    f"`livepatch load` from the shell into an unprepared process {which}, whole command",
                    "≤ 500 ms",
                    f"{middle:.0f} ms, {works:.0f} ms of the processor (a prepared one {plain:.0f} ms, an empty Python"
                    f" script {least:.0f} ms: {middle / least:.0f} times that)",
                    middle <= 500,
                )
            )
    return rows


@contextmanager
def _target(folder: Path, does: str, *prepared: str) -> Iterator[int]:
    program = f"import service; print('ready', flush=True)\n{does}"
    # Not of our own environment: nobody has installed livepatch beside a process that nobody has prepared.
    command = [*prepared, sys._base_executable, "-c", program]  # type: ignore[attr-defined]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, env=environment()) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(0.1)  # until it does what it does
            yield process.pid
        finally:
            process.kill()
