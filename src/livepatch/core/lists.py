"""Which patches there are, which of them is in transition, and the lock over all of it.

The registry's mutex is the kernel's klp_mutex: held through enabling, disabling, a round, completion and all callbacks,
and never taken by a trampoline, a task or a callback in an event loop. Exceptions: reading the status of patches
and the log takes no lock. `lock.py` tells the order of locks.
"""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager

from . import log
from .lock import Mutex
from .model import LivepatchError, Object, Patch
from .transition import Transition

mutex = Mutex(log.hand_on)
log.withheld.append(mutex.excludes_foreign_code)

#: Enabled patches and the one in transition, oldest first: klp_patches.
listed: list[Patch] = []
#: All that was enabled and not unloaded, by name: the loaded patch modules.
loaded_patches: dict[str, Patch] = {}
#: What was forced in this process, for every later report.
taints: list[str] = []

#: The patch in transition, and its transition: klp_transition_patch. Its readers without a lock read it once.
_changing: tuple[Patch, Transition] | None = None
#: Who is in the middle of an operation; seen only by what it calls, since it holds the mutex.
_inside: object = None
#: The objects in whose callbacks this process was forked, until that has been dealt with: see `registry._settle`.
interrupted: list[Object] = []


@contextmanager
def exclusively() -> Iterator[None]:
    """Under the mutex, and not from a callback: there the kernel would deadlock, and we refuse."""
    global _inside
    with mutex.held():
        if _inside is not None:
            raise LivepatchError(errno.EDEADLK, "Callbacks must not enable, disable, force or unload patches.")
        me = object()
        try:
            _inside = me
            yield
        finally:
            if _inside is me:  # not so if this is a forked child, where `start_over` was called
                _inside = None


def start_over(running: list[Object]) -> None:
    """In a child that was forked in the middle of these objects' callbacks: nobody is in an operation here."""
    global _inside
    _inside = None
    interrupted.extend(running)
    running.clear()
    mutex.start_over()


def busy() -> bool:
    """Whoever holds the mutex is in the middle of an operation: it asks from a callback."""
    return _inside is not None


def changing() -> tuple[Patch, Transition] | None:
    """The patch in transition, and its transition."""
    return _changing


def set_changing(now: tuple[Patch, Transition] | None) -> None:
    global _changing
    _changing = now


def transition_of(patch: Patch) -> Transition | None:
    """The running transition, if it is this patch's."""
    now = _changing
    return now[1] if now is not None and now[0] is patch else None


def moving(patch: Patch) -> Transition | None:
    """Its transition, if functions carry trampolines: no longer so while the last callbacks are called."""
    transition = transition_of(patch)
    return None if transition is None or transition.gone else transition


def objects_named(name: str) -> list[tuple[Patch, Object]]:
    """The objects of listed patches for one module, oldest patch first."""
    return [(patch, obj) for patch in list(listed) for obj in patch.all_objects() if obj.name == name]
