"""Which of several definitions of a name is the live one: that is for the live process to say.

A release may move a function below another condition, or define it twice, once for each version of Python. Nothing has
to be done where the definition that its conditions choose here corresponds to the one that was chosen before: that is
compared and exchanged like any other. Where it does not, a name would have to come or go, and the patch is refused.

The conditions are evaluated as they stand in both sources, with nothing but a mark in the place of each definition.
"""

from __future__ import annotations

import ast
from contextlib import nullcontext
from types import ModuleType

from livepatch.archive.constants import Constants
from livepatch.archive.format import BranchEntry, ObjectEntry, refusal
from livepatch.archive.pieces import NewSource, Piece, Values, cut, live_class, mangled, run


class Branches:
    """The conditional definitions of one module."""

    def __init__(self, entry: ObjectEntry, old: NewSource, new: NewSource) -> None:
        self._module = entry.module
        self._entries = entry.branches
        self._old = old
        self._new = new

    def verify(self, module: ModuleType, *, dry: bool = False, constants: Constants | None = None) -> None:
        """Raise LivepatchError (EINVAL) if another definition is meant here than before. If `dry`, nothing is
        imported to find that out. Where it depends on values that the patch changes, it shows when
        these have been evaluated, and not before."""
        for entry in self._entries:
            if entry.valued is not (constants is not None) or (dry and (entry.old_around or entry.around)):
                continue
            try:
                was = self._chosen(self._old, entry, entry.old_lines, entry.old_around, module, {})
                with nullcontext(Values()) if constants is None else constants.seen() as values:
                    now = self._chosen(self._new, entry, entry.lines, entry.around, module, values)
            except Exception as error:  # importing runs foreign code
                sentence = f"Which '{entry.name}' in '{self._module}' is meant cannot be found out: {error!r}."
                raise refusal(sentence) from error
            path, _, name = entry.name.rpartition(".")
            place = live_class(module, path) if path else module
            if place is not None and ((mangled(path, name) if path else name) in vars(place)) is not bool(was):
                sentence = (
                    f"The conditions under which '{entry.name}' in '{self._module}' is defined are others by now."
                )
                raise refusal(sentence)
            pairs = [pair for pair in zip(entry.old_lines, entry.lines, strict=True) if all(pair)]
            if (was, now) not in [*pairs, (0, 0)]:
                raise refusal(
                    f"Another definition of '{entry.name}' in '{self._module}' is chosen by the conditions of the new "
                    "version here, which a live module cannot follow: restart the process for this.",
                )

    def _chosen(
        self,
        source: NewSource,
        entry: BranchEntry,
        lines: tuple[int, ...],
        around: tuple[int, ...],
        module: ModuleType,
        values: Values,
    ) -> int:
        """The line of the definition that is chosen, 0 if none is."""
        path, _, name = entry.name.rpartition(".")
        wanted = {*lines, *around} - {0}
        mark = _Mark(name)
        pieces = [
            Piece(marked, piece.classes, piece.conditional)
            for piece in cut(source.tree.body, lambda node: isinstance(node, ast.stmt) and node.lineno in wanted)
            if piece.path == path and isinstance(marked := mark.visit(piece.statement), ast.stmt)
        ]
        made = run(source, pieces, module, values) if pieces else {}
        chosen = made.get(mangled(path, name) if path else name, 0)
        return chosen if isinstance(chosen, int) else 0


class _Mark(ast.NodeTransformer):
    """Puts its line in the place of each definition of a name."""

    def __init__(self, name: str) -> None:
        self._name = name

    def visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            assert node.name == self._name
            mark = ast.Assign([ast.Name(node.name, ast.Store())], ast.Constant(node.lineno))
            return ast.fix_missing_locations(ast.copy_location(mark, node))
        return self.generic_visit(node) if isinstance(node, ast.If | ast.Try | ast.ExceptHandler) else node
