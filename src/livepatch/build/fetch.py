"""Releases from the package index, without running anything of them.

pip downloads, so its configuration holds: index, proxy, credentials, certificates. Wheels are preferred: they
are archives of what would be installed, and a pure one where there are several, as it has the same Python source
and no compiled parts.

To download a source distribution, pip insists on asking its build script for its metadata, and that is code of the
package. pip runs it in a process of its own. So pip is stopped at that moment, by an audit hook: then it has unpacked
the files, and nothing of them has been run.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from livepatch.build.unpack import Release, unpack, unpacked
from livepatch.core.model import LivepatchError

_PURE = ("--platform", "any", "--implementation", "py", "--abi", "none")
_ANY = ("--only-binary", ":all:")
_SOURCE = ("--no-binary", ":all:")
_STOPPED = 77
#: In what pip complains about: a full disk, and one of which we may use no more.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
#: pip, until it would start a Python: for the build, or for what the build needs.
_WATCHED = f"""
import os, runpy, sys
def hook(event, args):
    if event in ("subprocess.Popen", "os.posix_spawn", "os.exec") and sys.executable in (args[0], *map(str, args[1])):
        os._exit({_STOPPED})
sys.addaudithook(hook)
sys.argv[0] = "pip"
runpy.run_module("pip", run_name="__main__", alter_sys=True)
"""


def fetch(name: str, version: str) -> Release:
    """Download and unpack a release; `name` and `version` are compared as PEP 503 and PEP 440 say.

    Raises LivepatchError: EINVAL for a strange name or version, ENOENT if there is no such release, ENOSPC if there is
    no room for it, ENOSYS without pip.
    """
    check(name, version)
    answers = []
    with tempfile.TemporaryDirectory(prefix="livepatch-") as folder:
        for options in ((*_ANY, *_PURE), _ANY, _SOURCE):
            answer = _download(name, version, Path(folder), options)
            # It may have left a part of the file there.
            if any(f"[Errno {number}]" in answer for number in _NO_ROOM):
                raise LivepatchError(
                    errno.ENOSPC,
                    f"There is no room for {name} {version} in {os.path.dirname(folder)}; make room there, or name"
                    " another folder with TMPDIR.",
                )
            for wheel in Path(folder).glob("*.whl"):
                return unpack(wheel)
            for about_to_be_built in Path(folder).glob("pip-*/*/PKG-INFO"):
                return unpacked(about_to_be_built.parent)
            answers.append(answer)
    if "No module named pip" in answers[-1]:
        raise LivepatchError(errno.ENOSYS, "Fetching a release needs pip in this Python; run `python -m ensurepip`.")
    errors = [line.removeprefix("ERROR: ") for line in answers[-1].splitlines() if line.startswith("ERROR")]
    raise LivepatchError(
        errno.ENOENT,
        f"{name} {version} was not found on the package index ({errors[-1] if errors else 'pip failed'}).",
    )


def canonical(name: str) -> str:
    """The form of a package's name in which it is compared (PEP 503)."""
    from packaging.utils import canonicalize_name

    return canonicalize_name(name)


def check(name: str, *versions: str) -> None:
    """Raise LivepatchError (EINVAL) for what cannot be the name of a package and its versions."""
    from packaging.utils import InvalidName, canonicalize_name
    from packaging.version import InvalidVersion, Version

    try:
        canonicalize_name(name, validate=True)
    except InvalidName:
        raise LivepatchError(errno.EINVAL, f"{name!r} is not the name of a package.") from None
    for version in versions:
        try:
            Version(version)
        except InvalidVersion:
            raise LivepatchError(
                errno.EINVAL, f"{version!r} is not a version; they look like 2.31.0, 1.0rc1 or 1.0+local."
            ) from None
    if len(versions) == 2 and Version(versions[0]) == Version(versions[1]):
        raise LivepatchError(errno.EINVAL, f"{versions[0]} and {versions[1]} are the same release of {name}.")


def _download(name: str, version: str, folder: Path, options: tuple[str, ...]) -> str:
    """Let pip put a release into a folder, or what it is about to build below it; returns what it complains about."""
    pip = ["-c", _WATCHED] if options == _SOURCE else ["-m", "pip"]
    command = [
        sys.executable,
        "-P",
        *pip,
        "download",
        "--quiet",
        "--no-input",
        "--disable-pip-version-check",
        "--no-deps",
    ]
    command += [*options, "--dest", str(folder), f"{name}=={version}"]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False, env=environment)
    return done.stderr
