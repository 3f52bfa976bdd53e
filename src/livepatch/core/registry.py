"""The life cycle: enabling, disabling, reversing, forcing and unloading patches, in the kernel's order.

The registry's mutex is the kernel's klp_mutex: held through enabling, disabling, a round, completion and all callbacks,
and never taken by a trampoline, a task or a callback in an event loop. Exceptions: reading the status of patches
and the log takes no lock. The order of locks is mutex, then switch lock.

Nothing here runs by itself. Whoever drives the rounds (the agent's thread, a test) gives a driver and calls `tick()`
when `rounds` says so; the first round of every transition is done by the caller of `enable_patch`.
"""

from __future__ import annotations

import errno
import sys
import time
from collections.abc import Callable

from . import (
    caches,
    callbacks,
    cpython,
    lists,
    log,
    modules,
    objects,
    originals,
    redirect,
    replace,
    rounds,
    state,
    values,
)
from . import tasks as task_kinds
from .journal import counted, new_record, note_end
from .kind import PATCHED, UNPATCHED
from .lists import changing, exclusively, interrupted, listed, loaded_patches, taints, transition_of
from .lock import TakenOver
from .model import LivepatchError, Object, Patch, PatchStatus, TaskStatus
from .redirect import Redirection, redirections
from .resolve import check_author, init_patch
from .rounds import next_round as next_round
from .rounds import set_driver as set_driver
from .stacks import Footprint
from .transition import SIGNALS_TIMEOUT, Transition

#: Seconds that a patch waits for imports of its modules by other threads. They take milliseconds, but on a busy machine
#: somebody may not have his turn for long.
_IMPORTS_TIMEOUT = 5.0


def _running() -> tuple[Patch, Transition]:
    now = changing()
    assert now is not None
    return now


def _check_idle() -> None:
    """One transition at a time."""
    now = changing()
    if now is not None:
        raise LivepatchError(errno.EBUSY, f"A transition of '{now[0].name}' is running; wait for it or reverse it.")


def tick() -> None:
    """Do one round now. Without a transition, nothing."""
    with lists.mutex.held():
        if changing() is None or lists.busy():
            return
        with exclusively():
            rounds.begun()
            _settle()
            if changing() is not None:
                _try_complete_transition()


def _settle() -> None:
    """To be called at the beginning of every operation: bring everything in order that has happened meanwhile."""
    if interrupted:
        _take_over()
    modules.sweep()


def _take_over() -> None:
    """This process was forked while somebody, here or in another thread, was in a callback: that operation is over.

    If no task was told to move yet it is taken back; if all had moved it is completed. The callbacks that were running
    count as called: they may be what forked, and must not do it again.
    """
    modules.take_over(interrupted)
    interrupted.clear()
    if changing() is None:
        return
    patch, transition = _running()
    if transition.gone:
        _complete_transition()
    elif not transition.ready:  # nobody was told to move yet
        _cancel_transition()
        if patch not in listed:
            modules.await_modules()
            loaded_patches.pop(patch.name, None)


# -- enabling ------------------------------------------------------------------------------------------------


@counted("enable")
def enable_patch(patch: Patch, *, timeout: float = 0.0) -> None:
    """Load a patch: check that it fits, redirect its functions and start the transition.

    Waits up to `timeout` seconds for the transition to complete; that it has not is no error. Raises
    `LivepatchError` and changes nothing with EINVAL (the patch is malformed or a symbol cannot be resolved), EEXIST
    (one of this name is loaded), EBUSY (another transition runs, or somebody else redirects a function), ENOSYS (this
    interpreter is not supported), or what a pre_patch callback refuses with.
    """
    enable(lambda: patch)
    if timeout > 0:
        wait(patch.name, timeout)


@counted("enable")
def enable(make: Callable[[], Patch]) -> Patch:
    """Enable the patch that `make` makes for the modules that are there.

    It is asked anew when another thread was importing one of them meanwhile.
    """
    unsupported = cpython.unsupported()
    if unsupported is not None:
        raise LivepatchError(errno.ENOSYS, unsupported)
    until = originals.monotonic() + _IMPORTS_TIMEOUT
    while True:
        patch = make()
        check_author(patch)
        try:
            _load(patch)
            return patch
        except modules.BeingImported as error:
            if not modules.wait_until_found(error.module, until):
                raise


