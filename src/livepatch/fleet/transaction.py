"""The same operation in several processes: in all of them, or in none.

First each is asked whether it can be done there, and one refusal ends it with nothing touched. Then it begins in
all of them, and they are watched until every transition is over. Whoever stalls or refuses after all, or is not
waited for any longer, has all the others brought back as well. A process that ends leaves, and holds nobody up.

**Who is born in the middle.** A fork of a process that has the patch has it, too, at the same point of the same
transition; one that was forked before, or was spawned and begins from nothing, has not. So when the last process
has begun, the selection is looked at once more, and once more after whoever was found then has begun, until a look
finds nobody. What a process forks after that comes from a patched process. What is spawned after that is not caught.

A worker is there for a while before it has imported what the patch changes. If its parent has, or other children of
that, it is waited for; else it is none of our business, as the process of gunicorn is that imports no application.

Where processes are spawned all the time, and each begins from nothing, there is no end of that: then the time runs out.

**Who has it already** is left alone, so that a command can be given once more for those that were replaced since.
Who has no agent has no patch, and is nobody's concern when one is taken back.

**The way back** is the agent's: reverse what is in transition, disable what has completed. What a cumulative patch has
replaced, and what has been disabled completely, is loaded again from the file that it came from.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from livepatch.attach.client import ANSWER_TIMEOUT, LOAD_TIMEOUT, Client
from livepatch.attach.processes import NoAccess, alive
from livepatch.core.model import LivepatchError
from livepatch.observe import events
from livepatch.observe.trail import Trail

from . import restore
from .members import CHILDHOOD, Member, Outcome, State, together
from .selection import Found, Selection

#: Seconds that all processes get to say how far they are; who has not said it is asked again.
_POLL = 2.0
#: Seconds that a worker may need until it has imported the application.
_IMPORTS = 20.0

Connect = Callable[[int], Client]


@dataclass
class Operation:
    """What is begun in every process: a method of the agent. `enabled` is what the patch is to be in the end; `name` is
    None as long as only the file knows it.
    """

    method: str
    enabled: bool
    name: str | None = None
    params: dict[str, Any] = field(default_factory=dict)

    @property
    def loads(self) -> bool:
        """It brings a patch, which is to be unloaded on the way back."""
        return self.method == "load"


class Refused(LivepatchError):
    """Some of several processes refuse, and none was touched. `errors` has a sentence of each."""

    def __init__(self, errors: dict[int, LivepatchError], members: list[Member]) -> None:
        number = next(iter(errors.values())).errno or errno.EINVAL
        super().__init__(number, f"{_of(len(errors), len(members))} refused, so nothing was changed in any of them.")
        self.errors = errors
        self.members = members


class Transaction:
    """One operation in the processes of a selection. `members` are all that were ever part of it, `observers` are told
    of it; the first of them writes the audit record.

    Used as a context it lets go of the connections at its end.
    """

    def __init__(self, selection: Selection, operation: Operation, connect: Connect = Client) -> None:
        self.selection = selection
        self.operation = operation
        self.enabled = operation.enabled  # the goal, which the way back inverts
        self.members: list[Member] = []
        self.returning = False
        self.observers: list[events.Observer] = [Trail()]
        self._concluded = False
        self._unrestored: list[Member] = []
        self._connect = connect
        self._known: set[tuple[int, int]] = set()
        self._parents: set[int] = set()  # processes that the patch is for, and their parents

    def __enter__(self) -> Transaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        self.tell(events.END, self.members, error)
        for member in self.members:
            member.close()

    @property
    def name(self) -> str:
        """Of the patch."""
        return self.operation.name or ""

    @property
    def alone(self) -> bool:
        """There is one process only, so far."""
        return len(self.members) == 1

    def tell(self, kind: str, members: Iterable[Member], error: BaseException | None = None) -> None:
        """Tell the observers. Raises what they raise."""
        operation = self.operation.method
        if operation == "write_enabled":
            operation = "enable" if self.operation.enabled else "disable"
        seen = [member.seen() for member in members]
        told = (self.name, self.operation.params, self.enabled, self.returning, seen, error)
        for observer in self.observers:
            observer(events.Event(kind, time.monotonic(), operation, *told))

    # -- before anything is touched ----------------------------------------------------------------

    def gather(self) -> None:
        """Reach every process. Raises NoAccess or LivepatchError, of several processes Refused."""
        for found in self.selection.require():
            self._add(found, born=False)
        for member in self.members:
            try:
                self._reach(member, wait=True)
            except LivepatchError as error:
                member.refuse(error)
                if member.outcome is Outcome.ENDED and not member.found.named:
                    continue
                member.outcome = Outcome.REFUSED
        self.stop_if_refused()
        self.tell(events.REACHED, self.members)

    def check(self) -> None:
        """Ask every process whether the file fits. Raises LivepatchError, of several processes Refused."""
        self._check(self.waiting())
        self.stop_if_refused()
        there = [member for member in self.members if member.outcome is Outcome.UNTOUCHED]
        if there and not self.waiting():
            count = len(there)
            where = f"process {there[0].pid}" if count == 1 else f"all {count} processes"
            raise LivepatchError(
                errno.EEXIST, f"'{self.name}' is loaded already into {where} that it is for; nothing was done."
            )
        if not self._parents:
            nobody = NoAccess(errno.ESRCH, "All processes that were meant have ended.")
            raise next((member.error for member in self.members if member.error is not None), nobody)

    def waiting(self) -> list[Member]:
        """Those that take part and have not begun."""
        return [m for m in self.members if m.outcome is Outcome.PENDING and not m.begun and not m.born]

    def require_patch(self, *, running: bool = False) -> None:
        """The patch must be there already: leave those alone in which nothing is to be done, and refuse if that is so
        in all of them. With `running` it must be in transition. A single process says itself what is wrong with that.
        """
        patches = {member: _named(member.before, self.name) for member in self.waiting()}
        goals = {patch["enabled"] for patch in patches.values() if patch and patch["transition"]}
        if self.operation.method == "force" and goals:
            self.enabled = goals.pop()
            if goals:
                raise LivepatchError(
                    errno.EBUSY,
                    f"'{self.name}' is being patched in some of the processes and unpatched in others;"
                    " name those of one kind with --pid.",
                )
        if self.alone:
            return
        for member, patch in patches.items():
            if self.operation.method == "unload":
                self._require_unused(member, patch)
            else:
                self._require(member, patch, running)
        self.stop_if_refused()
        if not self.waiting():
            what = "in transition" if running else "loaded" if self.operation.method == "unload" else "enabled"
            raise LivepatchError(
                errno.ENOENT, f"'{self.name}' is {what} in none of the {len(patches)} processes; nothing was done."
            )

    def _require_unused(self, member: Member, patch: State | None) -> None:
        if patch is None and member.found.named:
            member.refuse(LivepatchError(errno.ENOENT, f"No patch '{self.name}' is loaded."))
        elif patch is None:
            member.outcome = Outcome.UNCONCERNED
        elif patch["enabled"] or patch["transition"]:
            member.refuse(LivepatchError(errno.EAGAIN, f"Patch '{self.name}' is in use; disable it first."))

    def _require(self, member: Member, patch: State | None, running: bool) -> None:
        busy = next((other for other in member.before if other["transition"] and other is not patch), None)
        if patch is None and member.found.named:
            member.refuse(LivepatchError(errno.ENOENT, f"No patch '{self.name}' is loaded."))
        elif patch is None:
            member.outcome = Outcome.UNCONCERNED
        elif busy is not None:
            member.refuse(
                LivepatchError(errno.EBUSY, f"A transition of '{busy['name']}' is running; wait for it or reverse it.")
            )
        elif running and not patch["enabled"] and not patch["transition"]:
            sentence = f"Patch '{self.name}' is disabled there and not in transition; unload it and load it anew."
            member.refuse(LivepatchError(errno.EINVAL, sentence))
        elif not patch["transition"] and (running or patch["enabled"] == self.enabled):
            member.outcome = Outcome.UNTOUCHED

    def ask_status(self, *, blockers: int) -> None:
        """Before it begins: the state of the patch, with up to so many of the tasks in the way."""
        answers = together(self.waiting(), "status", timeout=ANSWER_TIMEOUT, name=self.name, blockers=blockers)
        for member, answer in answers.items():
            if isinstance(answer, LivepatchError):
                member.refuse(answer)
            else:
                member.state = answer
        self.stop_if_refused()

    def stop_if_refused(self) -> None:
        """Raise what was refused; nothing has begun."""
        errors = {m.pid: m.error for m in self.members if m.outcome is Outcome.REFUSED and m.error is not None}
        for member in self.waiting():
            if errors:
                member.outcome = Outcome.UNTOUCHED
        if errors and self.alone:
            raise next(iter(errors.values()))
        if errors:
            raise Refused(errors, self.members)

    # -- the way there -----------------------------------------------------------------------------

    def begin(self) -> None:
        """Begin in every process. `refused` and `pending` tell what came of it."""
        self._start(self.waiting())

    def look(self, *, blockers: int = 0) -> None:
        """See how far they are, with up to so many of the tasks in the way of each; and who was born meanwhile."""
        watched = [member for member in self.members if member.in_transition or member.silent]
        self._note(together(watched, "status", timeout=_POLL, name=self.name, blockers=blockers))
        self.tell(events.LOOK, watched)
        if self.selection.grows:
            self._adopt()

    def over(self) -> bool:
        """Whether nothing is left to wait for. Looks for processes that were born since all others were done."""
        if self.pending():
            return False
        if self.selection.grows:
            self._adopt()
        return not self.pending()

    def pending(self) -> list[Member]:
        """Those in transition, those that do not answer, and those that were born and are not part of it yet."""
        return [m for m in self.members if m.in_transition or m.silent or _is_young(m)]

    def stalled(self) -> list[Member]:
        """Those that would have to be done by now: all that are pending, but for some that may still import it."""
        young = self.young()
        return [member for member in self.pending() if member not in young]

    def young(self) -> list[Member]:
        """Those that were born in the middle, have an agent, and have not imported what the patch changes."""
        return [member for member in self.members if _is_young(member) and member.client is not None]

    def refused(self) -> list[Member]:
        """Those that the others must be brought back for."""
        return [member for member in self.members if member.outcome is Outcome.REFUSED]

    def conclude(self) -> None:
        """All that could be done is done: note of every process what became of it. On the way back this also unloads
        what was brought, and loads again what is missing.
        """
        if self._concluded:
            return
        self._concluded = True
        if self.returning and self.operation.loads:
            self.unload(self.disabled())
        if self.returning:
            for member in self.members:
                self._restore(member)
        for member in self.members:
            if member.state is not None:
                settled = self._is_settled(member)
                good = Outcome.REVERSED if self.returning else Outcome.DONE
                member.outcome = good if settled else Outcome.LEFT
            elif _is_young(member) and member.client is not None:
                member.outcome = Outcome.UNCONCERNED
            elif member.outcome is Outcome.PENDING:
                member.outcome = Outcome.LEFT if member.silent else Outcome.UNTOUCHED

    def _restore(self, member: Member) -> None:
        """What cannot be reversed is loaded again; `restore.py` says what that is."""
        if member.state is None or member.in_transition or member.silent:
            return
        parents = [other for other in self.members if other.pid == member.found.parent and not other.born]
        before = parents[0].before if member.born and parents else member.before
        try:
            if self.operation.loads and member.state["replace"]:
                restore.replaced_again(member, before)
            elif self.enabled and not member.state["enabled"]:
                restore.disabled_again(member, self.name, before)
        except LivepatchError as error:
            member.error = error
            self._unrestored.append(member)
            if not alive(member.pid):
                member.end()

    def _is_settled(self, member: Member) -> bool:
        """It is as it is to be, or, on the way back, as it was."""
        if member.state is None or member.in_transition or member.silent or member in self._unrestored:
            return False
        again = member.state["name"] != self.name  # what was replaced is loaded again
        return bool(member.state["enabled"] == (True if again else self.enabled))

    def unload(self, members: list[Member]) -> list[Member]:
        """Forget the disabled patch in these, and in who was forked from them before that; those that refuse it, with
        their error.
        """
        if members:
            self.tell(events.UNLOAD, members)
        refused = []
        for member, answer in together(members, "unload", timeout=ANSWER_TIMEOUT, name=self.name).items():
            if isinstance(answer, LivepatchError) and member.outcome is not Outcome.ENDED:
                member.error = answer
                refused.append(member)
            if member.outcome is Outcome.PENDING:  # it is all that was to be done
                member.outcome = Outcome.LEFT if member in refused else Outcome.DONE
        if self.selection.grows:
            self._unload_forks()
        return refused

    def _unload_forks(self) -> None:
        for found in self.selection.find():
            if found.key not in self._known:
                fork = Member(found)
                try:
                    fork.reach(self._connect, wait=True)
                    patch = _named(fork.before, self.name)
                    if patch is not None and not patch["enabled"] and not patch["transition"]:
                        fork.connected.call("unload", name=self.name)
                except LivepatchError:
                    pass  # it has ended, or was spawned and has nothing of ours
                finally:
                    fork.close()

    def disabled(self) -> list[Member]:
        """Those in which the patch is disabled, and all tasks out of it."""
        return [m for m in self.members if m.state and not m.state["enabled"] and not m.in_transition and not m.silent]

    def overruled(self) -> list[Member]:
        """Those where somebody else has done the opposite meanwhile; they count as refused."""
        found = [m for m in self.members if m.state and not m.in_transition and m.state["enabled"] != self.enabled]
        for member in found:
            settled = "enabled" if member.state and member.state["enabled"] else "disabled"
            sentence = f"Somebody else reversed it meanwhile: '{self.name}' is {settled}."
            member.refuse(LivepatchError(errno.ECANCELED, sentence))
        return found

    # -- the way back ------------------------------------------------------------------------------

    def turn_back(self) -> None:
        """Bring back whatever has begun, in every process."""
        self.tell(events.BACK, self.members)
        self.returning = True
        self.enabled = not self.enabled
        for member in self.members:
            member.settled = None
        self._write([m for m in self.members if m.silent or (m.state and m.state["enabled"] != self.enabled)])

    def force(self) -> None:
        """Move the tasks that are left, wherever they are."""
        self.tell(events.FORCE, self.moving())
        self._note(together(self.moving(), "force", timeout=ANSWER_TIMEOUT, name=self.name))

    def moving(self) -> list[Member]:
        """Those in transition."""
        return [member for member in self.members if member.in_transition]

    def recover(self) -> None:
        """After an interruption: connect anew, since answers may be half read, and find out what has begun."""
        reached = [member for member in self.members if member.client is not None and member.outcome.is_open]
        for member in reached:
            member.reconnect()
        for member, listed in together([m for m in reached if m.outcome.is_open], "list", timeout=_POLL).items():
            if isinstance(listed, LivepatchError):
                continue
            old = {patch["name"] for patch in member.before}
            new = [patch["name"] for patch in listed if patch["name"] not in old]
            if self.operation.name is None and new:
                self.operation.name = new[0]
            member.state = _named(listed, self.name)

    # -- one step ----------------------------------------------------------------------------------

    def _add(self, found: Found, *, born: bool) -> None:
        self._known.add(found.key)
        self.members.append(Member(found, born=born))

    def _reach(self, member: Member, *, wait: bool) -> bool:
        """As `Member.reach`; but where there is no agent there is nothing to be taken back, and none is brought in."""
        if not (self.operation.loads or member.found.named or self.alone) and member.began_from_nothing():
            member.outcome = Outcome.UNCONCERNED
            return False
        return member.reach(self._connect, wait=wait)

    def _check(self, members: list[Member]) -> None:
        answers = together(members, "check", timeout=LOAD_TIMEOUT, **self.operation.params)
        for member, found in answers.items():
            error = _error(found)
            member.checked = found if isinstance(found, dict) else {}
            if error is None:
                self.operation.name = member.checked["name"]
                self._parents |= {member.found.parent, member.pid}
            elif not member.found.named and (patch := member.holds(self.operation.params)):
                # Whoever loads it once more means the others: a worker that was replaced, say.
                self.operation.name = patch["name"]
                self._parents |= {member.found.parent, member.pid}
                member.outcome = Outcome.UNTOUCHED
            elif member.outcome is not Outcome.ENDED:
                member.error = error
                if member.found.named or not has_none_of_it(found):
                    member.refuse(error)
                elif not member.born:
                    member.outcome = Outcome.UNCONCERNED
        for member in answers:  # it may only not have come so far
            if member.outcome is Outcome.UNCONCERNED and member.found.age() < CHILDHOOD and self._is_expected(member):
                member.outcome, member.born = Outcome.PENDING, True

    def _is_expected(self, member: Member) -> bool:
        """The patch is for its parent, or other children of that, so that it will likely import the same."""
        return member.found.parent in self._parents and member.found.age() < _IMPORTS

    def _start(self, members: list[Member]) -> None:
        self.tell(events.BEGIN, members)
        for member in members:
            member.begun = True
        self._note(together(members, self.operation.method, timeout=LOAD_TIMEOUT, **self.operation.params))
        self.tell(events.LOOK, members)

    def _write(self, members: list[Member]) -> None:
        value = "1" if self.enabled else "0"
        answers = together(members, "write_enabled", timeout=_POLL, name=self.name, value=value)
        late = [m for m, answer in answers.items() if isinstance(answer, LivepatchError) and m.outcome.is_open]
        for member in late:
            error = answers[member]
            assert isinstance(error, LivepatchError)
            member.error = error
        self._note({member: answer for member, answer in answers.items() if member not in late})
        # It may have been over just then. If it was not, its state says so in the end.
        self._note(together([m for m in late if not m.silent], "status", timeout=_POLL, name=self.name))

    def _note(self, answers: dict[Member, Any | LivepatchError]) -> None:
        for member, answer in answers.items():
            if not isinstance(answer, LivepatchError):
                member.state = answer
                if self.operation.name is None:
                    self.operation.name = answer["name"]
            elif member.outcome is Outcome.ENDED or (member.silent and member.state is not None):
                continue
            elif self.returning:
                member.error = answer
            else:
                member.refuse(answer)

    def _adopt(self) -> None:
        """Take in who was born since the last look."""
        self._note_settled()
        parents = {member.pid: member for member in self.members}
        for found in self.selection.find():
            if found.key not in self._known and not _inherits(found, parents.get(found.parent)):
                self._add(found, born=True)
        for member in [member for member in self.members if _is_young(member)]:
            try:
                self._join(member)
            except LivepatchError as error:
                member.refuse(error)
            if member.outcome is Outcome.ENDED:  # most are there for a moment only: nothing to tell of
                self.members.remove(member)

    def _note_settled(self) -> None:
        for member in self.members:
            if member.settled is None and member.outcome is Outcome.PENDING and self._is_settled(member):
                member.settled = time.clock_gettime(time.CLOCK_BOOTTIME)

    def _join(self, member: Member) -> None:
        if member.client is None and not self._reach(member, wait=False):
            if not alive(member.pid):
                member.end()
            return
        patch = _named(member.connected.call("list"), self.name)
        parent = next((other for other in self.members if other.pid == member.found.parent), None)
        if patch is not None and parent is not None and parent.outcome is Outcome.UNTOUCHED:
            member.outcome = Outcome.UNTOUCHED  # inherited from one that had it before
        elif patch is not None:  # inherited, with all that was under way
            member.state = patch
            if patch["enabled"] != self.enabled and (self.returning or not self.operation.loads):
                self._write([member])
        elif self.operation.loads and not self.returning:
            self._bring_to(member)
        else:
            member.outcome = Outcome.UNCONCERNED

    def _bring_to(self, member: Member) -> None:
        """Load the patch into one that began from nothing, or was forked before its parent had the patch."""
        member.error = None
        self._check([member])
        if not member.outcome.is_open:
            return
        if member.error is None:
            self._start([member])
        elif member.outcome is Outcome.PENDING and not self._is_expected(member):
            member.outcome = Outcome.UNCONCERNED


def _inherits(found: Found, parent: Member | None) -> bool:
    """It was forked from one that was done by then, and has become nothing else since: it needs no look. Some servers
    fork all the time, and whoever waited for each of those would never be done.
    """
    return (
        parent is not None
        and parent.settled is not None
        and found.born_after(parent.settled)
        and found.process.command == parent.found.process.command
    )


def _is_young(member: Member) -> bool:
    return member.born and member.outcome is Outcome.PENDING and member.state is None and not member.silent


def _named(patches: Iterable[State], name: str) -> State | None:
    return next((patch for patch in patches if patch["name"] == name), None)


def _error(answer: Any | LivepatchError) -> LivepatchError | None:
    """Why an answer to `check` is a refusal."""
    if isinstance(answer, LivepatchError):
        return answer
    described = answer.get("error")
    return None if described is None else LivepatchError(described["errno"], described["sentence"])


def has_none_of_it(answer: Any | LivepatchError) -> bool:
    """The process has imported no module that the patch changes."""
    return (
        isinstance(answer, dict)
        and answer.get("error") is not None
        and answer["error"]["errno"] == errno.ENOENT
        and not any(module["imported"] for module in answer["modules"])
    )


def _of(some: int, all_of_them: int) -> str:
    return f"{some} of {all_of_them} processes"


__all__ = ["NoAccess", "Operation", "Outcome", "Refused", "Transaction"]
