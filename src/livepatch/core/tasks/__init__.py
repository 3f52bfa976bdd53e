"""The kinds of tasks, one file each, behind the protocol `Kind` of `transition.py`.

A kind is in use when its library has been imported. Order matters: the first that knows the running task decides, and
threads, which always know, come last.
"""

from __future__ import annotations

from types import CodeType

from .. import blockers as words
from ..model import TaskStatus
from ..stacks import Footprint
from ..suspended import find, statuses_of
from ..transition import IDLE, Everything, Kind, Transition, View, exempt_threads, switch_lock
from . import asyncio, greenlet, threads, trio

#: All kinds known to this process; append before the last to add one.
kinds: list[Kind] = [asyncio.KIND, trio.KIND, greenlet.KIND, threads.KIND]


def exempt_thread(ident: int) -> None:
    """This thread is livepatch's own: it is no task, and runs the version of before the transition."""
    exempt_threads.add(ident)


def statuses(transition: Transition | None) -> list[TaskStatus]:
    """All tasks of the process, whether a transition runs or not, and what is suspended and on nobody's stack."""
    if transition is None:
        return [status for kind in kinds for status in kind.statuses(View())]
    with switch_lock:
        view = View(
            transition.footprint,
            transition.state_of,
            transition.pending,
            transition.calls,
            transition.boundary,
            transition.since,
        )
        suspended = transition.suspended.live()
    found = [status for kind in kinds for status in kind.statuses(view)]
    shown = {frame for status in found for frame in status.blocking}
    return found + _hidden(suspended, transition.initial.state, shown, transition.begun)


def blockers(footprint: Footprint, codes: list[CodeType]) -> list[TaskStatus]:
    """Who would keep a transition with this footprint from completing at once. `codes` may have suspended frames."""
    view = View(footprint, lambda task: IDLE, Everything())
    found = [status for kind in kinds for status in kind.statuses(view)]
    shown = {frame for status in found for frame in status.stack}
    return [status for status in found if status.blocking] + _hidden(find(codes), IDLE, shown)


def _hidden(suspended: list[object], state: int, shown: set[str], since: float | None = None) -> list[TaskStatus]:
    """What is suspended in frames that no task has shown."""
    found = zip(statuses_of(suspended, state), suspended, strict=True)
    return [words.suspended(status, thing, since) for status, thing in found if status.blocking[0] not in shown]
