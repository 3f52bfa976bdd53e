"""Syntax trees without what does not run: the vocabulary in which two versions are compared.

`shape` is a syntax tree as nested tuples, without positions, annotations, docstrings and statements that do nothing;
two pieces of source with the same shape do the same. `flatten` lists the statements of a module or class with the
conditions they stand under, so that code below `if sys.platform == ...` or `try: import ...` is compared like any
other. Blocks that an import never runs (for type checkers, for programs) are marked dormant.
"""

import ast
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from livepatch.archive.constructors import MUTATORS

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DefinitionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_UNSHOWN = {"annotation", "returns", "type_params", "type_comment", "kind", "ctx", "type_ignores"}
_ANNOTATIONS = ("annotation", "returns", "type_params")
#: Decorators that only type checkers look at.
TYPING_DECORATORS = {"override", "final", "no_type_check", "type_check_only"}


def shape(node: object) -> object:
    """What a piece of source does, comparable with `==`."""
    if isinstance(node, ast.AnnAssign):
        if node.value is None:
            return "declaration", shape(node.target)
        return "Assign", (shape(node.target),), shape(node.value)
    if isinstance(node, ast.AST):
        values = (getattr(node, name) for name in node._fields if name not in _UNSHOWN)
        return (type(node).__name__, *map(shape, values))
    if isinstance(node, list):
        if node and all(isinstance(item, ast.stmt) for item in node):
            node = effective(node)
        return tuple(map(shape, node))
    return type(node).__name__, repr(node)


def annotation_dumps(node: ast.AST) -> object:
    """All annotations in a piece of source, in order, comparable with `==`."""
    found = []
    for inner in ast.walk(node):
        for name in _ANNOTATIONS:
            value = getattr(inner, name, None)
            if value:
                found.append(ast.dump(value) if isinstance(value, ast.AST) else [ast.dump(item) for item in value])
        if isinstance(inner, ast.AnnAssign) and inner.value is None:
            found.append(ast.dump(inner.target))
    return found


def same_docstring(old: ast.AST, new: ast.AST) -> bool:
    """Whether two versions of a module, class or function have the same docstring, or none."""
    documented = (*DEFINITIONS, ast.Module)
    assert isinstance(old, documented)
    assert isinstance(new, documented)
    return ast.get_docstring(old, clean=False) == ast.get_docstring(new, clean=False)


def effective(body: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements that do something: no docstrings, no `pass`, no bare constants."""
    return [
        statement
        for statement in body
        if not isinstance(statement, ast.Pass)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
    ]


def decorators(node: DefinitionNode, without: Collection[str] = ()) -> object:
    """What decorates a definition, comparable with `==`; decorators for type checkers do not count, nor these."""
    ignored = {*TYPING_DECORATORS, *without}
    return tuple(shape(decorator) for decorator in node.decorator_list if last_name(decorator) not in ignored)


def last_name(node: ast.expr) -> str:
    """`c` of `a.b.c`, `a.b.c[...]` and `a.b.c(...)`; empty if it has no such form."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def first_name(node: ast.expr) -> str:
    """`a` of `a.b.c` and the like."""
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call | ast.Starred):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else ""


def resolve(node: ast.ImportFrom, module: str, path: str) -> str:
    """The absolute name of the module that `from ... import` in a module at a path names."""
    if not node.level:
        return node.module or ""
    parts = module.split(".")
    base = parts[: len(parts) - node.level + path.endswith("__init__.py")]
    return ".".join([*base, *([node.module] if node.module else [])])


def is_declaration(node: ast.AST) -> bool:
    """Whether it is an annotation without a value."""
    return isinstance(node, ast.AnnAssign) and node.value is None


def is_special(name: str) -> bool:
    """Whether a name is one that the interpreter knows: `__init__`."""
    return name.startswith("__") and name.endswith("__")


def is_overload(node: FunctionNode) -> bool:
    """Whether only a type checker will ever look at this definition."""
    return any(last_name(decorator) == "overload" for decorator in node.decorator_list)


