"""The life cycle: enabling, disabling, reversing, forcing and unloading patches, in the kernel's order.

The registry's mutex is the kernel's klp_mutex: held through enabling, disabling, a round, completion and all callbacks,
and never taken by a trampoline, a task or a callback in an event loop. Exceptions: reading the status of patches
and the log takes no lock. The order of locks is mutex, then switch lock.

Nothing here runs by itself. Whoever drives the rounds (the agent's thread, a test) gives a driver and calls
`tick()`; the first round of every transition is done by the caller of `enable_patch`.
"""

from __future__ import annotations

import errno
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Protocol

from . import callbacks, cpython, log, objects, redirect
from . import tasks as task_kinds
from .model import LivepatchError, Object, Patch, PatchStatus, TaskStatus
from .modules import Finder
from .redirect import Redirection, redirections
from .resolve import check_author, init_object, init_patch
from .stacks import Footprint
from .symbols import Tables, loaded_module
from .transition import PATCHED, SIGNALS_TIMEOUT, UNPATCHED, Transition


class Driver(Protocol):
    """Whoever calls `tick()`."""

    def wake(self) -> None:
        """A round is due. Called from any thread, under any lock: must not block."""


mutex = threading.RLock()

#: Enabled patches and the one in transition, oldest first: klp_patches.
_listed: list[Patch] = []
#: All that was enabled and not unloaded, by name: the loaded patch modules.
_loaded: dict[str, Patch] = {}
#: The patch in transition, and its transition.
_changing: tuple[Patch, Transition] | None = None
#: Somebody is in the middle of an operation; seen only by what it calls, since it holds the mutex.
_inside = False
_driver: Driver | None = None
_due = 0.0
_wait = 0.001
#: What was forced in this process, for every later report.
taints: list[str] = []

#: Rounds after 1, 2, 4 ... milliseconds, up to this many seconds.
LONGEST_WAIT = 1.0
FIRST_WAIT = 0.001


@contextmanager
def _exclusively() -> Iterator[None]:
    """Under the mutex, and not from a callback: there the kernel would deadlock, and we refuse."""
    global _inside
    with mutex:
        if _inside:
            raise LivepatchError(errno.EDEADLK, "Callbacks must not enable, disable, force or unload patches.")
        _inside = True
        try:
            yield
        finally:
            _inside = False


def _running() -> tuple[Patch, Transition]:
    assert _changing is not None
    return _changing


def _check_idle() -> None:
    """One transition at a time."""
    if _changing is not None:
        raise LivepatchError(
            errno.EBUSY, f"A transition of '{_changing[0].name}' is running; wait for it or reverse it."
        )


def set_driver(driver: Driver | None) -> Driver | None:
    """From now on `driver` is woken when a round is due. Returns the one before."""
    global _driver
    before, _driver = _driver, driver
    return before


def _wake() -> None:
    """Something happened that lets a transition complete: a round is due at once."""
    global _due
    _due = 0.0
    if _driver is not None:
        _driver.wake()


def next_round() -> float | None:
    """Seconds until the next round is due; None without a transition."""
    return None if _changing is None else max(0.0, _due - time.monotonic())


def tick() -> None:
    """Do one round now. Without a transition, nothing."""
    global _due, _wait
    with mutex:
        if _changing is None or _inside:
            return
        with _exclusively():
            _due = time.monotonic() + _wait
            _wait = min(_wait * 2, LONGEST_WAIT)
            _try_complete_transition()


# -- enabling ------------------------------------------------------------------------------------------------


