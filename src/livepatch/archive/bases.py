"""Classes that get other bases.

The interpreter allows that by assigning `__bases__`, if instances look the same in memory before and after; it refuses
for a class that has no base but `object`. Instances and subclasses follow at once, so both worlds are looked after:

- before the transition the class gets the new bases and, behind them, those that go. So `isinstance` and `issubclass`
  say yes to both as long as the transition runs: that is not consistent, and the report says so;
- in front of them stands a class of ours with a switch (`members`) for every name that is not found alike: old tasks
  find what the old bases had, new ones what the new ones have, by attribute and by `super()`;
- when the transition is over the class has the bases of the new source and nothing else.

What a switch cannot do is to change what lies further along a chain of `super()` calls. If that would differ for one
world, the patch is refused.
"""

from __future__ import annotations

import ast
import types
from collections.abc import Iterator, Sequence
from types import FunctionType, ModuleType
from typing import Any

from livepatch.archive.defaults import find_class
from livepatch.archive.format import ObjectEntry, refusal
from livepatch.archive.pieces import NewSource, live_class
from livepatch.archive.switch import ABSENT, Switch, flavour_of
from livepatch.core import lists, log
from livepatch.core.model import Func, Object

#: What belongs to one class alone, and what is asked only when a class or an instance is made.
_OWN = {
    *("__dict__", "__weakref__", "__module__", "__doc__", "__slots__", "__abstractmethods__", "_abc_impl"),
    *("__annotations__", "__qualname__", "__orig_bases__", "__parameters__", "__firstlineno__", "__annotate__"),
    *("__static_attributes__", "__annotate_func__", "__annotations_cache__", "__type_params__", "__match_args__"),
}
_NEVER = {"__new__", "__init_subclass__", "__getattribute__", "__setattr__", "__delattr__", "__class__"}


class _Rebased:
    """One class: its bases before, meanwhile and afterwards."""

    def __init__(self, name: str, expressions: list[Any]) -> None:
        self.name = name
        self._expressions = expressions
        self._cls: type = object
        self._before: tuple[type, ...] = ()
        self._meanwhile: tuple[type, ...] = ()
        self._after: tuple[type, ...] = ()
        self.switches: list[Switch] = []

    def make(self, module: ModuleType, cls: type) -> None:
        """Give the class the bases that it has while the transition runs. Raises LivepatchError (EINVAL)."""
        self._cls, self._before = cls, cls.__bases__
        after = types.resolve_bases(tuple(eval(code, module.__dict__) for code in self._expressions))
        if not all(isinstance(base, type) for base in after):
            raise refusal(f"The new bases of '{self.name}' are not all classes.")
        self._after = after
        going = tuple(base for base in self._before if not any(issubclass(new, base) for new in after))
        both = (*after, *going)
        old, new, mixed = cls.__mro__[1:], _linear(after), _linear(both)
        found = dict(self._differences(old, new, mixed))
        for slots in ({}, {"__slots__": ()}, {"__slots__": ("__weakref__",)}):
            front = type(cls.__name__, (), {"__module__": cls.__module__, **slots})
            self._meanwhile = (front, *both)
            self.switches = [self._switch(front, name, *pair) for name, pair in found.items()]
            try:
                _assign(cls, self._meanwhile)
            except TypeError as error:
                refused = error
            else:
                return
        self._meanwhile = ()
        raise refusal(f"The interpreter does not let '{self.name}' have other bases: {refused}.")

    def _differences(
        self, old: Sequence[type], new: Sequence[type], mixed: Sequence[type]
    ) -> Iterator[tuple[str, tuple[Any, Any]]]:
        names = {name for base in (*old, *new) for name in vars(base)} - _OWN
        for name in sorted(names):
            chains = [[base for base in tail if name in vars(base)] for tail in (old, new, mixed)]
            if chains[0] == chains[1] == chains[2]:
                continue
            for chain in chains[:2]:
                goes_on = chain and _goes_on(vars(chain[0])[name])
                if goes_on and chain != chains[2][chains[2].index(chain[0]) :]:
                    raise refusal(f"What `super().{name}` means in a base of '{self.name}' would be another thing.")
            was, now = (vars(chain[0])[name] if chain else ABSENT for chain in chains[:2])
            if was is now and chains[0][:1] == chains[2][:1]:
                continue
            if name in _NEVER:
                raise refusal(f"'{name}' of '{self.name}' would be inherited from elsewhere.")
            yield name, (was, now)

    def _switch(self, front: type, name: str, was: Any, now: Any) -> Switch:
        kinds = {flavour_of(one.__code__) for thing in (was, now) if (one := _function(thing)) is not None}
        called = (staticmethod, classmethod)
        calls = all(thing is ABSENT or callable(thing) or isinstance(thing, called) for thing in (was, now))
        if len(kinds) > 1:
            raise refusal(f"'{name}' of '{self.name}' would be of another kind.")
        switch = Switch(f"{self.name}.<bases>.{name}", next(iter(kinds), "function"), reads=not calls)
        switch.aim([(front, name)], was, now)
        switch.stand()
        return switch

    def complete(self) -> None:
        self._set(self._meanwhile, self._after)

    def return_(self) -> None:
        self._set(self._after, self._meanwhile)

    def take_over(self, other: _Rebased) -> None:
        if other._cls is self._cls:
            self._before = other._before
            other._meanwhile = other._after = ()

    def restore(self) -> None:
        self._set(self._after, self._before)
        self._set(self._meanwhile, self._before)
        self.switches = []

    def _set(self, known: tuple[type, ...], bases: tuple[type, ...]) -> None:
        if known and self._cls.__bases__ == known:  # else somebody else has given it other ones
            try:
                _assign(self._cls, bases)
            except TypeError as error:
                log.warning(f"the bases of '{self.name}' stay as they are: {error}")


