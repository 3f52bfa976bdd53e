"""Which members of a class, and which decorated functions, are exchanged as a whole; `archive.members` says how.

That is what is done where exchanging code or adding a name is not enough: another decorator, another sort of member,
a name that is inherited with it or without it, a method that the interpreter calls by itself. It needs that the new
definition can be run a second time without doing anything but to make a member. A decorator that registers what it
decorates cannot.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Callable, Iterator

from livepatch.archive.format import FunctionEntry, MemberEntry
from livepatch.archive.switch import AS_BEFORE
from livepatch.build import syntax
from livepatch.build.findings import WRAPPERS, Findings
from livepatch.build.moves import binders_of
from livepatch.build.report import CARRIED
from livepatch.build.scopes import Pair, Scope
from livepatch.build.syntax import Statement
from livepatch.build.uses import uses
from livepatch.build.world import Readers, Source
from livepatch.core import codes

_READ = {"property", "cached_property", "setter", "getter", "deleter"}
#: What matters when a class or an instance is made, or makes a descriptor of it: no switch can stand for these.
_NEVER = {
    *("__new__", "__slots__", "__init_subclass__", "__set_name__", "__prepare__", "__class__", "__get__", "__set__"),
    *("__delete__", "__instancecheck__", "__subclasscheck__", "__getattribute__", "__mro_entries__", "__dict__"),
    *("__match_args__", "__abstractmethods__", "__weakref__", "__iter__", "__reversed__", "__index__"),
}
#: Without these, what asks for them fails: no old code does.
_ASKED = {
    *("__enter__", "__exit__", "__aenter__", "__aexit__", "__call__", "__getitem__", "__setitem__", "__delitem__"),
    *("__next__", "__anext__", "__aiter__", "__await__", "__getattr__", "__add__", "__sub__", "__mul__", "__or__"),
    *("__and__", "__truediv__", "__invert__", "__neg__", "__int__", "__float__", "__bytes__", "__fspath__"),
}


class Exchange:
    """The names of one class that are exchanged as a whole."""

    def __init__(
        self, found: Findings, old: ast.ClassDef, scope: Scope, readers: set[str], used: Callable[[str], bool]
    ) -> None:
        self._found = found
        self._used = used
        self._old = old
        self._scope = scope
        self._readers = readers
        self.names: set[str] = set()

    def apply(self, conditional: bool, generic: bool) -> None:
        """Say which, and claim their statements."""
        scope = self._scope
        for name in sorted(scope.old_binders.keys() | scope.new_binders.keys()):
            old, new = scope.old_binders.get(name, []), scope.new_binders.get(name, [])
            if name in self.names or scope.prefix + name in self._found.decided:
                continue  # what the class statement generates has to do with it
            reason = self._reason(name, old, new)
            if reason and not (conditional and not self._is_one()) and not generic and self._possible(name, old, new):
                self.names.add(name)
                becomes = "new" if new else "gone"
                exchange(self._found, scope.prefix + name, old, new, becomes, reason, conditional=conditional)
                if _awaits(_kinds(self._found, old, new)):
                    self._found.other_kinds[scope.prefix + name] = (new or old)[-1].line
        self._hashes(conditional or generic)

    def _is_one(self) -> bool:
        """Whether the class is defined once in both versions, so that the one that is there, if any, is meant."""
        definitions = [source.classes.get(self._old.name, []) for source in (self._found.old, self._found.new)]
        return all(len(some) == 1 for some in definitions)

    def take(self, name: str, old: list[Statement], new: list[Statement]) -> bool:
        """Exchange a method of which other definitions may be chosen now, if that is possible."""
        if not self._possible(name, old, new):
            return False
        self.names.add(name)
        exchange(self._found, self._scope.prefix + name, old, new, "new", "it is defined under other conditions")
        return True

    def without(
        self, pairs: list[Pair], gone: list[Statement], fresh: list[Statement]
    ) -> tuple[list[Pair], list[Statement], list[Statement]]:
        """Paired statements without those that this has dealt with."""

        def mine(statement: Statement) -> bool:
            names = statement.binds()
            return bool(names) and names is not None and names <= self.names

        kept = [pair for pair in pairs if not mine(pair[1])]
        return kept, [s for s in gone if not mine(s)], [s for s in fresh if not mine(s)]

    def _reason(self, name: str, old: list[Statement], new: list[Statement]) -> str:
        world = self._found.world
        special = syntax.is_special(name)
        if old and new:
            was, now = ([isinstance(s.node, syntax.FunctionNode) for s in side] for side in (old, new))
            if all(was) and all(now):
                return "its decorators changed" if self._redecorated(old, new) else another_kind(self._found, old, new)
            return "it is a member of another sort" if any(was) != any(now) else ""
        if not old and all(isinstance(s.node, syntax.FunctionNode) for s in new):
            if special:
                return "the interpreter calls it by itself"
            if world.inherits(self._found.old, self._old, name):
                return "it hides an inherited one"
            if self._used(name):
                return "old code uses an attribute of this name"
            return "it may hide an inherited one" if world.is_open(self._found.old, self._old) else ""
        if not new and all(isinstance(s.node, syntax.FunctionNode) for s in old):
            beneath = special or world.inherits(self._found.old, self._old, name)
            if not beneath and world.is_open(self._found.old, self._old):
                return "gone, and an inherited one may take its place"
            return "gone, and the inherited one takes its place" if beneath else ""
        return ""

    def _redecorated(self, old: list[Statement], new: list[Statement]) -> bool:
        sides = [[s.node for s in side if isinstance(s.node, syntax.FunctionNode)] for side in (old, new)]
        plain = [Counter(repr(syntax.decorators(node)) for node in nodes) for nodes in sides]
        spelled = zip(self._found.names, sides, strict=True)
        was, now = (
            plain
            if plain[0] == plain[1]
            else (Counter(repr(names.decorators(node)) for node in nodes) for names, nodes in spelled)
        )
        return was != now

    def _possible(self, name: str, old: list[Statement], new: list[Statement]) -> bool:
        found = self._found
        if name in _NEVER or (self._readers and (syntax.is_special(name) or not (old and new))):
            return False
        if not old and not self._old_can_do_without(name, new):
            return False
        return can_exchange(found, old, new)

    def _old_can_do_without(self, name: str, new: list[Statement]) -> bool:
        """Whether what old code gets from the switch, where there is nothing, is what it got before."""
        world = self._found.world
        if syntax.is_special(name):
            inherited = world.inherits(self._found.old, self._old, name)
            return inherited or name in AS_BEFORE or name in _ASKED
        stored = any(
            isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)
            for node in ast.walk(self._old)
        )
        return not (world.asks_for(name) or (stored and how(new) == "call"))

    def _hashes(self, impossible: bool) -> None:
        """A class statement with `__eq__` and without `__hash__` sets that to None: so it comes and goes with it."""
        old, new = ("__eq__" in names and "__hash__" not in names for names in self._bound())
        if old == new or "__hash__" in self.names or self._readers:
            return
        if any("__hash__" in names for names in self._bound()):
            return
        line = self._old.lineno
        if impossible:
            self._found.refuse(self._scope.prefix + "__hash__", line, "method", "it comes or goes with `__eq__`")
            return
        becomes, reason = ("none", "None, since there is `__eq__` now") if new else ("gone", "`__eq__` is gone")
        exchange(self._found, self._scope.prefix + "__hash__", [], [], becomes, reason, line)

    def _bound(self) -> tuple[set[str], set[str]]:
        return set(self._scope.old_binders), set(self._scope.new_binders)


def can_exchange(found: Findings, old: list[Statement], new: list[Statement]) -> bool:
    """Whether the statements that bind a name can be run again, and what they make is called as before."""
    for statement in [*old, *new]:
        plain = all(header.removeprefix("orelse of ").startswith("if ") for header in statement.under)
        if not plain or len(statement.binds() or ()) != 1:
            return False
        node = statement.node
        if isinstance(node, ast.ClassDef):
            return False
        if not isinstance(node, syntax.FunctionNode):
            value = getattr(node, "value", None)
            if not isinstance(value, ast.expr) or not syntax.is_plain_value(value):
                return False
    for statement in new:
        if isinstance(statement.node, syntax.FunctionNode):
            if not all(_is_wrapper(found, decorator) for decorator in statement.node.decorator_list):
                return False
            if found.new.version(statement.node) is None:
                return False
    return True


def another_kind(found: Findings, old: list[Statement], new: list[Statement]) -> str:
    """What to say of a function that gives something else when it is called, a coroutine say; empty if it does not."""
    if len(old) != 1 or len(new) != 1 or "read" in (how(old), how(new)):
        return ""
    was, now = _kind(found, old[0], new=False), _kind(found, new[0], new=True)
    return f"it is of the kind {now}, and was of the kind {was}" if was != now else ""


def _kinds(found: Findings, old: list[Statement], new: list[Statement]) -> set[str]:
    return {_kind(found, s, new=False) for s in old} | {_kind(found, s, new=True) for s in new}


def _awaits(kinds: set[str]) -> bool:
    """Whether only some of these are coroutines. Others ask for that (`iscoroutinefunction`), and then call."""
    return len(kinds) > 1 and "coroutine" in kinds


def exchange(
    found: Findings,
    name: str,
    old: list[Statement],
    new: list[Statement],
    becomes: str,
    reason: str,
    line: int = 0,
    followers: tuple[str, ...] = (),
    conditional: bool = False,
) -> None:
    """Say that a name is exchanged as a whole: a member of a class, or a function of the module; `conditional` if its
    class need not exist."""
    kind = "method" if "." in name else "function"
    shown = new[-1] if new else old[-1] if old else None
    line = shown.line if shown is not None else line
    kinds = _kinds(found, old, new)
    flavour = min(kinds) if len(kinds) == 1 and min(kinds) in ("coroutine", "generator") else "function"
    reads = "read" if "read" in (how(old), how(new)) or (_awaits(kinds) and becomes != "valued") else "call"
    direct = len(new) == 1 and _is_direct(new[0]) and len(kinds) == 1 and becomes != "valued"
    entry = MemberEntry(name, line, becomes, reads, flavour, direct, followers, conditional)
    direct_call = reads == "call" and becomes != "valued"
    body = ast.Module([s.node for s in new], [])
    found.say(CARRIED, name, line, kind, f"{reason}: exchanged as a whole", entry=entry, node=body)
    for statement in new:
        found.added.append((name, statement))
        found.claim(statement)
    for statement in old:
        onward = direct_call and _is_onward(found, old, new)
        retire(found, statement, line, onward=onward, conditional=conditional)


def retire(
    found: Findings, statement: Statement, line: int, *, onward: bool = False, conditional: bool = False
) -> None:
    """Say that something else takes the place of what a statement binds. `line` is in the new source."""
    found.claim(statement)
    version = found.old.version(statement.node) if isinstance(statement.node, syntax.FunctionNode) else None
    if version is not None:
        definition = version.definition
        kind = "method" if "." in definition.name else "function"
        reason = "who holds the old one " + ("gets to the new one" if onward else "keeps it")
        place = found.old.sympos(definition), 0, conditional or bool(statement.under)
        entry = FunctionEntry(definition.name, line, reason, *place, retired=True, onward=onward)
        found.say(CARRIED, definition.name, line, kind, reason, entry=entry)


def _is_onward(found: Findings, old: list[Statement], new: list[Statement]) -> bool:
    """Whether who holds the old one can get to the new one, since it can be called in the same way."""
    kinds = _kinds(found, old, new)
    return len(old) == 1 and _is_direct(old[0]) and len(kinds) == 1 and kinds != {"async generator"}


def _is_direct(statement: Statement) -> bool:
    """Whether there is nothing around a function but what binds it to a class."""
    node = statement.node
    return isinstance(node, syntax.FunctionNode) and all(
        syntax.last_name(decorator) in ("staticmethod", "classmethod", "abstractmethod")
        for decorator in node.decorator_list
    )


def exchange_function(found: Findings, pair: Pair) -> bool:
    """Exchange a function of the module whose decorators or kind changed, if that is possible.

    Where somebody may ask for its kind, or a table of the module keeps it, its name is a value that changes.
    """
    old, new = [pair[0]], [pair[1]]
    name = getattr(pair[1].node, "name", "")
    if "read" in (how(old), how(new)) or not can_exchange(found, old, new):
        return False
    readers = found.world.readers(found.new.module, name)
    if readers.calls:
        return False  # what the old one did to others while modules were imported, the new one has not done
    reason = another_kind(found, old, new) or "its decorators changed"
    if _awaits(_kinds(found, old, new)) or (not _is_onward(found, old, new) and _is_kept(found, readers, name)):
        if pair[0].under or pair[1].under:
            return False
        exchange(found, name, old, new, "valued", reason)
        found.touch(name, pair[1].line, reason)
        return True
    followers = tuple(sorted({f"{source.module}:{alias}" for source, alias, _ in readers.importers}))
    exchange(found, name, old, new, "new", reason, followers=followers)
    return True


def _is_kept(found: Findings, readers: Readers, name: str) -> bool:
    """Whether something was made of a function when modules were imported: a table, a default value."""
    if any(name in use.names for use in uses(found.new)):
        return True
    return any(
        alias in use.names or any(attribute == name for _, attribute in use.attributes)
        for source, alias, _ in readers.importers
        for use in uses(source)
    )


def exchange_import(found: Findings, old: list[Statement], new: Statement) -> bool:
    """Exchange a function that is now imported from elsewhere, where it is another one, if that is possible."""
    names = new.binds() or ()
    if not isinstance(new.node, ast.ImportFrom) or len(names) != 1 or new.under or len(old) != 1 or old[0].under:
        return False
    (name,) = names
    before, now = (_function(found, name, new=side) for side in (False, True))
    if before is None or now is None:
        return False
    versions = [source.version(node) for source, node in (before, now)]
    kinds = {codes.kind(version.definition.code) for version in versions if version is not None}
    decorators = [*before[1].decorator_list, *now[1].decorator_list]
    if None in versions or len(kinds) != 1 or decorators:
        return False
    readers = found.world.readers(found.new.module, name)
    if readers.calls:
        return False  # what the old one did to others while modules were imported, the new one has not done
    followers = tuple(sorted({f"{source.module}:{alias}" for source, alias, _ in readers.importers}))
    exchange(found, name, old, [new], "new", f"it comes from {now[0].module} now", followers=followers)
    return True


def _function(found: Findings, name: str, *, new: bool) -> tuple[Source, syntax.FunctionNode] | None:
    """The function of a module's namespace that a name means, with the module that defines it."""
    world = found.world
    place = world.moves.meaning(found.new if new else found.old, name, new=new)
    module, _, last = place.partition(":") if isinstance(place, str) else ("", "", "")
    path = (world.new if new else world.old).path_of(module)
    source = world.parsed(path, new=new) if path is not None else None
    binders = binders_of(source, last) if source is not None else []
    node = binders[0].node if len(binders) == 1 else None
    return (source, node) if source is not None and isinstance(node, syntax.FunctionNode) else None


