"""Two versions of a module's or class's statements, paired.

Statements that do the same pair off wherever they stand: moving one is no change, except that the order of
several that bind the same name counts. Functions and classes pair by name; among several of one name
(property accessors, `if`/`else` variants, registrations called `_`) the most alike pair first.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from types import UnionType

from livepatch.build import syntax
from livepatch.build.syntax import Statement

Pair = tuple[Statement, Statement]

#: How much alike two definitions of one name must be to pair, from the most to the least.
_LIKENESS: tuple[Callable[[Statement], object], ...] = (
    lambda s: (s.under, _decorated(s), syntax.shape(s.node)),
    lambda s: (s.under, _decorated(s)),
    lambda s: (_decorated(s), syntax.shape(s.node)),
    lambda s: _decorated(s),
    lambda s: None,
)


def _decorated(statement: Statement) -> object:
    assert isinstance(statement.node, syntax.DefinitionNode)
    return syntax.decorators(statement.node)


@dataclass(frozen=True)
class Scope:
    """Two versions of a body. `prefix` is what qualifies its names: empty for a module, `C.` for a class."""

    prefix: str
    old: list[Statement]
    new: list[Statement]

    @classmethod
    def of(cls, prefix: str, old: Iterable[ast.stmt], new: Iterable[ast.stmt]) -> Scope:
        return cls(prefix, list(syntax.flatten(old)), list(syntax.flatten(new)))

    @cached_property
    def old_binders(self) -> dict[str, list[Statement]]:
        """Name -> the statements of the old version that bind it when it runs."""
        return _binders(self.old)

    @cached_property
    def new_binders(self) -> dict[str, list[Statement]]:
        return _binders(self.new)

    @cached_property
    def old_sets(self) -> set[str]:
        """The names that other statements of the old version bind, or whose values they change."""
        return _sets(self.old)

    @cached_property
    def new_sets(self) -> set[str]:
        return _sets(self.new)

    def dormant(self) -> Statement | None:
        """A statement from the blocks that no import runs, if these differ."""
        return _difference(*([s for s in version if s.dormant] for version in (self.old, self.new)))

    def overloads(self) -> Statement | None:
        """A statement among the overloads, if these differ."""
        return _difference(*([s for s in version if _is_overload(s.node)] for version in (self.old, self.new)))

    def definitions(self, kind: UnionType | type) -> tuple[list[Pair], list[Statement], list[Statement]]:
        """(pairs, gone, fresh) of the functions or classes."""
        groups: dict[str, tuple[list[Statement], list[Statement]]] = {}
        for side, version in enumerate((self.old, self.new)):
            for statement in version:
                node = statement.node
                if isinstance(node, kind) and not statement.dormant and not _is_overload(node):
                    assert isinstance(node, syntax.DefinitionNode)
                    groups.setdefault(node.name, ([], []))[side].append(statement)
        pairs: list[Pair] = []
        gone: list[Statement] = []
        fresh: list[Statement] = []
        for old, new in groups.values():
            for likeness in _LIKENESS if max(len(old), len(new)) > 1 else _LIKENESS[-1:]:
                old, new = _pair_off(old, new, likeness, pairs)
            gone += old
            fresh += new
        return pairs, gone, fresh

    def plain(self, key: Callable[[Statement], object]) -> tuple[list[Statement], list[Statement]]:
        """(gone, fresh) of the other statements, told apart by `key`."""
        old, new = (
            [s for s in version if not s.dormant and not isinstance(s.node, syntax.DefinitionNode)]
            for version in (self.old, self.new)
        )
        pairs: list[Pair] = []
        return _pair_off(old, new, key, pairs)

    def merged(self, pair: Pair) -> list[Statement]:
        """The variants of a function below an `if` and its `else` whose place a single one without the `if` takes."""
        name = getattr(pair[1].node, "name", "")
        variants, new = self.old_binders.get(name, []), self.new_binders.get(name, [])
        if len(variants) != 2 or len(new) != 1 or not all(isinstance(s.node, syntax.FunctionNode) for s in variants):
            return []
        around, (first, second) = pair[1].under, (variant.under for variant in variants)
        test = first[-1] if first else ""
        whole = first == (*around, test) and second == (*around, f"orelse of {test}") and test.startswith("if ")
        return variants if whole else []

    def reordered(self) -> list[Statement]:
        """Statements of the new version that bind a name again, in another order than before."""
        found = []
        for name, new in self.new_binders.items():
            old = self.old_binders.get(name, [])
            if len(new) == 1 or len(new) != len(old):
                continue
            keys = [s.key for s in old], [s.key for s in new]
            if keys[0] != keys[1] and Counter(map(repr, keys[0])) == Counter(map(repr, keys[1])):
                found.append(new[-1])
        return found


def _sets(statements: list[Statement]) -> set[str]:
    known = [s.sets for s in statements if not s.dormant and s.alias is None]
    return {name for part in known if part is not None for name in part[0]}


def _is_overload(node: ast.AST) -> bool:
    return isinstance(node, syntax.FunctionNode) and syntax.is_overload(node)


def _difference(old: list[Statement], new: list[Statement]) -> Statement | None:
    """A statement that only one version has, to the letter; None if there is none."""
    gone, fresh = _pair_off(old, new, lambda statement: ast.dump(statement.identity), [])
    return next(iter([*fresh, *gone]), None)


def _binders(statements: list[Statement]) -> dict[str, list[Statement]]:
    found: dict[str, list[Statement]] = {}
    for statement in statements:
        if not statement.dormant and not _is_overload(statement.node):
            for name in statement.binds() or ():
                found.setdefault(name, []).append(statement)
    return found


def _pair_off(
    old: list[Statement], new: list[Statement], key: Callable[[Statement], object], pairs: list[Pair]
) -> tuple[list[Statement], list[Statement]]:
    """Move statements with equal keys to `pairs`, in order; return what is left of both versions."""
    waiting: dict[object, list[Statement]] = {}
    for statement in old:
        waiting.setdefault(key(statement), []).append(statement)
    left = []
    for statement in new:
        partners = waiting.get(key(statement))
        if partners:
            pairs.append((partners.pop(0), statement))
        else:
            left.append(statement)
    unpaired = {id(statement) for partners in waiting.values() for statement in partners}
    return [statement for statement in old if id(statement) in unpaired], left
