"""Callbacks: what must happen around a patch besides exchanging functions, told by desk.py as it happens.

Each belongs to one module. Those of a module that is not imported yet wait with it: `report` gets its callbacks and its
new function in the middle of the import.
"""

import errno

import livepatch as lp


def compute(net: int) -> int:
    return (net * 107 + 50) // 100


def headline() -> str:
    return "Prices, rounded"


def say(event: str, module: lp.Object) -> None:
    print(f"{event} {module.name} ({module.module_state})", flush=True)


# Before anything is changed. The only callback that can refuse: it raises, or returns a negative errno. Then nothing of
# the patch stays.
def pre_patch(module: lp.Object) -> int:
    say("pre_patch", module)
    if module.name == "prices" and module.module.RATE != 7:
        return -errno.EDOM  # the new function is right for 7 only
    return 0


# When every task runs the new functions. Until then old ones may fill the cache with old values, so it is no use to
# clear it earlier.
def post_patch(module: lp.Object) -> None:
    say("post_patch", module)
    clear(module)


# When the patch is being disabled, while all tasks still run the new functions.
def pre_unpatch(module: lp.Object) -> None:
    say("pre_unpatch", module)


# When every task runs the old functions again. It is called for whatever pre_patch was called for, also if the patch
# was taken back before it was complete.
def post_unpatch(module: lp.Object) -> None:
    say("post_unpatch", module)
    clear(module)


def clear(module: lp.Object) -> None:
    if module.name == "prices":
        module.module.CACHE.clear()


callbacks = lp.Callbacks(pre_patch, post_patch, pre_unpatch, post_unpatch)

__livepatch__ = lp.Patch(
    "rounding",
    [
        lp.Object("prices", [lp.Func("compute", compute)], callbacks=callbacks),
        lp.Object("report", [lp.Func("headline", headline)], callbacks=callbacks),
    ],
)
