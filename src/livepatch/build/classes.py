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
from livepatch.build.findings import Findings
from livepatch.build.report import NOTED
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement

#: Decorators and bases that read a class body as data.
_READERS = {
    *("dataclass", "attrs", "attr", "s", "define", "frozen", "mutable", "BaseModel", "Struct"),
    *("Enum", "IntEnum", "StrEnum", "Flag", "IntFlag", "NamedTuple", "TypedDict"),
}
#: Those that compute with annotations, and what in an annotation makes others do so.
_VALIDATORS = {"BaseModel", "Struct"}
_MARKERS = {"ClassVar", "InitVar", "KW_ONLY"}


def compare_classes(found: Findings, prefix: str, old: Statement, new: Statement, conditional: bool = False) -> None:
    """A class that both versions have; `conditional` if the class around it need not exist."""
    before, after = old.node, new.node
    assert isinstance(before, ast.ClassDef)
    assert isinstance(after, ast.ClassDef)
    name = prefix + after.name
    for what, was, now in (
        ("decorators", syntax.decorators(before), syntax.decorators(after)),
        ("bases", syntax.shape(before.bases), syntax.shape(after.bases)),
        ("metaclass or keywords", syntax.shape(before.keywords), syntax.shape(after.keywords)),
        ("place below a condition", old.under, new.under),
    ):
        if was != now:
            found.refuse(name, after.lineno, "class", f"its {what} changed")
            found.claim(old, new)
    found.classes.append((name, before, after))
    found.note_docstring(name, before, after)
    ClassRules(found, name, before, after, conditional or bool(old.under)).apply()


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
        for pairs, gone, fresh in (scope.definitions(kind) for kind in (syntax.FunctionNode, ast.ClassDef)):
            for old, new in pairs:
                if isinstance(new.node, ast.ClassDef):
                    compare_classes(found, scope.prefix, old, new, self.conditional)
                else:
                    found.compare_functions(scope.prefix, (old, new), self.conditional)
            self._members(gone, fresh)
        self._members(*scope.plain(self._key))
        if _declared(self.old) != _declared(self.new):
            found.note(self.name, self.new.lineno, "class", "annotations of attributes changed")

    def _key(self, statement: Statement) -> object:
        """What tells statements of this class apart: an annotation counts if it is computed with."""
        node = statement.node
        if self.readers and isinstance(node, ast.AnnAssign):
            mentioned = {syntax.last_name(part) for part in ast.walk(node.annotation) if isinstance(part, ast.expr)}
            if self.readers & _VALIDATORS or mentioned & _MARKERS:
                return statement.key, ast.dump(node.annotation)
        return statement.key

    def _members(self, gone: list[Statement], fresh: list[Statement]) -> None:
        known = {name for statement in fresh for name in statement.binds() or ()}
        for statement in fresh:
            self._fresh(statement)
            self.found.claim(statement)
        for statement in gone:
            for name in sorted((statement.binds() or set()) - known):
                self._gone(name, statement)
            if not statement.binds() and not syntax.is_declaration(statement.node):
                self._refuse("", statement, "statement", "a statement of the class body is gone, but not what it did")
            self.found.claim(statement)

    def _fresh(self, statement: Statement) -> None:
        names = statement.binds()
        if syntax.is_declaration(statement.node):
            if self.readers:
                self._refuse("", statement, "field", f"fields of a class with {_listed(self.readers)} changed")
        elif not names:
            self._refuse("", statement, "statement", "a statement of the class body changed")
        else:
            for name in sorted(names):
                kind = _kind(statement)
                problem = self._problem(name, kind, statement)
                if problem:
                    self._refuse(name, statement, kind, problem)
                else:
                    self.found.add(self.scope.prefix + name, statement, kind)
                    if isinstance(statement.node, syntax.DefinitionNode):
                        self.found.note_decorators(self.scope.prefix + name, statement.node)

    def _problem(self, name: str, kind: str, statement: Statement) -> str | None:
        """Why a member cannot be added to the live class."""
        if name == "__slots__":
            return "slots of live instances cannot change"
        if name in self.scope.old_binders:
            return "the attribute of the class changed" if kind == "attribute" else "it is bound in one more place"
        if kind != "method" and self.readers:
            return f"members of a class with {_listed(self.readers)} changed"
        if _is_special(name):
            return "the interpreter calls it by itself, also for old code"
        if self.found.world.inherits(self.found.old, self.old, name):
            return "it would hide the inherited one from old code"
        if _is_used(self.old, name) or self._is_computed(name):
            return "old code uses an attribute of this name"
        if getattr(self.new, "type_params", None):
            return "the class is generic, and its type parameters are out of reach"
        if not all(header.startswith("if ") for header in statement.under):
            return f"it is new inside `{statement.under[-1]}`"
        return None

    def _is_computed(self, name: str) -> bool:
        """Whether old code may get an attribute of this name from `__getattr__`."""
        world = self.found.world
        family = {name for cls in world.ancestors(self.found.old, self.old) for name in syntax.members(cls)}
        return bool(family & {"__getattr__", "__getattribute__"}) and world.uses_attribute(name)

    def _gone(self, name: str, statement: Statement) -> None:
        kind = _kind(statement)
        if name in self.scope.new_binders:
            self._refuse(name, statement, kind, "it is bound in one place less, or to something of another kind")
        elif self.readers and kind != "method":
            self._refuse(name, statement, kind, f"members of a class with {_listed(self.readers)} changed")
        elif self.found.world.inherits(self.found.old, self.old, name) or _is_special(name):
            self._refuse(name, statement, kind, "it is gone, and an inherited one would come to light")
        else:
            entry = RemovedEntry(self.scope.prefix + name, statement.line)
            reason = "gone; it is left in place, and nothing new uses it"
            self.found.say(NOTED, self.scope.prefix + name, statement.line, kind, reason, entry=entry)

    def _refuse(self, name: str, statement: Statement, kind: str, reason: str) -> None:
        self.found.refuse(self.scope.prefix + name if name else self.name, statement.line, kind, reason)


def _is_special(name: str) -> bool:
    return name.startswith("__") and name.endswith("__")


def _kind(statement: Statement) -> str:
    if isinstance(statement.node, ast.ClassDef):
        return "class"
    return "method" if isinstance(statement.node, syntax.FunctionNode) else "attribute"


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
