"""What has moved from one module to another: the class, function or value stays the object that it is.

Live instances, `except` clauses and registries know a class as an object. If the new module made one of its own, there
would be two, and none would be the other. So what is gone in one module and new in another, and is the same to the
letter, is adopted: in the new place, the name means the old object. Its code goes on to look up names in the module
where it was, so each name that it reads must mean the same in both; whatever else has moved along counts as the same.

A class that changed on its way cannot be adopted and is refused. A function is made anew then.
"""

from __future__ import annotations
import __future__

import ast
import dis
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType
from typing import TYPE_CHECKING

from livepatch.build import syntax
from livepatch.build.syntax import Statement

if TYPE_CHECKING:
    from livepatch.build.world import Source, World


#: The instructions that look up a name in the namespace of a module.
_READING = {"LOAD_NAME", "LOAD_GLOBAL", "LOAD_FROM_DICT_OR_GLOBALS"}


@dataclass
class Moves:
    """What has moved, as `module:name` by the new module and the name; and classes that have and cannot be adopted."""

    world: World
    adopted: dict[tuple[str, str], str] = field(default_factory=dict)
    torn: dict[tuple[str, str], str] = field(default_factory=dict)

    def find(self) -> None:
        pairs = dict(self._pairs())
        for key, (origin, old, new) in pairs.items():
            if syntax.shape(old.node) == syntax.shape(new.node):
                self.adopted[key] = f"{origin.module}:{key[1]}"
        while unfit := [key for key in self.adopted if not self._fits(key, *pairs[key])]:
            for key in unfit:
                del self.adopted[key]
        for key, (origin, _, new) in pairs.items():
            value = not isinstance(new.node, syntax.DefinitionNode)
            if value and key in self.adopted and not self._is_meant(key, origin, pairs):
                del self.adopted[key]
            elif isinstance(new.node, ast.ClassDef) and key not in self.adopted:
                self.torn[key] = origin.module

    def has_left(self, module: str, name: str) -> bool:
        return f"{module}:{name}" in self.adopted.values()

    def stays(self, old: Source, new: Source, name: str) -> bool:
        """Whether a name of a module means the same object in both versions."""
        return self.meaning(old, name, new=False) == self.meaning(new, name, new=True)

    def meaning(self, source: Source, name: str, *, new: bool, seen: frozenset[object] = frozenset()) -> object:
        """Where what a name of a module stands for was made, comparable with `==`: `module:name`, mostly."""
        here = f"{source.module}:{name}"
        if new and (source.module, name) in self.adopted:
            return self.adopted[source.module, name]
        if here in seen:
            return here
        binders = binders_of(source, name)
        if not binders:
            for statement in _stars(source):
                names = self.world.star_names(source.origin(statement), new=new)
                if names is None:
                    return source, name
                if name in names:
                    return self._imported(source, statement, name, new, seen | {here})
            return "builtins", name
        imports = [(statement, statement.alias) for statement in binders if statement.alias is not None]
        if len(imports) == len(binders):
            found = [(s.under, self._imported(source, s, alias.name, new, seen | {here})) for s, alias in imports]
            return found[0][1] if len(found) == 1 and not found[0][0] else tuple(found)
        value = getattr(binders[0].node, "value", None)
        if len(binders) == 1 and isinstance(value, ast.expr) and not binders[0].under and _is_alike_anywhere(value):
            return syntax.shape(value)
        return here

    def _imported(self, source: Source, statement: Statement, name: str, new: bool, seen: frozenset[object]) -> object:
        if not isinstance(statement.node, ast.ImportFrom):
            return "module", name
        origin, tree = source.origin(statement), self.world.new if new else self.world.old
        path = tree.path_of(origin)
        if tree.path_of(f"{origin}.{name}") is not None:
            return "module", f"{origin}.{name}"
        where = self.world.parsed(path, new=new) if path is not None else None
        if where is None:
            return f"{origin}:{name}"
        return self.meaning(where, name, new=new, seen=seen)

    def _pairs(self) -> Iterator[tuple[tuple[str, str], tuple[Source, Statement, Statement]]]:
        gone: dict[str, list[tuple[Source, Statement]]] = {}
        fresh: dict[str, list[tuple[Source, Statement]]] = {}
        trees = self.world.old.python, self.world.new.python
        for path in sorted(trees[0].keys() | trees[1].keys()):
            if trees[0].get(path) == trees[1].get(path):
                continue
            old, new = (self.world.parsed(path, new=new) for new in (False, True))
            before, after = _own(old), _own(new)
            for name in before.keys() - after.keys():
                if len(before[name]) == 1 and old is not None:
                    gone.setdefault(name, []).append((old, before[name][0]))
            for name in after.keys() - before.keys():
                if len(after[name]) == 1 and new is not None:
                    fresh.setdefault(name, []).append((new, after[name][0]))
        for name in sorted(gone.keys() & fresh.keys()):
            if len(gone[name]) == len(fresh[name]) == 1:
                (origin, old_statement), (target, new_statement) = gone[name][0], fresh[name][0]
                kinds = _kind(old_statement), _kind(new_statement)
                if kinds[0] == kinds[1] and not old_statement.under and not new_statement.under:
                    yield (target.module, name), (origin, old_statement, new_statement)

    def _fits(self, key: tuple[str, str], origin: Source, old: Statement, new: Statement) -> bool:
        """Whether the names that it reads mean in the old module what they mean in the new one."""
        target = self._source(key[0])
        for name in _read(new.node) - {key[1]}:
            same = self.meaning(origin, name, new=False) == self.meaning(target, name, new=True)
            if not same or self._is_another(origin, name):
                return False
        return True

    def _is_another(self, origin: Source, name: str) -> bool:
        """Whether it is a value that the new version of the old module makes in another way."""
        after = self.world.parsed(origin.path, new=True) if origin.path in self.world.new.python else None
        before, now = binders_of(origin, name), binders_of(after, name) if after is not None else []
        own = [s for s in before if s.alias is None and not isinstance(s.node, syntax.DefinitionNode)]
        return (
            bool(own and now) and all(s.alias is None for s in now) and [s.key for s in before] != [s.key for s in now]
        )

    def _is_meant(
        self, key: tuple[str, str], origin: Source, pairs: dict[tuple[str, str], tuple[Source, Statement, Statement]]
    ) -> bool:
        """Whether a value has moved, and is not just another one of that name: what has moved along reads it, or its
        old module imports it from the new one. A value that functions assign is not one that can be shared."""
        if key[1] in origin.assigned or key[1] in self._source(key[0]).assigned:
            return False
        after = self.world.parsed(origin.path, new=True) if origin.path in self.world.new.python else None
        if after is not None and any(binders_of(after, key[1])):
            return True
        return any(
            other[0] == key[0] and other in self.adopted and pairs[other][0] is origin and key[1] in _read(new.node)
            for other, (_, _, new) in pairs.items()
            if isinstance(new.node, syntax.DefinitionNode)
        )

    def _source(self, module: str) -> Source:
        path = self.world.new.path_of(module)
        assert path is not None
        return self.world.source(path, new=True)


