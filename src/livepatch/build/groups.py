"""What the source of a module says about one of its values: which statements make it, and what keeps copies of it."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator

from livepatch.build import syntax
from livepatch.build.findings import Findings, Touch
from livepatch.build.syntax import Statement
from livepatch.build.world import Source

#: Names that describe a release; what code makes of them (a user agent) does not have to be consistent.
_RELEASE_NAMES = re.compile(
    r"__(version(_info|_tuple)?|build|date|author(_email)?|maintainer|email|license|copyright|credits|title|summary"
    r"|description|url|uri|status|commit_id|release|revision)__|version(_info|_tuple)?|commit_id",
    re.IGNORECASE,
)


def is_quiet(source: Source, key: str, touch: Touch) -> bool:
    """Whether nobody computes with a value: it describes the release, or is a type."""
    group = makers(source, key, touch.owner)
    values = [value for s in group if isinstance(value := getattr(s.node, "value", None), ast.expr)]
    if len(values) != len(group) or "." in key:
        return False
    release = _RELEASE_NAMES.fullmatch(key) is not None and all(map(_is_literal, values))
    return bool(group) and (release or is_type(source, key))


def is_type(source: Source, key: str) -> bool:
    """Whether a name stands for a type for annotations; one that is imported says nothing else."""
    values = [getattr(statement.node, "value", None) for statement in makers(source, key, "")]
    return all(isinstance(value, ast.expr) and syntax.is_type_alias(value) for value in values)


def _is_literal(node: ast.expr) -> bool:
    try:
        ast.literal_eval(node)
    except ValueError:
        return False
    return True


def class_names(source: Source) -> set[str]:
    return {f"{scope}{name}" for scope, name in _classes(source.tree.body, "")}


def _classes(body: Iterable[ast.stmt], scope: str) -> Iterator[tuple[str, str]]:
    for statement in syntax.flatten(body):
        if isinstance(statement.node, ast.ClassDef):
            yield scope, statement.node.name
            yield from _classes(statement.node.body, f"{scope}{statement.node.name}.")


def makers(source: Source, key: str, owner: str) -> list[Statement]:
    body: list[ast.stmt] = source.tree.body
    path, _, name = key.rpartition(".")
    if path and not owner:
        for part in path.split("."):
            inner = [
                s.node for s in source.statements(body) if isinstance(s.node, ast.ClassDef) and s.node.name == part
            ]
            if len(inner) != 1:
                return []
            body = inner[0].body
    plain = [
        s
        for s in source.statements(body)
        if not s.dormant and s.alias is None and (not isinstance(s.node, syntax.DEFINITIONS) or is_function(s, key))
    ]
    if owner:
        return [s for s in plain if key in s.attributes_set | syntax.deleted_attributes(s.node)][-1:]
    group = [s for s in plain if name in s.names_set]
    chosen = [*group, *_deleted(source.statements(body), group, name)]
    # Within a `try` all that may fail decides.
    chosen += [other for s in group for other in syntax.beside(s, source.statements(body)) if other not in chosen]
    # So have the functions that it calls, if the one that is there is gone, or may be that of before: in a class body.
    gone = _gone(plain)
    called = {name for s in chosen for name in calls(s.node) if path or name in gone}
    return [s for s in source.statements(body) if s in chosen or _is_function(s, called)]


def imported(source: Source, name: str) -> list[Statement]:
    """The import of a module by which a name has its value, if that is all that binds it, and no condition decides."""
    found = [s for s in source.statements(source.tree.body) if name in _set(s) or name in (s.binds() or ())]
    return found if len(found) == 1 and found[0].alias is not None and not found[0].under else []


def deleters(source: Source, key: str) -> list[Statement]:
    """The statements of a module that delete an attribute of a class of it, given as `C.name`."""
    return [s for s in source.statements(source.tree.body) if key in syntax.deleted_attributes(s.node)]


def is_deleted(source: Source, name: str) -> bool:
    """Whether a module has deleted a name of its own when its body ends."""
    body = source.statements(source.tree.body)
    last = [s for s in body if name in _set(s) or name in _gone([s])][-1:]
    return bool(_gone(last))


def _set(statement: Statement) -> frozenset[str]:
    """The names that a statement binds, or whose values it changes."""
    if statement.alias is not None:
        return statement.binds() or frozenset()
    return statement.names_set


def _gone(statements: Iterable[Statement]) -> set[str]:
    """The names that statements delete."""
    targets = [t for s in statements if isinstance(s.node, ast.Delete) for t in s.node.targets]
    names = (name for target in targets for name in ast.walk(target) if isinstance(name, ast.Name))
    return {name.id for name in names if isinstance(name.ctx, ast.Del)}  # and not what `del x.y` is about


def _deleted(body: list[Statement], group: list[Statement], name: str) -> list[Statement]:
    """What made the names that some statements use and the body deletes later: these have to be made again as well."""
    gone = _gone(body) - {name}
    found: list[Statement] = []
    needed: set[str] = set()
    pending = list(group)
    while pending:
        used = {n.id for n in ast.walk(pending.pop().node) if isinstance(n, ast.Name)} & gone - needed
        needed |= used
        more = [s for s in body if used & _set(s) and not isinstance(s.node, (*syntax.DEFINITIONS, ast.Delete))]
        found += [s for s in more if s not in found and s not in group]
        pending += more
    return [s for s in found if not s.dormant]


def calls(node: ast.AST) -> set[str]:
    """The names that are called in a piece of source."""
    called = (inner.func for inner in ast.walk(node) if isinstance(inner, ast.Call))
    return {function.id for function in called if isinstance(function, ast.Name)}


def _is_function(statement: Statement, names: set[str]) -> bool:
    return isinstance(statement.node, ast.FunctionDef) and not statement.dormant and statement.node.name in names


def made_with(body: Iterable[Statement], name: str) -> dict[str, Statement]:
    """What the statements of a body set that call one of its functions, each with the last of them."""
    found: dict[str, Statement] = {}
    for statement in body:
        if not isinstance(statement.node, syntax.DEFINITIONS) and name in calls(statement.node):
            sets = statement.sets
            found |= dict.fromkeys(sets[0], statement) if sets is not None else {}
    return found


def is_only_called(body: Iterable[Statement], name: str) -> bool:
    """Whether the statements of a body do nothing with one of its functions but to call it."""
    nodes = [n for s in body if not isinstance(s.node, syntax.FunctionNode) for n in ast.walk(s.node)]
    called = [n.func for n in nodes if isinstance(n, ast.Call)]
    read = [n for n in nodes if isinstance(n, ast.Name) and n.id == name and isinstance(n.ctx, ast.Load)]
    return all(any(n is function for function in called) for n in read)


def is_function(statement: Statement, key: str) -> bool:
    """Whether it defines the function of the module that a name means: that can change like any other value."""
    node = statement.node
    return isinstance(node, syntax.FunctionNode) and node.name == key and not syntax.is_overload(node)


def evaluated_by(node: syntax.FunctionNode) -> list[ast.expr]:
    """What defining a function evaluates, but for its decorators themselves."""
    found = [*node.args.defaults, *(value for value in node.args.kw_defaults if value is not None)]
    for decorator in node.decorator_list:
        if isinstance(decorator, ast.Call):
            found += [*decorator.args, *(keyword.value for keyword in decorator.keywords)]
    return found


def assigned(found: Findings) -> set[str]:
    """The module's names that its functions give values to."""
    return {name for source in (found.old, found.new) for name in source.global_writes}


