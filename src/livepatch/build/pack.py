"""The ways to a pair of sources, and from there to an archive."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from livepatch.archive import byhand, format
from livepatch.archive.format import (
    AddedEntry,
    Archive,
    ConstantEntry,
    FunctionEntry,
    Manifest,
    ObjectEntry,
    RemovedEntry,
)
from livepatch.build import diff
from livepatch.build.compare import compare
from livepatch.build.fetch import fetch
from livepatch.build.report import ADDED, AT_COMPLETION, CARRIED, LEFT_OUT, NOTED, Report
from livepatch.build.sources import Files, Tree, read_tree
from livepatch.core.model import LivepatchError


@dataclass(frozen=True)
class Build:
    """Two versions of a source and what a patch from the one to the other would do."""

    report: Report
    old: Files = field(repr=False)
    new: Files = field(repr=False)
    distribution: Mapping[str, str] | None = None
    requires_python: str | None = None

    def narrowed(self, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> Build:
        """Leave out what `only` does not name or `exclude` does; see `Report.narrowed`."""
        return replace(self, report=self.report.narrowed(only, exclude))

    def archive(
        self,
        name: str,
        *,
        version: str = "",
        description: str = "",
        replaces: bool = False,
        hooks: bytes | None = None,
    ) -> bytes:
        """The content of the patch archive; the same build always gives the same bytes.

        `replaces` makes it a cumulative patch; `version` is that of the new release unless given; `hooks` is the
        source of its callbacks, which is compiled here but not run.
        Raises LivepatchError: EINVAL if something is refused or the name or the hooks will not do, ENODATA if
        nothing changes at run time.
        """
        format.check_name(name)
        if hooks is not None:
            byhand.check_hooks(hooks)
        refused = self.report.refused
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise LivepatchError(errno.EINVAL, f"The patch cannot carry everything: {refused[0]}{more}.")
        if self.report.changes_nothing:
            raise LivepatchError(errno.ENODATA, "Nothing changes for a running process, so there is no patch to make.")
        objects = tuple(_entry(self.report, module) for module in _order(self.report))
        manifest = Manifest(
            name,
            version=version or (self.distribution or {}).get("to", ""),
            description=description,
            replace=replaces,
            requires_python=self.requires_python,
            distribution=self.distribution,
            objects=objects,
        )
        old, new = Tree.sort(self.old).python, Tree.sort(self.new).python
        paths = [entry.path for entry in objects]
        return format.write(Archive(manifest, {p: old[p] for p in paths}, {p: new[p] for p in paths}, hooks))


def from_trees(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Build:
    """Compare two directories. Raises LivepatchError if one is none, or is itself a package."""
    before, after = read_tree(old), read_tree(new)
    return Build(compare(before, after), before, after)


def from_diff(text: str, directory: str | os.PathLike[str]) -> Build:
    """Compare a directory with what a unified diff makes of it.

    Raises LivepatchError (EINVAL) naming file and line if the diff does not apply.
    """
    before = read_tree(directory)
    after = diff.apply(text, before)
    return Build(compare(before, after), before, after)


def from_package(name: str, old: str, new: str) -> Build:
    """Compare two releases of a package from the package index; raises as `fetch`."""
    before, after = fetch(name, old), fetch(name, new)
    distribution = {"name": after.name, "from": before.version, "to": after.version}
    report = compare(before.files, after.files)
    return Build(report, before.files, after.files, distribution, after.requires_python)


def _order(report: Report) -> list[str]:
    """The changed modules, those that add a name before those that import it from them."""
    adds = {f"{change.module}:{change.name}" for change in report.of(ADDED, AT_COMPLETION)}
    waits: dict[str, set[str]] = {module: set() for module in report.modules}
    for change in report.of(CARRIED, ADDED, AT_COMPLETION):
        waits[change.module] |= {need.partition(":")[0] for need in change.needs & adds} - {change.module}
    ordered: list[str] = []
    while waits:
        # Modules that wait for each other go by name: then some import may fail when the patch is loaded.
        ready = [module for module in waits if not waits[module] & waits.keys()] or list(waits)[:1]
        ordered += ready
        for module in ready:
            del waits[module]
    return ordered


def _entry(report: Report, module: str) -> ObjectEntry:
    changes = [change for change in report.changes if change.module == module]
    entries = [change.entry for change in changes if change.entry is not None]
    return ObjectEntry(
        module,
        next(change.file for change in changes if change.entry is not None),
        functions=tuple(entry for entry in entries if isinstance(entry, FunctionEntry)),
        added=tuple(entry for entry in entries if isinstance(entry, AddedEntry)),
        removed=tuple(entry for entry in entries if isinstance(entry, RemovedEntry)),
        at_completion=tuple(entry for entry in entries if isinstance(entry, ConstantEntry)),
        notes=tuple(str(change) for change in changes if change.fate in (NOTED, LEFT_OUT)),
    )
