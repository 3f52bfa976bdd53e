"""Live instances of a class: data that must follow code.

Nothing in the interpreter knows the instances of a class. The collector knows all objects that can be part of a circle,
and one pass over these, a single call in C, finds the instances among them: a picture of one instant, in which nobody
is missing. Its price is that the whole process stands still for as long, whatever the number of instances.

So the collector must know them without exception. It does if the class was made by a `class` statement, even if its
instances have nothing but empty `__slots__`, since they refer to their class. What is written in C decides by itself
when the collector may know an instance, and some (tuples) must not be held while they are filled: that is refused.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, ModuleType
from typing import Any, NamedTuple, TypeVar

from . import originals
from .heap import instances, is_a, size
from .model import LivepatchError, Object
from .symbols import loaded_module

_T = TypeVar("_T")

#: In `__flags__` of a class: it was made while the program runs.
_HEAP_TYPE = 1 << 9
#: What a function in C is in the class that it was written for.
_IN_C = tuple(map(type, (object.__repr__, str.join, vars(dict)["fromkeys"])))
_flags = vars(type)["__flags__"].__get__
_members = vars(type)["__dict__"].__get__


def each_instance(cls: type[_T], *, subclasses: bool = True) -> Iterator[_T]:
    """Every instance of a class, and of its subclasses if not told otherwise, that is alive at the moment of the call.

    They are listed at once, and the iterator lets go of each when it has given it. What is made later is not among
    them. What may be, and must be expected: an instance whose constructor has not returned yet, in another thread, and
    one that nobody refers to any more but a circle of its own. The order means nothing.

    Called in `post_patch`, when no task runs old code any more, it gives every instance that old code has made, and
    those that new code has made by then. In `pre_patch` no task runs new code yet, and old code goes on making
    instances until the last task has moved. `pre_unpatch` and `post_unpatch` are the same the other way round.

    One call stops all threads for a pass over the heap (`./run bench instances`). `livepatch check` says for how long,
    if a patch names the class: `Object(instances=...)`, or `__livepatch_instances__` in hooks.

    Raises LivepatchError (EINVAL) for a class that is written in C: instances of it may be hidden.
    """
    check_class(cls)
    found = instances(cls)
    return given(found if subclasses else [thing for thing in found if type(thing) is cls])


def given(found: list[_T]) -> Iterator[_T]:
    """Those of a list, one by one; in a forked child, two threads may share it."""
    while found:
        try:
            yield found.pop()
        except IndexError:
            return


def check_class(cls: Any) -> None:
    """Raise LivepatchError (EINVAL) unless all instances of a class can be found."""
    if not is_a(cls, type):
        raise LivepatchError(errno.EINVAL, f"each_instance needs a class, and {cls!r} is none.")
    if _is_written_in_c(cls):
        sentence = f"Not all instances of '{cls.__qualname__}' can be found, since it is written in C"
        raise LivepatchError(errno.EINVAL, f"{sentence}; take a subclass of it that is written in Python.")


def _is_written_in_c(cls: type) -> bool:
    """A class that was made by a `class` statement has nothing in C of its own, however much it inherits."""
    own = _members(cls)
    new = own.get("__new__")
    return (
        not _flags(cls) & _HEAP_TYPE
        or (type(new) is BuiltinFunctionType and new.__self__ is cls)
        or any(type(thing) in _IN_C and thing.__objclass__ is cls for thing in own.values())
    )


def live_class(module: ModuleType, path: str) -> type | None:
    """A class of a live module, by qualified name."""
    found: ModuleType | type = module
    for name in path.split("."):
        inner = vars(found).get(name)
        if not isinstance(inner, type):
            return None
        found = inner
    return found if isinstance(found, type) else None


def class_of(obj: Object, path: str) -> type[Any]:
    """A class whose instances an object of a patch goes through. Raises LivepatchError (EINVAL) if that cannot be."""
    assert obj.module is not None
    cls = live_class(obj.module, path)
    if cls is None:
        raise LivepatchError(errno.EINVAL, f"'{path}' is not a class in the live module '{obj.shown_name}'.")
    check_class(cls)
    return cls


class Walk(NamedTuple):
    """What it takes to go through the instances of a class once: of how many, in a heap of how many objects."""

    cls: str
    live: int | None
    objects: int
    seconds: float


def walks(objects: Iterable[Object]) -> list[Walk]:
    """What a patch will go through in the modules that are there."""
    present = [(obj, module) for obj in objects if (module := loaded_module(obj.name)) is not None]
    return [
        walk(f"{obj.shown_name}:{path}", live_class(module, path)) for obj, module in present for path in obj.instances
    ]


def walk(name: str, cls: type | None) -> Walk:
    """Measured by doing it, for nothing; of how many instances is not known if the class is not."""
    begun = originals.monotonic()
    found = len(instances(cls or Walk))
    seconds = originals.monotonic() - begun
    return Walk(name, None if cls is None else found, size(), seconds)
