"""The agent of this process, and what becomes of it in a fork.

Importing this installs the driver and the handling of forks; no thread runs and no descriptor is open until there is
something to do.
"""

from __future__ import annotations

import os

# Imported before anything is installed here: the core's handling of a fork must be the first to be registered.
from livepatch.core import fork as fork
from livepatch.core import originals, registry

from . import patchfile, startup
from .thread import Agent
from .turns import turns

_agent = Agent()


class _Driver:
    """Stands for whichever agent this process has now."""

    def wake(self) -> None:
        _agent.wake()


def start_agent(*, installed: bool = True) -> str:
    """Let administrators reach this process, and return the path of its socket; again: the same path.

    Only root and the user that the process runs as can connect. Patches that are `installed` on this machine or for
    this user are applied, each when the first of its modules is imported; see `startup`. Raises LivepatchError if
    there can be no socket, or if strict mode says that the process must not start because of a patch that is
    installed.
    """
    if installed:
        startup.begin(_driver.wake)
    return _agent.serve()


#: The process ends when its first thread does. A fork in another thread makes one where that is not so.
_first_ends = True
#: Threads other than the first that fork just now.
_others: set[int] = set()


def _before_fork() -> None:
    if originals.get_native_id() != os.getpid():
        _others.add(originals.get_ident())
    _agent.pause()


def _after_fork_in_parent() -> None:
    _others.discard(originals.get_ident())
    _agent.resume()


def _after_fork_in_child() -> None:
    global _agent, _first_ends
    parents, _agent = _agent, Agent()
    turns.start_over()
    parents.abandon()
    _agent.promise_again()
    patchfile.reading = False
    _first_ends = _first_ends and originals.get_ident() not in _others
    _others.clear()
    if not _first_ends:
        _agent.end_with_this_thread()
    if parents.serves():
        _agent.serve_soon()
    elif registry.next_round() is not None:
        _agent.wake()


_driver = _Driver()
registry.set_driver(_driver)
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
