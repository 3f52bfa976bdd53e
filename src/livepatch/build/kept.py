"""What was taken from values and is kept elsewhere: caches that classes have computed, copies that instances have.

Nobody finds these by the name of the value. A cache is computed again and a copy set when the transition is over,
without consistency, and the report says so.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from functools import cached_property

from livepatch.archive.format import COPIED, CacheEntry, ConstantEntry
from livepatch.build.findings import Findings
from livepatch.build.groups import class_names, copies_all, kept_by, mentions
from livepatch.build.report import AT_COMPLETION, Change
from livepatch.build.world import NOT_PYTHON, Source, World


class Kept:
    """`findings` gives what is found in a module, which may be one that did not change."""

    def __init__(self, world: World, findings: Callable[[Source], Findings | None]) -> None:
        self._world = world
        self._findings = findings

    def caches(self, changed: Findings, key: str) -> None:
        """What classes have computed from an attribute, by `C.name`, on first use."""
        path, _, name = key.rpartition(".")
        classes = [new for qualified, _, new in changed.classes if qualified == path]
        for source, cls in self._world.family(changed.new, classes[0]) if classes else ():
            if not any(mentions(node, name) for node in ast.walk(cls)):
                continue
            for method in [m for m in cls.body if isinstance(m, ast.FunctionDef) and m.args.args]:
                for node in ast.walk(method):
                    kept = kept_by(node, method.args.args[0].arg) if isinstance(node, ast.If) else None
                    if kept is not None and (found := self._findings(source)) is not None:
                        self._say_cache(found, changed, key, kept, node)

    def copies(self, found: Findings, name: str) -> None:
        """A new name of a module of which instances elsewhere have a copy of all names, as settings have."""
        for source, cls, method, of in self._copiers if name.isidentifier() else ():
            alias = source.index is not None and of in source.index.names_of(found.new.module)
            if alias and source is not found.new and (name.isupper() or "isupper" not in ast.dump(method)):
                self._say_copy(found, name, source, cls)

    @cached_property
    def _copiers(self) -> list[tuple[Source, ast.ClassDef, ast.FunctionDef, str]]:
        """The methods that copy all names of a module, and what they call it."""
        found = []
        for path in list(self._world.new.mentioning("setattr")):
            if b" dir(" not in self._world.new.python[path]:
                continue
            try:
                source = self._world.source(path, new=True)
            except NOT_PYTHON:
                continue
            for cls in [cls for classes in source.classes.values() for cls in classes]:
                for method in [member for member in cls.body if isinstance(member, ast.FunctionDef)]:
                    copied = [copies_all(node) for node in ast.walk(method)]
                    found += [(source, cls, method, name) for name in copied if name is not None]
        return found

    def _say_copy(self, found: Findings, name: str, source: Source, cls: ast.ClassDef) -> None:
        other = self._findings(source)
        if other is not None and cls.name in class_names(source):
            origin = f"{found.new.module}:{name}"
            entry = ConstantEntry(name, cls.lineno, origin, how=COPIED, owner=cls.name)
            reason = f"instances have a copy of all names of {found.new.module}, and get the new one"
            place = other.new.module, f"{cls.name}.{name}", other.new.path, cls.lineno
            other.changes.append(Change(AT_COMPLETION, *place, "copy", reason, entry=entry, needs=frozenset({origin})))

    def _say_cache(self, found: Findings, changed: Findings, key: str, kept: str, node: ast.AST) -> None:
        new = next(
            (n for n in ast.walk(found.new.tree) if isinstance(n, ast.If) and ast.dump(n) == ast.dump(node)), None
        )
        if new is None:
            found.refuse(kept, getattr(node, "lineno", 0), "cache", f"it is computed from {key}, and otherwise now")
            return
        cls = key.rpartition(".")[0]
        entry = CacheEntry(f"{changed.new.module}:{cls}", kept, new.lineno)
        reason = f"computed from {key} on first use; computed again, without consistency"
        place = found.new.module, f"{cls}.{kept}", found.new.path, new.lineno
        found.changes.append(
            Change(
                AT_COMPLETION, *place, "cache", reason, entry=entry, needs=frozenset({f"{changed.new.module}:{key}"})
            )
        )
