"""The files that a target reads during an attach, put where its agent puts its socket, and taken away again.

That is below the target's own `/tmp`, or its `/dev/shm` where `/tmp` is full or may not be written, in a world that
somebody else may control, and we may be root. So every step goes through a directory descriptor and follows no symbolic
link, and root does it as the target's user: what is made belongs to that user at once, root's rights open nothing that
is not meant, and a file system of a user namespace that does not know our root takes the files.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from livepatch.agent import places
from livepatch.core.model import LivepatchError

from .processes import NoAccess, Process, alive, owner

_ENTER = os.O_DIRECTORY | getattr(os, "O_PATH", os.O_RDONLY)


class Files:
    """Our files in the target's socket directories, by name; each is put into the first of them that takes it."""

    def __init__(self, process: Process) -> None:
        stem = f"{process.inner_pid}.{os.urandom(4).hex()}"
        self.bundle = f"{stem}.agent"
        self.script = f"{stem}.py"
        self.request = f"{stem}.request.py"
        self.failure = f"{stem}.failed"  # `injection` knows this from the script's name
        self._process = process
        self._user = owner(process.pid)
        self._uid = process.inner_owner[0]
        self._places: dict[str, str] = {}  # which of places.BASES a file is in
        self._base = places.BASES[0]  # where the last one went, and so the next
        self._directories: dict[str, int] = {}
        self._root = os.open(f"/proc/{process.pid}/root", _ENTER)

    def inside(self, name: str) -> str:
        """The path of a file as the target sees it."""
        return f"{places.directory_of(self._uid, self._places.get(name, self._base))}/{name}"

    def write(self, name: str, data: bytes) -> None:
        """Raises LivepatchError if there is no place for it, or if one is not safe."""
        problems = []
        for base in places.BASES:
            try:
                with acting_as(*self._user):
                    self._write(base, name, data)
            except OSError as error:
                if isinstance(error, LivepatchError):
                    raise
                problems.append(error)
            else:
                self._base = self._places[name] = base
                return
        where = " or ".join(f"{base} ({error.strerror})" for base, error in zip(places.BASES, problems, strict=True))
        raise LivepatchError(
            problems[0].errno or errno.EACCES,
            f"No file for process {self._process.pid} can be put into its {where}; make room for a file of"
            f" {len(data) >> 10} KiB there, or start it with `livepatch run -- ...`.",
        )

    def read(self, name: str) -> str | None:
        """What the target has written there; None as long as that is nothing."""
        for directory in self._directories.values():
            with suppress(OSError), acting_as(*self._user):
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=directory)
                with open(descriptor, encoding="utf-8", errors="replace") as file:
                    return file.read(4096) or None
        return None

    def remove(self, name: str) -> bool:
        """Whether it was still there."""
        removed = False
        for directory in self._directories.values():
            with suppress(OSError), acting_as(*self._user):
                os.unlink(name, dir_fd=directory)
                removed = True
        return removed

    def close(self) -> None:
        for descriptor in (*self._directories.values(), self._root):
            os.close(descriptor)

    def _write(self, base: str, name: str, data: bytes) -> None:
        if base not in self._directories:
            self._directories[base] = self._open_directory(base)
        directory = self._directories[base]
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=directory)
        try:
            with open(descriptor, "wb") as file:
                file.write(data)
        except BaseException:
            os.unlink(name, dir_fd=directory)
            raise

    def _open_directory(self, base: str) -> int:
        """A descriptor of the target's socket directory below `base`, reached one step after the other."""
        path = places.directory_of(self._uid, base)
        name = os.path.basename(path)
        with ExitStack() as opened:

            def enter(step: str, within: int) -> int:
                descriptor = os.open(step, _ENTER | os.O_NOFOLLOW, dir_fd=within)
                opened.callback(os.close, descriptor)
                return descriptor

            at = self._root
            for step in base.strip("/").split("/"):
                at = enter(step, at)
            with suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=at)
            problem = places.directory_problem(os.stat(name, dir_fd=at, follow_symlinks=False), self._user[0])
            if problem:
                raise LivepatchError(errno.EACCES, f"{path} {problem}; remove it and try again.")
            directory = enter(name, at)
            if places.directory_problem(os.fstat(directory), self._user[0]):
                raise LivepatchError(errno.EACCES, f"{path} is being changed by somebody; remove it and try again.")
            return os.dup(directory)


@contextmanager
def files_for(process: Process) -> Iterator[Files]:
    """A place for files that the target is to read; what the attach put there is taken away again."""
    files = Files(process)
    try:
        yield files
    finally:
        for name in (files.script, files.bundle, files.failure):
            files.remove(name)
        if not alive(process.pid):
            files.remove(files.request)  # else it takes itself away, see bundle.py
        files.close()


@contextmanager
def acting_as(user: int, group: int) -> Iterator[None]:
    """Root's steps among files are those of this user meanwhile, in this thread only."""
    if os.geteuid() != 0 or (user, group) == (0, os.getegid()):
        yield
        return
    import ctypes

    libc = ctypes.CDLL(None)
    libc.setfsgid(group)
    libc.setfsuid(user)
    try:
        if libc.setfsuid(-1) != user:  # the only way to hear that it was refused
            raise NoAccess(errno.EPERM, f"This root may not act as user {user}; run livepatch as that user.")
        yield
    finally:
        libc.setfsuid(0)
        libc.setfsgid(os.getegid())
