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

A fork needs the mutex, too, for a copy of the process in which nothing is half done (`fork.py`), and must not wait for
a callback either: that may be waiting for the very thread that forks. So whoever is in a callback *rests*, and threads
that fork come in as visitors; the end of the callback waits for them. Under the GIL two notes suffice to agree: each
side writes its own before it reads the other's.

The switch lock comes after both, and is held by nobody who takes one of them.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from . import cpython, originals
from .model import LivepatchError

#: Seconds between two looks at whom the owner waits for.
_LOOK = 0.02


class TakenOver(BaseException):
    """A callback returned, or raised, in a child that was forked meanwhile: its operation is no longer under way there.

    Nobody handles it but the outermost `held`.
    """

    def __init__(self, raised: BaseException | None) -> None:
        self.raised = raised


class Mutex:
    """A re-entrant lock that can be lent; see the head of this file.

    `afterwards` is called whenever foreign code may run that had to wait for that: it was released, or it rests.
    """

    def __init__(self, afterwards: Callable[[], None] = lambda: None) -> None:
        self._afterwards = afterwards
        self._lock = originals.RLock()
        self._owner: int | None = None
        self._borrowed: dict[int, int] = {}  # how often, by thread
        self._resting = False  # the innermost holder is in a callback
        self._visitors: set[int] = set()  # threads that fork meanwhile

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold it. A nested hold counts nothing, so an exception that comes from outside leaves no count behind."""
        if self.mine():
            with self._awake():
                yield
            return
        try:
            self._wait()
            yield
        except TakenOver as over:
            raise over.raised or LivepatchError(
                errno.ECANCELED,
                "A callback of this operation has forked, and in the child it ended there; look at what is enabled.",
            ) from None
        finally:
            try:
                self._let_go()
            except BaseException:  # from a signal handler that met us on the way
                self._let_go()
                raise

    def _let_go(self) -> None:
        if self.mine():
            self.release()

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Around foreign code that the holder calls. Raises TakenOver if the process is another one afterwards."""
        lock, before, raised = self._lock, self._resting, None
        self._resting = True
        try:
            self._afterwards()
            yield
        except BaseException as error:
            raised = error
            raise
        finally:
            if self._lock is not lock:
                raise TakenOver(raised) from None
            self._resting = before
            self.rejoin()

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """A callback has come back to us, to import."""
        lock, before = self._lock, self._resting
        self._resting = False
        self.rejoin()
        try:
            yield
        finally:
            if self._lock is lock:
                self._resting = before

    def acquire(self, *, blocking: bool = True) -> bool:
        """Take it, for who cannot use `held`. False if it is somebody else's and the caller does not want to wait."""
        me = originals.get_ident()
        if me in self._borrowed:
            self._borrowed[me] += 1
        elif self.mine() or blocking:
            self._wait()
        else:
            if not self._lock.acquire(blocking=False):
                return False
            self._owner = me
        return True

    def release(self) -> None:
        try:
            self._release()
        finally:
            if not self.mine():
                self._afterwards()

    def _release(self) -> None:
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
            if self.mine():
                self._owner = me

    def rejoin(self) -> None:
        """To be called by the owner where foreign code has ended: wait until the mutex is nobody else's."""
        me = originals.get_ident()
        while (self._borrowed and me not in self._borrowed) or (self._visitors and me not in self._visitors):
            originals.sleep(_LOOK / 10)

    def visit(self) -> None:
        """Before a fork: nobody else changes anything until `leave`. Does not wait for whoever is in a callback."""
        me = originals.get_ident()
        while not self.mine():
            self._visitors.add(me)
            if self._resting and not self._borrowed:
                return
            self._visitors.discard(me)
            if self._lock.acquire(timeout=_LOOK):
                self._owner = me

    def leave(self) -> None:
        """After the fork, in the parent. Other hooks of it are still to come, so nothing foreign is called."""
        me = originals.get_ident()
        if me in self._visitors:
            self._visitors.discard(me)
        else:
            self._release()

    def rests(self) -> bool:
        """Somebody is in a callback, and nobody does anything else."""
        return self._resting

    def start_over(self) -> None:
        """In a forked child: nobody holds it."""
        self.__init__(self._afterwards)  # type: ignore[misc]

    def keep_only_current(self) -> None:
        """In a forked child, by a thread that held it before it forked: nobody else exists in this process."""
        me = originals.get_ident()
        if me in self._borrowed:  # its owner is gone
            self._lock, self._owner = originals.RLock(), me
            for _ in range(self._borrowed[me]):
                self._lock.acquire()
        self._borrowed.clear()
        self._visitors.clear()

    def mine(self) -> bool:
        """The running thread holds it, has borrowed it, or is visiting."""
        me = originals.get_ident()
        return me in self._borrowed or me in self._visitors or self._lock._is_owned()

    def excludes_foreign_code(self) -> bool:
        """The running thread holds it, and is not in a callback: a fork waits for it, and may hold anybody's locks."""
        return self.mine() and not (self._resting and self._lock._is_owned())

    def _wait(self) -> None:
        me = originals.get_ident()
        while not self._lock.acquire(timeout=_LOOK):
            owner = self._owner
            if owner is not None and me in cpython.import_owners(owner):
                self._borrowed[me] = 1
                if not self._visitors:
                    return
                del self._borrowed[me]
        self._owner = me
