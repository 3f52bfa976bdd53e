"""The two trees of a build, parsed on demand, and the questions that span modules.

Who reads a name, who imports it, what a class inherits: each is answered from the source of both trees. What
is outside the trees (the standard library, other packages) is not known here; it is checked when a patch is
loaded.
"""

from __future__ import annotations

import ast
import builtins
import re
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from types import CodeType
from typing import TYPE_CHECKING

from livepatch.archive.pieces import first_line
from livepatch.build import syntax
from livepatch.build.bindings import Bindings, bindings
from livepatch.build.functions import Version
from livepatch.build.moves import Moves
from livepatch.build.reads import Index
from livepatch.build.sources import ATTRIBUTE, CLASS, FUNCTION, GAP, STRING, Tree, module_name
from livepatch.build.templates import missing_name
from livepatch.core.codes import Definition, definitions, global_names

if TYPE_CHECKING:
    from livepatch.build.uses import Use

#: What parsing and compiling raise for something that no interpreter of this version can be running.
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


class Source:
    """One version of one module. Making one raises NOT_PYTHON."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.content = content
        self.module = module_name(path)
        self.uses: list[Use] | None = None  # what importing it evaluates; see `uses`
        self._statements: dict[int, list[syntax.Statement]] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # odd escapes and the like are the package's affair
            self.tree = ast.parse(content, path)

    @cached_property
    def code(self) -> CodeType:
        """The compiled module; raises NOT_PYTHON."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            code: CodeType = compile(self.content, self.path, "exec", dont_inherit=True)
            return code

    @cached_property
    def _lines(self) -> list[bytes]:
        return self.content.splitlines()

    def text(self, node: syntax.DefinitionNode) -> list[bytes]:
        """The lines of a definition, decorators and all."""
        return self._lines[first_line(node) - 1 : node.end_lineno]

    @cached_property
    def definitions(self) -> list[Definition]:
        return definitions(self.code)

    @cached_property
    def _by_line(self) -> dict[tuple[int, str], Definition]:
        return {(d.code.co_firstlineno, d.code.co_name): d for d in self.definitions}

    @cached_property
    def _count(self) -> Counter[str]:
        return Counter(d.name for d in self.definitions)

    def statements(self, body: list[ast.stmt]) -> list[syntax.Statement]:
        """The statements of a body of this source, always the same objects."""
        if id(body) not in self._statements:
            self._statements[id(body)] = list(syntax.flatten(body))
        return self._statements[id(body)]

    def version(self, node: syntax.FunctionNode) -> Version | None:
        """A function as compiled, or None if the compiler left it out as unreachable."""
        definition = self._by_line.get((first_line(node), node.name))
        return None if definition is None else Version(node, definition)

    def sympos(self, definition: Definition) -> int:
        """The position of a definition, 0 if its name is unique."""
        return definition.sympos if self._count[definition.name] > 1 else 0

    @cached_property
    def index(self) -> Index | None:
        """None if the source is nested too deeply to be looked at, as generated tables are."""
        try:
            return Index(self.tree, self.module, self.path)
        except RecursionError:
            return None

    @cached_property
    def bound(self) -> set[str]:
        """The names that the module's own statements bind."""
        return {name for statement in syntax.flatten(self.tree.body) for name in statement.binds() or ()}

    @cached_property
    def evaluated(self) -> list[ast.AST]:
        """All syntax but for annotations that are kept as strings."""
        lazy = "annotations" in self.bound and b"from __future__" in self.content
        found: list[ast.AST] = []
        pending: list[ast.AST] = [self.tree]
        while pending:
            node = pending.pop()
            found.append(node)
            hidden = [getattr(node, part, None) for part in ("annotation", "returns")] if lazy else []
            pending += [child for child in ast.iter_child_nodes(node) if child not in hidden]
        return found

    @cached_property
    def assigned(self) -> set[str]:
        """The names of its namespace that functions of the module assign."""
        return {name for node in ast.walk(self.tree) if isinstance(node, ast.Global) for name in node.names}

    @cached_property
    def bindings(self) -> Bindings:
        """What the module's own statements bind its names to; a name that functions assign is anything."""
        found = bindings(self.tree.body)
        for name in self.global_writes:
            found.setdefault(name, []).append(None)
        return found

    @cached_property
    def global_reads(self) -> set[str]:
        """The names that functions of the module read from its namespace, or from the builtins behind it."""
        return self._global_names[0]

    @cached_property
    def global_writes(self) -> set[str]:
        """Those of its namespace to which they give values."""
        return self._global_names[1]

    @cached_property
    def _global_names(self) -> tuple[set[str], set[str]]:
        return global_names(self.code)

    @cached_property
    def classes(self) -> dict[str, list[ast.ClassDef]]:
        """The classes that the module defines anywhere, by their last name."""
        found: dict[str, list[ast.ClassDef]] = {}
        for node in syntax.all_statements(self.tree.body):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
        return found

    def resolve(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module that `from ... import` names."""
        return syntax.resolve(node, self.module, self.path)

    def origin(self, statement: syntax.Statement) -> str:
        """The same of a statement that is such an import."""
        assert isinstance(statement.node, ast.ImportFrom)
        return self.resolve(statement.node)


@dataclass
class Readers:
    """Who depends on the value of a module's name: places that read it, modules that import it by name."""

    places: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)  # the places that call it while a module is imported
    importers: list[tuple[Source, str, int]] = field(default_factory=list)  # module, its name there, line


