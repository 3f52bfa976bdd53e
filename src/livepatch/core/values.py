"""Names that mean another value when a patch is in force: constants of modules, attributes of classes and objects.

A function can be redirected, a name cannot: whoever looks it up finds what is there. So while a transition runs, the
public name goes on to mean what it meant before, to everybody who looks it up by himself; and whoever is on the other
side of the transition gets the other value in one of three ways:

- Functions that read a global name get code that has the value itself among its constants (`substitute`). Only the
  private versions that trampolines call for the world to come carry it; when the transition is over, all have their
  ordinary code again, and read the name.
- An attribute of a class is, for that long, a descriptor that asks for the world of whoever reads it (`_Attribute`).
  It does what inheritance, instances with an attribute of their own, `super()` and `getattr` make of any attribute.
- A module that is read from as an object (`module.NAME`, an import in a function) gets a class that asks the same.

What does not come this way (the namespace as a dictionary, code in C) sees the old value until all tasks have moved,
and the new one from then on. It is for the patch to have the functions that read a value among its own, even if their
code does not change: else a task could move between two reads.
"""

from __future__ import annotations

import errno
import opcode
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from types import CodeType, FrameType, ModuleType
from typing import TYPE_CHECKING, Any

from . import cpython, log, originals
from .codes import OPTIMIZED
from .kind import PATCHED
from .model import LivepatchError, Value

if TYPE_CHECKING:
    from .model import Object
    from .transition import Transition

#: What a name means that is not there.
ABSENT = object()

_EXTENDED_ARG = opcode.EXTENDED_ARG
_CACHE = opcode.opmap["CACHE"]
_NOP = opcode.opmap["NOP"]
_LOAD_CONST = opcode.opmap["LOAD_CONST"]
_LOAD_GLOBAL = opcode.opmap["LOAD_GLOBAL"]
_LOAD_NAME = opcode.opmap["LOAD_NAME"]
_PUSH_NULL = opcode.opmap["PUSH_NULL"]
_STORE_NAME = opcode.opmap["STORE_NAME"]


# -- in the code of functions ----------------------------------------------------------------------------------