@dataclass(frozen=True, eq=False)
class Statement:
    """A statement of a module or class. `import a, b` counts as two, a compound without definitions as one.

    `node` is the statement, and for imports `alias` the part of it. `under` lists the conditions around it.
    `dormant`: importing the module does not run it.
    """

    node: ast.stmt
    under: tuple[str, ...] = ()
    alias: ast.alias | None = None
    dormant: bool = False
    root: ast.stmt | None = None  # the outermost of the compounds around it

    @property
    def line(self) -> int:
        return self.node.lineno if self.alias is None else self.alias.lineno

    @property
    def identity(self) -> ast.AST:
        """The node of the original tree that this statement stands for."""
        return self.alias or self.node

    @cached_property
    def key(self) -> object:
        """Equal for statements that do the same."""
        if isinstance(self.node, ast.ImportFrom):
            return self.under, "from", self.node.level, self.node.module, shape(self.alias)
        return self.under, shape(self.alias or self.node)

    @cached_property
    def sets(self) -> tuple[frozenset[str], frozenset[str]] | None:
        """What it sets; see the function of this name."""
        return sets(self.node)

    @property
    def names_set(self) -> frozenset[str]:
        """The names among these; none if it cannot be told."""
        return self.sets[0] if self.sets else frozenset()

    @property
    def attributes_set(self) -> frozenset[str]:
        """The attributes among these, likewise."""
        return self.sets[1] if self.sets else frozenset()

    def binds(self) -> frozenset[str] | None:
        """The names it binds, or None if it does, or may do, something else."""
        if self.alias is not None:
            return None if self.alias.name == "*" else frozenset({bound_name(self.node, self.alias)})
        return _binds(self.node)


def bound_name(node: ast.stmt, alias: ast.alias) -> str:
    """The name that an import binds."""
    if alias.asname:
        return alias.asname
    return alias.name if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0]


def _binds(node: ast.stmt) -> frozenset[str] | None:
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [bound_name(node, alias) for alias in node.names]
        return None if "*" in names else frozenset(names)
    if isinstance(node, ast.Assign):
        return _targets(node.targets)
    if isinstance(node, ast.AnnAssign):
        return _targets([node.target]) if node.value else frozenset()
    if isinstance(node, DEFINITIONS):
        return frozenset({node.name})
    if type(node).__name__ == "TypeAlias":
        return _targets([node.name])  # type: ignore[attr-defined]
    if isinstance(node, ast.Raise | ast.Pass):
        return frozenset()
    if isinstance(node, ast.If | ast.Try):
        inside = nested_statements(node)
        parts = [_targets(n.targets) if isinstance(n, ast.Delete) else _binds(n) for n in inside]
        if None not in parts:
            return frozenset().union(*(part for part in parts if part))
    return None


def _targets(targets: Iterable[ast.expr]) -> frozenset[str] | None:
    names: set[str] = set()
    for target in targets:
        if isinstance(target, ast.Tuple | ast.List):
            inner = _targets(target.elts)
            if inner is None:
                return None
            names |= inner
        elif isinstance(target, ast.Name):
            names.add(target.id)
        else:
            return None
    return frozenset(names)


def deleted_attributes(node: ast.stmt) -> frozenset[str]:
    """The attributes, as `a.b`, that a `del` deletes which deletes nothing else; else none."""
    pending = list(node.targets) if isinstance(node, ast.Delete) else []
    found: set[str] = set()
    while pending:
        target = pending.pop()
        if isinstance(target, ast.Tuple | ast.List):
            pending += target.elts
            continue
        dotted = ast.unparse(target)
        if not isinstance(target, ast.Attribute) or not all(part.isidentifier() for part in dotted.split(".")):
            return frozenset()
        found.add(dotted)
    return frozenset(found)


