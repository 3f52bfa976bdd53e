"""The symbol table of a live module: qualified name and position to code object.

A module keeps no list of its functions, but every function has the module's dictionary as its globals, and the
garbage collector knows who refers to that: decorated, overwritten or hidden in a registry, a function that
is alive is found. Functions nested in others may not exist yet; their code is a constant of the enclosing one.

Positions follow the order of definition. They are taken from the module's own compiled code where its loader gives it
and it agrees with what is alive, so that a definition that was overwritten and died still counts, as it does in
the source; else from the line numbers of those alive. Position 0 asks for the only one that is alive.
"""

from __future__ import annotations

import errno
import sys
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import NamedTuple

from . import log, neighbours
from .carriers import is_aside, is_brought, is_version
from .codes import definitions, is_function
from .heap import referrers
from .model import BASE_OBJECT, LivepatchError
from .redirect import redirections, stand_ins
from .trampoline import FILE


class Symbol(NamedTuple):
    """A function of a live module. `sympos` counts from 1 among those of the same name; `code` is the original.

    `twins` are code objects of the same definition: the module's body has run more than once, and somebody holds
    functions that it made before.
    """

    name: str
    sympos: int
    code: CodeType
    twins: tuple[CodeType, ...] = ()


def loaded_module(name: str | None) -> ModuleType | None:
    """The module, if it is imported and its body has run; None asks for the main program."""
    module = sys.modules.get(BASE_OBJECT if name is None else name)
    return module if isinstance(module, ModuleType) and not is_lazy(module) and not half_imported(module) else None


def half_imported(module: object) -> bool:
    """Its body has not run to the end."""
    return bool(getattr(getattr(module, "__spec__", None), "_initializing", False))


def is_lazy(module: object) -> bool:
    """Its body has not run, and will when somebody asks for an attribute; nothing may be asked of it before."""
    util = sys.modules.get("importlib.util")
    return util is not None and type(module) is getattr(util, "_LazyModule", None)


def front_code(code: CodeType) -> CodeType:
    """The code of the version in force for an original; itself if it is not patched."""
    redirection = redirections.get(id(code))
    front = redirection.front() if redirection is not None else None
    if redirection is None or front is None:
        return code
    return redirection.code_of(front)[0]


