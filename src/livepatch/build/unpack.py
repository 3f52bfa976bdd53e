"""Wheels and source distributions, unpacked in memory: nothing of them is built, run or written to disk.

A wheel has its files as they would be installed. A source distribution is a project; which of its files are
importable is found by the rules of `sources`. Both come from elsewhere and are taken at nothing but their word
on what the files contain: a path that leads out of the folder refuses the whole, and so does a size that nobody
needs.
"""

from __future__ import annotations

import email.parser
import errno
import re
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from livepatch.archive.format import safe_path
from livepatch.build.sources import Files, read_tree, stand_in
from livepatch.core.model import LivepatchError

_SIZE_LIMIT = 1024 * 1024 * 1024
_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar")
#: What the files are called that can be unpacked here.
ENDINGS = (".whl", ".zip", *_TARS)


@dataclass(frozen=True)
class Release:
    """One release: files as they would be installed, or those of its project, and what its metadata says."""

    name: str
    version: str
    files: Files
    requires_python: str | None


def unpack(file: Path) -> Release:
    """Raises LivepatchError: EINVAL for what is damaged, hostile or neither, EFBIG for what is too large."""
    if not file.name.endswith(ENDINGS):
        raise LivepatchError(
            errno.EINVAL, f"{file} is neither a folder nor a wheel (.whl) nor a source distribution (.tar.gz, .zip)."
        )
    try:
        members = dict(_tar(file) if file.name.endswith(_TARS) else _zip(file))
    except (LivepatchError, FileNotFoundError, PermissionError):
        raise
    # tarfile, zipfile and each way to compress have their own exceptions for what is damaged.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(":")
        raise LivepatchError(errno.EINVAL, f"{file.name} is damaged: {reason}.") from None
    return _wheel(file.name, members) if file.name.endswith(".whl") else _project(file.name, members)


def unpacked(folder: Path) -> Release:
    """A source distribution that somebody else has unpacked."""
    return _release(folder.name.rpartition("-")[::2], (folder / "PKG-INFO").read_bytes(), read_tree(folder))


def _zip(file: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(file) as archive:
        infos = [info for info in archive.infolist() if not info.is_dir()]
        _check(file.name, [(info.filename, info.file_size) for info in infos])
        for info in infos:
            yield info.filename, archive.read(info)


def _tar(file: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(file) as archive:
        members = [member for member in archive.getmembers() if not member.isdir()]
        _check(file.name, [(member.name, member.size) for member in members])
        for member in members:
            try:
                content = archive.extractfile(member)  # follows links, inside of the archive only
            except KeyError:
                continue  # it leads to nothing
            if content is not None:
                yield member.name, content.read()
        assert archive.fileobj is not None
        while archive.fileobj.read(_SIZE_LIMIT >> 10):  # what is cut off shows at the end only
            pass


def _check(name: str, members: list[tuple[str, int]]) -> None:
    if sum(size for _, size in members) > _SIZE_LIMIT:
        raise LivepatchError(errno.EFBIG, f"{name} unpacks to more than {_SIZE_LIMIT >> 20} MiB.")
    for path, _ in members:
        if not safe_path(path.removeprefix("./")):
            raise LivepatchError(errno.EINVAL, f"{name} contains the path {path!r}.")


def _wheel(file: str, members: Mapping[str, bytes]) -> Release:
    files = {}
    headers = b""
    for path, content in members.items():
        place = _installed(path)
        if place is not None:
            files[place] = stand_in(place, content)
        elif path.endswith(".dist-info/METADATA"):
            headers = content
    return _release(file.split("-"), headers, files)


def _installed(path: str) -> str | None:
    """Where a member of a wheel is installed below site-packages; None for metadata and scripts."""
    folder, _, rest = path.partition("/")
    if folder.endswith(".data"):
        place, _, rest = rest.partition("/")
        return rest if place in ("purelib", "platlib") and rest else None
    return None if folder.endswith(".dist-info") else path


def _project(file: str, members: Mapping[str, bytes]) -> Release:
    """Everything is in one folder, which is called as the release is."""
    named = {path.removeprefix("./"): content for path, content in members.items()}
    folders = {path.partition("/")[0] for path in named}
    if len(folders) != 1 or any("/" not in path for path in named):
        raise LivepatchError(errno.EINVAL, f"{file} is no source distribution: its files are not in one folder.")
    inside = {path.partition("/")[2]: content for path, content in named.items()}
    headers = inside.get("PKG-INFO", b"")
    stem = re.sub(r"\.(zip|tar(\.\w+)?|tgz)$", "", file)
    return _release(stem.rpartition("-")[::2], headers, {path: stand_in(path, inside[path]) for path in inside})


def _release(named: list[str] | tuple[str, ...], headers: bytes, files: Files) -> Release:
    """The metadata says what a release is; without it, the name of its file does."""
    said = email.parser.BytesHeaderParser().parsebytes(headers)
    name, version = str(said["Name"] or named[0]), str(said["Version"] or (*named, "")[1])
    requires = said["Requires-Python"]
    return Release(name, version, files, None if requires is None else str(requires))