class World:
    """The two trees of a build."""

    def __init__(self, old: Tree, new: Tree) -> None:
        self.old = old
        self.new = new
        self._sources: dict[tuple[str, bool], Source] = {}
        self._readers: dict[tuple[str, str], Readers] = {}
        self._classes_named: dict[tuple[str, bool], list[tuple[Source, ast.ClassDef]]] = {}

    def source(self, path: str, *, new: bool) -> Source:
        """One version of a module; raises NOT_PYTHON."""
        if (path, new) not in self._sources:
            self._sources[path, new] = Source(path, (self.new if new else self.old).python[path])
        return self._sources[path, new]

    def parsed(self, path: str, *, new: bool) -> Source | None:
        """The same; None if there is none, or it is no Python."""
        tree = self.new if new else self.old
        return next(self._parsed([path] if path in tree.python else [], new=new), None)

    @cached_property
    def moves(self) -> Moves:
        """What has moved from one module to another."""
        found = Moves(self)
        found.find()
        return found

    def star_names(self, module: str, *, new: bool, seen: frozenset[str] = frozenset()) -> frozenset[str] | None:
        """What `from module import *` binds, as far as the tree tells; None if it does not."""
        tree = self.new if new else self.old
        path = tree.path_of(module)
        source = self.parsed(path, new=new) if path is not None and module not in seen else None
        if source is None:
            return None
        exported = syntax.exported(source.tree.body)
        if exported is not None:
            return exported
        names: set[str] = set()
        for statement in source.statements(source.tree.body):
            bound = statement.binds() if not statement.dormant else frozenset()
            if isinstance(statement.node, ast.ImportFrom) and bound is None:
                bound = self.star_names(source.resolve(statement.node), new=new, seen=seen | {module})
                if bound is None:
                    return None
            names |= bound or set()
        return None if "__all__" in names else frozenset(name for name in names if not name.startswith("_"))

    def _parsed(self, paths: Iterable[str], *, new: bool) -> Iterator[Source]:
        """Those of the modules that are Python: what is not cannot be running."""
        for path in paths:
            try:
                yield self.source(path, new=new)
            except NOT_PYTHON:
                continue

    def _mentioning(self, word: str, origin: str = "") -> Iterator[Source]:
        """Both versions of every module in which a word occurs, of those that may reach the module `origin`."""
        for tree, new in ((self.old, False), (self.new, True)):
            for path in tree.mentioning(word):
                content = tree.python[path]
                if not (new and content == self.old.python.get(path)) and may_reach(origin, path, content):
                    yield from self._parsed([path], new=new)

    def readers(self, module: str, name: str) -> Readers:
        """Who depends on the value of a name of a module, in either version; re-exports are followed."""
        if (module, name) not in self._readers:
            self._readers[module, name] = self._find_readers(module, name)
        return self._readers[module, name]

    def _find_readers(self, module: str, name: str) -> Readers:
        found = Readers()
        pending, seen = [(module, name)], {(module, name)}
        while pending:
            module, name = pending.pop()
            for source in self._mentioning(name, module):
                if source.index is None:
                    found.places.append(f"{source.path}, perhaps, which is nested too deeply to tell")
                    continue
                for use in source.index.uses(module, name):
                    found.places += [use.text] if use.text not in found.places else []
                    found.calls += [use.text] if use.called and use.text not in found.calls else []
                for imported in source.index.imports:
                    if imported.inside or imported.origin != module or imported.name not in (name, "*"):
                        continue
                    follower = source.module, name if imported.name == "*" else imported.alias
                    if follower not in seen:
                        seen.add(follower)
                        pending.append(follower)
                        if source.path in self.old.python and source.path in self.new.python:
                            found.importers.append((source, follower[1], imported.line))
        return found

    def star_importers(self, module: str) -> list[str]:
        """The paths of the modules of the new tree that have `from module import *`."""
        candidates = [path for path, content in self.new.python.items() if b"import *" in content]
        return [
            source.path
            for source in self._parsed(candidates, new=True)
            for imported in (source.index.imports if source.index is not None else ())
            if imported.name == "*" and imported.origin == module
        ]

    def is_beside(self, module: str) -> bool:
        """Whether a module is for tests or documentation, a program or a template, and no other module imports it."""
        if not is_aside(module) and not is_program(module) and self.unfilled(module) is None:
            return False
        return not any(
            source.index is None or source.index.imports_module(module)
            for source in self._mentioning(module.rpartition(".")[2])
            if not is_aside(source.module)
        )

    def unfilled(self, module: str) -> str | None:
        """A name that nothing binds, without which the new version of a module cannot be imported, and that another
        module has as a string, as what fills it in does."""
        path = self.new.path_of(module)
        source = None if path is None else self.parsed(path, new=True)
        try:
            name = None if source is None else missing_name(source)
        except NOT_PYTHON:
            return None
        if name is None or all(other == path for other in self.new.mentioning(name, STRING)):
            return None
        # Somebody may put it where all modules find it.
        if any(b"builtins" in other.content for other in self._mentioning(name)):
            return None
        return name

    def inherits(self, source: Source, cls: ast.ClassDef, name: str) -> bool:
        """Whether a class of the old tree is known to inherit a name from a base."""
        family = self.ancestors(source, cls)
        if hasattr(object, name) or any(name in syntax.members(node) for node in family[1:]):
            return True
        bases = {syntax.last_name(base) for node in family for base in node.bases}
        return any(hasattr(getattr(builtins, base, None), name) for base in bases)

    def is_open(self, source: Source, cls: ast.ClassDef) -> bool:
        """Whether a class of the old tree has a base, near or far, of which no tree tells what it has."""
        family = self.ancestors(source, cls)
        known = {node.name for node in family} | BARE
        names = {syntax.last_name(base) for node in family for base in node.bases}
        return any(name not in known and not hasattr(builtins, name) for name in names)

    def ancestors(self, source: Source, cls: ast.ClassDef, *, new: bool = False) -> list[ast.ClassDef]:
        """A class of one tree, and after it those of its bases that are in the tree."""
        return [node for _, node in self.family(source, cls, metaclasses=False, new=new)]

    def family(
        self, source: Source, cls: ast.ClassDef, *, metaclasses: bool = True, new: bool = False
    ) -> list[tuple[Source, ast.ClassDef]]:
        """The same with where they are defined, and with their metaclasses."""
        found = [(source, cls)]
        for origin, node in found:  # it grows
            keywords = [k.value for k in node.keywords if k.arg == "metaclass"] if metaclasses else []
            for base in [*node.bases, *keywords]:
                for where, parent in self.named(origin, syntax.last_name(base), new=new):
                    if all(parent is not known for _, known in found):
                        found.append((where, parent))
        return found

    def uses_attribute(self, name: str, *, both: bool = False) -> bool:
        """Whether any code of the old tree, or of either, names an attribute so."""
        return any(
            isinstance(node, ast.Attribute) and node.attr == name
            for source in (
                self._mentioning(name) if both else self._parsed(self.old.mentioning(name, ATTRIBUTE), new=False)
            )
            for node in ast.walk(source.tree)
        )

    def count_stores(self, name: str) -> int:
        """How many places of the old tree set an attribute of this name, of whatever object."""
        return sum(
            isinstance(node, ast.Attribute) and node.attr == name and isinstance(node.ctx, ast.Store)
            for source in self._parsed(self.old.mentioning(name, ATTRIBUTE), new=False)
            for node in ast.walk(source.tree)
        )

    def defining(self, name: str) -> Iterator[Source]:
        """The modules of the new tree that may define a function of this name."""
        return self._parsed(self.new.mentioning(name, FUNCTION), new=True)

    def subscripts(self, name: str) -> list[str]:
        """The modules of the new tree that evaluate `name[...]`; annotations count unless they are kept as strings."""
        return [
            source.path
            for source in self._parsed(self.new.mentioning(name + "["), new=True)
            if any(
                isinstance(node, ast.Subscript) and syntax.last_name(node.value) == name for node in source.evaluated
            )
        ]

    def sources_mentioning(self, word: str) -> Iterator[Source]:
        """The modules of the new tree in which a word occurs."""
        return self._parsed(self.new.mentioning(word), new=True)

    def asks_for(self, name: str) -> bool:
        """Whether any code of the old tree asks an object whether it has an attribute of this name."""
        return any(
            isinstance(node, ast.Call)
            and syntax.last_name(node.func) in ("getattr", "hasattr")
            and any(isinstance(argument, ast.Constant) and argument.value == name for argument in node.args)
            for source in self._parsed(self.old.mentioning(name, STRING), new=False)
            for node in ast.walk(source.tree)
        )

    def takes_from_dict(self, name: str) -> bool:
        """Whether a function takes an attribute of this name out of the dictionary of a class."""
        for path in self.new.mentioning(name, STRING):
            content = self.new.python[path]
            if b"__dict__" not in content and b"vars" not in content:
                continue
            for node in ast.walk(self.source(path, new=True).tree):
                if isinstance(node, syntax.FunctionNode):
                    inside = list(ast.walk(node))
                    named = any(isinstance(n, ast.Constant) and n.value == name for n in inside)
                    if named and any(
                        (isinstance(n, ast.Attribute) and n.attr == "__dict__")
                        or (isinstance(n, ast.Name) and n.id == "vars")
                        for n in inside
                    ):
                        return True
        return False

    def named(self, source: Source, name: str, *, new: bool) -> list[tuple[Source, ast.ClassDef]]:
        """The classes of a tree that a name in a module can mean: its own, else any of that name."""
        if name in source.classes:
            return [(source, node) for node in source.classes[name]]
        if (name, new) not in self._classes_named:
            tree = self.new if new else self.old
            origins = self._parsed(tree.mentioning(name, CLASS), new=new)
            self._classes_named[name, new] = [(o, node) for o in origins for node in o.classes.get(name, ())]
        return self._classes_named[name, new]


