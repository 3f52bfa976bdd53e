"""What the audit record says of a command: an `intent` before the first change, an `outcome` at its end.

A command that is killed leaves its intent. One that is refused before anything was to change leaves a `refused`, also
if strict mode lets the archive out to no process.

If the record cannot be written, a warning says so and the command goes on: a full disk must not keep a fix out of a
service that is under attack, or a bad one in it. In strict mode the change is refused, before it has begun; `disable`,
too, since whoever can fill a disk could otherwise take fixes back unseen. LIVEPATCH_AUDIT names a place that has room.
What has begun is never stopped halfway for want of a record.
"""

from __future__ import annotations

import base64
import binascii
import errno
import hashlib
import os
import pwd
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache, lru_cache
from typing import Any

from livepatch.archive import policy
from livepatch.attach.processes import Process
from livepatch.core.model import LivepatchError

from . import audit
from .events import BACK, BEGIN, END, FORCE, UNLOAD, Event, Seen

#: What the system says where nobody has logged in.
_NOBODY = str(2**32 - 1)


class Trail:
    """An observer of one transaction."""

    def __init__(self) -> None:
        self._id = os.urandom(8).hex()
        self._begun = False
        self._barred = False  # the record could not be written, and nothing was done

    def __call__(self, event: Event) -> None:
        """Raises LivepatchError if strict mode wants a record, there can be none, and nothing has begun."""
        if event.kind in (BEGIN, FORCE, BACK) or (event.kind == UNLOAD and not event.returning):
            what = {FORCE: "force", BACK: "reverse", UNLOAD: "unload"}.get(event.kind, event.operation)
            first, self._begun = not self._begun, True
            try:
                self._write("intent", what, event, must=first)
            except LivepatchError:
                self._begun, self._barred = False, True
                raise
        elif event.kind == END and not self._barred and (self._begun or event.error is not None) and event.processes:
            self._write("outcome" if self._begun else "refused", event.operation, event, must=False)

    def _write(self, phase: str, operation: str, event: Event, *, must: bool) -> None:
        archive = archive_of_params(event.params)
        patch = {"name": event.patch, **archive} if event.patch else archive
        for seen in event.processes:
            known = [p for p in [seen.state, *seen.before] if p and p.get("name") == event.patch and p.get("version")]
            if known:
                patch.setdefault("version", known[0]["version"])
        fields: dict[str, Any] = {"operation": operation, "patch": patch}
        fields["targets"] = [_target(seen, ended=phase != "intent") for seen in event.processes]
        if event.error is not None:
            fields["error"] = _sentence(event.error)
        note(phase, self._id, fields, must=must)


@contextmanager
def recorded(operation: str, **fields: Any) -> Iterator[None]:
    """Write an intent, and when the block is left what came of it. Raises LivepatchError like `Trail`."""
    number = os.urandom(8).hex()
    note("intent", number, {"operation": operation, **fields}, must=True)
    try:
        yield
    except BaseException as error:
        note("outcome", number, {"operation": operation, **fields, "error": _sentence(error)}, must=False)
        raise
    note("outcome", number, {"operation": operation, **fields}, must=False)


def refused(operation: str, error: LivepatchError, **fields: Any) -> None:
    """Write that a command was refused before it had anything to do with a process."""
    note("refused", os.urandom(8).hex(), {"operation": operation, **fields, "error": str(error)}, must=False)


def note(phase: str, number: str, fields: dict[str, Any], *, must: bool) -> None:
    """Write a record, or warn that it cannot be written; if it must be, strict mode refuses instead."""
    try:
        file = audit.path()
        if file is None:
            if must and _strict():
                raise LivepatchError(errno.EPERM, f"{audit.VARIABLE} says '{audit.NONE}'")
            return
        audit.append(file, {"time": _now(), "phase": phase, "id": number, **fields, **_who()})
    except LivepatchError as error:
        if must and _strict():
            sentence = (
                f"Strict mode wants an audit record, and it cannot be written ({error}), so nothing was changed;"
                f" make room, or name another file with {audit.VARIABLE}."
            )
            raise LivepatchError(error.errno or errno.EIO, sentence) from None
        sys.stderr.write(f"livepatch: This is not in the audit record, which cannot be written: {error}.\n")