def enable_patch(patch: Patch, *, timeout: float = 0.0) -> None:
    """Load a patch: check that it fits, redirect its functions and start the transition.

    Waits up to `timeout` seconds for the transition to complete; that it has not is no error. Raises
    `LivepatchError` and changes nothing with EINVAL (the patch is malformed or a symbol cannot be resolved), EEXIST
    (one of this name is loaded), EBUSY (another transition runs, or somebody else redirects a function), ENOSYS (this
    interpreter is not supported), or what a pre_patch callback refuses with.
    """
    unsupported = cpython.unsupported() or task_kinds.unsupported()
    if unsupported is not None:
        raise LivepatchError(errno.ENOSYS, unsupported)
    check_author(patch)
    with _exclusively():
        if patch.name in _loaded:
            state = "enabled" if patch.name in {p.name for p in _listed} else "disabled but not unloaded"
            raise LivepatchError(errno.EEXIST, f"A patch named '{patch.name}' is loaded already ({state}).")
        _check_unshared(patch)
        patch.init()
        init_patch(patch)
        _check_idle()
        _listed.append(patch)
        _loaded[patch.name] = patch
        _await_modules()
        try:
            _check_imports(patch)
            _enable(patch)
        except BaseException:
            if patch in _listed:
                _listed.remove(patch)
                _await_modules()
            del _loaded[patch.name]
            raise
    if timeout > 0:
        wait(patch.name, timeout)


def _check_unshared(patch: Patch) -> None:
    """What the core keeps in objects and functions belongs to one patch."""
    mine = {id(part) for obj in patch.objects for part in (obj, *obj.funcs)}
    for other in _loaded.values():
        if any(id(part) in mine for obj in other.objects for part in (obj, *obj.funcs)):
            raise LivepatchError(
                errno.EINVAL, f"Patch '{patch.name}' shares an Object or a Func with '{other.name}'; make new ones."
            )


def _enable(patch: Patch) -> None:
    """The kernel's __klp_enable_patch, with its unwinding."""
    log.notice(f"enabling patch '{patch.name}'")
    _init_transition(patch, PATCHED)
    found: objects.Found | None = None
    try:
        for obj in patch.objects:
            if obj.module is None:
                continue
            callbacks.pre_patch(obj)
            if found is None:
                found = objects.find(objects.funcs(patch))
            _patch_object(obj, found, _running()[1])
    except BaseException as error:
        log.warning(f"failed to enable patch '{patch.name}'")
        _cancel_transition()
        if isinstance(error, LivepatchError) or not isinstance(error, Exception):
            raise
        raise LivepatchError(errno.EINVAL, f"Patch '{patch.name}' could not be applied: {error!r}") from error
    _start_transition()
    patch.enabled = True
    _try_complete_transition()


# -- the transition ------------------------------------------------------------------------------------------


def _name(state: int) -> str:
    return "patching" if state == PATCHED else "unpatching"


def _init_transition(patch: Patch, state: int) -> None:
    global _changing, _wait
    log.debug(f"'{patch.name}': initializing {_name(state)} transition")
    _wait = FIRST_WAIT
    _changing = patch, Transition(state, task_kinds.kinds, lambda goal: objects.footprint(patch, goal), _wake)
    for func in objects.funcs(patch):
        func.transition = True


def _patch_object(obj: Object, found: objects.Found, transition: Transition | None) -> None:
    try:
        objects.patch_object(obj, found, transition)
    except BaseException:
        log.warning(f"failed to patch object '{obj.shown_name}'")
        raise


def _start_transition() -> None:
    patch, transition = _running()
    log.notice(f"'{patch.name}': starting {_name(transition.goal.state)} transition")
    transition.suspended.codes = objects.suspendable(patch)
    transition.start()
    _round_soon()


def _round_soon() -> None:
    global _due, _wait
    _wait = FIRST_WAIT
    _due = time.monotonic() + _wait
    if _driver is not None:
        _driver.wake()


def _try_complete_transition() -> None:
    _, transition = _running()
    if transition.try_complete():
        _complete_transition()
        return
    if transition.rounds == SIGNALS_TIMEOUT + 1:
        log.notice("signaling remaining tasks")
    if _driver is not None:
        _driver.wake()


