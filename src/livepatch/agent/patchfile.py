"""From the bytes of a patch file to a `Patch` in this process.

Two kinds: an archive that `livepatch build` made, which is bound to the live modules, and a Python file
written by hand, which is executed and must leave a `Patch` in `__livepatch__`. The name of the file is
the patch's name unless the patch has one of its own, as a kernel module's is.

A file written by hand lives as a module `__livepatch__.NAME` as long as its patch is loaded, under the
file name `<livepatch NAME>/NAME.py` and with its source in `linecache`, so that tracebacks through it are
readable.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from livepatch.core import registry
from livepatch.core.model import LivepatchError, Patch

_MODULES = "__livepatch__."

#: An archive is just being read, which imports modules.
reading = False
#: The files of loaded patches, each with its name, so that what was taken back can be loaded again.
files: dict[str, tuple[str, bytes]] = {}


def read(data: bytes, file: str, *, dry: bool = False) -> Patch:
    """The patch that a file holds, ready to be enabled or (`dry`) to be checked.

    Raises LivepatchError with the sentence that says why it is none, or does not fit this process.
    """
    return maker(data, file, dry=dry)()


def maker(data: bytes, file: str, *, dry: bool = False) -> Callable[[], Patch]:
    """What makes that patch: an archive's anew for the modules that are there then, one written by hand once."""
    if not _is_archive(data, file):
        patch = _execute(data, os.path.splitext(os.path.basename(file))[0])
        return lambda: patch
    with _forks_wait():
        from livepatch.archive import fit, format  # half of the agent's memory, and most agents never load anything

        archive = format.read(data)

    def bind() -> Patch:
        with _forks_wait():
            registry.check_name(archive.manifest.name)  # else it would not fit, because of itself
            return fit.bind(archive, dry=dry)

    return bind


@contextmanager
def _forks_wait() -> Iterator[None]:
    """A child that is forked in the middle of an import can never finish it, neither of the archive's modules nor of
    those that they import, which may be the program's as well. So forks wait, see `Agent.pause`.
    """
    global reading
    reading = True
    try:
        yield
    finally:
        reading = False


def survey(data: bytes, file: str) -> dict[str, Any]:
    """How an archive and this process fit, see `archive/survey.py`; nothing for a file written by hand.

    Raises LivepatchError with the sentence that says why it is no archive.
    """
    if not _is_archive(data, file):
        return {"releases": [], "modules": []}
    with _forks_wait():
        from livepatch.archive import format
        from livepatch.archive.survey import survey

        return survey(format.read(data))


def by_hand(data: bytes, file: str) -> bytes:
    """The Python in a patch file that a person wrote: all of it, or the hooks of an archive."""
    if not _is_archive(data, file):
        return data
    from livepatch.archive import format

    return format.read(data).hooks or b""


def _is_archive(data: bytes, file: str) -> bool:
    return data[:2] == b"PK" or os.path.splitext(file)[1] != ".py"


def forget_unloaded() -> None:
    """Drop what is left of patches that are no longer loaded: modules of hand-written ones, additions of archives."""
    loaded = {patch.name for patch in registry.loaded()}
    for name in files.keys() - loaded:
        del files[name]
    # Another thread may be just importing it; then no archive has been loaded.
    forget = getattr(sys.modules.get("livepatch.archive.fit"), "forget_unloaded", None)
    if forget is not None:
        forget(loaded)
    for name, module in sys.modules.copy().items():
        if name.startswith(_MODULES) and getattr(module.__dict__.get("__livepatch__"), "name", None) not in loaded:
            del sys.modules[name]
            _forget_source(str(module.__file__))


def _execute(data: bytes, stem: str) -> Patch:
    from livepatch.archive import byhand

    name, file = _MODULES + stem, f"<livepatch {stem}>/{stem}.py"
    if name in sys.modules:
        raise LivepatchError(
            errno.EEXIST, f"A patch from a file '{stem}.py' is loaded already; disable and unload it first."
        )
    module = ModuleType(name)
    module.__file__ = file
    sys.modules[name] = module
    try:
        byhand.keep_source(data, file)
        byhand.execute(byhand.compile_file(data, file, f"{stem}.py"), module, f"{stem}.py")
        patch = getattr(module, byhand.RESULT, None)
        if not isinstance(patch, Patch):
            raise LivepatchError(errno.EINVAL, f"module {stem} is not marked as a livepatch module")
    except LivepatchError:
        del sys.modules[name]
        _forget_source(file)
        raise
    patch.name = patch.name or stem
    return patch


def _forget_source(file: str) -> None:
    import linecache  # by whoever has kept it; the agent answers before

    linecache.cache.pop(file, None)
