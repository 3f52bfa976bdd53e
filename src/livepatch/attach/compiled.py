"""The agent's code compiled for the version of a process, and a cache of that.

Only an interpreter of the very version can do it. If that is not the one that runs the command, it is the target's own
executable, which may be anybody's. So:

- It runs with the target's rights, and what it makes goes into this target only.
- Unless nobody but root and we could have changed it, or anything above it: then it runs with our rights, and what it
  makes is kept for the next time.
- What it prints stays bytes here: `marshal` is not for what somebody may have made up.

If it does not run, nothing is compiled, and the target compiles the sources itself.

The cache is `livepatch/agents` in the user's own cache directory. It is used if nobody else can write there; where that
is not possible it is done without.
"""

from __future__ import annotations

import hashlib
import importlib.util
import marshal
import os
import stat
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from livepatch.core import cpython

from . import beside
from .processes import Process

#: How many bytes the magic number at the beginning has.
MAGIC = len(importlib.util.MAGIC_NUMBER)

#: Seconds that an interpreter may take to compile it all.
_TIMEOUT = 20.0

#: What an interpreter of the version runs, ours as well. `arrival.py` knows the names of the files, too.
_COMPILER = """\
import importlib.util, marshal
def compiled(sources):
    modules = {
        file: compile(source, "<livepatch>/" + file, "exec", dont_inherit=True, optimize=0)
        for file, source in marshal.loads(sources).items()
    }
    return importlib.util.MAGIC_NUMBER + marshal.dumps(modules)
"""
_BY_ITSELF = _COMPILER + "import sys\nsys.stdout.buffer.write(compiled(sys.stdin.buffer.read()))\n"


def for_process(process: Process, sources: Mapping[str, bytes]) -> bytes:
    """The modules compiled: the magic number, then a marshalled dictionary. b"" if no interpreter can be had."""
    data = marshal.dumps(dict(sources), 2)
    if process.version == cpython.VERSION and not process.free_threaded:
        return _kept(process, data, None)
    try:
        command, options = beside.interpreter(process)
    except OSError:
        return b""
    if command == [process.executable] and _only_ours(process.executable):
        return _kept(process, data, command)
    return _run(command, options, data)


def _kept(process: Process, data: bytes, command: list[str] | None) -> bytes:
    """From the cache, or made by this interpreter or that of the command, and put there."""
    name = f"{process.python}-{hashlib.sha256(data).hexdigest()}"
    with ExitStack() as opened:
        directory = None
        with suppress(OSError):
            directory = _open_cache()
            opened.callback(os.close, directory)
            found = _read(name, directory)
            if found:
                return found
        found = _make_here(data) if command is None else _run(command, {}, data)
        if found and directory is not None:
            with suppress(OSError):
                _write(name, found, directory)
    return found


def _make_here(data: bytes) -> bytes:
    names: dict[str, object] = {}
    exec(_COMPILER, names)
    made: bytes = names["compiled"](data)  # type: ignore[operator]
    return made


def _run(command: list[str], options: Mapping[str, object], data: bytes) -> bytes:
    try:
        done = subprocess.run(
            [*command, "-I", "-S", "-c", _BY_ITSELF],
            input=data,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_TIMEOUT,
            env={},
            **options,  # type: ignore[call-overload]
        )
    except (OSError, subprocess.TimeoutExpired):
        return b""
    return done.stdout if done.returncode == 0 else b""


def _only_ours(path: str) -> bool:
    """Whether only root and we can have made this file what it is: nobody else owns it or may write to it, and the same
    holds for all the directories above, since an interpreter takes its library from beside itself.
    """
    try:
        found = [part.lstat() for part in (Path(path), *Path(path).parents)]
    except OSError:
        return False
    return all(_safe(part) and not stat.S_ISLNK(part.st_mode) for part in found)


def _safe(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)


# -- the cache: each file is a checksum and what it is of ---------------------------------------------------------


def _open_cache() -> int:
    """A descriptor of the cache, made if need be. Raises OSError if there can be none, or it is not only ours."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    path = Path(base, "livepatch", "agents")
    if not path.is_absolute():
        raise FileNotFoundError(base)
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    found = os.fstat(descriptor)
    if found.st_uid == os.geteuid() and _safe(found):
        return descriptor
    os.close(descriptor)
    raise PermissionError(str(path))


def _read(name: str, directory: int) -> bytes:
    """What is kept under this name; b"" if it is nothing that we could have put there."""
    try:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
    except OSError:
        return b""
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or not _safe(found):
            return b""
        content = file.read()
    checksum, data = content[:32], content[32:]
    return data if hashlib.sha256(data).digest() == checksum else b""


def _write(name: str, data: bytes, directory: int) -> None:
    """Keep it, instead of what other releases had for the same version of Python, and of what was never finished."""
    new = f"new-{os.urandom(8).hex()}"
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
    try:
        with open(descriptor, "wb") as file:
            file.write(hashlib.sha256(data).digest() + data)
        os.rename(new, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(new, dir_fd=directory)
        raise
    for other in os.listdir(directory):
        if other != name and other.partition("-")[0] in ("new", name.partition("-")[0]):
            os.unlink(other, dir_fd=directory)
