"""New members of a live enumeration.

The new class statement is executed in a scratch namespace, which tells the values (the build has made sure that it does
nothing else); each new one is then made a member of the live class, whose old members stay the objects that they are.
They are there before the transition, because new code names them. Old code does not, but it sees them when it goes
through all members, or asks for one by a value that had none: that is not consistent, and the report says so.
"""

from __future__ import annotations

import ast
import enum
from types import ModuleType
from typing import Any

from livepatch.archive.format import ObjectEntry, refusal
from livepatch.archive.pieces import NewSource, cut, evaluate, live_class


class Enums:
    """The new members of one module's enumerations: made, and taken back."""

    def __init__(self, entry: ObjectEntry, source: NewSource, *, replace: bool = False) -> None:
        self._replace = replace
        self._shared: list[tuple[Any, str, Any, bool]] = []  # made by the patch that this one replaces
        self._module = entry.module
        self._source = source
        self._entries = entry.enums
        self._made: list[tuple[Any, str, Any, bool]] = []

    def verify(self, module: ModuleType) -> None:
        """Raise LivepatchError (EINVAL) if there is no such enumeration, or its member is taken."""
        for entry in self._entries:
            path, _, name = entry.name.rpartition(".")
            cls = live_class(module, path)
            if cls is None or not issubclass(cls, enum.Enum) or issubclass(cls, enum.Flag):
                raise refusal(f"'{path}' is not an enumeration in the live module '{self._module}'.")
            if not self._replace and (name in vars(cls) or name in cls.__members__):
                raise refusal(f"'{entry.name}' exists already in the live module '{self._module}'.")

    def make(self, module: ModuleType) -> None:
        """Add the members. Raises what executing the class statement raises."""
        try:
            for path in dict.fromkeys(entry.name.rpartition(".")[0] for entry in self._entries):
                cls: Any = live_class(module, path)
                scratch = self._scratch(path, module)
                new = {e.name.rpartition(".")[2] for e in self._entries if e.name.rpartition(".")[0] == path}
                for name, member in cls.__members__.items():
                    if name not in new and (
                        name not in scratch.__members__ or scratch.__members__[name].value != member.value
                    ):
                        raise refusal(f"'{path}.{name}' would have another value.")
                for entry in self._entries:
                    if entry.name.rpartition(".")[0] == path:
                        name = entry.name.rpartition(".")[2]
                        self._add(cls, name, scratch.__members__[name].value)
        except BaseException:
            self.take_back()
            raise

    def _scratch(self, path: str, module: ModuleType) -> Any:
        outer, _, name = path.rpartition(".")

        def wanted(node: ast.AST) -> bool:
            return isinstance(node, ast.ClassDef) and node.name == name

        pieces = [piece for piece in cut(self._source.tree.body, wanted) if piece.path == outer]
        return evaluate(self._source, pieces[-1:], module, {})[name]

    def _add(self, cls: Any, name: str, value: Any) -> None:
        alias = value in cls._value2member_map_
        if name in cls._member_map_:
            if cls._member_map_[name].value != value:
                raise refusal(f"'{cls.__qualname__}.{name}' has another value from the patch before.")
            self._shared.append((cls, name, cls._member_map_[name], cls._member_map_[name].name != name))
            return
        if alias:
            member = cls._value2member_map_[value]
        else:
            kind = cls._member_type_
            member = object.__new__(cls) if kind is object else kind.__new__(cls, value)
            member._name_, member._value_, member.__objclass__ = name, value, cls
            member._sort_order_ = len(cls._member_names_)
            cls._member_names_.append(name)
            cls._value2member_map_[value] = member
        cls._member_map_[name] = member
        type.__setattr__(cls, name, member)  # the metaclass would refuse
        self._made.append((cls, name, member, alias))

    def take_over(self, other: Enums) -> None:
        """The patch of `other` has been replaced: what both have made is ours now."""
        shared = {(id(cls), name) for cls, name, _, _ in self._shared}
        self._made += self._shared
        self._shared = []
        other._made = [made for made in other._made if (id(made[0]), made[1]) not in shared]

    def take_back(self) -> None:
        """Remove them; who holds one keeps it."""
        self._shared = []
        while self._made:
            cls, name, member, alias = self._made.pop()
            if cls._member_map_.get(name) is member:
                del cls._member_map_[name]
                type.__delattr__(cls, name)
            if not alias and name in cls._member_names_:
                cls._member_names_.remove(name)
                cls._value2member_map_.pop(member._value_, None)