def may_reach(module: str, path: str, content: bytes) -> bool:
    """Whether this source may get at names of a module: only who names it, or the package it is in, can.

    `getattr` may be asked for anything of what somebody else has imported.
    """
    last = module.rpartition(".")[2]
    return not last.isascii() or last.encode() in content or _is_vague(content) or module_name(path) == module


@lru_cache(4096)
def _is_vague(content: bytes) -> bool:
    return b"getattr" in content or _PARENT.search(content) is not None


#: `from . import name`, which names a package without its name.
_PARENT = re.compile(rf"\bfrom{GAP}*\.(?:\.|{GAP})*import\b".encode())

#: Bases that bring no members that anybody means by name.
BARE = {"ABC", "Generic", "Protocol", "NamedTuple", "TypedDict", "Enum", "IntEnum", "StrEnum", "Flag", "IntFlag"}

#: Parts of a package that are not for those who run it, and what the modules of such are called.
_ASIDE = {
    "test",
    "tests",
    "testsuite",
    "testing",
    "doc",
    "docs",
    "example",
    "examples",
    "qa",
    "conftest",
    "pytest_plugin",
}
_ASIDE |= {"bench", "benchmark", "benchmarks", "demo", "demos", "sample", "samples"}
#: Steps from one form of a database to the next, which the program that takes them finds in a folder.
_ASIDE |= {"migrations"}
_TESTS = re.compile(r"test_.*|.*_tests?")


def is_aside(module: str) -> bool:
    """Whether the name of a module says that it is no part of a service: `pkg.tests.x`, `pkg.docs.conf`."""
    return any(part in _ASIDE or _TESTS.fullmatch(part) for part in module.split("."))


def is_program(module: str) -> bool:
    """Whether a module is what `python -m pkg` runs."""
    return module.endswith(".__main__")
