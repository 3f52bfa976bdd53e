"""The function objects of one original: which they are, and what they look like without any patch.

One `def` gives one code object and any number of functions that carry it. They are found by asking the garbage
collector who refers to the code, the original's or that of a version, and remembered weakly. Attributes belong to the
function object: each had defaults and annotations of its own before a patch, and gets them back. What somebody else
sets while a patch is in force stays, whatever comes.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from types import CodeType, FunctionType
from typing import Any

from . import cpython
from .heap import referrers
from .model import Body, Func

_DEFAULTS = ("__defaults__", "__kwdefaults__")
_COPIED = (*_DEFAULTS, "__doc__")

#: The private functions that stand for versions during a transition; they carry originals' code, too.
_version_functions: weakref.WeakSet[FunctionType] = weakref.WeakSet()


def add_version(function: FunctionType) -> None:
    """This function object is livepatch's own from now on."""
    _version_functions.add(function)


def is_version(function: FunctionType) -> bool:
    """This function object is livepatch's own, although it carries a module's code."""
    return function in _version_functions


#: Functions that a patch has taken out of their places, or that it has brought and has taken back.
_aside: weakref.WeakSet[FunctionType] = weakref.WeakSet()


def set_aside(functions: Iterable[FunctionType], aside: bool) -> None:
    """Whether the names of these functions mean others now, although somebody still holds them."""
    for function in functions:
        (_aside.add if aside else _aside.discard)(function)


#: Functions that a patch has put in the place of others.
_brought: weakref.WeakSet[FunctionType] = weakref.WeakSet()


def bring(function: FunctionType) -> None:
    """A patch puts this function in the place of another one."""
    _brought.add(function)


def is_brought(function: FunctionType) -> bool:
    """Before any patch, this function's name meant another one."""
    return function in _brought


def is_aside(function: FunctionType) -> bool:
    """This function has a module's name, and is not what the name means."""
    return function in _aside


def functions_of(codes: Iterable[CodeType]) -> dict[int, list[FunctionType]]:
    """All function objects that carry one of the codes, by the code's id: one pass over the heap."""
    wanted = {id(code): code for code in codes}
    found: dict[int, list[FunctionType]] = {key: [] for key in wanted}
    for thing in referrers(*wanted.values(), of=FunctionType):
        if id(thing.__code__) in wanted and not is_version(thing):
            found[id(thing.__code__)].append(thing)
    return found


