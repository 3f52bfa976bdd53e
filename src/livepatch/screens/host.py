"""The Python processes of a host, looked at without an end: who comes, who goes, and who has an agent.

Those that have one are watched, see `watch`. The others are read about in /proc, and never touched. One thread looks
for processes; who reads what it knows never waits for it.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import replace

from livepatch.attach import processes, way
from livepatch.attach.client import listens
from livepatch.core.model import LivepatchError
from livepatch.fleet.selection import Selection

from . import group
from .watch import ATTACHABLE, Order, View, Watch

#: Seconds between two looks at all processes, at least; a look that took long is not repeated for ten times as long.
_PERIOD, _TENTH = 1.0, 10
_ALL = Selection()


class Host:
    """The Python processes of a selection, of an empty one all.

    `notices` are sentences for the operator, each with whether it is good news. `looked` is set when all processes have
    been looked at once.
    """

    def __init__(self, selection: Selection = _ALL) -> None:
        self._selection = selection
        self.notices: deque[tuple[str, bool]] = deque()
        self.looked = threading.Event()
        self._watches: dict[int, Watch] = {}
        self._others: dict[int, View] = {}
        self._chosen: int | None = None
        self._over = threading.Event()
        threading.Thread(target=self._run, name="livepatch-top-host", daemon=True).start()

    def views(self, *, unprepared: bool = False) -> list[View]:
        """What is known of the processes, those with an agent first."""
        watched = [watch.view for _, watch in sorted(self._watches.copy().items())]
        return watched + ([view for _, view in sorted(self._others.copy().items())] if unprepared else [])

    def choose(self, pid: int | None) -> None:
        """Look at one process in detail, and at no other."""
        self._chosen = pid
        for watch in self._watches.copy().values():
            watch.chosen = watch.view.pid == pid

    def give(self, pid: int, order: Order) -> None:
        """Have an order carried out in a process; what becomes of it is among the `notices`."""
        watch = self._watches.get(pid)
        if watch is None:
            self._tell(f"Process {pid} has ended, so nothing was asked of it about '{order.name}'.", False)
        else:
            watch.give(order)

    def give_all(self, order: Order, shown: group.Shown) -> None:
        """The same in several processes, in all or in none."""
        threading.Thread(
            target=group.carry_out, args=(order, shown, self._tell), name="livepatch-top-group", daemon=True
        ).start()

    def descend(self, pid: int) -> set[int]:
        """A process and all that descend from it."""
        return {found.pid for found in Selection(trees=(pid,)).find()}

    def close(self) -> None:
        """Let all threads end."""
        self._over.set()
        for watch in self._watches.copy().values():
            watch.stop()

    def _tell(self, sentence: str, good: bool) -> None:
        self.notices.append((sentence, good))

    # -- the thread --------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._over.is_set():
            begun = time.monotonic()
            self._look()
            self.looked.set()
            self._over.wait(max(_PERIOD, _TENTH * (time.monotonic() - begun)))

    def _look(self) -> None:
        others = {}
        for pid, watch in self._watches.copy().items():
            if watch.ended:
                del self._watches[pid]
                if watch.view.patches and not processes.alive(pid):
                    self._tell(f"Process {pid} has ended.", False)
        for process in self._processes():
            if process.pid in self._watches:
                continue
            if process.open and listens(process):
                watch = Watch(process, self._tell)
                watch.chosen = process.pid == self._chosen
                self._watches[process.pid] = watch
            elif (view := _unprepared(process)) is not None:
                others[process.pid] = view
        self._others = others

    def _processes(self) -> Iterable[processes.Process]:
        if self._selection == _ALL:
            return processes.pythons()
        return sorted((found.process for found in self._selection.find()), key=lambda process: process.pid)


def _unprepared(process: processes.Process) -> View | None:
    """A process without an agent, and whether one could come; None if it has ended meanwhile."""
    view = View(process.pid, process.python or "?", process.brief, ATTACHABLE)
    try:
        way.into(process)
    except way.NoWay as error:
        return replace(view, agent=f"no: {error.short}", error=str(error))
    except LivepatchError:
        return None
    return view
