"""Shadow variables: data attached to live objects from outside, for new code that needs a field the old never made.

A variable belongs to one object, its parent, and has an id, any hashable value that the authors of a patch agree on.
It belongs to no patch: it stays when a patch is disabled or replaced, so that the next one finds it. Whoever wants it
gone calls `free` or, usually in `post_unpatch`, `free_all`.

**Parents are told apart by identity.** Two equal objects have two variables, and neither `==` nor `hash` of a parent
is ever called. The table is keyed by address, and an address can be used again as soon as its object is dead. The
kernel leaves that to the author. Here the entry of an object that can be weakly referenced *is* its weak reference. It
counts only while it refers to the very object that is asked for, so there is no instant at which another object finds
it: not between the death and the callback that removes the entry, not in a finalizer, not after a resurrection. As with
every weak reference, an object that dies in a cycle has lost its variables when its finalizer runs.

An object that cannot be weakly referenced (an int, a str, a tuple, a list, a dict, an instance of a class with
`__slots__` only) is **kept alive** by its variables, until the last of them is freed. So is every parent that its own
data refers to, since the table holds the data.

**The data is what the constructor returns**, where the kernel hands out zeroed bytes to be filled. It is meant to be
something that can be changed in place: there is no `set`. Without a constructor it is an empty
`types.SimpleNamespace`.

**Locking.** One lock, taken by everything but `get`. Constructors and destructors run under it, so that exactly one
caller constructs; they must not block, nor import, since callbacks take it under the registry's mutex. They may `get`;
whatever would need the lock is refused with EDEADLK, as it is to a signal handler or a finalizer that interrupts one of
them. `get` is two dict lookups, each of them atomic. A weak reference dies anywhere, also inside of our locked regions,
so its callback only notes the death, and clears up if the lock is free; if not, the holder does so when he has released
it. What is freed is dropped, and what is to be logged is logged, outside of the lock: finalizers and log handlers are
foreign code. The table is consistent between any two instructions, so all that a forked child needs is a free lock.
"""

from __future__ import annotations

import errno
import os
import threading
from collections import deque
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any, NamedTuple
from weakref import ref

from . import log, originals
from .model import LivepatchError

_address = id  # the public functions have a parameter of that name
_ABSENT: Any = object()


class _Weak(ref[Any]):
    """The variables of a parent, which it does not keep alive: called, it gives the parent or None."""

    __slots__ = ("address", "variables")

    address: int
    variables: dict[Hashable, Any]


class _Strong:
    """The variables of a parent that cannot be weakly referenced."""

    __slots__ = ("_parent", "address", "variables")

    address: int
    variables: dict[Hashable, Any]

    def __init__(self, parent: object) -> None:
        self._parent = parent

    def __call__(self) -> object:
        return self._parent


_entries: dict[int, _Weak | _Strong] = {}
_lock = originals.RLock()  # re-entrant so that it knows its owner; entered twice it never is
_process = os.getpid()  # whose the lock is
_dead: deque[_Weak] = deque()
_burying = threading.local()


def get(obj: object, id: Hashable, default: Any = None) -> Any:
    """The data of a parent's variable, or `default` if it has none. Takes no lock."""
    entry = _entries.get(_address(obj))
    if entry is None or entry() is not obj:
        return default
    return entry.variables.get(id, default)


def alloc(obj: object, id: Hashable, ctor: Callable[..., Any] | None = None, *ctor_data: Any) -> Any:
    """Attach a new variable, whose data `ctor(obj, *ctor_data)` returns, and give that data.

    None if the parent has one already (a warning is logged and the constructor is not called), or if the
    constructor raises or returns None (an error is logged and nothing is attached). Raises LivepatchError (EDEADLK)
    in a constructor or destructor.
    """
    data, made = _get_or_make(obj, id, ctor, ctor_data)
    if made:
        return data
    log.warning(f"Duplicate shadow variable {_shown(obj, id)}")
    return None


def get_or_alloc(obj: object, id: Hashable, ctor: Callable[..., Any] | None = None, *ctor_data: Any) -> Any:
    """The data of a parent's variable, which is attached as by `alloc` if there is none.

    Of several threads that come at once, one constructs, and all get the same. None if the constructor fails; raises
    as `alloc`.
    """
    return _get_or_make(obj, id, ctor, ctor_data)[0]


def free(obj: object, id: Hashable, dtor: Callable[[Any, Any], object] | None = None) -> None:
    """Detach a variable and call `dtor(obj, data)`; nothing if there is none.

    A destructor that raises is logged and the variable is gone all the same. Raises LivepatchError (EDEADLK) in a
    constructor or destructor.
    """
    with _exclusively() as later:
        entry = _entries.get(_address(obj))
        if entry is not None and entry() is obj:
            _detach(entry, obj, id, dtor, later)


