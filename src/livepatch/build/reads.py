"""Who uses a name of a module, inside the module and in others.

Annotations do not count, nor blocks that importing a module does not run. Where it cannot be told, the answer is yes: a
module that calls `globals()` may read any of its names.
"""

from __future__ import annotations

import ast

from livepatch.build import syntax

#: What reads the names of a module without naming them.
_BY_ANY_NAME = {"locals", "globals", "vars"}


class Uses(ast.NodeVisitor):
    """The uses of `name`, a name of the module `module`, in the source of one module.

    `places` are where its value is read, as "C.method (path:line)"; `calls` those that call it while the module is
    imported; `imports` the (alias, line) of imports at the top level that give it a name there. `path` and
    `importer` say which module is looked at.
    """

    def __init__(self, tree: ast.Module, path: str, importer: str, module: str, name: str) -> None:
        self.places: list[str] = []
        self.calls: list[str] = []
        self.imports: list[tuple[str, int]] = []
        self._path = path
        self._importer = importer
        self._module = module
        self._name = name
        self._own = importer == module
        self._modules = {module.rpartition(".")[2]}  # names by which the module goes here
        self._where: list[str] = []
        self._shadowed = False  # the name is a local variable here
        self._depth = 0  # of functions
        self.visit(tree)

    def _read(self, node: ast.expr | ast.stmt) -> None:
        where = ".".join(self._where) or "the module itself"
        self.places.append(f"{where} ({self._path}:{node.lineno})")

    def visit_Name(self, node: ast.Name) -> None:
        if self._own and isinstance(node.ctx, ast.Load) and not self._shadowed:
            by_any_name = node.id in _BY_ANY_NAME and not (self._where and node.id == "locals")
            if node.id == self._name or by_any_name:
                self._read(node)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if node.attr == self._name and syntax.last_name(node.value) in self._modules:
            self._read(node)
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        if syntax.last_name(node.func) == "getattr" and any(
            isinstance(argument, ast.Constant) and argument.value == self._name for argument in node.args
        ):
            self._read(node)
        before = len(self.places)
        self.visit(node.func)
        self.calls += self.places[before:] if not self._depth else []
        for argument in [*node.args, *node.keywords]:
            self.visit(argument)

    def visit_Import(self, node: ast.Import) -> None:
        self._modules.update(a.asname or a.name.split(".")[0] for a in node.names if a.name == self._module)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        origin = syntax.resolve(node, self._importer, self._path)
        for alias in node.names:
            if f"{origin}.{alias.name}" == self._module:
                self._modules.add(alias.asname or alias.name)
            if origin == self._module and alias.name in (self._name, "*"):
                if self._where:
                    self._read(node)
                else:
                    self.imports.append((alias.asname or self._name, node.lineno))

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
        before = len(self.places)
        for decorator in node.decorator_list:
            self.visit(decorator)
        self.calls += self.places[before:] if not self._depth else []
        self._visit_function(node, node.body)
        self._where.pop()

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self._visit_function(node, [node.body])

    def _visit_function(
        self, node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, body: list[ast.stmt] | list[ast.expr]
    ) -> None:
        self.visit(node.args)
        before = self._shadowed
        self._shadowed = before or _is_local(node, self._name)
        self._depth += 1
        for child in body:
            self.visit(child)
        self._depth -= 1
        self._shadowed = before


def _is_local(node: ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda, name: str) -> bool:
    """Whether a name is a local variable of a function."""
    inside = list(ast.walk(node))
    if any(isinstance(inner, ast.Global) and name in inner.names for inner in inside):
        return False
    return any(
        (isinstance(inner, ast.Name) and inner.id == name and isinstance(inner.ctx, ast.Store))
        or (isinstance(inner, ast.arg) and inner.arg == name)
        for inner in inside
    )
