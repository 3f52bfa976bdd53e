"""Files that look like modules and are none: templates, which others read, fill in and write elsewhere.

    base = bin_dir[: -len(__BIN_NAME__) - 1]

What cannot be imported, since its own statements need a name that nothing binds, is live in no process; and that is
meant where another module has the name as a string. Names that come from elsewhere (`exec`, `globals()`, `import *`,
what somebody puts into `builtins`) leave the question open.
"""

from __future__ import annotations

import ast
import builtins
from collections.abc import Iterator
from typing import TYPE_CHECKING

from livepatch.build import syntax

if TYPE_CHECKING:
    from livepatch.build.world import Source

#: What every module has, and what only some processes have: `gettext` installs `_`, and Windows has one more error.
_GIVEN = {*dir(builtins), "__file__", "__path__", "__cached__", "__builtins__", "__annotations__", "__dict__"}
_GIVEN |= {"_", "WindowsError"}
_ANYTHING = {"exec", "globals", "locals", "vars", "setattr", "builtins", "__builtins__", "__dict__", "modules"}
#: What binds a name that is written beside it.
_NAMED = syntax.DefinitionNode | ast.ExceptHandler | ast.MatchAs | ast.MatchStar
_SIMPLE = ast.Assign | ast.AugAssign | ast.AnnAssign | ast.Expr
#: What evaluates some of its parts later, or perhaps not at all.
_PERHAPS = ast.Lambda | ast.IfExp | ast.BoolOp | ast.ListComp | ast.SetComp | ast.DictComp | ast.GeneratorExp
_PERHAPS |= ast.Compare  # a chain ends where it fails


def missing_name(source: Source) -> str | None:
    """A name that importing the module is sure to ask for, and that nothing binds."""
    bound = source.bound | source.global_writes | _GIVEN
    for node in ast.walk(source.tree):
        if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
            bound.add(node.id)
        elif isinstance(node, _NAMED) and node.name:
            bound.add(node.name)
        elif isinstance(node, ast.MatchMapping) and node.rest:
            bound.add(node.rest)
        elif isinstance(node, ast.alias):
            bound.add(node.asname or node.name.partition(".")[0])
        named = getattr(node, "id", None) or getattr(node, "attr", None) or getattr(node, "name", None)
        if named in _ANYTHING or (isinstance(node, ast.alias) and node.name == "*"):
            return None
    needed = (name for statement in source.tree.body for name in _needed(statement))
    return next((name for name in needed if name not in bound), None)


def _needed(statement: ast.stmt) -> Iterator[str]:
    if isinstance(statement, _SIMPLE) and statement.value is not None:
        pending: list[ast.AST] = [statement.value]
        while pending:
            node = pending.pop()
            if isinstance(node, ast.Name):
                yield node.id
            elif not isinstance(node, _PERHAPS):
                pending += ast.iter_child_nodes(node)
