"""From the step between two versions of a source to a report, and from there to an archive."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from livepatch.archive import byhand, format
from livepatch.archive.format import (
    AddedEntry,
    Archive,
    BasesEntry,
    BranchEntry,
    CacheEntry,
    ConstantEntry,
    DefaultEntry,
    EffectEntry,
    EnumEntry,
    FunctionEntry,
    Manifest,
    MemberEntry,
    ModuleEntry,
    ObjectEntry,
    RemovedEntry,
)
from livepatch.build import steps
from livepatch.build.base import Base, check_hooks
from livepatch.build.compare import compare
from livepatch.build.report import ADDED, AT_COMPLETION, FATES, IN_PATCH, LEFT_OUT, NOTED, VALUE, Report
from livepatch.build.sides import Sides
from livepatch.build.sources import Files, Tree
from livepatch.build.staying import settle_staying
from livepatch.build.steps import Step
from livepatch.core.model import LivepatchError


@dataclass(frozen=True)
class Build:
    """Two versions of a source and what a patch from the one to the other would do.

    `base` are the archives whose place the patch takes.
    """

    report: Report
    old: Files | Tree = field(repr=False)
    new: Files | Tree = field(repr=False)
    distributions: tuple[Mapping[str, str], ...] = ()
    requires_python: str | None = None
    version: str = ""
    description: str = ""
    base: tuple[Archive, ...] = field(default=(), repr=False)

    def narrowed(self, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> Build:
        """Leave out what `only` does not name or `exclude` does; see `Report.narrowed`."""
        return replace(self, report=self.report.narrowed(only, exclude))

    def hooked(self, hooks: bytes | None) -> Build:
        """With the hooks that a person wrote, some of what is refused need not be. Raises as `archive`, for these."""
        if hooks is None:
            return self
        byhand.check_hooks(hooks)
        return replace(self, report=self.report.hooked(byhand.attributes_of(hooks)))

    def at_once(self, names: Iterable[str]) -> Build:
        """Have these functions change for everybody at once; see `Report.at_once`."""
        return replace(self, report=self.report.at_once(names))

    @cached_property
    def trees(self) -> tuple[Tree, Tree]:
        """The files of both versions, sorted."""
        return Tree.sort(self.old), Tree.sort(self.new)

    @cached_property
    def sides(self) -> Sides:
        """The lines of both versions, for who shows them."""
        return Sides(*self.trees)

    def to_json(self) -> dict[str, list[dict[str, Any]]]:
        """The report for machines: as `Report.to_json`, and each change with its `old` and `new` lines.

        These are the first and the last line of what the change is about, or None where that version has no such thing.
        """
        found: dict[str, list[dict[str, Any]]] = {}
        for fate in FATES:
            sides = [(change, *self.sides.of(change)) for change in self.report.of(fate)]
            found[fate] = [{**change.to_json(), "old": old, "new": new} for change, old, new in sides]
        return found

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

        `replaces` makes it a cumulative patch, as a base does; `version` is that of the new release unless given;
        `hooks` is the source of its callbacks, which is compiled here but not run.
        Raises LivepatchError: EINVAL if something is refused, the name or the hooks will not do or those of a base
        would be lost, ENODATA if nothing changes at run time.
        """
        format.check_name(name)
        check_hooks(self.base, hooks)
        if hooks is not None:
            byhand.check_hooks(hooks)
        refused = self.report.refused
        if refused:
            more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
            raise LivepatchError(errno.EINVAL, f"The patch cannot carry everything: {refused[0]}{more}.")
        if self.report.changes_nothing:
            raise LivepatchError(errno.ENODATA, "Nothing changes for a running process, so there is no patch to make.")
        modules = [c.entry for c in self.report.of(ADDED) if isinstance(c.entry, ModuleEntry)]
        new_ones = {entry.module for entry in modules}
        objects = tuple(_entry(self.report, name) for name in _order(self.report) if name not in new_ones)
        manifest = Manifest(
            name,
            version=version or self.version,
            description=description or self.description,
            replace=replaces or bool(self.base),
            requires_python=self.requires_python,
            distributions=self.distributions,
            objects=objects,
            absent=tuple(self.report.absent),
            modules=tuple(modules),
        )
        old, new = (tree.python for tree in self.trees)
        paths = [entry.path for entry in objects]
        after = [*paths, *(entry.path for entry in modules)]
        return format.write(Archive(manifest, {p: old[p] for p in paths}, {p: new[p] for p in after}, hooks))


def from_step(step: Step, base: Sequence[Archive] = ()) -> Build:
    """Compare the two sides of a step, begun where the archives of `base` began.

    Raises LivepatchError (EINVAL) if there is no source in it, or the archives do not fit it.
    """
    if not (step.old.python and step.new.python) and not (step.old.compiled or step.new.compiled or base):
        raise LivepatchError(
            errno.EINVAL,
            "There is no importable Python source in the two versions; is the package in a folder below?",
        )
    earlier = Base(tuple(base))
    joined = earlier.under(step) if base else step
    report = compare(joined.old, joined.new)
    report = Report([*report.changes, *step.refused])
    report = earlier.settle(report, step) if base else report
    return Build(
        settle_staying(report, joined.old, joined.new, [archive.new for archive in base]),
        joined.old,
        joined.new,
        joined.distributions,
        joined.requires_python,
        joined.version,
        joined.description,
        tuple(base),
    )


def from_trees(old: str | os.PathLike[str], new: str | os.PathLike[str]) -> Build:
    """Compare two folders, wheels or source distributions; raises as `steps.trees`."""
    return from_step(steps.trees(old, new))


def from_diff(text: str, directory: str | os.PathLike[str]) -> Build:
    """Compare a directory with what a unified diff makes of it; raises as `steps.patched`."""
    return from_step(steps.patched(text, directory))


def from_package(name: str, old: str, new: str) -> Build:
    """Compare two releases of a package from the package index; raises as `steps.package`."""
    return from_step(steps.package(name, old, new))


def from_git(span: str, directory: str | os.PathLike[str] = ".") -> Build:
    """Compare `REV1..REV2` of the git repository that a folder is in; raises as `steps.revisions`."""
    return from_step(steps.revisions(span, directory))


def _order(report: Report) -> list[str]:
    """The changed modules, those that add a name before those that import it from them."""
    adds = {f"{change.module}:{change.name}" for change in report.of(ADDED, VALUE, AT_COMPLETION)}
    waits: dict[str, set[str]] = {module: set() for module in report.modules}
    for change in report.of(*IN_PATCH):
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
        caches=tuple(entry for entry in entries if isinstance(entry, CacheEntry)),
        defaults=tuple(entry for entry in entries if isinstance(entry, DefaultEntry)),
        bases=tuple(entry for entry in entries if isinstance(entry, BasesEntry)),
        enums=tuple(entry for entry in entries if isinstance(entry, EnumEntry)),
        members=tuple(entry for entry in entries if isinstance(entry, MemberEntry)),
        branches=tuple(entry for entry in entries if isinstance(entry, BranchEntry)),
        effects=tuple(entry for entry in entries if isinstance(entry, EffectEntry)),
        notes=tuple(str(change) for change in changes if change.fate in (NOTED, LEFT_OUT)),
    )