def archive_of(data: bytes, file: str) -> dict[str, Any]:
    """What the record says of a patch file: its hash, and of an archive its name, version and signer."""
    found: dict[str, Any] = {"file": file, "sha256": hashlib.sha256(data).hexdigest(), "signer": None}
    if data[:2] != b"PK":
        return found
    from livepatch.archive import format, seal  # many commands have no archive

    with suppress(LivepatchError):
        manifest = format.read(data).manifest
        found |= {"name": manifest.name, "version": manifest.version}
        if seal.is_signed(data):
            found["signer"] = "unknown"
            found["signer"] = policy.signer(data, policy.policy().signers).name
    return found


def process_of(process: Process, started: int | None = None) -> dict[str, Any]:
    """What the record says of a process: enough to tell it from every other one, also later."""
    found = {"pid": process.pid, "uid": process.uid, "executable": process.executable, "command": process.command}
    return found if started is None else {**found, "start_ticks": started, "started": _when(started)}


def archive_of_params(params: dict[str, Any]) -> dict[str, Any]:
    """The same of what processes are asked with; nothing if that is no file."""
    return {**_archive_of_text(params["data"], str(params.get("file", "")))} if "data" in params else {}


@lru_cache(maxsize=1)
def _archive_of_text(data: str, file: str) -> dict[str, Any]:
    """Cached for all records and observers of a command: the hash, the zip and the signature take their time."""
    try:
        return archive_of(base64.b64decode(data), file)
    except binascii.Error:
        return {}


def _target(seen: Seen, *, ended: bool) -> dict[str, Any]:
    found = process_of(seen.process, seen.started)
    if ended:
        found["outcome"] = seen.outcome
        if seen.state is not None:
            found["state"] = {key: seen.state[key] for key in ("enabled", "transition", "forced")}
        if seen.error is not None:
            found["error"] = str(seen.error)
    return found


def _sentence(error: BaseException) -> str:
    return str(error) if isinstance(error, OSError) else type(error).__name__


def _strict() -> bool:
    try:
        return policy.policy().strict
    except LivepatchError:
        return True  # it may be


def _now() -> str:
    now = time.time()
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(now)) + f".{int(now % 1 * 1000):03d}Z"


def _when(ticks: int) -> str:
    booted = time.clock_gettime(time.CLOCK_REALTIME) - time.clock_gettime(time.CLOCK_BOOTTIME)
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(booted + ticks / os.sysconf("SC_CLK_TCK")))


@cache
def _who() -> dict[str, Any]:
    """Who gave the command, where and how; the same for all of its records."""
    who: dict[str, Any] = {"uid": os.getuid(), "euid": os.geteuid(), "user": _user(os.getuid())}
    login = _first_line("/proc/self/loginuid")
    who["login"] = _user(int(login)) if login.isdigit() and login != _NOBODY else None
    who["sudo"] = os.environ.get("SUDO_USER")
    who["tty"] = next((name for name in map(_tty, (0, 1, 2)) if name), None)
    return {
        "who": who,
        "command": list(_command()),
        "host": os.uname().nodename,
        "boot": _first_line("/proc/sys/kernel/random/boot_id"),
    }


def _command() -> Sequence[str]:
    return getattr(sys, "orig_argv", sys.argv)


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _tty(descriptor: int) -> str:
    try:
        return os.ttyname(descriptor)
    except OSError:
        return ""


def _first_line(path: str) -> str:
    try:
        with open(path, encoding="ascii", errors="replace") as file:
            return file.readline().strip()
    except OSError:
        return ""
