"""The folders in which patches are kept that processes apply when they start.

    /var/lib/livepatch               of the machine, for all users
    ~/.local/share/livepatch         of one user ($XDG_DATA_HOME/livepatch)

A file in there is an archive. They are applied in the order of their names, those of the machine first; `livepatch
install` numbers them, so that the order is that in which they were installed. What an archive is called inside is its
name, whatever the file is called; of two with one name the first one counts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

from livepatch.archive import owned
from livepatch.core.model import LivepatchError

SYSTEM = "/var/lib/livepatch"
SUFFIX = ".livepatch"


class File(NamedTuple):
    """An installed file, as it was found: its content, or why there is none."""

    path: str
    data: bytes
    problem: str = ""


def folders() -> list[str]:
    """The folders that count for this user, in order."""
    user = owned.users("XDG_DATA_HOME", "~/.local/share")
    return [SYSTEM] if user is None else [SYSTEM, user]


def files(folder: str) -> Iterator[File]:
    """The installed files in a folder, in order; one whose content is not to be believed has a `problem`."""
    try:
        opened = owned.open_folder(folder)
    except LivepatchError as error:
        yield File(folder, b"", str(error))
        return
    if opened is None:
        return
    try:
        for name in sorted(os.listdir(opened)):
            if name.endswith(SUFFIX) and not name.startswith("."):
                path = os.path.join(folder, name)
                try:
                    from livepatch.archive.format import FILE_LIMIT  # most processes have nothing installed

                    yield File(path, owned.read(opened, name, path, FILE_LIMIT))
                except FileNotFoundError:
                    pass  # uninstalled just now
                except (OSError, ImportError) as error:  # who has given up its user may be kept out of its own library
                    yield File(path, b"", str(error))
    finally:
        os.close(opened)
