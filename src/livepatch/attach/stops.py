"""Whether a process is stopped, by a signal, by who traces it, or with its container, so that nobody in it can answer.

Seen from outside. One look is not enough: whoever traces system calls, or limits a process's share of the processor,
stops and lets go all the time. So a process counts as stopped if all of its threads are, and none of them has run
between two looks.
"""

from __future__ import annotations

import os
import time

from livepatch.core.model import LivepatchError

from .processes import NoAccess, status

#: Seconds between the two looks.
_BETWEEN = 0.1
#: The states of threads that a signal has stopped, that a tracer has, and that are over.
_BY_SIGNAL, _BY_TRACER, _OVER = "T", "t", "ZX"
#: Where the control groups are, and what says of one whether it is frozen, in version 2 (also beside 1) and in 1.
_FROZEN = (
    ("", "/sys/fs/cgroup{}/cgroup.events", "frozen 1"),
    ("", "/sys/fs/cgroup/unified{}/cgroup.events", "frozen 1"),
    ("freezer", "/sys/fs/cgroup/freezer{}/freezer.state", "FROZEN"),
)
_SWITCHES = ("voluntary_ctxt_switches", "nonvoluntary_ctxt_switches")


#: How the sentence about a frozen process begins, and what lets it go on.
FROZEN = "Process {} is frozen with its container"
THAW = "`docker unpause`, `podman unpause`, or thaw its control group"


def frozen(pid: int) -> bool:
    """Whether its control group is, as that of a container after `docker pause`; False if that cannot be seen."""
    try:
        with open(f"/proc/{pid}/cgroup") as text:
            groups = [line.rstrip("\n").split(":", 2)[1:] for line in text]
    except OSError:
        return False
    for controllers, group in groups:
        for controller, place, words in _FROZEN:
            if controller in controllers.split(","):
                try:
                    with open(place.format(group.rstrip("/"))) as text:
                        if words in text.read().splitlines():
                            return True
                except OSError:
                    pass
    return False


def sentence(pid: int) -> str | None:
    """That it is stopped and what lets it go on; None if it runs, or is no more."""
    if frozen(pid):
        return f"{FROZEN.format(pid)} and does not answer; let it go on ({THAW})."
    before = _stand(pid)
    if before is None:
        return None
    time.sleep(_BETWEEN)
    if _stand(pid) != before:
        return None
    said = f"Process {pid} is stopped"
    if all(state == _BY_SIGNAL for _, state, _ in before):
        return f"{said} and does not answer; `kill -CONT {pid}` lets it go on."
    try:
        return f"{said} by {tracer(status(pid))}, which traces it, and does not answer; let it go on there."
    except NoAccess:
        return None


def tracer(fields: dict[str, str]) -> str:
    """Who traces, by what the kernel says of the traced."""
    pid = int(fields["TracerPid"])
    try:
        return f"process {pid} ({status(pid)['Name']})"
    except NoAccess:  # one of another pid namespace, or it has just ended
        return "another process"


def _stand(pid: int) -> list[tuple[str, str, tuple[str, ...]]] | None:
    """Of each thread that is not over its number, its state and how often it has been given up; None if one runs."""
    found = []
    try:
        # The main thread first: of nearly every process that is all that is looked at.
        numbers = sorted(os.listdir(f"/proc/{pid}/task"), key=lambda number: number != str(pid))
        for number in numbers:
            fields = status(int(number))
            state = fields["State"][:1]
            if state in _OVER:
                continue
            if state not in (_BY_SIGNAL, _BY_TRACER):
                return None
            found.append((number, state, tuple(fields[name] for name in _SWITCHES)))
    except (LivepatchError, OSError):  # it ends just now
        return None
    return found or None
