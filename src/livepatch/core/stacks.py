"""Does a stack hold code that its task must leave before it may move?

Frames are compared by the identity of their code objects (code objects compare by value, and two versions of
a function may well be equal). Two kinds of frame count as affected:

* a frame of forbidden code, the version that the task is to leave;
* a frame of a trampoline, unless the frame directly above it (the one it called) is a version of that function:
  between choosing a version and calling it the choice stands, although no version is on the stack yet. Signal
  handlers and finalizers can run in just that gap.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FrameType


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

    def affected(
        self, frame: FrameType | None, kept: list[FrameType], outermost: FrameType | None = None
    ) -> FrameType | None:
        """The innermost affected frame from `frame` outwards, up to and including `outermost`, or None.

        Every frame looked at is put into `kept`. Another thread may return from it meanwhile, and then its locals
        die with our reference: the caller drops `kept` after it has released the switch lock, since a finalizer
        is foreign code.
        """
        above = 0
        while frame is not None:
            kept.append(frame)
            code = id(frame.f_code)
            if code in self.forbidden:
                return frame
            versions = self.trampolines.get(code)
            if versions is not None and above not in versions:
                return frame
            if frame is outermost:
                return None
            above = code
            frame = frame.f_back
        return None

    def entered(self, frame: FrameType | None) -> bool:
        """There is a trampoline from `frame` outwards."""
        while frame is not None:
            if id(frame.f_code) in self.trampolines:
                return True
            frame = frame.f_back
        return False

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
    """The frames of a stack, innermost first."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def describe(frame: FrameType) -> str:
    """A frame as people read it: "function (file:line)"."""
    return f"{frame.f_code.co_qualname} ({frame.f_code.co_filename}:{frame.f_lineno or 0})"
