"""Modules that only the new release has: importable from before the transition until the patch is gone, by a finder.

They are run when somebody imports them, as they are in the new release: at the latest by new code at run time, mostly
by a new import statement in a module that the patch changes. The build has made sure that old code does not ask for
them, that the names under which their packages then have them are free, and that their bodies leave alone what is not
their own. So tasks in the old world notice nothing.

What has moved to such a module stays the object that it is: there must not be two classes of which live instances and
`except` clauses know one each. In place of its definition the module imports it from where it was.

When the patch goes, the modules leave `sys.modules` and their packages; who holds one, or something of it, keeps that.
A cumulative patch that brings the very same module goes on with it.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import linecache
import sys
import warnings
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType

from livepatch.archive.byhand import keep_source
from livepatch.archive.format import ModuleEntry, refusal
from livepatch.archive.pieces import NewSource, like
from livepatch.core import cpython


def adopted(node: ast.stmt, origin: str) -> ast.stmt:
    """An import that stands in the place of a definition which has moved here from `module:name`."""
    module, _, name = origin.partition(":")
    alias = ast.copy_location(ast.alias(name, None), node)
    return ast.copy_location(ast.ImportFrom(module, [alias], 0), node)


class _Arrival:
    """One new module, and its loader."""

    def __init__(self, entry: ModuleEntry, content: bytes, source: NewSource) -> None:
        self.name = entry.module
        self.package = entry.path.endswith("/__init__.py")
        self.content = content
        self.adopts = entry.adopts
        self.follows = [name.partition("=") for name in entry.follows]
        self.file = source.file
        origins = {origin.partition(":")[2]: origin for origin in entry.adopts}
        body = [
            adopted(node, origins.pop(name)) if (name := _binds(node)) in origins else node for node in source.tree.body
        ]
        if origins:
            raise refusal(f"The archive moves '{min(origins)}' to '{self.name}', but its source lacks it.")
        self.tree = like(source.tree, body=body)
        self._code = source.code
        if entry.adopts:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # odd comparisons and the like are the package's affair
                self._code = compile(self.tree, self.file, "exec", dont_inherit=True)

    def is_like(self, other: _Arrival) -> bool:
        return (self.content, self.adopts, self.package) == (other.content, other.adopts, other.package)

    def spec(self) -> ModuleSpec:
        return ModuleSpec(self.name, self, origin=self.file, is_package=self.package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        pass

    def exec_module(self, module: ModuleType) -> None:
        keep_source(self.content, self.file)
        exec(self._code, vars(module))

    def get_code(self, name: str) -> CodeType:
        return self._code

    def is_package(self, name: str) -> bool:
        return self.package

    def imports(self) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
        """The imports that its body does, each with whether it must succeed."""
        for node in self.tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                yield node, True
            elif isinstance(node, ast.If | ast.Try):
                inside = (inner for inner in ast.walk(node) if isinstance(inner, ast.Import | ast.ImportFrom))
                yield from ((inner, False) for inner in inside)


def _binds(node: ast.stmt) -> str:
    """The name that a definition, or an assignment to one name, binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return node.name
    targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
    return targets[0].id if len(targets) == 1 and isinstance(targets[0], ast.Name) else ""


#: Those of the patches that are in force, or are about to be.
_serving: list[Arrivals] = []


class Arrivals:
    """The new modules of one archive, and the finder of them. `users` are the changed modules that are in force."""

    def __init__(self, modules: Sequence[tuple[ModuleEntry, bytes, NewSource]], *, replace: bool) -> None:
        self._replace = replace
        self._users: list[object] = []
        self._asked: set[str] = set()
        self._arrivals: dict[str, _Arrival] = {}
        for entry, content, source in modules:
            self._arrivals[entry.module] = _Arrival(entry, content, source)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        arrival = self._arrivals.get(fullname)
        return None if arrival is None else arrival.spec()

    def do_imports(self, node: ast.Import | ast.ImportFrom, package: str | None) -> None:
        """Do the imports of a statement, and of a module of ours that it will import those which that will do.

        Raises what importing raises.
        """
        if isinstance(node, ast.Import):
            for alias in node.names:
                self._do_import(alias.name)
            return
        from importlib.util import resolve_name

        origin = resolve_name("." * node.level + (node.module or ""), package)
        self._do_import(origin)
        for alias in node.names:
            name = f"{origin}.{alias.name}"
            there = sys.modules.get(origin)
            if name in self._arrivals:
                self._do_import(name)
            elif there is not None and not hasattr(there, alias.name) and hasattr(there, "__path__"):
                with contextlib.suppress(ModuleNotFoundError):  # no submodule, but a name that the patch adds
                    importlib.import_module(name)

    def _do_import(self, name: str) -> None:
        arrival = self._arrivals.get(name)
        if arrival is None:
            importlib.import_module(name)
            return
        parent = name.rpartition(".")[0]
        if parent:
            self._do_import(parent)
        if name in self._asked:
            return
        self._asked.add(name)
        for node, needed in arrival.imports():
            try:
                self.do_imports(node, name if arrival.package else parent)
            except Exception:  # importing runs foreign code
                if needed:
                    raise

    def verify(self) -> None:
        """Raise LivepatchError (EINVAL) if one of the modules is there already, or something else of its name."""
        for name, arrival in self._arrivals.items():
            others = [serving._arrivals[name] for serving in _serving if name in serving._arrivals]
            if self in _serving or (self._replace and others and all(map(arrival.is_like, others))):
                continue
            parent, _, last = name.rpartition(".")
            if name in sys.modules or others:
                raise refusal(f"The new module '{name}' exists already in this process.")
            if parent in sys.modules and last in vars(sys.modules[parent]):
                raise refusal(f"'{last}' exists already in the live module '{parent}', so '{name}' cannot be there.")

    def begin(self, user: object) -> None:
        """From now on the modules can be imported."""
        if self._arrivals and not self._users:
            sys.meta_path.insert(0, self)
            _serving.append(self)
        self._users.append(user)

    def complete(self) -> None:
        """The transition is over: what the modules have imported of values that change now follows."""
        for name, arrival in self._arrivals.items():
            module = sys.modules.get(name)
            for alias, _, origin in arrival.follows if module is not None else ():
                where, _, value = origin.partition(":")
                known = vars(sys.modules[where]) if where in sys.modules else {}
                if module is not None and alias in vars(module) and value in known:
                    vars(module)[alias] = known[value]

    def end(self, user: object) -> None:
        """Take them back when nobody uses them any more, unless another patch brings the same."""
        if user not in self._users:
            return
        self._users.remove(user)
        if self._users or self not in _serving:
            return
        _serving.remove(self)
        cpython.remove_finder(self)
        for name, arrival in reversed(self._arrivals.items()):
            linecache.cache.pop(arrival.file, None)
            module = sys.modules.get(name)
            loader = getattr(getattr(module, "__spec__", None), "loader", None)
            ours = isinstance(loader, _Arrival) and loader.is_like(arrival)
            if ours and not any(name in serving._arrivals for serving in _serving):
                del sys.modules[name]
                parent, _, last = name.rpartition(".")
                around = sys.modules.get(parent)
                if around is not None and vars(around).get(last) is module:
                    delattr(around, last)
