"""The rules for classes: what may be added to a live one, and what may not change in it.

Instances are alive, and so are subclasses that this build has never seen. A new member must be invisible to
old code, so it must not be one that the interpreter calls by itself, hide an inherited one, or take the name
of an attribute that instances have. A member that is gone stays; there must be nothing inherited beneath it.
Both are checked here as far as the source trees tell, and again against the live class when the patch is
loaded.
"""

from __future__ import annotations

import ast

from livepatch.archive.format import RemovedEntry
from livepatch.build import syntax
from livepatch.build.branches import decide
from livepatch.build.findings import Findings
from livepatch.build.generated import (
    add_members,
    becomes_dataclass,
    becomes_ordered,
    exchange_fields,
    exchange_order,
    make_dataclass,
    stays_dataclass,
)
from livepatch.build.groups import is_only_called, made_with
from livepatch.build.members import Exchange
from livepatch.build.names import Names
from livepatch.build.rebase import compare_bases, extracted
from livepatch.build.report import NOTED
from livepatch.build.scopes import Scope
from livepatch.build.sentinels import makes_sentinels
from livepatch.build.syntax import Statement

#: Decorators and bases that read a class body as data.
_READERS = {
    *("dataclass", "attrs", "attr", "s", "define", "frozen", "mutable", "BaseModel", "Struct"),
    *("Enum", "IntEnum", "StrEnum", "Flag", "IntFlag", "NamedTuple", "TypedDict"),
}
#: Those that compute with annotations, and what in an annotation makes others do so.
_VALIDATORS = {"BaseModel", "Struct"}
_MARKERS = {"ClassVar", "InitVar", "KW_ONLY"}
#: Statements that change the value of a name, besides those that bind it.
_SETTERS = (ast.AugAssign, ast.Expr, ast.Delete, ast.With, ast.While)


def read_by(family: list[ast.ClassDef]) -> set[str]:
    """The decorators and bases of some classes that read a class body as data."""
    return {syntax.last_name(part) for cls in family for part in [*cls.bases, *cls.decorator_list]} & _READERS


def compare_classes(found: Findings, prefix: str, old: Statement, new: Statement, conditional: bool = False) -> None:
    """A class that both versions have; `conditional` if the class around it need not exist."""
    before, after = old.node, new.node
    assert isinstance(before, ast.ClassDef)
    assert isinstance(after, ast.ClassDef)
    name = prefix + after.name
    if not prefix and not conditional and makes_sentinels(found, before, after):
        found.claim(old, new)
        found.note(name, after.lineno, "class", "what is made of it is told by its identity only, and stays what it is")
        return
    heads = [[syntax.decorators(cls), *map(syntax.shape, (cls.bases, cls.keywords))] for cls in (before, after)]
    if heads[0] != heads[1] or old.under != new.under:
        found.claim(old, new)
        heads = [
            [names.decorators(cls), *([names.shape(part) for part in parts] for parts in (cls.bases, cls.keywords))]
            for names, cls in zip(found.names, (before, after), strict=True)
        ]
    for what, was, now in (
        *zip(("decorators", "bases", "metaclass or keywords"), *heads, strict=True),
        ("place below a condition", old.under, new.under),
    ):
        if was != now and what == "bases":
            compare_bases(found, name, before, after, _READERS, conditional or bool(old.under))
        elif was != now and what == "decorators" and not conditional and _is_made_again(found, before, after):
            found.note(name, after.lineno, "class", "its decorators changed: what they generate is exchanged")
        elif was != now and what == "place below a condition" and name in found.decided:
            pass
        elif was != now:
            found.refuse(name, after.lineno, "class", f"its {what} changed")
    found.classes.append((name, before, after))
    found.note_docstring(name, before, after)
    ClassRules(found, name, before, after, conditional or bool(old.under)).apply()


