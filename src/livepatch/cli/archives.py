"""Commands about patch archives: make one, look into one. Neither touches a process."""

from __future__ import annotations

import errno
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from livepatch.archive import byhand, format, seal
from livepatch.core.model import LivepatchError

from . import candidates
from .common import DONE, REFUSED, json_option, output
from .files import replace_files

if TYPE_CHECKING:
    from livepatch.build import Build, Change
    from livepatch.build.steps import Step

_Folder = click.Path(exists=True, file_okay=False, path_type=Path)
_Output = click.Path(dir_okay=False, path_type=Path)
_File = click.Path(exists=True, dir_okay=False, path_type=Path)
_Source = click.Path(exists=True, path_type=Path)
_WAYS = "PACKAGE==V1..V2, --git REV1..REV2, --old DIR --new DIR, or --diff FILE --src DIR"


@click.command("build")
@click.option(
    "-o",
    "--output",
    "file",
    required=True,
    type=_Output,
    metavar="FILE",
    help="The archive to write, usually NAME.livepatch.",
)
@click.option("--name", help="The name of the patch.  [default: that of FILE]")
@click.option("--description", default="", help="One sentence for those who will load it.")
@click.argument("releases", nargs=-1, metavar="[PACKAGE==V1..V2]...")
@click.option(
    "--old", type=_Source, multiple=True, metavar="PATH", help="The source as it runs: a folder, wheel or sdist."
)
@click.option("--new", type=_Source, multiple=True, metavar="PATH", help="The source as it shall be. Both repeatable.")
@click.option("--git", "span", metavar="REV1..REV2", help="Two revisions of a repository.")
@click.option("--diff", type=click.File(), metavar="FILE", help="A unified diff, - for standard input.")
@click.option(
    "--src",
    type=_Folder,
    metavar="DIR",
    help="The source tree that the diff applies to, or the folder of the repository to take.  [default for --git: .]",
)
@click.option("--package", metavar="NAME", help="With --from V1 and --to V2, the same as NAME==V1..V2.")
@click.option("--from", "old_version", metavar="V1", help="Its release as it runs.")
@click.option("--to", "new_version", metavar="V2", help="Its release as it shall be.")
@click.option("--vendored-in", metavar="MODULE", help="Patch the copy in this package instead, such as pip._vendor.")
@click.option(
    "--vendored-with", multiple=True, metavar="MODULE", help="What else is vendored there and imported. Repeatable."
)
@click.option(
    "--only", multiple=True, metavar="GLOB", help="Carry only these: module, module:name or file. Repeatable."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these out. Repeatable.")
@click.option(
    "--immediate",
    multiple=True,
    metavar="GLOB",
    help="Functions that change for everybody at once, since tasks never leave them. Repeatable.",
)
@click.option("--replace", is_flag=True, help="Make it cumulative: it takes the place of all patches loaded before it.")
@click.option(
    "--base",
    shell_complete=candidates.archives,
    type=_File,
    multiple=True,
    metavar="FILE",
    help="Make it cumulative and carry all that this earlier archive carries. Repeatable, oldest first.",
)
@click.option(
    "--hooks",
    type=_File,
    metavar="FILE",
    help="Python with callbacks for the patch, executed when it is loaded.",
)
@click.option("--report", "report_file", type=_Output, metavar="FILE", help="Write the report, as one HTML page, too.")
@click.option(
    "--skeleton",
    "skeleton_file",
    type=_Output,
    metavar="FILE",
    help="Write the hooks that are asked for, as Python to fill in and give to --hooks.",
)
@click.option("-v", "--verbose", is_flag=True, help="List what has no effect at run time and what was left out, too.")
@json_option
def build_command(
    file: Path,
    name: str | None,
    description: str,
    only: tuple[str, ...],
    exclude: tuple[str, ...],
    immediate: tuple[str, ...],
    replace: bool,
    base: tuple[Path, ...],
    hooks: Path | None,
    report_file: Path | None,
    skeleton_file: Path | None,
    verbose: bool,
    **source: Any,
) -> int:
    """Make a patch archive from two versions of a source.

    \b
      livepatch build -o FILE requests==2.30.0..2.31.0
      livepatch build -o FILE --git v1.2..v1.2.1 --src service/
      livepatch build -o FILE --old DIR --new DIR
      livepatch build -o FILE --diff FILE --src DIR

    Releases come from the package index; nothing of them is built or run. Several sources make one patch.

    Prints every difference and what becomes of it; --report FILE.html shows it with old and new code side by side. If
    one cannot be carried, or nothing changes for a running process (only comments, documentation and the like), no
    archive is written and the exit status is 1.
    """  # fmt: skip
    from livepatch.build.page import page
    from livepatch.build.skeleton import skeleton

    _check_outputs(file, report_file, skeleton_file, [*filter(None, [hooks]), *base, *source["old"], *source["new"]])
    content = hooks.read_bytes() if hooks is not None else None
    build = _compare(source, base).narrowed(only, exclude).hooked(content).at_once(immediate)
    report = build.report
    name = name or file.stem
    asked = skeleton(build)
    _show(build, verbose)
    files: dict[Path, bytes] = {}
    if not report.refused and not report.changes_nothing:
        files[file] = build.archive(name, description=description, replaces=replace, hooks=content)
    if report_file is not None:
        files[report_file] = page(build, name, str(file)).encode()
    if skeleton_file is not None and asked:
        files[skeleton_file] = asked.encode()
    replace_files(files)
    if report_file is not None:
        output.say(f"The report is in {report_file}.")
    if skeleton_file is not None:
        output.say(f"The hooks to fill in are in {skeleton_file}." if asked else "No hooks are asked for.")
    elif asked:
        output.say("What hooks can say: --skeleton FILE writes them, to be filled in and given to --hooks.")
    if report.refused:
        output.warn(
            f"{_count(len(report.refused), 'difference')} cannot be carried, so no archive was written;"
            " leave out what does not matter with --exclude."
        )
    elif report.changes_nothing:
        output.warn("Nothing changes for a running process, so there is no patch to make and no archive was written.")
    else:
        output.say(f"'{name}' is in {file}.")
    if output.json:
        output.result(
            {
                "file": str(file) if file in files else None,
                "name": name,
                "page": str(report_file) if report_file is not None else None,
                "skeleton": asked or None,
                "report": build.to_json(),
            }
        )
    return DONE if file in files else REFUSED


def _check_outputs(file: Path, report: Path | None, skeleton: Path | None, read: list[Path]) -> None:
    """Nothing is written over what is read, or over what a person may have filled in, and no file twice."""
    taken = {path.resolve() for path in [file, *read]}
    for option, path in (("--report", report), ("--skeleton", skeleton)):
        if path is not None and path.resolve() in taken:
            raise click.UsageError(f"{option} names {path}, which is another file of this build; name a new one.")
        taken |= {path.resolve()} if path is not None else set()
    if skeleton is not None and skeleton.exists():
        raise LivepatchError(
            errno.EEXIST, f"{skeleton} exists, and may have been filled in; name a new file for the skeleton."
        )


def _compare(source: dict[str, Any], base: tuple[Path, ...]) -> Build:
    """The build that the options ask for."""
    from livepatch.build import from_step, steps

    found = [way() for way in _ways(source)]
    if not found and not base:
        raise click.UsageError(f"Say where the two versions are: {_WAYS}.")
    step = steps.together(found)
    if source["vendored_in"]:
        step = step.vendored(source["vendored_in"], source["vendored_with"])
    elif source["vendored_with"]:
        raise click.UsageError("--vendored-with needs --vendored-in.")
    return from_step(step, [format.read(file.read_bytes()) for file in base])


def _ways(source: dict[str, Any]) -> Iterator[Callable[[], Step]]:
    """How to get each of the steps that the options name; all of them make sense before the first is taken."""
    from livepatch.build import steps

    old, new, text, src = (source[key] for key in ("old", "new", "diff", "src"))
    release = [source[key] for key in ("package", "old_version", "new_version")]
    releases = [_release(spec) for spec in source["releases"]]
    whole = len(old) == len(new) and all(release) == any(release) and (not text or src)
    if not whole or (src and not text and not source["span"]):
        raise click.UsageError(f"An option is missing, or needless: {_WAYS}.")
    for name, before, after in [*releases, *([release] if all(release) else [])]:
        yield partial(steps.package, name, before, after)
    for before, after in zip(old, new, strict=True):
        yield partial(steps.trees, before, after)
    if source["span"]:
        yield partial(steps.revisions, source["span"], src or ".")
    if text:
        yield partial(steps.patched, _text(text), src)


def _release(spec: str) -> list[str]:
    match = re.fullmatch(r"\s*([^=<>!~\s]+)\s*==\s*(\S+?)\s*\.\.\s*([^\s.]\S*)\s*", spec)
    if match is None:
        raise click.UsageError(f"{spec!r} does not name two releases; write {_WAYS}.")
    return list(match.groups())


def _text(file: Any) -> str:
    try:
        text: str = file.read()
    except UnicodeDecodeError:
        raise LivepatchError(errno.EINVAL, f"{file.name} is not a text file, so it is no diff.") from None
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _show(build: Build, verbose: bool) -> None:
    """The report: what is carried and how, what is refused and why; the rest by number, or in full."""
    report = build.report
    for release in build.distributions:
        output.say(f"{release['name']} {release['from']} -> {release['to']}")
    shown = [
        ("changed", report.functions),
        ("immediate", report.immediate),
        ("added", report.added),
        ("value", report.values),
        ("at completion", report.at_completion),
    ]
    if verbose:
        shown += [("no effect", report.notes), ("left out", report.left_out)]
        shown += [("not carried", report.set_aside)]
    shown += [("REFUSED", report.refused)]
    rows = [_row(fate, change) for fate, changes in shown for change in changes]
    if rows:
        output.table(["", "WHERE", "WHAT", "WHY"], rows)
    if report.not_consistent:
        late = ", ".join(dict.fromkeys(map(_where, report.not_consistent)))
        output.say(f"Without consistency, and only at completion unless it says otherwise: {late}")
    hints: dict[str, list[str]] = {}
    for change in [*report.functions, *report.refused]:
        hints.setdefault(change.hint, []).append(_where(change))
    for hint, places in hints.items():
        if hint:
            output.say(f"{', '.join(places)}: {hint}")
    if report.absent:
        output.say(f"Not carried, and refused where they are loaded: {', '.join(report.absent)}")
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
@click.argument("file", type=_File, shell_complete=candidates.archives)
@json_option
def info_command(file: Path) -> int:
    """Show what is in a patch archive."""
    if file.suffix == ".py":
        raise LivepatchError(
            errno.ENOEXEC, f"{file} is a patch written by hand; what is in it shows when it is run: `livepatch check`."
        )
    data = file.read_bytes()
    archive = format.read(data)
    manifest = archive.manifest
    output.say(f"'{manifest.name}' {manifest.version}".rstrip())
    if manifest.description:
        output.say(manifest.description)
    for release in manifest.distributions:
        output.say(f"built from {release['name']} {release['from']} -> {release['to']}")
    if manifest.requires_python:
        output.say(f"for Python {manifest.requires_python}")
    if manifest.replace:
        output.say("replaces all patches that are loaded before it")
    if archive.hooks is not None:
        output.say(f"brings callbacks, which are executed when it is loaded: unzip -p {file} {format.HOOKS}")
    classes = byhand.classes_of(archive.hooks or b"")
    if classes:
        output.say(f"goes through the live instances of {', '.join(classes)}; `livepatch check` says what that costs")
    if manifest.absent:
        output.say(f"not for processes that have imported {', '.join(manifest.absent)}")
    signed = seal.is_signed(data)
    if signed:
        output.say("has a signature; `livepatch verify` says whose, and whether it is good")
    rows = []
    for entry in manifest.objects:
        rows += [
            [entry.module, "immediate" if part.immediate else "changed", part.name, part.reason, str(part.line)]
            for part in entry.functions
        ]
        rows += [[entry.module, "added", part.name, part.kind, str(part.line)] for part in entry.added]
        rows += [[entry.module, part.how, part.name, "name", str(part.line)] for part in entry.at_completion]
        rows += [[entry.module, format.AT_COMPLETION, part.name, "statement", str(part.line)] for part in entry.effects]
    rows += [[new.module, "added", "", "module", ""] for new in manifest.modules]
    if rows:
        output.table(["MODULE", "", "WHAT", "WHY", "LINE"], rows)
    for entry in manifest.objects:
        for note in entry.notes:
            output.say(note)
    output.result({**asdict(manifest), "hooks": archive.hooks is not None, "instances": classes, "signed": signed})
    return DONE
