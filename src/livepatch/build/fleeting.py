"""Classes of which the old release keeps no instance, and attributes that new instances do not have either at first.

A release may turn a class that did all its work in one call, `Lexer().get_tokens(text)`, into one that is set up first,
by methods that are new. Then new code relies on attributes that no constructor sets, and of which nothing tells what
they are for an instance that was never set up. No instance needs them, if both of this can be shown:

- The old trees make instances, but only to call a method of them at once, and no method lets its instance out. So none
  of their instances outlives the call, and who is in one stays in the old version.
- Only methods that the old class does not have set the attribute, the new trees call these themselves, and no
  constructor does. So an instance that somebody else has kept is what a new one would be in the same hands: it is not
  set up, in the new release as well.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from livepatch.archive.constructors import first
from livepatch.build import syntax
from livepatch.build.world import Source, World

_MAKING = {"__init__", "__new__", "__post_init__", "__init_subclass__", "__getattr__", "__getattribute__"}


def needs_no_default(world: World, source: Source, old: ast.ClassDef, new: ast.ClassDef, attribute: str) -> bool:
    """Whether no instance made by the old release can be met without an attribute that it would have in the new one."""
    setting = _setting(new, attribute)
    if setting is None or setting & (syntax.members(old) | _MAKING) or old.bases or new.bases:
        return False
    elsewhere = (
        node
        for other in world.sources_mentioning(attribute)
        for node in ast.walk(other.tree)
        if isinstance(node, ast.Attribute) and node.attr == attribute and not isinstance(node.ctx, ast.Load)
    )
    inside = sum(_is_store(node, attribute) for node in ast.walk(new))
    if sum(1 for _ in elsewhere) != inside or world.asks_for(attribute):
        return False
    return _is_closed(old) and _is_fleeting(world, source, old) and _is_set_up(world, new, setting)


def _is_set_up(world: World, cls: ast.ClassDef, setting: set[str]) -> bool:
    """Whether the new trees themselves call what sets the attribute: it is no method that others call at their time."""
    return any(
        isinstance(node, ast.Attribute) and node.attr in setting and syntax.last_name(node.value) == cls.name
        for other in world.sources_mentioning(cls.name)
        for node in ast.walk(other.tree)
    )


def _is_store(node: ast.AST, attribute: str) -> bool:
    return isinstance(node, ast.Attribute) and node.attr == attribute and not isinstance(node.ctx, ast.Load)


def _setting(cls: ast.ClassDef, attribute: str) -> set[str] | None:
    """The methods of a class that set an attribute, or name a method that does; None if something else may."""
    methods = [node for node in cls.body if isinstance(node, syntax.FunctionNode)]
    if cls.decorator_list or cls.keywords or any(isinstance(node, ast.ClassDef) for node in cls.body):
        return None
    found = {method.name for method in methods if any(_is_store(node, attribute) for node in ast.walk(method))}
    while True:
        more = {
            method.name
            for method in methods
            if any(isinstance(node, ast.Attribute) and node.attr in found for node in ast.walk(method))
        }
        if more <= found:
            return found
        found |= more


def _is_closed(cls: ast.ClassDef) -> bool:
    """Whether nothing in a class lets an instance out: all that its methods do with it is to use what it has."""
    members = syntax.members(cls)
    for method in cls.body:
        if isinstance(method, ast.ClassDef | ast.AsyncFunctionDef):
            return False
        if not isinstance(method, ast.FunctionDef):
            continue
        static = [getattr(decorator, "id", "") for decorator in method.decorator_list] == ["staticmethod"]
        if static:
            continue
        inside = list(ast.walk(method))
        later = (ast.Yield, ast.YieldFrom, ast.Lambda, ast.GeneratorExp, ast.ClassDef)
        if method.decorator_list or any(isinstance(node, later) for node in inside):
            return False
        if any(isinstance(node, syntax.FunctionNode) and node is not method for node in inside):
            return False
        own = first(method)
        used = [n for n in inside if isinstance(n, ast.Attribute) and getattr(n.value, "id", "") == own]
        called = {id(n.func) for n in inside if isinstance(n, ast.Call)}
        if sum(isinstance(n, ast.Name) and n.id in (own, "super", "locals", "vars") for n in inside) != len(used):
            return False
        if any(n.attr.startswith("__") or (n.attr in members and id(n) not in called) for n in used):
            return False
    return "__new__" not in members and not cls.decorator_list and not cls.keywords


def _is_fleeting(world: World, source: Source, cls: ast.ClassDef) -> bool:
    """Whether all that the old trees do with a class is to make an instance and call a method of it at once."""
    if cls not in source.tree.body or len(source.classes.get(cls.name, ())) != 1:
        return False
    if world.named(source, cls.name, new=False) != [(source, cls)]:
        return False
    used = False
    for path in world.old.mentioning(cls.name):
        other = world.parsed(path, new=False)
        if other is None or not all(_at_once(other, cls)):
            return False
        used = used or any(
            _is_call_on_new(n) and syntax.last_name(n.func.value.func) == cls.name  # type: ignore[attr-defined]
            for n in ast.walk(other.tree)
        )
    if not used:
        return False  # somebody else makes them, and who knows what for
    for name in syntax.members(cls):
        for path in world.old.mentioning(name) if not syntax.is_special(name) else ():
            other = world.parsed(path, new=False)
            if other is None or not all(_of_its_own(other, cls, name)):
                return False
    return True


def _at_once(source: Source, cls: ast.ClassDef) -> Iterator[bool]:
    """Of each place that names the class, whether it is a call of a method of an instance that was just made."""
    nodes = list(ast.walk(source.tree))
    fine = {id(node.func.value.func) for node in nodes if _is_call_on_new(node)}  # type: ignore[attr-defined]
    for listed in nodes:
        if isinstance(listed, ast.Assign) and [getattr(target, "id", "") for target in listed.targets] == ["__all__"]:
            fine |= {id(inner) for inner in ast.walk(listed)}
    for node in nodes:
        named = isinstance(node, ast.Name | ast.Attribute) and syntax.last_name(node) == cls.name
        if named or (isinstance(node, ast.Constant) and node.value == cls.name):
            yield id(node) in fine
        elif isinstance(node, ast.alias) and node.name.rpartition(".")[2] == cls.name:
            yield node.asname in (None, cls.name)


def _is_call_on_new(node: ast.AST) -> bool:
    """`C(...).method(...)`."""
    return isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and isinstance(node.func.value, ast.Call)


def _of_its_own(source: Source, cls: ast.ClassDef, name: str) -> Iterator[bool]:
    """Of each place that names a member, whether it is about an instance that was just made, or in the class itself."""
    within = {id(node) for node in ast.walk(cls)}
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Attribute) and node.attr == name and id(node) not in within:
            made = node.value.func if isinstance(node.value, ast.Call) else None
            yield made is not None and syntax.last_name(made) == cls.name
