"""Which names a module reads, calls and imports, and where: an index of its source.

Annotations do not count, nor blocks that importing a module does not run. Where it cannot be told, the answer is
yes: a module that calls `globals()` may read any of its names.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass

from livepatch.build import syntax

#: What reads the names of a module without naming them.
_BY_ANY_NAME = {"locals", "globals", "vars"}
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)


@dataclass(frozen=True)
class Use:
    """A place where a value is read. `text` is "C.method (path:line)"; `called`: while the module is imported."""

    text: str
    called: bool
    where: str = ""


@dataclass(frozen=True)
class Import:
    """`from origin import name as alias`; `inside` if it is in a function or class."""

    origin: str
    name: str
    alias: str
    line: int
    inside: str


class Index(ast.NodeVisitor):
    """All uses of names in the source of one module."""

    def __init__(self, tree: ast.Module, module: str, path: str) -> None:
        self.imports: list[Import] = []
        self._module = module
        self._path = path
        self._names: dict[str, list[Use]] = {}
        self._any_name: list[Use] = []  # that may read any name
        self._attributes: dict[str, list[tuple[str, Use]]] = {}  # attribute -> (last name before it, use)
        self._asked_for: dict[str, list[Use]] = {}  # getattr(..., "name")
        self._modules: dict[str, set[str]] = {}  # module -> names by which it may go here
        self._where: list[str] = []
        self._local: set[str] = set()  # names that are local variables here
        self._depth = 0  # of functions
        self._called: ast.expr | None = None  # what is about to be called
        self.visit(tree)

    def uses(self, module: str, name: str) -> Iterator[Use]:
        """The places where this module reads a name of a module, itself perhaps."""
        if module == self._module:
            yield from self._names.get(name, ())
            yield from self._any_name
        aliases = self.names_of(module)
        for before, use in self._attributes.get(name, ()):
            if before in aliases:
                yield use
        yield from self._asked_for.get(name, ())
        for imported in self.imports:
            if imported.inside and imported.origin == module and imported.name in (name, "*"):
                yield Use(self._text(imported.inside, imported.line), False)

    def names_of(self, module: str) -> set[str]:
        """The last names by which a module may go here."""
        return self._modules.get(module, set()) | {module.rpartition(".")[2]}

    def modules_called(self, name: str) -> Iterator[str]:
        """The modules that a name may stand for here."""
        return (module for module, names in self._modules.items() if name in names)

    def functions_naming(self, attribute: str, before: set[str]) -> set[str]:
        """The functions, without `<locals>`, that name an attribute of something of these names."""
        return {use.where for last, use in self._attributes.get(attribute, ()) if last in before}

    def imports_module(self, module: str) -> bool:
        """Whether this module imports a module, anywhere, or something from it."""
        return module in self._modules or any(imported.origin == module for imported in self.imports)

    def _text(self, where: str, line: int) -> str:
        return f"{where or 'the module itself'} ({self._path}:{line})"

    def _use(self, node: ast.expr) -> Use:
        called = self._called is node and not self._depth
        where = ".".join(self._where)
        return Use(self._text(where, node.lineno), called, where)

    def visit_Name(self, node: ast.Name) -> None:
        if isinstance(node.ctx, ast.Load) and node.id not in self._local:
            self._names.setdefault(node.id, []).append(self._use(node))
            if node.id in _BY_ANY_NAME and not (self._depth and node.id == "locals"):
                self._any_name.append(self._use(node))

    def visit_Attribute(self, node: ast.Attribute) -> None:
        self._attributes.setdefault(node.attr, []).append((syntax.last_name(node.value), self._use(node)))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if syntax.last_name(node.func) == "getattr":
            for argument in node.args:
                if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                    self._asked_for.setdefault(argument.value, []).append(self._use(node))
        self._called = node.func
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            self._modules.setdefault(alias.name, set()).add(alias.asname or alias.name.split(".")[0])

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        origin = syntax.resolve(node, self._module, self._path)
        for alias in node.names:
            name = alias.asname or alias.name
            self._modules.setdefault(f"{origin}.{alias.name}", set()).add(name)
            self.imports.append(Import(origin, alias.name, name, node.lineno, ".".join(self._where)))

    def visit_Assign(self, node: ast.Assign) -> None:
        if syntax.last_name(node.targets[0]) != "__all__":
            self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.visit(node.target)
        if node.value is not None:
            self.visit(node.value)

    def visit_arg(self, node: ast.arg) -> None:
        pass  # only an annotation could be in there

    def visit_If(self, node: ast.If) -> None:
        dormant = syntax.is_dormant(node.test)
        if dormant is None:
            self.visit(node.test)
        for child in [*(node.body if dormant is not True else ()), *(node.orelse if dormant is not False else ())]:
            self.visit(child)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self._where.append(node.name)
        self.generic_visit(node)
        self._where.pop()

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self._where.append(node.name)
        for decorator in node.decorator_list:
            self._called = decorator
            self.visit(decorator)
        self._visit_function(node, node.body)
        self._where.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_function(node, [node.body])

    def _visit_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, body: list[ast.stmt] | list[ast.expr]
    ) -> None:
        self.visit(node.args)
        before = self._local
        self._local = before | _locals(node)
        self._depth += 1
        for child in body:
            self.visit(child)
        self._depth -= 1
        self._local = before


def _locals(function: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda) -> set[str]:
    """The parameters and local variables of a function."""
    found = {a.arg for a in ast.walk(function.args) if isinstance(a, ast.arg)}
    not_local: set[str] = set()
    pending: list[ast.AST] = [function.body] if isinstance(function, ast.Lambda) else list(function.body)
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Global):
            not_local.update(node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
        elif not isinstance(node, (*_FUNCTIONS, ast.ClassDef)):
            pending += ast.iter_child_nodes(node)
    return found - not_local
