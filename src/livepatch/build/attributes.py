"""Attributes that live instances do not have, or have otherwise.

A new `__init__` that sets `self.limit` does nothing for instances that were made before. If other new code
reads the attribute, it fails in production with AttributeError, long after the patch was loaded. So the
attributes that the new version of a class sets on `self`, and that neither the old version nor its bases
knew, are looked up in all code that the patch brings in. Code that asks first (`hasattr`, `getattr` with a default)
or sets it first is fine. For the rest, instances get what the new constructor would have given them when the attribute
is first read, if that can be derived from the source (`archive.defaults`), and else the code is refused. The same goes
for an attribute that `__init__` now starts with a value of another type.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from livepatch.archive.conversion import conversion, has_twins
from livepatch.archive.defaults import derive, factories, find_class
from livepatch.archive.format import DefaultEntry, MemberEntry
from livepatch.build import syntax
from livepatch.build.findings import Findings
from livepatch.build.fleeting import needs_no_default
from livepatch.build.kinship import Kinship
from livepatch.build.paths import reads_unset
from livepatch.build.report import ADDED, CARRIED, REFUSED, Change

_CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}
_HINT = "instances made before have it as the old release made it: restart, or let the code cope with both"

#: What to write into the hooks.
SKELETON = (
    "instances made before have no such attribute: say what it is for them, in a file for --hooks:"
    ' __livepatch_attributes__ = {{"{}": lambda instance: ...}}'
)
_LONGEST = 60  # characters of an expression that a report shows


def check_attributes(modules: Sequence[Findings]) -> None:
    """Say how live instances get attributes that only instances made by the new release have, or have in this form.

    Where that cannot be told, the code that reads them is refused.
    """
    for found in modules:
        for name, old, new in found.classes:
            if found.old.text(old) == found.new.text(new):
                continue
            stored = _stored(new)
            fresh = stored.keys() - known_attributes(old)
            if fresh:
                fresh -= {a for ancestor in found.world.ancestors(found.old, old) for a in known_attributes(ancestor)}
            for attribute in sorted(fresh - _of_class(found, name, new)):
                readers = _readers(modules, found, name, attribute)
                if readers and is_derived(found, name, (old, new), attribute, stored[attribute]):
                    continue
                if readers and needs_no_default(found.world, found.old, old, new, attribute):
                    reason = "the old release keeps no instance, and new ones do not have it either until it is set"
                    found.note(f"{name}.{attribute}", stored[attribute], "attribute", reason)
                    continue
                key = f"{found.new.module}:{name}.{attribute}"
                for module, where, node in readers:
                    reason = f"it reads the attribute {attribute!r}, which the old {name} never sets"
                    hint = SKELETON.format(key)
                    entry = DefaultEntry(f"{name}.{attribute}", stored[attribute], hooked=True)
                    change = Change(
                        *(REFUSED, module.new.module, where, module.new.path, node.lineno, "attribute", reason, hint),
                        entry=entry,
                        needs=frozenset({key}),
                    )
                    module.changes += [change] if change not in module.changes else []
                reason = "set by the new release only: instances made before do not have it"
                found.note(f"{name}.{attribute}", stored[attribute], "attribute", reason)
            before, after = _initial(old), _initial(new)
            for attribute in sorted(before.keys() & after.keys()):
                was, now = (values[attribute].__name__ for values in (before, after))
                if was != now:
                    readers = _readers(modules, found, name, attribute)
                    if readers and _converted(found, name, old, new, attribute):
                        continue
                    why = f"which starts as {now} now, and as {was} in the old {name}"
                    for module, where, node in readers:
                        reason = f"it reads the attribute {attribute!r}, {why}"
                        module.refuse(where, node.lineno, "attribute", reason, _HINT)


def _of_class(found: Findings, name: str, new: ast.ClassDef) -> set[str]:
    """What the live class gets itself: instances that lack it find it there."""
    added = {change.name for change in found.changes if change.fate == ADDED} | found.touched.keys()
    return {member for member in syntax.members(new) if f"{name}.{member}" in added}


def is_derived(found: Findings, name: str, pair: tuple[ast.ClassDef, ast.ClassDef], attribute: str, line: int) -> bool:
    """Say that live instances compute the attribute when it is first read, if they can, and old code cannot notice."""
    (old, new), world = pair, found.world
    kin = Kinship(world, found.old, old, new=False), Kinship(world, found.new, new, new=True)
    value, alone = derive(old, new, attribute, kin), derive(old, new, attribute)
    plain = value is not None and alone is not None and ast.unparse(value) == ast.unparse(alone)
    told = "" if value is None or plain else ast.unparse(value)  # else the loader finds the same by itself
    family = {member for cls in world.ancestors(found.old, old) for member in syntax.members(cls)}
    if value is None or world.asks_for(attribute) or (family & {"__getattr__"} and world.uses_attribute(attribute)):
        return False
    if "__slots__" in syntax.members(new):
        return False
    said = ast.unparse(value)
    said = said if len(said) <= _LONGEST else said[:_LONGEST] + "..."
    reason = f"instances made before get `{said}` when it is first read"
    entry = DefaultEntry(f"{name}.{attribute}", line, value=told)
    found.say(ADDED, entry.name, line, "attribute", reason, entry=entry, node=value)
    return True


def _converted(found: Findings, name: str, old: ast.ClassDef, new: ast.ClassDef, attribute: str) -> bool:
    """Say that each world sees the attribute in its own form, if the source tells how one becomes the other."""
    here = sum(isinstance(n, ast.Attribute) and n.attr == attribute and _is_set(n) for n in ast.walk(old))
    if conversion(old, new, attribute) is None or "__slots__" in syntax.members(new):
        return False
    if found.world.count_stores(attribute) != here and not has_twins(old, new, attribute):
        return False  # others set it, and nobody knows to what
    entry = MemberEntry(f"{name}.{attribute}", _stored(new)[attribute], "converted", "read")
    reason = "its values have another type now: each world sees its own, and instances are converted at completion"
    found.say(CARRIED, entry.name, entry.line, "attribute", reason, entry=entry)
    return True


def _is_set(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def _readers(
    modules: Sequence[Findings], found: Findings, cls: str, attribute: str
) -> list[tuple[Findings, str, syntax.FunctionNode]]:
    """The functions that the patch brings in and that rely on an attribute of a class."""
    readers = []
    cls_node = find_class(found.new.tree, cls)
    elsewhere = not found.world.uses_attribute(attribute)  # else `x.limit` may be about another class
    for module in modules:
        for where, node in _brought_in(module):
            own = module is found and where.startswith(cls + ".")
            if own:
                relies = node.name not in _CONSTRUCTORS and reads_unset(cls_node, node, attribute)
            else:
                relies = elsewhere and _reads(node, attribute, but_own=_is_theirs(module, where, attribute))
            if relies and not _asks(node, attribute):
                readers.append((module, where, node))
    return readers


def _is_theirs(found: Findings, where: str, attribute: str) -> bool:
    """Whether a method is of a class that sets the attribute itself: then it is that class's own on its instances."""
    cls = find_class(found.new.tree, where.partition(".<locals>")[0].rpartition(".")[0])
    return cls is not None and attribute in known_attributes(cls)


