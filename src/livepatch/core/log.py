"""The kernel log of this process: the logger `livepatch` and a ring buffer beside it.

The sentences are the kernel's, word for word, at the kernel's levels. The ring buffer keeps all of them,
debug lines too, because it is what tests and people compare with what the kernel says; the logger gets them
without the prefix, for whatever the application does with its logs.

A record may be written while the registry's mutex is held, never while the switch lock is. The application's
handlers are foreign code, and `logging` has a lock of its own, which it keeps while the process forks; a fork waits
for the mutex. So what is written under the mutex reaches the logger when that is released, or rests around a callback
(`hand_on`).

`logging` is imported only when somebody sees a record: a program that does not have it has no handlers, and shows
warnings and errors only. Importing it registers hooks of forks; of a fork that another thread has begun just then only
the later half of them would run, and complain.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import originals

if TYPE_CHECKING:
    import logging

#: The levels of `logging`; NOTICE is between INFO and WARNING, where the kernel has it.
_DEBUG, NOTICE, _WARNING, _ERROR = 10, 25, 30, 40
_PREFIX = "livepatch: "

#: Seconds since the epoch, and the line.
_ring: deque[tuple[float, str]] = deque(maxlen=4096)

#: Called with every record's time and sentence after it was written; the agent pushes it to whoever follows the log.
listeners: list[Callable[[float, str], None]] = []

#: What the logger has not had yet: levels and sentences.
_pending: deque[tuple[int, str]] = deque(maxlen=4096)
#: Whether the running thread must not call foreign code just now: the registry's mutex knows, see `lists`.
withheld: list[Callable[[], bool]] = []

_known: logging.Logger | None = None


def _logger(level: int) -> logging.Logger | None:
    """Where a record of this level goes; None if nobody would see it."""
    global _known
    if _known is not None:  # asking for it takes a lock that billiard exchanges in its children, held or not
        return _known
    module: Any = sys.modules.get("logging")
    if module is None:
        if level < _WARNING:
            return None
        import logging as module
    if not hasattr(module, "getLogger"):  # another thread is just importing it, and may wait for a lock that we hold
        return None
    module.addLevelName(NOTICE, "NOTICE")
    _known = module.getLogger("livepatch")
    return _known


def _write(level: int, sentence: str) -> None:
    now = originals.time()
    _ring.append((now, _PREFIX + sentence))
    _pending.append((level, sentence))
    for listener in tuple(listeners):
        try:
            listener(now, sentence)
        except Exception:
            _complain(sentence)
    if not any(reason() for reason in withheld):
        hand_on()


def hand_on() -> None:
    """Give the logger what it has not had yet; for who may call foreign code."""
    while _pending:
        try:
            level, sentence = _pending.popleft()
        except IndexError:  # another thread was quicker
            return
        try:
            logger = _logger(level)
            if logger is not None:
                logger.log(level, "%s", sentence)
        except Exception:
            _complain(sentence)


def start_over() -> None:
    """In a forked child: what the logger has not had yet it gets in the parent."""
    _pending.clear()


def _complain(sentence: str) -> None:
    """A broken handler of the application must not tear a transition apart."""
    _ring.append((originals.time(), f"{_PREFIX}a log handler failed on: {sentence}"))


def debug(sentence: str) -> None:
    """Steps of a transition that an administrator need not see."""
    _write(_DEBUG, sentence)


def notice(sentence: str) -> None:
    """What happened, in the normal course of things."""
    _write(NOTICE, sentence)


def warning(sentence: str) -> None:
    """Something was refused or has a lasting consequence."""
    _write(_WARNING, sentence)


def error(sentence: str) -> None:
    """A patch does not fit."""
    _write(_ERROR, sentence)


def dmesg() -> list[str]:
    """All lines still in the ring buffer, oldest first, each with the prefix `livepatch: `."""
    return [line for _, line in list(_ring)]


def timed() -> list[tuple[float, str]]:
    """The same lines, each with the time when it was written, in seconds since the epoch."""
    return list(_ring)


def clear() -> None:
    """Empty the ring buffer, as `dmesg --clear` does."""
    _ring.clear()
