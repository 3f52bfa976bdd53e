"""Cumulative patches: a step that begins where earlier archives began, and carries all that they carried.

An archive that replaces others takes them back as a whole, so that what it does not carry itself is lost. So the
sources of the earlier archives (before and after, of every module that they change) are laid under those of the
step, module by module, and compared again. What they carried and the result would not is refused, never dropped.
"""

from __future__ import annotations

import errno
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from livepatch.archive.format import Archive, ObjectEntry
from livepatch.build.report import ADDED, AT_COMPLETION, CARRIED, LEFT_OUT, REFUSED, Change, Report
from livepatch.build.steps import Step
from livepatch.core.model import LivepatchError

_Pair = tuple[bytes | None, bytes | None]


@dataclass(frozen=True)
class Base:
    """What earlier archives carry: for every module, its two versions and which names in it."""

    archives: tuple[Archive, ...]

    def under(self, step: Step) -> Step:
        """The step, begun where the archives began.

        Raises LivepatchError (EINVAL) if a module of theirs is another one than that of the step.
        """
        pairs: dict[str, _Pair] = {}
        shown: dict[str, str] = {}
        for archive in self.archives:
            for path in archive.old.keys() | archive.new.keys():
                later = archive.old.get(path), archive.new.get(path)
                pairs[path] = _joined(pairs[path], later, path, shown[path]) if path in pairs else later
                shown[path] = archive.manifest.name
        old, new = dict(step.old.python), dict(step.new.python)
        for path, pair in pairs.items():
            if path in old or path in new:
                pair = _joined(pair, (old.get(path), new.get(path)), path, shown[path])
            for side, content in zip((old, new), pair, strict=True):
                side.pop(path, None)
                if content is not None:
                    side[path] = content
        return replace(
            step,
            old=replace(step.old, python=old),
            new=replace(step.new, python=new),
            distributions=self._distributions(step),
        )

    def _distributions(self, step: Step) -> tuple[Mapping[str, str], ...]:
        found: dict[str, dict[str, str]] = {}
        for distributions in (*(archive.manifest.distributions for archive in self.archives), step.distributions):
            for distribution in distributions:
                first = found.get(distribution["name"], distribution)
                found[distribution["name"]] = {**distribution, "from": first["from"]}
        return tuple(found.values())

    def settle(self, report: Report, step: Step) -> Report:
        """The report of the step with what only the archives change cut down to what they carried; what they
        carried and it does not is refused."""
        entries = [(archive.manifest.name, entry) for archive in self.archives for entry in archive.manifest.objects]
        brought = [(archive.manifest.name, new) for archive in self.archives for new in archive.manifest.modules]
        carried = {f"{entry.module}:{name}": patch for patch, entry in entries for name in _names(entry)}
        carried |= {f"{new.module}:": patch for patch, new in brought}
        theirs = {e.module for _, e in entries if step.old.python.get(e.path) == step.new.python.get(e.path)}
        changes = [
            replace(change, fate=LEFT_OUT, reason="the earlier patch left it out, too", entry=None)
            if change.module in theirs and change.fate in (CARRIED, ADDED, AT_COMPLETION, REFUSED)
            and change.key not in carried
            else change
            for change in report.changes
        ]  # fmt: skip
        there = {change.key for change in changes if change.fate in (CARRIED, ADDED, AT_COMPLETION, REFUSED)}
        files = {entry.module: entry.path for _, entry in entries} | {new.module: new.path for _, new in brought}
        for key in sorted(carried.keys() - there):
            module, _, name = key.partition(":")
            reason = f"the earlier patch {carried[key]!r} carries it, and this one would take it back"
            hint = f"give sources that have it, or agree: --exclude '{key}'"
            changes.append(Change(REFUSED, module, name, files[module], 0, "base", reason, hint))
        return Report(sorted(changes, key=lambda change: (change.file, change.line, change.name)))


def _names(entry: ObjectEntry) -> set[str]:
    return {part.name for parts in (entry.functions, entry.added, entry.at_completion, entry.effects) for part in parts}


def _joined(earlier: _Pair, later: _Pair, path: str, patch: str) -> _Pair:
    """Two steps of one module as one: the later goes on from the earlier, or begins where that began."""
    if later[0] == earlier[1]:
        return earlier[0], later[1]
    if later[0] != earlier[0]:
        raise LivepatchError(
            errno.EINVAL,
            f"{path} is neither as the earlier patch {patch!r} found it nor as it left it, so that is no base for it.",
        )
    return earlier if later[1] == later[0] else later


def check_hooks(archives: Sequence[Archive], hooks: bytes | None) -> None:
    """Raise LivepatchError (EINVAL) if callbacks of an earlier archive would be lost."""
    for archive in archives:
        if archive.hooks is not None and hooks is None:
            raise LivepatchError(
                errno.EINVAL,
                f"The earlier patch {archive.manifest.name!r} brings callbacks, which cannot be merged;"
                " give --hooks with what of them shall remain.",
            )