class Carriers:
    """The function objects of one original code object."""

    def __init__(self, original: CodeType) -> None:
        self.original = original
        self.nested = "<locals>" in original.co_qualname
        self.twins: tuple[CodeType, ...] = ()  # other code objects of the same definition
        self.stub: CodeType | None = None  # what functions of a module that is just coming are born with
        #: The function objects, each with the attributes that it was given last.
        self._given: weakref.WeakKeyDictionary[FunctionType, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._saved: weakref.WeakKeyDictionary[FunctionType, dict[str, Any]] = weakref.WeakKeyDictionary()
        #: What others have set since, and whose code was a version's before it became one.
        self._theirs: weakref.WeakKeyDictionary[FunctionType, dict[str, Any]] = weakref.WeakKeyDictionary()
        self._others: weakref.WeakSet[FunctionType] = weakref.WeakSet()

    def codes(self) -> list[CodeType]:
        """All code under which a function object of this original can be found."""
        raise NotImplementedError

    def stale(self) -> list[CodeType]:
        """Trampolines of earlier transitions that somebody is still in, or that some function still carries."""
        raise NotImplementedError

    def adopt_among(self, found: dict[int, list[FunctionType]], others: Iterable[Carriers]) -> None:
        """Take those of the function objects that belong here and not to others; see `functions_of`.

        Whoever carries the original's code is one. Of those that carry a version's, closures are, and the copies that
        others make of a patched function to call it; who carried it before has it from elsewhere, and is not ours. An
        old trampoline is in a function where somebody has put it back.
        """
        original = {id(code) for code in (self.original, self.stub, *self.twins)}
        stale = {id(code) for code in self.stale()}
        for code in self.codes():
            for function in found.get(id(code), ()):
                if function in self._given:
                    continue
                if id(code) in original or self.nested:
                    self._given[function] = dict(self.saved(function))
                elif function in self._others or any(function in other._given for other in others):
                    continue
                elif any(known.__globals__ is function.__globals__ for known in self.functions()):
                    self._adopt_copy(function)
                elif id(code) in stale:
                    self._given[function] = dict(self.saved(function))

    def set_apart(self, carriers: Iterable[FunctionType]) -> None:
        """These carry the code of a new version before anything is redirected to it."""
        self._others.update(function for function in carriers if function not in self._given)

    def _adopt_copy(self, copy: FunctionType) -> None:
        """What it has from the version that it was made of is not what it shall have without that."""
        now, saved = dict(self.saved(copy)), self.saved(copy)
        for known in self.functions():
            given = self._given[known]
            if given["__defaults__"] is now["__defaults__"]:
                same = [name for name in _COPIED if given[name] is now[name]]
                saved.update((name, self.saved(known)[name]) for name in same)
                break
        self._given[copy] = now

    def functions(self) -> list[FunctionType]:
        """The function objects that are still there."""
        return [function for reference in self._given.keyrefs() if (function := reference()) is not None]

    def live(self) -> list[FunctionType]:
        """Those that carry livepatch's code, or the original's."""
        ours = {id(code) for code in self.codes()}
        return [function for function in self.functions() if id(function.__code__) in ours]

    def strangers(self) -> list[FunctionType]:
        """Those that carry somebody else's code."""
        ours = {id(code) for code in self.codes()}
        return [function for function in self.functions() if id(function.__code__) not in ours]

    def saved(self, function: FunctionType) -> dict[str, Any]:
        """What the function had before it was patched for the first time, or was born with."""
        attributes = self._saved.get(function)
        if attributes is None:
            attributes = {name: getattr(function, name) for name in _COPIED}
            if cpython.LAZY_ANNOTATIONS and function.__annotate__ is not None:  # type: ignore[attr-defined]
                attributes["__annotate__"] = function.__annotate__  # type: ignore[attr-defined]
            else:
                attributes["__annotations__"] = function.__annotations__
            if cpython.TYPE_PARAMS:
                attributes["__type_params__"] = function.__type_params__  # type: ignore[attr-defined]
            self._saved[function] = attributes
        return attributes

    def attributes(self, function: FunctionType, func: Func | None) -> dict[str, Any]:
        """The attributes that a function object has when a version is in force."""
        attributes = dict(self.saved(function))
        changes: dict[str, Any] = {}
        if func is not None and isinstance(func.new_func, Body):
            changes = dict(func.new_func.attributes)
        elif func is not None and isinstance(func.new_func, FunctionType):
            changes = dict(self.saved(func.new_func))
            if self.nested:  # every closure was born with defaults of its own
                del changes["__defaults__"], changes["__kwdefaults__"]
        for more in (changes, self._theirs.get(function, {})):
            if "__annotations__" in more or "__annotate__" in more:
                attributes.pop("__annotations__", None)
                attributes.pop("__annotate__", None)
            attributes |= more
        return attributes

    def notice(self, function: FunctionType) -> None:
        """What others have set since we did, they keep, whatever version comes."""
        for name, value in self._given[function].items():
            if cpython.LAZY_ANNOTATIONS and name in ("__annotations__", "__annotate__"):
                # Setting one takes the other away, and reading the first may fail as long as there is the second.
                lazy = function.__annotate__ is not None  # type: ignore[attr-defined]
                name = "__annotate__" if lazy else "__annotations__"
            now = getattr(function, name)
            if now is not value:
                theirs = self._theirs.setdefault(function, {})
                if name in ("__annotations__", "__annotate__"):
                    theirs.pop("__annotations__", None)
                    theirs.pop("__annotate__", None)
                theirs[name] = now

    def give(self, function: FunctionType, attributes: dict[str, Any], *, with_defaults: bool) -> None:
        """Set the attributes of a function; defaults go with the code, and may be left out."""
        given = self._given[function]
        self._given[function] = attributes if with_defaults else attributes | {name: given[name] for name in _DEFAULTS}
        for name, value in attributes.items():
            if name in _DEFAULTS and not with_defaults:
                continue
            if name == "__annotations__" and cpython.LAZY_ANNOTATIONS:
                function.__annotations__ = value
            elif getattr(function, name) is not value:
                setattr(function, name, value)
