"""Whether a method reads an attribute of its instance that it has not set itself, on any way through it.

A method that sets `self.x` on every way before it reads it needs nothing of older instances: nobody gets in between,
since both are one call. It is set by an assignment, or by a call of another method of the class that sets it on all its
own ways. What is set below a condition, in a loop, or in a `try` that goes on after an error may be missing later. A
`try` that does nothing but read it, and catches AttributeError, asks for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from livepatch.archive.constructors import first, method_of
from livepatch.build.syntax import FunctionNode, last_name

_DEPTH = 4  # of methods that call methods
_Block = list[ast.stmt]


class _Read(Exception):
    """It is read where it may not have been set."""


def reads_unset(cls: ast.ClassDef | None, function: FunctionNode, attribute: str) -> bool:
    """Whether a function, perhaps a method of a class, may read an attribute of `self` without having set it."""
    try:
        _Paths(cls, function, attribute, _DEPTH)
    except _Read:
        return True
    return False


class _Paths:
    """Follows the ways through a function; True or False is whether the attribute is set for sure, None that nobody
    comes this far."""

    def __init__(self, cls: ast.ClassDef | None, function: FunctionNode, attribute: str, depth: int) -> None:
        self._cls = cls
        self._own = first(function)
        self._owners = {"self", self._own}
        self._attribute = attribute
        self._depth = depth
        self._exits: list[bool] = []  # at each `return`
        self.at_end = self._block(function.body, False)

    @property
    def sets(self) -> bool:
        """Whether who has called the function can be sure that it has set the attribute."""
        return self.at_end is not False and all(self._exits) and (self.at_end is True or bool(self._exits))

    def _block(self, body: _Block, known: bool) -> bool | None:
        after: bool | None = known
        for statement in body:
            after = self._statement(statement, bool(after))
            if after is None:
                return None
        return after

    def _statement(self, node: ast.stmt, known: bool) -> bool | None:
        if isinstance(node, FunctionNode):
            self._look([*node.decorator_list, node.args], known)
            exits, self._exits = self._exits, []
            self._block(node.body, known)
            self._exits = exits
            return known
        if isinstance(node, ast.If):
            self._look([node.test], known)
            return _either(self._block(node.body, known), self._block(node.orelse, known))
        if isinstance(node, ast.With | ast.AsyncWith):
            self._look(node.items, known)
            after = self._block(node.body, known)
            swallows = any(isinstance(i.context_expr, ast.Call) for i in node.items)  # errors, perhaps
            return known if swallows and not known else after
        if isinstance(node, ast.Try | ast.TryStar):
            return self._try(node, known)
        if isinstance(node, ast.For | ast.AsyncFor | ast.While):
            self._look([node.test] if isinstance(node, ast.While) else [node.target, node.iter], known)
            self._block(node.body, known)
            self._block(node.orelse, known)
            return known
        if isinstance(node, ast.Match):
            self._look([node.subject, *(case.guard for case in node.cases if case.guard is not None)], known)
            for case in node.cases:
                self._block(case.body, known)
            return known
        return self._simple(node, known)

    def _try(self, node: ast.Try | ast.TryStar, known: bool) -> bool | None:
        value = getattr(node.body[0], "value", None)
        reads = isinstance(value, ast.expr) and self._is_it(value) and len(node.body) == 1
        after = self._block(node.body, known or (reads and any(map(_is_for_missing, node.handlers))))
        if after is not None:
            after = self._block(node.orelse, after)
        for handler in node.handlers:
            after = _either(after, self._block(handler.body, known))
        last = self._block(node.finalbody, known)
        return None if after is None or last is None else after or last

    def _simple(self, node: ast.stmt, known: bool) -> bool | None:
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            if node.value is None:
                return known
            self._look([node.value], known)
            self._look([t for t in targets if not self._is_it(t)], known)
            return known or any(map(self._is_it, targets)) or self._is_set_by(node.value)
        if isinstance(node, ast.AugAssign):
            self._look([node.target], known, stores=True)
        self._look([node], known)
        if isinstance(node, ast.Delete) and any(map(self._is_it, node.targets)):
            return False
        if isinstance(node, ast.Return):
            self._exits.append(known)
        if isinstance(node, ast.Return | ast.Raise | ast.Break | ast.Continue):
            return None
        return known or (isinstance(node, ast.Expr) and self._is_set_by(node.value))

    def _look(self, nodes: Iterable[ast.AST], known: bool, stores: bool = False) -> None:
        for inner in () if known else (inner for node in nodes for inner in ast.walk(node)):
            if self._is_it(inner) and (stores or not isinstance(getattr(inner, "ctx", None), ast.Store)):
                raise _Read

    def _is_it(self, node: ast.AST) -> bool:
        if not isinstance(node, ast.Attribute) or node.attr != self._attribute:
            return False
        return isinstance(node.value, ast.Name) and node.value.id in self._owners

    def _is_set_by(self, value: ast.expr) -> bool:
        """Whether a value is that of a call, awaited if need be, of a method that sets it."""
        call = value.value if isinstance(value, ast.Await) else value
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not self._depth:
            return False
        own = isinstance(call.func.value, ast.Name) and call.func.value.id == self._own
        method = method_of(self._cls, call.func.attr) if own and self._cls is not None else None
        if method is None or isinstance(method, ast.AsyncFunctionDef) != (call is not value):
            return False
        if any(isinstance(node, ast.Yield | ast.YieldFrom) for node in ast.walk(method)):
            return False
        try:
            return _Paths(self._cls, method, self._attribute, self._depth - 1).sets
        except _Read:
            return False


def _either(one: bool | None, other: bool | None) -> bool | None:
    """What is sure after one way or the other."""
    return other if one is None else one if other is None else one and other


def _is_for_missing(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is not None and last_name(kind) == "AttributeError" for kind in kinds)
