"""Statements that are run for what they do to something else: they put an item in, or set an attribute.

    if "itms" not in urllib.parse.uses_netloc:
        urllib.parse.uses_netloc.append("itms")

Such a statement is run when the transition is over. Each of its acts goes through a function that does the same and
notes how to take back just that, so that what others do to the same container meanwhile, or later, stays. Before the
transition the statement is rehearsed: everything is evaluated, nothing is done, and what would fail refuses the patch.
"""

from __future__ import annotations

import ast
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from functools import partial
from types import ModuleType
from typing import Any

from livepatch.archive.format import ObjectEntry, refusal
from livepatch.archive.pieces import NewSource, Piece, Values, cut, like, run
from livepatch.core import log
from livepatch.core import values as live_values

from .record import Record

_PUT, _SET = "__livepatch_put__", "__livepatch_set__"
ITEM = "[]"
_METHODS = {"append", "extend", "insert", "add", "update", "setdefault"}
_MAPPINGS: tuple[type, ...] = (dict, OrderedDict, defaultdict)
_SEQUENCES: tuple[type, ...] = (list, deque)
#: What sets an attribute and does nothing else.
_PLAIN: tuple[Any, ...] = (object.__setattr__, type.__setattr__, ModuleType.__setattr__)


class Act(Record):
    """One thing that a statement does to `target`: it calls a method that adds to it, sets an item, or, if `attribute`
    is true, the attribute `name`. `values` are the expressions for that."""

    target: ast.expr
    name: str
    values: tuple[ast.expr, ...]
    attribute: bool
    keywords: tuple[ast.keyword, ...] = ()

    def call(self, node: ast.stmt) -> ast.stmt:
        """The statement that does it by one of our functions."""
        name = _SET if self.attribute else _PUT
        arguments = [self.target, ast.Constant(self.name), *self.values]
        call = ast.Call(ast.Name(name, ast.Load()), arguments, list(self.keywords))
        return ast.fix_missing_locations(ast.copy_location(ast.Expr(ast.copy_location(call, node)), node))


def act(node: ast.stmt) -> Act | None:
    """What a simple statement does to something else, if it is one of these."""
    if isinstance(node, ast.Assign) and len(node.targets) == 1:
        target = node.targets[0]
        if isinstance(target, ast.Attribute):
            return Act(target.value, target.attr, (node.value,), True)
        if isinstance(target, ast.Subscript) and not isinstance(target.slice, ast.Slice):
            return Act(target.value, ITEM, (target.slice, node.value), False)
    call = node.value if isinstance(node, ast.Expr) else None
    if not isinstance(call, ast.Call) or any(isinstance(argument, ast.Starred) for argument in call.args):
        return None
    if any(keyword.arg is None for keyword in call.keywords):
        return None
    if isinstance(call.func, ast.Attribute) and call.func.attr in _METHODS:
        return Act(call.func.value, call.func.attr, tuple(call.args), False, tuple(call.keywords))
    if isinstance(call.func, ast.Name) and call.func.id == "setattr" and len(call.args) == 3 and not call.keywords:
        name = call.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            return Act(call.args[0], name.value, (call.args[2],), True)
    return None


def leaves(node: ast.stmt) -> Iterator[ast.stmt]:
    """The simple statements in one that may have conditions and loops around them."""
    if isinstance(node, ast.If | ast.For):
        for inner in [*node.body, *node.orelse]:
            yield from leaves(inner)
    else:
        yield node


def _by_call(node: ast.stmt) -> ast.stmt:
    """The same where all that is done to something else is done by our functions."""
    if isinstance(node, ast.If | ast.For):
        changed: ast.stmt = like(node, body=[*map(_by_call, node.body)], orelse=[*map(_by_call, node.orelse)])
        return changed
    found = act(node)
    if found is None and not isinstance(node, ast.Pass):
        raise refusal(f"The archive runs `{ast.unparse(node)}`, which does something that cannot be taken back.")
    return node if found is None else found.call(node)


