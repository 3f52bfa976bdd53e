"""New statements of a module that put something into a container, or set an attribute, of what is not the module's own.

    urllib.parse.uses_netloc.append("itms")
    sys.modules[__name__].__class__ = Module

They can be run when the transition is over, and taken back, if that is all that they do: what they do it to is told by
names, all else in them only computes (see `purity`), and it is none of the values that the patch changes itself. What
the interpreter goes by (`sys.path`, `os.environ`) is left to who starts the process.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import replace

from livepatch.archive.effects import ITEM, Act, act, leaves
from livepatch.archive.format import ConstantEntry, EffectEntry, MemberEntry
from livepatch.build import syntax
from livepatch.build.bindings import Import
from livepatch.build.findings import RESTART, Findings
from livepatch.build.groups import class_names
from livepatch.build.purity import Purity
from livepatch.build.report import AT_COMPLETION, REFUSED
from livepatch.build.scopes import Scope
from livepatch.build.syntax import Statement
from livepatch.build.uses import condition_of
from livepatch.build.world import Source

_RUN = "`{}` is run when the transition is over, and taken back with the patch"
_OF_THE_PROCESS = {"sys", "builtins", "environ", "importlib", "signal", "atexit", "threading", "warnings"}


def carry_effect(found: Findings, scope: Scope, statement: Statement) -> bool:
    """A new statement that is run for what it does: whether it can be run at completion."""
    node = statement.node
    acts = [act(leaf) for leaf in leaves(node) if not isinstance(leaf, ast.Pass)]
    tests = [condition_of(header) for header in statement.under]
    known = [one for one in acts if one is not None]
    if not known or len(known) < len(acts) or None in tests:
        return False
    targets = [part.target for part in ast.walk(node) if isinstance(part, ast.For)]
    loops = {target.id for target in targets if isinstance(target, ast.Name)}
    alone = sum(other.node.lineno == node.lineno for other in scope.new) == 1
    if len(loops) < len({*map(ast.dump, targets)}) or loops & found.new.global_reads or not alone:
        return False
    if not all(_is_reachable(found.new, one, loops) for one in known):
        return False
    try:
        nodes = [*filter(None, tests), *_evaluated(node, known)]
        if Purity(found.world, found.new).problem(nodes) is not None:
            return False
    except RecursionError:
        return False
    text = ast.unparse(node).split("\n")[0]
    entry = EffectEntry(text, statement.line)
    found.say(AT_COMPLETION, text, statement.line, "statement", _RUN.format(text), entry=entry, node=node)
    found.effects.append((entry, statement, known))
    return True


def _evaluated(node: ast.stmt, acts: Iterable[Act]) -> Iterator[ast.AST]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.If):
            yield inner.test
        elif isinstance(inner, ast.For):
            yield inner.iter
    for one in acts:
        yield from (one.target, *one.values, *one.keywords)


def _is_reachable(source: Source, one: Act, loops: set[str]) -> bool:
    """Whether names tell what is changed, and it is nothing that something else here looks after."""
    target, itself = one.target, False
    while isinstance(target, ast.Attribute):
        if syntax.is_special(target.attr):
            return False
        target = target.value
    if isinstance(target, ast.Subscript):
        itself = ast.unparse(target) == "sys.modules[__name__]"
        if not itself:
            return False
    root = syntax.first_name(target)
    if not isinstance(target, ast.Name | ast.Subscript) or root in loops:
        return False
    if one.attribute and syntax.is_special(one.name) and not (one.name == "__class__" and one.target is target):
        return False
    if itself:
        return one.attribute and one.target is target and one.name == "__class__"
    bound = source.bindings.get(root, [])
    if len(bound) != 1:
        return False  # of two things, or of a function that the interpreter knows
    if not isinstance(bound[0], Import):
        # A value of the module is made anew by all that changes it; a member of a class follows in its own way.
        path = ast.unparse(one.target)
        return path != root if not one.attribute else path in class_names(source) and not _has(source, path, one.name)
    first = bound[0].node.module if isinstance(bound[0].node, ast.ImportFrom) else bound[0].alias.name
    return not {(first or "").partition(".")[0], *ast.unparse(one.target).split(".")} & _OF_THE_PROCESS


def _has(source: Source, path: str, name: str) -> bool:
    classes = source.classes.get(path.rpartition(".")[2], ())
    return len(classes) != 1 or name in syntax.stored(classes[0])


def is_replaced(found: Findings, statement: Statement) -> bool:
    """Whether a statement that is gone has set items and attributes, which a new one sets to something else."""
    outline = _outline(statement.node)
    for entry, other, _ in found.effects if outline is not None else ():
        if other.under == statement.under and _outline(other.node) == outline:
            text = ast.unparse(statement.node).split("\n")[0]
            found.note("", statement.line, "statement", f"`{text}` is gone: `{entry.name}` takes its place")
            return True
    return False


def _outline(node: ast.stmt) -> object:
    """What a statement sets under which conditions, without the values; None if it does something else."""
    if isinstance(node, ast.If):
        parts = [[_outline(inner) for inner in block] for block in (node.body, node.orelse)]
        return None if any(None in part for part in parts) else (ast.dump(node.test), *map(tuple, parts))
    one = act(node)
    if one is None or not (one.attribute or one.name == ITEM):
        return None
    return ast.dump(one.target), one.name, *map(ast.dump, one.values[:-1])


def settle_effects(modules: Iterable[Findings]) -> None:
    """Refuse those that act on what the patch itself exchanges: two would take it back."""
    modules = list(modules)
    entries = [change.entry for found in modules for change in found.changes]
    changed = {e.name.rpartition(".")[2] for e in entries if isinstance(e, ConstantEntry | MemberEntry)}
    for found in modules:
        for entry, _, acts in found.effects:
            names = {one.name if one.attribute else syntax.last_name(one.target) for one in acts}
            for at, change in enumerate(found.changes):
                if change.entry is entry and names & changed:
                    reason = f"`{entry.name}` is about {min(names & changed)}, which the patch changes besides"
                    hint = RESTART.format(f"{found.new.module}:{entry.name}")
                    found.changes[at] = replace(change, fate=REFUSED, reason=reason, hint=hint, entry=None)
