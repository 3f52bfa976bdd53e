"""What a body of statements binds each of its names to, as far as its source tells."""

from __future__ import annotations

import ast
from collections.abc import Iterable
from dataclasses import dataclass

from livepatch.build import syntax


@dataclass(frozen=True, eq=False)
class Import:
    """A name that comes from elsewhere: a part of an import statement."""

    node: ast.Import | ast.ImportFrom
    alias: ast.alias


#: A definition or an assignment that adds to it, the expression of a value, an import, or None for what is neither: a
#: parameter, a loop's variable.
Bound = ast.stmt | ast.expr | Import | None
Bindings = dict[str, list[Bound]]


def bindings(body: Iterable[ast.AST]) -> Bindings:
    """Name -> all that it is bound to, also below conditions; `*` has what may bind any name."""
    found: Bindings = {}
    pending = list(body)
    while pending:
        node = pending.pop(0)
        if isinstance(node, syntax.DEFINITIONS):
            found.setdefault(node.name, []).append(node)
            continue
        if isinstance(node, ast.Lambda | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp):
            continue
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                found.setdefault(syntax.bound_name(node, alias), []).append(Import(node, alias))
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found.setdefault(target.id, []).append(node.value)
                else:
                    pending.append(target)
            pending.append(node.value)
            continue
        elif isinstance(node, ast.AugAssign) and isinstance(node.target, ast.Name):
            found.setdefault(node.target.id, []).append(node)
            pending.append(node.value)
            continue
        elif (
            isinstance(node, ast.For)
            and isinstance(node.target, ast.Name)
            and isinstance(node.iter, ast.Tuple | ast.List)
        ):
            found.setdefault(node.target.id, []).extend(
                None if isinstance(item, ast.Starred) else item for item in node.iter.elts
            )
            pending += [node.iter, *node.body, *node.orelse]
            continue
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.setdefault(node.id, []).append(None)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            found.setdefault(node.name, []).append(None)
        pending += ast.iter_child_nodes(node)
    return found
