"""Attributes of classes that a module deletes when it is imported: `del C.x` below the class.

Where such a statement comes or goes, the class body is as it was, but what the class has in the end is not. In the
one world the attribute is what the body makes of it, in the other it is not there; so it is a value that changes,
like any other attribute of a class.
"""

from __future__ import annotations

import ast

from livepatch.archive.pieces import mangled
from livepatch.build import syntax
from livepatch.build.classes import READERS
from livepatch.build.findings import Findings
from livepatch.build.groups import class_names, deleters, makers
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement
from livepatch.build.world import Source


def follow_deleted(found: Findings, scope: Scope, statement: Statement, *, new: bool) -> bool:
    """A `del` of attributes of classes that only the new version has, or only the old one: whether that is understood,
    and so each attribute a value that changes."""
    names = syntax.deleted_attributes(statement.node)
    if not names or statement.under or not all(_is_understood(found, scope, key) for key in names):
        return False
    shown = ast.unparse(statement.node).split("\n")[0]
    for key in sorted(names):
        if deleters(found.old, key) and deleters(found.new, key):
            continue  # by another statement
        if new:
            found.touch(key, statement.line, f"`{shown}` is new", key.rpartition(".")[0])
        else:
            line = makers(found.new, key, "")[-1].line
            found.touch(key, line, f"`{shown}` is gone, so that it is what the class body makes it")
    return True


def _is_understood(found: Findings, scope: Scope, key: str) -> bool:
    path, _, name = key.rpartition(".")
    root = path.partition(".")[0]
    binders = scope.old_binders.get(root, []), scope.new_binders.get(root, [])
    return (
        key not in found.touched
        and mangled(path, name) == name
        and all(len(side) == 1 and not side[0].under for side in binders)
        and all(_ends_with(source, key, path) for source in (found.old, found.new))
        and not any(_is_read(found, source, path, new=source is found.new) for source in (found.old, found.new))
    )


def _is_read(found: Findings, source: Source, path: str, *, new: bool) -> bool:
    """Whether a decorator or a base reads the class bodies, so that these do not tell what the classes have."""
    classes = [cls for name in path.split(".") for cls in source.classes.get(name, ())]
    family = [one for cls in classes for one in found.world.ancestors(source, cls, new=new)]
    parts = [part for cls in family for part in [*cls.bases, *cls.decorator_list]]
    return bool({syntax.last_name(part) for part in parts} & READERS) or any(cls.decorator_list for cls in classes)


def _ends_with(source: Source, key: str, path: str) -> bool:
    """Whether the class body makes a value for the attribute, and at most one `del` has a say in it besides."""
    last = deleters(source, key)
    body = source.statements(source.tree.body)
    return (
        path in class_names(source)
        and bool(makers(source, key, ""))
        and len(last) <= 1
        and not any(s.under for s in last)
        and not any(key in s.attributes_set for s in body)
    )
