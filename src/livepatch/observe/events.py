"""How a transaction tells of itself, to whoever keeps a record of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from livepatch.attach.client import Client
from livepatch.attach.processes import Process
from livepatch.core.model import LivepatchError

#: The processes are reached, and nothing was asked of them.
REACHED = "reached"
#: The processes are about to be told to begin; an observer that raises LivepatchError prevents it.
BEGIN = "begin"
#: The disabled patch is about to be forgotten in the processes; the same.
UNLOAD = "unload"
#: The processes have said how far they are.
LOOK = "look"
#: It takes longer than the user wants to wait.
STALL = "stall"
#: The processes are about to be brought back.
BACK = "back"
#: The remaining tasks are about to be moved by force.
FORCE = "force"
#: The transaction is over, or given up.
END = "end"


class Seen(NamedTuple):
    """A process of a transaction, as it was. `started` is when it was, in ticks since the system was started; `state`
    what the agent said of the patch, None if it is not there; `outcome` a word."""

    process: Process
    started: int
    born: bool
    silent: bool
    outcome: str
    state: dict[str, Any] | None
    error: LivepatchError | None
    before: list[dict[str, Any]]
    client: Client | None

    @property
    def pid(self) -> int:
        """Its number, as the caller sees it."""
        return self.process.pid


class Event(NamedTuple):
    """One of the above, `at` so many seconds of the monotonic clock.

    `operation` is what is done: "load", "disable", "enable", "force" or "unload". `params` are what every process is
    asked with, `enabled` is what the patch is to be in the end, and `returning` says that this is the way back.
    """

    kind: str
    at: float
    operation: str
    patch: str
    params: dict[str, Any]
    enabled: bool
    returning: bool
    processes: list[Seen]
    error: BaseException | None = None


Observer = Callable[[Event], None]
