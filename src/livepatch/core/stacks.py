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
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate, chain, repeat, takewhile, tee
from operator import itemgetter, methodcaller
from types import CodeType, FrameType
from typing import Any

from .instant import at_once, once
from .originals import get_ident

#: The frames of a stack, innermost first.
Stack = list[FrameType]

#: Gives the innermost frame of a stack.
Look = Callable[[], "FrameType | None"]


class Footprint:
    """The code objects that matter to a transition in its present direction.

    `forbidden` is what tasks must leave, `expected` what they move to, to reach `state`; `trampolines` says for each
    trampoline which code it calls. The code objects themselves are kept, so that no id can be used again.
    """

    __slots__ = ("_kept", "expected", "forbidden", "state", "trampolines")

    def __init__(self) -> None:
        self.state = 1
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

    def affected(self, frames: Sequence[FrameType], outermost: FrameType | None = None) -> FrameType | None:
        """The innermost affected frame of a stack, up to and including `outermost`, or None."""
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

    def world(self, frame: FrameType | None, outermost: FrameType | None = None) -> int | None:
        """The state of the innermost version from `frame` outwards, up to and including `outermost`."""
        while frame is not None:
            if id(frame.f_code) in self.forbidden:
                return 1 - self.state
            if id(frame.f_code) in self.expected:
                return self.state
            if frame is outermost:
                return None
            frame = frame.f_back
        return None


def stack(top: FrameType | None) -> Stack:
    """The frames from `top` outwards. Of the running thread's own frames, since nothing else stands still."""
    frames: list[Any] = []
    try:
        frames.extend(accumulate(chain((top,), repeat("f_back")), getattr))  # type: ignore[arg-type]
    except AttributeError:  # beyond the outermost is None, which has no f_back
        frames.pop()
    return frames


def stack_of(look: Look, unless: Look | None = None) -> Stack | None:
    """The stack whose innermost frame `look` gives, of somebody who runs on meanwhile.

    A frame of a generator leads on to whoever resumes it, and to nobody once it has yielded: walked step by step, the
    stack of a thread may end in the middle, or go on in another thread's. So the look and the walk are one call in C,
    which the interpreter does not interrupt. `look` has to be C, too.

    `unless` is asked at the same instant: where it gives a frame, the stack cannot be had (None).
    """
    walk = takewhile(bool, accumulate(chain(once(look), repeat("f_back")), getattr))
    if unless is None:
        return at_once(walk)
    hindrance, *frames = at_once(chain(once(unless), walk))
    return None if hindrance else frames


def thread_stack(ident: int, unless: Look | None = None) -> Stack | None:
    """The stack that a thread shows; see `stack_of`. Empty if there is no such thread."""
    if ident == get_ident():
        return own_stack() if unless is None or unless() is None else None
    return stack_of(map(methodcaller("get", ident), iter(sys._current_frames, None)).__next__, unless)


def thread_stacks() -> dict[int, Stack]:
    """What all threads show, in one look instead of one for each."""
    idents, tops = tee(chain.from_iterable(map(methodcaller("items"), once(sys._current_frames))))
    steps = map(chain, map(itemgetter(slice(1, 2)), tops), repeat(repeat("f_back")))
    walks = map(takewhile, repeat(bool), map(accumulate, steps, repeat(getattr)))
    seen = at_once(zip(map(itemgetter(0), idents), map(list, walks), strict=False))
    found = dict(seen)
    # Our own frames are in there. They may not keep themselves, or only a collection frees what all threads have in
    # theirs; `tee` has what it gave, too.
    seen.clear()
    del idents, tops, steps, walks
    found[get_ident()] = own_stack()
    return found


def own_stack() -> Stack:
    """The stack of the running thread from where it has called livepatch.

    Without our own frames, one of which will hold this list: such a circle would keep all that is in it, other people's
    locals, until a collection comes.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith(_HERE):
        frame = frame.f_back
    return stack(frame)


#: How the file names of livepatch's own code begin.
_HERE = __file__.removesuffix("core/stacks.py").removesuffix("core/stacks.pyc")


def describe(frame: FrameType) -> str:
    """A frame as people read it: "function (file:line)"."""
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno or 0})"
