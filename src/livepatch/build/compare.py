"""Two source trees into a report: what a patch from the one to the other would do.

Every module that differs is compared by rules (`modules`, `classes`, `functions`); each rule says what
becomes of a difference and claims the piece of syntax that it explained. At the end, whatever differs and was
claimed by nobody is refused: a rule that was forgotten shows as a refusal, never as a silent loss.
"""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace

from livepatch.build import syntax
from livepatch.build.arrivals import compare_whole_modules
from livepatch.build.attributes import check_attributes
from livepatch.build.early import refuse_early_calls
from livepatch.build.effects import settle_effects
from livepatch.build.findings import RESTART, Findings
from livepatch.build.modules import compare_modules
from livepatch.build.report import ABSENT, NOTED, REFUSED, Change, Report
from livepatch.build.sources import Files, Tree, module_name
from livepatch.build.values import carry_values
from livepatch.build.world import NOT_PYTHON, World, is_aside, is_program

_UNUSED = "no service imports this module"


def compare(old: Files | Tree, new: Files | Tree) -> Report:
    """What would become of every difference between two trees (path -> content, or sorted already).

    Raises LivepatchError (EINVAL) if a tree is itself a package.
    """
    world = World(Tree.sort(old), Tree.sort(new))
    modules = []
    changes: list[Change] = []
    for path in sorted(world.old.python.keys() | world.new.python.keys()):
        before, after = world.old.python.get(path), world.new.python.get(path)
        if before is None or after is None:
            continue
        if before.splitlines() != after.splitlines() or _passes_on(world, path):
            found = _compare_module(world, path, changes)
            if found is not None:
                modules.append(found)
    carry_values(world, modules)
    settle_effects(modules)
    check_attributes(modules)
    refuse_early_calls(world, modules)
    for found in modules:
        _note_effects(found)
    changes += [change for found in modules for change in found.changes]
    changes += compare_whole_modules(world, modules)
    changes += _other_files(world)
    changes = _set_aside(world, changes)
    return Report(sorted(changes, key=lambda change: (change.file, change.line, change.name)))


def _passes_on(world: World, path: str) -> bool:
    """Whether a module that has not changed itself has an `import *` that brings more names than before."""
    source = world.parsed(path, new=True) if b"import *" in world.new.python[path] else None
    if source is None:
        return False
    for statement in syntax.flatten(source.tree.body):
        if isinstance(statement.node, ast.ImportFrom) and statement.binds() is None and not statement.dormant:
            origin = source.resolve(statement.node)
            old, new = (world.star_names(origin, new=new) for new in (False, True))
            if old is not None and new is not None and new - old:
                return True
    return False


def _set_aside(world: World, changes: list[Change]) -> list[Change]:
    """What cannot be carried in a module that no service imports is no reason to refuse the rest.

    Such a module is not carried at all, and the patch refuses to load in a process that has imported it. Whoever
    imports it later gets what is on disk then. So it is with a template, which nobody can import. The same is true of
    a `__main__` that is only run as a program, but its statements are like the block below
    `if __name__ == "__main__"`: where it runs, it has been started.
    """
    changes = [_started(world, change) for change in changes]
    refused = {change.module for change in changes if change.fate == REFUSED and change.kind != "extension"}
    aside = {module for module in refused if module and world.is_beside(module)}
    set_aside = []
    for change in changes:
        if change.module in aside:
            why = f" ({change.reason})" if change.fate == REFUSED else ""
            name = None if is_aside(change.module) or is_program(change.module) else world.unfilled(change.module)
            what = f"a template: no module imports it, and nothing binds {name}" if name else _UNUSED
            reason = f"{what}; the patch refuses to load where one has{why}"
            change = replace(change, fate=ABSENT, reason=reason, hint="", entry=None, needs=frozenset())
        set_aside.append(change)
    return set_aside


def _started(world: World, change: Change) -> Change:
    program = change.fate == REFUSED and change.kind == "statement" and is_program(change.module)
    if not program or not world.is_beside(change.module):
        return change
    reason = f"the start of a program, which has been started where it runs ({change.reason})"
    return replace(change, fate=NOTED, reason=reason, hint="", entry=None, needs=frozenset())


