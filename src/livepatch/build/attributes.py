"""Attributes that live instances do not have, or have otherwise.

A new `__init__` that sets `self.limit` does nothing for instances that were made before. If other new code
reads the attribute, it fails in production with AttributeError, long after the patch was loaded. So the
attributes that the new version of a class sets on `self`, and that neither the old version nor its bases
knew, are looked up in all code that the patch brings in. The same goes for an attribute that `__init__` now
starts with a value of another type. Code that asks first (`hasattr`, `getattr` with a default) or sets it
first is fine.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from livepatch.build import syntax
from livepatch.build.findings import Findings

_CONSTRUCTORS = {"__init__", "__new__", "__post_init__"}
_HINT = "instances made before have it as the old release made it: restart, or let the code cope with both"


def check_attributes(modules: Sequence[Findings]) -> None:
    """Refuse reads of attributes that only instances made by the new release have, or have in this form."""
    for found in modules:
        for name, old, new in found.classes:
            stored = _stored(new)
            fresh = stored.keys() - _known(old)
            if fresh:
                fresh -= {a for ancestor in found.world.ancestors(found.old, old) for a in _known(ancestor)}
            for attribute in sorted(fresh):
                _check(modules, found, name, attribute, f"which the old {name} never sets")
                reason = "set by the new release only: instances made before do not have it"
                found.note(f"{name}.{attribute}", stored[attribute], "attribute", reason)
            before, after = _initial(old), _initial(new)
            for attribute in sorted(before.keys() & after.keys()):
                was, now = (values[attribute].__name__ for values in (before, after))
                if was != now:
                    why = f"which starts as {now} now, and as {was} in the old {name}"
                    _check(modules, found, name, attribute, why)


def _check(modules: Sequence[Findings], found: Findings, cls: str, attribute: str, why: str) -> None:
    elsewhere = not found.world.uses_attribute(attribute)  # else `x.limit` may be about another class
    for module in modules:
        for where, node in _brought_in(module):
            own = module is found and where.startswith(cls + ".")
            if own and node.name in _CONSTRUCTORS:
                continue
            if (own or elsewhere) and _reads(node, attribute, of_self=own):
                reason = f"it reads the attribute {attribute!r}, {why}"
                module.refuse(where, node.lineno, "attribute", reason, _HINT)


def _brought_in(found: Findings) -> Iterator[tuple[str, syntax.FunctionNode]]:
    """(qualified name, node) of the functions that the patch changes or adds in a module."""
    for _, new in found.functions:
        yield new.definition.name, new.node
    for name, statement in found.added:
        for node in ast.walk(statement.node):
            if isinstance(node, syntax.FunctionNode):
                yield name if node is statement.node else f"{name}.{node.name}", node


def _known(cls: ast.ClassDef) -> set[str]:
    """The attributes that instances of a class can have by its own body."""
    declared = {syntax.last_name(node.target) for node in cls.body if isinstance(node, ast.AnnAssign)}
    return syntax.members(cls) | declared | _stored(cls).keys()


def _stored(cls: ast.ClassDef) -> dict[str, int]:
    """Attribute that the methods of a class set on their instance -> line."""
    found: dict[str, int] = {}
    for method in ast.walk(cls):
        if isinstance(method, syntax.FunctionNode):
            for node in _mentions(method, of_self=True):
                if isinstance(node.ctx, ast.Store):
                    found.setdefault(node.attr, node.lineno)
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


def _reads(function: syntax.FunctionNode, attribute: str, of_self: bool) -> bool:
    """Whether a function relies on an attribute: neither asks for it first nor sets it first."""
    mentions = [node for node in _mentions(function, of_self) if node.attr == attribute]
    if not mentions:
        return False
    nodes = list(ast.walk(function))
    if any(isinstance(node, ast.Constant) and node.value == attribute for node in nodes):
        return False
    updated = {id(node.target) for node in nodes if isinstance(node, ast.AugAssign)}
    return not isinstance(mentions[0].ctx, ast.Store) or id(mentions[0]) in updated
