"""What the names of a module mean that imports have bound: one absolute name, however it was imported.

`typing.NamedTuple` and `NamedTuple` are one thing, if the first module has `import typing` and the second `from typing
import NamedTuple`; so are `pkg.Base` and `pkg.base.Base`, if `pkg` imports it from there. A name counts only if nothing
but imports of one and the same thing bind it. Bases are compared without what instances and callers cannot notice:
`object`, `Generic`, and the arguments of generic classes that only type checkers read.
"""

from __future__ import annotations

import ast
import builtins
import copy
import typing
from collections.abc import Set
from functools import cached_property

from livepatch.build import syntax
from livepatch.build.world import NOT_PYTHON, Source, World

_DEPTH = 8  # of imports that import
#: Modules whose generic classes do nothing with their arguments.
_STANDARD = {"typing", "collections", "collections.abc", "contextlib", "builtins", "re", "os", "queue", "asyncio"}


class Names:
    """The names of one version of a module."""

    def __init__(self, world: World, source: Source, *, new: bool) -> None:
        self._world = world
        self._source = source
        self._new = new

    @cached_property
    def _imported(self) -> dict[str, str]:
        """Name -> what it stands for, of those that only imports bind."""
        found: dict[str, set[str]] = {}
        for statement in self._source.statements(self._source.tree.body):
            node, alias = statement.node, statement.alias
            if statement.dormant:
                continue
            if alias is None:
                stored = {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)}
                for name in stored | (statement.binds() or set()):
                    found.setdefault(name, set()).add("")
            elif alias.name == "*":
                return {}  # it may bind any name
            else:
                found.setdefault(syntax.bound_name(node, alias), set()).add(self._origin(node, alias))
        for name in self._source.global_writes:
            found.setdefault(name, set()).add("")
        return {name: min(origins) for name, origins in found.items() if len(origins) == 1 and origins != {""}}

    def _origin(self, node: ast.stmt, alias: ast.alias) -> str:
        if isinstance(node, ast.ImportFrom):
            return f"{self._source.resolve(node)}.{alias.name}"
        return alias.name if alias.asname else alias.name.partition(".")[0]

    def dotted(self, node: ast.expr) -> str | None:
        """The absolute name of what `a` or `a.b.c` stands for, if imports tell."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.insert(0, node.attr)
            node = node.value
        if not isinstance(node, ast.Name):
            return None
        if node.id in self._imported:
            return self._followed(".".join([self._imported[node.id], *parts]), _DEPTH)
        plain = not parts and hasattr(builtins, node.id) and node.id not in self._source.bound
        return f"builtins.{node.id}" if plain else None

    def _followed(self, name: str, depth: int) -> str:
        """The same for what another module of the tree has imported itself."""
        parts = name.split(".")
        for at in range(len(parts) - 1, 0, -1):
            path = (self._world.new if self._new else self._world.old).path_of(".".join(parts[:at]))
            if path is None:
                continue
            try:
                other = Names(self._world, self._world.source(path, new=self._new), new=self._new)
                origin = other._imported.get(parts[at])
            except NOT_PYTHON:
                return name
            return other._followed(".".join([origin, *parts[at + 1 :]]), depth - 1) if origin and depth else name
        return name

    def shape(self, node: ast.AST, local: Set[str] = frozenset()) -> object:
        """What a piece of source does, comparable with `==` between versions that import differently.

        `local` are names of the class around it.
        """
        return syntax.shape(self._spelled(node, local))

    def _spelled(self, node: ast.AST, around: Set[str] = frozenset()) -> ast.AST:
        inside = list(ast.walk(node))
        local = {n.id for n in inside if isinstance(n, ast.Name) and not isinstance(n.ctx, ast.Load)} | around
        local |= {n.arg for n in inside if isinstance(n, ast.arg)}
        spelled: ast.AST = _Speller(self, local).visit(copy.deepcopy(node))
        return spelled

    def annotation(self, node: ast.expr) -> str:
        """The same for an annotation, which `shape` does not see."""
        return ast.dump(self._spelled(node))

    def decorators(self, node: syntax.DefinitionNode) -> tuple[object, ...]:
        """What decorates a definition; decorators for type checkers do not count."""
        shown = [d for d in node.decorator_list if syntax.last_name(d) not in syntax.TYPING_DECORATORS]
        return tuple(map(self.shape, shown))

    def bases(self, cls: ast.ClassDef) -> list[object]:
        """The classes that a live class of these bases inherits from, as far as anybody but type checkers notices."""
        found: list[object] = []
        unseen = ["builtins.object", *(["typing.Generic"] if self.is_plain(self._source, cls) else [])]
        for base in cls.bases:
            name = self._class(base)
            if name not in unseen:
                found.append(name if name is not None and name != "typing.Generic" else self.shape(base))
        return found

    def is_class(self, base: ast.expr) -> bool:
        """Whether a base is a class, with arguments for type checkers perhaps, and not what something computes."""
        return isinstance(base, ast.Name | ast.Attribute) or self._class(base) is not None

    def _class(self, base: ast.expr) -> str | None:
        """The absolute name of the class that a base stands for, if that is all that it stands for."""
        plain = base.value if isinstance(base, ast.Subscript) else base
        name = self.dotted(plain)
        if name is None and isinstance(plain, ast.Name):
            name = f"{self._source.module}.{plain.id}"  # it is defined here
        if name is None or (plain is not base and not self._ignores_arguments(name, plain)):
            return None
        module, _, last = name.rpartition(".")
        origin = getattr(getattr(typing, last, None), "__origin__", None) if module == "typing" else None
        return f"{origin.__module__}.{origin.__qualname__}" if isinstance(origin, type) else name

    def _ignores_arguments(self, name: str, plain: ast.expr) -> bool:
        """Whether a generic class does nothing with what stands in brackets after it."""
        if name.rpartition(".")[0] in _STANDARD:
            return True
        found = self._world.named(self._source, syntax.last_name(plain), new=self._new)
        return bool(found) and all(self.is_plain(source, cls) for source, cls in found)

    def is_plain(self, source: Source, cls: ast.ClassDef) -> bool:
        """Whether nothing that a class is made of does anything with type parameters, as far as that is in the tree."""
        return all(
            "__class_getitem__" not in syntax.members(parent)
            and all(syntax.last_name(keyword.value) == "ABCMeta" for keyword in parent.keywords)
            and all(self._is_known(base, where) for base in parent.bases)
            for where, parent in self._world.family(source, cls, metaclasses=False, new=self._new)
        )

    def _is_known(self, base: ast.expr, source: Source) -> bool:
        plain = base.value if isinstance(base, ast.Subscript) else base
        name = Names(self._world, source, new=self._new).dotted(plain)
        standard = name is not None and name.rpartition(".")[0] in (*_STANDARD, "abc", "enum")
        return standard or any(self._world.named(source, syntax.last_name(plain), new=self._new))

    def parameters(self, cls: ast.ClassDef) -> int | None:
        """How many names stand in the brackets of its bases: so many arguments it may take. None without brackets."""
        inside = [base.slice for base in cls.bases if isinstance(base, ast.Subscript)]
        names = {n.id for part in inside for n in ast.walk(part) if isinstance(n, ast.Name)}
        return len(names) if inside else None


class _Speller(ast.NodeTransformer):
    def __init__(self, names: Names, local: set[str]) -> None:
        self._names = names
        self._local = local

    def _spell(self, node: ast.expr) -> ast.AST:
        name = None if syntax.first_name(node) in self._local else self._names.dotted(node)
        return self.generic_visit(node) if name is None else ast.copy_location(ast.Name(name, ast.Load()), node)

    def visit_Name(self, node: ast.Name) -> ast.AST:
        return self._spell(node) if isinstance(node.ctx, ast.Load) else node

    def visit_Attribute(self, node: ast.Attribute) -> ast.AST:
        return self._spell(node) if isinstance(node.ctx, ast.Load) else self.generic_visit(node)
