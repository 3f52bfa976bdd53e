"""What a module does to its classes and names after it has made them: `del C.x`, `C.x = 1`, `del name`.

Where such a statement comes or goes, the class body is as it was, but what the class has in the end is not. In the
one world the attribute is what the body makes of it, in the other it is not there, or is something else; so it is a
value that changes, like any other attribute of a class.
"""

from __future__ import annotations

import ast

from livepatch.archive.format import RemovedEntry
from livepatch.archive.pieces import mangled
from livepatch.build import syntax
from livepatch.build.classes import read_by
from livepatch.build.findings import Findings
from livepatch.build.groups import class_names, deleters, makers
from livepatch.build.report import NOTED
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement
from livepatch.build.world import Source


def follow_deleted(found: Findings, scope: Scope, statement: Statement, *, new: bool) -> bool:
    """A `del` of attributes of classes that only the new version has, or only the old one: whether that is understood,
    and so each attribute a value that changes."""
    names = syntax.deleted_attributes(statement.node)
    if not names and isinstance(statement.node, ast.Delete):
        return _follow_imports(found, scope, statement, new=new)
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


def _follow_imports(found: Findings, scope: Scope, statement: Statement, *, new: bool) -> bool:
    """The same for names that imports have bound: one that is deleted stays, if nobody can tell, and one that is not
    deleted any more is imported."""
    assert isinstance(statement.node, ast.Delete)
    names = {target.id for target in statement.node.targets if isinstance(target, ast.Name)}
    if len(names) < len(statement.node.targets) or statement.under:
        return False
    binders = {name: scope.new_binders.get(name, []) for name in sorted(names)}
    if any(len(some) != 1 or some[0].under or some[0].alias is None for some in binders.values()):
        return False
    used = {name for name in names if _is_used(found, name)}
    if used and new:
        return False
    for name, (binder,) in binders.items():
        if new:
            found.note(name, statement.line, "import", "deleted now; it is left in place, and nothing new reads it")
        elif name in used:
            found.add(name, binder, "import", "no longer deleted")
        else:
            found.note(name, binder.line, "import", "no longer deleted, and nothing reads it")
    return True


def _is_used(found: Findings, name: str) -> bool:
    readers = found.world.readers(found.new.module, name)
    return name in found.new.global_reads or bool(readers.places or readers.importers)


def follow_unset(found: Findings, scope: Scope, statement: Statement) -> bool:
    """`C.x = value` below the class is gone: whether that is understood."""
    node, keys = statement.node, statement.attributes_set
    if not isinstance(node, ast.Assign) or len(keys) != 1 or statement.under:
        return False
    (key,) = keys
    path, _, name = key.rpartition(".")
    body = found.old.statements(found.old.tree.body)
    if not _is_own(found, scope, key) or sum(key in s.attributes_set for s in body) > 1:
        return False
    if any(key in s.attributes_set for s in found.new.statements(found.new.tree.body)) or deleters(found.new, key):
        return False
    classes = [source.classes.get(path.rpartition(".")[2], []) for source in (found.old, found.new)]
    if any(len(some) != 1 for some in classes):
        return False
    shown = ast.unparse(node).split("\n")[0]
    if all(makers(source, key, "") for source in (found.old, found.new)):
        line = makers(found.new, key, "")[-1].line
        found.touch(key, line, f"`{shown}` is gone, so that it is what the class body makes it")
        return True
    inherited = found.world.inherits(found.old, classes[0][0], name) or syntax.is_special(name)
    if inherited or found.world.asks_for(name) or any(name in syntax.members(some[0]) for some in classes):
        return False
    reason = "gone; it is left in place, and nothing new uses it"
    found.say(NOTED, key, statement.line, "attribute", reason, entry=RemovedEntry(key, statement.line))
    return True


def _is_own(found: Findings, scope: Scope, key: str) -> bool:
    """Whether it is an attribute of a class of the module of which the body tells all that no statement does."""
    path, _, name = key.rpartition(".")
    root = path.partition(".")[0]
    binders = scope.old_binders.get(root, []), scope.new_binders.get(root, [])
    return (
        key not in found.touched
        and mangled(path, name) == name
        and all(path in class_names(source) for source in (found.old, found.new))
        and all(len(side) == 1 and not side[0].under for side in binders)
        and not any(_is_read(found, source, path, new=source is found.new) for source in (found.old, found.new))
    )


def _is_understood(found: Findings, scope: Scope, key: str) -> bool:
    return _is_own(found, scope, key) and all(_ends_with(source, key) for source in (found.old, found.new))


def _is_read(found: Findings, source: Source, path: str, *, new: bool) -> bool:
    """Whether a decorator or a base reads the class bodies, so that these do not tell what the classes have."""
    classes = [cls for name in path.split(".") for cls in source.classes.get(name, ())]
    family = [one for cls in classes for one in found.world.ancestors(source, cls, new=new)]
    return bool(read_by(family)) or any(cls.decorator_list for cls in classes)


def _ends_with(source: Source, key: str) -> bool:
    """Whether the class body makes a value for the attribute, and at most one `del` has a say in it besides."""
    last = deleters(source, key)
    body = source.statements(source.tree.body)
    return (
        bool(makers(source, key, ""))
        and len(last) <= 1
        and not any(s.under for s in last)
        and not any(key in s.attributes_set for s in body)
    )
