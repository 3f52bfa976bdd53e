"""From what an author wrote to code objects of this process: checks, symbols, and the functions around nested ones.

Nothing here changes anything outside of the patch, so it can be done for a dry run and can fail at any point.
"""

from __future__ import annotations

import errno
from types import CodeType, FunctionType, ModuleType
from typing import Protocol

from . import redirect
from .codes import kind
from .instances import class_of
from .model import Body, Callbacks, Func, LivepatchError, Object, Patch, State
from .redirect import Redirection, redirections
from .replace import add_derived_nops, add_nops
from .symbols import Symbol, Tables, loaded_module
from .trampoline import contains


def check_author(patch: Patch) -> None:
    """What the author wrote must make sense by itself."""
    if not isinstance(patch, Patch) or not isinstance(patch.name, str) or not patch.name:
        raise LivepatchError(errno.EINVAL, "A patch needs a name.")
    if patch.consistency not in ("stack", "boundary"):
        raise LivepatchError(errno.EINVAL, f'Patch \'{patch.name}\': consistency is "stack" or "boundary".')
    if not all(isinstance(state, State) and isinstance(state.version, int) for state in patch.states):
        raise LivepatchError(errno.EINVAL, f"Patch '{patch.name}': states are State objects, with numbers as versions.")
    names = [obj.shown_name for obj in patch.objects]
    for obj in patch.objects:
        if obj.name is not None and not (isinstance(obj.name, str) and obj.name):
            raise LivepatchError(errno.EINVAL, f"Patch '{patch.name}': an object needs the name of a module, or None.")
        if names.count(obj.shown_name) > 1:
            raise LivepatchError(errno.EEXIST, f"Patch '{patch.name}' has the object '{obj.shown_name}' twice.")
        for path, wanted in obj.instances.items():
            if not (isinstance(path, str) and path and isinstance(wanted, Callbacks)):
                sentence = f"Patch '{patch.name}': instances are Callbacks by names of classes in '{obj.shown_name}'."
                raise LivepatchError(errno.EINVAL, sentence)
        keys = [func.key for func in obj.funcs]
        for func in obj.funcs:
            if not func.old_name or not isinstance(func.old_name, str) or len(func.old_name) >= 512:
                raise LivepatchError(errno.EINVAL, f"Patch '{patch.name}': a function needs the name of the original.")
            if not isinstance(func.new_func, FunctionType | Body):
                raise LivepatchError(
                    errno.EINVAL,
                    f"The replacement of '{func.old_name}' must be a function written in Python.",
                )
            if func.suspended not in ("wait", "ignore") or func.old_sympos < 0:
                raise LivepatchError(
                    errno.EINVAL,
                    f'\'{func.old_name}\': suspended is "wait" or "ignore", and positions start at 1.',
                )
            if keys.count(func.key) > 1:
                raise LivepatchError(
                    errno.EEXIST, f"Patch '{patch.name}' has '{func.old_name}' twice in '{obj.shown_name}'."
                )


class Symbols(Protocol):
    """Where functions are looked up: in live modules (`Tables`), or in the code of one that is coming."""

    def all(self, module: ModuleType, name: str) -> list[Symbol]:
        """All functions of a name."""

    def find(self, module: ModuleType, name: str, sympos: int, shown: str) -> Symbol:
        """One function; LivepatchError (EINVAL) if there is not exactly one."""


def init_patch(patch: Patch, replaced: list[Patch]) -> None:
    """Resolve every symbol of the modules that are there. Changes nothing outside of the patch.

    `replaced` are the patches whose place a cumulative one takes.
    """
    add_nops(patch, replaced)
    present = []
    for obj in patch.all_objects():
        obj.module = obj.entry = loaded_module(obj.name)
        if obj.module is not None:
            obj.module_state = None if obj.name is None else "LIVE"
            present.append(obj.module)
            for path in obj.instances:
                class_of(obj, path)
    needed = any(obj.funcs or obj.nops for obj in patch.all_objects())
    tables = Tables(present, before=patch.replace) if needed else None
    for obj in patch.all_objects():
        if obj.module is not None and tables is not None:
            for nop in obj.nops:
                tables.check_free(obj.module, nop.old_name)
            init_object(obj, tables, replaced)


