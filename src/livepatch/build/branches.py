"""Functions and classes whose conditions changed, or that are defined in more or fewer places than before.

Where the conditions can be evaluated again without doing anything (versions of Python, imports that may fail), loading
the patch finds out which definition is the live one, and whether it corresponds to the one before; see
`archive.branches`. Definitions that are not the live ones are no concern of that process.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Callable
from dataclasses import replace
from types import UnionType

from livepatch.archive.format import BranchEntry
from livepatch.build import syntax
from livepatch.build.findings import Findings
from livepatch.build.purity import Purity
from livepatch.build.report import CARRIED
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement
from livepatch.build.uses import condition_of
from livepatch.build.world import Source


def decide(
    found: Findings,
    scope: Scope,
    old: ast.ClassDef | None = None,
    new: ast.ClassDef | None = None,
    take: Callable[[str, list[Statement], list[Statement]], bool] | None = None,
) -> None:
    """Say which names of a module, or of two versions of a class, are left for the load to decide.

    A method that `take` can exchange as a whole may even come or go.
    """
    for name in sorted(scope.old_binders.keys() & scope.new_binders.keys()):
        was, now = scope.old_binders[name], scope.new_binders[name]
        if _conditions(was, scope.old) == _conditions(now, scope.new) or not any(s.under for s in [*was, *now]):
            continue
        if scope.merged((was[0], now[0])):
            continue  # whichever of them is alive becomes the one that there is now
        if not _load_can_tell(found, scope, name, old, new):
            continue
        kind = _kind(now[0])
        if take is not None and kind is not ast.ClassDef and take(name, was, now):
            continue
        _say(
            found,
            scope,
            name,
            "it is defined under other conditions: loading the patch shows whether the same one is meant",
        )


def decide_by_value(found: Findings, path: str, name: str, value: str) -> bool:
    """Leave a name for the load to decide of which a condition names a value that changes: in the module, or in the
    class of a path. False if it cannot."""
    key = f"{path}.{name}" if path else name
    if key not in found.decided:
        old = new = None
        scope = Scope.of("", found.old.tree.body, found.new.tree.body)
        if path:
            versions = [(old, new) for qualified, old, new in found.classes if qualified == path]
            if len(versions) != 1:
                return False
            ((old, new),) = versions
            scope = Scope.of(f"{path}.", old.body, new.body)
        if not (name in scope.old_binders and name in scope.new_binders):
            return False
        if not _load_can_tell(found, scope, name, old, new):
            return False
        reason = (
            "a condition around it names a value that changes: loading the patch shows whether the same one is meant"
        )
        _say(found, scope, name, reason)
    for at, change in enumerate(found.changes):
        if isinstance(change.entry, BranchEntry) and change.entry.name == key:
            entry = replace(change.entry, valued=True)
            found.changes[at] = replace(change, entry=entry, needs=change.needs | {value})
    return True


def _load_can_tell(
    found: Findings, scope: Scope, name: str, old: ast.ClassDef | None, new: ast.ClassDef | None
) -> bool:
    """Whether both versions say it without doing anything."""
    was, now = scope.old_binders[name], scope.new_binders[name]
    return (
        _are_alike(was + now)
        and _can_tell(found, found.old, was, scope.old, old)
        and _can_tell(found, found.new, now, scope.new, new)
    )


def _kind(statement: Statement) -> UnionType | type:
    return ast.ClassDef if isinstance(statement.node, ast.ClassDef) else syntax.FunctionNode


def _say(found: Findings, scope: Scope, name: str, reason: str) -> None:
    was, now = scope.old_binders[name], scope.new_binders[name]
    kind = _kind(now[0])
    pairs, gone, fresh = scope.definitions(kind)
    sides = [(a.node.lineno, b.node.lineno) for a, b in pairs if b in now]
    sides += [(s.node.lineno, 0) for s in gone if s in was] + [(0, s.node.lineno) for s in fresh if s in now]
    own = {bound for s in [*scope.old, *scope.new] for bound in s.binds() or ()} if scope.prefix else set()
    fresh_names = _read(_deciding(now, scope.new)) & found.new.bindings.keys() - found.old.bindings.keys() - own
    entry = BranchEntry(
        scope.prefix + name,
        now[0].line,
        tuple(side[0] for side in sides),
        tuple(side[1] for side in sides),
        _around(was, scope.old),
        _around(now, scope.new),
        valued=bool(fresh_names),
    )
    found.decided.add(scope.prefix + name)
    shown = "class" if kind is ast.ClassDef else "method" if scope.prefix else "function"
    found.say(CARRIED, scope.prefix + name, now[0].line, shown, reason, entry=entry)
    needs = found.changes[-1].needs | {f"{found.new.module}:{name}" for name in fresh_names}
    found.changes[-1] = replace(found.changes[-1], needs=needs)


def _conditions(statements: list[Statement], body: list[Statement]) -> list[object]:
    """All that decides about them, comparable with `==`."""
    return [(s.under, [other.key for other in syntax.beside(s, body)]) for s in statements]


def _are_alike(statements: list[Statement]) -> bool:
    """Whether all of them define functions, or all classes, with no decorators that others may have to do with."""
    nodes = [statement.node for statement in statements]
    classes = all(isinstance(node, ast.ClassDef) for node in nodes)
    return classes or all(isinstance(node, syntax.FunctionNode) and not node.decorator_list for node in nodes)


def _can_tell(
    found: Findings, source: Source, statements: list[Statement], body: list[Statement], cls: ast.ClassDef | None
) -> bool:
    """Whether it can be found out once more which of them is chosen."""
    nodes = _deciding(statements, body)
    if nodes is None:
        return False
    for statement in statements:
        # What fails in a definition may decide as well.
        beside = syntax.beside(statement, body)
        inside = [s.node for s in body if beside and s.root is statement.root and s.under[-1:] == ("try",)]
        if not all(_cannot_fail(node) for node in inside if isinstance(node, syntax.DefinitionNode)):
            return False
    read = _read(nodes)
    bound = (
        source.bindings.keys()
        | {name for name in read if hasattr(builtins, name)}
        | {s for b in body for s in b.binds() or ()}
    )
    if read - bound or any(None in source.bindings.get(name, ()) for name in read):
        return False  # nobody knows what it was, or it may have changed since
    return Purity(found.world, source, new=source is found.new).problem(nodes, (), cls) is None


def _deciding(statements: list[Statement], body: list[Statement]) -> list[ast.AST] | None:
    """The conditions around some definitions and the statements beside them; None if there is something else."""
    nodes: list[ast.AST] = []
    for statement in statements:
        for header in statement.under:
            condition = condition_of(header)
            if condition is None and not syntax.is_try(header):
                return None
            nodes += [condition] if condition is not None else []
        nodes += [other.node for other in syntax.beside(statement, body)]
    return nodes


def _read(nodes: list[ast.AST] | None) -> set[str]:
    return {
        n.id for node in nodes or () for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Load)
    }


def _cannot_fail(node: syntax.DefinitionNode) -> bool:
    if isinstance(node, ast.ClassDef):
        return all(isinstance(base, ast.Name) for base in node.bases) and not (node.decorator_list or node.keywords)
    return not (node.decorator_list or node.args.defaults or any(node.args.kw_defaults))


def _around(statements: list[Statement], body: list[Statement]) -> tuple[int, ...]:
    return tuple(sorted({other.node.lineno for s in statements for other in syntax.beside(s, body)}))
