"""What a patch adds to a live module: functions, classes, imports, names, and members of classes.

They are added one by one before any function is redirected, in the order of the new source, so that each can
use the ones before. Old code does not know their names, so nobody notices. For that to be true, a name must
be free: in the module, and in a class also among what it inherits. An import may find its name bound, to the
very object that it would have bound. A cumulative patch may find what the patch that it replaces has added, if that
is the same function or the same plain value: then it takes it over.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from types import CodeType, FunctionType, ModuleType
from typing import Any

from livepatch.archive.arrivals import Arrivals, adopted
from livepatch.archive.constants import Constants, changed_functions
from livepatch.archive.format import AddedEntry, ObjectEntry, refusal
from livepatch.archive.pieces import (
    NewSource,
    Piece,
    compiled,
    cut,
    imports,
    like,
    live_class,
    owner,
    run_code,
    with_values,
)
from livepatch.archive.registrations import Registrations
from livepatch.core import codes
from livepatch.core.carriers import functions_of

_Place = ModuleType | type
_ABSENT = object()
_PLAIN = (str, bytes, int, float, complex, type(None), re.Pattern)


class Additions:
    """The additions of one module: looked at, made, and taken back.

    `everything` has (id of module or class, name) of everything that the patch has added anywhere.
    """

    def __init__(
        self,
        entry: ObjectEntry,
        source: NewSource,
        everything: set[tuple[int, str]],
        arrivals: Arrivals,
        *,
        replace: bool = False,
    ) -> None:
        self._replace = replace
        self._arrivals = arrivals
        self._module = entry.module
        self._removed = entry.removed
        self._source = source
        self._assigned = frozenset(_assigned(source.tree))
        self._everything = everything
        self._made: list[tuple[_Place, str, Any]] = []
        self._shared: list[tuple[_Place, str, Any]] = []  # made by the patch that this one replaces
        self._registrations = Registrations()
        self._given: list[tuple[CodeType, CodeType]] = []  # code of functions with changed values in it, and as written
        found: set[AddedEntry] = set()

        def wanted(node: ast.AST) -> bool:
            entries = [added for added in entry.added if _is_for(added, node)]
            found.update(entries)
            return bool(entries)

        self._pieces = [
            Piece(self._adopted(piece.statement, entry), piece.classes, piece.conditional)
            for piece in cut(_unstarred(source.tree.body, entry), wanted)
        ]
        for added in entry.added:
            if added not in found:
                raise refusal(f"The archive adds '{added.name}' to '{self._module}', but its source lacks it.")

    def _adopted(self, node: ast.stmt, entry: ObjectEntry) -> ast.stmt:
        """What stands for a statement: itself, unless what it binds has moved."""
        origins = [added.origin for added in entry.added if added.origin and _is_for(added, node)]
        return adopted(node, origins[0]) if origins else node

    def do_imports(self, module: ModuleType, others: Iterator[ast.ImportFrom]) -> None:
        """Import what the new statements, and `others`, will import. Raises LivepatchError (EINVAL) if that fails."""
        package = module.__spec__.parent if module.__spec__ is not None else module.__package__
        for piece in [*self._pieces, *map(Piece, others)]:
            for node in imports(piece):
                try:
                    self._arrivals.do_imports(node, package)
                except Exception as error:  # importing runs foreign code
                    if not isinstance(piece.statement, ast.Try):
                        raise refusal(
                            f"`{ast.unparse(node)}` in the new version of '{self._module}' fails: {error!r}."
                        ) from error

    def verify(self, module: ModuleType) -> None:
        """Raise LivepatchError (EINVAL) if a class is not there or a name is taken.

        What imports bind may be there already; that shows only when they are run.
        """
        for piece in self._pieces if not self._replace else ():
            place, node = owner(piece, module), piece.statement
            if place is not None and not isinstance(node, ast.Import | ast.ImportFrom | ast.If | ast.Try):
                for name in _bound(node):
                    self._check_free(place, name)
        for removed in self._removed:
            path, _, name = removed.name.rpartition(".")
            cls = live_class(module, path)
            base = self._inherited_from(cls, name) if cls is not None else None
            if base is not None:
                raise refusal(
                    f"'{removed.name}' in '{self._module}' is gone in the new version, and the one inherited "
                    f"from '{base.__qualname__}' would come to light."
                )

    def make(self, module: ModuleType, constants: Constants) -> None:
        """Add everything, or nothing, in the order of the source, in which constants come in between.

        Raises what the new statements raise.
        """
        self._given = []
        ran: list[CodeType] = []
        values: list[Any] = []
        tables = self._registrations.snapshot(module) if any(_may_note(piece) for piece in self._pieces) else []
        try:
            for piece in self._pieces:
                place = owner(piece, module)
                constants.evaluate(module, piece.statement.lineno)
                if place is not None:
                    code = compiled(self._source, [piece])
                    given = with_values(code, constants.values)
                    ran.append(given)
                    self._given += changed_functions(code, given)
                    for name, value in run_code(given, [piece], module, constants.values).items():
                        values += [] if isinstance(piece.statement, ast.Import | ast.ImportFrom) else [value]
                        there = vars(place).get(name, _ABSENT)
                        if self._replace and (id(place), name) not in self._everything and _alike(there, value):
                            self._shared.append((place, name, there))
                        elif there is not value:
                            self._check_free(place, name)
                            self._bind(place, name, value)
            self._registrations.note(tables, ran, values)
        except BaseException:
            self._registrations.note(tables, ran, values)
            self.take_back()
            raise

    def complete(self) -> None:
        """All names have their new values: new functions read these, too, as others do."""
        written = {id(given): code for given, code in self._given}
        found = functions_of(given for given, _ in self._given) if written else {}
        for key, functions in found.items():
            for function in functions:
                function.__code__ = written[key]
        self._given = []

    def take_over(self, other: Additions) -> None:
        """The patch of `other` has been replaced: what both have added is ours now, and the rest goes."""
        shared = {(id(place), name) for place, name, _ in self._shared}
        self._made += self._shared
        self._shared = []
        other._made = [made for made in other._made if (id(made[0]), made[1]) not in shared]
        self._registrations.take_over(other._registrations)
        other.take_back()

    def take_back(self) -> None:
        """Remove what was added, unless somebody has put something else in its place.

        What the new code itself puts there, an instance that it makes when it is first asked for one, goes as well:
        else the patch could not be loaded again.
        """
        self._shared = []
        self._registrations.take_back()
        while self._made:
            place, name, value = self._made.pop()
            self._everything.discard((id(place), name))
            there = vars(place).get(name, _ABSENT)
            if there is value or (there is not _ABSENT and name in self._assigned):
                if isinstance(place, type):
                    type.__delattr__(place, name)
                else:
                    del vars(place)[name]

    def _check_free(self, place: _Place, name: str) -> None:
        if (id(place), name) in self._everything:
            return  # the new source binds it twice: the accessors of a property
        shown = f"{place.__qualname__}.{name}" if isinstance(place, type) else name
        if name in vars(place):
            raise refusal(f"'{shown}' exists already in the live module '{self._module}' and is something else.")
        base = self._inherited_from(place, name) if isinstance(place, type) else None
        if base is not None:
            raise refusal(
                f"The new '{shown}' in '{self._module}' would hide from old code what is inherited "
                f"from '{base.__qualname__}'."
            )

    def _inherited_from(self, cls: type, name: str) -> type | None:
        """The class that gives `name` to old code."""
        for base in cls.__mro__[1:]:
            if name in vars(base) and (id(base), name) not in self._everything:
                return base
        return None

    def _bind(self, place: _Place, name: str, value: Any) -> None:
        self._made.append((place, name, value))
        self._everything.add((id(place), name))
        if not isinstance(place, type):
            vars(place)[name] = value
            return
        type.__setattr__(place, name, value)  # a metaclass has no say: the class was made long ago
        if hasattr(type(value), "__set_name__"):
            type(value).__set_name__(value, place, name)


def _alike(one: object, other: object) -> bool:
    """Two things that nobody can tell apart: functions of the same code, or values that cannot change."""
    if isinstance(one, FunctionType) and isinstance(other, FunctionType):
        same_defaults = one.__defaults__ == other.__defaults__ and one.__kwdefaults__ == other.__kwdefaults__
        return codes.same(one.__code__, other.__code__) and same_defaults and not (one.__closure__ or other.__closure__)
    return type(one) is type(other) and isinstance(one, _PLAIN) and one == other


def _unstarred(body: list[ast.stmt], entry: ObjectEntry) -> list[ast.stmt]:
    """The statements, where `import *` at the top has become an import of the names that the entry has for its line."""
    found = []
    for node in body:
        if isinstance(node, ast.ImportFrom) and node.names[0].name == "*":
            names = [added.name for added in entry.added if (added.kind, added.line) == ("import", node.lineno)]
            node = like(node, names=[ast.copy_location(ast.alias(name), node) for name in names] or node.names)
        found.append(node)
    return found


def _may_note(piece: Piece) -> bool:
    """Whether something that a statement calls may note what it makes."""
    return any(
        isinstance(node, ast.Call)
        or (isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and node.decorator_list)
        or (isinstance(node, ast.ClassDef) and (node.bases or node.keywords))
        for node in ast.walk(piece.statement)
    )


def _is_for(added: AddedEntry, node: ast.AST) -> bool:
    """Whether an entry of the manifest means this statement or part of an import."""
    if getattr(node, "lineno", None) != added.line:
        return False
    if isinstance(node, ast.alias):
        return added.kind == "import" and added.name == (node.asname or node.name.split(".")[0])
    if not isinstance(node, ast.stmt) or isinstance(node, ast.Import | ast.ImportFrom):
        return False
    return added.kind == "statement" or added.name.rpartition(".")[2] in set(_bound(node))


def _assigned(tree: ast.Module) -> Iterator[str]:
    """The names to which functions of a module may assign: global ones, and attributes of what may be a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Global):
            yield from node.names
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) != "self":
            yield node.attr


def _bound(node: ast.stmt) -> Iterator[str]:
    """The names that a statement binds where it stands."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    for inner in ast.walk(node):
        if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield inner.name
        elif isinstance(inner, ast.alias):
            yield inner.asname or inner.name.split(".")[0]
        elif isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Store):
            yield inner.id
