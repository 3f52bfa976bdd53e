"""Which processes are meant: by number, as a tree, or by their command line.

A selection is looked at again while a transaction runs, because servers fork workers whenever they like. A process
is the same one as before if its number and the time of its start are; numbers are used again.

Parents are told from `/proc/PID/stat` of all processes and not from `children` of one: that file says of itself that it
is only right while nobody is forked. Who was forked before a look began is in that look. A process whose
parent has ended belongs to init, and to no tree any more, unless it was found before.
"""

from __future__ import annotations

import errno
import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from livepatch.attach.processes import NoAccess, Process, command_of, examine, require_python
from livepatch.core.model import LivepatchError

#: Of every process its parent, and when it was started, in ticks since the system was.
_Stats = dict[int, tuple[int, int]]
_TICKS = os.sysconf("SC_CLK_TCK")  # in a second
#: How multiprocessing starts the process that removes what others have left behind. It runs nobody's code.
_COUNTER = "from multiprocessing.resource_tracker import main"


@dataclass(frozen=True)
class Found:
    """A Python process of a selection. `named` says that its very number was given."""

    process: Process
    started: int
    parent: int
    named: bool

    @property
    def pid(self) -> int:
        """Its number, as the caller sees it."""
        return self.process.pid

    @property
    def key(self) -> tuple[int, int]:
        """What no other process has, before or after it."""
        return self.process.pid, self.started

    def age(self) -> float:
        """For how many seconds it has been there."""
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self.started / _TICKS

    def born_after(self, when: float) -> bool:
        """Whether it was certainly not there yet, so many seconds after the system was started."""
        return (self.started - 1) / _TICKS > when


@dataclass(frozen=True)
class Selection:
    """The processes `pids`, those of the `trees` (a process and all that descends from it), and those in whose command
    line one of the `names` is found, a regular expression as for `pgrep -f`.

    Of trees and names only Python processes count, and neither livepatch's own commands nor the process of
    multiprocessing that only counts resources.
    """

    pids: tuple[int, ...] = ()
    trees: tuple[int, ...] = ()
    names: tuple[re.Pattern[str], ...] = ()

    @property
    def grows(self) -> bool:
        """Whether processes that are born later may belong to it."""
        return bool(self.trees or self.names)

    def require(self) -> list[Found]:
        """The processes, parents first. Raises NoAccess if one that was given is none of ours, or none is found."""
        for pid in self.pids:
            require_python(pid)
        for pid in self.trees:
            examine(pid)
        found = self.find()
        if not found:
            words = [f"--tree {pid}" for pid in self.trees] + [f"--name '{name.pattern}'" for name in self.names]
            raise NoAccess(
                errno.ESRCH,
                f"There is no Python process for {' '.join(words)} that is yours to touch; `livepatch ps` lists them.",
            )
        return found

    def find(self) -> list[Found]:
        """The processes that there are now, parents first; who ends just now, or is not ours to touch, is not found."""
        stats = _stats()
        below = set(self._descendants(stats))
        found = {}
        for pid, (parent, started) in stats.items():
            named = pid in self.pids
            if not named and pid not in below and not self._has_name(pid):
                continue
            try:
                process = examine(pid)
            except LivepatchError:
                continue
            if process.python is not None and (named or not _is_ignored(process)):
                found[pid] = Found(process, started, parent, named)
        return _parents_first(found)

    def _descendants(self, stats: _Stats) -> Iterator[int]:
        children: dict[int, list[int]] = {}
        for pid, (parent, _) in stats.items():
            children.setdefault(parent, []).append(pid)
        waiting, seen = list(self.trees), set[int]()
        while waiting:
            pid = waiting.pop()
            if pid not in seen:
                seen.add(pid)
                yield pid
                waiting += children.get(pid, ())

    def _has_name(self, pid: int) -> bool:
        if not self.names:
            return False
        words = " ".join(command_of(pid))
        return any(name.search(words) for name in self.names)


def _stats() -> _Stats:
    """The parent and the time of the start of every process."""
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                # What is before the last parenthesis is the program's name, which may be anything.
                fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
            except OSError:
                continue
            found[int(name)] = int(fields[1]), int(fields[19])
    return found


def _parents_first(found: dict[int, Found]) -> list[Found]:
    def depth(each: Found | None) -> int:
        levels = 0
        while each is not None and levels <= len(found):
            levels, each = levels + 1, found.get(each.parent)
        return levels

    return sorted(found.values(), key=lambda each: (depth(each), each.pid))


def _is_ignored(process: Process) -> bool:
    """It is Python, but nobody means it: this process, other commands of livepatch, and multiprocessing's counter."""
    if process.pid == os.getpid() or any(_COUNTER in word for word in process.command):
        return True
    words = iter(process.command[1:])
    for word in words:
        if word == "-m":
            return next(words, "") == "livepatch"
        if word in ("-X", "-W"):
            next(words, "")
        elif not word.startswith("-") or word == "-c":
            return os.path.basename(word) == "livepatch"
    return False
