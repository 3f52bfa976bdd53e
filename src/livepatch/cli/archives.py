"""Commands about patch archives: make one, look into one. Neither touches a process."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livepatch.archive import format
from livepatch.core.model import LivepatchError

from .common import DONE, REFUSED, json_option, output

if TYPE_CHECKING:
    from livepatch.build import Build, Change

_Folder = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command("build")
@click.option(
    "-o",
    "--output",
    "file",
    required=True,
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The archive to write, usually NAME.livepatch.",
)
@click.option("--name", help="The name of the patch.  [default: that of FILE]")
@click.option("--description", default="", help="One sentence for those who will load it.")
@click.option("--old", type=_Folder, metavar="DIR", help="The source as it runs.")
@click.option("--new", type=_Folder, metavar="DIR", help="The source as it shall be.")
@click.option("--diff", type=click.File(), metavar="FILE", help="A unified diff, - for standard input.")
@click.option("--src", type=_Folder, metavar="DIR", help="The source tree that the diff applies to.")
@click.option("--package", metavar="NAME", help="A package, fetched from the package index; nothing of it is run.")
@click.option("--from", "old_version", metavar="V1", help="Its release as it runs.")
@click.option("--to", "new_version", metavar="V2", help="Its release as it shall be.")
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Carry only these: module, module:name or file. Repeatable."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these out. Repeatable.")
@click.option("--replace", is_flag=True, help="Make it cumulative: it takes the place of all patches loaded before it.")
@click.option(
    "--hooks",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Python with callbacks for the patch, executed when it is loaded.",
)
@click.option("-v", "--verbose", is_flag=True, help="List what has no effect at run time and what was left out, too.")
@json_option
def build_command(
    file: Path,
    name: str | None,
    description: str,
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    replace: bool,
    hooks: Path | None,
    verbose: bool,
    **source: Any,
) -> int:
    """Make a patch archive from two versions of a source.

    \b
      livepatch build -o FILE --old DIR --new DIR
      livepatch build -o FILE --diff FILE --src DIR
      livepatch build -o FILE --package NAME --from V1 --to V2

    Prints every difference and what becomes of it. If one cannot be carried, or nothing changes for a running
    process (only comments, documentation and the like), nothing is written and the exit status is 1.
    """  # fmt: skip
    build = _compare(source).narrowed(only, exclude)
    report = build.report
    _show(build, verbose)
    written = None
    if report.refused:
        output.warn(
            f"{_count(len(report.refused), 'difference')} cannot be carried, so nothing was written;"
            " leave out what does not matter with --exclude."
        )
    elif report.changes_nothing:
        output.warn("Nothing changes for a running process, so there is no patch to make and nothing was written.")
    else:
        name = name or file.stem
        content = hooks.read_bytes() if hooks is not None else None
        _write(file, build.archive(name, description=description, replaces=replace, hooks=content))
        written = str(file)
        output.say(f"'{name}' is in {file}.")
    output.result({"file": written, "name": name, "report": report.to_json()})
    return DONE if written else REFUSED


def _compare(source: dict[str, Any]) -> Build:
    """The build that the options ask for: one of three ways, and all of its options."""
    given = {key for key, value in source.items() if value is not None}
    ways: dict[frozenset[str], Callable[[], Build]] = {
        frozenset(("old", "new")): lambda: build.from_trees(source["old"], source["new"]),
        frozenset(("diff", "src")): lambda: build.from_diff(_text(source["diff"]), source["src"]),
        frozenset(("package", "old_version", "new_version")): lambda: build.from_package(
            source["package"], source["old_version"], source["new_version"]
        ),
    }
    way = ways.get(frozenset(given))
    if way is None:
        raise click.UsageError(
            "Say where the two versions are, in one of three ways: --old DIR --new DIR, --diff FILE --src DIR, or"
            " --package NAME --from V1 --to V2."
        )
    from livepatch import build

    return way()


def _text(file: Any) -> str:
    try:
        text: str = file.read()
    except UnicodeDecodeError:
        raise LivepatchError(errno.EINVAL, f"{file.name} is not a text file, so it is no diff.") from None
    return text


def _write(file: Path, data: bytes) -> None:
    """All of it or nothing."""
    part = file.with_name(file.name + ".part")
    try:
        part.write_bytes(data)
        os.replace(part, file)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _show(build: Build, verbose: bool) -> None:
    """The report: what is carried and how, what is refused and why; the rest by number, or in full."""
    report = build.report
    if build.distribution:
        release = build.distribution
        output.say(f"{release['name']} {release['from']} -> {release['to']}")
    shown = [
        ("changed", report.functions),
        ("added", report.added),
        ("at completion", report.at_completion),
    ]
    if verbose:
        shown += [("no effect", report.notes), ("left out", report.left_out)]
    shown += [("REFUSED", report.refused)]
    rows = [_row(fate, change) for fate, changes in shown for change in changes]
    if rows:
        output.table(["", "WHERE", "WHAT", "WHY"], rows)
    hints: dict[str, list[str]] = {}
    for change in report.refused:
        hints.setdefault(change.hint, []).append(_where(change))
    for hint, places in hints.items():
        if hint:
            output.say(f"{', '.join(places)}: {hint}")
    if not verbose and (report.notes or report.left_out):
        output.say(
            f"Besides, {_count(len(report.notes), 'difference')} without effect and {len(report.left_out)} left out"
            " (--verbose lists them)"
        )


def _row(fate: str, change: Change) -> list[str]:
    what = f"{change.kind} {change.name}".strip() if change.name else change.kind or change.module
    return [fate, _where(change), what, change.reason]


def _where(change: Change) -> str:
    return f"{change.file}:{change.line}" if change.line else change.file


@click.command("info")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@json_option
def info_command(file: Path) -> int:
    """Show what is in a patch archive."""
    if file.suffix == ".py":
        raise LivepatchError(
            errno.ENOEXEC, f"{file} is a patch written by hand; what is in it shows when it is run: `livepatch check`."
        )
    archive = format.read(file.read_bytes())
    manifest = archive.manifest
    output.say(f"'{manifest.name}' {manifest.version}".rstrip())
    if manifest.description:
        output.say(manifest.description)
    if manifest.distribution:
        release = manifest.distribution
        output.say(f"built from {release['name']} {release['from']} -> {release['to']}")
    if manifest.requires_python:
        output.say(f"for Python {manifest.requires_python}")
    if manifest.replace:
        output.say("replaces all patches that are loaded before it")
    if archive.hooks is not None:
        output.say(f"brings callbacks, which are executed when it is loaded: unzip -p {file} {format.HOOKS}")
    rows = []
    for entry in manifest.objects:
        rows += [[entry.module, "changed", part.name, part.reason, str(part.line)] for part in entry.functions]
        rows += [[entry.module, "added", part.name, part.kind, str(part.line)] for part in entry.added]
        rows += [[entry.module, "at completion", part.name, "name", str(part.line)] for part in entry.at_completion]
    if rows:
        output.table(["MODULE", "", "WHAT", "WHY", "LINE"], rows)
    for entry in manifest.objects:
        for note in entry.notes:
            output.say(note)
    output.result({**asdict(manifest), "hooks": archive.hooks is not None})
    return DONE