def sets(node: ast.stmt) -> tuple[frozenset[str], frozenset[str]] | None:
    """What a statement sets: names that it binds or whose values it changes, and attributes of objects, as `a.b`.

    None if it does, or may do, something else.
    """
    if isinstance(node, ast.Assign | ast.AnnAssign):
        targets = node.targets if isinstance(node, ast.Assign) else [node.target]
        if len(targets) == 1 and isinstance(targets[0], ast.Attribute):
            dotted = ast.unparse(targets[0])
            plain = all(part.isidentifier() for part in dotted.split("."))
            return (frozenset(), frozenset({dotted})) if plain else None
        return _roots(targets)
    if isinstance(node, ast.AugAssign):
        return _roots([node.target])
    if isinstance(node, ast.Delete):
        return _roots(node.targets)
    if isinstance(node, ast.Expr):
        called = node.value.func if isinstance(node.value, ast.Call) else None
        mutates = isinstance(called, ast.Attribute) and called.attr in MUTATORS
        return _roots([called.value]) if mutates and isinstance(called, ast.Attribute) else None
    if isinstance(node, ast.For | ast.While | ast.With | ast.If | ast.Try):
        targets = [node.target] if isinstance(node, ast.For) else []
        targets += [item.optional_vars for item in getattr(node, "items", ()) if item.optional_vars is not None]
        parts = [_roots(targets), *map(sets, nested_statements(node))]
        if None in parts:
            return None
        known = [part for part in parts if part is not None]
        return frozenset().union(*(part[0] for part in known)), frozenset().union(*(part[1] for part in known))
    if isinstance(node, ast.Break | ast.Continue):
        return frozenset(), frozenset()
    names = _binds(node)
    return None if names is None else (names, frozenset())


def _roots(targets: Iterable[ast.expr]) -> tuple[frozenset[str], frozenset[str]] | None:
    """The names in targets: bound themselves, or with an item that is set."""
    names: set[str] = set()
    for target in targets:
        parts = target.elts if isinstance(target, ast.Tuple | ast.List) else [target]
        for part in parts:
            while isinstance(part, ast.Subscript | ast.Starred):
                part = part.value
            if isinstance(part, ast.Tuple | ast.List) and (inner := _roots([part])) is not None:
                names |= inner[0]
            elif isinstance(part, ast.Name):
                names.add(part.id)
            else:
                return None
    return frozenset(names), frozenset()


def flatten(
    body: Iterable[ast.stmt], under: tuple[str, ...] = (), dormant: bool = False, root: ast.stmt | None = None
) -> Iterator[Statement]:
    """The statements of a module or class body that do something, in order."""
    for node in effective(list(body)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield Statement(node, under, alias, dormant, root)
        elif isinstance(node, ast.If) and (sleeps := is_dormant(node.test)) is not None:
            yield from flatten(node.body, under, dormant or sleeps, root)
            yield from flatten(node.orelse, under, dormant or not sleeps, root)
        elif not isinstance(node, DEFINITIONS) and _contains_definition(node):
            for header, block in _blocks(node):
                yield from flatten(block, (*under, header), dormant, root or node)
        else:
            yield Statement(node, under, None, dormant, root)


def is_try(header: str) -> bool:
    """Whether what a statement stands under is a part of a `try`."""
    return header == "try" or header.endswith(" of try")


def beside(statement: Statement, body: Iterable[Statement]) -> list[Statement]:
    """The statements of a body that are in the same `try`, at whatever depth, and may decide which of its parts run:
    all but definitions."""
    if not any(map(is_try, statement.under)):
        return []
    return [s for s in body if s.root is statement.root and not isinstance(s.node, DEFINITIONS)]


def only_raises(node: ast.stmt) -> bool:
    """Whether a statement does nothing but to decide whether something is raised."""
    if isinstance(node, ast.If):
        return all(map(only_raises, nested_statements(node)))
    return isinstance(node, ast.Raise)


def all_statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """The statements of a body and all that are inside of them, at any depth."""
    pending: deque[ast.AST] = deque(body)
    while pending:
        node = pending.popleft()
        if isinstance(node, ast.stmt):
            yield node
        if isinstance(node, ast.stmt | ast.excepthandler | ast.match_case):
            pending.extend(child for child in ast.iter_child_nodes(node) if not isinstance(child, ast.expr))


def exported(body: Iterable[ast.stmt]) -> frozenset[str] | None:
    """What `__all__` lists, if all that the statements of a module say about it are lists of strings; else None."""
    found: set[str] | None = None
    for statement in flatten(body):
        node = statement.node
        if not any(isinstance(inner, ast.Name) and inner.id == "__all__" for inner in ast.walk(node)):
            continue
        part = getattr(node, "value", None)
        if isinstance(node, ast.Expr) and isinstance(part, ast.Call) and last_name(part.func) == "extend":
            part = part.args[0] if part.args else None
        elif not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign):
            return None
        if not isinstance(part, ast.List | ast.Tuple) or statement.under or statement.dormant:
            return None
        if not all(isinstance(item, ast.Constant) and isinstance(item.value, str) for item in part.elts):
            return None
        names = {item.value for item in part.elts if isinstance(item, ast.Constant) and isinstance(item.value, str)}
        found = names if isinstance(node, ast.Assign | ast.AnnAssign) else (found or set()) | names
    return None if found is None else frozenset(found)


