"""What the trees tell of the classes behind a class, for `archive.constructors`: which method a call means, where names
mean the same, and which calls only compute.

Names of bases are followed to what the modules bind them to. A base of which no tree has the source ends the search:
what it has, nobody knows here.
"""

from __future__ import annotations

import ast

from livepatch.archive.constructors import Kin, method_of
from livepatch.build import syntax
from livepatch.build.purity import Purity
from livepatch.build.world import BARE, Source, World

_Method = tuple[ast.ClassDef, syntax.FunctionNode]


class Kinship(Kin):
    """The answers for the classes of one tree, asked by a class that stands in `source`."""

    def __init__(self, world: World, source: Source, cls: ast.ClassDef, *, new: bool) -> None:
        self._world = world
        self._cls = cls
        self._source = source
        self._new = new
        self._homes: dict[int, Source] = {}

    def method(self, cls: ast.ClassDef, name: str) -> _Method | None:
        return self._first(self._order(cls), name)

    def beyond(self, cls: ast.ClassDef, home: ast.ClassDef, name: str) -> _Method | None:
        order = self._order(cls) or []
        at = next((at for at, known in enumerate(order) if known is home), len(order))
        return self._first(order[at + 1 :], name)

    def of_base(self, home: ast.ClassDef, base: ast.expr, name: str) -> _Method | None:
        cls = self._meant(home, base)
        return self._first(self._order(cls), name) if isinstance(cls, ast.ClassDef) else None

    def means_the_same(self, home: ast.ClassDef, name: str) -> bool:
        there = self._home(home)
        if there is self._source:
            return True
        meaning = self._world.moves.meaning
        return meaning(there, name, new=self._new) == meaning(self._source, name, new=self._new)

    def computes(self, call: ast.Call) -> bool:
        purity = Purity(self._world, self._source, new=self._new)
        function = call.func
        if syntax.first_name(function) != "self":
            if syntax.last_name(function) == "next":  # takes from what others go on with
                return False
            return purity.problem([call]) is None
        own = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
        return own and purity.method_problem(self._cls, syntax.last_name(function)) is None

    def _home(self, cls: ast.ClassDef) -> Source:
        return self._homes.get(id(cls), self._source)

    def _first(self, order: list[ast.ClassDef | str] | None, name: str) -> _Method | None:
        for cls in order or ():
            if not isinstance(cls, ast.ClassDef):
                return None
            if name in syntax.members(cls):
                found = method_of(cls, name)
                return None if found is None else (cls, found)
        return None

    def _meant(self, home: ast.ClassDef, base: ast.expr) -> ast.ClassDef | str:
        """The class that a base is, or what it is called if it is not in the trees, or not for sure."""
        shown = ast.unparse(base)
        plain = base.value if isinstance(base, ast.Subscript) else base  # of a generic one
        if not isinstance(plain, ast.Name):
            return shown
        source = self._home(home)
        meaning = self._world.moves.meaning(source, plain.id, new=self._new)
        if not isinstance(meaning, str) or ":" not in meaning:
            return shown
        module, _, name = meaning.partition(":")
        tree = self._world.new if self._new else self._world.old
        path = tree.path_of(module)
        where = source if module == source.module else self._world.parsed(path, new=self._new) if path else None
        found = (
            [node for node in where.tree.body if isinstance(node, ast.ClassDef) and node.name == name] if where else []
        )
        if where is None or len(found) != 1 or len(where.classes[name]) != 1:
            return shown
        self._homes[id(found[0])] = where
        return found[0]

    def _order(self, cls: ast.ClassDef, depth: int = 12) -> list[ast.ClassDef | str] | None:
        """In which order names are looked up, as the interpreter orders the bases; None if it cannot be told."""
        bases = [base for base in cls.bases if syntax.last_name(base) not in BARE | {"object"} and not _is_bare(base)]
        parents = [self._meant(cls, base) for base in bases]
        chains: list[list[ast.ClassDef | str]] = []
        for parent in parents:
            chain = self._order(parent, depth - 1) if isinstance(parent, ast.ClassDef) and depth else [parent]
            if chain is None:
                return None
            chains.append(list(chain))
        chains.append(list(parents))
        found: list[ast.ClassDef | str] = [cls]
        while chains := [chain for chain in chains if chain]:
            heads = (chain[0] for chain in chains)
            head = next((h for h in heads if not any(h in chain[1:] for chain in chains)), None)
            if head is None:
                return None
            found.append(head)
            chains = [chain[1:] if chain[0] is head or chain[0] == head else chain for chain in chains]
        return found


def _is_bare(base: ast.expr) -> bool:
    return isinstance(base, ast.Subscript) and syntax.last_name(base.value) in BARE
