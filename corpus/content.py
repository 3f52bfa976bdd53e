"""What modules consist of, in words that another process with another release can be compared with.

A process that carries the patch should consist of what a process that imported the new release consists of: the same
code in every function, the same defaults, constants, tables and members of classes. Objects are described by value,
as deep as plain data goes; lines, file names and docstrings do not count.
"""

from __future__ import annotations

import functools
import hashlib
import re
from collections.abc import Mapping
from types import CodeType, FunctionType, MappingProxyType, MethodType, ModuleType
from typing import Any

_DEEP = 12
#: What says where or when something was made, or is kept by the interpreter.
_SKIPPED = {
    "__file__",
    "__cached__",
    "__loader__",
    "__spec__",
    "__builtins__",
    "__doc__",
    "__annotations__",
    "__path__",
}
_SKIPPED |= {"__dict__", "__weakref__", "__firstlineno__", "__static_attributes__", "_abc_impl", "__annotate__"}
_SKIPPED |= {"__annotate_func__", "__annotations_cache__", "__conditional_annotations__", "__warningregistry__"}


def described(module: ModuleType) -> dict[str, str]:
    """Dotted names below a module -> what they are: its names and the members of its classes."""
    found: dict[str, str] = {}
    waiting: list[tuple[str, Mapping[str, Any]]] = [("", vars(module))]
    seen: set[int] = set()
    while waiting:
        prefix, names = waiting.pop()
        for name, value in dict(names).items():
            if name in _SKIPPED or not isinstance(name, str):
                continue
            found[prefix + name] = describe(value)
            if issubclass(type(value), type) and value.__module__ == module.__name__ and id(value) not in seen:
                seen.add(id(value))
                waiting.append((f"{value.__qualname__}.", vars(value)))
    return found


def describe(value: object, deep: int = 0) -> str:
    """One object in words."""
    kind = type(value)
    if deep > _DEEP:
        return "..."
    if value is None or value is ... or kind in (bool, int, float, complex, str, bytes):
        text = repr(value)
        return text if len(text) < 200 else f"{text[:60]}... {_digest(text)}"
    if kind in (list, tuple):
        return f"{kind.__name__}({_long(', '.join(describe(item, deep + 1) for item in value))})"
    if kind in (set, frozenset):
        return f"{kind.__name__}({_long(', '.join(sorted(describe(item, deep + 1) for item in value)))})"
    if kind in (dict, MappingProxyType):
        items = sorted(f"{describe(key, deep + 1)}: {describe(held, deep + 1)}" for key, held in dict(value).items())
        return f"{kind.__name__}({_long(', '.join(items))})"
    if kind is re.Pattern:
        return f"pattern({_long(repr(value.pattern))}, {value.flags})"
    if kind is ModuleType:
        return f"module {value.__name__}"
    if kind is FunctionType:
        parts = [describe(part, deep + 1) for part in (value.__defaults__, value.__kwdefaults__)]
        around = describe(value.__wrapped__, deep + 1) if hasattr(value, "__wrapped__") else ""
        return f"{code(value.__code__)} defaults {' '.join(parts)}{' of ' + around if around else ''}"
    if kind in (staticmethod, classmethod, MethodType):
        return f"{kind.__name__} {describe(value.__func__, deep + 1)}"
    if kind is property:
        return f"property {' '.join(describe(part, deep + 1) for part in (value.fget, value.fset, value.fdel))}"
    if kind is functools.partial:
        return f"partial {describe(value.func, deep + 1)} {describe(value.args, deep + 1)}"
    if issubclass(kind, type):
        bases = ", ".join(f"{base.__module__}.{base.__qualname__}" for base in value.__bases__)
        return f"class {value.__module__}.{value.__qualname__}({bases})"
    if kind is type(functools.cache(len)):
        return f"cache {describe(value.__wrapped__, deep + 1)}"
    return f"a {kind.__module__}.{kind.__qualname__}"


def code(held: CodeType) -> str:
    """A function's code: its name, and a digest of what it does."""
    return f"function {held.co_qualname} {_digest(repr(_content(held)))}"


def _content(held: CodeType) -> tuple[object, ...]:
    docstring = held.co_consts[0] if held.co_consts and isinstance(held.co_consts[0], str) else None
    constants = [
        _content(constant) if isinstance(constant, CodeType) else describe(constant)
        for constant in held.co_consts
        if not isinstance(constant, str) or constant != docstring
    ]
    names = held.co_names, held.co_varnames, held.co_freevars, held.co_cellvars
    operations = held.co_code if docstring is None else len(held.co_code)
    return held.co_name, held.co_flags & 0xFF, held.co_argcount, held.co_kwonlyargcount, names, constants, operations


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:10]


def _long(text: str) -> str:
    return text if len(text) < 400 else f"{text[:100]}... {_digest(text)}"
