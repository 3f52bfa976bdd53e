"""Where a difference is in the old and in the new source: the lines that a report shows side by side.

A change has a name and one line. What it is about is the definition or statement of that name, or the one that the
line is in, on either side; of a class that both versions have, its head alone, since what is in it is said apart.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import SequenceMatcher
from importlib.util import decode_source

from livepatch.archive.pieces import first_line
from livepatch.build import syntax
from livepatch.build.report import Change
from livepatch.build.sources import Tree
from livepatch.build.world import NOT_PYTHON, Source

#: The first and the last line of something, from 1.
Span = tuple[int, int]


@dataclass(frozen=True)
class _Piece:
    """A definition or statement: its names and lines, and the last line that is not in the body of a class."""

    names: frozenset[str]
    first: int
    last: int
    head: int
    defines: bool

    def has(self, line: int) -> bool:
        return self.first <= line <= self.head


class _Text:
    """One version of a file: its lines, and its pieces if this Python can read it."""

    def __init__(self, path: str, content: bytes) -> None:
        self.lines = _lines(content)
        try:
            self.pieces = list(_pieces(Source(path, content).tree, ""))
        except NOT_PYTHON:
            self.pieces = []

    def named(self, name: str) -> list[_Piece]:
        return [piece for piece in self.pieces if name in piece.names]

    def around(self, line: int) -> _Piece | None:
        """The smallest piece that a line is in."""
        found = [piece for piece in self.pieces if piece.has(line)]
        return min(found, key=lambda piece: piece.last - piece.first, default=None)


class Sides:
    """The two versions of all files, by line."""

    def __init__(self, old: Tree, new: Tree) -> None:
        self._trees = old.python, new.python
        self._texts: dict[tuple[str, bool], _Text] = {}
        self._blocks: dict[str, list[tuple[str, int, int, int, int]]] = {}

    def lines(self, path: str, span: Span | None, *, new: bool) -> list[str]:
        """These lines of a file, none if there are none."""
        return [] if span is None else self._text(path, new).lines[span[0] - 1 : span[1]]

    def of(self, change: Change) -> tuple[Span | None, Span | None]:
        """The old and the new lines that a change is about, None for a side that has none."""
        piece = self._piece(change)
        if piece is not None:
            before = self._before(change.file, piece)
            return before, (piece.first, piece.last if before is None else piece.head)
        old = self._text(change.file, False)
        named = old.named(change.name)
        gone = next((p for p in named if p.has(change.line)), None) or next(iter(named), None)
        gone = gone or (old.around(change.line) if self._is_old(change) else None)
        return (gone.first, gone.last) if gone is not None else None, None

    def definition(self, path: str, name: str, *, new: bool) -> Span | None:
        """The lines of a function or class by its name in the module, if it has one of that name."""
        found = [piece for piece in self._text(path, new).named(name) if piece.defines]
        return (found[0].first, found[0].last) if found else None

    def around(self, path: str, line: int, *, new: bool) -> str:
        """The name of the function or class that a line is in, or nothing."""
        piece = self._text(path, new).around(line)
        return min(piece.names) if piece is not None and piece.defines else ""

    def _piece(self, change: Change) -> _Piece | None:
        """What a change is about in the new source, unless that lacks it."""
        new = self._text(change.file, True)
        named = new.named(change.name)
        if self._is_old(change) or (not named and self._text(change.file, False).named(change.name)):
            return None
        exact = next((piece for piece in named if piece.has(change.line)), None)
        return exact or new.around(change.line) or next(iter(named), None)

    def _before(self, path: str, piece: _Piece) -> Span | None:
        """The old lines of what is a piece of the new source."""
        old, new = self._text(path, False), self._text(path, True)
        for name in sorted(piece.names):
            mates, found = new.named(name), old.named(name)
            if found:
                mate = found[min(mates.index(piece), len(found) - 1)]
                return mate.first, mate.head
        return None if piece.names else self._across(path, piece.first, piece.last)

    def _across(self, path: str, first: int, last: int) -> Span | None:
        """The old lines in the place of some of the new."""
        lines: list[int] = []
        for tag, i1, i2, j1, j2 in self._differences(path):
            start, stop = max(first - 1, j1), min(last, j2)
            if start < stop:
                lines += range(start - j1 + i1, stop - j1 + i1) if tag == "equal" else range(i1, i2)
        return (lines[0] + 1, lines[-1] + 1) if lines else None

    def _is_old(self, change: Change) -> bool:
        """Whether a line that no name belongs to is one of the old source: that changed there, and the new did not."""
        if change.name or not change.line:
            return False
        if self._text(change.file, True).around(change.line) is None:
            return True
        blocks = [block for block in self._differences(change.file) if block[0] != "equal"]
        in_new = any(j1 < change.line <= j2 for _, _, _, j1, j2 in blocks)
        return not in_new and any(i1 < change.line <= i2 for _, i1, i2, _, _ in blocks)

    def _differences(self, path: str) -> list[tuple[str, int, int, int, int]]:
        if path not in self._blocks:
            self._blocks[path] = opcodes(self._text(path, False).lines, self._text(path, True).lines)
        return self._blocks[path]

    def _text(self, path: str, new: bool) -> _Text:
        if (path, new) not in self._texts:
            self._texts[path, new] = _Text(path, self._trees[new].get(path, b""))
        return self._texts[path, new]


def opcodes(old: list[str], new: list[str]) -> list[tuple[str, int, int, int, int]]:
    """How lines become others, as `difflib` says it; what both begin and end with is not searched for."""
    size = min(len(old), len(new))
    head = next((i for i in range(size) if old[i] != new[i]), size)
    tail = next((i for i in range(size - head) if old[-1 - i] != new[-1 - i]), size - head)
    middle = SequenceMatcher(None, old[head : len(old) - tail], new[head : len(new) - tail]).get_opcodes()
    found: list[tuple[str, int, int, int, int]]
    found = [(tag, i1 + head, i2 + head, j1 + head, j2 + head) for tag, i1, i2, j1, j2 in middle]
    if head:
        found.insert(0, ("equal", 0, head, 0, head))
    if tail:
        found.append(("equal", len(old) - tail, len(old), len(new) - tail, len(new)))
    return found


def _lines(content: bytes) -> list[str]:
    try:
        text = decode_source(content)
    except (SyntaxError, ValueError, LookupError):
        text = content.decode(errors="replace")
    return text.removesuffix("\n").split("\n")  # not splitlines(): Python ends no line at a form feed


def _pieces(node: ast.AST, scope: str, inside: bool = False) -> Iterator[_Piece]:
    """What is defined or stated below a node, with qualified names; statements only outside of functions."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, syntax.DefinitionNode):
            first, last = first_line(child), child.end_lineno or child.lineno
            is_class = isinstance(child, ast.ClassDef)
            head = max(child.lineno, first_line(child.body[0]) - 1) if is_class else last
            yield _Piece(frozenset({scope + child.name}), first, last, head, True)
            yield from _pieces(child, f"{scope}{child.name}{'.' if is_class else '.<locals>.'}", not is_class)
        elif isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):
            if isinstance(child, ast.stmt) and not inside:
                last = child.end_lineno or child.lineno
                yield _Piece(frozenset(scope + name for name in _binds(child)), child.lineno, last, last, False)
            yield from _pieces(child, scope, inside)


def _binds(node: ast.stmt) -> set[str]:
    """The names that a plain statement binds; those in a compound one belong to what is in it."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {syntax.bound_name(node, alias) for alias in node.names}
    if hasattr(node, "body") or isinstance(node, ast.Match):
        return set()
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