def members(cls: ast.ClassDef) -> set[str]:
    """The names that a class body binds."""
    return {name for statement in flatten(cls.body) for name in statement.binds() or ()}


def stored(cls: ast.ClassDef) -> set[str]:
    """The attributes that the methods of a class set on `self`, and its own members."""
    return members(cls) | {
        node.attr
        for node in ast.walk(cls)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and first_name(node.value) == "self"
    }


def is_dormant(test: ast.expr) -> bool | None:
    """True for what never holds when a module is imported, False for what always does, None for all else.

    That is `TYPE_CHECKING`, `__name__ == "__main__"`, and constants.
    """
    if isinstance(test, ast.UnaryOp) and isinstance(test.op, ast.Not):
        inner = is_dormant(test.operand)
        return None if inner is None else not inner
    if isinstance(test, ast.Name | ast.Attribute) and last_name(test) == "TYPE_CHECKING":
        return True
    if isinstance(test, ast.Compare) and "__main__" in ast.dump(test) and last_name(test.left) == "__name__":
        return True
    return True if isinstance(test, ast.Constant) and not test.value else None


def _contains_definition(node: ast.stmt) -> bool:
    return any(isinstance(inner, DEFINITIONS) or _contains_definition(inner) for inner in nested_statements(node))


def _blocks(node: ast.stmt) -> Iterator[tuple[str, list[ast.stmt]]]:
    """The blocks of a compound statement, each with what leads to it: `if x`, `else of if x` ..."""
    parts = [getattr(node, name) for name in ("test", "target", "iter", "subject") if hasattr(node, name)]
    text = " ".join([type(node).__name__.lower(), *map(ast.unparse, [*parts, *getattr(node, "items", ())])])
    for name in ("body", "orelse", "finalbody"):
        block = getattr(node, name, None)
        if block:
            yield text if name == "body" else f"{name} of {text}", block
    for handler in getattr(node, "handlers", ()):
        caught = ast.unparse(handler.type) if handler.type else ""
        yield f"except {caught} of {text}", handler.body
    for case in getattr(node, "cases", ()):
        yield f"case {ast.unparse(case.pattern)} of {text}", case.body


def nested_statements(node: ast.stmt) -> list[ast.stmt]:
    """The statements directly inside a compound statement that do something."""
    return [inner for _, body in _blocks(node) for inner in effective(body)]


#: Syntax whose evaluation does nothing but give a value, and callables of which the same is true.
_PLAIN: tuple[type[ast.AST], ...] = (
    *(ast.Constant, ast.Name, ast.Attribute, ast.Subscript, ast.Tuple, ast.List, ast.Dict, ast.Set),
    *(ast.Starred, ast.BinOp, ast.UnaryOp, ast.JoinedStr, ast.FormattedValue),
    *(ast.operator, ast.unaryop, ast.expr_context, ast.keyword),
)
_PURE_CALLS = {"frozenset", "set", "tuple", "list", "dict", "compile", "TypeVar", "ParamSpec"}
_GENERICS = {"Union", "Optional", "Callable", "Awaitable", "Coroutine", "Iterable", "Mapping", "Sequence"}
_GENERICS |= {"Dict", "List", "Tuple", "Type", "Annotated"}


def is_plain_value(node: ast.expr) -> bool:
    """Whether evaluating this does nothing but give a value: literals, types, patterns."""
    return all(
        isinstance(inner, _PLAIN) or (isinstance(inner, ast.Call) and last_name(inner) in _PURE_CALLS)
        for inner in ast.walk(node)
    )


def is_type_alias(node: ast.expr) -> bool:
    """Whether a value is a type for annotations."""
    return isinstance(node, ast.Subscript) and last_name(node) in _GENERICS and is_plain_value(node)
