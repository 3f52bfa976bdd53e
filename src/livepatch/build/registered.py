"""New classes that are noted somewhere when they are made, by a metaclass or `__init_subclass__`.

Whoever looks there when it needs something finds the new one, too. But what was made of all that had been noted, when
the process started perhaps, lacks it, and new code may count on it: settings, tables of commands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from livepatch.archive.constructors import MUTATORS
from livepatch.build import syntax
from livepatch.build.world import NOT_PYTHON, Source, World

_TAKES_ALL = {"list", "tuple", "set", "frozenset", "dict", "sorted", "copy", "items", "values", "keys", "map", "filter"}


def lacks_registration(world: World, source: Source, cls: ast.ClassDef) -> str | None:
    """Why a new class is not known everywhere where it would be in a process that was started with it, or None."""
    for where, method in _run_for(world, source, cls):
        for name in sorted(_notes_in(method) & where.bindings.keys()):
            for path in list(world.new.mentioning(name)):
                taker = _taker(world, path, name)
                if taker is not None:
                    return f"`{method.name}` notes it in {name}, and what {taker} has made of that before lacks it"
    return None


def _run_for(world: World, source: Source, cls: ast.ClassDef) -> Iterator[tuple[Source, ast.FunctionDef]]:
    """The functions of the trees that making a class runs."""
    for where, node in [*world.family(source, cls, new=True), *_made_by_calls(world, source, cls)]:
        makes = any(
            syntax.last_name(base) == "type" for kin in world.ancestors(where, node, new=True) for base in kin.bases
        )
        wanted = {"__new__", "__init__"} if makes else {"__init_subclass__"} if node is not cls else set()
        yield from ((where, m) for m in node.body if isinstance(m, ast.FunctionDef) and m.name in wanted)


def _made_by_calls(world: World, source: Source, cls: ast.ClassDef) -> Iterator[tuple[Source, ast.ClassDef]]:
    """The metaclasses that are called by name for a base of the class: `Base = Meta("Base", (Base,), {})`."""
    for where, node in world.family(source, cls, new=True):
        for assign in [statement for statement in where.tree.body if isinstance(statement, ast.Assign)]:
            named = any(isinstance(target, ast.Name) and target.id == node.name for target in assign.targets)
            if named and isinstance(assign.value, ast.Call):
                yield from world.named(where, syntax.last_name(assign.value.func), new=True)


def _notes_in(method: ast.FunctionDef) -> set[str]:
    """The names of what a function adds something to."""
    found = set()
    for node in ast.walk(method):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in MUTATORS:
            found.add(syntax.last_name(node.func.value))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.add(syntax.last_name(node.value))
    return found


def _taker(world: World, path: str, name: str) -> str | None:
    """A function of a module that goes through all that is in a container."""
    try:
        source = world.source(path, new=True)
    except NOT_PYTHON:
        return None
    for function in [node for node in ast.walk(source.tree) if isinstance(node, syntax.FunctionNode)]:
        for node in ast.walk(function):
            taken: list[ast.expr] = []
            if isinstance(node, ast.For | ast.AsyncFor | ast.comprehension):
                taken = [node.iter]
            elif isinstance(node, ast.Call) and syntax.last_name(node.func) in _TAKES_ALL:
                taken = [*node.args, *([node.func.value] if isinstance(node.func, ast.Attribute) else [])]
            if any(syntax.last_name(one) == name for one in taken):
                return function.name
    return None
