"""Constants that change when the transition is over.

Nobody's code computes with them (a version, a type alias), so it does not matter at which instant they
change; but whoever looks at them should see the new value as long as the patch is in force, and the old one
afterwards.
"""

from __future__ import annotations

import ast
import errno
import sys
from types import ModuleType
from typing import Any

from livepatch.archive.format import ConstantEntry, ObjectEntry
from livepatch.archive.pieces import NewSource, Piece, cut, run
from livepatch.core.model import LivepatchError

_ABSENT = object()


class Constants:
    """The constants of one module: evaluated, set, and set back."""

    def __init__(self, entry: ObjectEntry, source: NewSource) -> None:
        self._source = source
        self._entries = entry.at_completion
        self._values: dict[str, Any] = {}
        self._seen: dict[str, Any] = {}  # what was there then
        self._followers: list[ConstantEntry] = []
        self._replaced: list[tuple[ModuleType, str, Any, Any]] = []
        self._originals: dict[str, Any] = {}  # of those that a patch before this one had set
        for constant in entry.at_completion:
            if not constant.origin and self._piece(constant) is None:
                sentence = f"The archive sets '{constant.name}' in '{entry.module}', but its source does not."
                raise LivepatchError(errno.EINVAL, sentence)

    def _piece(self, constant: ConstantEntry) -> Piece | None:
        def wanted(node: ast.AST) -> bool:
            if not isinstance(node, ast.Assign | ast.AnnAssign) or node.lineno != constant.line:
                return False
            return any(isinstance(inner, ast.Name) and inner.id == constant.name for inner in ast.walk(node))

        return next(cut(self._source.tree.body, wanted), None)

    def evaluate(self, module: ModuleType) -> None:
        """Compute the new values. Raises what that raises."""
        self._values = {}
        self._followers = []
        self._replaced = []
        self._originals = {}
        self._seen = {constant.name: vars(module).get(constant.name, _ABSENT) for constant in self._entries}
        for constant in self._entries:
            if constant.origin:
                have = vars(module).get(constant.name, _ABSENT)
                if have is not _ABSENT and have is _value(constant.origin):
                    self._followers.append(constant)
            elif constant.name not in self._values and (piece := self._piece(constant)) is not None:
                self._values |= run(self._source, piece, module)

    def set(self, module: ModuleType) -> None:
        """Set the new values; those that follow another module take what that has now.

        What somebody has put in the place of an old one meanwhile (a mock, say) stays.
        """
        if self._replaced:
            return  # a disabling was reversed
        values = self._values | {constant.name: _value(constant.origin) for constant in self._followers}
        for constant in self._entries:
            value = values.get(constant.name, _ABSENT)
            old = vars(module).get(constant.name, _ABSENT)
            if value is not _ABSENT and old is not _ABSENT and old is self._seen.get(constant.name):
                vars(module)[constant.name] = value
                self._replaced.append((module, constant.name, self._originals.get(constant.name, old), value))

    def take_over(self, other: Constants) -> None:
        """The patch of `other` has been replaced: go on from what was there before it."""
        names = {constant.name for constant in self._entries}
        self._originals = {name: old for _, name, old, _ in other._replaced if name in names}
        other._replaced = [entry for entry in other._replaced if entry[1] not in names]
        other.set_back()

    def set_back(self) -> None:
        """Set the old values again, unless somebody has put something else in their place."""
        while self._replaced:
            module, name, old, value = self._replaced.pop()
            if vars(module).get(name) is value:
                vars(module)[name] = old


def _value(path: str) -> Any:
    """What the name `module:name` means in this process now."""
    module, _, name = path.partition(":")
    return vars(sys.modules[module]).get(name, _ABSENT) if module in sys.modules else _ABSENT