def _load(patch: Patch) -> None:
    with exclusively():
        _settle()
        _check_new(patch)
        state.check_compatible(patch, listed)
        patch.init()
        init_patch(patch, listed if patch.replace else [])
        try:
            listed.append(patch)
            loaded_patches[patch.name] = patch
            _check_idle()
            modules.await_modules()
            modules.await_absent(patch)
            _enable(patch)
        except TakenOver:
            raise
        except BaseException:
            if patch.enabled:  # an exception from a signal handler; the transition goes on without us
                raise
            if patch in listed:
                listed.remove(patch)
            modules.await_modules()
            loaded_patches.pop(patch.name, None)
            raise


def check_name(name: str) -> None:
    """Raises LivepatchError with EEXIST if a patch of this name is loaded."""
    if name in loaded_patches:
        enabled = name in {p.name for p in listed}
        shown = "enabled); disable and unload it first" if enabled else "disabled but not unloaded); unload it first"
        raise LivepatchError(errno.EEXIST, f"A patch named '{name}' is loaded already ({shown}.")


def _check_new(patch: Patch) -> None:
    check_name(patch.name)
    _check_unshared(patch)


def _check_unshared(patch: Patch) -> None:
    """What the core keeps in objects and functions belongs to one patch."""
    mine = {id(part) for obj in patch.objects for part in (obj, *obj.funcs)}
    for other in loaded_patches.values():
        if any(id(part) in mine for obj in other.objects for part in (obj, *obj.funcs)):
            raise LivepatchError(
                errno.EINVAL, f"Patch '{patch.name}' shares an Object or a Func with '{other.name}'; make new ones."
            )


def _enable(patch: Patch) -> None:
    """The kernel's __klp_enable_patch, with its unwinding."""
    log.notice(f"enabling patch '{patch.name}'")
    found: objects.Found | None = None
    present = [obj for obj in patch.all_objects() if obj.module is not None]
    try:
        _init_transition(patch, PATCHED)
        for obj in present:  # a callback may import more, or anew; those are applied as they come
            if _waits(obj):
                callbacks.pre_patch(obj)
            if not _waits(obj):
                continue
            if patch.replace:
                values.add_nops(obj, [other for p in listed if p is not patch for other in p.objects])
            if found is None or callbacks.asks(obj) or any(func.born is not None for func in obj.funcs):
                found = objects.find(objects.funcs(patch))
            _patch_object(obj, found, _running()[1])
    except TakenOver:
        raise
    except BaseException as error:
        log.warning(f"failed to enable patch '{patch.name}'")
        if changing() is not None:
            _cancel_transition()
        if isinstance(error, LivepatchError) or not isinstance(error, Exception):
            raise
        raise LivepatchError(errno.EINVAL, f"Patch '{patch.name}' could not be applied: {error!r}") from error
    patch.enabled = True
    _go()


def _waits(obj: Object) -> bool:
    """Its module is there, and the patch has not been applied to it: not so where a callback has loaded it anew."""
    return obj.module is not None and not obj.patched


# -- the transition ------------------------------------------------------------------------------------------


def _name(state: int) -> str:
    return "patching" if state == PATCHED else "unpatching"


def _init_transition(patch: Patch, goal: int) -> None:
    log.debug(f"'{patch.name}': initializing {_name(goal)} transition")
    rounds.from_the_first()
    boundary = patch.consistency == "boundary"
    transition = Transition(
        goal, task_kinds.kinds, lambda towards: objects.footprint(patch, towards), rounds.at_once, boundary=boundary
    )
    transition.record = new_record()
    lists.set_changing((patch, transition))
    for func in objects.funcs(patch):
        func.transition = True


