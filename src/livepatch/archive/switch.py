"""A switch: what stands under a name while a transition runs, and gives each world its own; `members` says why.

Two views say what the name stands for, in the old world and in the new. The functions behind the switch are born as
what asks the first, and the patch redirects them to what asks the second.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from livepatch.archive.conversion import keeps
from livepatch.core import codes
from livepatch.core import values as live_values
from livepatch.core.carriers import bring, set_aside
from livepatch.core.codes import Definition
from livepatch.core.heap import instances
from livepatch.core.model import Body, Func
from livepatch.core.trampoline import forwarder

Place = ModuleType | type
INHERITED: Any = object()  # nothing of its own: what lies beneath counts
ABSENT: Any = object()  # nothing at all, whatever lies beneath
_TEMPLATE = (lambda: None).__code__
_NO_INIT: Any = object.__init__
_NO_NEW: Any = object.__new__


def _no_init(instance: Any, *args: Any, **kwargs: Any) -> None:
    if (args or kwargs) and type(instance).__new__ is _NO_NEW:
        raise TypeError(f"{type(instance).__name__}() takes no arguments")


def _truth(instance: Any) -> bool:
    return len(instance) != 0 if hasattr(type(instance), "__len__") else True


def _contains(instance: Any, wanted: object) -> bool:
    return any(item is wanted or item == wanted for item in instance)


def _missing(instance: Any, key: object) -> Any:
    raise KeyError(key)


#: What the interpreter does by itself for a class that has no such method.
AS_BEFORE: dict[str, Callable[..., Any]] = {
    "__len__": lambda instance: 1,  # `len()` failed, so nobody asks but for the truth, which was true
    "__bool__": _truth,
    "__contains__": _contains,
    "__missing__": _missing,
    "__del__": lambda instance: None,
}


#: What is there or not, and is asked for by name.
_ASKED_FOR = {"__match_args__", "__dataclass_fields__", "__dataclass_params__", "__replace__"}


class _View:
    """What a name in a class, or in a module, stands for in one of the two worlds."""

    def __init__(self, place: Place, name: str, there: Any) -> None:
        self.place = place
        self._name = name
        self.there = there

    def own(self, instance: Any, owner: type | None) -> Any:
        """The object itself, before the descriptor protocol; INHERITED if there is nothing."""
        if self.there is not INHERITED or owner is None or isinstance(self.place, ModuleType):
            return self.there
        mro = owner.__mro__
        beneath = mro[mro.index(self.place) + 1 :] if self.place in mro else mro
        return next((vars(base)[self._name] for base in beneath if self._name in vars(base)), INHERITED)

    def read(self, instance: Any, owner: type | None) -> Any:
        """What an instance has comes first, as it would if there were no switch, which is a data descriptor."""
        found = self.own(instance, owner)
        data = hasattr(type(found), "__set__") or hasattr(type(found), "__delete__")
        if not data and instance is not None and self._name in getattr(instance, "__dict__", ()):
            return instance.__dict__[self._name]
        return self.get(instance, owner)

    def get(self, instance: Any, owner: type | None) -> Any:
        found = self.own(instance, owner)
        if isinstance(self.place, ModuleType):
            return found
        if found is INHERITED or found is ABSENT:
            return self._absent(instance, owner)
        if found is _NO_INIT:
            return partial(_no_init, instance)
        get = getattr(type(found), "__get__", None)
        return found if get is None else get(found, instance, owner)

    def _absent(self, instance: Any, owner: type | None) -> Any:
        if self._name in AS_BEFORE:
            return partial(AS_BEFORE[self._name], instance)
        hook = getattr(owner, "__getattr__", None)
        if hook is not None and instance is not None and self._name != "__getattr__":
            return hook(instance, self._name)
        shown = "object" if owner is None else owner.__name__
        if self._name.startswith("__") and self._name != "__getattr__" and self._name not in _ASKED_FOR:
            raise TypeError(f"{shown!r} object does not support {self._name}")
        raise AttributeError(f"{shown!r} object has no attribute {self._name!r}")

    def call(self, instance: Any, owner: type | None, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._name == "__getattr__" and self.own(instance, owner) is INHERITED:
            raise AttributeError(f"{type(instance).__name__!r} object has no attribute {args[0]!r}")
        found = self.get(instance, owner)
        if found is None and self._name == "__hash__":
            raise TypeError(f"unhashable type: {type(instance).__name__!r}")
        return found(*args, **kwargs)

    def set(self, instance: Any, value: Any) -> None:
        put = getattr(type(self.own(instance, type(instance))), "__set__", None)
        if put is not None:
            put(self.own(instance, type(instance)), instance, value)
        else:
            instance.__dict__[self._name] = value

    def delete(self, instance: Any) -> None:
        remove = getattr(type(self.own(instance, type(instance))), "__delete__", None)
        if remove is not None:
            remove(self.own(instance, type(instance)), instance)
        elif self._name in instance.__dict__:
            del instance.__dict__[self._name]
        else:
            raise AttributeError(self._name)


def _callers(view: _View, flavour: str) -> Callable[..., Any]:
    """A function of a kind that calls what a view stands for."""

    async def coroutine(instance: Any, owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        return await view.call(instance, owner, args, kwargs)

    def generator(instance: Any, owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        return (yield from view.call(instance, owner, args, kwargs))

    def function(instance: Any, owner: Any, /, *args: Any, **kwargs: Any) -> Any:
        return view.call(instance, owner, args, kwargs)

    return {"coroutine": coroutine, "generator": generator}.get(flavour, function)


class _Called(partial[Any]):
    """What a switch gives out for something that is called: apart from that, it looks like the version of the task."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") and name not in ("__name__", "__qualname__", "__doc__", "__self__", "__func__"):
            raise AttributeError(name)
        return getattr(self.func.__livepatch_view__.get(*self.args), name)  # type: ignore[attr-defined]


