"""Wait until a transaction is over, and see to it that it ends as the user wants.

A transition may take for ever: a thread that never leaves a patched function cannot be moved. So waiting
has a limit, and what then happens is the user's choice: go back (the default: nothing half-done stays
behind), leave it running, or force it. The same way back is taken if one of several processes refuses, and on Ctrl-C
(and when the terminal goes away); a second Ctrl-C leaves at once. Whatever happens, the last words say in which state
the processes are.
"""

from __future__ import annotations

import errno
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from livepatch.attach.processes import NoAccess
from livepatch.core.model import LivepatchError
from livepatch.fleet.members import Member, Outcome
from livepatch.fleet.transaction import Transaction
from livepatch.observe.events import STALL
from livepatch.screens import words
from livepatch.screens.words import task_rows, warning

from .common import DONE, INTERRUPTED, REFUSED, STALLED, describe, output
from .progress import progress

State = dict[str, Any]
#: Asks whether the tasks that are left shall be forced; what it returns is done.
Confirm = Callable[[str], bool]

#: How many of the tasks that hold a transition up are asked for, and how many of them are named in lines. On a terminal
#: those that are alike are told of together, so all of them are.
NAMED, _LINES = 20, 5
#: Seconds between two looks, at first and at most, and between two that name who is in the way.
_FIRST_PAUSE, _LONGEST_PAUSE, _NAMING_PAUSE = 0.005, 0.1, 0.5
#: Seconds that the end of a stall is waited for at least, however few the way there was given: a process that is only
#: slow is back by then, and not said to have been left in the middle.
_AFTERWARDS = 5.0


