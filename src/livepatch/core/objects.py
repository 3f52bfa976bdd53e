"""Patching and unpatching the objects of a patch: the step between a patch and its redirections.

Outside of these functions nobody puts a `Func` on a stack or takes it off. They are called under the registry's mutex.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from types import CodeType, FunctionType
from typing import NamedTuple

from . import caches, redirect, values
from .carriers import functions_of
from .codes import kind
from .kind import PATCHED, UNPATCHED
from .model import Body, Func, Object, Patch
from .redirect import Redirection, redirections
from .resolve import current_codes
from .stacks import Footprint
from .trampoline import contains, replace_constants
from .transition import Transition


def funcs(patch: Patch) -> Iterator[Func]:
    """All functions of a patch, derived ones and nops too."""
    for obj in patch.all_objects():
        yield from obj.all_funcs()


def redirections_of(patch: Patch) -> list[Redirection]:
    """The redirections of a patch whose functions are on their stacks."""
    known = [redirections.get(id(func.old_code)) for func in funcs(patch) if func.patched]
    return [redirection for redirection in known if redirection is not None]


class Found(NamedTuple):
    """The function objects that carry a code, by its id, and the ids of all that is behind a `functools` cache."""

    functions: dict[int, list[FunctionType]]
    cached: set[int]


def find(funcs_to_find: Iterable[Func]) -> Found:
    """What the heap knows of these functions' originals, patched or not."""
    codes: list[CodeType] = []
    for func in funcs_to_find:
        if func.old_code is not None:
            codes += [*current_codes(func), *([func.new_func.code] if isinstance(func.new_func, Body) else [])]
    return Found(functions_of(codes), caches.cached()) if codes else Found({}, set())


def patch_object(obj: Object, found: Found, transition: Transition | None) -> None:
    """Put every function of the object on its stack.

    Each call asks the transition from here on; without one it reaches the version in front. `found` is
    from `find`.
    """
    for func in obj.all_funcs():
        assert func.old_code is not None
        func.patched = True  # first: should an exception cut this off, it will be taken off again
        if id(func.old_code) not in redirections:
            redirect.register(func)
        redirections[id(func.old_code)].stack.insert(0, func)
    inner: list[Redirection] = []
    for func in obj.all_funcs():  # nested ones first: what is around them contains their code
        redirection = redirections[id(func.old_code)]
        if func in obj.derived:
            assert isinstance(func.new_func, Body)
            replacements = {id(code): r.direct(r.stack[0]) for r in inner for code in r.codes()}
            redirection.redirect(func, replace_constants(func.new_func.code, replacements))
        redirection.adopt(found.functions)
        if isinstance(func.new_func, Body):
            redirection.set_apart(found.functions.get(id(func.new_func.code), ()))
        redirection.direct(func)  # may need one of the functions just found, and may refuse
        if redirection.nested:
            inner.append(redirection)
    for redirection in fronts(obj):
        if transition is None or redirection.stack[0].immediate:
            redirection.settle()
    if transition is not None:
        install(obj, transition, found)
    else:
        values.settle(obj, PATCHED)
    obj.patched = True


def fronts(obj: Object) -> list[Redirection]:
    """The redirections that a patched object decides, those nested deepest first."""
    decided = [(redirections[id(func.old_code)], func) for func in obj.all_funcs() if func.patched]
    return [redirection for redirection, func in decided if redirection.stack[0] is func]


def install(obj: Object, transition: Transition, found: Found) -> None:
    """Trampolines for all that the object decides; enclosing functions last, since they make the births."""
    nested: dict[int, Redirection] = {}
    worlds = values.to_substitute(obj)
    values.install(obj, transition)
    for redirection in fronts(obj):
        if redirection.stack[0].immediate:
            continue
        if redirection.nested:
            nested |= {id(code): redirection for code in redirection.codes()}
        redirection.install(transition, nested, found.cached, worlds)


def surface(obj: Object) -> None:
    """Before an object is unpatched: let it decide what functions around its nested ones make.

    A newer patch may have derived its own version of such a function from the one of this patch. That version makes
    closures of this patch, too, and must go on doing so for tasks that have not moved. So this patch takes it over, and
    the newer one keeps what is left of it without this patch.
    """
    without: dict[int, CodeType] = {}
    for func in [func for func in obj.all_funcs() if func.patched]:  # nested ones first
        redirection = redirections[id(func.old_code)]
        front = redirection.stack[0]
        if func in obj.derived and front is not func and contains(redirection.direct(front), set(without)):
            assert isinstance(front.new_func, Body)
            taken = Func(func.old_name, Body(front.new_func.code), old_sympos=func.old_sympos, immediate=func.immediate)
            taken.old_code, taken.patched = func.old_code, True
            redirection.stack.remove(func)
            redirection.stack.insert(0, taken)
            obj.derived[obj.derived.index(func)] = taken
            redirection.redirect(front, replace_constants(front.new_func.code, without))
            func = front = taken
        if front is func:
            without[id(redirection.direct(func))] = redirection.direct(redirection.below(func))


def check_removable(patched: Iterable[Object], found: Found) -> None:
    """Raise LivepatchError (EBUSY) if somebody has exchanged code since, and would keep some of ours in it."""
    for obj in patched:
        for func in obj.all_funcs():
            redirection = redirections[id(func.old_code)]
            redirection.adopt(found.functions)
            if redirection.front() is func or func in obj.derived:
                redirection.check_removable(func)


def unpatch_object(obj: Object) -> None:
    """Take every function of the object off its stack. What calls reach changes with `settle`."""
    for func in obj.all_funcs():
        _take_off(func)
    values.settle(obj, UNPATCHED)
    obj.patched = False


def _take_off(func: Func) -> None:
    """May have been done, in part or as a whole, by a completion that an exception has cut off."""
    redirection = redirections.get(id(func.old_code))
    if func.patched and redirection is not None and func in redirection.stack:
        redirection.stack.remove(func)
    func.patched = False


def unpatch_nops(patch: Patch) -> None:
    """An atomic replace has completed, or is taken back: nops come off their stacks."""
    for nop in [nop for obj in patch.all_objects() for nop in obj.nops]:
        _take_off(nop)


def settle(touched: list[Redirection]) -> None:
    """Calls reach what is in front, directly; a redirection without any version is given up."""
    # Closures were made meanwhile, by versions of the enclosing functions that nobody is in any more; and whoever put
    # code of his own into a function may have kept a copy of it.
    late = [redirection for redirection in touched if redirection.nested or redirection.strangers()]
    if late:
        found = functions_of(code for redirection in late for code in redirection.codes())
        for redirection in late:
            redirection.adopt(found)
    for redirection in touched:
        redirection.settle()
        redirection.forget_transition()
        if not redirection.stack:
            redirections.pop(id(redirection.original), None)


def footprint(patch: Patch, state: int) -> Footprint:
    """What tasks must leave to reach a state, for all functions of a patch."""
    marked = Footprint()
    for redirection in redirections_of(patch):
        redirection.mark(marked, state)
    return marked


def suspendable(patch: Patch) -> list[CodeType]:
    """All versions of those functions of a patch whose frames can outlive their call."""
    codes: list[CodeType] = []
    for redirection in redirections_of(patch):
        front = redirection.stack[0]
        consistent = front.transition and not front.immediate and front.suspended == "wait"
        if consistent and kind(redirection.original) != "function":
            codes += [*redirection.code_of(front), *redirection.code_of(redirection.below(front))]
    return codes
