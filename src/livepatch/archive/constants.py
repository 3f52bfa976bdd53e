"""Names that mean another value when the patch is in force: evaluated, compared with what is there, and made late.

The statements that make a value are run before the transition, in the namespace of the live module or class, one after
the other as they stand in the new source; each sees the new values of those before it. What somebody has made of a
value since the module was imported would be lost, so the live value must be what the old source makes of it, evaluated
in the same way. The core then sees to it that each task gets the value of its world (`core/values.py`).

What calls functions or classes that the patch changes is made when these are in force. So is what a class has computed
from an attribute and keeps: it is computed again, by the very statement that computes it on first use.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from livepatch.archive.format import BY_WORLD, COPIED, MADE_LATE, CacheEntry, ConstantEntry, ObjectEntry, refusal
from livepatch.archive.pieces import (
    NewSource,
    Piece,
    Values,
    cut,
    evaluate,
    like,
    live_class,
    mangled,
    run,
)
from livepatch.core import codes, log
from livepatch.core import values as live_values
from livepatch.core.heap import instances
from livepatch.core.kind import PATCHED
from livepatch.core.model import Object, Value

_ABSENT = live_values.ABSENT
_DEPTH = 20  # of containers in containers that are compared
_SIMPLE = (str, bytes, int, float, complex, bool, type(None), frozenset, set, re.Pattern)


class Constants:
    """The values of one module. `everything` has those of all modules of the patch."""

    def __init__(
        self, entry: ObjectEntry, old: NewSource, source: NewSource, everything: list[Value], *, replace: bool = False
    ) -> None:
        self._module = entry.module
        self._old = old
        self._source = source
        self._entries = entry.at_completion
        self._caches = entry.caches
        self._everything = everything
        self._replace = replace
        self._mine: list[Value] = []
        self._due: list[ConstantEntry] = []
        self.values: Values = {}  # what names mean now, for whatever is evaluated
        for constant in entry.at_completion:
            if not constant.origin and not self._pieces(source, constant.lines or (constant.line,)):
                sentence = f"The archive sets '{constant.name}' in '{entry.module}', but its source does not."
                raise refusal(sentence)

    def _pieces(self, source: NewSource, lines: tuple[int, ...]) -> list[Piece]:
        """The statements on these lines; a class whose body stands on its own line is none of them."""

        def wanted(node: ast.AST) -> bool:
            return isinstance(node, ast.stmt) and not isinstance(node, ast.ClassDef) and node.lineno in lines

        return list(cut(source.tree.body, wanted))

    # -- before the transition -------------------------------------------------------------------------

    def begin(self) -> None:
        """From here on values are evaluated."""
        self.forget()
        early = [constant for constant in self._entries if constant.how != MADE_LATE]
        self._due = sorted(early, key=_last_line)

    def forget(self) -> None:
        """There are no values."""
        self._everything[:] = [value for value in self._everything if value not in self._mine]
        self._mine, self._due, self.values = [], [], {}

    def evaluate(self, module: ModuleType, before: float = float("inf")) -> list[Value]:
        """Compute the values whose statements come before a line. Raises what that raises, and LivepatchError (EINVAL)
        if somebody has changed the live one."""
        while self._due and _last_line(self._due[0]) < before:
            constant = self._due.pop(0)
            if constant.how == COPIED:
                self._copy(constant, module)
            elif constant.origin:
                self._follow(constant, module)
            else:
                self._evaluate(constant, module)
        return self._mine

    @contextmanager
    def seen(self) -> Iterator[Values]:
        """What names of this module mean now; meanwhile those of others do so for this thread, read as attributes."""
        with live_values.seen_here(self._everything):
            yield self.values

    def _evaluate(self, constant: ConstantEntry, module: ModuleType) -> None:
        place, name = self._place(constant, module)
        if place is None:
            return
        live = live_values.read(place, name)
        before = live_values.original(place, name) if self._replace else live
        new = self._result(self._source, constant, module, name, self.values)
        if constant.old_lines:
            was = self._result(self._old, constant, module, name, {}, constant.old_lines)
            if not alike(before, was):
                raise refusal(
                    f"The live '{constant.name}' in '{self._module}' is not what the patch was built for: "
                    "it was changed after the module had been imported.",
                )
        if new is _ABSENT and isinstance(place, ModuleType):
            return  # it is left in place, as what is gone is
        if equal(new, live) and equal(new, before):
            return  # derived from something else that changed, and the same
        self._add(place, name, new, live, by_world=constant.how == BY_WORLD)
        self._mine[-1].old = before

    def _add(self, place: Any, name: str, new: Any, live: Any, *, by_world: bool) -> None:
        value = Value(place, name, new, live, by_world=by_world)
        self._mine.append(value)
        self._everything.append(value)
        if new is _ABSENT:
            pass
        elif isinstance(place, type):
            self.values.setdefault(place, {})[name] = new
        elif isinstance(place, ModuleType) and place.__name__ in (self._module, "__main__"):
            self.values.setdefault(None, {})[name] = new

    def _place(self, constant: ConstantEntry, module: ModuleType) -> tuple[Any, str]:
        """Where a name stands; None in place of a class that need not be there and is not."""
        path, _, name = constant.name.rpartition(".")
        if constant.owner:
            found: Any = module
            for part in constant.owner.split("."):
                found = getattr(found, part)
            return found, name
        if not path:
            return module, name
        return live_class(module, path), mangled(path, name)

    def _result(
        self,
        source: NewSource,
        constant: ConstantEntry,
        module: ModuleType,
        name: str,
        values: Values,
        lines: tuple[int, ...] = (),
    ) -> Any:
        """What the statements give the name; ABSENT if that is nothing in the end."""
        pieces = self._pieces(source, lines or constant.lines or (constant.line,))
        if any(_deletes(piece, constant.name) for piece in pieces[-1:]):
            return _ABSENT
        if "." in constant.name and not any(piece.classes for piece in pieces):
            pieces = [_as_name(piece) for piece in pieces]
            name = _RESULT
        functions = (ast.FunctionDef, ast.AsyncFunctionDef)
        plain = any(isinstance(piece.statement, functions) and not piece.classes for piece in pieces)
        with live_values.seen_here(self._everything if source is self._source else []):
            # A function is among those that the patch redirects: so it learns what names mean.
            made = (evaluate if plain else run)(source, pieces, module, values)
        if name not in made and any(isinstance(piece.statement, ast.If | ast.Try | ast.For) for piece in pieces):
            return _ABSENT  # not in the branch that was taken
        if name not in made:
            sentence = f"The archive sets '{constant.name}' in '{self._module}', but its source does not."
            raise refusal(sentence)
        return _default(made[name])

    def _follow(self, constant: ConstantEntry, module: ModuleType) -> None:
        """The module has what another one had under the name."""
        origin, _, name = constant.origin.partition(":")
        have = vars(module).get(constant.name, _ABSENT)
        for value in list(self._everything):
            same = value.place is sys.modules.get(origin) and value.name == name
            if same and have is not _ABSENT and (have is value.old or have is value.seen):
                self._add(module, constant.name, value.new, have, by_world=value.by_world)

    def _copy(self, constant: ConstantEntry, module: ModuleType) -> None:
        """Give instances that have a copy of every name of another module the one that this has got."""
        origin, _, name = constant.origin.partition(":")
        cls, around = live_class(module, constant.owner), sys.modules.get(origin)
        if cls is None or around is None:
            return
        for instance in instances(cls):
            if live_values.read(instance, name) is _ABSENT:
                self._add(instance, name, vars(around)[name], _ABSENT, by_world=False)

    # -- after it --------------------------------------------------------------------------------------

    def complete(self, obj: Object) -> None:
        """All tasks have moved: make what must be made by new code. What fails is logged, and stays as it was."""
        module = obj.module
        assert module is not None
        known = {(id(value.place), value.name) for value in obj.values if value.is_set}
        for constant in self._entries:
            if constant.how == MADE_LATE and not constant.origin:
                place, name = self._place(constant, module)
                if place is not None and (id(place), name) not in known:
                    self._make_late(constant, obj, place, name)
        for constant in self._entries:
            if constant.how == MADE_LATE and constant.origin and (id(module), constant.name) not in known:
                before = len(self._mine)
                self._follow(constant, module)
                self._set(obj, self._mine[before:])
        for cache in self._caches:
            for cls in self._keepers(cache):
                self._set(obj, self._fill(cache, cls, module))

    def _make_late(self, constant: ConstantEntry, obj: Object, place: Any, name: str) -> None:
        assert obj.module is not None
        try:
            new = self._result(self._source, constant, obj.module, name, {})
        except Exception as error:
            log.warning(f"'{constant.name}' in '{self._module}' could not be made anew and stays as it was: {error!r}")
            return
        before = len(self._mine)
        self._add(place, name, new, live_values.read(place, name), by_world=False)
        self._set(obj, self._mine[before:])

    def _set(self, obj: Object, made: list[Value]) -> None:
        obj.values += [value for value in made if value not in obj.values]
        live_values.settle(obj, PATCHED)

    def undo_caches(self, module: ModuleType) -> None:
        """The old values are there again: compute what has been computed on first use while the patch was in force."""
        restored = {id(value.place) for value in self._mine}
        for cache in self._caches:
            for cls in self._keepers(cache):
                if id(cls) not in restored:
                    self._fill(cache, cls, module)

    def _keepers(self, cache: CacheEntry) -> list[type]:
        """The class and its subclasses that have the cache."""
        origin, _, path = cache.cls.partition(":")
        around = sys.modules.get(origin)
        cls = live_class(around, path) if around is not None else None
        family: list[type] = [cls] if cls is not None else []
        for member in family:  # it grows
            subclasses: list[type] = type.__subclasses__(member)
            family += [inner for inner in subclasses if inner not in family]
        return [member for member in family if cache.name in vars(member)]

    def _fill(self, cache: CacheEntry, cls: type, module: ModuleType) -> list[Value]:
        """Compute it for a class; what has been stored in the class on the way."""
        before = dict(vars(cls))
        try:
            _filler(self._source, cache, module)(cls)
        except Exception as error:
            log.warning(f"'{cache.name}' of '{cls.__qualname__}' could not be computed anew: {error!r}")
        after = dict(vars(cls))
        made = [
            Value(cls, name, after[name], before.get(name, _ABSENT), by_world=False)
            for name in after
            if after[name] is not before.get(name, _ABSENT)
        ]
        for value in made:
            value.seen = value.new
        self._mine += made
        return made


def _last_line(constant: ConstantEntry) -> int:
    return max(constant.lines or (constant.line,))


_RESULT = "__livepatch_value__"


def _default(made: Any) -> Any:
    """What a class has where its body has a field of a dataclass: the default, if there is one."""
    if (type(made).__module__, type(made).__qualname__) != ("dataclasses", "Field"):
        return made
    return _ABSENT if type(made.default).__qualname__ == "_MISSING_TYPE" else made.default


def _deletes(piece: Piece, name: str) -> bool:
    """Whether it is a `del` of a name of the module, or of an attribute `C.name`."""
    node = piece.statement
    return isinstance(node, ast.Delete) and any(
        isinstance(inner, ast.Attribute | ast.Name) and ast.unparse(inner) == name
        for target in node.targets
        for inner in ast.walk(target)
    )


def _as_name(piece: Piece) -> Piece:
    """`a.b = value` as a statement that binds a name."""
    node = piece.statement
    assert isinstance(node, ast.Assign)
    target = ast.copy_location(ast.Name(_RESULT, ast.Store()), node)
    return Piece(like(node, targets=[target]), piece.classes, piece.conditional)


def _filler(source: NewSource, cache: CacheEntry, module: ModuleType) -> Any:
    """A function of a class that does what stands below the `if` of a cache."""
    for function in ast.walk(source.tree):
        if isinstance(function, ast.FunctionDef):
            for node in ast.walk(function):
                if isinstance(node, ast.If) and node.lineno == cache.line:
                    first = [*function.args.posonlyargs, *function.args.args][0].arg
                    names: list[Any] = []
                    arguments = ast.arguments(
                        posonlyargs=names, args=[ast.arg(first)], kwonlyargs=names, kw_defaults=names, defaults=names
                    )
                    made = like(function, args=arguments, body=node.body, decorator_list=[], returns=None)
                    ast.fix_missing_locations(made)
                    scope: dict[str, Any] = {}
                    code = compile(ast.Module([made], []), source.file, "exec", dont_inherit=True)
                    exec(code, module.__dict__, scope)
                    return scope[function.name]
    raise refusal(f"The archive names line {cache.line} of {source.file}, where no `if` is.")


def alike(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    """Whether nobody can tell two values apart, as far as can be seen: functions by their code, objects that have no
    equality of their own by their attributes, and what is too deep is taken for equal."""
    if one is other or not depth:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, FunctionType):
        return codes.same(one.__code__, other.__code__)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(alike(a, b, depth - 1) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return list(one) == list(other) and all(alike(one[key], other[key], depth - 1) for key in one)
    if isinstance(one, CodeType | CellType | re.Pattern) or "__eq__" in _defined(type(one)):
        return bool(one == other)
    mine, others = (getattr(thing, "__dict__", {}) for thing in (one, other))
    return alike(mine, others, depth - 1)


def equal(one: Any, other: Any, depth: int = _DEPTH) -> bool:
    """Whether two values surely are the same to everybody, but for those who compare by identity."""
    if one is other or type(one) is not type(other) or not depth:
        return one is other
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(equal(a, b, depth - 1) for a, b in zip(one, other, strict=True))
    if type(one) is dict:
        return list(one) == list(other) and all(equal(one[key], other[key], depth - 1) for key in one)
    return type(one) in _SIMPLE and bool(one == other)


def _defined(cls: type) -> set[str]:
    """The names that a class has otherwise than from `object`."""
    return {name for base in cls.__mro__[:-1] for name in vars(base)}


def changed_functions(plain: CodeType, given: CodeType) -> Iterator[tuple[CodeType, CodeType]]:
    """(as it is made, as it is written) of the functions in two versions of a code, where these differ."""
    for one, other in zip(plain.co_consts, given.co_consts, strict=False):
        if isinstance(one, CodeType) and isinstance(other, CodeType) and one is not other:
            if codes.is_function(one):
                yield other, one
            yield from changed_functions(one, other)