def _brought_in(found: Findings) -> Iterator[tuple[str, syntax.FunctionNode]]:
    """(qualified name, node) of the functions that the patch changes or adds in a module."""
    for _, new in found.functions:
        yield new.definition.name, new.node
    for name, statement in found.added:
        for node in ast.walk(statement.node):
            if isinstance(node, syntax.FunctionNode):
                yield name if node is statement.node else f"{name}.{node.name}", node


def known_attributes(cls: ast.ClassDef) -> set[str]:
    """The attributes that instances of a class can have by its own body."""
    declared = {syntax.last_name(node.target) for node in cls.body if isinstance(node, ast.AnnAssign)}
    return syntax.members(cls) | declared | _stored(cls).keys()


def _stored(cls: ast.ClassDef) -> dict[str, int]:
    """Attribute that the methods of a class set on their instance, or on one that they make -> line."""
    found: dict[str, int] = {}
    for method in ast.walk(cls):
        if isinstance(method, syntax.FunctionNode):
            for node in _mentions(method, of_self=True):
                if isinstance(node.ctx, ast.Store):
                    found.setdefault(node.attr, node.lineno)
    for _, made, body in factories(cls):
        for inner in (part for statement in body for part in ast.walk(statement)):
            if isinstance(inner, ast.Attribute) and _is_set(inner) and getattr(inner.value, "id", "") == made:
                found.setdefault(inner.attr, inner.lineno)
    return found


def _initial(cls: ast.ClassDef) -> dict[str, type[object]]:
    """Attribute -> type of the literal with which the constructor starts it, where that is evident."""
    found: dict[str, type[object]] = {}
    for method in cls.body:
        if isinstance(method, syntax.FunctionNode) and method.name in _CONSTRUCTORS:
            for node in ast.walk(method):
                if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
                    kind = _literal_type(node.value)
                    for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
                        if kind is not None and isinstance(target, ast.Attribute):
                            found[target.attr] = kind
    return found


def _literal_type(node: ast.expr) -> type[object] | None:
    try:
        return type(ast.literal_eval(node))
    except ValueError:
        return None


def _mentions(function: syntax.FunctionNode, of_self: bool) -> list[ast.Attribute]:
    """The places where a function names an attribute, of its own instance only if asked, in source order."""
    owners = {"self", *(a.arg for a in [*function.args.posonlyargs, *function.args.args][:1])}
    found = [
        node
        for node in ast.walk(function)
        if isinstance(node, ast.Attribute)
        and (not of_self or (isinstance(node.value, ast.Name) and node.value.id in owners))
    ]
    return sorted(found, key=lambda node: (node.lineno, node.col_offset))


def _asks(function: syntax.FunctionNode, attribute: str) -> bool:
    """Whether a function names an attribute in a string, to ask whether it is there."""
    return any(isinstance(node, ast.Constant) and node.value == attribute for node in ast.walk(function))


def _reads(function: syntax.FunctionNode, attribute: str, but_own: bool) -> bool:
    """Whether a function relies on an attribute of whatever object, its own instance perhaps excepted."""
    own = {id(node) for node in _mentions(function, of_self=True)} if but_own else set()
    mentions = [node for node in _mentions(function, of_self=False) if node.attr == attribute and id(node) not in own]
    updated = {id(node.target) for node in ast.walk(function) if isinstance(node, ast.AugAssign)}
    return bool(mentions) and (not isinstance(mentions[0].ctx, ast.Store) or id(mentions[0]) in updated)