class _Calls:
    """Stands in a class for what is called."""

    def __init__(self, function: FunctionType) -> None:
        self._function = function

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return _Called(self._function, instance, type(instance) if owner is None else owner)


class _Reads:
    """Stands in a class for what is read, and perhaps set."""

    def __init__(self, get: FunctionType, put: FunctionType, remove: FunctionType) -> None:
        self._get, self._put, self._remove = get, put, remove

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self._get(instance, type(instance) if owner is None else owner)

    def __set__(self, instance: Any, value: Any) -> None:
        self._put(instance, value)

    def __delete__(self, instance: Any) -> None:
        self._remove(instance)


class Stored(_View):
    """An attribute of instances that one of the two worlds keeps in another form."""

    def __init__(self, name: str, convert: Callable[[Any], Any]) -> None:
        super().__init__(sys, name, INHERITED)
        self.convert = convert

    def read(self, instance: Any, owner: type | None) -> Any:
        kept = getattr(instance, "__dict__", {})
        if instance is None or self._name not in kept:
            return self.get(instance, owner)
        value = self.convert(kept[self._name])
        if keeps(value):
            kept[self._name] = value
        return value

    def set(self, instance: Any, value: Any) -> None:
        instance.__dict__[self._name] = value

    def sweep(self, cls: type) -> None:
        """Give all instances the form of this world."""
        for thing in instances(cls):
            if self._name in (kept := getattr(thing, "__dict__", {})):
                kept[self._name] = self.convert(kept[self._name])