def mentions(node: ast.AST, name: str) -> bool:
    return (isinstance(node, ast.Attribute) and node.attr == name) or (
        isinstance(node, ast.Constant) and node.value == name
    )


def kept_by(node: ast.If, cls: str) -> str | None:
    """The attribute of a class that an `if` computes where it is missing: `if "x" not in cls.__dict__: cls.x = ...`"""
    text = ast.unparse(node.test)
    match = re.fullmatch(rf"'(\w+)' not in (?:{cls}\.__dict__|vars\({cls}\))|not hasattr\({cls}, '(\w+)'\)", text)
    name = (match.group(1) or match.group(2)) if match else None
    stored = {f"{cls}.{name}"} & {
        ast.unparse(inner)
        for inner in ast.walk(node)
        if isinstance(inner, ast.Attribute) and isinstance(inner.ctx, ast.Store)
    }
    return name if stored else None


def copies_all(node: ast.AST) -> str | None:
    """What a module is called in `for name in dir(module): ... setattr(x, name, getattr(module, name))`."""
    if (
        not isinstance(node, ast.For)
        or not isinstance(node.iter, ast.Call)
        or syntax.last_name(node.iter.func) != "dir"
    ):
        return None
    copied = any(isinstance(inner, ast.Call) and syntax.last_name(inner.func) == "setattr" for inner in ast.walk(node))
    return syntax.last_name(node.iter.args[0]) if copied and node.iter.args else None
