"""What a build found: every difference between two source trees, and what becomes of it.

The rule of the house is that nothing is dropped silently. A difference is carried in the patch, carried at
completion only, noted because it has no effect on a running process, refused with a reason, or left out
because the user asked for that. One refusal and there is no archive.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from typing import Any

from livepatch.archive.format import (
    AddedEntry,
    BasesEntry,
    BranchEntry,
    CacheEntry,
    ConstantEntry,
    DefaultEntry,
    EffectEntry,
    EnumEntry,
    FunctionEntry,
    MemberEntry,
    ModuleEntry,
    RemovedEntry,
)
from livepatch.core.model import LivepatchError

Entry = (
    FunctionEntry
    | AddedEntry
    | RemovedEntry
    | ConstantEntry
    | CacheEntry
    | DefaultEntry
    | MemberEntry
    | BasesEntry
    | EnumEntry
    | EffectEntry
    | ModuleEntry
    | BranchEntry
)

#: Fates of a difference, in the order in which a report shows them.
CARRIED = "carried"  # a function whose code is exchanged, consistently
IMMEDIATE = "immediate"  # one that changes for everybody at once, and holds nobody up
ADDED = "added"  # a statement that is run before the transition; old code does not see what it binds
VALUE = "value"  # a name that means something else, to each task what belongs to its world
AT_COMPLETION = "at completion"  # one that changes when the transition is over, without consistency
NOTED = "note"  # no effect on a running process, or none that matters
ABSENT = "not carried"  # in a module that no service imports; the patch refuses to load where one has
REFUSED = "refused"  # not possible (yet): no archive
LEFT_OUT = "left out"  # on request
FATES = (CARRIED, IMMEDIATE, ADDED, VALUE, AT_COMPLETION, NOTED, ABSENT, REFUSED, LEFT_OUT)
#: Those of what is in a patch.
IN_PATCH = (CARRIED, IMMEDIATE, ADDED, VALUE, AT_COMPLETION)


#: The kind of a function that did not change, and is carried because it reads a value that did.
READER = "reader"


@dataclass(frozen=True)
class Change:
    """One difference. `line` is in the new source, or in the old for what the new one lacks.

    `name` is qualified in the module, empty if the difference is about the module or file itself. `hint` says
    what would be needed, for what is refused, and what can be done about a function that holds the transition up.
    `entry` is what goes into the manifest, if anything does, and `needs` are the names that this piece of new code
    uses, each as `module:name`.
    """

    fate: str
    module: str
    name: str
    file: str
    line: int
    kind: str
    reason: str
    hint: str = ""
    entry: Entry | None = field(default=None, compare=False)
    needs: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    def __str__(self) -> str:
        where = f"{self.file}:{self.line}" if self.line else self.file
        return f"{where}: {self.kind} {self.name}: {self.reason}" if self.name else f"{where}: {self.reason}"

    @property
    def key(self) -> str:
        """The name by which other code may need what this change brings."""
        return f"{self.module}:{self.name}"

    @property
    def is_consistent(self) -> bool | None:
        """Whether each task sees it as its world has it, and nobody else's; None for what the patch does not carry."""
        if self.fate in (IMMEDIATE, AT_COMPLETION) or isinstance(self.entry, BasesEntry | EnumEntry):
            return False
        return True if self.fate in IN_PATCH else None

    def matches(self, pattern: str) -> bool:
        """Whether a glob names this change: by `module`, `module:name`, or the file."""
        return any(fnmatchcase(text, pattern) for text in (self.module, self.key, self.file))

    def to_json(self) -> dict[str, Any]:
        keys = ("fate", "module", "name", "file", "line", "kind", "reason", "hint")
        return {key: getattr(self, key) for key in keys} | {"consistent": self.is_consistent}


