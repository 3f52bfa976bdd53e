"""Modules that only the new tree has: which of them a patch brings, and which it must not.

What new code imports comes along, with what that imports. Nobody in the old world may notice: not by asking for such a
module, not by what its body does when it is run, and not by the name that its package then has for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from livepatch.archive.format import MemberEntry, ModuleEntry
from livepatch.build import syntax
from livepatch.build.early import early_calls
from livepatch.build.findings import RESTART, Findings
from livepatch.build.report import ADDED, AT_COMPLETION, CARRIED, NOTED, REFUSED, VALUE, Change
from livepatch.build.sources import module_name
from livepatch.build.uses import uses
from livepatch.build.world import NOT_PYTHON, Source, World

#: What tells a module where it lies, and what reads what lies beside it.
_PLACES = {"__file__", "__path__", "__cached__"}
_READERS = ("importlib.resources", "importlib_resources", "pkg_resources", "pkgutil")


def compare_whole_modules(world: World, modules: Sequence[Findings]) -> list[Change]:
    """Modules that only one of the trees has. `modules` are those that both have and that differ."""
    fresh = {module_name(path): path for path in sorted(world.new.python.keys() - world.old.python.keys())}
    needed: dict[str, str] = {}
    pending = [(name, where) for found in modules for name, where in _imported(found)]
    while pending:
        name, where = pending.pop(0)
        if name not in fresh or name in needed:
            continue
        needed[name] = where
        source = world.parsed(fresh[name], new=True)
        pending += [(name.rpartition(".")[0], where)]
        pending += _imports(source, source.tree, fresh[name]) if source is not None else []
    changes = []
    for name, path in fresh.items():
        if name in needed:
            changes += list(_Arrival(world, modules, name, path, needed[name]).judge())
        elif world.old.path_of(name) is not None:
            reason = "it was a module and is now a package, or the other way round"
            changes.append(_change(REFUSED, name, path, reason))
        else:
            changes.append(_change(NOTED, name, path, "a new module, which nothing here imports"))
    for path in sorted(world.old.python.keys() - world.new.python.keys()):
        changes.append(_change(NOTED, module_name(path), path, "gone; it is left in place"))
    return changes


def _change(fate: str, name: str, path: str, reason: str, line: int = 0) -> Change:
    hint = RESTART.format(name) if fate == REFUSED else ""
    return Change(fate, name, "", path, line, "module", reason, hint)


class _Arrival:
    """One new module that new code imports, `where` says which."""

    def __init__(self, world: World, modules: Sequence[Findings], name: str, path: str, where: str) -> None:
        self._world = world
        self._modules = modules
        self._name = name
        self._path = path
        self._where = where
        self._follows: set[str] = set()

    def judge(self) -> Iterator[Change]:
        reason = f"a new module, imported by {self._where}"
        try:
            source = self._world.source(self._path, new=True)
            source.code  # noqa: B018 - what is parsed can still fail to compile
        except NOT_PYTHON as error:
            what = error.args[0] if error.args else type(error).__name__
            yield _change(REFUSED, self._name, self._path, f"{reason}, and this Python cannot compile it: {what}")
            return
        problems = list(dict.fromkeys(self._problems(source)))
        for line, problem in problems:
            yield _change(REFUSED, self._name, self._path, f"{reason}, and {problem}", line)
        if not problems:
            adopts = {n: origin for (module, n), origin in self._world.moves.adopted.items() if module == self._name}
            entry = ModuleEntry(self._name, self._path, tuple(sorted(adopts.values())), tuple(sorted(self._follows)))
            needs = {f"{name}:" for name, _ in _imports(source, source.tree, self._path)}
            needs |= {f"{self._name.rpartition('.')[0]}:"}
            needs |= {
                f"{source.resolve(node)}:{alias.name}"
                for node in ast.walk(source.tree)
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            place = self._name, "", self._path, 0, "module"
            yield Change(ADDED, *place, reason, entry=entry, needs=frozenset(needs - {f"{self._name}:"}))
            if adopts:
                names = ", ".join(sorted(adopts))
                text = f"moved here, and the same objects as before, with the module of before: {names}"
                yield _change(NOTED, self._name, self._path, text)

    def _problems(self, source: Source) -> Iterator[tuple[int, str]]:
        """(line, why it cannot be brought), for all that is in the way."""
        world = self._world
        if world.old.path_of(self._name) is not None:
            yield 0, "it was a module and is now a package, or the other way round"
        parent, _, last = self._name.rpartition(".")
        folder = parent.replace(".", "/") + "/"
        known = world.new.path_of(parent) or any(path.startswith(folder) for path in world.old.python)
        if parent and not known:
            yield 0, "its package is a new folder without `__init__.py`"
        around = world.old.path_of(parent)
        before = world.parsed(around, new=False) if around is not None else None
        if before is not None and last in before.bound | before.global_reads:
            yield 0, f"{parent} uses the name {last} for something else"
        for other in world.old.mentioning(last):
            asking = world.parsed(other, new=False)
            if asking is not None and asking.index is not None and asking.index.imports_module(self._name):
                yield 0, f"{other} imports it, if there is one"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.Name) and node.id in _PLACES:
                yield node.lineno, f"it reads `{node.id}`, but it will be in no file"
            elif isinstance(node, ast.Import | ast.ImportFrom):
                for name, _ in _imports(source, node, self._path):
                    if name in _READERS:
                        yield node.lineno, f"it reads files that lie beside it, with {name}"
        for statement in source.statements(source.tree.body):
            if not statement.dormant and (text := _acts_elsewhere(source, statement.node)):
                yield statement.line, f"`{text}` has an effect on what is not its own"
        for (module, name), origin in world.moves.torn.items():
            if module == self._name:
                yield 0, f"the class {name} has changed on its way from {origin}, whose instances are none of it"
        yield from self._values(source)
        for use, name in early_calls(world, self._modules, source, lambda use: True):
            yield use.line, f"it calls {name}, which changes, when it is imported"

    def _values(self, source: Source) -> Iterator[tuple[int, str]]:
        """What it reads that means something else in each world: the module would have that of the wrong one."""
        for found in self._modules:
            for change in found.changes:
                switched = isinstance(change.entry, MemberEntry) and "." not in change.name
                if change.fate not in (VALUE, AT_COMPLETION) and not (change.fate == CARRIED and switched):
                    continue
                name, module = change.name, found.new.module
                if source.index is None:
                    yield 0, "it is nested too deeply to be looked at"
                    return
                for imported in source.index.imports:
                    named = imported.name == name
                    star = imported.name == "*" and name in (self._world.star_names(module, new=True) or (name,))
                    if imported.origin != module or not (named or star):
                        continue
                    later = change.fate == AT_COMPLETION and named and not imported.inside
                    if later and not any(use.reads(imported.alias) for use in uses(source)):
                        self._follows.add(f"{imported.alias}={module}:{name}")
                    elif not (imported.inside and change.fate == AT_COMPLETION):
                        yield imported.line, f"it imports {name} of {module}, which changes"
                if not switched and change.fate == VALUE:
                    places = [use.text for use in source.index.uses(module, name)]
                    if places:
                        yield 0, f"it reads {name} of {module}, which changes, in {places[0]}"


def _acts_elsewhere(source: Source, node: ast.stmt) -> str:
    """The part of a statement that may change something which the module did not make itself; empty if none does."""
    if isinstance(node, syntax.DefinitionNode):
        return ""
    inside = [inner for child in syntax.nested_statements(node) if (inner := _acts_elsewhere(source, child))]
    if inside:
        return inside[0]
    if isinstance(node, ast.Expr):
        called = node.value.func if isinstance(node.value, ast.Call) else node.value
        targets = [called]
        if ast.unparse(node).startswith(("logging.getLogger(__name__).", "getLogger(__name__).")):
            return ""
    elif isinstance(node, ast.Assign | ast.Delete):
        targets = [t for target in node.targets for t in getattr(target, "elts", [target])]
    elif isinstance(node, ast.AugAssign | ast.AnnAssign):
        targets = [node.target]
    else:
        return ""
    for target in targets:
        root = syntax.first_name(target)
        if not isinstance(target, ast.Name) or isinstance(node, ast.Expr):
            binders = [s for s in source.statements(source.tree.body) if root in (s.binds() or ())]
            if not binders or any(s.alias is not None for s in binders) or isinstance(target, ast.Name):
                return ast.unparse(node).split("\n")[0]
    return ""


def _imported(found: Findings) -> list[tuple[str, str]]:
    """(module, who) for everything that code brought in by the patch imports."""
    bodies: list[tuple[str, ast.AST]] = [(new.definition.name, new.node) for _, new in found.functions]
    bodies += [(name, statement.node) for name, statement in found.added]
    return [
        (module, f"{who} in {found.new.path}")
        for who, body in bodies
        for module, _ in _imports(found.new, body, found.new.path)
    ]


def _imports(source: Source, body: ast.AST, where: str) -> list[tuple[str, str]]:
    """(module, where) for everything that may be a module and is imported in a piece of source, with packages."""
    imported: list[str] = []
    for node in ast.walk(body):
        if isinstance(node, ast.Import):
            imported += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            origin = source.resolve(node)
            imported += [origin, *(f"{origin}.{alias.name}" for alias in node.names)]
    return [(name, where) for name in dict.fromkeys(imported)]