def _is_made_again(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> bool:
    return any(rule(found, old, new) for rule in (stays_dataclass, becomes_dataclass, becomes_ordered))


class ClassRules:
    """The rules, for one pair of classes."""

    def __init__(self, found: Findings, name: str, old: ast.ClassDef, new: ast.ClassDef, conditional: bool) -> None:
        self.found = found
        self.name = name
        self.old = old
        self.new = new
        self.conditional = conditional
        self.scope = Scope.of(name + ".", old.body, new.body)
        self.readers = {syntax.last_name(node) for node in [*new.decorator_list, *new.bases]} & _READERS

    def apply(self) -> None:
        found, scope = self.found, self.scope
        found.note_dormant(scope)
        exchange = Exchange(found, self.old, scope, self.readers, self._uses)
        generic = bool(getattr(self.new, "type_params", None))
        decide(found, scope, self.old, self.new, None if self.conditional or generic else exchange.take)
        if self.readers == {"dataclass"} and not self.conditional:
            if stays_dataclass(found, self.old, self.new):
                exchange.names |= exchange_fields(found, scope, self.old, self.new)
            elif becomes_dataclass(found, self.old, self.new):
                exchange.names |= make_dataclass(found, scope, self.old, self.new)
        if (
            not self.conditional
            and found.redecorated(self.old, self.new)
            and becomes_ordered(found, self.old, self.new)
        ):
            exchange.names |= exchange_order(found, scope, self.new)
        if self.readers and self.readers <= {"Enum", "IntEnum", "StrEnum"} and not self.conditional:
            exchange.names |= add_members(found, scope, self.old, self.new)
        self.exchanged = exchange.names
        if self.readers and _in_order(self.old, self.new) != _in_order(self.new, self.old) and not exchange.names:
            self._refuse(
                "",
                Statement(self.new),
                "class",
                f"members of a class with {_listed(self.readers)} are in another order",
            )
        if len(self.new.bases) > len(self.old.bases) and not self.conditional:
            exchange.names |= extracted(found, self.old, self.new) or set()
        exchange.apply(self.conditional, generic)
        for kind in (syntax.FunctionNode, ast.ClassDef):
            pairs, gone, fresh = exchange.without(*scope.definitions(kind))
            for old, new in pairs:
                if isinstance(new.node, ast.ClassDef):
                    compare_classes(found, scope.prefix, old, new, self.conditional)
                elif not self._is_helper(old, new):
                    found.compare_functions(scope.prefix, (old, new), scope, self.conditional)
            self._members(gone, fresh)
        gone, fresh = found.without_respelled(*scope.plain(self._key), self._spelled)
        self._members(*exchange.without([], gone, fresh)[1:])
        if _declared(self.old) != _declared(self.new):
            found.note(self.name, self.new.lineno, "class", "annotations of attributes changed")

    def _is_helper(self, old: Statement, new: Statement) -> bool:
        """Whether a function is there for the class body to call, and for nobody else: then what it made is made anew,
        by the new one, and the old one stays where it is."""
        assert isinstance(new.node, syntax.FunctionNode)
        name = new.node.name
        made = {**made_with(self.scope.old, name), **made_with(self.scope.new, name)}
        if not made or syntax.shape(old.node) == syntax.shape(new.node):
            return False
        known = {attribute for attribute in made if attribute in self.scope.new_sets and self._can_follow(attribute)}
        for attribute in known:
            reason = f"it is made by {name}, which changed"
            self.found.touch(self.scope.prefix + attribute, made[attribute].line, reason)
        only = is_only_called(self.scope.old, name) and is_only_called(self.scope.new, name)
        if not only or known != made.keys() or self.found.world.uses_attribute(name, both=True):
            return False
        reason = "only the class body calls it: what it made is made anew"
        self.found.note(self.scope.prefix + name, new.line, "method", reason)
        self.found.helpers.add(self.scope.prefix + name)
        self.found.claim(old, new)
        return True

    def _key(self, statement: Statement) -> object:
        """What tells statements of this class apart: an annotation counts if it is computed with."""
        node = statement.node
        if isinstance(node, ast.AnnAssign) and self._counts(node.annotation):
            return statement.key, ast.dump(node.annotation)
        return statement.key

    def _spelled(self, names: Names, statement: Statement) -> object:
        """The same where imported things have one name."""
        node = statement.node
        members = syntax.members(self.old) | syntax.members(self.new)
        counts = isinstance(node, ast.AnnAssign) and self._counts(node.annotation)
        return names.shape(node, members), names.annotation(node.annotation) if counts else None  # type: ignore[attr-defined]

    def _counts(self, annotation: ast.expr) -> bool:
        mentioned = {syntax.last_name(part) for part in ast.walk(annotation) if isinstance(part, ast.expr)}
        return bool(self.readers and (self.readers & _VALIDATORS or mentioned & _MARKERS))

    def _members(self, gone: list[Statement], fresh: list[Statement]) -> None:
        decided = {name.rpartition(".")[2] for name in self.found.decided if name.startswith(self.scope.prefix)}
        for statement in [*gone, *fresh]:
            if isinstance(statement.node, syntax.DEFINITIONS) and (statement.binds() or set()) <= decided:
                self.found.claim(statement)
        gone, fresh = ([s for s in side if id(s.identity) not in self.found.claimed] for side in (gone, fresh))
        known = {name for statement in fresh for name in statement.binds() or ()}
        for statement in fresh:
            self._fresh(statement)
            self.found.claim(statement)
        for statement in gone:
            for name in sorted((statement.binds() or set()) - known):
                self._gone(name, statement)
            if not statement.binds() and not syntax.is_declaration(statement.node):
                self._gone_effect(statement)
            self.found.claim(statement)

    def _fresh(self, statement: Statement) -> None:
        names = statement.binds()
        changed = statement.sets
        if isinstance(statement.node, ast.AnnAssign) and statement.node.value is None:
            if self.readers and syntax.last_name(statement.node.target) not in self.exchanged:
                self._refuse("", statement, "field", f"fields of a class with {_listed(self.readers)} changed")
        elif not names:
            if changed is not None and changed[0] and not changed[1] and all(map(self._can_follow, changed[0])):
                for name in sorted(changed[0]):
                    self.found.touch(self.scope.prefix + name, statement.line, "the attribute of the class changed")
            else:
                self._refuse("", statement, "statement", "a statement of the class body changed")
        else:
            for name in sorted(names):
                kind = _kind(statement)
                if name == "__slots__" and name not in self.scope.old_binders and not self.readers:
                    reason = (
                        "slots are for a class that is made anew: this one's instances have a dictionary, as before"
                    )
                    self.found.note(self.scope.prefix + name, statement.line, kind, reason)
                    continue
                if name == "__slots__" and self._has_same_slots():
                    reason = "the same slots, written otherwise"
                    self.found.note(self.scope.prefix + name, statement.line, kind, reason)
                    continue
                problem = self._problem(name, kind, statement)
                if problem and self._is_value(name, statement):
                    self.found.touch(self.scope.prefix + name, statement.line, problem)
                elif problem:
                    self._refuse(name, statement, kind, problem)
                    if self.readers == {"dataclass"} and name in self.scope.old_binders:  # its default
                        self.found.touch(self.scope.prefix + name, statement.line, problem)
                else:
                    self.found.add(self.scope.prefix + name, statement, kind)
                    if isinstance(statement.node, syntax.DefinitionNode):
                        self.found.note_decorators(self.scope.prefix + name, statement.node)

    def _has_same_slots(self) -> bool:
        """Whether both versions name the same slots; their order is the interpreter's own affair."""
        named = [
            [_slots(statement.node) for statement in binders.get("__slots__", ())]
            for binders in (self.scope.old_binders, self.scope.new_binders)
        ]
        return len(named[0]) == len(named[1]) == 1 and named[0] == named[1] != [None]

    def _can_follow(self, name: str) -> bool:
        """Whether what the statements of the body leave under a name is a value that can be made anew."""
        makers = [s for s in self.scope.new if not s.dormant and name in s.names_set]
        if not all(self._is_value(name, s) or isinstance(s.node, _SETTERS) for s in makers) or self.readers:
            return False
        first = makers[-1] if makers else None
        return name in self.scope.old_sets or (first is not None and not self._problem(name, "attribute", first))

    def _gone_effect(self, statement: Statement) -> None:
        """A statement is gone that was run for what it changed."""
        names, attributes = statement.names_set, statement.attributes_set
        if not names or attributes or not all(map(self._can_follow, names)):
            self._refuse("", statement, "statement", "a statement of the class body is gone, but not what it did")
            return
        for name in sorted(names):
            makers = [s for s in self.scope.new if name in s.names_set]
            if makers:
                self.found.touch(self.scope.prefix + name, makers[-1].line, "the attribute of the class changed")
            else:
                self._gone(name, statement)

    def _problem(self, name: str, kind: str, statement: Statement) -> str | None:
        """Why a member cannot be added to the live class."""
        if name == "__slots__":
            return "slots of live instances cannot change"
        if name in self.scope.old_binders:
            return "the attribute of the class changed" if kind == "attribute" else "it is bound in one more place"
        if kind != "method" and self.readers:
            return f"members of a class with {_listed(self.readers)} changed"
        if syntax.is_special(name):
            return "the interpreter calls it by itself, also for old code"
        if self.found.world.inherits(self.found.old, self.old, name):
            return "it would hide the inherited one from old code"
        if self._uses(name) and (kind != "attribute" or not self._is_unseen(name, statement)):
            return "old code uses an attribute of this name"
        if getattr(self.new, "type_params", None):
            return "the class is generic, and its type parameters are out of reach"
        if not all(header.startswith("if ") for header in statement.under):
            return f"it is new inside `{statement.under[-1]}`"
        return None

    def _is_value(self, name: str, statement: Statement) -> bool:
        """Whether what a statement of the class body makes can take the place of what was there, as any value can."""
        olds = [old.node for old in self.scope.old_binders.get(name, ())]
        read = read_by(self.found.world.ancestors(self.found.old, self.old))
        return (
            statement.alias is None
            and isinstance(statement.node, ast.Assign | ast.AnnAssign | ast.If | ast.For | ast.Try)
            and not any(isinstance(old, (*syntax.DEFINITIONS, ast.Import, ast.ImportFrom)) for old in olds)
            and not read | self.readers
            and not syntax.is_special(name)
            and not getattr(self.new, "type_params", None)
        )

    def _uses(self, name: str) -> bool:
        return _is_used(self.old, name) or self._is_computed(name)

    def _is_unseen(self, name: str, statement: Statement) -> bool:
        """Whether old code, which reads and sets the attribute on instances, cannot tell that the class has it, too."""
        value = getattr(statement.node, "value", None)
        plain = isinstance(value, ast.expr) and syntax.is_plain_value(value)
        return plain and not self._is_computed(name) and not self.found.world.asks_for(name)

    def _is_computed(self, name: str) -> bool:
        """Whether old code may get an attribute of this name from `__getattr__`."""
        world = self.found.world
        family = {name for cls in world.ancestors(self.found.old, self.old) for name in syntax.members(cls)}
        return bool(family & {"__getattr__", "__getattribute__"}) and world.uses_attribute(name)

    def _gone(self, name: str, statement: Statement) -> None:
        kind = _kind(statement)
        if name in self.scope.new_binders:
            if self.scope.merged((statement, self.scope.new_binders[name][-1])):
                return  # the one method that there is now takes the place of both
            if all(self._is_value(name, binder) for binder in [statement, *self.scope.new_binders[name]]):
                self.found.touch(self.scope.prefix + name, self.scope.new_binders[name][-1].line)
            else:
                self._refuse(name, statement, kind, "it is bound in one place less, or to something of another kind")
        elif self.readers and kind != "method":
            self._refuse(name, statement, kind, f"members of a class with {_listed(self.readers)} changed")
        elif self.found.world.inherits(self.found.old, self.old, name) or syntax.is_special(name):
            self._refuse(name, statement, kind, "it is gone, and an inherited one would come to light")
        else:
            entry = RemovedEntry(self.scope.prefix + name, statement.line)
            reason = "gone; it is left in place, and nothing new uses it"
            self.found.say(NOTED, self.scope.prefix + name, statement.line, kind, reason, entry=entry)

    def _refuse(self, name: str, statement: Statement, kind: str, reason: str) -> None:
        self.found.refuse(self.scope.prefix + name if name else self.name, statement.line, kind, reason)


def _kind(statement: Statement) -> str:
    if isinstance(statement.node, ast.ClassDef):
        return "class"
    return "method" if isinstance(statement.node, syntax.FunctionNode) else "attribute"


def _in_order(cls: ast.ClassDef, other: ast.ClassDef) -> list[str]:
    """The members of a class that are no methods, as they stand there, as far as another version has them, too."""
    known = set(_named(other))
    return [name for name in _named(cls) if name in known]


def _named(cls: ast.ClassDef) -> list[str]:
    plain = [node for node in cls.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    targets = [node.targets if isinstance(node, ast.Assign) else [node.target] for node in plain]
    return [syntax.last_name(target) for inner in targets for target in inner]


def _declared(cls: ast.ClassDef) -> list[str]:
    return [ast.dump(node) for node in cls.body if isinstance(node, ast.AnnAssign)]


def _listed(names: set[str]) -> str:
    return " and ".join(sorted(names))


def _is_used(cls: ast.ClassDef, name: str) -> bool:
    """Whether the methods of a class use an attribute of this name of themselves."""
    return any(
        isinstance(node, ast.Attribute)
        and node.attr == name
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "cls", cls.name)
        for node in ast.walk(cls)
    )


def _slots(node: ast.stmt) -> frozenset[str] | None:
    """The names that an assignment to `__slots__` lists; None if it does not list names."""
    try:
        value = ast.literal_eval(getattr(node, "value", None) or node)
    except (ValueError, TypeError):
        return None
    names = [value] if isinstance(value, str) else value
    plain = isinstance(names, list | tuple | set) and all(isinstance(name, str) for name in names)
    return frozenset(names) if plain else None
