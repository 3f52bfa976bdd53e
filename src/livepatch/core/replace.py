"""Atomic replace: a cumulative patch takes the place of all that are enabled, in one transition.

What the patches to be replaced have and the new one has not is taken back by it: the new patch gets *nops*, functions
that mean "run the original", and *dynamic objects* to hold those of modules that it does not mention itself. They are
ordinary entries on the stacks, so the transition treats a function that is replaced, one that is upgraded and
one that is reverted alike. They exist only as long as the transition runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from .model import Func, Object, Patch


def add_nops(patch: Patch, replaced: Iterable[Patch]) -> None:
    """Give the patch a nop for every function of the others that it does not have, also in absent modules."""
    for other in replaced:
        for obj in other.objects:
            mine = next((known for known in patch.all_objects() if known.name == obj.name), None)
            if mine is None:
                mine = Object(obj.name)
                mine.dynamic = True
                patch.dynamic.append(mine)
            for func in obj.funcs:
                # What a patch has brought itself is its own, whatever the name.
                if func.born is not None or func.key not in {known.key for known in [*mine.funcs, *mine.nops]}:
                    nop = _nop(func)
                    nop.old_code, nop.twins = func.old_code, func.twins
                    mine.nops.append(nop)


def add_derived_nops(obj: Object, replaced: Iterable[Patch]) -> None:
    """The same for the functions around nested ones, when the object's module is there."""
    for derived in [
        func for other in replaced for its in other.objects if its.name == obj.name for func in its.derived
    ]:
        if all(func.old_code is not derived.old_code for func in obj.all_funcs()):
            nop = _nop(derived)
            nop.old_code, nop.twins = derived.old_code, derived.twins
            obj.nops.append(nop)


def discard_nops(patch: Patch) -> None:
    """They have done their work and are on no stack any more."""
    patch.dynamic.clear()
    for obj in patch.objects:
        obj.nops.clear()


def _nop(func: Func) -> Func:
    nop = Func(func.old_name, None, old_sympos=func.old_sympos, immediate=func.immediate, suspended=func.suspended)
    nop.born = func.born
    nop.nop = True
    return nop