class Switch:
    """One name: what stood there, what will, and what stands there meanwhile.

    It stands in one class; or in one module, and under the names by which others have imported what was there.
    """

    def __init__(self, name: str, flavour: str, *, reads: bool, stored: tuple[Stored, Stored] | None = None) -> None:
        self.full_name = name
        self._stored = stored
        self.name = name.rpartition(".")[2]
        self.funcs: list[Func] = []
        self._brought: list[Func] = []
        self._places: list[tuple[Place, str]] = []
        self._is_aimed = False
        self._restored: Any = INHERITED  # what is put back in the end
        self._old, self._new = stored or (_View(sys, self.name, INHERITED), _View(sys, self.name, INHERITED))
        self._reads = reads
        self._standing: Any
        if reads:
            ways = [(view.read, view.set, view.delete) for view in (self._old, self._new)]
            names = ("__get__", "__set__", "__delete__")
            self._standing = _Reads(
                *(
                    self._function(what, [_passing(old), _passing(new)])
                    for what, old, new in zip(names, *ways, strict=True)
                )
            )
        else:
            function = self._function("__get__", [_callers(view, flavour) for view in (self._old, self._new)])
            function.__dict__["__livepatch_view__"] = self._old
            self._standing = _Calls(function)

    def _function(self, what: str, ways: list[Callable[..., Any]]) -> FunctionType:
        template = _TEMPLATE.replace(co_name=self.name, co_qualname=f"{self.full_name}.{what}")
        born, becomes = (forwarder(template, way) for way in ways)
        self.funcs.append(Func(f"{self.full_name}.{what}", Body(becomes), born=born))
        return FunctionType(born, {"__builtins__": __builtins__}, self.name)

    def fits(self, old: Any, new: Any) -> bool:
        """Whether it is of the right sort for what it stands for."""
        return self._reads or all(
            callable(thing)
            or isinstance(thing, staticmethod | classmethod)
            or any(thing is none for none in (None, INHERITED, ABSENT))
            for thing in (old, new)
        )

    def aim(self, places: list[tuple[Place, str]], old: Any, new: Any) -> None:
        """Say where it will stand, and for what; under a name of another module only if the old object is there.

        Nowhere, if the name is a value that changes (`constants`): then it only looks after the functions.
        """
        self._is_aimed = True
        self._restored = old
        place = places[0][0] if places else sys
        self._places = [*places[:1], *(other for other in places[1:] if vars(other[0]).get(other[1]) is old)]
        for view, there in ((self._old, old), (self._new, new)):
            view.place, view.there = place, there
        if places and isinstance(place, ModuleType):
            self._standing = self._standing.__get__(None, object)

    def stands(self, thing: Any) -> bool:
        return thing is self._standing

    def stand(self) -> None:
        """The transition begins: both worlds get their own from here on."""
        for place, name in self._places:
            _put(place, name, self._standing)

    def complete(self) -> None:
        """The transition is over: what the new source has stands there itself."""
        self._sweep(1)
        self._exchange([self._standing], self._new.there)
        set_aside(self._functions(self._old.there), True)

    def return_(self) -> None:
        """It is about to be taken back: the switch returns."""
        self._exchange([self._new.there], self._standing)

    def restore(self) -> None:
        """It is taken back: what stood there before stands there again."""
        self._sweep(0)
        self._exchange([self._standing, self._new.there], self._restored)
        set_aside(self._functions(self._restored), False)
        if self._is_aimed:
            set_aside(self._functions(self._new.there), True)
        self._places, self._is_aimed = [], False

    def _sweep(self, world: int) -> None:
        for place, _ in self._places if self._stored else ():
            assert self._stored is not None
            assert isinstance(place, type)
            self._stored[world].sweep(place)

    def _exchange(self, known: list[Any], thing: Any) -> None:
        """Put something there, unless somebody else has."""
        for place, name in self._places:
            now = vars(place).get(name, INHERITED)
            if any(now is one for one in known):
                _put(place, name, thing)

    def _functions(self, thing: Any) -> set[FunctionType]:
        """The functions of this name in something that may have been made of one."""
        found: set[FunctionType] = set()
        pending, seen = [thing], set[int]()
        while pending:
            one = pending.pop()
            if id(one) in seen:
                continue
            seen.add(id(one))
            if isinstance(one, FunctionType):
                if one.__code__.co_qualname == self.full_name:
                    found.add(one)
                pending += [cell.cell_contents for cell in one.__closure__ or () if _is_filled(cell)]
            if isinstance(one, staticmethod | classmethod | property | partial):
                pending += [getattr(one, part, None) for part in ("__func__", "fget", "fset", "fdel", "func")]
            elif not isinstance(one, type):
                pending.append(getattr(one, "__dict__", {}).get("__wrapped__"))
        return found

    def take_over(self, other: Switch) -> None:
        """The patch of `other` has been replaced: what was there before it is what comes back in the end."""
        self._restored = other._restored
        set_aside(other._functions(other._new.there), True)
        other._places, other._is_aimed = [], False

    def onward(self, flavour: str) -> Callable[..., Any]:
        """What a function of the old member becomes: it calls the new one, whoever holds it."""
        return _passing_on(self._old, self._new, flavour)

    def bring(self, definition: Definition, *, direct: bool) -> None:
        """Say which functions the new member is made of, and whether it is them, with nothing around; see `adopt`."""
        code = definition.code
        if direct and not self._reads:
            born = forwarder(code, _passing_on(self._new, self._old, flavour_of(code)))
            born = born.replace(co_filename=code.co_filename)
        else:
            born = retired(code)
        func = Func(f"{self.full_name}.__func__", Body(code), old_sympos=definition.sympos, born=born)
        self._brought.append(func)
        self.funcs.append(func)

    def adopt(self, new: Any) -> None:
        """Let the functions of the new member be born: the patch redirects them to what they are in the new source.

        Without the patch who holds one gets to the old member; or, where something is around it, keeps it.
        """
        by_line = {function.__code__.co_firstlineno: function for function in self._functions(new)}
        for func in self._brought:
            assert isinstance(func.new_func, Body)
            assert func.born is not None
            function = by_line.get(func.new_func.code.co_firstlineno)
            if function is not None and function.__code__.co_freevars == func.born.co_freevars:
                bring(function)
                function.__code__ = func.born


