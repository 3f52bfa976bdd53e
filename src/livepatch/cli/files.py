"""Files that are written as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path


def replace_file(path: Path, content: bytes, *, mode: int | None = None) -> None:
    """`replace_files` with one file, which gets this mode if it is given."""
    replace_files({path: content}, mode=mode)


def replace_files(files: Mapping[Path, bytes], *, mode: int | None = None) -> None:
    """Put files in the place of what is there, if anything, which keeps its mode unless another is given. All contents
    are on the disk before the first file gets its name; a device or a pipe is written to as it is.

    Whoever looks sees the one or the other, also after the power has failed. Raises OSError, and then nothing was
    changed.
    """
    parts: dict[Path, str] = {}
    try:
        for path, content in files.items():
            try:
                if path.exists() and not path.is_file():
                    path.write_bytes(content)
                else:
                    _write(path, content, mode, parts)
            except OSError as error:
                # Of the file that was meant, and not of the one beside it.
                raise OSError(error.errno, error.strerror, str(path)) from None
        for path, part in parts.items():
            os.replace(part, path)
    except BaseException:
        for part in parts.values():
            with suppress(FileNotFoundError):
                os.unlink(part)
        raise
    for folder in {path.parent for path in parts}:
        _keep_names(folder)


def _write(path: Path, content: bytes, mode: int | None, parts: dict[Path, str]) -> None:
    """Beside the file, in `parts` from its first moment."""
    if mode is None:
        mode = path.stat().st_mode & 0o7777 if path.exists() else 0o666 & ~_umask()
    descriptor, parts[path] = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.")
    with open(descriptor, "wb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), mode)
        os.fsync(file.fileno())


def _keep_names(folder: Path) -> None:
    """The names have to be on the disk, too. Where a file system does not know that, they are as safe as it goes."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask
