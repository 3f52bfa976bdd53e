"""How often the threads of a busy program take turns while a client is served.

Each time that the agent's thread lets go of the interpreter, to read, to write, to wait, whoever computes keeps it for
a switch interval: 5 ms, and where several compute, each of them in its turn. A load lets go dozens of times, so that it
took seconds, nearly all of them in that queue. So as long as a client is served the interval is short.

It is one setting for the whole process, and the program's to choose:

* Who changes it meanwhile has it their way, and it is not touched again.
* Who reads it meanwhile to set it again later, as tools do that change it for a moment, would leave ours for good. So
  ours is one that nobody chooses, and is taken back wherever it is found later.
* It is short for a moment after the last answer only, since clients ask one thing after the other.
* Where somebody is in C code that keeps the interpreter for long, such as a slow regular expression, a short interval
  has *us* interrupted after each little step, at the price of one more such call. So who serves looks first how long a
  turn of the others is, and leaves the interval alone if it is long.

`attach/arrival.py`, which must do without all that is here, does the same until the agent is there, and then leaves it
to this to end it (`take_over`).
"""

from __future__ import annotations

import sys

from livepatch.core import originals

#: In seconds. Shorter ones cost more than they bring: the kernel wakes nobody any sooner.
SHORT = 103e-6
#: Seconds without a request after which nobody is served any more.
QUIET = 0.25
#: Seconds for which others are let in, to see how long their turns are; and seconds of the processor that are long.
_LOOK, _LONG_TURN = 0.0005, 0.01
#: Seconds after which it is looked again, if they were short and if they were long.
_LOOKS_AGAIN, _LONG_STAYS = 0.5, 5.0


class Turns:
    """The switch interval of this process. All of it runs in threads of livepatch: the agent's and `arrival`'s."""

    def __init__(self) -> None:
        self._users = 0
        self._before: float | None = None  # what the program had, since we first changed it
        self._ours = 0.0  # as the interpreter says it
        self._lock = originals.allocate_lock()
        self._served: float | None = None  # when a client was served last
        self._looked = self._long_until = 0.0

    # -- the agent's thread ------------------------------------------------------------------------

    def serve(self) -> None:
        """A client wants something: have short turns from now on, unless those of others are long anyway."""
        now = originals.monotonic()
        if now < self._long_until:
            return
        if self._served is None:
            self._begin()
        self._served = now
        if now >= self._looked + _LOOKS_AGAIN:
            self._looked = now
            if _turn() > _LONG_TURN:
                self._long_until = originals.monotonic() + _LONG_STAYS
                self.rest()

    def rest(self) -> None:
        """Nobody is served any more: the interval is the program's again."""
        if self._served is not None:
            self._served = None
            self._end()

    def rests_in(self) -> float | None:
        """In how many seconds `rest` is due; None if it is not."""
        return None if self._served is None else max(0.0, self._served + QUIET - originals.monotonic())

    def mend(self) -> None:
        """Take ours back if somebody has put it there again."""
        with self._lock:
            if not self._users:
                self._restore()

    # -- others ------------------------------------------------------------------------------------

    def take_over(self, before: float, ours: float) -> None:
        """The interval was `before`, is `ours` now, and that of the program when this user, too, has called `leave`."""
        with self._lock:
            if self._before is None:
                self._before, self._ours = before, ours
            self._users += 1

    def leave(self) -> None:
        """See `take_over`."""
        self._end()

    def start_over(self) -> None:
        """In a forked child: who used it is not here."""
        self._lock = originals.allocate_lock()
        self._users, self._served = 0, None
        self._restore()

    # ----------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        with self._lock:
            self._users += 1
            if self._users > 1:
                return
            self._restore()
            self._before = sys.getswitchinterval()
            if self._before > SHORT:
                sys.setswitchinterval(SHORT)
                self._ours = sys.getswitchinterval()

    def _end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._restore()

    def _restore(self) -> None:
        if self._before is not None and sys.getswitchinterval() == self._ours:
            sys.setswitchinterval(self._before)


def _turn() -> float:
    """How long the others' turn is when they are let in, one sample: in seconds, and not of a processor that was taken
    from them, nor of several at a time.
    """
    worked, began = originals.process_time(), originals.monotonic()
    originals.sleep(_LOOK)
    return min(originals.process_time() - worked, originals.monotonic() - began)


#: Of this process.
turns = Turns()
