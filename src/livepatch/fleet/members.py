"""The processes of a transaction, and how all of them are asked at once.

Each is somebody else's process. It may end at any time, which is nobody's fault and holds nobody up; it may be
stopped, or answer late, and then what it was asked still stands in its socket and is done when it goes on.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any

from livepatch.attach import prepare, stops
from livepatch.attach.client import Client, NotPrepared, listens
from livepatch.attach.processes import NoAccess, alive, examine
from livepatch.core.model import LivepatchError
from livepatch.observe.events import Seen

from .selection import Found

State = dict[str, Any]

#: Seconds in which a process that was just started may get its agent, if it is to get one by itself: importing it takes
#: a while where all are busy.
CHILDHOOD = 5.0
#: The kernel's PF_FORKNOEXEC, in the flags of /proc/PID/stat.
_FORKED_ONLY = 0x40


class Outcome(Enum):
    """What became of a process, for people and, as its value, for programs."""

    PENDING = "pending"
    DONE = "done"
    UNTOUCHED = "untouched"  # another refused, or it was as it was to be
    UNCONCERNED = "unconcerned"  # none of the modules that the patch changes is imported there
    REFUSED = "refused"
    ENDED = "ended"
    REVERSED = "reversed"
    LEFT = "left"  # not as it was, and not as it should be: its state says how it is

    @property
    def is_open(self) -> bool:
        """The process may still be asked, and be brought back."""
        return self not in (Outcome.ENDED, Outcome.UNCONCERNED, Outcome.UNTOUCHED)


class Member:
    """One process of a transaction: its connection, and what is known of the patch in it.

    `state` is the agent's last word on the patch, None if the patch is not loaded there. `silent` says that the agent
    has not answered the last question yet. `born` processes were not there when the transaction began. `before` are all
    patches of the process when it was reached, `checked` what it said of the file, `begun` that it was told to begin,
    `settled` when it was first seen to have got there, in seconds since the system was started.
    """

    def __init__(self, found: Found, *, born: bool = False) -> None:
        self.found = found
        self.born = born
        self.client: Client | None = None
        self.state: State | None = None
        self.before: list[State] = []
        self.checked: State = {}
        self.begun = False
        self.settled: float | None = None
        self.outcome = Outcome.PENDING
        self.error: LivepatchError | None = None
        self.silent = False

    @property
    def pid(self) -> int:
        """Its number, as the caller sees it."""
        return self.found.pid

    @property
    def connected(self) -> Client:
        """The connection of a process that was reached."""
        assert self.client is not None
        return self.client

    @property
    def in_transition(self) -> bool:
        """Whether its tasks are still moving, as far as it is known."""
        return self.state is not None and bool(self.state["transition"])

    def blocking(self) -> list[State]:
        """The tasks in the way, if they were asked for at the last look."""
        return list(self.state.get("blocking", ())) if self.state is not None else []

    def seen(self) -> Seen:
        """As it is now, for who keeps a record."""
        found, outcome = self.found, self.outcome.value
        told = (outcome, self.state, self.error, self.before, self.client)
        return Seen(found.process, found.started, self.born, self.silent, *told)

    def close(self) -> None:
        """Let go of the connection; the process goes on."""
        if self.client is not None:
            self.client.close()

    def end(self) -> None:
        """The process is no more."""
        self.close()
        self.silent = False
        self.state = None
        self.outcome = Outcome.ENDED

    def refuse(self, error: LivepatchError) -> None:
        """It does not take part, or not any more, for this reason; one that has ended has not refused."""
        self.error = error
        if not alive(self.pid):
            self.end()
        else:
            self.outcome = Outcome.REFUSED

    def reach(self, connect: Callable[[int], Client], *, wait: bool) -> bool:
        """Connect to its agent. False if it has none yet because it was only just started; with `wait`, wait for that.

        Raises what `connect` raises, and at once if it is stopped.
        """
        if stopped := stops.sentence(self.pid):
            raise LivepatchError(errno.ETIMEDOUT, stopped)
        while True:
            try:
                self.client = Client(self.pid)
            except NotPrepared:
                if self.found.age() > CHILDHOOD or not self._expects_agent():
                    self.client = connect(self.pid)
                elif wait:
                    time.sleep(0.01)
                    continue
                else:
                    return False
            self.before = self.client.call("list")
            return True

    def _expects_agent(self) -> bool:
        """Whether it will start one by itself, or was forked from one that has one. Whoever calls `start_agent()` later
        is not known, and finds that an agent is there.
        """
        if prepare.is_prepared(self.pid):
            return True
        try:
            return listens(examine(self.found.parent))
        except LivepatchError:
            return False

    def began_from_nothing(self) -> bool:
        """It has no agent, and not by chance: so no patch either.

        One that was forked and has executed no program since may have all the patches of its parent, and get its agent
        in a moment; one that was prepared gets one, too.
        """
        process = self.found.process
        if listens(process) or process.listens_unseen():
            return False
        grown = self.found.age() > CHILDHOOD
        return alive(self.pid) and (grown or (_has_executed(self.pid) and not prepare.is_prepared(self.pid)))

    def holds(self, params: dict[str, Any]) -> State | None:
        """The patch that came from this very file, if it is enabled in the process and nothing is under way with it."""
        for patch in self.before:
            if patch["enabled"] and not patch["transition"]:
                try:
                    if self.connected.call("file", name=patch["name"])["data"] == params["data"]:
                        return patch
                except LivepatchError:
                    pass  # one that came from no file
        return None

    def reconnect(self) -> None:
        """Forget what was asked, whose answers may be half read."""
        self.close()
        try:
            try:
                self.client = Client(self.pid)
            except LivepatchError as error:
                if error.errno != errno.ETIMEDOUT:
                    raise
                self.client, self.silent = Client.unheard(self.pid), True
        except LivepatchError as error:
            self.refuse(error)


def _has_executed(pid: int) -> bool:
    """Whether it is more than a fork: it has executed a program. False if the kernel does not say."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            flags = int(file.read().rpartition(b")")[2].split()[6])
    except (OSError, ValueError, IndexError):
        return False
    return flags != 0 and not flags & _FORKED_ONLY


def together(
    members: Iterable[Member], method: str, *, timeout: float, **params: Any
) -> dict[Member, Any | LivepatchError]:
    """Ask all of them the same thing, and wait for all answers: what each says, or its LivepatchError.

    `silent` is set for those that have not answered: after `timeout` seconds, or sooner if they are stopped.
    """
    questions, answers = {}, dict[Member, Any]()
    for member in members:
        try:
            questions[member] = member.connected.ask(method, **params)
        except LivepatchError as error:
            answers[member] = error
    begun = time.monotonic()
    for member, question in questions.items():
        try:
            answers[member] = member.connected.answer(question, timeout=timeout, begun=begun)
            member.silent = False
        except LivepatchError as error:
            answers[member] = error
            member.silent = error.errno == errno.ETIMEDOUT
    for member, answer in answers.items():
        if isinstance(answer, NoAccess) or (isinstance(answer, LivepatchError) and not alive(member.pid)):
            member.error = answer
            member.end()
    return answers
