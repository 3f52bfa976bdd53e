"""End one of the participants of an attach at an instant that nobody chose, many times.

`command`: the command is killed. `helper`: what it has started to trace the target. `target`: the target. `disk`:
nobody, but the file system of the target's /tmp is full from that instant on. The instants are spread evenly over the
time that an undisturbed attach takes; a kill that came too late is not counted.

Afterwards the target must be healthy, must not be traced by anybody, and must let the next attach in. Where the target
itself was killed, the command must end by itself, and nobody and no file of ours may be left.
"""

from __future__ import annotations

import os
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from tests.attach.victims import VICTIMS, Running

from livepatch.agent import places
from livepatch.attach import entry
from livepatch.core.model import LivepatchError

from .command import livepatch

KILLS = ("command", "helper", "target", "disk")

_AT_ONCE = 2

#: Seconds until the command must have ended, whatever happened: its own limit, and that of a busy machine.
_LIMIT = 60.0

#: A target whose /tmp is small and its own.
_SMALL_DISK = 'mount -t tmpfs -o size=4m,mode=1777 tmpfs /tmp && exec "$@"'


@dataclass(frozen=True)
class Outcome:
    """`said`: how the command ended. `problem`: what must not be, empty if all is well."""

    victim: str
    in_time: bool
    said: str
    problem: str


class _Command:
    """`livepatch attach`, as a process."""

    def __init__(self, pid: int) -> None:
        self.begun = time.monotonic()
        self.process = subprocess.Popen(
            livepatch("attach", pid),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def runs(self) -> bool:
        return self.process.poll() is None

    def children(self) -> list[int]:
        return [int(pid) for task in _tasks(self.process.pid) for pid in _words(f"{task}/children")]

    def end(self) -> str:
        """How it ended, and what it said."""
        try:
            _, errors = self.process.communicate(timeout=_LIMIT)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()
            return "hung"
        status = self.process.returncode
        return f"status {status}" if status <= 0 else f"status {status}: {errors.strip()}"


def kill(what: str, wanted: int, names: Sequence[str], target: Sequence[str], title: str) -> int:
    """Until so many kills came in time. 0 if nothing is wrong after any of them."""
    if what == "disk":
        target = ("unshare", "--mount", "sh", "-c", _SMALL_DISK, "sh", *target)
    found: list[Outcome] = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        span = statistics.median(pool.map(lambda name: _undisturbed(what, name, target), islice(cycle(names), 6)))
        print(f"kills are spread over {1000 * span:.0f} ms", file=sys.stderr, flush=True)
        victims = cycle(names)
        while sum(outcome.in_time for outcome in found) < wanted and len(found) < 4 * wanted:
            missing = wanted - sum(outcome.in_time for outcome in found)
            futures = [pool.submit(_one, what, name, target, span) for name in islice(victims, missing)]
            try:
                for future in as_completed(futures):
                    found.append(outcome := future.result())
                    if outcome.problem:
                        print(f"{outcome.victim}: {outcome.said}: {outcome.problem}", file=sys.stderr, flush=True)
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
    counted = [outcome for outcome in found if outcome.in_time]
    bad = [outcome for outcome in found if outcome.problem]
    print(f"{title}: {what} killed {len(counted)} times (and {len(found) - len(counted)} times too late)")
    for said, count in Counter(_without_numbers(outcome.said) for outcome in counted).most_common():
        print(f"  {count:4} times the command ended with {said}")
    print(f"  {len(bad)} of {len(found)} went wrong")
    return int(bool(bad) or len(counted) < wanted)


def _undisturbed(what: str, name: str, target: Sequence[str]) -> float:
    """Seconds that an attach takes; of the helper, those in which it is there."""
    with Running(VICTIMS[name], tuple(target)) as running:
        command = _Command(running.pid)
        begun = command.begun
        if what == "helper":
            _eventually(lambda: command.children() or not command.runs())
            begun = taken = time.monotonic()
            while command.runs():  # there may be several, one after the other
                taken = time.monotonic() if command.children() else taken
                time.sleep(0.001)
        else:
            command.process.wait()
            taken = time.monotonic()
        said = command.end()
        assert said == "status 0", said
    return taken - begun


def _one(what: str, name: str, target: Sequence[str], span: float) -> Outcome:
    with Running(VICTIMS[name], tuple(target)) as running:
        tmp = f"/proc/{running.pid}/root{places.directory_of(os.geteuid())}"
        command = _Command(running.pid)
        if what == "helper":
            _eventually(lambda: command.children() or not command.runs())
        instant = time.monotonic() + random.uniform(0, span)
        helpers = set()
        while time.monotonic() < instant:
            helpers.update(command.children())
            time.sleep(0.001)
        in_time = command.runs()
        if what == "command":
            command.process.kill()
        elif what == "helper":
            in_time = sum(_kill(pid) for pid in command.children()) > 0
        elif what == "target":
            running.process.kill()
            running.process.wait()
        else:
            _fill(running.pid)
        helpers.update(command.children())
        said = command.end()
        if what == "disk":
            os.unlink(f"/proc/{running.pid}/root/tmp/full")
        problem = _after_the_target(running, helpers, said) if what == "target" else _after(running)
        if said == "hung" or "Traceback" in said or said.count("\n"):
            problem = f"the command: {said}; {problem}"
        elif not problem and what != "target" and (left := _left(tmp, running.pid)) - {f"{running.pid}.sock"}:
            problem = f"left behind: {left}" if what == "disk" else ""
    return Outcome(name, in_time, said, problem)


def _after(running: Running) -> str:
    """What is wrong with the target, which must live on and let the next attach in."""
    try:
        entry.attach(running.pid, timeout=30).close()
    except LivepatchError as error:
        again = f"the next attach: {error}"
    else:
        again = ""
    fate, harm = running.verdict()
    return "; ".join(filter(None, (again, "" if fate == "healthy" else f"{fate}: {harm}")))


def _after_the_target(running: Running, helpers: set[int], said: str) -> str:
    """Who or what is left of an attach to a target that was killed.

    One that was attached to has a socket, and if its main thread has not come by since, a request that takes itself
    away when it does. Killed, it takes neither away; the next agent does.
    """
    if not _eventually(lambda: not any(map(_runs, helpers))):
        return "a helper runs for ever"
    left = _left(places.directory_of(os.geteuid()), running.pid) - {f"{running.pid}.sock"}
    if said == "status 0":
        left = {name for name in left if not name.endswith(".request.py")}
    return f"left behind: {left}" if left else ""


def _left(directory: str, pid: int) -> set[str]:
    with suppress(FileNotFoundError):
        return {name for name in os.listdir(directory) if name.startswith(f"{pid}.")}
    return set()


def _fill(pid: int) -> None:
    """Take all that is left of the file system."""
    with suppress(OSError), open(f"/proc/{pid}/root/tmp/full", "wb", buffering=0) as file:
        for size in (65536, 1):
            with suppress(OSError):
                while True:
                    file.write(bytes(size))


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def _tasks(pid: int) -> list[Path]:
    with suppress(OSError):
        return list(Path(f"/proc/{pid}/task").iterdir())
    return []


def _words(path: str) -> list[str]:
    with suppress(OSError):
        return Path(path).read_text().split()
    return []


def _eventually(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + _LIMIT
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.001)
    return True


def _without_numbers(text: str) -> str:
    """The sentence without the pid, so that equal ones are counted together."""
    head, _, tail = text.partition(": ")
    return (
        f"{head}: {' '.join('N' if word.strip('.,:;').isdigit() else word for word in tail.split())}" if tail else head
    )
