"""A source tree: its files, which of them are importable, and under which module names.

Two kinds of tree are told apart. An installed one (`site-packages`, an unpacked wheel) is importable from its
root. A project (a checkout, an unpacked sdist) has a build file at its root; what is importable is below `src/` or
`lib/` if there is such a folder, else in packages and modules at the root, and beside them lie tests, documentation
and tools, which no service runs. A folder without `__init__.py` is a namespace package (PEP 420) if packages are in
it, or if the project has no others.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from livepatch.core.model import LivepatchError

#: Path relative to the root of a tree, with slashes -> content.
Files = Mapping[str, bytes]

_PROJECT_FILES = ("pyproject.toml", "setup.py", "setup.cfg")
_PROJECT_ONLY = {"test", "tests", "testing", "doc", "docs", "example", "examples", "bench", "benchmarks"}
_PROJECT_ONLY |= {"tools", "scripts", "ci", "build", "dist"}
_PROJECT_SCRIPTS = {"setup.py", "conftest.py", "noxfile.py", "tasks.py"}
_SKIPPED = re.compile(r"__pycache__|\..*|.*\.(dist|egg)-info|node_modules")
_COMPONENT = re.compile(r"\w+")
_EXTENSION = re.compile(r"\.(so|pyd|pyx|pxd|pxi|c|cc|cpp|h|hpp|rs)$")
_TYPES_ONLY = re.compile(r"\.pyi$|(^|/)py\.typed$")

#: Where a word may stand, for `Tree.mentioning`: patterns of the source, with {} for the word.
#: A comment goes to the end of its line, so that one can be read in one way only: a line of `#` takes no time.
GAP = r"(?:[\s\\]|#.*\n)"
WORD = r"\b{}\b"
ATTRIBUTE = rf"\.{GAP}*{{}}\b"
STRING = r"['\"]{}['\"]"
FUNCTION = rf"\bdef{GAP}+{{}}\b"
CLASS = rf"\bclass{GAP}+{{}}\b"


def read_tree(directory: str | os.PathLike[str]) -> dict[str, bytes]:
    """All files of a tree, each as `stand_in` has it.

    Raises LivepatchError (ENOENT, ENOTDIR) if the directory cannot be read.
    """
    root = Path(directory)
    if not root.is_dir():
        number = errno.ENOTDIR if root.exists() else errno.ENOENT
        raise LivepatchError(number, f"{directory} is not a directory.")
    found: dict[str, bytes] = {}
    for folder, subfolders, names in os.walk(root):
        subfolders[:] = [name for name in subfolders if not _SKIPPED.fullmatch(name)]
        for name in names:
            path = Path(folder, name)
            if path.is_file() and not name.endswith(".pyc"):
                found[path.relative_to(root).as_posix()] = stand_in(name, path.read_bytes())
    return found


def stand_in(path: str, content: bytes) -> bytes:
    """What is kept of a file: Python source, and of all others, which are only ever compared, the SHA-256."""
    return content if path.endswith(".py") else hashlib.sha256(content).digest()


@dataclass(frozen=True)
class Tree:
    """One version of the sources, sorted by what the files are. Paths are relative to the import root."""

    python: dict[str, bytes]
    compiled: dict[str, bytes]  # extension modules and what they are compiled from
    data: dict[str, bytes]  # inside packages
    outside: dict[str, bytes]  # tests, documentation, build files of a project

    @classmethod
    def sort(cls, files: Files | Tree) -> Tree:
        """Raises LivepatchError (EINVAL) if the root itself is a package: its name is not known then."""
        if isinstance(files, Tree):
            return files
        if "__init__.py" in files:
            raise LivepatchError(
                errno.EINVAL, "The source tree is itself a package; give the directory that contains it."
            )
        tree = cls({}, {}, {}, {})
        project = _Project(files) if any(name in files for name in _PROJECT_FILES) else None
        for path, content in sorted(files.items()):
            inside = _import_path(path, project)
            if inside is None:
                tree.outside[path] = content
            elif _EXTENSION.search(inside):
                tree.compiled[inside] = content
            elif inside.endswith(".py"):
                tree.python[inside] = content
            elif not _TYPES_ONLY.search(inside):
                tree.data[inside] = content
        for path in [path for path in tree.python if path.removesuffix(".py") + "/__init__.py" in tree.python]:
            tree.outside[path] = tree.python.pop(path)  # a leftover: Python takes the package of this name
        return tree

    def module_names(self) -> set[str]:
        return {module_name(path) for path in self.python}

    def path_of(self, module: str) -> str | None:
        """The path of a module of this tree, or None."""
        base = module.replace(".", "/")
        return next((path for path in (base + ".py", base + "/__init__.py") if path in self.python), None)

    def mentioning(self, word: str, how: str = WORD) -> Iterator[str]:
        """The paths of the modules in which a word occurs, in such a place; if it is not ASCII, encodings differ.

        Parsing is what a build spends its time with, and most modules do not have the word that is asked for.
        """
        if not word.isascii():
            return iter(self.python)
        sought = word.encode()
        place = re.compile(how.format(re.escape(word)).encode())
        return (path for path, content in self.python.items() if sought in content and place.search(content))


class _Project:
    """Where the importable files of a project are: in one folder, or in some folders of the root."""

    def __init__(self, files: Files) -> None:
        self.root = ""
        self.folders: set[str] = set()
        python = [path for path in files if path.endswith(".py")]
        for root in ("src", "lib"):
            if f"{root}/__init__.py" not in files and any(path.startswith(root + "/") for path in python):
                self.root = root
                return
        folders = {path.partition("/")[0] for path in python if "/" in path} - _PROJECT_ONLY
        packages = {path.partition("/")[0] for path in python if path.endswith("/__init__.py")}
        self.folders = folders & packages or folders

    def import_path(self, parts: tuple[str, ...]) -> tuple[str, ...]:
        """The parts of a path below the import root; none if it is not below it."""
        if self.root:
            return parts[1:] if parts[0] == self.root else ()
        if len(parts) == 1:
            return () if parts[0] in _PROJECT_SCRIPTS else parts
        return parts if parts[0] in self.folders else ()


def _import_path(path: str, project: _Project | None) -> str | None:
    """The path relative to the import root, or None if the file is not importable."""
    parts = PurePosixPath(path).parts
    if any(_SKIPPED.fullmatch(part) for part in parts):
        return None
    if project is not None:
        parts = project.import_path(parts)
    if not parts or not all(_COMPONENT.fullmatch(part) for part in parts[:-1]):
        return None
    if len(parts) == 1 and not parts[0].endswith((".py", ".so", ".pyd")):
        return None
    return "/".join(parts)


def module_name(path: str) -> str:
    """The dotted name of the module at a path below the import root, also of an extension module."""
    pure = PurePosixPath(path)
    parts = [*pure.parts[:-1], pure.name.split(".")[0]]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