@dataclass
class Report:
    """All differences of one build, by file and line."""

    changes: list[Change] = field(default_factory=list)

    def of(self, *fates: str) -> list[Change]:
        """The changes with one of these fates."""
        return [change for change in self.changes if change.fate in fates]

    @property
    def functions(self) -> list[Change]:
        return self.of(CARRIED)

    @property
    def immediate(self) -> list[Change]:
        return self.of(IMMEDIATE)

    @property
    def added(self) -> list[Change]:
        return self.of(ADDED)

    @property
    def values(self) -> list[Change]:
        return self.of(VALUE)

    @property
    def at_completion(self) -> list[Change]:
        return self.of(AT_COMPLETION)

    @property
    def notes(self) -> list[Change]:
        return self.of(NOTED)

    @property
    def refused(self) -> list[Change]:
        return self.of(REFUSED)

    @property
    def left_out(self) -> list[Change]:
        return self.of(LEFT_OUT)

    @property
    def not_consistent(self) -> list[Change]:
        """What the patch carries and some task may see otherwise than its world has it."""
        return [change for change in self.changes if change.is_consistent is False]

    @property
    def set_aside(self) -> list[Change]:
        return self.of(ABSENT)

    @property
    def absent(self) -> list[str]:
        """The modules that must not be loaded where the patch is, by name."""
        return sorted({change.module for change in self.set_aside})

    @property
    def changes_nothing(self) -> bool:
        """Whether no difference has an effect on a running process: then there is no archive either."""
        return not self.of(*IN_PATCH, REFUSED)

    @property
    def modules(self) -> list[str]:
        """The modules that the patch changes, by name."""
        return sorted({change.module for change in self.of(*IN_PATCH)})

    def narrowed(self, only: Iterable[str] = (), exclude: Iterable[str] = ()) -> Report:
        """The same report with what `only` does not name, or `exclude` names, left out.

        Both are globs for a module, for `module:name`, or for a file. What is wanted brings along the names that
        it needs, unless these are excluded: then it is refused.
        """
        wanted = {id(change) for change in self.changes if _matches_any(change, only or ("*",))}
        wanted -= {id(change) for change in self.changes if _matches_any(change, exclude)}
        while needed := self._needed(wanted, exclude):
            wanted |= needed
        kept = [c if c.fate == NOTED or id(c) in wanted else _left_out(c) for c in self.changes]
        missing = {change.key for change in kept if change.fate == LEFT_OUT}
        return Report([_without(change, missing & self._new_names()) for change in kept])

    def hooked(self, attributes: Iterable[str]) -> Report:
        """The same report where hooks say what live instances have under these attributes, as `module:C.name`."""
        given = set(attributes)
        kept: list[Change] = []
        for change in self.changes:
            entry = change.entry
            if change.fate == REFUSED and isinstance(entry, DefaultEntry) and change.needs <= given:
                module = next(iter(change.needs)).partition(":")[0]
                said = (c.file for c in self.changes if (c.module, c.name) == (module, entry.name))
                place = module, entry.name, next(said, change.file), entry.line
                change = Change(ADDED, *place, "attribute", "instances made before get what the hooks say", entry=entry)
            if not any(change == known and change.entry == known.entry for known in kept):
                kept.append(change)
        return Report(kept)

    def at_once(self, patterns: Iterable[str]) -> Report:
        """The same report where the functions that these name, as in `narrowed`, are immediate: the author says so.

        What is nested in one goes with it. Raises LivepatchError (EINVAL) if one names no function that is carried.
        """
        kept = list(self.changes)
        for pattern in patterns:
            keys = {c.key for c in kept if _is_exchanged(c) and c.matches(pattern)}
            if not keys:
                sentence = f"{pattern!r} cannot be immediate: the patch exchanges the code of no function of that name."
                raise LivepatchError(errno.EINVAL, sentence)
            kept = [as_immediate(c, "on request") if _is_exchanged(c) and _around(c.key) & keys else c for c in kept]
        return Report(kept)

    def _needed(self, wanted: set[int], exclude: Iterable[str]) -> set[int]:
        """What is new that what is wanted needs, and what reads values that are wanted: nobody named them."""
        needs = {need for change in self.changes if id(change) in wanted for need in change.needs}
        found = {id(c) for c in self.of(ADDED, VALUE) if c.key in needs and not _matches_any(c, exclude)}
        values = {change.key for change in self.of(VALUE) if id(change) in wanted}
        found |= {id(c) for c in self.of(CARRIED) if c.kind == READER and c.needs & values}
        return found - wanted

    def _new_names(self) -> set[str]:
        return {change.key for change in self.of(ADDED, VALUE, AT_COMPLETION)}

    def to_json(self) -> dict[str, Any]:
        """For machines: the changes by fate, each with module, name, file, line, kind, reason, hint and consistent."""
        return {fate: [change.to_json() for change in self.of(fate)] for fate in FATES}


def _is_exchanged(change: Change) -> bool:
    return change.fate in (CARRIED, IMMEDIATE) and isinstance(change.entry, FunctionEntry) and not change.entry.retired


def _around(key: str) -> set[str]:
    """The key of a function and of all that it is nested in."""
    parts = key.split(".<locals>.")
    return {".<locals>.".join(parts[:count]) for count in range(1, len(parts) + 1)}


def as_immediate(change: Change, why: str) -> Change:
    """An exchanged function that changes for everybody at once; if it does so already, as it is."""
    assert isinstance(change.entry, FunctionEntry)
    if change.fate == IMMEDIATE:
        return change
    reason = f"{change.reason}; immediate: {why}"
    entry = replace(change.entry, immediate=True, reason=reason)
    return replace(change, fate=IMMEDIATE, reason=reason, hint="", entry=entry)


def _matches_any(change: Change, patterns: Iterable[str]) -> bool:
    return any(change.matches(pattern) for pattern in patterns)


def _without(change: Change, missing: set[str]) -> Change:
    """A change when names are left out: what uses one of them cannot be carried, and what follows one need not."""
    lost = sorted(change.needs & missing)
    if not lost or change.fate == LEFT_OUT:
        return change
    if change.fate in (VALUE, AT_COMPLETION) or change.kind == READER:
        return _left_out(change)
    return replace(change, fate=REFUSED, reason=f"it uses {lost[0]}, which was left out", hint="keep both or neither")


def _left_out(change: Change) -> Change:
    was = change.fate if change.fate != REFUSED else f"refused: {change.reason}"
    return replace(change, fate=LEFT_OUT, reason=f"left out on request ({was})", entry=None)
