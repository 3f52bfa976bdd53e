"""An order of `top` for several processes: one transaction, as with the commands.

All of them are reached first, and asked once more what they have: if the patch is in one of them not as it was shown,
or one does not answer, nothing is done in any. If one refuses later, all go back. A transition that waits for tasks is
not waited for here: the screen shows it, and has keys for what can be done then.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Mapping, Sequence

from livepatch.core.model import LivepatchError
from livepatch.fleet.members import Outcome
from livepatch.fleet.selection import Selection
from livepatch.fleet.transaction import Operation, Refused, Transaction

from .watch import Order, Tell
from .words import state_of

#: Seconds in which the transitions may end before it is said that they go on; and between two looks.
_PATIENCE, _PAUSE = 3.0, 0.05

#: Of each process whether the patch is enabled there, and in transition.
Shown = Mapping[int, tuple[bool, bool]]


def named(pids: Sequence[int]) -> str:
    """Some processes, in words."""
    some = ", ".join(map(str, pids[:8])) + (" ..." if len(pids) > 8 else "")
    return f"process {some}" if len(pids) == 1 else f"{len(pids)} processes ({some})"


def carry_out(order: Order, shown: Shown, tell: Tell) -> None:
    """Do it in all of them or in none; `tell` is called with what became of it."""
    goal = order.enabled if order.value is None else order.value == "1"
    operation = Operation(order.method, order.method != "unload" and goal, order.name, order.params())
    try:
        with Transaction(Selection(pids=tuple(shown)), operation) as transaction:
            transaction.gather()
            _require_as_shown(transaction, order, shown)
            if order.method == "unload":
                _unload(transaction, order, tell)
            else:
                _begin(transaction, order, tell)
    except Refused as refused:
        for pid, error in refused.errors.items():
            tell(f"Process {pid}: {error}", False)
        tell(str(refused), False)
    except LivepatchError as error:
        tell(f"{str(error).rstrip('.')}, so nothing was done in any of {named(list(shown))}.", False)


def _require_as_shown(transaction: Transaction, order: Order, shown: Shown) -> None:
    for member in transaction.members:
        patch = next((patch for patch in member.before if patch["name"] == order.name), None)
        if patch is None or (patch["enabled"], patch["transition"]) != shown[member.pid]:
            now = "gone" if patch is None else state_of(patch)
            raise LivepatchError(errno.ESTALE, f"Process {member.pid}: '{order.name}' is {now} by now")


def _unload(transaction: Transaction, order: Order, tell: Tell) -> None:
    members = transaction.waiting()
    refused = transaction.unload(members)
    for member in refused:
        tell(f"Process {member.pid}: {member.error}", False)
    done = [member.pid for member in members if member not in refused]
    if done:
        tell(f"{named(done).capitalize()}: {order.done}", True)


def _begin(transaction: Transaction, order: Order, tell: Tell) -> None:
    transaction.begin()
    _wait(transaction)
    refused = transaction.refused()
    if refused:
        transaction.turn_back()
        _wait(transaction)
    transaction.conclude()
    for member in transaction.members:
        if member.error is not None:
            tell(f"Process {member.pid}: {member.error}", False)
    if refused:
        tell(f"{len(refused)} of {named([m.pid for m in transaction.members])} refused, so all of them go back.", False)
        return
    there = [member.pid for member in transaction.members if member.outcome is not Outcome.ENDED]
    if there:
        tell(f"{named(there).capitalize()}: {order.done}", True)


def _wait(transaction: Transaction) -> None:
    deadline = time.monotonic() + _PATIENCE
    while transaction.pending() and time.monotonic() < deadline:
        if transaction.refused() and not transaction.returning:
            return
        time.sleep(_PAUSE)
        transaction.look()
