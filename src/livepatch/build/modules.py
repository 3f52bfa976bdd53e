"""The rules for the statements of a module: what may be added to a live one, and what cannot change."""

from __future__ import annotations

import ast
import builtins
import re
from collections.abc import Iterable

from livepatch.archive.format import ConstantEntry
from livepatch.build import syntax
from livepatch.build.classes import compare_classes
from livepatch.build.findings import Findings
from livepatch.build.report import AT_COMPLETION, Change
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement
from livepatch.build.world import NOT_PYTHON, Readers

#: Names that describe a release; what code makes of them (a user agent) does not have to be consistent.
_RELEASE_NAMES = re.compile(
    r"__(version(_info|_tuple)?|build|date|author(_email)?|maintainer|email|license|copyright|credits|title|summary"
    r"|description|url|uri|status|commit_id|release|revision)__|version(_info|_tuple)?|commit_id",
    re.IGNORECASE,
)


def compare_modules(found: Findings) -> None:
    """Compare two versions of a module, statement by statement."""
    ModuleRules(found).apply()
    found.note_docstring(found.new.module, found.old.tree, found.new.tree)
    if found.documented:
        names = ", ".join(found.documented)
        found.note("", 1, "docstring", f"docstrings changed, and stay as they are: {names}")


class ModuleRules:
    """The rules, for one pair of modules."""

    def __init__(self, found: Findings) -> None:
        self.found = found
        self.scope = Scope.of("", found.old.tree.body, found.new.tree.body)
        self.fresh_names: set[str] = set()  # names that did not exist
        self.settled: set[str] = set()  # names whose new binding was dealt with

    def apply(self) -> None:
        found, scope = self.found, self.scope
        found.note_dormant(scope)
        for pair, gone, fresh in (scope.definitions(kind) for kind in (syntax.FunctionNode, ast.ClassDef)):
            for old, new in pair:
                if isinstance(new.node, ast.ClassDef):
                    compare_classes(found, "", old, new)
                else:
                    found.compare_functions("", (old, new))
            for statement in fresh:
                self._fresh_definition(statement)
            for statement in gone:
                self._gone_definition(statement)
        plain_gone, plain_fresh = scope.plain(lambda statement: statement.key)
        for statement in plain_fresh:
            self._fresh(statement)
            found.claim(statement)
        for statement in plain_gone:
            self._gone(statement)
            found.claim(statement)

    def _fresh_definition(self, statement: Statement) -> None:
        node = statement.node
        assert isinstance(node, syntax.DefinitionNode)
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        if node.name in self.scope.old_binders:
            self.found.refuse(node.name, node.lineno, kind, "the name is bound already, and is bound in one more place")
        elif self._can_stand(statement, kind):
            self.found.add(node.name, statement, kind)
            self.found.note_decorators(node.name, node)
            self.fresh_names.add(node.name)
        self.settled.add(node.name)
        self.found.claim(statement)

    def _gone_definition(self, statement: Statement) -> None:
        node = statement.node
        assert isinstance(node, syntax.DefinitionNode)
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        if node.name not in self.scope.new_binders and node.name in self.found.new.global_reads:
            self.found.refuse(node.name, node.lineno, kind, "gone, and new code that names it means another one")
        elif node.name not in self.scope.new_binders:
            self.found.note(node.name, node.lineno, kind, "gone; it is left in place, and nothing new calls it")
        elif node.name not in self.settled:
            self.found.refuse(node.name, node.lineno, kind, f"the name is no longer bound to this {kind}")
            self.settled.add(node.name)
        self.found.claim(statement)

    def _can_stand(self, statement: Statement, kind: str) -> bool:
        """Whether a new statement can be run alone: below an `if` it can, as the condition is run with it."""
        under = statement.under
        known = sorted((statement.binds() or set()) & self.found.old.global_reads - self.scope.old_binders.keys())
        # An import may bind the very object that is bound there, by `import *` perhaps; loading it will show.
        if known and (kind != "import" or hasattr(builtins, known[0])):
            self.found.refuse(known[0], statement.line, kind, "old code uses this name already, for something else")
            return False
        if all(header.startswith(("if ", "orelse of if ")) for header in under):
            return True
        if not any(other.under[: len(under)] == under for other in self.scope.old):
            return True  # the whole block is new
        names = " ".join(sorted(statement.binds() or ()))
        self.found.refuse(names, statement.line, kind, f"it is new inside `{under[-1]}`")
        return False

    def _fresh(self, statement: Statement) -> None:
        """A statement that is no definition and that the old version lacks, or has in another form."""
        names = statement.binds()
        if _is_future(statement):
            self._future(statement)
        elif _only_exports(statement):
            self.found.note("__all__", statement.line, "statement", "only `import *` reads it")
        elif syntax.is_declaration(statement.node):
            self.found.note("", statement.line, "statement", "an annotation without a value")
        elif not names:
            self._effect(statement)
        elif not names & self.scope.old_binders.keys():
            kind = "import" if statement.alias else "name"
            if self._can_stand(statement, kind):
                for name in sorted(names):
                    self.found.add(name, statement, kind)
                self.fresh_names |= names
        elif not names <= self.settled:
            self._rebound(statement, names)
        self.settled |= names or set()

    def _future(self, statement: Statement) -> None:
        assert statement.alias is not None
        if statement.alias.name == "annotations":
            self.found.note("", statement.line, "statement", "annotations are (no longer) kept as strings")
        else:
            self.found.refuse("", statement.line, "statement", f"the feature {statement.alias.name} came or went")

    def _effect(self, statement: Statement) -> None:
        """A statement that is run for what it does. It may go on setting up something new."""
        root = _root(statement.node)
        text = ast.unparse(statement.node).split("\n")[0]
        if statement.alias is not None:
            reason = f"`{text}` may bind any name"
        elif root in self.fresh_names and self._can_stand(statement, "statement"):
            self.found.add(text, statement, "statement", f"sets up {root}")
            return
        else:
            reason = f"`{text}` is run once, when the module is imported, and has been"
        self.found.refuse("", statement.line, "statement", reason)

    def _rebound(self, statement: Statement, names: frozenset[str]) -> None:
        """A statement that gives a name of the old version another value, perhaps."""
        olds = [old for name in names for old in self.scope.old_binders.get(name, ())]
        readers = [self.found.world.readers(self.found.new.module, name) for name in sorted(names)]
        if any(isinstance(old.node, syntax.DefinitionNode) for old in olds):
            self._refuse_names(names, statement, "it was a function or a class and is now bound to something else")
        elif not isinstance(statement.node, ast.Assign) and _is_import(statement.node):
            self._rebound_import(statement, names, readers)
        else:
            self._constant(statement, names, readers)

    def _rebound_import(self, statement: Statement, names: frozenset[str], readers: list[Readers]) -> None:
        """The name comes from elsewhere: whether it is the same object, loading the patch will show."""
        if not any(reader.places or reader.importers for reader in readers):
            for name in names:
                self.found.note(name, statement.line, "import", "imported from elsewhere, and used in annotations only")
        elif problem := self._missing_origin(statement):
            self._refuse_names(names, statement, problem)
        elif self._can_stand(statement, "import"):
            for name in sorted(names):
                self.found.add(name, statement, "import", "imported from elsewhere; it must be the same object")

    def _missing_origin(self, statement: Statement) -> str | None:
        """Why an import cannot work in a process that runs the old release."""
        world, node = self.found.world, statement.node
        if not isinstance(node, ast.ImportFrom) or statement.alias is None:
            return None
        origin, name = self.found.new.resolve(node), statement.alias.name
        if world.new.path_of(origin) is None or world.old.path_of(f"{origin}.{name}") is not None:
            return None
        path = world.old.path_of(origin)
        if path is None:
            return f"it is imported from {origin}, which is new"
        try:
            bound = world.source(path, new=False).bound
        except NOT_PYTHON:
            bound = set()
        return None if name in bound else f"it moved to {origin}"

    def _constant(self, statement: Statement, names: frozenset[str], readers: list[Readers]) -> None:
        places = [place for reader in readers for place in reader.places]
        value = getattr(statement.node, "value", None)
        release = all(_RELEASE_NAMES.fullmatch(name) for name in names)
        harmless = isinstance(value, ast.expr) and (syntax.is_type_alias(value) or (release and _is_literal(value)))
        if value is None or statement.under or not syntax.is_plain_value(value) or (places and not harmless):
            self._refuse_names(names, statement, _read_by("its value changed", places))
        elif not names <= self.scope.old_binders.keys():
            self._refuse_names(names, statement, "it is bound together with a new name")
        else:
            reason = "set without consistency" + (_read_by("", places) if places else ", as no code reads it")
            for name, reader in zip(sorted(names), readers, strict=True):
                self._at_completion(name, statement.line, reason, reader)

    def _at_completion(self, name: str, line: int, reason: str, reader: Readers) -> None:
        found = self.found
        found.say(AT_COMPLETION, name, line, "constant", reason, entry=ConstantEntry(name, line))
        for source, alias, import_line in reader.importers:
            entry = ConstantEntry(alias, import_line, f"{found.new.module}:{name}")
            reason, needs = f"imported from {found.new.module}, and follows it", frozenset({entry.origin})
            place = source.module, alias, source.path, import_line
            change = Change(AT_COMPLETION, *place, "constant", reason, entry=entry, needs=needs)
            if change not in found.changes:
                found.changes.append(change)

    def _refuse_names(self, names: Iterable[str], statement: Statement, reason: str) -> None:
        for name in sorted(names):
            self.found.refuse(name, statement.line, "import" if statement.alias else "constant", reason)

    def _gone(self, statement: Statement) -> None:
        """A statement that is no definition and that the new version lacks, or has in another form."""
        names = statement.binds()
        if _is_future(statement):
            self._future(statement)
        elif _only_exports(statement):
            self.found.note("__all__", statement.line, "statement", "only `import *` reads it")
        elif syntax.is_declaration(statement.node):
            self.found.note("", statement.line, "statement", "an annotation without a value")
        elif not names:
            text = ast.unparse(statement.node).split("\n")[0]
            self.found.refuse("", statement.line, "statement", f"`{text}` is gone, but what it did remains")
        else:
            for name in sorted(names - self.settled):
                kind = "import" if statement.alias else "name"
                if _is_plain_import(statement) and all(
                    map(_is_plain_import, self.scope.new_binders.get(name, [statement]))
                ):
                    self.found.note(name, statement.line, kind, "gone; what it imported stays imported")
                elif name in self.scope.new_binders:
                    self.found.refuse(name, statement.line, kind, "one of several statements that bind it is gone")
                elif name in self.found.new.global_reads:
                    self.found.refuse(name, statement.line, kind, "gone, and new code that names it means another one")
                else:
                    self.found.note(name, statement.line, kind, "gone; it is left in place, and nothing new reads it")


