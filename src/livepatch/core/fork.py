"""What a forked child keeps: the patches, the state of the task that forked, and nothing half done.

Both locks are taken around the fork, so that the child's copy is consistent and the locks are its own. All other
tasks do not exist in the child; a transition that was running goes on there by itself.
"""

from __future__ import annotations

import os

from . import lists, registry
from .transition import exempt_threads, switch_lock


def _before() -> None:
    lists.mutex.acquire()
    switch_lock.acquire()


def _in_parent() -> None:
    switch_lock.release()
    lists.mutex.release()


def _in_child() -> None:
    exempt_threads.clear()
    lists.mutex.keep_only_current()
    transition = registry.running_transition()
    if transition is not None:
        transition.keep_only_current()
    switch_lock.release()
    lists.mutex.release()


def install() -> None:
    """To be called once, when livepatch is imported."""
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(before=_before, after_in_parent=_in_parent, after_in_child=_in_child)