class Settling:
    """One transaction on its way to an end. `stalled` is what was done if it did not get there by itself ("reversed",
    "kept", "forced", "left"; "completed" if it was over just then), `blocking` who stood in the way then, by process.
    """

    def __init__(self, transaction: Transaction, *, timeout: float, on_stall: str, confirm: Confirm) -> None:
        self.transaction = transaction
        self.stalled: str | None = None
        self.blocking: dict[Member, list[State]] = {}
        self._failed = False
        self._timeout = timeout
        self._on_stall = on_stall
        self._confirm = confirm

    def run(self) -> int:
        """Begin it, and wait for its end; the exit status.

        Of one process raises LivepatchError if it refuses, or somebody else reversed it; NoAccess if all have ended.
        """
        transaction = self.transaction
        terminals = [number for number in (1, 2) if os.isatty(number)]
        with _interruptible():
            try:
                transaction.begin()
                self._wait()
                if transaction.stalled() and not transaction.refused():
                    self._stall()
                elif transaction.overruled() or transaction.refused():
                    self._refused()
                for member in transaction.young():
                    output.warn(
                        f"process {member.pid} was started meanwhile, has none of the modules that the patch changes"
                        f" so far, and is not patched; load it with --pid {member.pid} when it has."
                    )
                transaction.conclude()
            except LivepatchError:
                raise
            except (KeyboardInterrupt, Exception) as end:  # also our own: it is not to be left half-way for that
                closed = _silenced(terminals)
                self._interrupted()
                if not closed and not isinstance(end, KeyboardInterrupt):
                    raise
                return INTERRUPTED
        if all(member.outcome is Outcome.ENDED for member in transaction.members):
            raise transaction.members[0].error or NoAccess(errno.ESRCH, "All processes have ended.")
        if self.stalled:
            return STALLED
        return REFUSED if self._failed else DONE

    def document(self) -> State:
        """What a program is told: of one process its state, of several `processes`, with the outcome of each."""
        transaction = self.transaction
        processes = []
        for member in transaction.members:
            entry: State = {"pid": member.pid, "outcome": member.outcome.value, "born": member.born}
            entry |= member.state or {}
            if "instances" in member.checked:
                entry["instances"] = member.checked["instances"]
            if self.stalled:
                entry |= {"stalled": self.stalled, "blocking": self.blocking.get(member, [])}
            if member.error is not None:
                entry["error"] = describe(member.error.errno or 0, str(member.error))
            processes.append(entry)
        whole: State = {"name": transaction.name, "stalled": self.stalled, "processes": processes}
        if transaction.alone:
            whole |= processes[0]
        return whole

    # -- waiting -----------------------------------------------------------------------------------

    def _wait(self, at_least: float = 0.0) -> None:
        """Look until it is over, one refuses, or the time is up."""
        transaction, timeout = self.transaction, max(self._timeout, at_least)
        begun = time.monotonic()
        pause, name_at = _FIRST_PAUSE, begun + _NAMING_PAUSE
        warned: set[tuple[int, str]] = set()
        blocking: dict[Member, list[State]] = {}
        with progress(timeout) as show:
            while not transaction.refused() or transaction.returning:
                if transaction.over() or (left := begun + timeout - time.monotonic()) <= 0:
                    return
                show(transaction, blocking)
                time.sleep(min(pause, left))
                pause = min(pause * 2, _LONGEST_PAUSE)
                asked = time.monotonic()
                naming = asked >= name_at
                transaction.look(blockers=NAMED if naming else 0)
                if naming:  # every task is looked at for that: never more than a tenth of the targets' time
                    name_at = time.monotonic() + max(_NAMING_PAUSE, 10 * (time.monotonic() - asked))
                    blocking = {member: member.blocking() for member in transaction.moving()}
                    for member, tasks in blocking.items():
                        for task in tasks:
                            if task["stuck"] and (member.pid, task["ident"]) not in warned:
                                warned.add((member.pid, task["ident"]))
                                output.warn(self._of(member) + warning(task))

    # -- other ends --------------------------------------------------------------------------------

    def _stall(self) -> None:
        transaction = self.transaction
        transaction.look(blockers=NAMED)
        stalled = transaction.stalled()
        if not stalled:  # it was over just now, after all
            return
        direction = "Patching" if transaction.enabled else "Unpatching"
        said = f"{direction} '{transaction.name}' did not complete within {self._timeout:g} s"
        if transaction.alone:
            (member,) = stalled
            output.warn(f"{said}: {_waits(member)}.")
            self._name_blockers(member)
        else:
            output.warn(f"{said} in {len(stalled)} of {len(transaction.members)} processes:")
            for member in stalled:
                output.warn(f"process {member.pid}: {_waits(member)}")
                self._name_blockers(member)
        self.blocking = {member: member.blocking() for member in stalled}
        transaction.tell(STALL, stalled)
        if self._on_stall == "force" and not self._confirm(consequence(transaction)):
            self._on_stall = "reverse"
        if self._on_stall == "reverse":
            self._go_back()
            self.stalled = "reversed"
        elif self._on_stall == "force":
            self._force()
            self.stalled = "forced"
        else:
            pids = " ".join(f"--pid {member.pid}" for member in transaction.members if member.state)
            verb = "disable" if transaction.enabled else "enable"
            output.warn(
                f"The transition goes on: `livepatch status {pids}` shows it, `livepatch"
                f" {verb} {transaction.name} {pids}` takes it back."
            )
            self.stalled = "kept"

    def _force(self) -> None:
        transaction = self.transaction
        transaction.force()
        self._wait(_AFTERWARDS)
        goal = "enabled" if transaction.enabled else "disabled"
        never = any(member.state and member.state["forced"] for member in transaction.members)
        output.warn(
            f"The remaining tasks were forced: '{transaction.name}' is {goal}, and what they are in now goes on in the"
            " other version." + (f" '{transaction.name}' can never be unloaded." if never else "")
        )

    def _refused(self) -> None:
        """One of several does not take part: then nobody does."""
        transaction = self.transaction
        refused = transaction.refused()
        if transaction.alone:
            (member,) = refused
            assert member.error is not None
            if not member.silent:
                raise member.error
            output.warn(str(member.error))  # it has been asked, and will do it when it goes on
            self.stalled, member.outcome = "left", Outcome.LEFT
            return
        self._failed = True
        for member in refused:
            output.warn(f"process {member.pid}: {member.error}")
        output.warn(f"{len(refused)} of {len(transaction.members)} processes refused, so all of them go back.")
        self._go_back()

    def _go_back(self) -> None:
        """Bring all processes back, wait for that, and say what came of it."""
        transaction = self.transaction
        if transaction.alone and not transaction.moving() and not transaction.members[0].silent:
            output.warn(f"It was over just then: '{transaction.name}' is {_settled(transaction.members[0])}.")
            return
        transaction.turn_back()
        self._wait(_AFTERWARDS)
        if transaction.pending():
            transaction.look(blockers=NAMED)
        transaction.conclude()
        left = [member for member in transaction.members if member.outcome is Outcome.LEFT]
        for member in left:
            self._say_left(member)
        name, everywhere = transaction.name, "" if transaction.alone else " everywhere"
        if left:
            return
        if transaction.enabled:
            output.warn(f"It was taken back{everywhere}: '{name}' stays enabled.")
        else:
            output.warn(f"It was taken back{everywhere}: nothing of '{name}' is patched.")

    def _say_left(self, member: Member) -> None:
        """One that is not back."""
        name, shows = self.transaction.name, f"`livepatch status --pid {member.pid}` shows it"
        if member.silent:
            output.warn(f"{self._of(member)}It does not answer, and will go back when it does; {shows}.")
        elif member.in_transition:
            output.warn(f"{self._of(member)}It is going back, but {_left(member)} have not yet; {shows}.")
            self._name_blockers(member)
        elif self.transaction.operation.loads:
            output.warn(
                f"{self._of(member)}Nothing of '{name}' is left, but what it replaced is not back: {member.error}"
            )
        else:
            why = f" ({member.error})" if member.error is not None else ""
            output.warn(f"{self._of(member)}'{name}' stays {_settled(member)}{why}.")

    def _interrupted(self) -> None:
        """Ctrl-C: go back; again: leave it as it is."""
        transaction = self.transaction
        try:
            output.warn("Interrupted; taking the patch back as it was (once more to leave it as it is).")
            transaction.recover()
            known = [member for member in transaction.members if member.state is not None or member.silent]
            there = [m for m in known if m.state and not m.in_transition and m.state["enabled"] == transaction.enabled]
            if not [m for m in known if m.silent or m.in_transition or m in there]:
                output.warn("Nothing had begun yet; nothing was changed.")
            elif len(there) == len([m for m in transaction.members if m.outcome.is_open]):
                output.warn(f"It was over already: '{transaction.name}' is {_settled(there[0])}.")
                self.stalled = "completed"
            else:
                self._go_back()
                self.stalled = "reversed"
            transaction.conclude()
        except KeyboardInterrupt:
            pids = " ".join(f"--pid {member.pid}" for member in transaction.members)
            output.warn(f"Left as it is, perhaps in transition; `livepatch status {pids}` shows it.")
            self.stalled = "left"

    # -- words -------------------------------------------------------------------------------------

    def _of(self, member: Member) -> str:
        return "" if self.transaction.alone else f"process {member.pid}: "

    def _name_blockers(self, member: Member) -> None:
        blocking = member.blocking()
        said = name_blockers(blocking, lambda line: output.warn(f"  {line}"))
        more = member.state["left"] - said if member.state else 0
        if more > 0 and blocking:
            output.warn(f"  and {more} more")


