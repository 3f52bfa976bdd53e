"""New fields of a dataclass, classes that become one, and new members of an enumeration.

Of a dataclass, what `@dataclass` generates is exchanged as a whole, and live instances get the default.

To know what is generated the class statement is executed a second time, in a scratch namespace and without its bases,
when the patch is loaded. So that is done only where it does nothing else: no bases that could have a say, no metaclass,
no decorator besides, nothing in the body but fields, methods and plain values. Old fields must stay. What instances
made before have for a new one without a default, the hooks must say.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable

from livepatch.archive.conversion import has_twins
from livepatch.archive.defaults import field_default
from livepatch.archive.format import DefaultEntry, EnumEntry, MemberEntry
from livepatch.build import syntax
from livepatch.build.attributes import SKELETON, known_attributes
from livepatch.build.findings import WRAPPERS, Findings
from livepatch.build.members import retire
from livepatch.build.report import ADDED, CARRIED
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement

_CALLED = ("__init__", "__repr__", "__eq__", "__lt__", "__le__", "__gt__", "__ge__")
_READ = ("__match_args__", "__dataclass_fields__")
_GENERATED = (*((name, "call") for name in _CALLED), *((name, "read") for name in _READ))
_ORDERED = _GENERATED[3:7]
#: What else a class has since it is a dataclass.
_MORE = (("__hash__", "call"), ("__replace__", "call"), ("__dataclass_params__", "read"))
#: What a base of a class that becomes one must not have: it would have a say in what is generated, or about instances.
_HAVE_A_SAY = {"__post_init__", "__init_subclass__", "__new__", "__slots__", "__setattr__", "__getattribute__"}
_OPTIONS = {"init", "repr", "eq", "order", "kw_only"}


def stays_dataclass(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> bool:
    """Whether two dataclasses generate other things, and that can be exchanged."""
    before, after = _fields(old), _fields(new)
    fresh, other = after.keys() - before.keys(), _other_defaults(before, after)
    moved = [name for name in before if name in after] != [name for name in after if name in before]
    return (
        bool(fresh or other or moved or found.redecorated(old, new))
        and before.keys() <= after.keys()
        and _is_plain(old)
        and _is_plain(new)
        and not any(map(_is_marked, after.values()))
        and all(_has_default(after[name]) or after[name].value is None for name in fresh)
        and all(_has_default(before[name]) and _has_default(after[name]) for name in other)
    )


def _other_defaults(before: dict[str, ast.AnnAssign], after: dict[str, ast.AnnAssign]) -> set[str]:
    return {name for name in before if name in after and _text(before[name]) != _text(after[name])}


def exchange_fields(found: Findings, scope: Scope, old: ast.ClassDef, new: ast.ClassDef) -> set[str]:
    """Say how new fields come to a live dataclass, and return what this has dealt with."""
    before, after = _fields(old), _fields(new)
    fresh, other = after.keys() - before.keys(), _other_defaults(before, after)
    lacking = {name for name in fresh if after[name].value is None}
    _exchange_defaults(found, scope, old, new, other)
    for statement in scope.new:
        for name in fresh & _field_names(statement):
            full = scope.prefix + name
            value = field_default(after[name])
            if name in lacking:
                _ask_for(found, full, statement.line)
                continue
            if value is None:
                found.add(full, statement, "attribute", "a new field: instances made before have its default")
            else:
                reason = f"a new field: instances made before get `{ast.unparse(value)}` when it is first read"
                entry = DefaultEntry(full, statement.line)
                found.say(ADDED, full, statement.line, "attribute", reason, entry=entry, node=value)
        if fresh & _field_names(statement):
            found.claim(statement)
    more = _MORE if found.redecorated(old, new) else ()
    return _take_over(found, scope, new, (*_GENERATED, *more)) | after.keys()


def _take_over(found: Findings, scope: Scope, new: ast.ClassDef, names: Iterable[tuple[str, str]]) -> set[str]:
    """What the class statement generates takes the place of what was there, be it written or generated."""
    generated = [pair for pair in names if pair[0] not in syntax.members(new)]
    _exchange_generated(found, scope, new, generated)
    for name, _ in generated:
        for statement in scope.old_binders.get(name, ()):
            retire(found, statement, new.lineno)
    return {name for name, _ in generated}


def becomes_ordered(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> bool:
    """Whether `@total_ordering` comes or goes, and what it generates can be exchanged."""
    decorators = {syntax.last_name(decorator) for decorator in [*old.decorator_list, *new.decorator_list]}
    family = found.world.ancestors(found.new, new, new=True)
    mixed = {name for cls in family[1:] for name in syntax.members(cls)} & {name for name, _ in _ORDERED}
    return (
        decorators == {"total_ordering"}
        and syntax.shape(old.bases) == syntax.shape(new.bases)
        and not mixed
        and not found.world.is_open(found.old, old)
        and not any("__init_subclass__" in syntax.members(cls) or cls.keywords for cls in family)
        and _is_plain(_as_dataclass(new))
    )


def exchange_order(found: Findings, scope: Scope, new: ast.ClassDef) -> set[str]:
    """Say how a class gets, or loses, the comparisons that are made of another one."""
    return _take_over(found, scope, new, _ORDERED)


def _as_dataclass(cls: ast.ClassDef) -> ast.ClassDef:
    return ast.ClassDef(cls.name, [], [], cls.body, [ast.Name("dataclass", ast.Load())])


def _exchange_generated(found: Findings, scope: Scope, new: ast.ClassDef, names: Iterable[tuple[str, str]]) -> None:
    for name, how in names:
        entry = MemberEntry(scope.prefix + name, new.lineno, "generated", how)
        reason = "made by the class statement: exchanged as a whole"
        head = ast.Module([ast.Expr(node) for node in (*new.decorator_list, *_values(new))], [])
        found.say(CARRIED, entry.name, new.lineno, "method", reason, entry=entry, node=head)


def becomes_dataclass(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> bool:
    """Whether a plain class turns into a dataclass, and what is generated for that can be exchanged."""
    if old.decorator_list or len(new.decorator_list) != 1 or syntax.shape(old.bases) != syntax.shape(new.bases):
        return False
    world, fields = found.world, _fields(new)
    family = [*world.ancestors(found.old, old), *world.ancestors(found.new, new, new=True)]
    members = {name for cls in family for name in syntax.members(cls)}
    decorated = [cls for cls in family if cls is not new and cls.decorator_list]
    if members & _HAVE_A_SAY or decorated or world.is_open(found.old, old) or any(cls.keywords for cls in family):
        return False
    options = _options(found, new.decorator_list[0])
    written = (syntax.members(old) - syntax.members(new)) & {*_CALLED, "__hash__"}
    return (
        options is not None
        and found.names[1].is_plain(found.new, new)
        and not (written and options - {"kw_only"})
        and _is_plain(_as_dataclass(new))
        and not any(isinstance(node, syntax.DefinitionNode) and node.name in fields for node in old.body)
        and not any(map(_is_marked, fields.values()))
        and all(field.value is None or _is_value(field.value) for field in fields.values())
    )


def make_dataclass(found: Findings, scope: Scope, old: ast.ClassDef, new: ast.ClassDef) -> set[str]:
    """Say how a class becomes a dataclass; return the names that this has dealt with."""
    fields = _fields(new)
    family = found.world.ancestors(found.old, old)
    known = {name for cls in family for name in known_attributes(cls)}
    for statement in scope.new:
        for name in fields.keys() & _field_names(statement):
            full, value, default = scope.prefix + name, fields[name].value, field_default(fields[name])
            if value is None and name not in known:
                _ask_for(found, full, statement.line)
            elif name not in known and default is not None and _has_factory(fields[name]):
                reason = f"a new field: instances made before get `{ast.unparse(default)}` when it is first read"
                entry = DefaultEntry(full, statement.line)
                found.say(ADDED, full, statement.line, "attribute", reason, entry=entry, node=default)
            found.claim(statement)
    members = syntax.members(old)
    kept = {name for name, field in fields.items() if field.value is not None and not _has_factory(field)}
    _exchange_generated(found, scope, new, [(name, "read") for name in fields if name in kept | members])
    return _take_over(found, scope, new, (*_GENERATED, *_MORE)) | fields.keys()


def _targets(node: ast.Assign | ast.AnnAssign) -> list[ast.expr]:
    return node.targets if isinstance(node, ast.Assign) else [node.target]


def _options(found: Findings, decorator: ast.expr) -> set[str] | None:
    """The options that are given to `@dataclass`, also those in a dictionary of the module; None if nobody knows."""
    names: set[str] = set()
    assignments = [node for node in ast.walk(found.new.tree) if isinstance(node, ast.Assign | ast.AnnAssign)]
    for option in decorator.keywords if isinstance(decorator, ast.Call) else []:
        if option.arg is not None:
            names.add(option.arg)
            continue
        makers = [maker for maker in assignments if ast.unparse(option.value) in map(ast.unparse, _targets(maker))]
        for value in [maker.value for maker in makers] or [None]:
            if not isinstance(value, ast.Dict) or not all(isinstance(key, ast.Constant) for key in value.keys):
                return None
            names |= {str(key.value) for key in value.keys if isinstance(key, ast.Constant)}
    known = syntax.last_name(decorator) == "dataclass" and names <= _OPTIONS
    return names if known else None


def _ask_for(found: Findings, name: str, line: int) -> None:
    """A field that instances made before lack: what the class statement generates reads it, as does other code."""
    reason = "a new field without a default, which instances made before lack: `==` and `repr` read it"
    found.ask(name, line, "field", reason, SKELETON.format(f"{found.new.module}:{name}"))


def _exchange_defaults(found: Findings, scope: Scope, old: ast.ClassDef, new: ast.ClassDef, names: set[str]) -> None:
    """Say what becomes of fields with another default: instances made before keep the value that they have."""
    for statement in scope.new:
        for name in names & (statement.binds() or set()):
            becomes = "converted" if has_twins(old, new, name) else "generated"
            entry = MemberEntry(scope.prefix + name, statement.line, becomes, "read")
            kept = (
                "each world sees its own form of what instances have"
                if becomes == "converted"
                else "instances keep theirs"
            )
            found.say(CARRIED, entry.name, statement.line, "attribute", f"another default: {kept}", entry=entry)
    found.claim(*(statement for statement in [*scope.old, *scope.new] if names & (statement.binds() or set())))


def add_members(found: Findings, scope: Scope, old: ast.ClassDef, new: ast.ClassDef) -> set[str]:
    """Say which members an enumeration gets, and return their names; none if that cannot be done."""
    bases = {syntax.last_name(base) for base in new.bases}
    fresh = syntax.members(new) - syntax.members(old)
    special = {"__new__", "__init__", "_missing_", "_generate_next_value_", "__setattr__"} & syntax.members(new)
    if not bases <= {"Enum", "IntEnum", "StrEnum", "str", "int"} or special or new.keywords:
        return set()
    if any(syntax.last_name(decorator) != "unique" for decorator in new.decorator_list):
        return set()
    added = {}
    for statement in scope.new:
        names = statement.binds() or frozenset()
        value = getattr(statement.node, "value", None)
        plain = isinstance(value, ast.expr) and (syntax.is_plain_value(value) or syntax.last_name(value) == "auto")
        if isinstance(statement.node, syntax.FunctionNode):
            if not all(syntax.last_name(inner) in WRAPPERS for inner in statement.node.decorator_list):
                return set()
        elif not plain or statement.under:
            return set()
        elif len(names) == 1 and names <= fresh and not min(names).startswith("_"):
            added[min(names)] = statement
    for name, statement in added.items():
        reason = "a new member, which old code sees only when it goes through all, or asks by value"
        entry = EnumEntry(scope.prefix + name, statement.line)
        found.say(ADDED, entry.name, statement.line, "attribute", reason, entry=entry, node=statement.node)
        found.claim(statement)
    return set(added)


def _fields(cls: ast.ClassDef) -> dict[str, ast.AnnAssign]:
    return {
        node.target.id: node
        for node in cls.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and "ClassVar" not in ast.dump(node)
    }


def _field_names(statement: Statement) -> set[str]:
    """The field that a statement of a class body declares."""
    target = statement.node.target if isinstance(statement.node, ast.AnnAssign) else None
    return {target.id} if isinstance(target, ast.Name) else set()


def _is_marked(field: ast.AnnAssign) -> bool:
    """Whether it is no field, but says something of those around it."""
    return any(word in ast.dump(field.annotation) for word in ("InitVar", "KW_ONLY"))


def _has_factory(field: ast.AnnAssign) -> bool:
    options = field.value.keywords if isinstance(field.value, ast.Call) else []
    return any(option.arg == "default_factory" for option in options)


def _values(cls: ast.ClassDef) -> list[ast.expr]:
    """What the body of a class gives its members."""
    return [value for node in cls.body if isinstance(value := getattr(node, "value", None), ast.expr)]


def _text(field: ast.AnnAssign) -> str:
    return ast.dump(field.value) if field.value is not None else ""


def _has_default(field: ast.AnnAssign) -> bool:
    return field.value is not None and (field_default(field) is not None or syntax.is_plain_value(field.value))


def _is_plain(cls: ast.ClassDef) -> bool:
    """Whether executing the class statement again does nothing but to make a class."""
    if cls.bases or cls.keywords or len(cls.decorator_list) != 1:
        return False
    decorator = cls.decorator_list[0]
    options = decorator.keywords if isinstance(decorator, ast.Call) else []
    if syntax.last_name(decorator) != "dataclass" or not {option.arg for option in options} <= _OPTIONS:
        return False
    for node in syntax.effective(cls.body):
        value = getattr(node, "value", None)
        if isinstance(node, syntax.FunctionNode):
            if not all(syntax.last_name(inner) in WRAPPERS for inner in node.decorator_list):
                return False
        elif not isinstance(node, ast.Assign | ast.AnnAssign) or (isinstance(value, ast.expr) and not _is_value(value)):
            return False
    return True


def _is_value(node: ast.expr) -> bool:
    return syntax.is_plain_value(node) or syntax.last_name(node) == "field"
