"""The rules for classes whose bases are written otherwise: the same classes, others, or such as cannot be given.

What a new base keeps in its instances, older ones lack: that the hooks must say.
"""

from __future__ import annotations

import ast
import builtins

from livepatch.archive.format import BasesEntry
from livepatch.build import syntax
from livepatch.build.attributes import SKELETON, is_derived
from livepatch.build.findings import Findings
from livepatch.build.report import CARRIED

_NO_OTHERS = "the interpreter gives no other bases to a class that has none but `object`"


def compare_bases(
    found: Findings, name: str, old: ast.ClassDef, new: ast.ClassDef, readers: set[str], conditional: bool
) -> None:
    """Say what becomes of it. `readers` are bases that read a class body as data."""
    before, after = found.names
    takes = before.parameters(old), after.parameters(new)
    used = found.world.subscripts(new.name) if takes[0] != takes[1] and takes[1] is not None else []
    problem = f"its type parameters changed, and `{new.name}[...]` is evaluated in {used[0]}" if used else ""
    if before.bases(old) == after.bases(new):
        if problem:
            found.refuse(name, new.lineno, "class", problem)
        else:
            found.note(name, new.lineno, "class", "its bases are the same classes, with other types for type checkers")
        return
    if not problem and not conditional and extracted(found, old, new) is not None:
        found.note(
            name, new.lineno, "class", "its new base has nothing that it does not have itself, and stays without it"
        )
        return
    problem = problem or _problem(found, old, new, readers, conditional)
    if problem:
        found.refuse(name, new.lineno, "class", f"its bases changed, and {problem}")
        return
    reason = "its bases changed: each world finds what its own have; isinstance() knows both until all have moved"
    bases = ast.Tuple(new.bases, ast.Load())
    found.say(CARRIED, name, new.lineno, "class", reason, entry=BasesEntry(name, new.lineno), node=bases)
    for attribute, origin in _lacking(found, old, new):
        if is_derived(found, name, (old, new), attribute, new.lineno):
            continue
        key = f"{found.new.module}:{name}.{attribute}"
        why = f"its new base {origin} sets it, and instances made before lack it"
        found.ask(f"{name}.{attribute}", new.lineno, "attribute", why, SKELETON.format(key))


def extracted(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> set[str] | None:
    """The members that a class without bases has handed over, as they were, to a new base that nobody else asks for.

    The live class has them still, so that it can do without the base. None if the base has anything else.
    """
    if [base for base in old.bases if syntax.last_name(base) != "object"] or len(new.bases) != 1:
        return None
    base = next((node for node in found.new.tree.body if _is_class(node, new.bases[0])), None)
    if not isinstance(base, ast.ClassDef) or base.name in found.old.classes or _is_read(found, base.name):
        return None
    if base.bases or base.decorator_list or any(_goes_up(node) for cls in (base, new) for node in ast.walk(cls)):
        return None
    mine = {min(s.binds() or {""}): s.node for s in syntax.flatten(old.body) if _is_plain_method(s)}
    moved: set[str] = set()
    for statement in syntax.flatten(base.body):
        names = statement.binds() or frozenset()
        if names <= syntax.members(new) and _is_plain_method(statement):
            continue  # hidden by its own
        before = mine.get(min(names)) if len(names) == 1 and _is_plain_method(statement) else None
        if before is None or syntax.shape(before) != syntax.shape(statement.node):
            return None
        moved |= names
    return moved


def _is_plain_method(statement: syntax.Statement) -> bool:
    return isinstance(statement.node, syntax.FunctionNode) and not statement.under


def _is_class(node: ast.AST, base: ast.expr) -> bool:
    return isinstance(node, ast.ClassDef) and isinstance(base, ast.Name) and node.name == base.id


def _goes_up(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id in ("super", "__class__")


def _is_read(found: Findings, name: str) -> bool:
    """Whether new code names a class for anything but to inherit from it."""
    for source in found.world.sources_mentioning(name):
        bases = {id(base) for node in ast.walk(source.tree) if isinstance(node, ast.ClassDef) for base in node.bases}
        for node in source.evaluated:
            if isinstance(node, ast.alias) and node.name == name and node.asname:
                return True
            named = isinstance(node, ast.Name | ast.Attribute) and syntax.last_name(node) == name
            if named and id(node) not in bases:
                return True
    return False


def _problem(found: Findings, old: ast.ClassDef, new: ast.ClassDef, readers: set[str], conditional: bool) -> str:
    """Why a live class cannot be given its new bases; empty if it can."""
    both = [*old.bases, *new.bases]
    names = {syntax.last_name(base) for base in both}
    alone = [not [base for base in cls.bases if syntax.last_name(base) != "object"] for cls in (old, new)]
    generic = ["Generic" in {syntax.last_name(base) for base in cls.bases} for cls in (old, new)]
    if conditional:
        return "it stands below a condition"
    if any(alone) or "object" in names:
        return _NO_OTHERS
    if generic[0] != generic[1] or "Protocol" in names:
        return "it becomes generic or a protocol, or no longer is"
    if names & readers:
        return f"{' and '.join(sorted(names & readers))} computes with the class body"
    if not all(
        spelled.is_class(base) for spelled, cls in zip(found.names, (old, new), strict=True) for base in cls.bases
    ):
        return "what gives a base may do anything"
    layouts = sorted(name for name in names if _has_layout(getattr(builtins, name, None)))
    return f"{layouts[0]} has another layout" if layouts else ""


def _lacking(found: Findings, old: ast.ClassDef, new: ast.ClassDef) -> list[tuple[str, str]]:
    """(attribute, class) of what a new base keeps in its instances, and older ones lack."""
    family = found.world.ancestors(found.old, old)
    known = {name for cls in family for name in syntax.stored(cls)}
    names = {cls.name for cls in family}
    fresh = [cls for cls in found.world.ancestors(found.new, new, new=True)[1:] if cls.name not in names]
    lacking = {name: cls.name for cls in fresh for name in syntax.stored(cls) - syntax.members(cls) - known}
    return sorted(lacking.items())


def _has_layout(builtin: object) -> bool:
    """Whether instances of what inherits from this have another form in memory."""
    return isinstance(builtin, type) and not issubclass(builtin, BaseException)
