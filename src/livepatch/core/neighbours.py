"""Others who exchange the code of functions: tracers, profilers, debuggers that rewrite code, and people.

A function has one place for its code, and whoever assigns it asks nobody. The kernel has the same problem, since a
function has room for one redirection; its answer is that the first keeps it and the second gets EBUSY. Here:

- Who came before a patch keeps it. The patch is refused until the other has taken its code back.
- Who comes while a patch is in force keeps it, too: code that is not livepatch's own is never overwritten. A wrapper
  made a copy of the function that it found, and calls that. The copy carries our code, so it is found like any other
  function, and is patched and unpatched under the wrapper (`carriers.py`). Where there is no such copy, the other's
  code may be ours with something added, and would stay when the patch goes: then disabling is refused, until the
  other has taken its code back.

Nothing is written on a code object about who made it. These are the signs, and what shows none of them counts as the
original, is left out while the patch is in force, and comes back with it:

- constants that no compiler makes: whoever generates code puts what it calls there;
- a function of one name with the code of another one;
- code from another file, although the module's own source defines the function.
"""

from __future__ import annotations

import errno
import functools
import gc
import os
from collections.abc import Iterable
from types import BuiltinFunctionType, CellType, CodeType, FunctionType, MethodType, ModuleType

from . import log
from .model import LivepatchError

#: The types of all constants that the compiler puts into code.
COMPILED = (type(None), type(...), bool, int, float, complex, str, bytes, tuple, frozenset, slice, CodeType)

#: How far from its constants a wrapper's copy of a function may be: in a cell of a closure of a function, say.
_FAR = 6


def put_in(code: CodeType) -> list[object]:
    """The constants that no compiler made."""
    flat: list[object] = []
    for constant in code.co_consts:
        flat += constant if type(constant) is tuple else (constant,)
    return [constant for constant in flat if type(constant) not in COMPILED]


def from_elsewhere(code: CodeType, module: ModuleType) -> bool:
    """The code was compiled from another file than the module's."""
    file = getattr(module, "__file__", None)
    # A script's code has the name that it was called by, a compiled module's that of the source.
    return isinstance(file, str) and _stem(file) != _stem(code.co_filename)


def _stem(path: str) -> str:
    return os.path.splitext(os.path.basename(path))[0]


def held(name: str, module: ModuleType, code: CodeType) -> LivepatchError:
    """The refusal of a patch for a function that carries this code of somebody else's."""
    log.error(f"failed to register ftrace handler for function '{name}' ({-errno.EBUSY})")
    return LivepatchError(
        errno.EBUSY,
        f"The code of '{name}' in '{module.__name__}' has been exchanged {_by_whom(code, module.__name__, module)}; "
        "take that back first.",
    )


def kept(name: str, function: FunctionType) -> LivepatchError:
    """The refusal to take a patch away from a function whose code somebody has exchanged meanwhile."""
    return LivepatchError(
        errno.EBUSY,
        f"The code of '{name}' in '{function.__module__}' has been exchanged since it was patched, "
        f"{_by_whom(function.__code__, function.__module__)}; take that back first.",
    )


def _by_whom(code: CodeType, name: str, module: ModuleType | None = None) -> str:
    origins = [origin for thing in put_in(code) if (origin := _origin(thing)) not in (None, name, "builtins")]
    foreign = [origin for origin in origins if origin is not None and not origin.startswith("livepatch.")]
    if foreign:
        return f"by '{foreign[0]}'"
    if module is None or from_elsewhere(code, module):
        return f"for code from {code.co_filename}"
    return "by somebody"


def _origin(thing: object) -> str | None:
    """The module that a constant comes from. Nothing of it is called: it may be anything."""
    while type(thing) in (MethodType, functools.partial):
        thing = thing.__func__ if type(thing) is MethodType else thing.func  # type: ignore[attr-defined]
    named = type(thing) in (FunctionType, BuiltinFunctionType) or issubclass(type(thing), type)
    return getattr(thing if named else type(thing), "__module__", None)


def reaches(function: FunctionType, wanted: Iterable[FunctionType]) -> bool:
    """Whether the code that somebody put into a function holds one of these functions, and so may call it."""
    ids = {id(one) for one in wanted}
    seen: set[int] = set()
    level: list[object] = [function]
    for _ in range(_FAR):
        following = [thing for holder in level for thing in _held_by(holder)]
        if any(id(thing) in ids for thing in following):
            return True
        level = [thing for thing in following if id(thing) not in seen]
        seen |= {id(thing) for thing in level}
    return False


def _held_by(thing: object) -> Iterable[object]:
    """What a part of a wrapper holds, without the whole program: modules, classes and namespaces are no parts of it."""
    if type(thing) is FunctionType:
        return [thing.__code__, thing.__closure__, thing.__defaults__, thing.__kwdefaults__, vars(thing)]
    if type(thing) is CodeType:
        return put_in(thing)
    if isinstance(thing, ModuleType | type) or (type(thing) in COMPILED and type(thing) is not tuple):
        return []
    if type(thing) is CellType or type(thing) in (tuple, list, dict, MethodType, functools.partial):
        return gc.get_referents(thing)
    return [found for found in gc.get_referents(thing) if not isinstance(found, ModuleType | type)]
