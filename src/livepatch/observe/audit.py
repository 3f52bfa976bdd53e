"""The file of the audit record: lines of JSON that are only ever appended, each with the hash of the one before.

    /var/log/livepatch/audit.jsonl                     of root
    ~/.local/state/livepatch/audit.jsonl               of a user ($XDG_STATE_HOME)
    LIVEPATCH_AUDIT=/ANOTHER/FILE, or none             of one command

A record is written at once and is on the disk before anything else happens. Several commands at a time wait for each
other, since each has to know the last line. What an interrupted write has left stays, and is a line that is no record.

The chain shows that a line was changed, removed or put in. It is no signature: who may write the file can make all of
it anew. Whoever wants to know keeps the hash of a last line elsewhere and looks whether it is still there.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from contextlib import suppress
from typing import Any, NamedTuple

from livepatch.archive import owned
from livepatch.core.model import LivepatchError

SYSTEM = "/var/log/livepatch"
NAME = "audit.jsonl"
VARIABLE = "LIVEPATCH_AUDIT"
#: What the variable says if there is to be no record.
NONE = "none"
#: What the first record has in place of a hash.
BEGINNING = "0" * 64

#: Seconds that another command may keep the file to itself.
_PATIENCE = 5.0
_PIECE = 1 << 16


def path() -> str | None:
    """Where the record is kept, None if there is to be none. Raises LivepatchError if that cannot be told."""
    named = os.environ.get(VARIABLE, "")
    if named == NONE:
        return None
    if named:
        if not os.path.isabs(named):
            raise LivepatchError(errno.EINVAL, f"{VARIABLE} is '{named}' and must be an absolute path, or '{NONE}'")
        return named
    folder = SYSTEM if os.geteuid() == 0 else owned.users("XDG_STATE_HOME", "~/.local/state")
    if folder is None:
        raise LivepatchError(errno.ENOENT, f"it is not known where this user's files belong; set {VARIABLE}")
    return os.path.join(folder, NAME)


def append(file: str, fields: dict[str, Any]) -> None:
    """Write one record. Raises LivepatchError, whose sentence is the end of one, and then it is not in the file."""
    try:
        folder = os.path.dirname(file)
        if os.environ.get(VARIABLE, "") != file:
            os.makedirs(folder, 0o700, exist_ok=True)
        descriptor = _locked(file)
        try:
            if _append(descriptor, fields):
                _keep_name(folder)
        finally:
            os.close(descriptor)
    except LivepatchError:
        raise
    except OSError as error:
        raise LivepatchError(error.errno or errno.EIO, f"{file}: {error.strerror}") from None


def _append(descriptor: int, fields: dict[str, Any]) -> bool:
    """Whether it is the first record."""
    size = os.fstat(descriptor).st_size
    last, torn = _last_line(descriptor, size)
    record = {**fields, "prev": hash_of(last) if size else BEGINNING}
    line = (b"\n" if torn else b"") + json.dumps(record, separators=(",", ":")).encode() + b"\n"
    try:
        written = os.write(descriptor, line)
        if written < len(line):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        os.fsync(descriptor)
    except OSError:
        with suppress(OSError):  # where the system allows nothing but appending, what was written is a torn line
            os.ftruncate(descriptor, size)
        raise
    return not size


def _keep_name(folder: str) -> None:
    """Of a new file the name has to be on the disk, too."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _locked(file: str) -> int:
    """The file, open for appending, and nobody else's as long as it is. It may be exchanged while we wait."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
        descriptor = os.open(file, flags, 0o600)
        try:
            _believe(file, os.fstat(descriptor))
            _lock(file, descriptor, fcntl.LOCK_EX, deadline)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.stat(file), os.fstat(descriptor)):
                    return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _believe(file: str, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise LivepatchError(errno.EINVAL, f"{file} is no regular file")
    if found.st_uid not in (0, os.geteuid()) or found.st_mode & 0o022:
        raise LivepatchError(errno.EACCES, f"{file} belongs to somebody else, or others may write to it")


def _lock(file: str, descriptor: int, how: int, deadline: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise LivepatchError(
                    errno.ETIMEDOUT, f"{file} is locked by somebody else for {_PATIENCE:g} s"
                ) from None
            time.sleep(0.005)


def _last_line(descriptor: int, size: int) -> tuple[bytes, bool]:
    """The last line, and whether it has no end."""
    tail, at = b"", size
    while at and b"\n" not in tail[:-1]:
        step = min(_PIECE, at)
        at -= step
        tail = os.pread(descriptor, step, at) + tail
    torn = bool(tail) and not tail.endswith(b"\n")
    return tail.removesuffix(b"\n").rpartition(b"\n")[2], torn


def hash_of(line: bytes) -> str:
    """What the record after this line has as `prev`."""
    return hashlib.sha256(line).hexdigest()


class Line(NamedTuple):
    """A line of the file: its record, None if it is none, its hash, and what is wrong with it."""

    number: int
    record: dict[str, Any] | None
    hash: str
    problem: str


def read(file: str) -> list[Line]:
    """All lines. Raises OSError and LivepatchError."""
    descriptor = os.open(file, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(descriptor, "rb") as opened:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise LivepatchError(errno.EINVAL, f"{file} is no regular file.")
        _lock(file, descriptor, fcntl.LOCK_SH, time.monotonic() + _PATIENCE)
        content = opened.read()
    found: list[Line] = []
    before = BEGINNING
    for number, line in enumerate(content.removesuffix(b"\n").split(b"\n") if content else (), 1):
        record, problem = _parsed(line), ""
        if record is None:
            problem = f"line {number} is no record: it was changed, or its writing was cut off"
        elif record["prev"] != before and number == 1:
            problem = "line 1 is not the first that was written: what was before it is missing"
        elif record["prev"] != before:
            problem = f"line {number} does not follow line {number - 1}: a line was changed, removed or put in here"
        before = hash_of(line)
        found.append(Line(number, record, before, problem))
    return found


def _parsed(line: bytes) -> dict[str, Any] | None:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return record if isinstance(record, dict) and isinstance(record.get("prev"), str) else None