def _complete_transition() -> None:
    """Everybody has arrived: take the trampolines away. The order differs by direction, as in the kernel."""
    global _changing
    patch, transition = _running()
    state = transition.goal.state
    log.debug(f"'{patch.name}': completing {_name(state)} transition")
    touched = objects.redirections_of(patch)
    nested = [r for r in touched if r.nested]
    if nested:
        # Closures were made meanwhile, by versions of the enclosing functions that nobody is in any more.
        found = redirect.functions_of(code for r in nested for code in r.codes())
        for redirection in nested:
            redirection.adopt(found)
    if state == UNPATCHED:
        for obj in patch.objects:
            objects.unpatch_object(obj)
    objects.settle(touched)
    for func in objects.funcs(patch):
        func.transition = False
    transition.stop()
    redirect.clear_caches(touched)
    for obj in patch.objects:
        if obj.module is not None:
            (callbacks.post_patch if state == PATCHED else callbacks.post_unpatch)(obj)
    log.notice(f"'{patch.name}': {_name(state)} complete")
    if not patch.enabled and patch in _listed:
        _listed.remove(patch)
        _await_modules()
    _changing = None


def _cancel_transition() -> None:
    """Nobody was told to move yet, so nobody needs to be waited for."""
    patch, transition = _running()
    log.debug(f"'{patch.name}': canceling patching transition, going to unpatch")
    transition.cancel()
    _complete_transition()


# -- modules that come later -------------------------------------------------------------------------------------


def _waiting_for(name: str) -> list[tuple[Patch, Object]]:
    return [
        (patch, obj) for patch in tuple(_listed) for obj in patch.objects if obj.name == name and obj.module is None
    ]


def _refused(name: str) -> str | None:
    for patch in tuple(_listed):
        if any(obj.name == name and obj.module is not None for obj in patch.objects):
            return f"'{name}' is patched live by '{patch.name}' and cannot be loaded again; disable the patch first."
    return None


def _coming(module: ModuleType) -> None:
    """The kernel's klp_module_coming. Raises ImportError if a patch refuses the module."""
    with mutex:
        applied: list[tuple[Patch, Object]] = []
        for patch, obj in _waiting_for(module.__name__):
            obj.module, obj.module_state = module, "COMING"
            try:
                _apply_to_coming(patch, obj)
            except Exception as error:
                log.warning(
                    f"patch '{patch.name}' failed for module '{obj.name}', refusing to load module '{obj.name}'"
                )
                obj.init()
                for earlier, done in applied:
                    _revert_coming(earlier, done)
                _finder.loading.discard(module.__name__)
                raise ImportError(f"Patch '{patch.name}' refused '{obj.name}': {error}", name=obj.name) from error
            applied.append((patch, obj))
        for _, obj in applied:
            obj.module_state = "LIVE"
        _finder.loading.discard(module.__name__)
        _await_modules()


def _check_imports(patch: Patch) -> None:
    """A module whose import began before anybody waited for it cannot be patched at its end: refuse the patch."""
    for obj in patch.objects:
        absent = obj.name is not None and obj.module is None and obj.name not in _finder.loading
        if absent and (cpython.importing(str(obj.name)) or loaded_module(obj.name) is not None):
            raise LivepatchError(errno.EBUSY, f"Module '{obj.name}' is being imported just now; try again.")


def _apply_to_coming(patch: Patch, obj: Object) -> None:
    assert obj.module is not None
    try:
        init_object(obj, Tables([obj.module]))
    except LivepatchError as error:
        log.warning(f"failed to initialize patch '{patch.name}' for module '{obj.name}' ({-(error.errno or 0)})")
        raise
    log.notice(f"applying patch '{patch.name}' to loading module '{obj.name}'")
    callbacks.pre_patch(obj)
    found = objects.find(obj.all_funcs())
    in_transition = _changing is not None and _changing[0] is patch
    for func in obj.all_funcs():
        func.transition = in_transition
    try:
        objects.patch_object(obj, found, _running()[1] if in_transition else None)
    except Exception as error:
        number = error.errno if isinstance(error, LivepatchError) else errno.EINVAL
        log.warning(f"failed to apply patch '{patch.name}' to module '{obj.name}' ({-(number or 0)})")
        _unpatch_coming(obj)
        raise
    if in_transition:
        _running()[1].renew(objects.suspendable(patch))
    else:
        callbacks.post_patch(obj)


