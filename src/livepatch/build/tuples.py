"""Named tuples that are only written otherwise: `X = namedtuple("X", "a b")`, and `class X(NamedTuple)` with the same.

Who made one before has an instance of the class that there is, and nobody could tell the two classes apart but by their
identity. So the live one stays.
"""

from __future__ import annotations

import ast

from livepatch.build import syntax
from livepatch.build.findings import Findings
from livepatch.build.names import Names
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement


def without_respelled(found: Findings, scope: Scope) -> Scope:
    """The statements of a module without those that make the same named tuple as before in another way."""
    same: list[Statement] = []
    for name in sorted(scope.old_binders.keys() & scope.new_binders.keys()):
        was, now = scope.old_binders[name], scope.new_binders[name]
        if len(was) == len(now) == 1 and was[0].under == now[0].under and was[0].key != now[0].key:
            old, new = _fields(found.names[0], was[0], name), _fields(found.names[1], now[0], name)
            if old is not None and old == new and name not in found.old.global_writes | found.new.global_writes:
                same += [was[0], now[0]]
                found.claim(was[0], now[0])
                found.note(name, now[0].line, "class", "the same named tuple, written otherwise: it stays what it is")
    if not same:
        return scope
    left = ([s for s in side if s not in same] for side in (scope.old, scope.new))
    return Scope(scope.prefix, *left)


def _fields(names: Names, statement: Statement, name: str) -> list[str] | None:
    """The fields of the named tuple that a statement makes and does nothing else; None if it is none."""
    node = statement.node
    if isinstance(node, ast.ClassDef):
        plain = not (node.keywords or node.decorator_list or getattr(node, "type_params", None))
        if not plain or [names.dotted(base) for base in node.bases] != ["typing.NamedTuple"]:
            return None
        body = syntax.effective(node.body)
        fields = [s.target.id for s in body if syntax.is_declaration(s) and isinstance(s.target, ast.Name)]  # type: ignore[attr-defined]
        return fields if len(fields) == len(body) else None
    target = node.targets[0] if isinstance(node, ast.Assign) and len(node.targets) == 1 else None
    call = node.value if isinstance(node, ast.Assign) else None
    if not isinstance(target, ast.Name) or not isinstance(call, ast.Call) or call.keywords or len(call.args) != 2:
        return None
    maker, listed = names.dotted(call.func), call.args[1]
    try:
        if ast.literal_eval(call.args[0]) != name:
            return None
        if maker == "typing.NamedTuple" and isinstance(listed, ast.List | ast.Tuple):
            return [ast.literal_eval(pair.elts[0]) for pair in listed.elts if isinstance(pair, ast.Tuple)]
        if maker == "collections.namedtuple":
            given = ast.literal_eval(listed)
            return given.replace(",", " ").split() if isinstance(given, str) else list(given)
    except (ValueError, TypeError, IndexError):
        pass
    return None
