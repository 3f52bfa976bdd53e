"""The rules for the statements of a module: what may be added to a live one, and what cannot change."""

from __future__ import annotations
import __future__

import ast
import builtins
from collections.abc import Iterable, Iterator

from livepatch.archive.format import AddedEntry
from livepatch.build import syntax
from livepatch.build.branches import decide
from livepatch.build.classes import compare_classes
from livepatch.build.deleted import follow_deleted, follow_unset
from livepatch.build.effects import carry_effect, is_replaced
from livepatch.build.findings import Findings
from livepatch.build.groups import imported
from livepatch.build.members import another_kind, exchange_function, exchange_import
from livepatch.build.purity import Purity
from livepatch.build.registered import lacks_registration
from livepatch.build.report import ADDED
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement
from livepatch.build.tuples import without_respelled
from livepatch.build.world import NOT_PYTHON


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
        found = self.found
        found.note_dormant(self.scope)
        scope = self.scope = without_respelled(found, self.scope)
        decide(found, scope)
        for pair, gone, fresh in (scope.definitions(kind) for kind in (syntax.FunctionNode, ast.ClassDef)):
            for old, new in pair:
                if isinstance(new.node, ast.ClassDef):
                    compare_classes(found, "", old, new)
                elif self._is_other(old, new) and exchange_function(found, (old, new)):
                    pass  # that has said all
                else:
                    found.compare_functions("", (old, new), scope, self._may_be_replaced(old))
            for statement in fresh:
                self._fresh_definition(statement)
            for statement in gone:
                self._gone_definition(statement)
        plain_gone, plain_fresh = found.without_respelled(*scope.plain(lambda statement: statement.key))
        for statement in plain_fresh:
            self._fresh(statement)
            found.claim(statement)
        for statement in scope.new:
            if _is_star(statement) and not any(statement is other for other in plain_fresh):
                self._star(statement, known=self.found.world.star_names(self.found.new.origin(statement), new=False))
        for statement in plain_gone:
            self._gone(statement)
            found.claim(statement)

    def _is_other(self, old: Statement, new: Statement) -> bool:
        """Whether it is not enough to exchange the code of a function."""
        assert isinstance(old.node, syntax.FunctionNode)
        assert isinstance(new.node, syntax.FunctionNode)
        if self.found.old.text(old.node) == self.found.new.text(new.node):
            return False
        return self.found.redecorated(old.node, new.node) or bool(another_kind(self.found, [old], [new]))

    def _may_be_replaced(self, statement: Statement) -> bool:
        """Whether a function need not be alive, as its name is bound to something else: by a version in C, say."""
        (name,) = statement.binds() or ("",)
        return any(not isinstance(other.node, syntax.DefinitionNode) for other in self.scope.old_binders.get(name, ()))

    def _fresh_definition(self, statement: Statement) -> None:
        node = statement.node
        assert isinstance(node, syntax.DefinitionNode)
        kind = "class" if isinstance(node, ast.ClassDef) else "function"
        if node.name in self.found.decided or self._adopt(node.name, statement, kind):
            pass
        elif (self.found.new.module, node.name) in self.found.world.moves.torn:
            origin = self.found.world.moves.torn[self.found.new.module, node.name]
            reason = f"it has changed on its way from {origin}, whose instances are none of it"
            self.found.refuse(node.name, node.lineno, kind, reason)
        elif node.name in self.scope.old_binders:
            self.found.refuse(node.name, node.lineno, kind, "the name is bound already, and is bound in one more place")
        elif isinstance(node, ast.ClassDef) and (why := lacks_registration(self.found.world, self.found.new, node)):
            self.found.refuse(node.name, node.lineno, kind, why)
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
        if node.name in self.found.decided:
            pass
        elif self.found.world.moves.has_left(self.found.new.module, node.name):
            moves = self.found.world.moves
            comes_back = moves.stays(self.found.old, self.found.new, node.name)
            if not comes_back and node.name in self.scope.new_binders:
                self._refuse_names([node.name], statement, "it has moved, and the name means something else now")
            elif not comes_back and node.name in self.found.new.global_reads:
                self.found.refuse(node.name, node.lineno, kind, "gone, and new code that names it means another one")
            else:
                self.found.note(node.name, node.lineno, kind, "it has moved, and is the same object there")
        elif node.name not in self.scope.new_binders and node.name in self.found.new.global_reads:
            self.found.refuse(node.name, node.lineno, kind, "gone, and new code that names it means another one")
        elif node.name not in self.scope.new_binders:
            self.found.note(node.name, node.lineno, kind, "gone; it is left in place, and nothing new calls it")
        elif node.name not in self.settled:
            new = self.scope.new_binders[node.name]
            if self.scope.merged((statement, new[-1])):
                pass  # the one function that there is now takes the place of both
            elif len(new) > 1 or not exchange_import(self.found, self.scope.old_binders[node.name], new[0]):
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
        whole = list(map(_whole, under))
        if not any(list(map(_whole, other.under[: len(under)])) == whole for other in self.scope.old):
            return True  # the whole block is new
        if kind == "import" and self._is_only_tried(statement):
            return True
        names = " ".join(sorted(statement.binds() or ()))
        self.found.refuse(names, statement.line, kind, f"it is new inside `{under[-1]}`")
        return False

    def _is_only_tried(self, statement: Statement) -> bool:
        """Whether an import in a `try` can be tried alone: all that may fail before it are imports like it, and nothing
        is imported instead if it does."""
        around = syntax.beside(statement, self.scope.new)
        imports = [other for other in around if other.alias is not None]
        first = [other for other in around if other.line < statement.line]
        return all(other in imports for other in first) and all(
            header == "try" or header.startswith(("if ", "orelse of if "))
            for other in imports
            for header in other.under
        )

    def _fresh(self, statement: Statement) -> None:
        """A statement that is no definition and that the old version lacks, or has in another form."""
        names = statement.binds()
        self._touch_beside(statement, self.scope.new)
        if _is_future(statement):
            self._future(statement)
        elif _is_star(statement):
            self._star(statement)
        elif _only_exports(statement):
            self.found.note("__all__", statement.line, "statement", "only `import *` reads it")
        elif syntax.is_declaration(statement.node):
            self.found.note("", statement.line, "statement", "an annotation without a value")
        elif (names and len(names) == 1 and self._adopt(min(names), statement, "name")) or _decides(statement):
            pass
        elif statement.alias is None and (changed := statement.sets) is not None and any(changed):
            self._value(statement, *changed)
        elif not names:
            self._effect(statement)
        elif not names & self.scope.old_binders.keys():
            self._add(statement, names)
        elif not names <= self.settled:
            self._rebound_import(statement, names)
        self.settled |= names or set()

    def _adopt(self, name: str, statement: Statement, kind: str) -> bool:
        """Whether a fresh statement makes what has moved here from another module: then that is what the name means."""
        origin = self.found.world.moves.adopted.get((self.found.new.module, name))
        if origin is None or statement.alias is not None:
            return False
        reason = f"moved here from {origin.partition(':')[0]}, and the same object as before"
        self.found.say(ADDED, name, statement.line, kind, reason, entry=AddedEntry(name, kind, statement.line, origin))
        return True

    def _star(self, statement: Statement, known: frozenset[str] | None = frozenset()) -> None:
        """`import *` stands for an import of each name, if the source tells which; `known` ones are there already."""
        node, world = statement.node, self.found.world
        assert isinstance(node, ast.ImportFrom)
        names = world.star_names(self.found.new.origin(statement), new=True)
        if known is None:
            return
        if names is None or statement.under:
            text = ast.unparse(node)
            self.found.refuse("", statement.line, "statement", f"`{text}` may bind any name")
            return
        for name in sorted(names - known):
            others = [*self.scope.new_binders.get(name, ()), *self._other_stars(name, statement)]
            if all(other.line > statement.line for other in others) and others:
                continue  # what comes later in the source is what the name means
            alias = ast.copy_location(ast.alias(name), statement.alias or node)
            one = Statement(ast.copy_location(ast.ImportFrom(node.module, [alias], node.level), node), (), alias)
            if others:
                self.found.refuse(
                    name, statement.line, "import", "the name is bound already, and is bound in one more place"
                )
            elif name in self.scope.old_binders:
                self._rebound_import(one, frozenset({name}))
            else:
                self._add(one, frozenset({name}))
            self.settled.add(name)

    def _other_stars(self, name: str, statement: Statement) -> Iterator[Statement]:
        for other in self.scope.new:
            names = self.found.world.star_names(self.found.new.origin(other), new=True) if _is_star(other) else None
            if other is not statement and name in (names or ()):
                yield other

    def _touch_beside(self, statement: Statement, body: list[Statement]) -> None:
        """What a `try` leaves depends on all that may fail in it."""
        for other in syntax.beside(statement, body):
            for name in (other.binds() or set()) if other.alias is None else ():
                makers = self.scope.new_binders.get(name, ())
                if name in self.scope.old_binders and makers and all(s.alias is None for s in makers):
                    self.found.touch(name, other.line, f"`{ast.unparse(statement.node)}` beside it may decide")

    def _add(self, statement: Statement, names: frozenset[str]) -> None:
        kind = "import" if statement.alias else "name"
        if self._can_stand(statement, kind):
            for name in sorted(names):
                self.found.add(name, statement, kind)
            # What an import brings is not new: a statement about it may have any effect.
            self.fresh_names |= names if kind == "name" else set()

    def _value(self, statement: Statement, names: frozenset[str], attributes: frozenset[str]) -> None:
        """A statement that sets names of the module, or attributes of objects that it has."""
        bound = statement.binds()
        known = self.scope.old_binders.keys() | self.scope.old_sets
        owners = {attribute.partition(".")[0] for attribute in attributes}
        if attributes and isinstance(statement.node, ast.If | ast.For) and not owners & self.fresh_names:
            self._effect(statement)
        elif not names & known and not attributes:
            if bound is not None:
                self._add(statement, names)
            elif names & self.fresh_names or not self._is_foreign(statement, names):
                self._set_up(statement, names)
            else:
                self._effect(statement)
        elif bound is not None and _imports(statement.node):
            if not names <= self.settled:
                self._rebound_import(statement, names)
        elif bound is None and self._is_foreign(statement, names):
            self._effect(statement)
        else:
            olds = [old.node for name in names for old in self.scope.old_binders.get(name, ())]
            if any(isinstance(old, syntax.DefinitionNode) for old in olds):
                if not names <= self.settled:
                    self._refuse_names(names, statement, "it was a function or a class and is now something else")
            else:
                for name in sorted(names):
                    self.found.touch(name, statement.line)
            for attribute in sorted(attributes):
                owner, _, _ = attribute.rpartition(".")
                if owner.partition(".")[0] in self.fresh_names:
                    self.found.add(
                        ast.unparse(statement.node).split("\n")[0], statement, "statement", f"sets up {owner}"
                    )
                else:
                    self.found.touch(attribute, statement.line, self._once(statement), owner)
        self.settled |= names

    def _set_up(self, statement: Statement, names: frozenset[str]) -> None:
        """A statement that is run for what is new."""
        if self._can_stand(statement, "statement"):
            text = ast.unparse(statement.node).split("\n")[0]
            self.found.add(text, statement, "statement", f"sets up {' '.join(sorted(names))}")
            self.fresh_names |= names

    def _is_foreign(self, statement: Statement, names: frozenset[str]) -> bool:
        """Whether it changes what the module did not make itself."""
        loose = {
            name
            for name in names
            for binder in self.scope.new_binders.get(name, [])
            if binder.alias is not None or isinstance(binder.node, syntax.DefinitionNode)
        }
        return bool(loose) or any(
            name not in self.scope.new_binders and name not in _targets(statement) for name in names
        )

    def _future(self, statement: Statement) -> None:
        assert statement.alias is not None
        if statement.alias.name == "annotations":
            self.found.note("", statement.line, "statement", "annotations are (no longer) kept as strings")
        elif _has_long_come(statement.alias.name):
            self.found.note("", statement.line, "statement", f"{statement.alias.name} is what Python does anyway")
        else:
            self.found.refuse("", statement.line, "statement", f"the feature {statement.alias.name} came or went")

    def _effect(self, statement: Statement) -> None:
        """A statement that is run for what it does. It may go on setting up something new."""
        if follow_deleted(self.found, self.scope, statement, new=True):
            return
        root = _root(statement.node)
        text = ast.unparse(statement.node).split("\n")[0]
        if root in self.fresh_names and self._can_stand(statement, "statement"):
            self.found.add(text, statement, "statement", f"sets up {root}")
        elif not carry_effect(self.found, self.scope, statement):
            self.found.refuse("", statement.line, "statement", self._once(statement))

    def _once(self, statement: Statement) -> str:
        text = ast.unparse(statement.node).split("\n")[0]
        return f"`{text}` is run once, when the module is imported, and has been"

    def _rebound_import(self, statement: Statement, names: frozenset[str]) -> None:
        """The name comes from elsewhere: whether it is the same object, loading the patch will show."""
        olds = [old.node for name in names for old in self.scope.old_binders.get(name, ())]
        readers = [self.found.world.readers(self.found.new.module, name) for name in sorted(names)]
        moves = self.found.world.moves
        stays = statement.alias is not None and all(moves.stays(self.found.old, self.found.new, name) for name in names)
        if (
            statement.alias is not None
            and not stays
            and exchange_import(self.found, [*self._old_binders(names)], statement)
        ):
            return
        if self._took_the_place_of_a_value(statement, names):
            for name in names:
                self.found.touch(name, statement.line, "imported from elsewhere")
            return
        if not stays and any(isinstance(old, syntax.DefinitionNode) for old in olds):
            self._refuse_names(names, statement, "it was a function or a class and is now bound to something else")
            return
        if not any(reader.places or reader.importers for reader in readers):
            for name in names:
                self.found.note(name, statement.line, "import", "imported from elsewhere, and used in annotations only")
        elif not stays and (problem := self._missing_origin(statement)):
            self._refuse_names(names, statement, problem)
        elif self._can_stand(statement, "import"):
            for name in sorted(names):
                self.found.add(name, statement, "import", "imported from elsewhere; it must be the same object")

    def _took_the_place_of_a_value(self, statement: Statement, names: frozenset[str]) -> bool:
        """Whether what the module made itself comes from another package now: a value like any other."""
        if not isinstance(statement.node, ast.ImportFrom) or self.found.world.new.path_of(
            self.found.new.origin(statement)
        ):
            return False
        olds = [*self._old_binders(names)]
        plain = not any(_imports(old.node) or isinstance(old.node, syntax.DefinitionNode) for old in olds)
        return plain and all([s.alias for s in imported(self.found.new, name)] == [statement.alias] for name in names)

    def _old_binders(self, names: frozenset[str]) -> Iterator[Statement]:
        for name in names:
            yield from self.scope.old_binders.get(name, ())

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

    def _refuse_names(self, names: Iterable[str], statement: Statement, reason: str) -> None:
        for name in sorted(names):
            self.found.refuse(name, statement.line, "import" if statement.alias else "constant", reason)

    def _gone(self, statement: Statement) -> None:
        """A statement that is no definition and that the new version lacks, or has in another form."""
        names = statement.binds()
        self._touch_beside(statement, self.scope.old)
        if _is_future(statement):
            self._future(statement)
        elif _only_exports(statement):
            self.found.note("__all__", statement.line, "statement", "only `import *` reads it")
        elif syntax.is_declaration(statement.node):
            self.found.note("", statement.line, "statement", "an annotation without a value")
        elif _decides(statement):
            pass
        elif not names:
            self._gone_effect(statement)
        else:
            for name in sorted(names - self.settled):
                kind = "import" if statement.alias else "name"
                if _is_plain_import(statement) and all(
                    map(_is_plain_import, self.scope.new_binders.get(name, [statement]))
                ):
                    self.found.note(name, statement.line, kind, "gone; what it imported stays imported")
                elif name in self.scope.new_binders:
                    self._less(name, statement)
                elif name in self.found.new.global_reads:
                    self.found.refuse(name, statement.line, kind, "gone, and new code that names it means another one")
                else:
                    self.found.note(name, statement.line, kind, "gone; it is left in place, and nothing new reads it")

    def _less(self, name: str, statement: Statement) -> None:
        """One of several statements that bind a name is gone."""
        new = self.scope.new_binders[name]
        if any(binder.alias is not None or isinstance(binder.node, syntax.DefinitionNode) for binder in new):
            reason = "one of several statements that bind it is gone"
            self.found.refuse(name, statement.line, "import" if statement.alias else "name", reason)
        else:
            self.found.touch(name, new[-1].line, "one of several statements that bind it is gone")

    def _gone_effect(self, statement: Statement) -> None:
        """A statement is gone that was run for what it changed."""
        if follow_deleted(self.found, self.scope, statement, new=False):
            return
        if follow_unset(self.found, self.scope, statement) or is_replaced(self.found, statement):
            return
        names, attributes = statement.names_set, statement.attributes_set
        text = ast.unparse(statement.node).split("\n")[0]
        if isinstance(statement.node, ast.Expr) and self._only_computes(statement.node.value):
            self.found.note("", statement.line, "statement", f"`{text}` is gone, and did nothing but compute")
            return
        if (names or attributes) and attributes <= self.found.touched.keys() and not self._is_foreign(statement, names):
            for name in names & self.scope.new_binders.keys():
                self.found.touch(name, self.scope.new_binders[name][-1].line)
        elif names and not attributes and not names & self.scope.new_binders.keys():
            self.found.note("", statement.line, "statement", f"`{text}` is gone, with what it was about")
        else:
            self.found.refuse("", statement.line, "statement", f"`{text}` is gone, but what it did remains")

    def _only_computes(self, value: ast.expr) -> bool:
        return Purity(self.found.world, self.found.old, new=False).problem([value]) is None


