"""Does a stack hold code that its task must leave before it may move?

Frames are compared by the identity of their code objects (code objects compare by value, and two versions of
a function may well be equal). Two kinds of frame count as affected:

* a frame of forbidden code, the version that the task is to leave;
* a frame of a trampoline, unless the frame directly above it (the one it called) is a version of that function:
  between choosing a version and calling it the choice stands, although no version is on the stack yet. Signal
  handlers and finalizers can run in just that gap.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from itertools import accumulate, chain, islice, repeat
from operator import itemgetter
from threading import get_ident
from types import CodeType, FrameType
from typing import Any

from .codes import ASYNC_GENERATOR, COROUTINE, GENERATOR


class Footprint:
    """The code objects that matter to a transition in its present direction.

    `forbidden` is what tasks must leave, `expected` what they move to; `trampolines` says for each trampoline which
    code it calls. The code objects themselves are kept, so that no id can be used again.
    """

    __slots__ = ("_kept", "expected", "forbidden", "trampolines")

    def __init__(self) -> None:
        self.forbidden: set[int] = set()
        self.expected: set[int] = set()
        self.trampolines: dict[int, frozenset[int]] = {}
        self._kept: list[CodeType] = []

    def forbid(self, code: CodeType) -> None:
        """Tasks have to leave this code."""
        self._kept.append(code)
        self.forbidden.add(id(code))

    def expect(self, code: CodeType) -> None:
        """Tasks are moving to this code."""
        self._kept.append(code)
        self.expected.add(id(code))

    def add_trampoline(self, code: CodeType, versions: list[CodeType]) -> None:
        """This trampoline calls one of these versions."""
        self._kept += [code, *versions]
        self.trampolines[id(code)] = frozenset(map(id, versions))

    def affected(self, frames: Iterable[FrameType], outermost: FrameType | None = None) -> FrameType | None:
        """The innermost affected frame of a stack, innermost first, up to and including `outermost`, or None."""
        above = 0
        for frame in frames:
            code = id(frame.f_code)
            if code in self.forbidden:
                return frame
            versions = self.trampolines.get(code)
            if versions is not None and above not in versions:
                return frame
            if frame is outermost:
                return None
            above = code
        return None

    def entered(self, frames: Iterable[FrameType]) -> bool:
        """There is a trampoline on this stack."""
        return any(id(frame.f_code) in self.trampolines for frame in frames)

    def innermost(self, frame: FrameType | None, outermost: FrameType | None = None) -> set[int] | None:
        """Which set the innermost version belongs to, from `frame` outwards, up to and including `outermost`."""
        while frame is not None:
            for versions in (self.forbidden, self.expected):
                if id(frame.f_code) in versions:
                    return versions
            if frame is outermost:
                return None
            frame = frame.f_back
        return None


def walk(frame: FrameType | None) -> Iterator[FrameType]:
    """The frames of a stack that stands still, innermost first: the running thread's own, or a suspended one."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def thread_stack(ident: int, top: FrameType) -> list[FrameType] | None:
    """The stack of a thread that has just shown `top`, and may run on meanwhile; None if it cannot be had.

    An ordinary frame leads on to its caller for ever. One of a generator leads on to whoever resumes it, and to nobody
    once it has yielded: walked step by step, the stack of a thread may end in the middle, or go on in another thread's.
    So where there is one, the look and the walk are one call in C, which the interpreter does not interrupt. Only
    making frame objects may (a collection starts there, and finalizers run): hence a second time, where all exist.

    The frames live on with the list. Another thread may return from one meanwhile, and then its locals die with our
    reference: the caller drops the list after it has released the switch lock, since a finalizer is foreign code.
    """
    shown = list(walk(top))
    if ident == get_ident() or not any(frame.f_code.co_flags & _RESUMED for frame in shown):
        return shown
    for _ in range(_LOOKS):
        first, second = _seen(ident), _seen(ident)
        if first == second:
            return first
    return None


#: Flags of code whose frames are resumed.
_RESUMED = GENERATOR | COROUTINE | ASYNC_GENERATOR

#: How often two looks in a row may differ. They rarely do: it takes a switch of threads between the two.
_LOOKS = 5


def _seen(ident: int) -> list[FrameType]:
    top = islice(map(itemgetter(ident), iter(sys._current_frames, None)), 1)
    steps: Iterator[Any] = accumulate(chain(top, repeat("f_back")), getattr)
    frames: list[Any] = []
    try:
        frames.extend(steps)
    except AttributeError:  # beyond the outermost is None, which has no f_back
        frames.pop()
    except KeyError:  # there is no such thread any more
        pass
    return frames


def describe(frame: FrameType) -> str:
    """A frame as people read it: "function (file:line)"."""
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno or 0})"
