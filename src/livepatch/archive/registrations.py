"""What decorators, bases and metaclasses of new functions and classes note in the tables of their package.

A decorator such as `@register` puts what it is given into a table, and `__init_subclass__` a new class: making what a
patch adds changes what was there before. It has to go with the patch, entry by entry: old code would come upon it.
That is what is found in the tables afterwards, was not there before, and is something new or has something new in it;
nothing else that may change meanwhile is touched, as other threads go on.

Tables are looked for where a package keeps them: in its modules and classes, in the objects that these name, and in
tables in tables. What is noted anywhere else (by an application object that another package has made, say) stays.
"""

from __future__ import annotations

import sys
from collections import OrderedDict, defaultdict
from collections.abc import Iterable, Iterator
from functools import partial
from types import CodeType, FunctionType, GetSetDescriptorType, MethodType, ModuleType
from typing import Any

_ABSENT = object()
_DEPTH = 3
_TABLES = (dict, list, set, OrderedDict, defaultdict)
#: Of these there may be one that others have, too.
_PLAIN = (int, float, complex, bool, str, bytes, tuple, frozenset, type(None), ModuleType)

#: Tables, each with what was in it.
Snapshot = list[tuple[Any, Any]]


class Registrations:
    """The entries that were made for the additions of one module."""

    def __init__(self) -> None:
        self._found: list[tuple[Any, Any, Any, Any]] = []  # table, key, what was put there, what was there

    def snapshot(self, module: ModuleType) -> Snapshot:
        """The tables of the package of a module as they are now."""
        package = module.__name__.partition(".")[0]
        names = [name for name in list(sys.modules) if name.partition(".")[0] == package]
        seen: set[int] = set()
        found = [
            table
            for one in [sys.modules.get(name) for name in names]
            if issubclass(type(one), ModuleType)
            for value in list(vars(one).values())
            for table in _tables(value, package, seen)
        ]
        return [(table, table.copy()) for table in found]

    def note(self, before: Snapshot, codes: Iterable[CodeType], values: Iterable[object]) -> None:
        """Find what was noted since `before` for functions of these codes, or for these values."""
        ours = _Ours(codes, values)
        for table, was in before:
            for key, value, there in _fresh(table, was):
                if ours.has(value) or ours.has(key):
                    self._found.append((table, key, value, there))

    def take_over(self, other: Registrations) -> None:
        """What was in the place of our entries is gone if the patch of `other` had put it there."""
        theirs = {(id(table), id(value)) for table, _, value, _ in other._found}
        self._found = [
            (table, key, value, _ABSENT if (id(table), id(there)) in theirs else there)
            for table, key, value, there in self._found
        ]

    def take_back(self) -> None:
        """Remove the entries, unless somebody has put something else in their place."""
        while self._found:
            table, key, value, there = self._found.pop()
            if issubclass(type(table), dict):
                if table.get(key, _ABSENT) is not value:
                    continue
                if there is _ABSENT:
                    del table[key]
                else:
                    table[key] = there
            elif isinstance(table, set):
                table.discard(value)
            else:
                table[:] = [entry for entry in table if entry is not value]


class _Ours:
    """What is new, or has something new in it."""

    def __init__(self, codes: Iterable[CodeType], values: Iterable[object]) -> None:
        self._codes = {id(inner) for code in codes for inner in _inside(code)}
        self._kept = [value for value in values if type(value) not in _PLAIN]
        self._ids = set(map(id, self._kept))

    def has(self, value: object, depth: int = _DEPTH) -> bool:
        kind = type(value)
        if id(value) in self._ids or id(kind) in self._ids:
            return True
        if kind is FunctionType:
            return id(value.__code__) in self._codes  # type: ignore[attr-defined]
        if not depth or issubclass(kind, type | ModuleType):
            return False
        if kind in (MethodType, staticmethod, classmethod):
            return self.has(value.__func__, depth - 1)  # type: ignore[attr-defined]
        if kind is partial:
            return self.has(value.func, depth - 1)  # type: ignore[attr-defined]
        parts = value if kind in (tuple, list) else _namespace(value).values()
        return any(self.has(part, depth - 1) for part in list(parts))  # type: ignore[call-overload]


def _inside(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _inside(constant)


def _tables(value: object, package: str, seen: set[int], depth: int = _DEPTH) -> Iterator[Any]:
    """The tables that a value is, or has. No code of a value is run: there are objects that stand for others."""
    kind = type(value)
    if id(value) in seen:
        return
    seen.add(id(value))
    parts: list[object] = []
    if kind in _TABLES:
        yield value
        parts = [part for part in _parts(value) if type(part) in _TABLES]
    elif issubclass(kind, type) and _is_of(value, package):
        parts = list(vars(value).values())
    elif not issubclass(kind, type) and _is_of(kind, package):
        parts = list(_namespace(value).values())
    for part in parts if depth else ():
        yield from _tables(part, package, seen, depth - 1)


def _parts(table: Any) -> list[object]:
    return list(table.values()) if issubclass(type(table), dict) else list(table)


def _namespace(value: object) -> dict[str, object]:
    """What an instance has, unless its class has a say in that."""
    for cls in type(value).__mro__:
        if "__dict__" in vars(cls):
            descriptor = vars(cls)["__dict__"]
            found: dict[str, object] = descriptor.__get__(value) if type(descriptor) is GetSetDescriptorType else {}
            return found
    return {}


def _is_of(cls: Any, package: str) -> bool:
    return str(vars(cls).get("__module__", "")).partition(".")[0] == package


def _fresh(table: Any, was: Any) -> Iterator[tuple[Any, Any, Any]]:
    """(key, value, what was there) of what a table has that it had not."""
    if issubclass(type(table), dict):
        for key, value in list(table.items()):
            there = was.get(key, _ABSENT)
            if there is not value:
                yield key, value, there
    elif isinstance(table, set):
        yield from ((None, value, _ABSENT) for value in table - was)
    else:
        known = set(map(id, was))
        yield from ((None, value, _ABSENT) for value in list(table) if id(value) not in known)