class Tables:
    """Symbol tables of several modules, made in one pass over the heap.

    Patches may have put functions in the place of others; `before` asks for those that were there before.
    """

    def __init__(self, modules: list[ModuleType], *, before: bool = False) -> None:
        hidden = is_brought if before else is_aside
        self._modules = {id(module.__dict__): module for module in modules}
        self._codes: dict[int, dict[int, CodeType]] = {id(module): {} for module in modules}
        self._standing_in = stand_ins()
        #: Functions with code of somebody else's, by the names that they would have; and such as have been renamed.
        self._held: dict[int, dict[str, FunctionType]] = {id(module): {} for module in modules}
        self._renamed: dict[int, dict[str, FunctionType]] = {id(module): {} for module in modules}
        patched = {id(f): r.original.co_qualname for r in redirections.values() for f in r.functions()}
        for thing in referrers(*(module.__dict__ for module in modules), of=FunctionType):
            if not is_version(thing) and not hidden(thing):
                module = self._modules.get(id(thing.__globals__))
                if module is not None:
                    self._look(id(module), thing, patched.get(id(thing)))
        self._defined: dict[int, list[tuple[str, int, CodeType]] | None] = {}

    def _look(self, module: int, function: FunctionType, patched: str | None) -> None:
        code, held = function.__code__, self._held[module]
        if id(code) not in self._standing_in:
            if patched is not None:
                held[patched] = function
                return
            if neighbours.put_in(code):
                if code.co_filename != FILE:  # else: what is left of a patch, in a copy that somebody made
                    held[code.co_qualname] = held[function.__qualname__] = function
                return
            if function.__qualname__ != code.co_qualname:
                self._renamed[module][function.__qualname__] = function
        self._add(self._codes[module], code)

    def _add(self, codes: dict[int, CodeType], code: CodeType) -> None:
        code = self._standing_in.get(id(code), code)
        if id(code) in codes:
            return
        if is_function(code):
            codes[id(code)] = code
        for constant in code.co_consts:
            if isinstance(constant, CodeType):
                self._add(codes, constant)

    def _from_loader(self, module: ModuleType) -> list[tuple[str, int, CodeType]]:
        """(name, position, code) of all definitions in the module's compiled code, or nothing."""
        found = self._defined.get(id(module))
        if found is None:
            found = []
            loader = getattr(module, "__loader__", None)
            try:
                code = loader.get_code(module.__name__)  # type: ignore[union-attr]
            except Exception:  # any loader may be in there; the table works without
                code = None
            if isinstance(code, CodeType):
                found = [(d.name, d.sympos, d.code) for d in definitions(code)]
            self._defined[id(module)] = found
        return found

    def all(self, module: ModuleType, name: str | None = None, *, positions: bool = True) -> list[Symbol]:
        """The symbols of one module, of one name if given, in order of definition.

        Without `positions`, a symbol that shares its name with no live one is said to be the first.
        """
        by_name: dict[str, list[CodeType]] = {}
        for code in self._codes[id(module)].values():
            if name is None or code.co_qualname == name:
                by_name.setdefault(code.co_qualname, []).append(code)
        symbols = []
        for qualname, codes in by_name.items():
            wanted = positions or len(codes) > 1
            defined = [d for d in self._from_loader(module) if d[0] == qualname] if wanted else []
            at: dict[int, list[CodeType]] = {}
            for code in codes:
                places = [place for _, place, known in defined if _same_definition(known, code)]
                at.setdefault(places[0] if len(places) == 1 else 0, []).append(code)
            if 0 not in at:
                symbols += [_symbol(qualname, place, same) for place, same in sorted(at.items())]
            else:
                ordered = sorted(codes, key=lambda code: (code.co_firstlineno, next(iter(code.co_positions()))[2] or 0))
                symbols += [Symbol(qualname, place, code) for place, code in enumerate(ordered, 1)]
        return sorted(symbols, key=lambda s: s.code.co_firstlineno)

    def find(self, module: ModuleType, name: str, sympos: int, shown: str) -> Symbol:
        """One symbol; raises `LivepatchError(EINVAL)` with the kernel's sentence if there is not exactly one.

        `shown` is how messages call the object.
        """
        self.check_free(module, name)
        found = self.all(module, name, positions=sympos > 0)
        renamed = self._renamed[id(module)].get(name)
        if not found and renamed is not None and self._has_lost(module, name, renamed.__code__):
            raise neighbours.held(name, module, renamed.__code__)
        symbol = choose(found, name, sympos, shown)
        if neighbours.from_elsewhere(symbol.code, module) and self._defines(module, name):
            raise neighbours.held(name, module, symbol.code)
        return symbol

    def check_free(self, module: ModuleType, name: str) -> None:
        """Raise LivepatchError (EBUSY) if this function, or one around it, carries code of somebody else's."""
        for around, function in self._foreign(module, name):
            raise neighbours.held(around, module, function.__code__)

    def foreign_code(self, module: ModuleType, name: str) -> CodeType | None:
        """The code of somebody else's that `find` would refuse this function for, if any. Writes nothing to the log."""
        for _, function in self._foreign(module, name):
            return function.__code__
        renamed = self._renamed[id(module)].get(name)
        if renamed is None or self.all(module, name) or not self._has_lost(module, name, renamed.__code__):
            return None
        return renamed.__code__

    def _foreign(self, module: ModuleType, name: str) -> Iterator[tuple[str, FunctionType]]:
        parts = name.split(".<locals>.")
        for around in [".<locals>.".join(parts[: count + 1]) for count in range(len(parts))]:
            function = self._held[id(module)].get(around)
            if function is not None:
                yield around, function

    def _defines(self, module: ModuleType, name: str) -> bool:
        return any(defined == name for defined, _, _ in self._from_loader(module))

    def _has_lost(self, module: ModuleType, name: str, code: CodeType) -> bool:
        """A function of this name has that code of another one instead of its own; a decorator's wrapper has not."""
        if "<locals>" in code.co_qualname and not neighbours.from_elsewhere(code, module):
            return False
        return self._defines(module, name) or not self._from_loader(module)


def _symbol(name: str, place: int, same: list[CodeType]) -> Symbol:
    """One definition. What other patches redirect is what counts; what they have left alone stays so."""
    redirected = next((code for code in same if id(code) in redirections), None)
    if redirected is not None:
        return Symbol(name, place, redirected)
    return Symbol(name, place, same[-1], tuple(same[:-1]))


def _same_definition(one: CodeType, other: CodeType) -> bool:
    """Both were compiled from the same place. Equal code alone may stand twice on one line."""
    return one == other and list(one.co_positions()) == list(other.co_positions())


def choose(found: list[Symbol], name: str, sympos: int, shown: str) -> Symbol:
    """One of the symbols of a name; see `Tables.find`."""
    if not found:
        sentence = f"symbol '{name}' not found in symbol table"
    elif not sympos and len(found) > 1:
        sentence = f"unresolvable ambiguity for symbol '{name}' in object '{shown}'"
    else:
        chosen = [symbol for symbol in found if sympos in (0, symbol.sympos)]
        if chosen:
            return chosen[0]
        sentence = f"symbol position {sympos} for symbol '{name}' in object '{shown}' not found"
    log.error(sentence)
    raise LivepatchError(errno.EINVAL, sentence)


def table(module: ModuleType) -> list[Symbol]:
    """All functions of a live module, in order of definition; patched ones show the original."""
    return Tables([module]).all(module)
