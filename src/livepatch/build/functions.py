"""What changed between two versions of one function, and whether a live function can follow.

Two measures are taken together. The syntax says what a programmer changed: body, parameters, defaults,
decorators. The compiled code says whether it makes a difference (`a + b` written on two lines does not). A
function has changed if both say so.

A function defined inside another needs care, because closures outlive the call that made them. If its new
code can run in the cells and with the defaults that old closures have, it is listed as a function of its own,
and they follow; code that uses fewer of the cells keeps the others (`pieces.NewSource.keep`). If it cannot, that
matters only if a closure can have escaped: one that is only called by its name inside the outer function is gone
when the outer function is off the stack. One that is handed to something that calls it once and soon (a worker, an
event loop, `sorted`) keeps the old version, and no task moves while it is in one.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from types import CodeType

from livepatch.build import syntax
from livepatch.core import codes
from livepatch.core.codes import Definition


@dataclass(frozen=True, eq=False)
class Version:
    """One version of a function: its syntax, and its definition as compiled."""

    node: syntax.FunctionNode
    definition: Definition


#: Finds the definition of a node of the same module; None if it was never compiled.
Lookup = Callable[[syntax.FunctionNode], Version | None]


@dataclass(frozen=True)
class Verdict:
    """What is to be said about a pair of functions: why it is exchanged, or why it cannot be."""

    old: Version
    new: Version
    reason: str
    hint: str = ""
    kept: bool = False  # what exists of the old one stays as it is


#: What calls a function that it is given before long, and then lets go of it.
_SOON = {
    *("submit", "call_soon", "call_later", "call_at", "call_soon_threadsafe", "run_in_executor", "to_thread"),
    *("add_done_callback", "create_task", "ensure_future", "start_soon", "run_sync", "run", "gather", "wait_for"),
    *("Thread", "Timer", "spawn", "apply_async", "map", "filter", "sorted", "sort", "min", "max", "sub", "subn"),
    *("reduce", "any", "all", "sum", "list", "tuple", "set", "dict", "next", "groupby", "callback", "push"),
}


def compare(old: Version, new: Version, old_lookup: Lookup, new_lookup: Lookup) -> Iterator[Verdict]:
    """What is to be said about a function and about those defined inside it; nothing if nothing changed."""
    was, now = codes.kind(old.definition.code), codes.kind(new.definition.code)
    if was != now:  # and exchanging it as a whole was not possible
        reason = f"it was of the kind {was} and is now of the kind {now}"
        yield Verdict(old, new, reason, "callers that run now expect the old kind; restart")
    reasons = _reasons(old, new)
    if reasons:
        yield Verdict(old, new, ", ".join(reasons))
        yield from _compare_nested(old, new, old_lookup, new_lookup)


def _reasons(old: Version, new: Version) -> list[str]:
    found = []
    if parameters(old.node) != parameters(new.node):
        found.append("signature")
    if _default_shapes(old.node) != _default_shapes(new.node):
        found.append("defaults")
    if syntax.shape(old.node.body) != syntax.shape(new.node.body) and not codes.same(
        old.definition.code, new.definition.code
    ):
        found.append("body")
    return found


def parameters(node: syntax.FunctionNode) -> list[tuple[str, str]]:
    """(kind, name) of every parameter."""
    found = []
    for kind in ("posonlyargs", "args", "vararg", "kwonlyargs", "kwarg"):
        value = getattr(node.args, kind)
        found += [(kind, a.arg) for a in (value if isinstance(value, list) else [value] if value else [])]
    return found


def _default_shapes(node: syntax.FunctionNode) -> dict[str, object]:
    positional = [*node.args.posonlyargs, *node.args.args]
    with_default = positional[len(positional) - len(node.args.defaults) :]
    pairs = [*zip(with_default, node.args.defaults, strict=True)]
    pairs += [(a, value) for a, value in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if value]
    return {a.arg: syntax.shape(value) for a, value in pairs}


def _compare_nested(outer: Version, new: Version, old_lookup: Lookup, new_lookup: Lookup) -> Iterator[Verdict]:
    before, after = _nested(outer, old_lookup), _nested(new, new_lookup)
    for name, versions in before.items():
        successors: list[Version | None] = [*after.get(name, ())]
        successors += [None] * (len(versions) - len(successors))
        for was, now in zip(versions, successors, strict=False):
            problem = _problem(was, now)
            if now is not None and problem is None:
                if not codes.same(was.definition.code, now.definition.code):
                    yield Verdict(was, now, "nested function")
            elif problem is not None and _escapes(outer.node, was):
                if _escapes(outer.node, was, _SOON):
                    yield Verdict(was, now or new, problem, "closures that exist already cannot follow; restart")
                else:
                    yield Verdict(was, now or new, f"{problem}: closures that wait to be called stay old", kept=True)


def _nested(outer: Version, lookup: Lookup) -> dict[str, list[Version]]:
    found: dict[str, list[Version]] = {}
    for node in ast.walk(outer.node):
        if node is not outer.node and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            version = lookup(node)
            if version is not None:
                found.setdefault(version.definition.name, []).append(version)
    for versions in found.values():
        versions.sort(key=lambda version: version.definition.sympos)
    return found


def _problem(was: Version, now: Version | None) -> str | None:
    """Why a closure of the old version cannot run the new one."""
    if now is None:
        return "a nested function is gone"
    if parameters(was.node) != parameters(now.node) or _default_shapes(was.node) != _default_shapes(now.node):
        return "the parameters or defaults of a nested function changed"
    # What `functools.wraps` copies is for readers: who has the closure already does without.
    if syntax.decorators(was.node, {"wraps"}) != syntax.decorators(now.node, {"wraps"}):
        return "the decorators of a nested function changed"
    old, new = was.definition.code, now.definition.code
    if codes.kind(old) != codes.kind(new):
        return "a nested function is now of another kind"
    more, less = (set(a.co_freevars) - set(b.co_freevars) - {"__class__"} for a, b in ((new, old), (old, new)))
    around = now.definition.parent
    there = set() if around is None else _variables(around.code)
    if more or not less <= there - _variables(new) - {*new.co_names}:
        return "a nested function uses other variables of the function around it"
    return None


def _variables(code: CodeType) -> set[str]:
    return {*code.co_varnames, *code.co_cellvars, *code.co_freevars}


def _is_name(node: ast.expr | ast.keyword, name: str) -> bool:
    value = node.value if isinstance(node, ast.keyword) else node
    return isinstance(value, ast.Name) and value.id == name


def _escapes(outer: syntax.FunctionNode, nested: Version, soon: Collection[str] = ()) -> bool:
    """Whether a closure can outlive the call of `outer` that made it, and those that it is handed to (`soon`)."""
    code = nested.definition.code
    if (codes.kind(code) != "function" and not soon) or nested.node.decorator_list:
        return True
    if not code.co_qualname.endswith(f"<locals>.{code.co_name}"):
        return True  # a method of a local class

    def used(node: ast.AST, inside: bool) -> bool:
        """Used other than by calling it, or in a scope that may escape itself (`inside`)."""
        if isinstance(node, ast.Name):
            return node.id == code.co_name and isinstance(node.ctx, ast.Load)  # to bind it anew is no use
        if isinstance(node, ast.Call) and not inside and (isinstance(node.func, ast.Name) or soon):
            given: list[ast.expr | ast.keyword] = [*node.args, *node.keywords]
            if syntax.last_name(node.func) in soon:
                given = [part for part in given if not _is_name(part, code.co_name)]
            given += [] if _is_name(node.func, code.co_name) else [node.func]
            return any(used(child, inside) for child in given)
        scopes = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda, ast.GeneratorExp)
        inside = inside or (isinstance(node, scopes) and node not in (outer, nested.node))
        return any(used(child, inside) for child in ast.iter_child_nodes(node))

    return used(outer, False)