def _revert_coming(patch: Patch, obj: Object) -> None:
    if _changing is None or _changing[0] is not patch:
        callbacks.pre_unpatch(obj)
    log.notice(f"reverting patch '{patch.name}' on unloading module '{obj.name}'")
    _unpatch_coming(obj)
    obj.init()


def _unpatch_coming(obj: Object) -> None:
    touched = objects.fronts(obj)
    objects.unpatch_object(obj)
    objects.settle(touched)
    callbacks.post_unpatch(obj)


_finder = Finder(lambda name: bool(_waiting_for(name)), _refused, _coming)


def _await_modules() -> None:
    """Modules matter as long as a patch is listed: those to come, and those that must not come twice."""
    (_finder.start if _listed else _finder.stop)()


# -- what an administrator does --------------------------------------------------------------------------------


def _find(name: str) -> Patch:
    patch = next((patch for patch in _listed if patch.name == name), None)
    if patch is None:
        known = "it is loaded but disabled" if name in _loaded else "no patch of that name is loaded"
        raise LivepatchError(errno.ENOENT, f"There is no enabled patch '{name}': {known}.")
    return patch


def parse_bool(value: object) -> bool | None:
    """The kernel's kstrtobool; None for the empty string, which is accepted and does nothing."""
    text = str(value).strip().lower() if isinstance(value, str | int) else "?"
    if not text:
        return None
    if text[0] in "eyt1" or text[:2] == "on":
        return True
    if text[0] in "dnf0" or text[:2] == "of":
        return False
    raise LivepatchError(errno.EINVAL, f"{value!r} is neither true nor false; write 1 or 0.")


def write_enabled(name: str, value: object) -> None:
    """Write the `enabled` attribute: disable a patch, or reverse its running transition.

    Raises `LivepatchError` with EINVAL (garbage, the value it has, or 1 for a patch that is not in transition), EBUSY
    (another patch is in transition) or ENOENT. The rules and their order are the kernel's enabled_store.
    """
    with _exclusively():
        patch = _find(name)
        enabled = parse_bool(value)
        if enabled is None:
            return
        if patch.enabled == enabled:
            raise LivepatchError(errno.EINVAL, f"Patch '{name}' is {'enabled' if enabled else 'disabled'} already.")
        if _changing is not None and _changing[0] is patch:
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
    _check_derived(patch)
    found = objects.find(objects.funcs(patch))
    _init_transition(patch, UNPATCHED)
    for obj in patch.objects:
        if obj.patched:
            callbacks.pre_unpatch(obj)
    for obj in patch.objects:
        if obj.patched:
            for redirection in objects.fronts(obj):
                redirection.adopt(found.functions)
            objects.install(obj, _running()[1], found)
    _start_transition()
    patch.enabled = False
    _try_complete_transition()


def _check_derived(patch: Patch) -> None:
    """The function around a patched closure is patched once for all patches that touch what it makes."""
    for func in [func for obj in patch.objects for func in obj.derived if obj.patched]:
        if redirections[id(func.old_code)].stack[0] is not func:
            raise LivepatchError(
                errno.EBUSY,
                f"A newer patch also changes what '{func.old_name}' makes; disable that one before '{patch.name}'.",
            )


def _reverse_transition() -> None:
    patch, transition = _running()
    old = transition.goal.state
    log.debug(f"'{patch.name}': reversing transition from {_name(old)} to {_name(1 - old)}")
    patch.enabled = not patch.enabled
    transition.reverse()
    log.notice(f"'{patch.name}': starting {_name(1 - old)} transition")
    _round_soon()