def name_blockers(blocking: list[State], say: Callable[[str], None], most: int | None = _LINES) -> int:
    """Tell who is in the way, on a terminal all of them, else `say` up to so many; how many were told of."""
    if sys.stderr.isatty() and blocking:
        from livepatch.screens import draw

        draw.console(stderr=True).print(draw.blockers(blocking))
        return len(blocking)
    said = blocking[:most]
    for task, (kind, name, where) in zip(said, task_rows(said), strict=True):
        say(f"{kind} {name}: {where}")
        if task["hint"]:
            say(f"  {task['hint']}")
    return len(said)


def consequence(transaction: Transaction) -> str:
    """What force would mean, to be confirmed."""
    moving = transaction.moving()
    left = None if transaction.alone else sum(member.state["left"] for member in moving if member.state)
    said = words.consequence(transaction.name, enabled=transaction.enabled, left=left, processes=len(moving))
    return f"{said} Do it?"


def never(question: str) -> bool:
    """Confirms nothing: for who does not force."""
    return False


def _waits(member: Member) -> str:
    """What it has not done in time."""
    if member.silent:
        return "it does not answer"
    if not member.in_transition:
        return "it was started meanwhile and has no agent yet"
    return f"{_left(member)} are still in code that it changes"


def _left(member: Member) -> str:
    assert member.state is not None
    return f"{member.state['left']} of {member.state['total']} tasks"


def _settled(member: Member) -> str:
    if member.state is None or member.in_transition:
        return "still in transition"
    return "enabled" if member.state["enabled"] else "disabled"


@contextmanager
def _interruptible() -> Iterator[None]:
    """A closed terminal or a `kill` end the command as Ctrl-C does: not without going back."""
    # One that is ignored stays so: nohup means it.
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ends:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)


def _silenced(terminals: list[int]) -> bool:
    """Whether one of these terminals was closed. Then each word for it is an error, which must not stop the way back:
    from now on they go nowhere.
    """
    gone = [number for number in terminals if not os.isatty(number)]
    if gone:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for number in gone:
            os.dup2(nowhere, number)
        os.close(nowhere)
    return bool(gone)
