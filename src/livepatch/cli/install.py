"""Commands about the patches that processes apply when they start; `livepatch/agent/startup.py` does that."""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import click

from livepatch.archive import format, installed, policy, seal
from livepatch.archive.format import Manifest
from livepatch.archive.versions import is_older
from livepatch.core.model import LivepatchError
from livepatch.observe import trail

from . import candidates
from .common import DONE, REFUSED, describe, json_option, output
from .files import replace_file

_File = click.Path(exists=True, dir_okay=False, path_type=Path)


def _where_option(default: str) -> Callable[[Any], Any]:
    """`--user` or `--system`."""
    words = f"For the processes of this user, or of all users.  [default: {default}]"
    return click.option("--user/--system", "user", default=None, help=words)


@click.command("install")
@click.argument("file", type=_File, shell_complete=candidates.archives)
@_where_option("--system for root, else --user")
@click.option("--downgrade", is_flag=True, help="Put it in the place of a later version, too.")
@json_option
def install_command(file: Path, user: bool | None, downgrade: bool) -> int:
    """Keep a patch, so that processes apply it when they start.

    Those are the ones that `livepatch run` starts and that call livepatch.start_agent(). A patch is applied before the
    first of its modules is imported, and only if the code there is what it was built for; else it is skipped, with a
    line in the log. Patches are applied in the order in which they were installed; a new version takes the place of the
    one that has its name. What runs already is not touched: `livepatch load` is for that.
    """
    data = file.read_bytes()
    manifest = format.read(data).manifest
    try:
        policy.require(data, file.name)
    except LivepatchError as error:
        trail.refused("install", error, patch=trail.archive_of(data, str(file)))
        raise
    with _folder(user, make=True) as folder:
        known = _known(folder)
        before = known.get(manifest.name)
        if before is not None and is_older(manifest.version, before[1].version) and not downgrade:
            raise LivepatchError(
                errno.ESTALE,
                f"'{manifest.name}' {before[1].version} is installed, and {file} has the older {manifest.version};"
                " say --downgrade if that is meant.",
            )
        path = before[0] if before is not None else folder / _file_name(folder, manifest.name)
        with trail.recorded("install", patch=trail.archive_of(data, str(file)), path=str(path)):
            replace_file(path, data, mode=0o644)
    instead = ""
    if before is not None:
        what = f"version {before[1].version}" if before[1].version else "the one that was there"
        instead = f", in the place of {what}"
    output.say(f"'{manifest.name}' is installed as {path}{instead}.")
    if manifest.replace and set(known) - {manifest.name}:
        output.say("It is cumulative: where it is applied, it takes the place of all that are installed before it.")
    output.result({"name": manifest.name, "version": manifest.version, "file": str(path)})
    return DONE


@click.command("uninstall")
@click.argument("name", shell_complete=candidates.installed_patches)
@_where_option("where it is; if in both, --system for root, else --user")
@json_option
def uninstall_command(name: str, user: bool | None) -> int:
    """Keep a patch no longer. What runs keeps it until `livepatch disable`."""
    with _folder(_where(name) if user is None else user, make=False) as folder:
        found = _known(folder).get(name)
        if found is None:
            sentence = f"No patch '{name}' is installed in {folder}; `livepatch list --installed` lists them."
            raise LivepatchError(errno.ENOENT, sentence)
        patch = {"name": name, "version": found[1].version}
        with trail.recorded("uninstall", patch=patch, path=str(found[0])):
            found[0].unlink()
    output.say(f"'{name}' is not installed any more.")
    output.result({"name": name, "file": str(found[0])})
    return DONE


def show() -> int:
    """`livepatch list --installed`."""
    found = [_looked_at(file) for folder in installed.folders() for file in installed.files(folder)]
    rows = []
    for entry in found:
        if "error" in entry:
            output.warn(f"{entry['file']} is left out: {entry['error']['sentence']}")
        else:
            rows.append([entry[key] or "-" for key in ("name", "version", "for", "modules", "signed", "file")])
    if rows:
        output.table(["PATCH", "VERSION", "FOR", "MODULES", "SIGNED BY", "FILE"], rows)
    elif not found:
        output.say("No patch is installed.")
    output.result(found)
    return REFUSED if any("error" in entry for entry in found) else DONE


def _looked_at(file: installed.File) -> dict[str, Any]:
    try:
        if file.problem:
            raise LivepatchError(errno.EACCES, file.problem)
        manifest = format.read(file.data).manifest
        policy.require(file.data, os.path.basename(file.path))
    except LivepatchError as error:
        return {"file": file.path, "error": describe(error.errno or errno.EINVAL, str(error))}
    return {
        "file": file.path,
        "name": manifest.name,
        "version": manifest.version,
        "replace": manifest.replace,
        "for": ", ".join(f"{release['name']} {release['from']}" for release in manifest.distributions),
        "modules": ", ".join(entry.module for entry in manifest.objects),
        "signed": _signer(file.data),
    }


def _signer(data: bytes) -> str:
    """Who has signed it, as far as that can be told; in strict mode it has been verified before."""
    if not seal.is_signed(data):
        return ""
    try:
        return policy.signer(data, policy.policy().signers).name
    except LivepatchError:
        return "(unknown)"


def _where(name: str) -> bool | None:
    """Whether the patch is kept for this user: None if it is not the only one of its name, or there is none."""
    kept = []
    for folder in installed.folders():
        with suppress(LivepatchError):  # who may not look there is told when it is named
            if name in _known(Path(folder)):
                kept.append(folder != installed.SYSTEM)
    return kept[0] if len(kept) == 1 else None


@contextmanager
def _folder(user: bool | None, *, make: bool) -> Iterator[Path]:
    """The folder to change, which nobody else changes meanwhile."""
    if user is None:
        user = os.geteuid() != 0
    path = next((folder for folder in installed.folders() if (folder != installed.SYSTEM) == user), None)
    if path is None:
        raise LivepatchError(errno.ENOENT, "It is not known where this user's files belong; set HOME.")
    if make:
        os.makedirs(path, 0o755, exist_ok=True)
    elif not os.path.isdir(path):
        raise LivepatchError(errno.ENOENT, f"No patch is installed: there is no {path}.")
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield Path(path)
    finally:
        os.close(descriptor)


def _known(folder: Path) -> dict[str, tuple[Path, Manifest]]:
    """What is installed there, by name. A file that cannot be read is left alone."""
    known: dict[str, tuple[Path, Manifest]] = {}
    for file in installed.files(str(folder)):
        if file.path == str(folder):
            raise LivepatchError(errno.EACCES, file.problem)
        try:
            manifest = format.read(file.data).manifest
        except LivepatchError:
            continue
        known.setdefault(manifest.name, (Path(file.path), manifest))
    return known


def _file_name(folder: Path, name: str) -> str:
    """After all others."""
    numbers = [int(match[0]) for path in folder.iterdir() if (match := re.match(r"\d+", path.name))]
    return f"{max(numbers, default=0) + 1:04d}-{quote(name, safe=' ')[:200]}{installed.SUFFIX}"
