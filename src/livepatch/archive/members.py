"""Members of classes, and decorated functions, that are exchanged as a whole, so that both worlds see their own.

Exchanging code is not enough where a static method becomes a class method, a property takes the place of an
attribute, a method goes and an inherited one comes to light, one is added over an inherited one, or a decorator
changes. Setting the new object at once would show it to tasks that have not moved; setting it at the end would leave
those that have without it.

So while a transition runs, a *switch* stands in the class. Whoever looks the name up gets to a function that the patch
itself brings, and that the patch redirects like any other: born with code that does what the old version did, it is
given code that does what the new one does. Trampolines, footprints, blockers: all is the core's. For what is called,
the switch gives out something to call, and the version is chosen when that is done, not when the name is looked up;
for what is read (properties), it is chosen when it is read. When the transition is over the switch goes, and the new
object stands there as the new source makes it; before it is taken back the switch returns.

The functions of the old member and of the new one are redirected, too, since somebody may hold them, a bound method in
a registry, say, or have looked them up and be about to call them. Each calls what the other world has. Where something
is around a function that cannot be called otherwise, a wrapper, it is *retired*: who holds it keeps it. In both cases
no task moves while it is in one of the wrong world.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Iterator
from types import FunctionType, ModuleType
from typing import Any

from livepatch.archive.conversion import conversion
from livepatch.archive.defaults import find_class
from livepatch.archive.format import MemberEntry, ObjectEntry, refusal
from livepatch.archive.pieces import NewSource, Piece, Values, cut, evaluate, like, live_class, mangled
from livepatch.archive.switch import INHERITED, Place, Stored, Switch
from livepatch.core.codes import Definition
from livepatch.core.model import Func

#: What the class statement makes of a plain function of these names.
_CONVERTED: dict[str, Callable[[Any], Any]] = {"__class_getitem__": classmethod}


class Members:
    """The members of one module that are exchanged as a whole."""

    def __init__(self, entry: ObjectEntry, old: NewSource, source: NewSource, definitions: list[Definition]) -> None:
        self._module = entry.module
        self._source = source
        self.switches: dict[str, Switch] = {}
        self._scratch: dict[str, type] = {}
        self._pieces: dict[str, Piece | None] = {}
        for member in entry.members:
            stored = _stored(member, old, source) if member.becomes == "converted" else None
            self.switches[member.name] = Switch(member.name, member.flavour, reads=member.how == "read", stored=stored)
            self._pieces[member.name] = self._piece(member) if member.becomes in ("new", "valued") else None
            if member.becomes not in ("new", "valued"):
                continue
            if self._pieces[member.name] is None:
                raise refusal(f"The archive exchanges '{member.name}', which its source does not define.")
            brought = [definition for definition in definitions if definition.name == member.name]
            for definition in brought:
                self.switches[member.name].bring(definition, direct=len(brought) == 1 and member.direct)
        self._entries = entry.members

    def _piece(self, member: MemberEntry) -> Piece | None:
        """All statements that bind the name, in order, as one."""
        path, _, name = member.name.rpartition(".")

        def wanted(node: ast.AST) -> bool:
            if isinstance(node, ast.alias):
                return name == (node.asname or node.name)
            return isinstance(node, ast.stmt) and name in set(_bound(node))

        pieces = [piece for piece in cut(self._source.tree.body, wanted) if piece.path == path]
        if not pieces:
            return None
        first = pieces[0].statement
        both = ast.copy_location(ast.If(ast.Constant(True), [piece.statement for piece in pieces], []), first)
        return Piece(ast.fix_missing_locations(both), pieces[0].classes, pieces[0].conditional)

    @property
    def funcs(self) -> Iterator[Func]:
        """What has to be in the patch for the switches."""
        return (func for switch in self.switches.values() for func in switch.funcs)

    @property
    def imports(self) -> Iterator[ast.ImportFrom]:
        """What has to be imported for functions that come from elsewhere now."""
        for piece in self._pieces.values():
            body = getattr(piece.statement, "body", ()) if piece is not None else ()
            yield from (node for node in body if isinstance(node, ast.ImportFrom))

    def verify(self, module: ModuleType) -> None:
        """Raise LivepatchError (EINVAL) if a class is not there, or what it has is not what a switch can stand for."""
        for member in self._present(module):
            there = vars(self._place(member, module)).get(member.name.rpartition(".")[2], INHERITED)
            switch = self.switches[member.name]
            place = self._place(member, module)
            subclasses: list[type] = type.__subclasses__(place) if isinstance(place, type) else []
            if member.becomes == "generated" and any("__dataclass_fields__" in vars(cls) for cls in subclasses):
                raise refusal(f"The class of '{member.name}' in '{self._module}' has subclasses with its fields.")
            if member.becomes == "converted" and not getattr(place, "__dictoffset__", 0):
                raise refusal(f"Instances with '{member.name}' in '{self._module}' have slots only.")
            if not switch.stands(there) and not switch.fits(there, INHERITED):
                raise refusal(f"'{member.name}' in '{self._module}' is a {type(there).__name__} in this process.")

    def _present(self, module: ModuleType) -> Iterator[MemberEntry]:
        """The members of classes that are there; the switch of another stands nowhere."""
        for member in self._entries:
            if not member.conditional or live_class(module, member.name.rpartition(".")[0]) is not None:
                yield member

    def _place(self, member: MemberEntry, module: ModuleType) -> Place:
        path = member.name.rpartition(".")[0]
        if not path:
            return module
        cls = live_class(module, path)
        if cls is None:
            raise refusal(f"'{path}' is not a class in the live module '{self._module}'.")
        return cls

    def make(self, module: ModuleType, values: Values) -> None:
        """Evaluate the new members, and let the switches stand. Raises what evaluating raises.

        Names that have changed mean what `values` says; functions learn that by being redirected.
        """
        try:
            for member in self._present(module):
                place, switch = self._place(member, module), self.switches[member.name]
                if member.becomes == "converted":
                    name = mangled(member.name.rpartition(".")[0], switch.name)
                    there = vars(place).get(name, INHERITED)
                    switch.aim([(place, name)], there, there)
                    continue
                if member.becomes == "generated":
                    new = vars(self._made_again(member, module, values)).get(switch.name, INHERITED)
                    old = vars(place).get(switch.name, INHERITED)
                    if new is not INHERITED or old is not INHERITED:
                        switch.aim([(place, switch.name)], old, new)
                    continue
                if member.becomes == "valued":
                    new = values.get(None, {}).get(switch.name, INHERITED)
                    switch.adopt(new)
                    switch.aim([], vars(place).get(switch.name, INHERITED), new)
                    continue
                new = {"gone": INHERITED, "none": None}.get(member.becomes, INHERITED)
                piece = self._pieces[member.name]
                if piece is not None:
                    new = evaluate(self._source, [piece], module, values).get(switch.name, INHERITED)
                    if isinstance(new, FunctionType) and switch.name in _CONVERTED and isinstance(place, type):
                        new = _CONVERTED[switch.name](new)
                old = vars(place).get(switch.name, INHERITED)
                if not switch.fits(old, new):
                    raise refusal(f"'{member.name}' in '{self._module}' cannot be exchanged: it is not called alike.")
                followers = [name.partition(":") for name in member.followers]
                places = [(sys.modules[name], alias) for name, _, alias in followers if name in sys.modules]
                switch.adopt(new)
                switch.aim([(place, switch.name), *places], old, new)
                if hasattr(type(new), "__set_name__") and isinstance(place, type):
                    type(new).__set_name__(new, place, switch.name)
            for switch in self.switches.values():
                switch.stand()
        except BaseException:
            self.take_back()
            raise

    def _made_again(self, member: MemberEntry, module: ModuleType, values: Values) -> type:
        """The class that the new class statement makes; the build has made sure that it does nothing else."""
        path, _, name = member.name.rpartition(".")[0].rpartition(".")
        if member.name.rpartition(".")[0] not in self._scratch:

            def wanted(node: ast.AST) -> bool:
                return isinstance(node, ast.ClassDef) and node.name == name

            pieces = [piece for piece in cut(self._source.tree.body, wanted) if piece.path == path]
            # Without its bases, which shall not hear of it; they have no say in what is generated.
            alone = Piece(like(pieces[-1].statement, bases=[]), pieces[-1].classes)
            self._scratch[member.name.rpartition(".")[0]] = evaluate(self._source, [alone], module, values)[name]
        return self._scratch[member.name.rpartition(".")[0]]

    def complete(self) -> None:
        for switch in self.switches.values():
            switch.complete()

    def return_(self) -> None:
        for switch in self.switches.values():
            switch.return_()

    def take_back(self) -> None:
        for switch in self.switches.values():
            switch.restore()

    def take_over(self, other: Members) -> None:
        """The patch of `other` has been replaced: what was there before it is what comes back in the end."""
        for switch in other.switches.values():
            mine = self.switches.get(switch.full_name)
            if mine is not None:
                mine.take_over(switch)


def _stored(member: MemberEntry, old: NewSource, new: NewSource) -> tuple[Stored, Stored]:
    path, _, name = member.name.rpartition(".")
    before, after = find_class(old.tree, path), find_class(new.tree, path)
    found = None if before is None or after is None else conversion(before, after, name)
    if found is None:
        raise refusal(f"The archive converts '{member.name}', but its source does not say how.")
    forth, back = found
    return Stored(mangled(path, name), back), Stored(mangled(path, name), forth)


def _bound(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
        for target in node.targets if isinstance(node, ast.Assign) else [node.target]:
            yield from (inner.id for inner in ast.walk(target) if isinstance(inner, ast.Name))