def force_transition(name: str) -> None:
    """Move all remaining tasks of a running transition at once, wherever they are: consistency is lost.

    The patch that is being removed, if one is, can never be unloaded afterwards. Completion comes with the next
    round. Raises `LivepatchError(EINVAL)` if the patch is not in transition.
    """
    with _exclusively():
        patch = _find(name)
        if _changing is None or _changing[0] is not patch:
            raise LivepatchError(errno.EINVAL, f"Patch '{name}' is not in transition; there is nothing to force.")
        transition = _changing[1]
        log.warning("forcing remaining tasks to the patched state")
        transition.force()
        taints.append(name)
        if transition.goal.state == UNPATCHED:
            patch.forced = True


def unload_patch(name: str) -> None:
    """Forget a disabled patch, so that one of its name can be loaded again: rmmod.

    Raises `LivepatchError` with EAGAIN (it is enabled, in transition or was forced away) or ENOENT.
    """
    with _exclusively():
        patch = _loaded.get(name)
        if patch is None:
            raise LivepatchError(errno.ENOENT, f"No patch '{name}' is loaded.")
        if patch.forced:
            raise LivepatchError(
                errno.EAGAIN,
                f"Patch '{name}' was removed by force and stays loaded: tasks may still be inside of it.",
            )
        if patch in _listed:
            raise LivepatchError(errno.EAGAIN, f"Patch '{name}' is in use; disable it first.")
        del _loaded[name]
        patch.init()


def wait(name: str, timeout: float) -> bool:
    """Wait until no transition of this patch runs any more, at most `timeout` seconds; whether that is so."""
    deadline = time.monotonic() + timeout
    while True:
        changing = _changing
        if changing is None or changing[0].name != name:
            return True
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        due = next_round()
        time.sleep(min(left, max(due or 0.0, 0.0005), 0.05))
        if due is not None and not next_round():
            tick()


def update_patch_state() -> None:
    """A safe point: a long loop says that it is between two pieces of work. Moves the running task if it can."""
    if (changing := _changing) is not None:
        changing[1].update(sys._getframe(1))


def running_transition() -> Transition | None:
    """The transition that runs now."""
    changing = _changing
    return changing[1] if changing is not None else None


# -- what an administrator reads, without a lock --------------------------------------------------------------


def _status(patch: Patch) -> PatchStatus:
    changing = _changing
    transition = changing[1] if changing is not None and changing[0] is patch else None
    return PatchStatus(
        name=patch.name,
        enabled=patch.enabled,
        transition=transition is not None,
        replace=patch.replace,
        stack_order=_listed.index(patch) + 1 if patch in _listed else 0,
        forced=patch.forced,
        version=patch.version,
        description=patch.description,
        objects=[
            {
                "name": obj.shown_name,
                "patched": obj.patched and (obj.module is not None),
                "functions": [f"{func.key[0]},{func.key[1]}" for func in obj.funcs],
            }
            for obj in patch.objects
        ],
        seconds=time.monotonic() - transition.started if transition is not None else 0.0,
        total=transition.total if transition is not None else 0,
        left=len(transition.pending) if transition is not None else 0,
    )


def patches() -> list[PatchStatus]:
    """The patches that are enabled or in transition, in stack order."""
    return [_status(patch) for patch in tuple(_listed)]


def loaded() -> list[PatchStatus]:
    """All patches that are loaded, also those that are disabled and not unloaded."""
    return [_status(patch) for patch in tuple(_loaded.values())]


def tasks() -> list[TaskStatus]:
    """All tasks, with their state in the running transition and what keeps them from moving."""
    return task_kinds.statuses(running_transition())


def check_patch(patch: Patch) -> list[TaskStatus]:
    """Resolve everything as `enable_patch` does, change nothing, and tell who would stand in the way now."""
    check_author(patch)
    with _exclusively():
        if patch.name in _loaded:
            raise LivepatchError(errno.EEXIST, f"A patch named '{patch.name}' is loaded already.")
        _check_unshared(patch)
        patch.init()
        try:
            init_patch(patch)
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
