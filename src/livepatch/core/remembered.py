"""Code objects that somebody may still run although they are out of use."""

from __future__ import annotations

import weakref
from functools import partial
from types import CodeType


class Remembered:
    """Code objects that somebody may still run, by weak reference, each with the original that it belongs to.

    A code object may die at any instant, in any thread, also in the garbage collection that a list of the entries
    starts: whoever goes through them goes through a copy, which is made without making other objects. What is called
    then is C, since an exception that a signal handler raises there would be lost.
    """

    def __init__(self) -> None:
        self._entries: dict[int, tuple[int, CodeType, weakref.ref[CodeType]]] = {}

    def __len__(self) -> int:
        return len(self._entries)

    def add(self, code: CodeType, original: CodeType, note: CodeType | None = None) -> None:
        key = id(code)
        self._entries[key] = id(original), note or original, weakref.ref(code, partial(self._entries.pop, key))

    def all(self) -> dict[int, CodeType]:
        """The notes of all, by the id of the code."""
        return {key: note for key, (_, note, reference) in self._entries.copy().items() if reference() is not None}

    def of(self, original: CodeType) -> list[tuple[CodeType, CodeType]]:
        """(code, note) of those of an original that are alive. The note is another code, or the original."""
        mine = [entry for entry in self._entries.copy().values() if entry[0] == id(original)]
        return [(code, note) for _, note, reference in mine if (code := reference()) is not None]