def substitute(code: CodeType, values: Mapping[str, object]) -> CodeType:
    """The same code, at any depth, with values for global names among its constants; itself if it reads none of them.

    An instruction that loads a constant is shorter than one that loads a global name, so that nothing moves.
    """
    constants = [substitute(c, values) if isinstance(c, CodeType) else c for c in code.co_consts]
    changed = any(new is not old for new, old in zip(constants, code.co_consts, strict=True))
    places: dict[str, int] = {}
    raw = bytearray(code.co_code)
    stored: set[str] = set()  # what a class body has bound itself
    start, high = 0, 0
    for at in range(0, len(raw), 2):
        op, arg = raw[at], high | raw[at + 1]
        if op == _EXTENDED_ARG:
            high = arg << 8
            continue
        name = ""
        if op == _LOAD_GLOBAL:
            name = code.co_names[arg >> 1]
        elif op in (_LOAD_NAME, _STORE_NAME) and not code.co_flags & OPTIMIZED:
            name = code.co_names[arg]
            if op == _STORE_NAME:
                stored.add(name)
                name = ""
        if name in values and name not in stored:
            end = at + 2
            while end < len(raw) and raw[end] == _CACHE:
                end += 2
            if name not in places:
                places[name] = len(constants)
                constants.append(values[name])
            loading = _loading(places[name], null=op == _LOAD_GLOBAL and bool(arg & 1))
            if len(loading) > end - start:
                raise LivepatchError(
                    errno.EINVAL, f"'{code.co_qualname}' is too large to be given a value for '{name}'."
                )
            raw[start:end] = loading + bytes((_NOP, 0)) * ((end - start - len(loading)) // 2)
        start, high = at + 2, 0
    if not changed and not places:
        return code
    return code.replace(co_code=bytes(raw), co_consts=tuple(constants))


def _loading(number: int, *, null: bool) -> bytes:
    """Instructions that load a constant, and what goes with it on the stack if it is about to be called."""
    wide = [(_EXTENDED_ARG, number >> shift & 0xFF) for shift in (24, 16, 8) if number >> shift]
    steps = [*wide, (_LOAD_CONST, number & 0xFF)]
    if null:
        steps.insert(len(steps) if cpython.NULL_COMES_LAST else 0, (_PUSH_NULL, 0))
    return bytes(byte for step in steps for byte in step)


# -- where a name stands ---------------------------------------------------------------------------------------


def read(place: Any, name: str) -> Any:
    """What a module, class or object itself has under a name; ABSENT if nothing."""
    try:
        return vars(place).get(name, ABSENT)
    except TypeError:  # it has slots
        return getattr(place, name, ABSENT)


def write(place: Any, name: str, value: Any) -> None:
    """Let it have that. A metaclass has no say: the class was made long ago."""
    if isinstance(place, ModuleType):
        if value is ABSENT:
            vars(place).pop(name, None)
        else:
            vars(place)[name] = value
        return
    change = (type.__setattr__, type.__delattr__) if isinstance(place, type) else (setattr, delattr)
    if value is not ABSENT:
        change[0](place, name, value)
    elif read(place, name) is not ABSENT:
        change[1](place, name)


# -- in classes and modules ------------------------------------------------------------------------------------


def _asker(transition: Transition) -> Callable[[FrameType], int]:
    """What tells in which world somebody is who has this frame."""

    def world(frame: FrameType) -> int:
        if _evaluating is not None and originals.get_ident() == _evaluating:
            return PATCHED
        if transition.current() in (fast := transition.fast):
            return fast.state
        state, _ = transition.choose(False, frame)
        return transition.goal.state if state is None else state

    return world


class _Attribute:
    """What a class has in the place of an attribute while a transition runs."""

    def __init__(self, place: type, name: str, values: tuple[Any, Any], world: Callable[[FrameType], int]) -> None:
        self._place = place
        self._name = name
        self._values = values
        self._world = world

    def __get__(self, instance: Any, owner: Any = None) -> Any:
        value = self._values[self._world(sys._getframe(1))]
        if value is ABSENT:
            return getattr(super(self._place, owner if instance is None else instance), self._name)
        bind = getattr(type(value), "__get__", None)
        return value if bind is None else bind(value, instance, owner)


class _Watched(ModuleType):
    """The base of the classes that modules have for that long."""


def _watch(module: ModuleType, values: dict[str, tuple[Any, Any]], world: Callable[[FrameType], int]) -> None:
    kind = type(module)

    def __getattribute__(self: Any, name: str) -> Any:
        if name in values:
            value = values[name][world(sys._getframe(1))]
            if value is not ABSENT:
                return value
        return kind.__getattribute__(self, name)

    names = {"__getattribute__": __getattribute__, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
    try:
        module.__class__ = type(kind.__name__, (_Watched, kind), names)
    except TypeError as error:  # something else than a module is in the place of one
        log.debug(f"what reads attributes of '{module.__name__}' sees the new values at completion: {error}")


def _unwatch(module: ModuleType) -> None:
    if _Watched in type(module).__bases__:
        module.__class__ = type(module).__bases__[1]


# -- with the transition ---------------------------------------------------------------------------------------


def to_substitute(obj: Object) -> tuple[int, dict[str, object]]:
    """The world that does not find its values under the public names, and those values that are global names."""
    names: dict[str, object] = {}
    world = PATCHED
    for value in obj.values:
        if value.by_world and value.place is obj.module and not (value.is_set and _successor(value)):
            world = 1 - PATCHED if value.is_set else PATCHED
            names[value.name] = value.old if value.is_set else value.new
    return world, {name: value for name, value in names.items() if value is not ABSENT}


def install(obj: Object, transition: Transition) -> None:
    """A transition begins for an object: let each task that reads by attribute see what belongs to its world."""
    _show([value for value in obj.values if value.by_world], _asker(transition))


def _show(values: list[Value], world: Callable[[FrameType], int]) -> list[Callable[[], None]]:
    """Let who reads by attribute see what belongs to his world. Returns what takes that back."""
    undo: list[Callable[[], None]] = []
    modules: dict[int, tuple[ModuleType, dict[str, tuple[Any, Any]]]] = {}
    for value in values:
        now = read(value.place, value.name)
        if now is not (value.new if value.is_set else value.seen):
            continue  # somebody has put something else there, or it is shown already
        both = (value.old if value.is_set else now), value.new
        if isinstance(value.place, type):
            write(value.place, value.name, _Attribute(value.place, value.name, both, world))
            undo.append(partial(write, value.place, value.name, now))
        elif isinstance(value.place, ModuleType) and _Watched not in type(value.place).__bases__:
            modules.setdefault(id(value.place), (value.place, {}))[1][value.name] = both
    for module, names in modules.values():
        _watch(module, names, world)
        undo.append(partial(_unwatch, module))
    return undo


#: The thread that evaluates new values just now: it sees these before anybody else.
_evaluating: int | None = None


@contextmanager
def seen_here(values: list[Value]) -> Iterator[None]:
    """Meanwhile this thread, and no other, sees new values where it reads them by attribute. Under the mutex."""
    global _evaluating
    _evaluating = here = originals.get_ident()
    undo = _show(values, lambda _: PATCHED if originals.get_ident() == here else 1 - PATCHED)
    try:
        yield
    finally:
        _evaluating = None
        for step in undo:
            step()


def settle(obj: Object, state: int) -> None:
    """All tasks are in a state, or there is nobody to wait for: the public names follow. May be done twice.

    What somebody else has put there meanwhile (a mock, say) stays.
    """
    for value in obj.values:
        if isinstance(value.place, ModuleType):
            _unwatch(value.place)
        now = read(value.place, value.name)
        ours = isinstance(now, _Attribute) or now is (value.new if value.is_set else value.seen)
        if state == PATCHED:
            if ours:
                write(value.place, value.name, value.new)
            _enter(value, ours)
        elif value.is_set:
            if (later := _successor(value)) is not None:
                later.old = value.old
            elif ours:
                write(value.place, value.name, value.old)
            _enter(value, False)
        elif isinstance(now, _Attribute):
            write(value.place, value.name, value.seen)


def add_nops(obj: Object, replaced: Iterable[Object]) -> None:
    """An atomic replace: what the patches to be replaced have changed and this one has not means what it did before."""
    for other in replaced:
        mine = {(id(value.place), value.name) for value in obj.values}
        for value in other.values if other.name == obj.name else ():
            if value.is_set and (id(value.place), value.name) not in mine and _successor(value) is None:
                before = original(value.place, value.name)
                nop = Value(value.place, value.name, before, value.new, by_world=value.by_world)
                nop.old = before
                obj.values.append(nop)


def settle_new(obj: Object) -> None:
    """Before the transition: attributes of instances that nobody has known are there from now on."""
    for value in obj.values:
        if value.seen is ABSENT and not isinstance(value.place, type | ModuleType) and not value.is_set:
            write(value.place, value.name, value.new)
            _enter(value, True)


#: The values that public names have got from patches.
_in_force: list[Value] = []


def _enter(value: Value, entered: bool) -> None:
    if value.is_set is not entered:
        value.is_set = entered
        _in_force[:] = [other for other in _in_force if other is not value] + [value] * entered


def original(place: Any, name: str) -> Any:
    """What a name means without any patch."""
    first = next((value for value in _in_force if value.place is place and value.name == name), None)
    return read(place, name) if first is None else first.old


def _successor(value: Value) -> Value | None:
    """The value that a later patch has given to the same name."""
    later = _in_force[_in_force.index(value) + 1 :] if value in _in_force else _in_force
    return next((o for o in later if o.place is value.place and o.name == value.name and o is not value), None)
