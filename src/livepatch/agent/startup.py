"""Installed patches: applied when a process starts, each before the first of its modules is imported.

When the agent starts, hardly a module is there that a patch is for, and some cannot even be looked for yet: the folder
of a script comes onto the path later. So a finder waits until one of those modules is imported. Then all patches are
decided, in the order in which they are installed, while nothing of that module exists yet:

* one whose modules are on the path, and are what it was built for, is enabled; the core does the rest as they come;
* one that does not fit is skipped, with a line in the log: it is for another release;
* one none of whose modules is there waits on.

Whether it fits is decided for all modules of a patch before the first one is touched (`archive/foresee.py`). Should
one turn out to be different all the same, the patch gives up: that module is loaded without it, and the patch is
disabled as a whole. An installed patch never makes an import fail.

What cannot be enabled just now, because a transition is running, is decided by the agent's thread afterwards, and then
by a transition like any other.

A file that is broken, unsigned though it must be signed, or in somebody else's hands is a warning in the log. Strict
mode may say (`refuse_start`) that the process must not start then.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING

from livepatch.archive import installed, policy
from livepatch.core import cpython, journal, log, modules, originals, registry
from livepatch.core.model import LivepatchError, Patch

if TYPE_CHECKING:
    from livepatch.archive.foresee import Versions
    from livepatch.archive.format import Archive

#: Seconds between two attempts at what could not be enabled.
PAUSE = 0.1
#: How often it is tried.
_ATTEMPTS = 100
#: Seconds that an import waits for another thread that decides: that takes milliseconds, but on a busy machine
#: somebody may not have his turn for long.
_TURN = 5.0
#: What "not now" is: another transition or import is under way, or we were called by a callback.
_NOT_NOW = (errno.EBUSY, errno.EDEADLK)


def _wake() -> object:
    """Replaced by `begin`."""


class StartRefused(LivepatchError):
    """The process must not start: strict mode says so."""


class _Installed:
    """An installed archive that is yet to be decided."""

    def __init__(self, file: installed.File, archive: Archive) -> None:
        self.path = file.path
        self.data = file.data
        self.archive = archive
        self.name = archive.manifest.name
        self.modules = {entry.module for entry in archive.manifest.objects}


class _Finder:
    """In front of the others until all is decided: it finds nothing by itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if not any(fullname in waiting.modules for waiting in _waiting):
            return None
        seeking = originals.get_ident(), fullname
        modules.sought.add(seeking)
        try:
            with cpython.without_finders_lock():
                _decide_now()
        finally:
            modules.sought.discard(seeking)
        # The core may have put its finder in front of us just now, where the import system does not look any more.
        return modules.finder.find_spec(fullname, path, target)


_finder = _Finder()
_waiting: list[_Installed] = []
_order: list[str] = []  # the names of all that were readable
_enabled: list[Patch] = []
_versions: Versions = {}
_claim = originals.allocate_lock()
_decider = 0  # the thread that has the claim
_again = 0  # how often the agent's thread will try
_begun = False


def begin(wake: Callable[[], object]) -> None:
    """Look what is installed, once in a process. `wake` lets the agent's thread call `catch_up` soon.

    Raises StartRefused if strict mode says that the process must not start with what there is.
    """
    global _begun, _wake
    if _begun:
        return
    _begun, _wake = True, wake
    for folder in installed.folders():
        for file in installed.files(folder):
            try:
                if file.problem:
                    raise LivepatchError(errno.EACCES, file.problem)
                _add(file)
            except LivepatchError as error:
                _bad(file.path, error)
    if _waiting:
        os.register_at_fork(after_in_child=_start_over)
        sys.meta_path.insert(0, _finder)
        if any(name in sys.modules for waiting in _waiting for name in waiting.modules):
            _decide_now()


