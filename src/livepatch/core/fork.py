"""What a forked child keeps: the patches, the state of the task that forked, and nothing half done.

The child is a copy of this process with one thread, the one that forks. What another thread was in the middle of is
never gone on with there: its locks stay held, what it was changing stays half changed. So a fork waits, with both of
our locks, until nobody is in the middle of anything. That must not become a reason for a program to hang:

* A callback may run for ever, or wait for the very thread that forks. It is not waited for (`Mutex.visit`). Its
  operation is not under way in the child, whoever was in it; it is taken back or completed there (`registry.py`). A
  child that a callback forks may well live on as a worker, and never return from the callback.
* The interpreter takes the global import lock for a fork, after all that is done here. A signal handler that interrupts
  an import holds that lock and may call a patched function, which wants the switch lock. So the order is import lock,
  then switch lock, and both are taken here.
* A signal handler may raise here, in the middle of waiting. The interpreter reports such an exception, forgets it, and
  forks all the same: hence the loop.

An asyncio or trio task is none in the child: its loop does not run there. What it was in the middle of is its thread's
now, and so is its state. Other threads do not exist, and a transition that was running goes on without them. Nothing
foreign is called in here, in the middle of a fork: callbacks are for the child's first round.
"""

from __future__ import annotations

import _imp
import os
from collections.abc import Hashable
from contextlib import suppress

from . import callbacks, journal, lists, log, originals, registry, suspended
from .tasks import kinds
from .transition import exempt_threads, switch_lock


class _Fork:
    """One fork that is under way: what its thread held already, and which task it is."""

    def __init__(self) -> None:
        self.held_mutex = lists.mutex.mine()
        self.held_switch = switch_lock._is_owned()
        self.importing = False
        self.forker: Hashable = None


#: By thread; several, if a signal handler forks while its thread is about to.
_forks: dict[int, list[_Fork]] = {}


def _before() -> None:
    fork = _Fork()
    _forks.setdefault(originals.get_ident(), []).append(fork)
    raised: BaseException | None = None
    while fork.forker is None:
        try:
            _take_locks(fork)
        except BaseException as error:
            raised = error
    if raised is not None:
        raise raised


def _take_locks(fork: _Fork) -> None:
    lists.mutex.visit()
    if not fork.importing:
        try:
            _imp.acquire_lock()  # cannot fail: what comes out of it is a signal handler's, and comes afterwards
        finally:
            fork.importing = True
    while not switch_lock._is_owned():
        switch_lock.acquire()
    for kind in kinds:
        kind.before_fork()
    transition = registry.running_transition()
    fork.forker = transition.current() if transition is not None else originals.get_ident()


def _end() -> _Fork | None:
    """The fork that this thread has just made; None if a signal handler kept `_before` from beginning."""
    here = _forks.get(originals.get_ident())
    if not here:
        return None
    fork = here.pop()
    if not here:
        del _forks[originals.get_ident()]
    if not fork.held_switch:
        switch_lock.release()
    with suppress(RuntimeError):
        _imp.release_lock()
    return fork


def _in_parent() -> None:
    fork = _end()
    if fork is not None and not fork.held_mutex:
        lists.mutex.leave()


def _in_child() -> None:
    for other in set(_forks) - {originals.get_ident()}:
        del _forks[other]
    exempt_threads.clear()
    journal.start_over()
    log.start_over()
    suspended.forked = True
    fork = _forks[originals.get_ident()][-1] if _forks else _Fork()
    transition = registry.running_transition()
    if transition is not None:
        transition.keep_only(fork.forker)
    else:
        for kind in kinds:
            kind.after_fork(())
    _end()
    if lists.mutex.rests():
        lists.start_over(callbacks.running)
    elif fork.held_mutex:
        lists.mutex.keep_only_current()
    else:
        lists.mutex.start_over()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
