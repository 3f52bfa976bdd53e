"""Running pieces of a new source file inside the live module.

A patch adds functions, imports, names, methods; it never runs the module again. The statements in question
are cut out of the new source, each with the `if` or `try` around it, and compiled under the new file name.
They run in a scratch namespace, with the live module's dictionary as globals: what they bind is returned,
nothing is changed.

Members of a class are made by running a class body that holds nothing else, so that the compiler takes care
of private names, qualified names and `super()`; its `__class__` cell is then given the live class. The same
device evaluates new default values and annotations: a `def` with an empty body is run where the function
stands.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator, Mapping
from types import CellType, CodeType, ModuleType
from typing import Any

from livepatch.archive.format import refusal
from livepatch.core.codes import OPTIMIZED
from livepatch.core.instances import live_class as live_class
from livepatch.core.values import substitute

from .record import Record

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

_FUTURES = 0x1FF0000  # what `from __future__ import ...` leaves in co_flags
#: What the compiler makes a class body or an annotated statement bind, besides what is written there.
_BY_COMPILER = {"__module__", "__qualname__", "__firstlineno__", "__static_attributes__", "__classcell__"}
_BY_COMPILER |= {"__classdictcell__", "__annotations__", "__annotate__", "__annotate_func__"}
_BY_COMPILER |= {"__conditional_annotations__"}


class NewSource:
    """The new version of a module's source, under the file name by which its code is known when patched."""

    def __init__(self, content: bytes, file: str) -> None:
        self.file = file
        self.tree = ast.parse(content, file)
        self.code: CodeType = compile(content, file, "exec", dont_inherit=True)
        self._inside = _by_place(self.code)

    def keep(self, kept: dict[tuple[str, int], set[str]]) -> None:
        """Have functions, by name and first line, go on to close over variables of which they make no use any more.

        A function that exists keeps its cells, and new code for it must have as many. So the variables are named
        where they are never read.
        """
        for node in [n for n in ast.walk(self.tree) if isinstance(n, FunctionNode)]:
            names = [ast.Name(name, ast.Load()) for name in sorted(kept.get((node.name, first_line(node)), ()))]
            if names:
                never = ast.If(ast.Constant(False), [ast.Expr(ast.Tuple([*names], ast.Load()))], [])
                last = ast.copy_location(never, node.body[-1])
                node.body.append(ast.fix_missing_locations(last))
        self.code = compile(self.tree, self.file, "exec", dont_inherit=True)
        self._inside = _by_place(self.code)

    def as_compiled(self, piece: CodeType, path: str) -> CodeType:
        """The code of a piece with everything in it as it is in the whole module, but for the classes around it.

        The compiler calls `a.b()` in another way if it has seen `import a`, and one patch must be able to go on
        from what another has added.
        """
        found = _by_place(piece)
        around = {path[:end] for end, mark in enumerate(path + ".") if mark == "."}

        def replaced(code: CodeType) -> CodeType:
            constants = tuple(known(c) if isinstance(c, CodeType) else c for c in code.co_consts)
            return code.replace(co_consts=constants)

        def known(code: CodeType) -> CodeType:
            mine, whole = found[_place(code)], self._inside.get(_place(code), [])
            if len(mine) != len(whole) or code.co_qualname in around:
                return replaced(code)
            same = whole[next(i for i, one in enumerate(mine) if one is code)]
            return same if same.co_freevars == code.co_freevars else replaced(code)

        return replaced(piece)


def _place(code: CodeType) -> tuple[str, int]:
    return code.co_qualname, code.co_firstlineno


def _by_place(code: CodeType) -> dict[tuple[str, int], list[CodeType]]:
    """All code inside of a code, by name and line; on one line there may be several."""
    found: dict[tuple[str, int], list[CodeType]] = {}
    pending = [code]
    while pending:
        inside = [constant for constant in pending.pop().co_consts if isinstance(constant, CodeType)]
        for inner in inside:
            found.setdefault(_place(inner), []).append(inner)
        pending += inside
    return found


class Piece(Record):
    """A statement, and the classes in which it stands, from the outside in.

    `conditional` if these are below an `if` or a `try`, so that the live module need not have them.
    """

    statement: ast.stmt
    classes: tuple[ast.ClassDef, ...] = ()
    conditional: bool = False

    @property
    def path(self) -> str:
        return ".".join(cls.name for cls in self.classes)


