"""Files that decide what a process runs, and so must be in nobody's hands but its user's and root's.

A file counts if it is a regular file that belongs to root or to the user that this process acts as, and nobody else
may write to it; the same for the folder in which it is, since who may write to that may put another file there. It is
looked at after it was opened, so that what was looked at is what is read. A file that is a symbolic link does not
count.
"""

from __future__ import annotations

import errno
import os
import stat

from livepatch.core.model import LivepatchError

_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK


def users(variable: str, default: str) -> str | None:
    """The folder `livepatch` of this user below the one in an environment variable, or below `default`, as in `~/.x`.

    None if it is not known where that is: a user without a home directory.
    """
    for path in (os.environ.get(variable) or "", os.path.expanduser(default)):
        if os.path.isabs(path):
            return os.path.join(path, "livepatch")
    return None


def open_folder(path: str) -> int | None:
    """A descriptor of a folder, None if there is none. Raises LivepatchError (EACCES) if it is not to be trusted."""
    try:
        descriptor = os.open(path, _FLAGS | os.O_DIRECTORY)
    except (FileNotFoundError, PermissionError) as error:
        if isinstance(error, PermissionError) and os.path.isdir(path):
            raise LivepatchError(errno.EACCES, f"{path} cannot be read by user {os.geteuid()}.") from None
        return None  # there is nothing, or it is where this user cannot even look
    except OSError as error:
        raise LivepatchError(errno.EACCES, f"{path} is no folder that could be trusted: {error.strerror}.") from None
    problem = _problem(os.fstat(descriptor))
    if problem:
        os.close(descriptor)
        raise LivepatchError(errno.EACCES, f"{path} {problem}; nothing in it is believed until that is mended.")
    return descriptor


def read(folder: int, name: str, shown: str, limit: int) -> bytes:
    """The content of a file in an open folder.

    Raises FileNotFoundError, and LivepatchError (EACCES, EFBIG) if it is not to be trusted or larger than `limit`.
    """
    try:
        descriptor = os.open(name, _FLAGS | os.O_NOFOLLOW, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise LivepatchError(errno.EACCES, f"{shown} cannot be read: {error.strerror}.") from None
    with open(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        problem = "is not a regular file" if not stat.S_ISREG(found.st_mode) else _problem(found)
        if problem:
            raise LivepatchError(errno.EACCES, f"{shown} {problem}; it is not believed until that is mended.")
        content = file.read(limit + 1)
    if len(content) > limit:
        raise LivepatchError(errno.EFBIG, f"{shown} is larger than {limit} bytes.")
    return content


def read_path(path: str, limit: int) -> bytes | None:
    """The content of a file, None if there is none. Raises LivepatchError like `read` and `open_folder`."""
    around, name = os.path.split(path)
    folder = open_folder(around)
    if folder is None:
        return None
    try:
        return read(folder, name, path, limit)
    except FileNotFoundError:
        return None
    finally:
        os.close(folder)


def _problem(found: os.stat_result) -> str | None:
    """Who else could have written it, as the end of a sentence, or None."""
    if found.st_uid not in (0, os.geteuid()):
        return f"belongs to user {found.st_uid}, and neither to root nor to user {os.geteuid()}"
    # In a folder with the sticky bit others may put files of their own, and touch nobody else's.
    if found.st_mode & 0o022 and not (stat.S_ISDIR(found.st_mode) and found.st_mode & stat.S_ISVTX):
        return "can be written to by other users"
    return None
