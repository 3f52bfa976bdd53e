"""The files that a target reads during an attach, put where its agent puts its socket, and taken away again.

That is a directory below the target's own `/tmp`, in a world that somebody else may control, and we may be root: every
step goes through a directory descriptor and follows no symbolic link.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from livepatch.agent import places
from livepatch.core.model import LivepatchError

from .processes import Process


class Files:
    """Our files in the target's socket directory, by name, through the directory's descriptor."""

    def __init__(self, process: Process, directory: int) -> None:
        self._process = process
        self._directory = directory
        self.stem = f"{process.inner_pid}.{secrets.token_hex(4)}"
        self.bundle = f"{self.stem}.agent"

    def inside(self, name: str) -> str:
        """The path of a file as the target sees it."""
        return f"{places.directory_of(self._process.uid)}/{name}"

    def write(self, name: str, data: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        descriptor = os.open(name, flags, 0o600, dir_fd=self._directory)
        with open(descriptor, "wb") as file:
            if os.geteuid() == 0:
                os.fchown(descriptor, self._process.uid, -1)
            file.write(data)

    def read(self, name: str) -> str | None:
        try:
            descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=self._directory)
        except OSError:
            return None
        with open(descriptor, encoding="utf-8", errors="replace") as file:
            return file.read(4096)

    def empty(self, name: str) -> None:
        with suppress(OSError):
            os.close(os.open(name, os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, dir_fd=self._directory))

    def remove(self, name: str) -> None:
        with suppress(OSError):
            os.unlink(name, dir_fd=self._directory)


@contextmanager
def files_for(process: Process) -> Iterator[Files]:
    """The target's socket directory, made if need be; what the attach put into it is taken away again."""
    try:
        directory = _open_directory(process)
    except OSError as error:
        if isinstance(error, LivepatchError):
            raise
        raise LivepatchError(
            error.errno or errno.EACCES,
            f"No file can be put into {places.directory_of(process.uid)} for process {process.pid}: {error.strerror}.",
        ) from None
    files = Files(process, directory)
    try:
        yield files
    finally:
        for suffix in ("agent", "failed"):
            files.remove(f"{files.stem}.{suffix}")
        os.close(directory)


def _open_directory(process: Process) -> int:
    """A descriptor of the target's socket directory, reached one step after the other."""
    path = places.directory_of(process.uid)
    name = os.path.basename(path)
    flags = os.O_RDONLY | os.O_DIRECTORY
    with ExitStack() as opened:

        def enter(step: str, within: int | None = None) -> int:
            descriptor = os.open(step, flags if within is None else flags | os.O_NOFOLLOW, dir_fd=within)
            opened.callback(os.close, descriptor)
            return descriptor

        tmp = enter("tmp", enter(f"/proc/{process.pid}/root"))
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=tmp)
            if os.geteuid() == 0:
                os.chown(name, process.uid, -1, dir_fd=tmp, follow_symlinks=False)
        directory = enter(name, tmp)
        problem = places.directory_problem(os.fstat(directory), process.uid)
        if problem:
            raise LivepatchError(errno.EACCES, f"{path} {problem}; remove it and try again.")
        return os.dup(directory)
