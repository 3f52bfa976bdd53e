"""The registry's mutex, the kernel's klp_mutex, and its order with the import lock.

Importing a module holds that module's import lock, and then wants the mutex, to have patches applied (`modules.py`). An
operation on patches holds the mutex, and its callbacks may import, which wants import locks. The order is fixed once:
**import lock, then mutex**. It is kept by everybody but a callback that imports a module which another thread is just
importing; there, and only there, two threads would wait for each other for ever:

    A: enable_patch, holds the mutex -> callback -> import m, waits for the lock of m
    B: import m, holds the lock of m -> a patch waits for m -> wants the mutex

B sees that whoever holds the mutex waits, over any number of threads, for an import lock of its own. Then A *lends* it
the mutex. That is as safe as if A's callback had imported m itself, in its own thread, which is allowed: A stands
inside of a callback, everything is in order there, and it cannot go on before B has let go of the import lock. Should
an exception tear A out of its wait, then it waits for B at the end of the callback (`rejoin`).

The switch lock comes after both, and is held by nobody who takes one of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from . import cpython, originals

#: Seconds between two looks at whom the owner waits for.
_LOOK = 0.02


class Mutex:
    """A re-entrant lock that can be lent; see the head of this file."""

    def __init__(self) -> None:
        self._lock = originals.RLock()
        self._owner: int | None = None
        self._borrowed: dict[int, int] = {}  # how often, by thread

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it. A nested hold counts nothing, so an exception that comes from outside leaves no count behind."""
        if self._mine():
            yield
            return
        try:
            self._wait()
            yield
        finally:
            if self._mine():
                self.release()

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it, for who cannot use `held`. False if it is somebody else's and the caller does not want to wait."""
        me = originals.get_ident()
        if me in self._borrowed:
            self._borrowed[me] += 1
        elif self._mine() or blocking:
            self._wait()
        else:
            if not self._lock.acquire(blocking=False):
                return False
            self._owner = me
        return True

    def release(self) -> None:
        me = originals.get_ident()
        if me in self._borrowed:
            self._borrowed[me] -= 1
            if not self._borrowed[me]:
                del self._borrowed[me]
            return
        try:
            self.rejoin()
        finally:
            self._owner = None  # set anew by whoever holds it still, below
            self._lock.release()
            if self._mine():
                self._owner = me

    def rejoin(self) -> None:
        """To be called by the owner where foreign code has ended: wait until the mutex is nobody else's."""
        if self._borrowed and originals.get_ident() not in self._borrowed:
            while self._borrowed:
                originals.sleep(_LOOK / 10)

    def keep_only_current(self) -> None:
        """After a fork, by the thread that forked and holds the lock: nobody else exists in this process."""
        me = originals.get_ident()
        if me in self._borrowed:  # its owner is gone
            self._lock, self._owner = originals.RLock(), me
            for _ in range(self._borrowed[me]):
                self._lock.acquire()
        self._borrowed.clear()

    def _mine(self) -> bool:
        return originals.get_ident() in self._borrowed or self._lock._is_owned()

    def _wait(self) -> None:
        me = originals.get_ident()
        while not self._lock.acquire(timeout=_LOOK):
            owner = self._owner
            if owner is not None and me in cpython.import_owners(owner):
                self._borrowed[me] = 1
                return
        self._owner = me