def binders_of(source: Source, name: str) -> list[Statement]:
    """The statements at the top of a module that bind a name."""
    return [s for s in source.statements(source.tree.body) if not s.dormant and name in (s.binds() or ())]


def _own(source: Source | None) -> dict[str, list[Statement]]:
    """Name -> the statements of a module that make what it stands for."""
    found: dict[str, list[Statement]] = {}
    for statement in source.statements(source.tree.body) if source is not None else ():
        if statement.alias is None and not statement.dormant:
            for name in statement.binds() or ():
                found.setdefault(name, []).append(statement)
    return found


def _kind(statement: Statement) -> object:
    node = statement.node
    if isinstance(node, ast.Assign | ast.AnnAssign):
        names = statement.binds() or ()
        return "value" if len(names) == 1 and not any(name.startswith("__") for name in names) else statement
    return type(node) if isinstance(node, syntax.DefinitionNode) else statement


def _stars(source: Source) -> list[Statement]:
    return [
        s for s in source.statements(source.tree.body) if s.alias is not None and s.alias.name == "*" and not s.dormant
    ]


def _read(node: ast.stmt) -> set[str]:
    """The names of its module that a statement, and what it defines, read: annotations do not count."""
    found: set[str] = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        flags = __future__.annotations.compiler_flag
        pending = [compile(ast.Module([node], []), "", "exec", flags=flags, dont_inherit=True)]
    while pending:
        code = pending.pop()
        found |= {i.argval for i in dis.get_instructions(code) if i.opname in _READING}
        pending += [constant for constant in code.co_consts if isinstance(constant, CodeType)]
    return found


def _is_alike_anywhere(value: ast.expr) -> bool:
    """Whether it makes no difference which module makes it: what cannot change, and loggers' names."""
    if ast.unparse(value).endswith("getLogger(__name__)"):
        return True
    return syntax.is_plain_value(value) and all(
        isinstance(
            n, ast.Constant | ast.Tuple | ast.UnaryOp | ast.BinOp | ast.operator | ast.unaryop | ast.expr_context
        )
        for n in ast.walk(value)
    )
