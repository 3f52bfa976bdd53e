"""The same difference in a vendored copy: below another package, with imports rewritten as vendoring does.

pip carries a copy of requests as `pip._vendor.requests`, and in it `from urllib3 import x` reads
`from pip._vendor.urllib3 import x`. The files of a release are moved to where the copy is, and the imports of
what is vendored beside it are rewritten where they stand, so that lines stay as they are. Whoever vendored it
may have changed more; whether the copy is what it is taken for is proved when the patch is loaded, like always.
"""

from __future__ import annotations

import ast
import errno
import sys
from collections.abc import Collection, Iterator

from livepatch.build import syntax
from livepatch.core.model import LivepatchError

#: What parsing raises for a source that no interpreter of this version can be running; `World` says so.
_NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


def check_prefix(prefix: str) -> None:
    """Raise LivepatchError (EINVAL) for what is not the name of a package."""
    if not all(part.isidentifier() for part in prefix.split(".")):
        raise LivepatchError(errno.EINVAL, f"{prefix!r} is not the name of a package, such as pip._vendor.")


def rewritten(source: bytes, prefix: str, names: Collection[str]) -> bytes:
    """A module's source with its absolute imports of `names`, and of what is in them, taken from below `prefix`."""
    try:
        tree = ast.parse(source)
    except _NOT_PYTHON:
        return source
    # Offsets count bytes of UTF-8, and only what is ASCII is surely as long in the encoding of the source.
    lines = source.splitlines(keepends=True)
    found = [node for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)]
    for node in sorted(found, key=lambda node: (node.lineno, node.col_offset), reverse=True):
        if not any(_top(name) in names for name in _origins(node)):
            continue
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        first, last = node.lineno - 1, node.end_lineno - 1
        before = lines[first][: node.col_offset + _bom(source, first)]
        after = lines[last][node.end_col_offset + _bom(source, last) :]
        text = _rewritten(node, prefix, names) + " \\\n" * (last - first)
        lines[first : last + 1] = (before + text.encode() + after).splitlines(keepends=True)
    return b"".join(lines)


def _bom(source: bytes, line: int) -> int:
    return 3 if line == 0 and source.startswith(b"\xef\xbb\xbf") else 0


def _rewritten(node: ast.Import | ast.ImportFrom, prefix: str, names: Collection[str]) -> str:
    if isinstance(node, ast.ImportFrom):
        return ast.unparse(ast.ImportFrom(f"{prefix}.{node.module}", node.names, 0))
    parts = []
    for alias in node.names:
        called = f" as {alias.asname}" if alias.asname else ""
        inside = "." in alias.name
        if _top(alias.name) not in names:
            parts.append(f"import {alias.name}{called}")
            continue
        if inside:
            parts.append(f"import {prefix}.{alias.name}{called}")
        if not (inside and called):
            parts.append(f"from {prefix} import {_top(alias.name)}{called}")
    return "; ".join(parts)


def _origins(node: ast.Import | ast.ImportFrom) -> list[str]:
    if isinstance(node, ast.ImportFrom):
        return [] if node.level or node.module is None else [node.module]
    return [alias.name for alias in node.names]


def _top(name: str) -> str:
    return name.partition(".")[0]


def unknown_imports(old: bytes, new: bytes, names: Collection[str]) -> Iterator[tuple[str, int]]:
    """(package, line) of what the new source imports, and the old does not, of packages that may be vendored too."""
    try:
        before, after = ast.parse(old), ast.parse(new)
    except _NOT_PYTHON:
        return
    known = {imported for imported, _ in _imported(before)}
    for imported, line in _imported(after):
        package = _top(imported)
        if imported not in known and package not in names and package not in sys.stdlib_module_names:
            yield package, line


def _imported(tree: ast.Module) -> Iterator[tuple[str, int]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, alias.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (
                (f"{syntax.resolve(node, 'm', 'm.py')}.{a.name}", a.lineno) for a in node.names if not node.level
            )