def _patch_object(obj: Object, found: objects.Found, transition: Transition | None) -> None:
    try:
        objects.patch_object(obj, found, transition)
    except BaseException:
        log.warning(f"failed to patch object '{obj.kernel_name}'")
        raise


def _go() -> None:
    """From here on a transition goes on until its end, even if an exception from a signal handler cuts us off."""
    try:
        _start_transition()
        _try_complete_transition()
    finally:
        if changing() is not None:
            rounds.wake()


def _start_transition() -> None:
    patch, transition = _running()
    transition.ready = True
    log.notice(f"'{patch.name}': starting {_name(transition.goal.state)} transition")
    transition.suspended.codes = objects.suspendable(patch)
    transition.start()
    rounds.soon()


def _try_complete_transition() -> None:
    """One round; and first whatever an exception from a signal handler has cut off in the middle."""
    patch, transition = _running()
    if not transition.ready:
        _cancel_transition()
        return
    patch.enabled = transition.goal.state == PATCHED
    transition.suspended.codes = transition.suspended.codes or objects.suspendable(patch)
    if transition.try_complete():
        _complete_transition()
        return
    if transition.rounds == SIGNALS_TIMEOUT + 1:
        log.notice("signaling remaining tasks")
    rounds.wake()


class _Completion:
    """What is to be done when everybody has arrived, and what is done already: an exception may cut it off anywhere.

    Everything in it can be done twice, but for callbacks, of which each is taken off before it is called.
    """

    def __init__(self, patch: Patch, transition: Transition) -> None:
        self.transition = transition
        self.touched = objects.redirections_of(patch)
        enabled = transition.goal.state == PATCHED
        self.replaced = listed[: listed.index(patch)] if patch.replace and enabled else []
        steps = callbacks.post_patch_steps if enabled else callbacks.post_unpatch_steps
        self.callbacks = callbacks.Remaining(steps, [obj for obj in patch.objects if obj.module is not None])


_completion: _Completion | None = None


def _complete_transition() -> None:
    """Everybody has arrived: take the trampolines away. The order differs by direction, as in the kernel."""
    global _completion
    patch, transition = _running()
    goal = transition.goal.state
    if _completion is None or _completion.transition is not transition:
        log.debug(f"'{patch.name}': completing {_name(goal)} transition")
        _completion = _Completion(patch, transition)
    touched, replaced = _completion.touched, _completion.replaced
    if goal == UNPATCHED:
        for obj in patch.all_objects():
            objects.unpatch_object(obj)
    else:
        for obj in patch.all_objects():
            values.settle(obj, PATCHED)
    for other in replaced:
        other.enabled = False
        for obj in other.objects:
            objects.unpatch_object(obj)
            obj.pre_unpatch_due = obj.post_unpatch_due = False  # nobody calls them any more
    objects.unpatch_nops(patch)
    objects.settle(touched)
    for func in objects.funcs(patch):
        func.transition = False
    if patch.replace:
        replace.discard_nops(patch)
    transition.stop()
    caches.clear(function for redirection in touched for function in redirection.functions())
    _conclude()


def _conclude() -> None:
    """All functions have what they are to have: call the callbacks, and let go of what is gone."""
    global _completion
    assert _completion is not None
    patch, transition = _running()
    goal = transition.goal.state
    _completion.callbacks.call()
    log.notice(f"'{patch.name}': {_name(goal)} complete")
    for gone in _completion.replaced if goal == PATCHED else [patch]:
        if gone in listed:
            listed.remove(gone)
    modules.await_modules()
    lists.set_changing(None)
    _completion = None
    note_end(patch, transition)


def _cancel_transition() -> None:
    """Nobody was told to move yet, so nobody needs to be waited for."""
    patch, transition = _running()
    log.debug(f"'{patch.name}': canceling patching transition, going to unpatch")
    if not transition.over:
        transition.cancel()
    patch.enabled = transition.goal.state == PATCHED
    _complete_transition()


# -- what an administrator does --------------------------------------------------------------------------------


