"""What a module does with names while it is imported, and which of its functions read them later.

The other index (`reads`) says where a name is read, for people. Here the question is what has to be done again when
the name means something else: a statement that made another value of it, a default value of a parameter, a member of a
class; and what cannot be done again, such as a decorator.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import CodeType

from livepatch.build import syntax
from livepatch.build.syntax import Statement
from livepatch.build.world import Source
from livepatch.core.codes import is_function

_ANY = {"locals", "globals", "vars"}


@dataclass(frozen=True, eq=False)
class Use:
    """Something that was evaluated when the module was imported: a `statement`, the `default` of a parameter, or a
    `decorator`, `base` or `condition`. `scope` is the class around it, with a dot at its end, `name` what it is for."""

    kind: str
    scope: str
    name: str
    line: int
    node: ast.AST
    statement: Statement
    names: frozenset[str] = field(repr=False)
    attributes: frozenset[tuple[str, str]] = field(repr=False)  # (last name before it, attribute)
    calls: frozenset[str] = field(repr=False)  # names that are called

    def reads(self, name: str) -> bool:
        """Whether it may read a name of its own namespace."""
        if name in self.names or not self.names & self.calls & _ANY:
            return name in self.names
        texts = [n.value for n in ast.walk(self.node) if isinstance(n, ast.Constant) and isinstance(n.value, str)]
        return any(name in text for text in texts) or not texts  # a format, most likely, that says what it takes


def uses(source: Source) -> list[Use]:
    """Everything that importing the module evaluates, but for imports."""
    if source.uses is None:
        source.uses = list(_uses(source, source.tree.body, ""))
    return source.uses


def _uses(source: Source, body: list[ast.stmt], scope: str) -> Iterator[Use]:
    for statement in source.statements(body):
        node = statement.node
        if statement.dormant or statement.alias is not None:
            continue
        if isinstance(node, syntax.FunctionNode):
            if syntax.is_overload(node):
                continue
            for decorator in node.decorator_list:
                yield _use("decorator", scope, node.name, decorator, statement)
            positional = [*node.args.posonlyargs, *node.args.args]
            pairs = [*zip(positional[len(positional) - len(node.args.defaults) :], node.args.defaults, strict=True)]
            pairs += [(a, v) for a, v in zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True) if v is not None]
            for argument, value in pairs:
                yield _use("default", scope, f"{node.name}:{argument.arg}", value, statement)
        elif isinstance(node, ast.ClassDef):
            for part in node.decorator_list:
                yield _use("decorator", scope, node.name, part, statement)
            for part in [*node.bases, *(keyword.value for keyword in node.keywords)]:
                yield _use("base", scope, node.name, part, statement)
            yield from _uses(source, node.body, f"{scope}{node.name}.")
        elif not syntax.is_declaration(node):
            yield _use("statement", scope, " ".join(sorted(statement.binds() or ())), node, statement)
        for header in statement.under:
            condition = condition_of(header)
            if condition is not None:
                yield _use("condition", scope, " ".join(sorted(statement.binds() or ())), condition, statement)


def condition_of(header: str) -> ast.expr | None:
    """The test in what a statement stands under, if it is an `if`."""
    text = header.removeprefix("orelse of ")
    return ast.parse(text.removeprefix("if "), mode="eval").body if text.startswith("if ") else None


def _use(kind: str, scope: str, name: str, node: ast.AST, statement: Statement) -> Use:
    names: set[str] = set()
    attributes: set[tuple[str, str]] = set()
    calls: set[str] = set()
    pending = [node]
    while pending:
        inner = pending.pop()
        if isinstance(inner, ast.Name) and isinstance(inner.ctx, ast.Load):
            names.add(inner.id)
        elif isinstance(inner, ast.Attribute):
            attributes.add((syntax.last_name(inner.value), inner.attr))
        elif isinstance(inner, ast.Call):
            calls.add(syntax.last_name(inner.func))
        elif isinstance(inner, ast.AugAssign):
            names |= (syntax.sets(inner) or (frozenset(), frozenset()))[0]
        if isinstance(inner, ast.Lambda):
            pending += [*inner.args.defaults, *(value for value in inner.args.kw_defaults if value is not None)]
        elif isinstance(inner, ast.AnnAssign):
            pending += [inner.target, *([inner.value] if inner.value is not None else [])]
        elif isinstance(inner, syntax.FunctionNode):
            pending += inner.decorator_list
        else:
            pending += ast.iter_child_nodes(inner)
    line = getattr(node, "lineno", statement.line)
    whole = frozenset(names), frozenset(attributes), frozenset(calls)
    return Use(kind, scope, name, line, node, statement, *whole)


def reads_attribute(code: CodeType, name: str) -> bool:
    """Whether a function names an attribute itself, perhaps: names are not told apart in what is compiled."""
    inner = (c for c in code.co_consts if isinstance(c, CodeType) and not is_function(c))
    return name in code.co_names or any(reads_attribute(c, name) for c in inner)
