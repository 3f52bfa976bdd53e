"""The switch lock, and how tasks get past it.

The lock is never held on purpose while foreign code runs, but Python runs some wherever it likes: finalizers that the
collector finds, signal handlers, trace functions. Such a one may wait for a lock of the application, and the thread
that has that lock for the switch lock, in a trampoline. So tasks do not wait for ever (`promptly`): after a while they
go in without the lock, and say so first (`_intrude`). Each look of a checker is a vote, a dict in which the first one
decides, in one step: what the checker has seen of a task does not count any more once the task has intruded, and
if the checker has decided before, the task takes note. Hence the state of a transition must be in order at every
instant: for a signal handler in the middle of a line, and for an intruder from another thread.

A checker never intrudes. It has all the time there is, and nobody waits for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar, cast

from . import originals

#: Lock order: the registry's mutex, then this one.
switch_lock = originals.RLock()

#: Seconds that a task waits for it before it goes in without.
PATIENCE = 0.05

Method = TypeVar("Method", bound=Callable[..., Any])


def promptly(method: Method) -> Method:
    """For what tasks call of a transition: under the switch lock, unless somebody holds it for too long.

    An exception from a signal handler may come between any two lines. It must not leave the lock held: hence a release
    that is tried whether it was taken or not, in a single step at the very end.
    """

    @functools.wraps(method)
    def enter(self: Any, *args: Any) -> Any:
        if switch_lock._is_owned():
            return method(self, *args)  # in a signal handler or finalizer
        try:
            if switch_lock.acquire(timeout=PATIENCE):
                return method(self, *args)
            return self._intrude(method, *args)
        finally:
            try:
                switch_lock.release()
            except RuntimeError:  # an intruder, who has none
                pass

    return cast("Method", enter)