def _add(file: installed.File) -> None:
    from livepatch.archive import format  # most processes have nothing installed

    archive = format.read(file.data)
    if _refuses_start():
        policy.require(file.data, os.path.basename(file.path))
    if archive.manifest.name in _order:
        raise LivepatchError(errno.EEXIST, f"a patch named '{archive.manifest.name}' is installed before it.")
    _order.append(archive.manifest.name)
    _waiting.append(_Installed(file, archive))


def _refuses_start() -> bool:
    """A policy that cannot be read lets nothing in, but it does not say that nothing may start."""
    try:
        return policy.policy().refuse_start
    except LivepatchError:
        return False


def _bad(path: str, error: LivepatchError) -> None:
    if _refuses_start():
        _waiting.clear()
        raise StartRefused(error.errno or errno.EINVAL, f"The installed patch {path} is not usable: {error}")
    log.warning(f"installed patch {path} is left out: {error}")


# -- deciding --------------------------------------------------------------------------------------------------


def _decide_now() -> None:
    """What is not possible now is left to the agent's thread."""
    global _again
    if not _decide():
        _again = _ATTEMPTS
        _wake()


def _decide(*, for_good: bool = False) -> bool:
    """Enable or skip what can be decided, in order; whether nothing has to wait for somebody.

    With `for_good`, who would have to wait is skipped.
    """
    global _decider
    if _decider == originals.get_ident():
        return True  # looking for modules imports some
    if not _claim.acquire(timeout=_TURN):
        return False
    try:
        _decider = originals.get_ident()
        for waiting in list(_waiting):
            try:
                if _enable(waiting):
                    _waiting.remove(waiting)
            except LivepatchError as error:
                if error.errno in _NOT_NOW and not for_good:
                    return False
                journal.refused("start", error)
                tell = log.warning if error.errno == errno.EKEYREJECTED else log.notice
                tell(f"installed patch '{waiting.name}' is skipped, {waiting.path}: {error}")
                _waiting.remove(waiting)
        return True
    finally:
        _decider = 0
        _claim.release()


def _enable(waiting: _Installed) -> bool:
    """Whether it is decided. Raises LivepatchError with the reason for which it is skipped, or not possible now."""
    from livepatch.archive import fit, foresee

    archive = waiting.archive
    if not foresee.found(archive, _versions, (_finder, modules.finder)):
        return False
    policy.require(waiting.data, os.path.basename(waiting.path))
    later = [patch.name for patch in _enabled if _order.index(patch.name) > _order.index(waiting.name)]
    if archive.manifest.replace and later:
        sentence = f"it is cumulative, and '{later[0]}', which was installed after it, is in force already."
        raise LivepatchError(errno.ESTALE, sentence)

    def bind() -> Patch:
        patch = fit.bind(archive, early=True)
        patch.lenient = _wake
        return patch

    patch = registry.enable(bind)
    _enabled.append(patch)
    if patch.replace:
        _versions.clear()
    _versions.update(foresee.made_by(archive))
    return True


# -- by the agent's thread ---------------------------------------------------------------------------------------


def due() -> float | None:
    """In how many seconds `catch_up` has something to do, None if it has not."""
    return PAUSE if _again or any(patch.given_up and patch.enabled for patch in _enabled) else None


def catch_up() -> None:
    """Do what was not possible when it was to be done; without a transition only."""
    global _again
    if registry.next_round() is not None:
        return
    for patch in [patch for patch in _enabled if patch.given_up and patch.enabled]:
        try:
            registry.disable_patch(patch.name)
        except LivepatchError as error:
            if error.errno not in _NOT_NOW:
                _enabled.remove(patch)
                log.warning(f"'{patch.name}' cannot be disabled, and one of its modules is without it: {error}")
        return
    if _again:
        _again = 0 if _decide(for_good=_again == 1) else _again - 1


def _start_over() -> None:
    """In a forked child: whoever was deciding is not here."""
    global _claim, _decider
    _claim, _decider = originals.allocate_lock(), 0
