"""What is found in one module, while it is being compared."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

from livepatch.archive.effects import Act
from livepatch.archive.format import AddedEntry, DefaultEntry, EffectEntry, FunctionEntry
from livepatch.build import functions, syntax
from livepatch.build.functions import Version
from livepatch.build.names import Names
from livepatch.build.report import ADDED, CARRIED, NOTED, REFUSED, Change, Entry
from livepatch.build.scopes import Pair, Scope
from livepatch.build.syntax import Statement
from livepatch.build.world import Source, World

RESTART = "restart the process for this, or leave it out: --exclude '{}'"

#: Decorators that have no effect but on what they decorate.
WRAPPERS = {
    *("staticmethod", "classmethod", "property", "setter", "getter", "deleter", "cached_property", "abstractmethod"),
    *("wraps", "cache", "lru_cache", "contextmanager", "asynccontextmanager", "dataclass", "total_ordering"),
    *("override", "final", "overload", "singledispatch", "singledispatchmethod", "define", "frozen"),
}

#: Decorators that keep results of a function, and what becomes of those when its code is exchanged.
_KEEPERS = {
    **dict.fromkeys(("cache", "lru_cache"), "its results so far are dropped when the transition completes"),
    "cached_property": "what it has left in instances stays",
}


@dataclass
class Touch:
    """A name that existed, or in a class was seen through, and may mean something else now: `X`, `C.x`, or as `owner`
    says `a.b.x` of an object `a.b`. `reason` is what to say if that cannot be carried."""

    line: int
    reason: str
    owner: str = ""


class Findings:
    """The changes of one module, and which pieces of its two syntax trees they account for."""

    def __init__(self, old: Source, new: Source, world: World) -> None:
        self.old = old
        self.new = new
        self.world = world
        self.names = Names(world, old, new=False), Names(world, new, new=True)
        self.changes: list[Change] = []
        self.functions: list[tuple[Version, Version]] = []
        self.classes: list[tuple[str, ast.ClassDef, ast.ClassDef]] = []  # qualified name, old, new
        self.added: list[tuple[str, Statement]] = []
        self.effects: list[tuple[EffectEntry, Statement, list[Act]]] = []  # what is run at completion, and does
        self.documented: list[str] = []  # of which only the docstring changed
        self.claimed: set[int] = set()
        self.touched: dict[str, Touch] = {}  # names whose values changed; `values` says what becomes of them
        self.other_kinds: dict[str, int] = {}  # methods that give a coroutine now, or no longer, with their lines
        self.decided: set[str] = set()  # names of which loading the patch finds out which definition is live
        self.helpers: set[str] = set()  # functions that only a class body calls
        self.paired: dict[int, bool] = {}  # code of functions that both versions have, by id -> whether conditional

    @cached_property
    def function_names(self) -> set[str]:
        """The qualified names of all functions of the new version."""
        return {definition.name for definition in self.new.definitions}

    def claim(self, *statements: Statement) -> None:
        """Say that the difference of these is accounted for."""
        self.claimed |= {id(statement.identity) for statement in statements}

    def redecorated(self, old: syntax.DefinitionNode, new: syntax.DefinitionNode) -> bool:
        """Whether other things decorate a definition, not only the same under other names."""
        if syntax.decorators(old) == syntax.decorators(new):
            return False
        return self.names[0].decorators(old) != self.names[1].decorators(new)

    def without_respelled(
        self,
        gone: list[Statement],
        fresh: list[Statement],
        shape: Callable[[Names, Statement], object] = lambda names, statement: names.shape(statement.node),
    ) -> tuple[list[Statement], list[Statement]]:
        """Statements that differ, without those that only name the same imported things otherwise."""
        left = list(fresh)
        shapes = [(s.under, shape(self.names[1], s)) if s.alias is None else None for s in left]
        for before in [statement for statement in gone if statement.alias is None and left]:
            mine = before.under, shape(self.names[0], before)
            if mine in shapes:
                at = shapes.index(mine)
                self.claim(before, left.pop(at))
                del shapes[at]
                gone = [statement for statement in gone if statement is not before]
        return gone, left

    def say(
        self,
        fate: str,
        name: str,
        line: int,
        kind: str,
        reason: str,
        hint: str = "",
        entry: Entry | None = None,
        node: ast.AST | None = None,
    ) -> None:
        needs = frozenset(_needs(self.new, name, node)) if node is not None else frozenset()
        change = Change(fate, self.new.module, name, self.new.path, line, kind, reason, hint, entry, needs)
        if not any(change == known and change.entry == known.entry for known in self.changes):
            self.changes.append(change)

    def touch(self, name: str, line: int, reason: str = "its value changed", owner: str = "") -> None:
        """A value changed. What becomes of it is found out when all modules have been compared."""
        self.touched.setdefault(name, Touch(line, reason, owner))

    def note(self, name: str, line: int, kind: str, reason: str) -> None:
        self.say(NOTED, name, line, kind, reason)

    def refuse(self, name: str, line: int, kind: str, reason: str, hint: str = RESTART) -> None:
        self.say(REFUSED, name, line, kind, reason, hint.format(f"{self.new.module}:{name}"))

    def ask(self, name: str, line: int, kind: str, reason: str, hint: str) -> None:
        """Instances made before lack an attribute: refused until the hooks say what it is for them."""
        key = frozenset({f"{self.new.module}:{name}"})
        entry = DefaultEntry(name, line, hooked=True)
        place = self.new.module, name, self.new.path, line
        self.changes.append(Change(REFUSED, *place, kind, reason, hint, entry=entry, needs=key))

    def add(self, name: str, statement: Statement, kind: str, reason: str = "new") -> None:
        self.added.append((name, statement))
        self.say(
            ADDED,
            name,
            statement.line,
            kind,
            reason,
            entry=AddedEntry(name, kind, statement.line),
            node=statement.node,
        )

    def note_dormant(self, scope: Scope) -> None:
        """Say once for a scope that something is different that a live module does not use."""
        for statement, reason in (
            (scope.dormant(), "a block changed that importing the module does not run"),
            (scope.overloads(), "overloads changed, which only type checkers use"),
        ):
            if statement is not None:
                self.note(scope.prefix.rstrip("."), statement.line, "statement", reason)
        for statement in scope.reordered():
            names = statement.binds() or frozenset()
            reason = "it is bound again, now in another order"
            binders = [binder.node for name in names for binder in scope.new_binders[name]]
            if any(isinstance(node, (*syntax.DEFINITIONS, ast.Import, ast.ImportFrom)) for node in binders):
                self.refuse(scope.prefix + " ".join(sorted(names)), statement.line, "name", reason)
            else:
                for name in names:
                    self.touch(scope.prefix + name, statement.line, reason)

    def note_docstring(self, name: str, old: ast.AST, new: ast.AST) -> None:
        """Remember to say that a docstring changed."""
        if not syntax.same_docstring(old, new):
            self.documented.append(name)

    def note_decorators(self, name: str, node: syntax.DefinitionNode) -> None:
        """Say which decorators of something new do more than to wrap it, perhaps."""
        for decorator in node.decorator_list:
            if syntax.last_name(decorator) not in WRAPPERS:
                did = f"its decorator `{ast.unparse(decorator)}` runs when the patch is loaded"
                reason = f"{did}; only what it notes in tables of its package is undone"
                self.note(name, decorator.lineno, "decorator", reason)

    def compare_functions(self, prefix: str, pair: Pair, scope: Scope, conditional: bool = False) -> None:
        """A function or method that both versions have; `conditional` if its class need not exist."""
        name = prefix + getattr(pair[1].node, "name", "")
        merged = scope.merged(pair) if name not in self.decided else []
        for old in merged:
            self._compare_functions(prefix, (old, pair[1]), True, merged=True)
        if not merged:
            self._compare_functions(prefix, pair, conditional)

    def _compare_functions(self, prefix: str, pair: Pair, conditional: bool, *, merged: bool = False) -> None:
        old, new = pair[0].node, pair[1].node
        assert isinstance(old, syntax.FunctionNode)
        assert isinstance(new, syntax.FunctionNode)
        before = len(self.changes)
        name = prefix + new.name
        kind = "method" if prefix else "function"
        if pair[0].under != pair[1].under and not merged and name not in self.decided:
            self.refuse(name, new.lineno, kind, "it is now defined under another condition")
        was, now = self.old.version(old), self.new.version(new)
        if was is not None and now is not None:
            conditional = conditional or name in self.decided
            self.paired[id(now.definition.code)] = conditional or bool(pair[0].under)
        if self.old.text(old) == self.new.text(new):
            self.claim(*pair)
            return  # the most common case by far, and the others cost a thousand times more
        if was is not None and now is not None:
            self._judge(kind, was, now, conditional or bool(pair[0].under))
        elif syntax.shape(old) != syntax.shape(new):
            self.refuse(name, new.lineno, kind, "this Python does not compile it, so it cannot be compared")
        if len(self.changes) == before:
            self.note_docstring(name, old, new)
        if len(self.changes) == before and syntax.annotation_dumps(old) != syntax.annotation_dumps(new):
            self.note(name, new.lineno, kind, "only annotations changed")
        # Shapes may differ where the compiled code does not: that too is accounted for.
        self.claim(*pair)

    def _judge(self, kind: str, old: Version, new: Version, conditional: bool) -> None:
        if self.redecorated(old.node, new.node):
            hint = "the live object was made by the old ones; restart, or exclude it"
            self.refuse(old.definition.name, new.node.lineno, kind, "its decorators changed", hint)
        for verdict in functions.compare(old, new, self.old.version, self.new.version):
            was, now = verdict.old.definition, verdict.new.definition
            line = verdict.new.node.lineno
            if verdict.hint:
                self.refuse(was.name, line, kind, verdict.reason, verdict.hint)
                continue
            if verdict.kept:
                retired = FunctionEntry(was.name, line, verdict.reason, self.old.sympos(was), retired=True)
                self.say(CARRIED, was.name, line, kind, verdict.reason, entry=retired)
                continue
            entry = FunctionEntry(
                was.name, line, verdict.reason, self.old.sympos(was), self.new.sympos(now), conditional
            )
            self.functions.append((verdict.old, verdict.new))
            self.say(CARRIED, was.name, line, kind, verdict.reason, entry=entry, node=verdict.new.node)
            for decorator in getattr(verdict.new.node, "decorator_list", ()):
                if (fate := _KEEPERS.get(syntax.last_name(decorator) or "")) is not None:
                    self.note(was.name, decorator.lineno, "decorator", fate)
            if verdict.new is new and _lambdas(old) != _lambdas(new):
                self.note(was.name, line, "lambda", "lambdas that the old version made stay as they are")


def _lambdas(version: Version) -> list[object]:
    return [syntax.shape(node) for node in ast.walk(version.node) if isinstance(node, ast.Lambda)]


def _needs(source: Source, name: str, node: ast.AST) -> Iterator[str]:
    """The names that a piece of new code uses, as `module:name`: of its module, its class, or imported."""
    cls = name.split(".<locals>")[0].rpartition(".")[0]
    for inner in ast.walk(node):
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            yield f"{source.module}:{inner.id}"
        elif isinstance(inner, ast.Attribute) and isinstance(inner.value, ast.Name):
            owner = cls if inner.value.id in ("self", "cls") else inner.value.id
            yield f"{source.module}:{owner}.{inner.attr}"
            if source.index is not None:
                yield from (f"{module}:{inner.attr}" for module in source.index.modules_called(inner.value.id))
        elif isinstance(inner, ast.Import):
            yield from (f"{alias.name}:" for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom):
            origin = source.resolve(inner)
            yield from (f"{origin}:{alias.name}" for alias in inner.names)
            yield from (f"{module}:" for module in (origin, *(f"{origin}.{alias.name}" for alias in inner.names)))