def _find(name: str) -> Patch:
    patch = next((patch for patch in listed if patch.name == name), None)
    if patch is None:
        known = "it is loaded but disabled" if name in loaded_patches else "no patch of that name is loaded"
        raise LivepatchError(errno.ENOENT, f"There is no enabled patch '{name}': {known}.")
    return patch


def parse_bool(value: object) -> bool | None:
    """The kernel's kstrtobool; None for the empty string, which is accepted and does nothing."""
    text = str(value).lower() if isinstance(value, str | int) else "?"
    if not text:
        return None
    if text[0] in "eyt1" or text[:2] == "on":
        return True
    if text[0] in "dnf0" or text[:2] == "of":
        return False
    raise LivepatchError(errno.EINVAL, f"{value!r} is neither true nor false; write 1 or 0.")


@counted("write_enabled")
def write_enabled(name: str, value: object) -> None:
    """Write the `enabled` attribute: disable a patch, or reverse its running transition.

    Raises `LivepatchError` with EINVAL (garbage, the value it has, or 1 for a patch that is not in transition), EBUSY
    (another patch is in transition, or somebody has exchanged the code of a patched function meanwhile) or ENOENT. The
    rules and their order are the kernel's enabled_store.
    """
    with exclusively():
        _settle()
        patch = _find(name)
        enabled = parse_bool(value)
        if enabled is None:
            return
        if patch.enabled == enabled:
            raise LivepatchError(errno.EINVAL, f"Patch '{name}' is {'enabled' if enabled else 'disabled'} already.")
        if transition_of(patch) is not None:
            _reverse_transition()
        elif not enabled:
            _disable(patch)
        else:  # pragma: no cover - a disabled patch that is not in transition is not listed
            raise LivepatchError(errno.EINVAL, f"Patch '{name}' cannot be enabled again; unload it and load it anew.")


def disable_patch(name: str, *, timeout: float = 0.0) -> None:
    """Take a patch back, or reverse the transition that is enabling it. Waits and raises like `enable_patch`."""
    write_enabled(name, False)
    if timeout > 0:
        wait(name, timeout)


def _disable(patch: Patch) -> None:
    _check_idle()
    patched = [obj for obj in patch.objects if obj.patched]
    found = objects.find(objects.funcs(patch))
    objects.check_removable(patched, found)
    for obj in patched:
        objects.surface(obj)
    try:
        _init_transition(patch, UNPATCHED)
        for obj in patched:
            objects.install(obj, _running()[1], found)
        for obj in patched:
            callbacks.pre_unpatch(obj)
    except TakenOver:
        raise
    except BaseException:  # from a signal handler
        if changing() is not None:
            _cancel_transition()
        raise
    patch.enabled = False
    _go()


def _reverse_transition() -> None:
    patch, transition = _running()
    old = transition.goal.state
    log.debug(f"'{patch.name}': reversing transition from {_name(old)} to {_name(1 - old)}")
    patch.enabled = not patch.enabled
    transition.reverse()
    log.notice(f"'{patch.name}': starting {_name(1 - old)} transition")
    rounds.soon()


@counted("force")
def force_transition(name: str) -> None:
    """Move all remaining tasks of a running transition at once, wherever they are: consistency is lost.

    The patches that are being removed, if any, can never be unloaded afterwards. Completion comes with the next
    round. Raises `LivepatchError(EINVAL)` if the patch is not in transition.
    """
    with exclusively():
        _settle()
        patch = _find(name)
        transition = transition_of(patch)
        if transition is None:
            raise LivepatchError(errno.EINVAL, f"Patch '{name}' is not in transition; there is nothing to force.")
        log.warning("forcing remaining tasks to the patched state")
        transition.force()
        taints.append(name)
        if transition.goal.state == UNPATCHED:
            patch.forced = True
        elif patch.replace:
            for other in listed:
                other.forced = other.forced or other is not patch