def _compare_module(world: World, path: str, changes: list[Change]) -> Findings | None:
    reason, line, hint = "", 0, "build with the Python that runs the process"
    which = "old"
    try:
        old = world.source(path, new=False)
        old.code  # noqa: B018 - what is parsed can still fail to compile
        which = "new"
        new = world.source(path, new=True)
        new.code  # noqa: B018
    except NOT_PYTHON as error:
        what = error.args[0] if error.args else type(error).__name__
        reason, line = f"this Python cannot compile the {which} version: {what}", getattr(error, "lineno", None) or 0
    else:
        found = Findings(old, new, world)
        try:
            compare_modules(found)
            _check_complete(found)
            return found
        except RecursionError:
            reason, hint = "it is nested too deeply to be compared", RESTART.format(module_name(path))
    changes.append(Change(REFUSED, module_name(path), "", path, line, "module", reason, hint))
    return None


def _check_complete(found: Findings) -> None:
    old = _unclaimed(found.old.tree.body, found.claimed)
    new = _unclaimed(found.new.tree.body, found.claimed)
    for line in _lines_only_in(new, old) or _lines_only_in(old, new):
        found.refuse("", line, "statement", "this difference is not understood")


def _unclaimed(body: Sequence[ast.stmt], claimed: set[int]) -> dict[str, int]:
    """What no rule claimed, each piece with its line."""
    found: dict[str, int] = {}
    for statement in syntax.flatten(body):
        node = statement.node
        if statement.dormant or id(statement.identity) in claimed:
            continue
        if isinstance(node, ast.ClassDef):
            inner = _unclaimed(node.body, claimed)
            found |= {f"{node.name}: {text}": line for text, line in inner.items()}
            head = [node.name, *map(syntax.shape, (node.bases, node.keywords)), syntax.decorators(node)]
            found[repr((statement.under, head))] = node.lineno
        elif not (isinstance(node, syntax.FunctionNode) and syntax.is_overload(node)):
            found[repr(statement.key)] = statement.line
    return found


def _lines_only_in(one: dict[str, int], other: dict[str, int]) -> list[int]:
    return sorted({line for text, line in one.items() if text not in other})


def _note_effects(found: Findings) -> None:
    """Say what a change of this module would have done when it was imported, and cannot do now."""
    for _, new in found.functions:
        name = new.definition.name
        calls = found.world.readers(found.new.module, name).calls if name == new.node.name else []
        if calls:
            more = f" and {len(calls) - 1} more" if len(calls) > 1 else ""
            reason = f"called when modules are imported, by {calls[0]}{more}: what the old one did then stays"
            found.note(name, new.node.lineno, "function", reason)
    public = [name for name, _ in found.added if "." not in name and not name.startswith("_")]
    importers = found.world.star_importers(found.new.module) if public else []
    if importers and found.world.star_names(found.new.module, new=True) is None:
        reason = f"new names, which `import *` in {importers[0]} does not pass on: {', '.join(public)}"
        found.note("", 0, "import", reason)


def _other_files(world: World) -> list[Change]:
    """Differences in what is not Python source, or not part of a package."""
    changes = []
    for path in _differing(world.old.compiled, world.new.compiled):
        name = module_name(path)
        reason, hint = "compiled code cannot be exchanged in a live process", RESTART.format(name)
        fate = REFUSED
        if path.endswith((".so", ".pyd", ".c", ".cpp")) and _same_source(world, path):
            fate, reason, hint = NOTED, "compiled anew from the same source", ""
        changes.append(Change(fate, name, "", path, 0, "extension", reason, hint))
    for path in _differing(world.old.data, world.new.data):
        reason = "a data file; the patch does not touch files"
        changes.append(Change(NOTED, "", "", path, 0, "file", reason))
    folders: dict[str, int] = {}
    for path in _differing(world.old.outside, world.new.outside):
        folder = path.partition("/")[0]
        folders[folder] = folders.get(folder, 0) + 1
    for folder, count in sorted(folders.items()):
        changes.append(Change(NOTED, "", "", folder, 0, "file", f"{count} changed, outside of the packages"))
    return changes


def _differing(old: dict[str, bytes], new: dict[str, bytes]) -> list[str]:
    return sorted(path for path in old.keys() | new.keys() if old.get(path) != new.get(path))


def _same_source(world: World, path: str) -> bool:
    """Whether both trees have the same source of an extension module, or of C that was generated, beside it."""
    folder, _, name = path.rpartition("/")
    for suffix in (".pyx", ".rs", ".cpp", ".c"):
        source = f"{folder}/{name.split('.')[0]}{suffix}"
        if source in world.old.compiled and source != path:
            return world.old.compiled[source] == world.new.compiled.get(source)
    return False