Wanted = Callable[[ast.AST], bool]


def cut(body: list[ast.stmt], wanted: Wanted, *classes: ast.ClassDef, conditional: bool = False) -> Iterator[Piece]:
    """The wanted statements of a body, in order, each with nothing around it but its conditions.

    `wanted` is asked about statements, and about the single names of imports.
    """
    for node in body:
        pruned = _prune(node, wanted)
        if pruned is not None:
            yield Piece(pruned, classes, conditional)
        for cls in _classes(node, wanted):
            yield from cut(cls.body, wanted, *classes, cls, conditional=conditional or cls is not node)


def _prune(node: ast.stmt, wanted: Wanted) -> ast.stmt | None:
    """A statement without what is not wanted of it; None if nothing is."""
    if wanted(node):
        return node
    if isinstance(node, ast.Import | ast.ImportFrom):
        names = [alias for alias in node.names if wanted(alias)]
        return like(node, names=names) if names else None
    if isinstance(node, FunctionNode | ast.ClassDef):
        return None
    changes: dict[str, Any] = {name: _prune_all(getattr(node, name), wanted) for name in _blocks(node)}
    handlers = [like(h, body=_prune_all(h.body, wanted)) for h in getattr(node, "handlers", ())]
    if not any(changes.values()) and not any(handler.body for handler in handlers):
        return None
    changes["body"] = changes["body"] or [ast.copy_location(ast.Pass(), node)]
    for handler in handlers:
        handler.body = handler.body or [ast.copy_location(ast.Pass(), handler)]
    pruned: ast.stmt = like(node, **changes, **({"handlers": handlers} if handlers else {}))
    return pruned


def _prune_all(body: list[ast.stmt], wanted: Wanted) -> list[ast.stmt]:
    return [pruned for node in body if (pruned := _prune(node, wanted)) is not None]


def _blocks(node: ast.stmt) -> list[str]:
    return [name for name in ("body", "orelse", "finalbody") if hasattr(node, name)]


def _classes(node: ast.stmt, wanted: Wanted) -> Iterator[ast.ClassDef]:
    """The classes in a statement of which only members may be wanted."""
    if isinstance(node, ast.ClassDef):
        if not wanted(node):
            yield node
    elif not isinstance(node, FunctionNode):
        inside = [child for name in _blocks(node) for child in getattr(node, name)]
        inside += [child for handler in getattr(node, "handlers", ()) for child in handler.body]
        for child in inside:
            yield from _classes(child, wanted)


def like(node: Any, **changes: Any) -> Any:
    """A copy of a node with some fields changed."""
    fields = {name: getattr(node, name, None) for name in node._fields}
    return ast.copy_location(type(node)(**{**fields, **changes}), node)


def owner(piece: Piece, module: ModuleType) -> ModuleType | type | None:
    """The live module or class that a piece belongs to; None if its class may be missing and is.

    Raises LivepatchError (EINVAL) if the class is missing without a reason.
    """
    if not piece.classes:
        return module
    cls = live_class(module, piece.path)
    if cls is None and not piece.conditional:
        sentence = f"'{piece.path}' is not a class in the live module '{module.__name__}'."
        raise refusal(sentence)
    return cls


class _Namespace(dict[str, Any]):
    """Names that a piece binds; beneath them what the live class has, and what has changed in its module."""

    def __init__(self, place: ModuleType | type, values: Values) -> None:
        super().__init__()
        self["__annotations__"] = {}  # else those of the live module or class get the new ones
        self._beneath: list[Mapping[str, Any]] = []
        if isinstance(place, type):
            self._beneath += [values.get(place, {}), vars(place)]
        self._beneath += [values.get(None, {})]

    def __missing__(self, name: str) -> Any:
        for names in self._beneath:
            if name in names:
                return names[name]
        raise KeyError(name)


class _Module(_Namespace):
    """The same for statements of a module, where `locals()` gives all names that there are."""

    def __init__(self, place: ModuleType, values: Values) -> None:
        super().__init__(place, values)
        self._beneath += [vars(place)]


#: What names mean now: those of a class, by the class, and those of the module, under None.
Values = dict[type | None, dict[str, Any]]


def run(source: NewSource, pieces: list[Piece], module: ModuleType, values: Values) -> dict[str, Any]:
    """Run pieces that stand in the same place, one after the other, and return what they bind.

    Names that have changed mean what `values` says.
    """
    return run_code(with_values(compiled(source, pieces), values), pieces, module, values)


