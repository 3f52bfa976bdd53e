"""Attributes whose values have another type in the new release: how an old value becomes a new one, and back.

Both versions of a class set the attribute to constants, in the same methods and in the same order: so the constants
correspond. If it never has other values, that is all. If it has, two cases are understood. A count of what is left
(`n -= len(data)`) became what is left (`rest = rest[len(data):]`); or one form is the mutable one of the other, as of
`bytes` and `bytearray`, and the type of a value tells which it is, whoever set it. All else needs somebody who knows.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from livepatch.archive.defaults import field_default

Convert = Callable[[Any], Any]
_NOT_CONSTANT = object()
_TWINS = {frozenset({bytes, bytearray}), frozenset({frozenset, set})}
_MUTABLE = (bytearray, set)
_IMMUTABLE = (str, bytes, int, float, bool, type(None))


def conversion(old: ast.ClassDef, new: ast.ClassDef, attribute: str) -> tuple[Convert, Convert] | None:
    """What makes a new value of an old one, and an old of a new one; None if the source does not tell."""
    twins = _starts(old, attribute), _starts(new, attribute)
    if frozenset(twins) in _TWINS:
        return _twin(*twins), _twin(*reversed(twins))
    before, after = _assigned(old, attribute), _assigned(new, attribute)
    pairs: list[tuple[Any, Any]] = []
    for method in before.keys() | after.keys():
        was, now = ([v for v in side.get(method, ()) if v is not _NOT_CONSTANT] for side in (before, after))
        if len(was) != len(now):
            return None
        pairs += zip(was, now, strict=True)
    others = any(value is _NOT_CONSTANT for side in (before, after) for values in side.values() for value in values)
    if not pairs or not all(isinstance(value, _IMMUTABLE) for pair in pairs for value in pair):
        return None
    return _count(pairs) if others else _table(pairs)


def has_twins(old: ast.ClassDef, new: ast.ClassDef, attribute: str) -> bool:
    """Whether the attribute starts in the mutable form in one of the two, and in the other in the other."""
    return frozenset({_starts(old, attribute), _starts(new, attribute)}) in _TWINS


def keeps(value: Any) -> bool:
    """Whether a value that was converted has to take the place of what it was made of: somebody may change it."""
    return isinstance(value, _MUTABLE)


def _twin(was: type, now: type) -> Convert:
    return lambda value: now(value) if type(value) is was else value


def _starts(cls: ast.ClassDef, attribute: str) -> type:
    """The type of what an instance has under a name from the beginning, where that is evident; else `object`."""
    for node in cls.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == attribute and node.value is not None:
            return _type_of(field_default(node) or node.value)
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            sets = [n for n in node.body if isinstance(n, ast.Assign | ast.AnnAssign) and n.value is not None]
            for one in sets:
                targets = one.targets if isinstance(one, ast.Assign) else [one.target]
                if any(isinstance(t, ast.Attribute) and t.attr == attribute for t in targets):
                    return _type_of(one.value)  # type: ignore[arg-type]
    return object


def _type_of(node: ast.expr) -> type:
    if isinstance(node, ast.Call) and not node.args and not node.keywords:
        return {"bytearray": bytearray, "set": set, "frozenset": frozenset, "bytes": bytes}.get(
            getattr(node.func, "id", ""), object
        )
    try:
        return type(ast.literal_eval(node))
    except ValueError:
        return object


def _assigned(cls: ast.ClassDef, attribute: str) -> dict[str, list[Any]]:
    """Method -> what it sets the attribute to, in order."""
    found: dict[str, list[Any]] = {}
    for method in cls.body:
        if not isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and node.attr == attribute and isinstance(node.ctx, ast.Store | ast.Del):
                found.setdefault(method.name, []).append((node.lineno, node))
    return {
        method.name: [_value(method, node) for _, node in sorted(found[method.name], key=lambda pair: pair[0])]
        for method in cls.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef) and method.name in found
    }


def _value(method: ast.AST, target: ast.Attribute) -> Any:
    for node in ast.walk(method):
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        if isinstance(node, ast.Assign | ast.AnnAssign) and target in targets and node.value is not None:
            try:
                return ast.literal_eval(node.value)
            except ValueError:
                break
    return _NOT_CONSTANT


def _table(pairs: list[tuple[Any, Any]]) -> tuple[Convert, Convert] | None:
    forth = {(type(was), was): now for was, now in pairs}
    back = {(type(now), now): was for was, now in pairs}
    exact = all(forth[type(w), w] == n and back[type(n), n] == w for w, n in pairs)
    if not exact or forth.keys() & back.keys():
        return None  # a value must say by itself which form it has
    return (
        lambda value: forth.get((type(value), value), value) if isinstance(value, _IMMUTABLE) else value,
        lambda value: back.get((type(value), value), value) if isinstance(value, _IMMUTABLE) else value,
    )


def _count(pairs: list[tuple[Any, Any]]) -> tuple[Convert, Convert] | None:
    whole: Any = max((now for _, now in pairs if isinstance(now, str | bytes)), key=len, default=None)
    if not whole:
        return None
    for was, now in pairs:
        if type(was) is not int or type(now) is not type(whole) or len(now) != was or not whole.endswith(now):
            return None

    def forth(value: Any) -> Any:
        counts = type(value) is int and 0 <= value <= len(whole)
        return whole[len(whole) - value :] if counts else value

    def back(value: Any) -> Any:
        return len(value) if type(value) is type(whole) else value

    return forth, back
