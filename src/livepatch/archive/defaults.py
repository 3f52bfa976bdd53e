"""Attributes that live instances do not have: what a new `__init__` would have given them, computed when first read.

The builder and the loader ask the same question of the same source: which expression, in terms of the instance itself
and of the module's names, gives the value that the new constructor starts an attribute with? `derive` answers it by
following the constructor's statements:

- literals, names of the module, and calls that do nothing but make a value stand for themselves;
- a parameter that is new has its default, because nobody has passed it;
- a parameter that both constructors store in the same attribute is that attribute;
- a field of a dataclass has its default;
- an attribute that has become a property is where its value was until now: in the instance;
- methods that the constructor calls on the instance are part of it;
- what no constructor sets, but class methods that make an instance and return it, is what all of these give it.

Everything else, a condition on a parameter that nobody has kept, say, has no answer. The builder sees all modules, and
follows constructors of bases and calls of functions, too (`build.kinship`). What it finds so the loader cannot find by
itself, and the entry says it.

While the patch is in force the class has a `Default` under the name. It is no data descriptor, so an instance that has
the attribute never asks it; one that has not gets the value on the first read, into its own dictionary, and costs
nothing any more. Old code never reads the attribute: it does not know the name.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from livepatch.archive.constructors import ALONE, Follower, Kin, Known, bound, first, method_of
from livepatch.archive.format import DefaultEntry, ObjectEntry, refusal
from livepatch.archive.pieces import FunctionNode, NewSource, defaults_of, live_class, mangled

CONSTRUCTORS = ("__init__", "__post_init__")


def derive(
    old: ast.ClassDef, new: ast.ClassDef, attribute: str, kin: tuple[Kin, Kin] = (ALONE, ALONE)
) -> ast.expr | None:
    """An expression for what the constructor of `new` starts an attribute with, on an instance made by `old`.

    It names the instance `self`, and otherwise only names of the module. None if there is no such expression. `kin` is
    what is known besides, of the old release and of the new one.
    """
    moved = _moved_behind_property(old, new, attribute) or next(
        (
            value
            for node in new.body
            if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", "") == attribute
            if (value := field_default(node)) is not None
        ),
        None,
    )
    if moved is not None:
        return moved
    found: ast.expr | None = None
    for name in CONSTRUCTORS:
        own = kin[1].method(new, name)
        if own is not None:
            known = _parameters(old, new, own, kin)
            state = Follower(*own, known, new, kin[1]).state
            if attribute in state.attributes:
                found = state.attributes[attribute]
    deleted = any(
        isinstance(n, ast.Attribute) and n.attr == attribute and isinstance(n.ctx, ast.Del) for n in ast.walk(new)
    )
    return None if deleted else found or _flag(new, attribute) or _manufactured(new, attribute, kin[1])


def factories(cls: ast.ClassDef) -> Iterator[tuple[ast.FunctionDef, str, list[ast.stmt]]]:
    """The class methods that make something and return it, what they call it, and what they do with it."""
    for node in cls.body:
        if isinstance(node, ast.FunctionDef) and [getattr(d, "id", "") for d in node.decorator_list] == ["classmethod"]:
            last = node.body[-1]
            name = last.value.id if isinstance(last, ast.Return) and isinstance(last.value, ast.Name) else ""
            makers = [at for at, statement in enumerate(node.body) if name and name in bound(statement)]
            if makers:
                yield node, name, node.body[makers[-1] + 1 :]


def _manufactured(cls: ast.ClassDef, attribute: str, kin: Kin) -> ast.expr | None:
    """What class methods set an attribute to, of an instance that they have made, if it is the same for all."""
    found: list[ast.expr | None] = []
    stores = [n for n in ast.walk(cls) if isinstance(n, ast.Attribute) and n.attr == attribute and _is_store(n)]
    for function, name, body in factories(cls):
        inside = [node for node in ast.walk(function) if node in stores]
        if inside:
            stores = [node for node in stores if node not in inside]
            known: Known = {n.id: None for n in ast.walk(function) if isinstance(n, ast.Name) and _is_bound(n)}
            known |= {argument.arg: None for argument in _arguments(function)}
            known[name] = ast.Name("self", ast.Load())
            alone = ast.FunctionDef("", ast.parse(f"lambda {name}: 0", mode="eval").body.args, body, [])  # type: ignore[attr-defined]
            found.append(Follower(cls, alone, known, cls, kin).state.attributes.get(attribute))
    same = {None if value is None else ast.unparse(value) for value in found}
    return found[0] if len(same) == 1 and not stores else None


def _is_bound(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _flag(cls: ast.ClassDef, attribute: str) -> ast.expr | None:
    """How the constructor starts what is nothing but True or False wherever the class sets it."""
    stores = [n for n in ast.walk(cls) if isinstance(n, ast.Attribute) and n.attr == attribute and _is_store(n)]
    sets = [n for n in ast.walk(cls) if isinstance(n, ast.Assign) and any(target in stores for target in n.targets)]
    values = [node.value for node in sets]
    if len(sets) != len(stores) or not all(isinstance(v, ast.Constant) and type(v.value) is bool for v in values):
        return None
    bodies = [function.body for name in CONSTRUCTORS if (function := method_of(cls, name)) is not None]
    return next((node.value for body in bodies for node in body if node in sets), None)


def _is_store(node: ast.Attribute) -> bool:
    return isinstance(node.ctx, ast.Store)


def _parameters(
    old: ast.ClassDef, new: ast.ClassDef, constructor: tuple[ast.ClassDef, FunctionNode], kin: tuple[Kin, Kin]
) -> Known:
    """What the parameters of a new constructor stand for on an instance that the old one made."""
    function = constructor[1]
    before = kin[0].method(old, function.name)
    kept: dict[str, ast.expr] = {}
    old_names: set[str] = set()
    if before is not None:
        old_names = {a.arg for a in _arguments(before[1])}
        was = _keeping(before, old, kin[0])
        now = _keeping(constructor, new, kin[1])
        for attribute, name in was.items():
            if attribute in _stored_verbatim(function, name) or now.get(attribute) == name:
                kept[name] = ast.Attribute(ast.Name("self", ast.Load()), attribute, ast.Load())
    defaults = dict(defaults_of(function))
    members = {name for node in old.body + function.body for name in bound(node)}
    known: Known = {}
    for argument in _arguments(function):
        default = defaults.get(argument.arg)
        value = kept.get(argument.arg)
        if value is None and default is not None and argument.arg not in old_names:
            inside = {n.id for n in ast.walk(default) if isinstance(n, ast.Name)}
            value = None if inside & members else default
        known[argument.arg] = value
    known[first(function)] = ast.Name("self", ast.Load())
    return known


def _keeping(constructor: tuple[ast.ClassDef, FunctionNode], cls: ast.ClassDef, kin: Kin) -> dict[str, str]:
    """Attribute -> the parameter that a constructor keeps in it, itself or by the constructors of bases."""
    names = {a.arg for a in _arguments(constructor[1])}
    marks: Known = {name: ast.Name(name, ast.Load()) for name in names}
    known = Follower(*constructor, marks, cls, kin).state.attributes
    return {name: value.id for name, value in known.items() if isinstance(value, ast.Name) and value.id in names}


def _stored_verbatim(function: FunctionNode, parameter: str) -> set[str]:
    """The attributes in which a constructor keeps a parameter as it is."""
    return {
        target.attr
        for node in function.body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        and isinstance(node.value, ast.Name)
        and node.value.id == parameter
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Attribute)
    }


def _moved_behind_property(old: ast.ClassDef, new: ast.ClassDef, attribute: str) -> ast.expr | None:
    """`self.__dict__["x"]` if the old version stores `self.x`, and `x` is now a property of this attribute."""
    for method in new.body:
        if not isinstance(method, ast.FunctionDef) or not method.body or not _is_property(method):
            continue
        last = method.body[-1]
        value = last.value if isinstance(last, ast.Return) else None
        if isinstance(value, ast.Attribute) and value.attr == attribute and isinstance(value.value, ast.Name):
            stores = any(
                isinstance(n, ast.Attribute) and n.attr == method.name and isinstance(n.ctx, ast.Store)
                for n in ast.walk(old)
            )
            if stores and value.value.id == first(method):
                return ast.parse(f"self.__dict__[{method.name!r}]", mode="eval").body
    return None


def field_default(node: ast.AnnAssign) -> ast.expr | None:
    """What `field(default_factory=...)` or `field(default=...)` of a dataclass gives an instance; else None."""
    value = node.value
    if isinstance(value, ast.Call) and (getattr(value.func, "id", "") or getattr(value.func, "attr", "")) == "field":
        for option in value.keywords:
            if option.arg == "default_factory":
                return ast.copy_location(ast.Call(option.value, [], []), value)
            if option.arg == "default":
                return option.value
    return None


def _is_property(method: ast.FunctionDef) -> bool:
    return any(isinstance(d, ast.Name) and d.id == "property" for d in method.decorator_list)


def _arguments(function: FunctionNode) -> list[ast.arg]:
    return [node for node in ast.walk(function.args) if isinstance(node, ast.arg)]


def _parsed(entry: DefaultEntry) -> ast.expr:
    try:
        return ast.parse(entry.value, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise refusal(f"The archive gives '{entry.name}' a default that is no expression.") from None


def find_class(tree: ast.Module, path: str) -> ast.ClassDef | None:
    """The definition of a class in a source, by qualified name; the last one, if there are several."""
    body: list[ast.stmt] = tree.body
    found: ast.ClassDef | None = None
    for name in path.split("."):
        found = None
        pending = list(body)
        while pending:
            node = pending.pop(0)
            if isinstance(node, ast.ClassDef):
                found = node if node.name == name else found
            elif not isinstance(node, FunctionNode):
                pending += [child for child in ast.iter_child_nodes(node) if isinstance(child, ast.stmt)]
        if found is None:
            return None
        body = found.body
    return found


class Default:
    """Stands in a class for an attribute that its older instances lack."""

    def __init__(self, name: str, make: Callable[[Any], Any]) -> None:
        self._name = name
        self._make = make

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            assert owner is not None
            raise AttributeError(f"type object {owner.__name__!r} has no attribute {self._name!r}")
        # Two tasks may come at once: all shall get the same object.
        return instance.__dict__.setdefault(self._name, self._make(instance))


class Defaults:
    """The defaults of one module: made, and taken back."""

    def __init__(self, entry: ObjectEntry, old: NewSource, source: NewSource, *, replace: bool = False) -> None:
        self._module = entry.module
        self._replace = replace
        self._made: list[tuple[type, str, Default]] = []
        self._expressions: list[tuple[DefaultEntry, Any]] = []
        for default in entry.defaults:
            if default.hooked:
                self._expressions.append((default, None))
                continue
            path, _, name = default.name.rpartition(".")
            before, after = find_class(old.tree, path), find_class(source.tree, path)
            if default.value and after is not None:
                found: ast.expr | None = _parsed(default)
            else:
                found = None if before is None or after is None else derive(before, after, name)
            if found is None:
                raise refusal(f"The archive gives '{default.name}' a default, which its source does not have.")
            for node in ast.walk(found):
                if isinstance(node, ast.Attribute):
                    node.attr = mangled(path, node.attr)
            self._expressions.append((default, compiled(found, source.file, default.line)))

    def verify(self, module: ModuleType) -> None:
        """Raise LivepatchError (EINVAL) if a class is not there or cannot have such a default."""
        for default, _ in self._expressions:
            path, _, name = default.name.rpartition(".")
            cls, name = live_class(module, path), mangled(path, name)
            if cls is None:
                raise refusal(f"'{path}' is not a class in the live module '{self._module}'.")
            if not cls.__dictoffset__:
                raise refusal(f"Instances of '{path}' in '{self._module}' have no room for '{name}': slots only.")
            for base in cls.__mro__:
                if name in vars(base) and not isinstance(vars(base)[name], Default):
                    raise refusal(f"'{default.name}' exists already in the live '{base.__qualname__}'.")

    def make(self, module: ModuleType, hooked: Callable[[str], Any]) -> None:
        """Put them into the classes; `hooked` gives the functions from the hooks."""
        for default, code in self._expressions:
            path, _, name = default.name.rpartition(".")
            cls, name = live_class(module, path), mangled(path, name)
            assert cls is not None
            if isinstance(vars(cls).get(name), Default) and not self._replace:
                continue  # an older patch has found the same
            made = Default(
                name, hooked(f"{self._module}:{default.name}") if default.hooked else eval(code, module.__dict__)
            )
            type.__setattr__(cls, name, made)
            self._made.append((cls, name, made))

    def take_back(self) -> None:
        """Remove them; what instances have got they keep, as they do what a constructor gave them."""
        while self._made:
            cls, name, made = self._made.pop()
            if vars(cls).get(name) is made:
                type.__delattr__(cls, name)


def compiled(expression: ast.expr, file: str, line: int) -> Any:
    """Code that gives a function of the instance, which computes an expression."""
    source = ast.parse(f"lambda self: ({ast.unparse(expression)})", mode="eval")
    for node in ast.walk(source):
        if hasattr(node, "lineno"):
            ast.copy_location(node, ast.Pass(lineno=line, col_offset=0, end_lineno=line, end_col_offset=0))
    return compile(source, file, "eval", dont_inherit=True)