def evaluate(source: NewSource, pieces: list[Piece], module: ModuleType, values: Values) -> dict[str, Any]:
    """What pieces bind, where names that have changed mean what `values` says, but not to the functions in them."""
    return run_code(compiled(source, pieces), pieces, module, values)


def run_code(code: CodeType, pieces: list[Piece], module: ModuleType, values: Values) -> dict[str, Any]:
    """The same for code that was made of them by `compiled` and `with_values`."""
    place = owner(pieces[0], module)
    if place is None:
        return {}
    if isinstance(place, type):
        code = _body_of(code, pieces[0].path)
        namespace: _Namespace = _Namespace(place, values)
    else:
        namespace = _Module(place, values)
    exec(code, module.__dict__, namespace)
    for key, content in (("__classcell__", place), ("__classdictcell__", vars(place))):
        cell = namespace.get(key)
        if isinstance(cell, CellType):
            cell.cell_contents = content
    return {k: v for k, v in namespace.items() if k not in _BY_COMPILER}


def compiled(source: NewSource, pieces: list[Piece]) -> CodeType:
    """The code that runs pieces which stand in the same place."""
    statements = [piece.statement for piece in pieces]
    for cls in reversed(pieces[0].classes):
        shell: dict[str, Any] = {name: [] for name in ("bases", "keywords", "decorator_list", "type_params")}
        statements = [like(cls, body=statements, **{k: v for k, v in shell.items() if k in cls._fields})]
    flags = source.code.co_flags & _FUTURES
    code: CodeType = compile(ast.Module(statements, []), source.file, "exec", flags=flags, dont_inherit=True)
    return source.as_compiled(code, pieces[0].path)


def with_values(code: CodeType, values: Values) -> CodeType:
    """The code of a module or class body in which what it makes (functions, classes) means changed names so, too."""
    inner = tuple(substitute(c, values.get(None, {})) if isinstance(c, CodeType) else c for c in code.co_consts)
    return code.replace(co_consts=inner)


def _body_of(code: CodeType, path: str) -> CodeType:
    """The body of a class, from the code around it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and not constant.co_flags & OPTIMIZED:
            return constant if constant.co_qualname == path else _body_of(constant, path)
    raise refusal(f"The class '{path}' has type parameters and cannot be added to.")


def first_line(node: ast.stmt) -> int:
    """The line by which the compiler knows a statement: of a definition, that of its first decorator."""
    decorators: list[ast.expr] = getattr(node, "decorator_list", [])
    return min([node.lineno, *(decorator.lineno for decorator in decorators)])


def defaults_of(function: FunctionNode) -> Iterator[tuple[str, ast.expr]]:
    """(parameter, its default), in order."""
    arguments = function.args
    positional = [*arguments.posonlyargs, *arguments.args]
    with_default = positional[len(positional) - len(arguments.defaults) :]
    yield from zip([a.arg for a in with_default], arguments.defaults, strict=True)
    yield from ((a.arg, d) for a, d in zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True) if d is not None)


def mangled(path: str, name: str) -> str:
    """The name under which a class, by qualified name, knows an attribute: private ones have it in their own."""
    cls = path.rpartition(".")[2].lstrip("_")
    return f"_{cls}{name}" if cls and name.startswith("__") and not name.endswith("__") else name


def find_function(source: NewSource, code: CodeType) -> Piece:
    """The definition of a function outside of others, by its code in the compiled source."""

    def wanted(node: ast.AST) -> bool:
        if not isinstance(node, FunctionNode) or node.name != code.co_name:
            return False
        return first_line(node) == code.co_firstlineno

    piece = next(cut(source.tree.body, wanted))
    for node in ast.walk(piece.statement):  # there may be conditions around it
        if isinstance(node, ast.stmt) and wanted(node):
            return Piece(node, piece.classes)
    raise AssertionError(f"{code.co_qualname} is in the code of {source.file} but not in its syntax")


def imports(piece: Piece) -> Iterator[ast.Import | ast.ImportFrom]:
    """The imports that running a piece does without asking: its own, and those that it tries."""
    node = piece.statement
    for inner in node.body if isinstance(node, ast.Try) else [node]:
        if isinstance(inner, ast.Import | ast.ImportFrom):
            yield inner
