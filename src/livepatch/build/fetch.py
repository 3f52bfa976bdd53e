"""Releases of a package from the package index, without running anything of them.

pip downloads, so its configuration holds: index, proxy, credentials, certificates. Only wheels are taken:
they are archives of what would be installed. To prepare a source distribution, pip runs its build script, and
that is code of the package; a release without a wheel is refused with what to do instead.

A pure wheel is preferred where there are several; it has the same Python source and no compiled parts.
"""

from __future__ import annotations

import email.parser
import errno
import io
import re
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path

from livepatch.archive.format import safe_path
from livepatch.core.model import LivepatchError

_SIZE_LIMIT = 1024 * 1024 * 1024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9.!+_-]*")
_PURE = ("--platform", "any", "--implementation", "py", "--abi", "none")


@dataclass(frozen=True)
class Release:
    """One release, unpacked in memory: files as they would be installed, and what its metadata says."""

    name: str
    version: str
    files: dict[str, bytes]
    requires_python: str | None


def fetch(name: str, version: str) -> Release:
    """Download and unpack a release.

    Raises LivepatchError: EINVAL for a strange name or version, ENOENT if there is no such release or no
    wheel of it, ENOSYS without pip.
    """
    if not _NAME.fullmatch(name) or not _VERSION.fullmatch(version):
        raise LivepatchError(errno.EINVAL, f"{name!r} {version!r} is not the name of a package and a version.")
    with tempfile.TemporaryDirectory(prefix="livepatch-") as folder:
        answers = []
        for options in (_PURE, ()):
            answer = _download(name, version, folder, options)
            wheels = sorted(Path(folder).glob("*.whl"))
            if wheels:
                return _unpack(wheels[0])
            answers.append(answer)
    if "No module named pip" in answers[-1]:
        raise LivepatchError(errno.ENOSYS, "Fetching a release needs pip in this Python; run `python -m ensurepip`.")
    errors = [line.removeprefix("ERROR: ") for line in answers[-1].splitlines() if line.startswith("ERROR")]
    raise LivepatchError(
        errno.ENOENT,
        f"No wheel of {name} {version} for this Python was found ({errors[-1] if errors else 'pip failed'}). "
        "If there is none, unpack the sources by hand and use --old and --new: installing them would run their code.",
    )


def _download(name: str, version: str, folder: str, options: tuple[str, ...]) -> str:
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
    ]
    command += ["--no-deps", "--only-binary", ":all:", *options, "--dest", folder, f"{name}=={version}"]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    return done.stderr


def _unpack(wheel: Path) -> Release:
    name, version = wheel.name.split("-")[:2]
    files: dict[str, bytes] = {}
    requires = None
    try:
        with zipfile.ZipFile(io.BytesIO(wheel.read_bytes())) as archive:
            infos = [info for info in archive.infolist() if not info.is_dir()]
            if sum(info.file_size for info in infos) > _SIZE_LIMIT:
                raise LivepatchError(errno.EFBIG, f"{wheel.name} unpacks to more than {_SIZE_LIMIT >> 20} MiB.")
            for info in infos:
                if not safe_path(info.filename):
                    raise LivepatchError(errno.EINVAL, f"{wheel.name} contains the path {info.filename!r}.")
                path = _installed(info.filename)
                if path is not None:
                    files[path] = archive.read(info)
                elif info.filename.endswith(".dist-info/METADATA"):
                    headers = email.parser.BytesHeaderParser().parsebytes(archive.read(info))
                    requires = headers["Requires-Python"]
    except (zipfile.BadZipFile, EOFError, ValueError) as error:
        raise LivepatchError(errno.EINVAL, f"{wheel.name} is damaged: {error}.") from None
    return Release(name, version, files, requires)


def _installed(path: str) -> str | None:
    """Where a member of a wheel is installed below site-packages; None for metadata and scripts."""
    folder, _, rest = path.partition("/")
    if folder.endswith(".data"):
        place, _, rest = rest.partition("/")
        return rest if place in ("purelib", "platlib") and rest else None
    return None if folder.endswith(".dist-info") else path