def _whole(header: str) -> str:
    """What a statement stands under, with a `try` for all of its parts: what fails in one decides about the others."""
    return "try" if syntax.is_try(header) else header


def _targets(statement: Statement) -> set[str]:
    """The names that a statement binds, at any depth."""
    inside = [node for node in ast.walk(statement.node) if isinstance(node, ast.Import | ast.ImportFrom)]
    imported = {syntax.bound_name(node, alias) for node in inside for alias in node.names}
    named = (node for node in ast.walk(statement.node) if isinstance(node, ast.Name))
    return imported | {node.id for node in named if not isinstance(node.ctx, ast.Load)}


def _decides(statement: Statement) -> bool:
    """Whether all that a statement does is to leave a `try`, perhaps."""
    return syntax.only_raises(statement.node) and any(map(syntax.is_try, statement.under))


def _is_future(statement: Statement) -> bool:
    return isinstance(statement.node, ast.ImportFrom) and statement.node.module == "__future__"


def _is_star(statement: Statement) -> bool:
    return statement.alias is not None and statement.alias.name == "*" and not statement.dormant


def _is_import(node: ast.stmt) -> bool:
    """Whether a statement does nothing but import, and bind parts of what it imported or constants."""
    if isinstance(node, ast.Import | ast.ImportFrom | ast.Raise):
        return True
    if isinstance(node, ast.Assign):
        return isinstance(node.value, ast.Constant | ast.Attribute)
    return isinstance(node, ast.If | ast.Try) and all(_is_import(inner) for inner in syntax.nested_statements(node))


def _imports(node: ast.stmt) -> bool:
    """The same of those that import anything."""
    return _is_import(node) and any(isinstance(inner, ast.Import | ast.ImportFrom) for inner in ast.walk(node))


def _is_plain_import(statement: Statement) -> bool:
    """Whether it is `import a.b`, which binds the same as `import a`."""
    return isinstance(statement.node, ast.Import) and statement.alias is not None and not statement.alias.asname


def _has_long_come(feature: str) -> bool:
    """Whether a feature is one that no Python which livepatch supports can do without."""
    mandatory = getattr(getattr(__future__, feature, None), "mandatory", None)
    return mandatory is not None and mandatory < (3, 11)


def _only_exports(statement: Statement) -> bool:
    return statement.binds() == frozenset({"__all__"}) or (not statement.binds() and _root(statement.node) == "__all__")


def _root(node: ast.stmt) -> str:
    """The name on which a statement acts: `x` of `x.y = 1`, `x += 1` and `x.y(1)`."""
    if isinstance(node, ast.Assign):
        return syntax.first_name(node.targets[0])
    if isinstance(node, ast.AugAssign | ast.AnnAssign):
        return syntax.first_name(node.target)
    return syntax.first_name(node.value) if isinstance(node, ast.Expr) else ""