def _passing_on(source: _View, target: _View, flavour: str) -> Callable[..., Any]:
    """A function that stands in for one of `source`, and calls what `target` has."""

    def reach(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        place = source.place
        if isinstance(place, ModuleType):
            return target.there(*args, **kwargs)
        if isinstance(source.there, staticmethod):
            return target.get(None, place)(*args, **kwargs)
        if isinstance(source.there, classmethod):
            return target.get(None, args[0])(*args[1:], **kwargs)
        return target.get(args[0], type(args[0]))(*args[1:], **kwargs)

    async def coroutine(*args: Any, **kwargs: Any) -> Any:
        return await reach(args, kwargs)

    def generator(*args: Any, **kwargs: Any) -> Any:
        return (yield from reach(args, kwargs))

    def function(*args: Any, **kwargs: Any) -> Any:
        return reach(args, kwargs)

    return {"coroutine": coroutine, "generator": generator}.get(flavour, function)


def _is_filled(cell: CellType) -> bool:
    try:
        return isinstance(cell.cell_contents, FunctionType)
    except ValueError:
        return False


def _passing(way: Callable[..., Any]) -> Callable[..., Any]:
    def passing(instance: Any, value: Any = None, /) -> Any:
        return way(instance, value)

    def single(instance: Any, /) -> Any:
        return way(instance)

    return single if way.__name__ == "delete" else passing


def _put(place: Place, name: str, thing: Any) -> None:
    live_values.write(place, name, live_values.ABSENT if thing is INHERITED else thing)


def retired(code: CodeType) -> CodeType:
    """The same code as another object, so that the two can be told apart on a stack."""
    return code.replace()


def flavour_of(code: CodeType) -> str:
    """As which kind of function something is called."""
    kind = codes.kind(code)
    return kind if kind in ("coroutine", "generator") else "function"