@counted("unload")
def unload_patch(name: str) -> None:
    """Forget a disabled patch, so that one of its name can be loaded again: rmmod.

    Raises `LivepatchError` with EAGAIN (it is enabled, in transition or was forced away) or ENOENT.
    """
    with exclusively():
        _settle()
        patch = loaded_patches.get(name)
        if patch is None:
            raise LivepatchError(errno.ENOENT, f"No patch '{name}' is loaded.")
        if patch.forced:
            raise LivepatchError(
                errno.EAGAIN,
                f"Patch '{name}' was removed by force and stays loaded: tasks may still be inside of it.",
            )
        if patch in listed:
            raise LivepatchError(errno.EAGAIN, f"Patch '{name}' is in use; disable it first.")
        del loaded_patches[name]
        patch.init()


def set_redirection(enabled: bool) -> None:
    """The global switch of redirection, on by default: the kernel's kernel.ftrace_enabled.

    While it is off no patch that has functions can be enabled (EBUSY). Raises `LivepatchError(EBUSY)` if it is to
    go off while something is patched.
    """
    with exclusively():
        _settle()
        redirect.allow(enabled)


def wait(name: str, timeout: float) -> bool:
    """Wait until no transition of this patch runs any more, at most `timeout` seconds; whether that is so."""
    deadline = originals.monotonic() + timeout
    while True:
        now = changing()
        if now is None or now[0].name != name:
            return True
        left = deadline - originals.monotonic()
        if left <= 0:
            return False
        due = next_round()
        # Not the original: where greenlets have replaced it, the others are to run meanwhile.
        time.sleep(min(left, max(due or 0.0, 0.0005), 0.05))
        if due is not None and not next_round():
            tick()


def update_patch_state() -> None:
    """A safe point: a long loop says that it is between two pieces of work. Moves the running task if it can."""
    if (now := changing()) is not None:
        now[1].update(sys._getframe(1))


def running_transition() -> Transition | None:
    """The transition that runs now."""
    now = changing()
    return now[1] if now is not None else None


# -- what an administrator reads, without a lock --------------------------------------------------------------


def _status(patch: Patch) -> PatchStatus:
    transition = transition_of(patch)
    return PatchStatus(
        name=patch.name,
        enabled=patch.enabled,
        transition=transition is not None,
        replace=patch.replace,
        stack_order=listed.index(patch) + 1 if patch in listed else 0,
        forced=patch.forced,
        version=patch.version,
        description=patch.description,
        objects=[
            {
                "name": obj.shown_name,
                "patched": obj.patched and (obj.module is not None),
                "functions": [f"{func.key[0]},{func.key[1]}" for func in [*obj.funcs, *obj.nops]],
                "immediate": [f"{func.key[0]},{func.key[1]}" for func in [*obj.funcs, *obj.nops] if func.immediate],
            }
            for obj in patch.all_objects()
        ],
        seconds=originals.monotonic() - transition.started if transition is not None else 0.0,
        total=transition.total if transition is not None else 0,
        left=len(transition.pending) if transition is not None else 0,
    )


def patches() -> list[PatchStatus]:
    """The patches that are enabled or in transition, in stack order."""
    return [_status(patch) for patch in list(listed)]


def loaded() -> list[PatchStatus]:
    """All patches that are loaded, also those that are disabled and not unloaded."""
    return [_status(patch) for patch in list(loaded_patches.values())]


def tasks() -> list[TaskStatus]:
    """All tasks, with their state in the running transition and what keeps them from moving."""
    return task_kinds.statuses(running_transition())


def check_patch(patch: Patch) -> list[TaskStatus]:
    """Resolve everything as `enable_patch` does, change nothing, and tell who would stand in the way now."""
    check_author(patch)
    with exclusively():
        _settle()
        _check_new(patch)
        state.check_compatible(patch, listed)
        patch.init()
        try:
            init_patch(patch, listed if patch.replace else [])
            footprint = Footprint()
            codes = []
            for func in objects.funcs(patch):
                if func.old_code is not None and not func.immediate:
                    redirection = redirections.get(id(func.old_code)) or Redirection(func.old_code)
                    for code in redirection.code_of(redirection.front()):
                        footprint.forbid(code)
                        codes.append(code)
            return task_kinds.blockers(footprint, codes)
        finally:
            patch.init()
