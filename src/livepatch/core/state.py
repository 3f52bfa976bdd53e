"""System states: what patches have done to the process beyond exchanging functions, told from one to the next.

A callback may change more than functions: widen a table, start a thread, attach shadow variables. A patch says so by
a `State` with an id of the author's choice and a version. A later patch may be enabled only if it knows all of these
states, in the same version or a newer one, or if it leaves the patches that made them in place. The core never touches
a state's `data`: the callbacks of a cumulative patch take it over from the patch before (`get_prev_state`).
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from typing import Any

from . import lists, log
from .model import LivepatchError, Patch, State


def check_compatible(patch: Patch, listed: Iterable[Patch]) -> None:
    """LivepatchError (EINVAL) unless the patch can handle the states of all listed ones: klp_is_patch_compatible."""
    for other in listed:
        for state in other.states:
            mine = get_state(patch, state.id)
            if mine is None and not patch.replace:
                continue
            if mine is None or mine.version < state.version:
                log.error(f"Livepatch patch ({patch.name}) is not compatible with the already installed livepatches.")
                known = f"knows it only in version {mine.version}" if mine is not None else "does not know it"
                raise LivepatchError(
                    errno.EINVAL,
                    f"Patch '{patch.name}' is not compatible with the patches that are enabled: '{other.name}' has "
                    f"state {state.id!r} in version {state.version}, and '{patch.name}' {known}.",
                )


def get_state(patch: Patch, id: Any) -> State | None:
    """A patch's own state with this id, or None. For callbacks and new code; takes no lock."""
    return next((state for state in patch.states if state.id == id), None)


def get_prev_state(id: Any) -> State | None:
    """The newest state with this id among the patches before the one in transition, or None.

    Outside of a transition there is no "before": a warning is logged and the answer is None, also in
    callbacks of a module that comes or goes then.
    """
    changing = lists.changing()
    if changing is None:
        log.warning("get_prev_state() has no answer outside of a transition; call it from the callbacks of one")
        return None
    found = None
    for patch in list(lists.listed):
        if patch is changing[0]:
            break
        found = get_state(patch, id) or found
    return found
