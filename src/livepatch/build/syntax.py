"""Syntax trees without what does not run: the vocabulary in which two versions are compared.

`shape` is a syntax tree as nested tuples, without positions, annotations, docstrings and statements that do nothing;
two pieces of source with the same shape do the same. `flatten` lists the statements of a module or class with the
conditions they stand under, so that code below `if sys.platform == ...` or `try: import ...` is compared like any
other. Blocks that an import never runs (for type checkers, for programs) are marked dormant.
"""

import ast
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef
DefinitionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

_DEFINITIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
_UNSHOWN = {"annotation", "returns", "type_params", "type_comment", "kind", "ctx", "type_ignores"}
_ANNOTATIONS = ("annotation", "returns", "type_params")
#: Decorators that only type checkers look at.
_TYPING_DECORATORS = {"override", "final", "no_type_check", "type_check_only"}


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
    documented = (*_DEFINITIONS, ast.Module)
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


def decorators(node: DefinitionNode) -> object:
    """What decorates a definition, comparable with `==`; decorators for type checkers do not count."""
    return tuple(
        shape(decorator) for decorator in node.decorator_list if last_name(decorator) not in _TYPING_DECORATORS
    )


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


def is_overload(node: FunctionNode) -> bool:
    """Whether only a type checker will ever look at this definition."""
    return any(last_name(decorator) == "overload" for decorator in node.decorator_list)


def first_line(node: DefinitionNode) -> int:
    """The line by which the compiler knows a definition: that of its first decorator."""
    return min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])


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

    @property
    def line(self) -> int:
        return self.node.lineno if self.alias is None else self.alias.lineno

    @property
    def identity(self) -> ast.AST:
        """The node of the original tree that this statement stands for."""
        return self.alias or self.node

    @property
    def key(self) -> object:
        """Equal for statements that do the same."""
        if isinstance(self.node, ast.ImportFrom):
            return self.under, "from", self.node.level, self.node.module, shape(self.alias)
        return self.under, shape(self.alias or self.node)

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
    if isinstance(node, _DEFINITIONS):
        return frozenset({node.name})
    if type(node).__name__ == "TypeAlias":
        return _targets([node.name])  # type: ignore[attr-defined]
    if isinstance(node, ast.Raise | ast.Pass):
        return frozenset()
    if isinstance(node, ast.If | ast.Try):
        parts = [_binds(inner) for inner in nested_statements(node)]
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


def flatten(body: Iterable[ast.stmt], under: tuple[str, ...] = (), dormant: bool = False) -> Iterator[Statement]:
    """The statements of a module or class body that do something, in order."""
    for node in effective(list(body)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                yield Statement(node, under, alias, dormant)
        elif isinstance(node, ast.If) and (sleeps := is_dormant(node.test)) is not None:
            yield from flatten(node.body, under, dormant or sleeps)
            yield from flatten(node.orelse, under, dormant or not sleeps)
        elif not isinstance(node, _DEFINITIONS) and _contains_definition(node):
            for header, block in _blocks(node):
                yield from flatten(block, (*under, header), dormant)
        else:
            yield Statement(node, under, None, dormant)


def members(cls: ast.ClassDef) -> set[str]:
    """The names that a class body binds."""
    return {name for statement in flatten(cls.body) for name in statement.binds() or ()}


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
    return any(isinstance(inner, _DEFINITIONS) or _contains_definition(inner) for inner in nested_statements(node))


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