class Effects:
    """The statements of one module: rehearsed, run, and taken back."""

    def __init__(self, entry: ObjectEntry, source: NewSource) -> None:
        self._module = entry.module
        self._source = source
        lines = {effect.line for effect in entry.effects}
        pieces = list(cut(source.tree.body, lambda node: isinstance(node, ast.stmt) and node.lineno in lines))
        if len(pieces) != len(lines) or any(piece.classes for piece in pieces):
            raise refusal(f"The archive runs statements of '{self._module}' that its source does not have.")
        self._pieces = [Piece(_by_call(piece.statement)) for piece in pieces]
        self._undo: list[Callable[[], None]] = []

    def rehearse(self, module: ModuleType, values: Values) -> None:
        """Evaluate everything. Raises what that raises, and LivepatchError (EINVAL) for what cannot be taken back."""
        for piece in self._pieces:
            self._run(piece, module, values, self._check_put, self._check_set)

    def complete(self, module: ModuleType) -> None:
        """All tasks have moved: do it. What fails is logged."""
        for piece in self._pieces:
            try:
                self._run(piece, module, {}, self._put, self._set)
            except Exception as error:
                text = ast.unparse(piece.statement).replace(_PUT, "put").replace(_SET, "set").split("\n")[0]
                log.warning(f"`{text}` in '{self._module}' failed, and is not done: {error!r}")

    def take_back(self) -> None:
        """Undo what has been done, the last first, where nobody has changed it since."""
        while self._undo:
            try:
                self._undo.pop()()
            except Exception as error:
                log.warning(f"A statement of '{self._module}' could not be taken back: {error!r}")

    def _run(
        self, piece: Piece, module: ModuleType, values: Values, put: Callable[..., Any], set_: Callable[..., Any]
    ) -> None:
        names = {**values.get(None, {}), _PUT: put, _SET: set_}
        run(self._source, [piece], module, {**values, None: names})

    # -- items -----------------------------------------------------------------------------------------

    def _check_put(self, container: Any, method: str, *given: Any, **named: Any) -> None:
        self._items(container, method, given, named)

    def _items(self, container: Any, method: str, given: tuple[Any, ...], named: dict[str, Any]) -> list[Any]:
        """What is to be put in: of mappings, pairs."""
        kind = type(container)
        if kind in _MAPPINGS and method == ITEM:
            return list({given[0]: given[1]}.items())
        if kind in _MAPPINGS and method == "update":
            return list(dict(*given, **named).items())
        if kind in _MAPPINGS and method == "setdefault" and not named:
            key, value = (*given, None)[:2]
            return [] if key in container else [(key, value)]
        if kind in _SEQUENCES and method in ("append", "extend", "insert") and not named:
            if kind is deque and container.maxlen is not None:
                raise refusal(f"'{self._module}' would add to a queue of limited length, which pushes others out.")
            (item,) = given[1:] if method == "insert" else given
            return list(item) if method == "extend" else [item]
        if kind is set and method in ("add", "update") and not named:
            return list(set().union(*given) if method == "update" else {*given}.difference(container))
        shown = "put an item into" if method == ITEM else f"call '{method}' of"
        raise refusal(f"'{self._module}' would {shown} a '{kind.__qualname__}', which cannot be taken back.")

    def _put(self, container: Any, method: str, *given: Any, **named: Any) -> None:
        items = self._items(container, method, given, named)
        if type(container) in _MAPPINGS:
            for key, value in items:
                before = container.get(key, live_values.ABSENT)
                container[key] = value
                self._undo.append(partial(_take_key, container, key, value, before))
        elif type(container) is set:
            for item in items:
                if item not in container:
                    container.add(item)
                    self._undo.append(partial(container.discard, item))
        else:
            for item in items:
                container.insert(given[0] if method == "insert" else len(container), item)
                self._undo.append(partial(_take_item, container, item))

    # -- attributes ------------------------------------------------------------------------------------

    def _check_set(self, thing: Any, name: str, value: Any) -> None:
        if name == "__class__":
            if isinstance(thing, ModuleType):
                ModuleType("rehearsal").__class__ = value
                return
        elif type(thing).__setattr__ in _PLAIN and hasattr(thing, "__dict__"):
            found = [vars(cls)[name] for cls in type(thing).__mro__ if name in vars(cls)]
            if not any(hasattr(type(one), "__set__") for one in found[:1]):
                return
        raise refusal(
            f"'{self._module}' would set '{name}' of a '{type(thing).__qualname__}', which may do more than that."
        )

    def _set(self, thing: Any, name: str, value: Any) -> None:
        self._check_set(thing, name, value)
        before = _held(thing, name)
        _write(thing, name, value)
        self._undo.append(partial(_reset, thing, name, value, before))


def _take_key(container: Any, key: Any, value: Any, before: Any) -> None:
    if key in container and container[key] is value:
        if before is live_values.ABSENT:
            del container[key]
        else:
            container[key] = before


def _take_item(container: Any, item: Any) -> None:
    for at in reversed(range(len(container))):
        if container[at] is item:
            del container[at]
            return


def _held(thing: Any, name: str) -> Any:
    return type(thing) if name == "__class__" else live_values.read(thing, name)


def _write(thing: Any, name: str, value: Any) -> None:
    if name == "__class__":
        thing.__class__ = value
    else:
        live_values.write(thing, name, value)


def _reset(thing: Any, name: str, value: Any, before: Any) -> None:
    if _held(thing, name) is value:
        _write(thing, name, before)
