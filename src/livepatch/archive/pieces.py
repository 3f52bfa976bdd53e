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
import errno
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import CellType, CodeType, ModuleType
from typing import Any

from livepatch.core.codes import OPTIMIZED
from livepatch.core.model import LivepatchError

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


@dataclass(frozen=True)
class Piece:
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


def live_class(module: ModuleType, path: str) -> type | None:
    """A class of the live module, by qualified name."""
    found: ModuleType | type = module
    for name in path.split("."):
        inner = vars(found).get(name)
        if not isinstance(inner, type):
            return None
        found = inner
    return found if isinstance(found, type) else None


def owner(piece: Piece, module: ModuleType) -> ModuleType | type | None:
    """The live module or class that a piece belongs to; None if its class may be missing and is.

    Raises LivepatchError (EINVAL) if the class is missing without a reason.
    """
    if not piece.classes:
        return module
    cls = live_class(module, piece.path)
    if cls is None and not piece.conditional:
        sentence = f"'{piece.path}' is not a class in the live module '{module.__name__}'."
        raise LivepatchError(errno.EINVAL, sentence)
    return cls


class _ClassNamespace(dict[str, Any]):
    """A namespace for a class body that shows the members of the live class beneath its own."""

    def __init__(self, cls: type) -> None:
        super().__init__()
        self._live = vars(cls)

    def __missing__(self, name: str) -> Any:
        return self._live[name]


def run(source: NewSource, piece: Piece, module: ModuleType, known: dict[str, Any] | None = None) -> dict[str, Any]:
    """Run a piece and return what it binds. `known` are names that it sees besides those of its owner."""
    place = owner(piece, module)
    if place is None:
        return {}
    statement = piece.statement
    for cls in reversed(piece.classes):
        shell: dict[str, Any] = {name: [] for name in ("bases", "keywords", "decorator_list", "type_params")}
        statement = like(cls, body=[statement], **{k: v for k, v in shell.items() if k in cls._fields})
    flags = source.code.co_flags & _FUTURES
    code: CodeType = compile(ast.Module([statement], []), source.file, "exec", flags=flags, dont_inherit=True)
    namespace: dict[str, Any] = {}
    if isinstance(place, type):
        code = _body_of(code, piece.path)
        namespace = _ClassNamespace(place)
    namespace |= known or {}
    exec(code, module.__dict__, namespace)
    for key, content in (("__classcell__", place), ("__classdictcell__", vars(place))):
        cell = namespace.get(key)
        if isinstance(cell, CellType):
            cell.cell_contents = content
    return {k: v for k, v in namespace.items() if k not in _BY_COMPILER and k not in (known or ())}


def _body_of(code: CodeType, path: str) -> CodeType:
    """The body of a class, from the code around it."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType) and not constant.co_flags & OPTIMIZED:
            return constant if constant.co_qualname == path else _body_of(constant, path)
    raise LivepatchError(errno.EINVAL, f"The class '{path}' has type parameters and cannot be added to.")


def find_function(source: NewSource, code: CodeType) -> Piece:
    """The definition of a function outside of others, by its code in the compiled source."""

    def wanted(node: ast.AST) -> bool:
        if not isinstance(node, FunctionNode) or node.name != code.co_name:
            return False
        return min([node.lineno, *(d.lineno for d in node.decorator_list)]) == code.co_firstlineno

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