class Bases:
    """The classes of one module that get other bases."""

    def __init__(self, entry: ObjectEntry, source: NewSource) -> None:
        self._module = entry.module
        self._classes: list[_Rebased] = []
        self._funcs: list[Func] = []
        for changed in entry.bases:
            node = find_class(source.tree, changed.name)
            if node is None:
                raise refusal(f"The archive gives '{changed.name}' other bases, but its source does not define it.")
            codes = [compile(ast.Expression(base), source.file, "eval", dont_inherit=True) for base in node.bases]
            self._classes.append(_Rebased(changed.name, codes))

    def verify(self, module: ModuleType) -> None:
        """Raise LivepatchError (EINVAL) if a class is not there, or the interpreter will not do it."""
        for rebased in self._classes:
            self._class(rebased, module)

    def _class(self, rebased: _Rebased, module: ModuleType) -> type:
        cls = live_class(module, rebased.name)
        if cls is None:
            raise refusal(f"'{rebased.name}' is not a class in the live module '{self._module}'.")
        if cls.__bases__ == (object,):
            raise refusal(f"The interpreter does not let '{rebased.name}' have other bases: it has none but `object`.")
        return cls

    def make(self, module: ModuleType, obj: Object) -> None:
        """Give the classes their bases, and the patch the functions behind the switches."""
        obj.funcs[:] = [func for func in obj.funcs if func not in self._funcs]
        try:
            for rebased in self._classes:
                rebased.make(module, self._class(rebased, module))
        except BaseException:
            self.take_back()
            raise
        self._funcs = [func for rebased in self._classes for switch in rebased.switches for func in switch.funcs]
        for func in self._funcs:
            func.old_code, func.transition = func.born, lists.changing() is not None
        obj.funcs += self._funcs

    def complete(self) -> None:
        for rebased in self._classes:
            rebased.complete()

    def return_(self) -> None:
        for rebased in self._classes:
            rebased.return_()

    def take_over(self, other: Bases) -> None:
        """The patch of `other` has been replaced: what a class had before it is what comes back in the end."""
        for rebased in self._classes:
            for before in other._classes:
                rebased.take_over(before)

    def take_back(self) -> None:
        for rebased in reversed(self._classes):
            rebased.restore()


def _linear(bases: tuple[type, ...]) -> list[type]:
    """The order in which the interpreter would look through these bases; raises LivepatchError if there is none."""
    chains = [[*base.__mro__] for base in bases] + [[*bases]]
    found: list[type] = []
    while chains := [chain for chain in chains if chain]:
        heads = (chain[0] for chain in chains)
        head = next((head for head in heads if not any(head in chain[1:] for chain in chains)), None)
        if head is None:
            raise refusal("The old and the new bases of a class cannot be brought in one order.")
        found.append(head)
        chains = [chain[1:] if chain[0] is head else chain for chain in chains]
    return found


def _function(thing: Any) -> FunctionType | None:
    inner = thing.__func__ if isinstance(thing, staticmethod | classmethod) else thing
    return inner if isinstance(inner, FunctionType) else None


def _goes_on(thing: Any) -> bool:
    """Whether a member may call what comes after it."""
    parts = (
        [getattr(thing, part, None) for part in ("fget", "fset", "fdel")] if isinstance(thing, property) else [thing]
    )
    functions = [function for part in parts if (function := _function(part)) is not None]
    return any("super" in function.__code__.co_names for function in functions)


def _assign(cls: type, bases: tuple[type, ...]) -> None:
    type.__dict__["__bases__"].__set__(cls, bases)  # a metaclass has no say