def how(statements: list[Statement]) -> str:
    """Whether what they bind is called or read."""
    for statement in statements:
        if isinstance(statement.node, ast.ImportFrom):
            continue  # of a function
        if not isinstance(statement.node, syntax.FunctionNode):
            return "read"
        if any(syntax.last_name(decorator) in _READ for decorator in statement.node.decorator_list):
            return "read"
    return "call"


def _kind(found: Findings, statement: Statement, *, new: bool) -> str:
    if not isinstance(statement.node, syntax.FunctionNode):
        return "function"
    version = (found.new if new else found.old).version(statement.node)
    return "function" if version is None else codes.kind(version.definition.code)


def _is_wrapper(found: Findings, decorator: ast.expr) -> bool:
    """Whether a decorator does nothing but to give something for what it decorates."""
    name = syntax.last_name(decorator)
    if name in WRAPPERS or name in _READ:
        return True
    called = isinstance(decorator, ast.Call)
    definitions = list(_definitions(found, name))
    return bool(definitions) and all(_is_pure(node, 2 if called else 1) for node in definitions)


def _definitions(found: Findings, name: str) -> Iterator[syntax.FunctionNode]:
    for source in found.world.defining(name):
        for node in source.tree.body:
            if isinstance(node, syntax.FunctionNode) and node.name == name:
                yield node


def _is_pure(function: syntax.FunctionNode, depth: int) -> bool:
    """Whether a call of a decorator, or of what makes one, only makes and returns functions.

    `depth` says how many functions, one in the other, run when something is decorated.
    """
    local = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    local |= {n.name for n in function.body if isinstance(n, syntax.FunctionNode)}
    local |= {n.id for n in ast.walk(function) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}

    def pure(node: ast.stmt) -> bool:
        if isinstance(node, syntax.FunctionNode):
            return depth == 1 or _is_pure(node, depth - 1)
        if isinstance(node, ast.If):
            return all(map(pure, [*node.body, *node.orelse]))
        if isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            return all(not isinstance(t, ast.Subscript) and syntax.first_name(t) in local for t in targets)
        return isinstance(node, ast.Return | ast.Raise | ast.Pass | ast.Import | ast.ImportFrom | ast.Nonlocal)

    return all(map(pure, syntax.effective(function.body)))