def _is_future(statement: Statement) -> bool:
    return isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"


def _is_import(node: ast.stmt) -> bool:
    """Whether a statement does nothing but import, and bind parts of what it imported or constants."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):
        return True
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant | ast.Attribute)
    return isinstance(node, ast.If | ast.Try) and all(_is_import(inner) for inner in syntax.nested_statements(node))


def _is_plain_import(statement: Statement) -> bool:
    """Whether it is `import a.b`, which binds the same as `import a`."""
    return isinstance(statement.node, ast.Import) and statement.alias is not None and not statement.alias.asname


def _only_exports(statement: Statement) -> bool:
    return statement.binds() == frozenset({"__all__"}) or (not statement.binds() and _root(statement.node) == "__all__")


def _root(node: ast.stmt) -> str:
    """The name on which a statement acts: `x` of `x.y = 1`, `x += 1` and `x.y(1)`."""
    if isinstance(node, ast.Assign):
        return syntax.first_name(node.targets[0])
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return syntax.first_name(node.target)
    return syntax.first_name(node.value) if isinstance(node, ast.Expr) else ""


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def _read_by(what: str, places: list[str]) -> str:
    if not places:
        return what
    more = f" and {len(places) - 1} more" if len(places) > 1 else ""
    return f"{what}, and it is read by {places[0]}{more}"
