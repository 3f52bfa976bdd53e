"""Code objects as CPython compiles them: what a module defines, and when two versions are the same.

Pure functions: nothing here touches a live object, so that the builder, the loader and the core agree on
what a name and a position mean. Three habits of the compiler matter:

- Constants mix scopes of every kind. Class bodies, comprehensions and annotation scopes are code objects
  beside the functions; they are looked through, never listed. What no programmer writes tells them apart: a
  class body has no fast locals, and a hidden scope has a parameter called `.0` or `.format`, a name in angle
  brackets, or is `__annotate__(format, /)`.
- The same source gives different constant *numbers* when a docstring comes or goes (it occupies a slot), so
  instructions are compared with their constants resolved, not as bytes.
- Constants compare by value, where `1 == 1.0 == True` and `0.0 == -0.0`; code objects compare by value and by
  line. Both are the wrong question here.
"""

from __future__ import annotations

import opcode
from types import CodeType

# Bits of co_flags, as documented in `inspect` (which is too large to import here).
OPTIMIZED = 0x1
VARARGS = 0x4
VARKEYWORDS = 0x8
GENERATOR = 0x20
COROUTINE = 0x80
ITERABLE_COROUTINE = 0x100  # a generator that `types.coroutine` made awaitable: a property of the live code only
ASYNC_GENERATOR = 0x200
HAS_DOCSTRING = 0x4000000  # 3.14; unused before
FUTURE_ANNOTATIONS = 0x1000000  # what it does to nested functions shows in their annotations' constants

_CONSTANT_OPS = frozenset(opcode.hasconst)
_EXTENDED_ARG = opcode.EXTENDED_ARG
_STORE_NAME = opcode.opmap["STORE_NAME"]
_LOAD_GLOBAL = opcode.opmap["LOAD_GLOBAL"]
_STORE_GLOBAL = opcode.opmap["STORE_GLOBAL"]
#: What the compiler itself stores in a class body from 3.13 on: a line, and a tuple in arbitrary order.
_COMPILER_STORES = frozenset({"__firstlineno__", "__static_attributes__"})


class Definition:
    """One function (lambdas too) that a module's code defines.

    `name` is the qualified name; `sympos` counts from 1 among the definitions of that name in the module.
    `parent` is the function around it, None at the top level and for methods of top-level classes.
    """

    __slots__ = ("code", "name", "parent", "sympos")

    def __init__(self, name: str, sympos: int, code: CodeType, parent: Definition | None = None) -> None:
        self.name = name
        self.sympos = sympos
        self.code = code
        self.parent = parent


def definitions(code: CodeType) -> list[Definition]:
    """All functions that a compiled module defines, in order of definition, outer ones before nested ones."""
    found: list[Definition] = []
    positions: dict[str, int] = {}

    def walk(scope: CodeType, parent: Definition | None) -> None:
        for constant in scope.co_consts:
            if not isinstance(constant, CodeType):
                continue
            inner = parent
            if is_function(constant):
                name = constant.co_qualname
                positions[name] = positions.get(name, 0) + 1
                inner = Definition(name, positions[name], constant, parent)
                found.append(inner)
            walk(constant, inner)

    walk(code, None)
    return found


def is_function(code: CodeType) -> bool:
    """Whether `def`, `async def` or `lambda` made this code, and not a module, a class or a comprehension."""
    if not code.co_flags & OPTIMIZED:
        return False
    if code.co_name.startswith("<"):
        return code.co_name == "<lambda>"
    first = code.co_varnames[0] if code.co_varnames else ""
    if code.co_name == "__annotate__" and code.co_posonlyargcount:
        return first != "format"
    return not first.startswith(".")


def kind(code: CodeType) -> str:
    """What calling it gives: "function", "coroutine", "generator" or "async generator"."""
    if code.co_flags & ASYNC_GENERATOR:
        return "async generator"
    if code.co_flags & COROUTINE:
        return "coroutine"
    return "generator" if code.co_flags & GENERATOR else "function"


def docstring(code: CodeType) -> str | None:
    """The docstring that a function of this code is born with."""
    first = code.co_consts[0] if code.co_consts else None
    if not isinstance(first, str) or not code.co_flags & OPTIMIZED:
        return None
    if _DOCSTRINGS_ARE_FLAGGED and not code.co_flags & HAS_DOCSTRING:
        return None
    return first


