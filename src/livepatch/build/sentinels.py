"""Values of which nothing but the identity counts: `MISSING = object()`.

Who compares by `is` must find the object that others have kept, in instances and in other packages. So if such a value
is only made in another way, as an instance of a class that shows itself better, say, the live one stays.
"""

from __future__ import annotations

import ast

from livepatch.build import syntax
from livepatch.build.findings import Findings
from livepatch.build.groups import makers
from livepatch.build.world import NOT_PYTHON, Source, World

#: What the class of one may define: how it is shown, and that copies are the same.
_SHOWN = {"__repr__", "__str__", "__reduce__", "__reduce_ex__", "__copy__", "__deepcopy__", "__slots__", "__module__"}

#: What a member of an enumeration has, and another object has not.
_OF_MEMBERS = {"name", "value", "_name_", "_value_"}


def is_sentinel(world: World, found: Findings, key: str) -> bool:
    """Whether a name stands for one, before and after, and is compared by identity."""
    values = [_value(source, key) for source in (found.old, found.new)]
    if not all(
        value is not None and _is_bare(value, source)
        for value, source in zip(values, (found.old, found.new), strict=True)
    ):
        return False
    member = isinstance(values[1], ast.Attribute) and not isinstance(values[0], ast.Attribute)
    compared = False
    for path in world.new.mentioning(key):
        try:
            tree = world.source(path, new=True).tree
        except NOT_PYTHON:
            continue
        by_identity = [node for node in ast.walk(tree) if isinstance(node, ast.Compare) and _compares(node, key)]
        compared |= bool(by_identity)
        if member and _asks_members(tree, {key, *_compared_with(by_identity)}):
            return False  # the live one could not answer
    return compared


def makes_sentinels(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> bool:
    """Whether a class that is of another sort now is named for nothing but to make sentinels, and in types."""
    sides = (found.old, old), (found.new, new)
    if syntax.shape(old.bases) == syntax.shape(new.bases) or not all(_is_plain(*side) for side in sides):
        return False
    for source, cls in sides:
        for statement in source.statements(source.tree.body):
            named = any(isinstance(n, ast.Name) and n.id == cls.name for n in ast.walk(statement.node))
            value = getattr(statement.node, "value", None)
            if named and not isinstance(statement.node, syntax.DefinitionNode):
                names = statement.binds() or frozenset()
                kept = len(names) == 1 and is_sentinel(found.world, found, min(names))
                if not kept and not (isinstance(value, ast.expr) and syntax.is_type_alias(value)):
                    return False
    places = found.world.readers(found.new.module, new.name).places
    return all(place.startswith(f"the module itself ({found.new.path}:") for place in places)


def _is_plain(source: Source, cls: ast.ClassDef) -> bool:
    """Whether instances, or the only member, of a class have nothing of their own."""
    members = syntax.members(cls)
    if cls.keywords or cls.decorator_list or len(cls.bases) > 1:
        return False
    if cls.bases and syntax.last_name(cls.bases[0]) == "Enum":
        return len(members - _SHOWN) == 1
    return all(syntax.last_name(base) == "object" for base in cls.bases) and members <= _SHOWN


def _value(source: Source, key: str) -> ast.expr | None:
    group = makers(source, key, "")
    value = getattr(group[0].node, "value", None) if len(group) == 1 and not group[0].under else None
    return value if isinstance(value, ast.expr) else None


def _is_bare(value: ast.expr, source: Source) -> bool:
    """Whether it is an object without anything of its own."""
    if isinstance(value, ast.Attribute) and isinstance(value.value, ast.Name):
        return any(cls.bases and _is_plain(source, cls) for cls in source.classes.get(value.value.id, ()))
    if not isinstance(value, ast.Call) or value.args or value.keywords:
        return False
    made = value.func
    if isinstance(made, ast.Call):  # type("Missing", (), {...})()
        plain = syntax.last_name(made) == "type" and len(made.args) == 3 and not made.keywords
        return (
            plain and _is_empty(made.args[1]) and isinstance(made.args[2], ast.Dict) and _names(made.args[2]) <= _SHOWN
        )
    if not isinstance(made, ast.Name):
        return False
    classes = [node for node in source.tree.body if isinstance(node, ast.ClassDef) and node.name == made.id]
    if not classes:
        return made.id == "object" and "object" not in source.bound
    return all(_is_plain(source, cls) and syntax.members(cls) <= _SHOWN for cls in classes)


def _is_empty(node: ast.expr) -> bool:
    return isinstance(node, ast.Tuple) and not node.elts


def _names(node: ast.Dict) -> set[object]:
    return {key.value if isinstance(key, ast.Constant) else None for key in node.keys}


def _compared_with(nodes: list[ast.Compare]) -> set[str]:
    """The names that may stand for what some comparisons are about."""
    return {syntax.last_name(side) for node in nodes for side in (node.left, *node.comparators)}


def _asks_members(tree: ast.AST, names: set[str]) -> bool:
    """Whether something that one of these names stands for is asked for what only members of enumerations have."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in _OF_MEMBERS and syntax.last_name(node.value) in names
        for node in ast.walk(tree)
    )


def _compares(node: ast.Compare, key: str) -> bool:
    sides = [node.left, *node.comparators]
    identity = any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops)
    return identity and any(isinstance(s, ast.Name | ast.Attribute) and syntax.last_name(s) == key for s in sides)
