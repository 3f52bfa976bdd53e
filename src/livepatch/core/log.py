"""The kernel log of this process: the logger `livepatch` and a ring buffer beside it.

The sentences are the kernel's, word for word, at the kernel's levels. The ring buffer keeps all of them,
debug lines too, because it is what tests and people compare with what the kernel says; the logger gets them
without the prefix, for whatever the application does with its logs.

A record may be written while the registry's lock is held, never while the switch lock is: handlers are
foreign code.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable

#: Between INFO and WARNING, where the kernel has it.
NOTICE = 25
logging.addLevelName(NOTICE, "NOTICE")

_logger = logging.getLogger("livepatch")
_ring: deque[str] = deque(maxlen=4096)

#: Called with every line after it was written; the agent pushes it to whoever follows the log.
listeners: list[Callable[[str], None]] = []


def _write(level: int, sentence: str) -> None:
    _ring.append("livepatch: " + sentence)
    try:
        _logger.log(level, "%s", sentence)
        for listener in tuple(listeners):
            listener(sentence)
    except Exception:  # a broken handler of the application must not tear a transition apart
        _ring.append(f"livepatch: a log handler failed on: {sentence}")


def debug(sentence: str) -> None:
    """Steps of a transition that an administrator need not see."""
    _write(logging.DEBUG, sentence)


def notice(sentence: str) -> None:
    """What happened, in the normal course of things."""
    _write(NOTICE, sentence)


def warning(sentence: str) -> None:
    """Something was refused or has a lasting consequence."""
    _write(logging.WARNING, sentence)


def error(sentence: str) -> None:
    """A patch does not fit."""
    _write(logging.ERROR, sentence)


def dmesg() -> list[str]:
    """All lines still in the ring buffer, oldest first, each with the prefix `livepatch: `."""
    return list(_ring)


def clear() -> None:
    """Empty the ring buffer, as `dmesg --clear` does."""
    _ring.clear()