def same(a: CodeType, b: CodeType, *, docstrings: bool = False) -> bool:
    """Whether two codes do the same: instructions, names, parameters, and constants recursively.

    Lines, columns and file names do not count, and docstrings (of nested functions too) only if asked for.
    """
    if a is b:
        return True
    return (
        _shape(a) == _shape(b)
        and (not docstrings or docstring(a) == docstring(b))
        and _same_instructions(a, b, docstrings)
    )


def global_names(code: CodeType) -> tuple[set[str], set[str]]:
    """The names that a code and all code in it (read, assign) in the module's namespace, by naming them."""
    read: set[str] = set()
    assigned: set[str] = set()
    for op, arg in _instructions(code):
        if op == _LOAD_GLOBAL:
            read.add(code.co_names[arg >> 1])  # the low bit asks for room on the stack
        elif op == _STORE_GLOBAL:
            assigned.add(code.co_names[arg])
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            inner_read, inner_assigned = global_names(constant)
            read |= inner_read
            assigned |= inner_assigned
    return read, assigned


def own_global_reads(code: CodeType) -> set[str]:
    """The names that a function reads in the module's namespace, without the functions inside of it."""
    read = {code.co_names[arg >> 1] for op, arg in _instructions(code) if op == _LOAD_GLOBAL}
    if not code.co_flags & OPTIMIZED:
        read |= set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and not is_function(constant):
            read |= own_global_reads(constant)
    return read


def _shape(code: CodeType) -> tuple[object, ...]:
    return (
        code.co_name,
        code.co_qualname,
        code.co_flags & ~(HAS_DOCSTRING | FUTURE_ANNOTATIONS | ITERABLE_COROUTINE),
        code.co_argcount,
        code.co_posonlyargcount,
        code.co_kwonlyargcount,
        code.co_names,
        code.co_varnames,
        code.co_freevars,
        code.co_cellvars,
        code.co_exceptiontable,
    )


def _same_instructions(a: CodeType, b: CodeType, docstrings: bool) -> bool:
    mine, others = _instructions(a), _instructions(b)
    if len(mine) != len(others):
        return False
    for (op, arg), (other_op, other_arg) in zip(mine, others, strict=True):
        if op != other_op:
            return False
        if op in _CONSTANT_OPS:
            if not _same_constant(a.co_consts[arg], b.co_consts[other_arg], docstrings):
                return False
        elif arg != other_arg:
            return False
    return True


def _instructions(code: CodeType) -> list[tuple[int, int]]:
    """Opcode and whole argument of every instruction, as compiled: `co_code` undoes what running it changed.

    What the compiler tells a class body of its line and attributes is left out.
    """
    raw = code.co_code
    found: list[tuple[int, int]] = []
    high = 0
    for at in range(0, len(raw), 2):
        op, arg = raw[at], high | raw[at + 1]
        if op == _EXTENDED_ARG:
            high = arg << 8
            continue
        high = 0
        if op == _STORE_NAME and code.co_names[arg] in _COMPILER_STORES and not code.co_flags & OPTIMIZED:
            found.pop()  # the load of the value
            continue
        found.append((op, arg))
    return found


def _same_constant(a: object, b: object, docstrings: bool) -> bool:
    if isinstance(a, CodeType) and isinstance(b, CodeType):
        return same(a, b, docstrings=docstrings)
    return _key(a) == _key(b)


def _key(constant: object) -> object:
    """Equal for two constants exactly if no code can tell them apart."""
    if isinstance(constant, tuple):
        return tuple, tuple(_key(item) for item in constant)
    if isinstance(constant, frozenset):
        return frozenset, frozenset(_key(item) for item in constant)
    if isinstance(constant, slice):
        return slice, (_key(constant.start), _key(constant.stop), _key(constant.step))
    if isinstance(constant, float | complex):
        return type(constant), repr(constant)
    if constant is None or constant is ... or type(constant) in (bool, int, str, bytes):
        return type(constant), constant
    return object, id(constant)  # somebody put it there by hand


def _docstrings_are_flagged() -> bool:
    """From 3.14 on a flag tells that the first constant is a docstring; before, None stood there if not."""
    module = compile("def f():\n 'doc'", "", "exec", optimize=0)
    return bool(next(iter(definitions(module))).code.co_flags & HAS_DOCSTRING)


_DOCSTRINGS_ARE_FLAGGED = _docstrings_are_flagged()
