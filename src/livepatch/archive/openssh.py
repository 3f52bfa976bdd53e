"""Asking ssh-keygen about a signature, from within any process there is.

The command asks, and so does the agent, in the middle of somebody else's program. What that program has done to itself
must neither disturb the answer nor be disturbed by it:

* Its `subprocess` and `os` may be cooperative ones, its fork handlers are its own affair: hence `posix.posix_spawn`.
* It may reap our child before we do (servers wait for any child, and some ignore SIGCHLD). Then the exit status is
  lost, and `subprocess` would report success. So the exit status is not believed: a signature is good if ssh-keygen
  *says* so, on a pipe that only it can write to.
* It may have no writable directory, or a full one. What ssh-keygen reads is in memory, under `/proc/self/fd`.
* Its environment may say anything; ssh-keygen gets none of it.

There is no implementation of our own to fall back on: without ssh-keygen nothing is verified, and what must be is
refused.
"""

from __future__ import annotations

import errno
import fcntl
import os
import posix
import re
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import NamedTuple

from livepatch.archive.seal import NAMESPACE
from livepatch.core import originals
from livepatch.core.model import LivepatchError

#: Where ssh-keygen is looked for, before the PATH: what that has first may be anybody's.
FOLDERS = ("/usr/bin", "/usr/local/bin")
#: Seconds that ssh-keygen may take.
_PATIENCE = 10.0
_OUTPUT_LIMIT = 64 * 1024
#: Where the descriptors are that become 0, 1, 2, 3 and 4 in the child, out of each other's way.
_ABOVE = 16
_SIGNATURE, _SIGNERS = "/proc/self/fd/3", "/proc/self/fd/4"

_GOOD = re.compile(rf'Good "{NAMESPACE}" signature for (.+) with \S+ key (SHA256:\S+)')
_KEY = re.compile(rf'Good "{NAMESPACE}" signature with \S+ key (SHA256:\S+)')


class Signer(NamedTuple):
    """Who has signed: the name in the list of allowed signers, and the fingerprint of the key."""

    name: str
    key: str


def verify(text: bytes, signature: bytes, signers: bytes) -> Signer:
    """Who has signed this text, of those in `signers`, the content of a file as ssh-keygen(1) describes it.

    Raises LivepatchError: EKEYREJECTED if the signature is not one of this text, ENOKEY if it is none of theirs (or
    their key has expired, or is for something else), ENOPKG if ssh-keygen is not there or does not work.
    """
    said, _ = _run(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", _SIGNATURE], text, signature, signers)
    made_by = _KEY.fullmatch(said.strip())
    if made_by is None:
        raise LivepatchError(errno.EKEYREJECTED, "The signature is not one of what is in the archive: it was altered.")
    said, why = _run(["-Y", "find-principals", "-s", _SIGNATURE, "-f", _SIGNERS], text, signature, signers)
    for name in said.splitlines():
        command = ["-Y", "verify", "-n", NAMESPACE, "-I", name, "-s", _SIGNATURE, "-f", _SIGNERS]
        said, why = _run(command, text, signature, signers)
        good = _GOOD.fullmatch(said.strip())
        if good is not None and good[1] == name and good[2] == made_by[1]:
            return Signer(name, good[2])
    told = re.sub(r"^\S+?:\d+: ", "", (why.strip().splitlines() or [""])[0])
    reason = f" ({told})" if told and not told.startswith(("No principal", "Could not")) else ""
    raise LivepatchError(errno.ENOKEY, f"The key that signed it, {made_by[1]}, is not an allowed signer's{reason}.")


def _program() -> str:
    for folder in [*FOLDERS, *os.get_exec_path()]:
        path = os.path.join(folder, "ssh-keygen")
        if os.path.isabs(path) and os.access(path, os.X_OK):
            return path
    raise LivepatchError(
        errno.ENOPKG, "Signatures are verified by ssh-keygen, which is not there; install OpenSSH's client."
    )


def _run(arguments: list[str], text: bytes, signature: bytes, signers: bytes) -> tuple[str, str]:
    """What ssh-keygen writes to its output and to its errors."""
    program = _program()
    try:
        with ExitStack() as opened:
            inputs = [opened.enter_context(_memory(data)) for data in (text, signature, signers)]
            errors = opened.enter_context(_memory(b""))
            reader, writer = os.pipe()
            opened.callback(os.close, reader)
            with _raised(writer) as above:
                ends = [(inputs[0], 0), (above, 1), (errors, 2), (inputs[1], 3), (inputs[2], 4)]
                pid = posix.posix_spawn(
                    program,
                    [program, *arguments],
                    {"PATH": os.defpath, "LC_ALL": "C"},
                    file_actions=[(posix.POSIX_SPAWN_DUP2, *end) for end in ends],
                    setsigmask=[],
                    setsigdef=[signal.SIGPIPE, signal.SIGCHLD],
                )
            said = _heard(pid, reader)
            return said.decode(errors="replace"), os.pread(errors, _OUTPUT_LIMIT, 0).decode(errors="replace")
    except OSError as error:
        if isinstance(error, LivepatchError):
            raise
        sentence = f"Signatures cannot be verified here: {program}: {error.strerror}."
        raise LivepatchError(errno.ENOPKG, sentence) from None


@contextmanager
def _raised(descriptor: int) -> Iterator[int]:
    """The same file under a number above those of the child; the old number is closed."""
    try:
        above = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    finally:
        os.close(descriptor)
    try:
        yield above
    finally:
        os.close(above)


@contextmanager
def _memory(data: bytes) -> Iterator[int]:
    """A file that is in no file system."""
    with _raised(os.memfd_create("livepatch")) as descriptor:
        view = memoryview(data)
        while view:
            view = view[originals.write(descriptor, view) :]
        os.lseek(descriptor, 0, os.SEEK_SET)
        yield descriptor


def _heard(pid: int, reader: int) -> bytes:
    """All that the child says until it ends; it is killed if it takes too long."""
    deadline = originals.monotonic() + _PATIENCE
    said, ready = b"", originals.poll_type()()
    ready.register(reader, 1)
    try:
        while (left := deadline - originals.monotonic()) > 0 and len(said) < _OUTPUT_LIMIT:
            if ready.poll(left * 1000):
                data = originals.read(reader, 4096)
                if not data:
                    return said
                said += data
        raise LivepatchError(errno.ENOPKG, f"Signatures cannot be verified here: ssh-keygen took over {_PATIENCE:g} s.")
    finally:
        _bury(pid, deadline)


def _bury(pid: int, deadline: float) -> None:
    """Wait for the child, unless somebody else has: then its number may be another's already."""
    with suppress(ChildProcessError):
        while posix.waitpid(pid, os.WNOHANG) == (0, 0):
            if originals.monotonic() > deadline:
                os.kill(pid, signal.SIGKILL)
            originals.sleep(0.001)
