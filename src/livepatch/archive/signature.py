"""New defaults and annotations for a live function whose signature changed.

Default values are evaluated once, when a `def` runs, and live functions have them as objects. A default whose
expression did not change keeps the very object: `def f(cache={})` must not lose its cache. One that did is
evaluated as the new `def` would have done it, by running a `def` without decorators and body in its place.
"""

from __future__ import annotations

import ast
from collections.abc import Container
from types import FunctionType, ModuleType
from typing import Any

from livepatch.archive.format import refusal
from livepatch.archive.pieces import FunctionNode, NewSource, Piece, Values, defaults_of, like, run
from livepatch.core import log

_KEPT = "__livepatch_kept__"  # stands for a default that is not evaluated again


def changes_signature(old: Piece, new: Piece) -> bool:
    """Whether defaults or annotations differ between two versions of a function."""
    was, now = _node(old), _node(new)
    return _defaults(was) != _defaults(now) or _annotations(was) != _annotations(now)


def new_attributes(
    before: Piece,
    source: NewSource,
    piece: Piece,
    live: FunctionType,
    module: ModuleType,
    values: Values,
    anew: Container[str] = (),
) -> dict[str, Any]:
    """The defaults and annotations that a function must be given with its new code; nothing if they stay.

    `live` is a function object that carries the old version. `values` are names that mean something else now, and
    `anew` parameters whose defaults do for that reason. Raises what evaluating a default raises.
    """
    old, new = _node(before), _node(piece)
    found: dict[str, Any] = {}
    if _defaults(old) != _defaults(new) or anew:
        kept = {name: source for name, source in _defaults(old) if name not in anew}
        staged = _stage(source, piece, module, _arguments(new, kept=kept), values)
        found |= _with_live(staged, live)
    if _annotations(old) != _annotations(new):
        try:
            staged = _stage(source, piece, module, _arguments(new, kept=dict(_defaults(new)), annotated=True), values)
            found["__annotations__"] = dict(staged.__annotations__)
        except Exception as error:  # they may name what only type checkers see
            log.debug(f"the annotations of '{new.name}' stay as they are: {error!r}")
    return found


def _node(piece: Piece) -> FunctionNode:
    assert isinstance(piece.statement, FunctionNode)
    return piece.statement


def _defaults(node: FunctionNode) -> list[tuple[str, str]]:
    """(parameter, source of its default), in order."""
    return [(name, ast.dump(value)) for name, value in defaults_of(node)]


def _annotations(node: FunctionNode) -> list[tuple[str, str]]:
    found = [(a.arg, ast.dump(a.annotation)) for a in ast.walk(node.args) if isinstance(a, ast.arg) and a.annotation]
    return [*found, *([("return", ast.dump(node.returns))] if node.returns else [])]


def _arguments(node: FunctionNode, kept: dict[str, str], annotated: bool = False) -> FunctionNode:
    """A `def` with nothing but parameters; defaults that are in `kept` as they are need no evaluation."""

    def argument(a: Any) -> Any:
        return a if a is None or annotated else like(a, annotation=None)

    def default(a: ast.arg, value: Any) -> Any:
        if value is None or kept.get(a.arg) != ast.dump(value):
            return value
        return ast.copy_location(ast.Name(_KEPT, ast.Load()), value)

    old = node.args
    positional = [*old.posonlyargs, *old.args]
    with_default = positional[len(positional) - len(old.defaults) :]
    arguments = ast.arguments(
        posonlyargs=[argument(a) for a in old.posonlyargs],
        args=[argument(a) for a in old.args],
        vararg=argument(old.vararg),
        kwonlyargs=[argument(a) for a in old.kwonlyargs],
        kw_defaults=[default(a, v) for a, v in zip(old.kwonlyargs, old.kw_defaults, strict=True)],
        kwarg=argument(old.kwarg),
        defaults=[default(a, v) for a, v in zip(with_default, old.defaults, strict=True)],
    )
    body = [ast.copy_location(ast.Pass(), node)]
    returns = node.returns if annotated else None
    bare: FunctionNode = like(node, args=arguments, body=body, decorator_list=[], returns=returns)
    return bare


def _stage(source: NewSource, piece: Piece, module: ModuleType, node: FunctionNode, values: Values) -> FunctionType:
    """The function that a `def` makes in the place of a piece."""
    known: Values = {**values, None: {**values.get(None, {}), _KEPT: _KEPT}}
    bound = run(source, [Piece(node, piece.classes)], module, known)
    made = next(iter(bound.values()))
    assert isinstance(made, FunctionType)
    return made


def _with_live(staged: FunctionType, live: FunctionType) -> dict[str, Any]:
    """The defaults of a staged function, with those that were kept taken from the live one."""
    have = _values(live)
    found = {}
    for name, value in _values(staged).items():
        if value is _KEPT and name not in have:
            raise refusal(f"The live '{live.__qualname__}' has no default for '{name}'.")
        found[name] = have[name] if value is _KEPT else value
    keywords = {name: found.pop(name) for name in staged.__kwdefaults__ or ()}
    return {"__defaults__": tuple(found.values()) or None, "__kwdefaults__": keywords or None}


def _values(function: FunctionType) -> dict[str, Any]:
    """Parameter -> default, those that can be given by position first."""
    code, defaults = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[: code.co_argcount]
    return dict(zip(names[len(names) - len(defaults) :], defaults, strict=True)) | (function.__kwdefaults__ or {})
