"""Bringing back what cannot be reversed: a patch that was disabled completely, or that a cumulative one has replaced.

The kernel has no way back from either. The agent keeps the file that a patch came from as long as it is loaded,
also disabled; so it is loaded once more from that, as if somebody did it by hand.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterable

from livepatch.attach.client import LOAD_TIMEOUT, Client
from livepatch.core.model import LivepatchError

from .members import Member, State

#: Seconds that a patch gets to take effect again in a process; it goes on by itself after that.
_AGAIN = 5.0


def disabled_again(member: Member, name: str, before: Iterable[State]) -> None:
    """Load a patch that was disabled. Raises LivepatchError if newer ones would come to lie behind it, or it fails."""
    order = enabled(before)
    if name in order and order[-1] != name:
        raise LivepatchError(
            errno.EBUSY, f"newer patches lie in front of it, so it is not loaded again; '{order[-1]}' is the last"
        )
    member.state = _load_again(member.connected, name)


def replaced_again(member: Member, before: Iterable[State]) -> None:
    """Load what a cumulative patch had replaced, oldest first. Raises LivepatchError."""
    gone = {patch["name"] for patch in member.connected.call("list") if not patch["enabled"]}
    for name in enabled(before):
        if name in gone:
            member.state = _load_again(member.connected, name)


def enabled(patches: Iterable[State]) -> list[str]:
    """The names of those that are enabled, oldest first."""
    found = [patch for patch in patches if patch["enabled"]]
    return [patch["name"] for patch in sorted(found, key=lambda patch: int(patch["stack_order"]))]


def _load_again(client: Client, name: str) -> State:
    """Load a disabled patch from the file that it came from, and wait for that; its state."""
    content = client.call("file", name=name)
    client.call("unload", name=name)
    state: State = client.call("load", timeout=LOAD_TIMEOUT, **content)
    deadline = time.monotonic() + _AGAIN
    while state["transition"] and time.monotonic() < deadline:
        time.sleep(0.01)
        state = client.call("status", name=name)
    return state
