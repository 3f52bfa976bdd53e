"""Several steps with nothing in between.

The interpreter lets other threads run between two steps of Python code, and within one that it makes in C only if C
calls Python. So iterators that are made of C only (`map`, `chain`, `compress`, ...) show one instant, if one call goes
through all of them.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from operator import call
from typing import Any


def once(look: Callable[[], Any]) -> Iterator[Any]:
    """What a function in C returns, when somebody asks for it."""
    return islice(iter(look, sys), 1)  # `sys` is what it never gives


def at_once(items: Iterator[Any]) -> list[Any]:
    """What an iterator made of C only gives, without anything running in between.

    What it has seen and not given (`tee` keeps some) is dropped in the same instant, if only the caller's expression
    refers to it.

    Older interpreters (3.11) start a collection at any object that is made, frame objects too; finalizers run in it
    and let other threads run. The interpreter does not expect that: the frame that it makes an object for may be gone
    then, and the process dies. So collections are off meanwhile, and turning them off and on is part of the same call,
    since the program does that, too.
    """
    seen: list[Any] = []
    only = [items]
    del items
    switches = (gc.disable, gc.enable)
    restore = map(call, map(switches.__getitem__, map(seen.__getitem__, (0,))))
    try:
        seen.extend(chain(once(gc.isenabled), once(gc.disable), chain.from_iterable(once(only.pop)), restore))
    except BaseException:
        if seen and seen[0]:
            gc.enable()
        raise
    del seen[:2], seen[-1]
    return seen