def free_all(id: Hashable, dtor: Callable[[Any, Any], object] | None = None) -> None:
    """`free` the variables with this id of all parents, in no particular order."""
    with _exclusively() as later:
        for entry in list(_entries.values()):
            parent = entry()
            later.drop.append(parent)  # perhaps ours is the last reference to it by now
            if isinstance(entry, _Weak) and parent is None:
                later.drop.append(entry)
                _remove(entry)
            else:
                _detach(entry, parent, id, dtor, later)


def _get_or_make(obj: object, id: Hashable, ctor: Callable[..., Any] | None, ctor_data: Any) -> tuple[Any, bool]:
    """The data of a variable, and whether it was to be made: then it may be None, for failure."""
    data = get(obj, id, _ABSENT)
    if data is not _ABSENT:
        return data, False
    hash(id)  # raises for what cannot be an id, while nothing has happened
    with _exclusively() as later:
        data = get(obj, id, _ABSENT)  # again: somebody may have been faster
        if data is not _ABSENT:
            return data, False
        number, reason = errno.EINVAL, "it returned None"
        try:
            data = SimpleNamespace() if ctor is None else ctor(obj, *ctor_data)
        except Exception as error:
            data, number, reason = None, _errno(error), repr(error)
        if data is not None:
            _attach(obj, id, data, later)
        else:
            later.log.append(f"Failed to construct shadow variable {_shown(obj, id)} ({-number})")
            later.log.append(f"the constructor {ctor!r} failed: {reason}")
        return data, True


def _errno(error: Exception) -> int:
    if isinstance(error, MemoryError):
        return errno.ENOMEM
    return (isinstance(error, OSError) and error.errno) or errno.EINVAL


def _shown(obj: object, id: Hashable) -> str:
    """A variable in the log; a parent's own words for itself are foreign code and may be long."""
    return f"<{type(obj).__qualname__} at {_address(obj):#x}, {id!r}>"


class _Later(NamedTuple):
    """What must wait for the release of the lock."""

    drop: list[Any]
    log: list[str]


@contextmanager
def _exclusively() -> Iterator[_Later]:
    """Under the lock."""
    if os.getpid() != _process:
        _in_child()
    if _lock._is_owned():
        raise LivepatchError(
            errno.EDEADLK,
            "Constructors and destructors of shadow variables must not allocate or free any; they may only get.",
        )
    later = _Later([], [])
    try:
        with _lock:
            yield later
    finally:
        later.drop.clear()
        _bury()
        for sentence in later.log:
            log.error(sentence)


def _attach(obj: object, id: Hashable, data: Any, later: _Later) -> None:
    entry = _entries.get(_address(obj))
    if entry is None or entry() is not obj:
        later.drop.append(entry)  # of an object that died at this address, if any
        try:
            entry = _Weak(obj, _died)
        except TypeError:
            entry = _Strong(obj)
        entry.address = _address(obj)
        entry.variables = {id: data}
        _entries[entry.address] = entry  # complete: `get` finds it from here on
    else:
        entry.variables[id] = data


def _detach(
    entry: _Weak | _Strong, obj: object, id: Hashable, dtor: Callable[[Any, Any], object] | None, later: _Later
) -> None:
    """Unlink first, then call the destructor."""
    data = entry.variables.pop(id, _ABSENT)
    if data is _ABSENT:
        return
    later.drop.extend((entry, data))
    if not entry.variables:
        _remove(entry)
    if dtor is not None:
        try:
            dtor(obj, data)
        except Exception as error:
            later.log.append(f"the destructor of shadow variable {_shown(obj, id)} failed and was ignored: {error!r}")


def _remove(entry: _Weak | _Strong) -> None:
    """Take an entry out of the table, unless another has taken its place."""
    if _entries.get(entry.address) is entry:
        del _entries[entry.address]


def _died(entry: _Weak) -> None:
    """The parent is dead. Runs anywhere."""
    _dead.append(entry)
    _bury()


def _bury() -> None:
    """Remove the entries of dead parents and drop their data, unless that is under way.

    If another thread holds the lock, or this one, further down its stack, it does this when it has released it. What
    is dropped may be what other parents lived by: their entries are waiting when this comes round again, rather than
    one call deeper.
    """
    if getattr(_burying, "here", False):
        return
    _burying.here = True
    try:
        while _dead and not _lock._is_owned() and _lock.acquire(blocking=False):
            buried = []
            try:
                while _dead:
                    buried.append(_dead.popleft())
                    _remove(buried[-1])
            finally:
                _lock.release()
            buried.clear()
    finally:
        _burying.here = False


def _in_child() -> None:
    """Another thread may have held the lock; it does not exist here, and had attached nothing yet.

    Called after every fork, or earlier: a finalizer may want the lock while others of these functions run.
    """
    global _process
    _process = os.getpid()
    if not _lock._is_owned():
        _lock._at_fork_reinit()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