def init_object(obj: Object, tables: Symbols, replaced: list[Patch]) -> None:
    """Resolve every symbol of one object, whose module is there or coming."""
    assert obj.module is not None
    for func in [func for func in obj.nops if func.old_code is None]:
        _resolve(func, obj, tables)
    for func in obj.funcs:
        if obj.module.__name__.partition(".")[0] == __package__.partition(".")[0]:
            raise LivepatchError(
                errno.EINVAL, f"failed to find location for function '{func.old_name}': it is livepatch's own"
            )
        _resolve(func, obj, tables)
        _check_kind(func)
    _derive_enclosing(obj, tables, replacing=bool(replaced))
    add_derived_nops(obj, replaced)


def _resolve(func: Func, obj: Object, tables: Symbols) -> None:
    assert obj.module is not None
    if func.born is not None:
        func.old_code, func.twins = func.born, ()
        return
    symbol = tables.find(obj.module, func.old_name, func.old_sympos, obj.kernel_name)
    func.old_code, func.twins = symbol.code, symbol.twins


def _check_kind(func: Func) -> None:
    assert func.old_code is not None
    assert func.new_func is not None
    new = func.new_func.code if isinstance(func.new_func, Body) else func.new_func.__code__
    if kind(new) != kind(func.old_code):
        raise LivepatchError(
            errno.EINVAL,
            f"'{func.old_name}' is a {kind(func.old_code)}, and its replacement must be one, not a {kind(new)}.",
        )
    fitting = ((), ("__class__",), func.old_code.co_freevars)
    if isinstance(func.new_func, Body) and new.co_freevars not in fitting:
        raise LivepatchError(
            errno.EINVAL,
            f"'{func.old_name}' cannot be given the free variables of its new version: {', '.join(new.co_freevars)}.",
        )
    if "<locals>" in func.old_name and not redirect.same_parameters(func.old_code, new):
        raise LivepatchError(
            errno.EINVAL,
            f"The replacement of the nested function '{func.old_name}' must have the same parameters.",
        )


def _derive_enclosing(obj: Object, tables: Symbols, *, replacing: bool) -> None:
    """A function around a patched one is patched, too: closures that it makes later must be redirected from birth.

    It is derived from the version in force, or from the original by a patch that replaces all others.
    """
    assert obj.module is not None
    inner = [func for func in obj.funcs if "<locals>" in func.old_name]
    names = {around for func in inner for around in _enclosing(func.old_name)}
    patched = {id(func.old_code) for func in [*obj.funcs, *obj.nops]}
    for symbol in [symbol for name in sorted(names) for symbol in tables.all(obj.module, name)]:
        redirection = redirections.get(id(symbol.code)) or Redirection(symbol.code)
        code = symbol.code if replacing else redirection.direct(redirection.front())
        wanted = {id(code) for func in inner for code in current_codes(func)}
        if contains(symbol.code, {id(func.old_code) for func in inner}) and not contains(code, wanted):
            raise LivepatchError(
                errno.EBUSY,
                f"'{symbol.name}' has been replaced by another patch, together with the functions nested in it.",
            )
        if id(symbol.code) not in patched and contains(code, wanted):
            immediate = all(func.immediate for func in inner)
            derived = Func(symbol.name, Body(code), old_sympos=symbol.sympos, immediate=immediate)
            derived.old_code, derived.twins = symbol.code, symbol.twins
            obj.derived.append(derived)


def _enclosing(name: str) -> list[str]:
    """The names of all functions around a nested one."""
    parts = name.split(".<locals>.")
    return [".<locals>.".join(parts[:count]) for count in range(1, len(parts))]


def current_codes(func: Func) -> list[CodeType]:
    """The code under which a function can be found before this patch touches it."""
    assert func.old_code is not None
    redirection = redirections.get(id(func.old_code)) or Redirection(func.old_code)
    return [*redirection.codes(), *func.twins]
