"""The two trees of a build, parsed on demand, and the questions that span modules.

Who reads a name, who imports it, what a class inherits: each is answered from the source of both trees. What
is outside the trees (the standard library, other packages) is not known here; it is checked when a patch is
loaded.
"""

from __future__ import annotations

import ast
import builtins
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from types import CodeType

from livepatch.build import syntax
from livepatch.build.functions import Version
from livepatch.build.reads import Index
from livepatch.build.sources import Tree, module_name
from livepatch.core.codes import Definition, definitions, global_names

#: What parsing and compiling raise for something that no interpreter of this version can be running.
NOT_PYTHON = (SyntaxError, ValueError, RecursionError, MemoryError)


class Source:
    """One version of one module. Making one raises NOT_PYTHON."""

    def __init__(self, path: str, content: bytes) -> None:
        self.path = path
        self.content = content
        self.module = module_name(path)
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
    def definitions(self) -> list[Definition]:
        return definitions(self.code)

    @cached_property
    def _by_line(self) -> dict[tuple[int, str], Definition]:
        return {(d.code.co_firstlineno, d.code.co_name): d for d in self.definitions}

    @cached_property
    def _count(self) -> Counter[str]:
        return Counter(d.name for d in self.definitions)

    def version(self, node: syntax.FunctionNode) -> Version | None:
        """A function as compiled, or None if the compiler left it out as unreachable."""
        definition = self._by_line.get((syntax.first_line(node), node.name))
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
    def global_reads(self) -> set[str]:
        """The names that functions of the module read from its namespace, or from the builtins behind it."""
        return global_names(self.code)[0]

    @cached_property
    def classes(self) -> dict[str, list[ast.ClassDef]]:
        """The classes that the module defines anywhere, by their last name."""
        found: dict[str, list[ast.ClassDef]] = {}
        for node in ast.walk(self.tree):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
        return found

    def resolve(self, node: ast.ImportFrom) -> str:
        """The absolute name of the module that `from ... import` names."""
        return syntax.resolve(node, self.module, self.path)


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
        self._classes_named: dict[str, list[tuple[Source, ast.ClassDef]]] = {}

    def source(self, path: str, *, new: bool) -> Source:
        """One version of a module; raises NOT_PYTHON."""
        if (path, new) not in self._sources:
            self._sources[path, new] = Source(path, (self.new if new else self.old).python[path])
        return self._sources[path, new]

    def _parsed(self, paths: Iterable[str], *, new: bool) -> Iterator[Source]:
        """Those of the modules that are Python: what is not cannot be running."""
        for path in paths:
            try:
                yield self.source(path, new=new)
            except NOT_PYTHON:
                continue

    def _mentioning(self, word: str) -> Iterator[Source]:
        """Both versions of every module in which a word occurs."""
        yield from self._parsed(self.old.mentioning(word), new=False)
        changed = (p for p in self.new.mentioning(word) if self.new.python[p] != self.old.python.get(p))
        yield from self._parsed(changed, new=True)

    def readers(self, module: str, name: str) -> Readers:
        """Who depends on the value of a name of a module, in either version; re-exports are followed."""
        found = Readers()
        pending, seen = [(module, name)], {(module, name)}
        while pending:
            module, name = pending.pop()
            for source in self._mentioning(name):
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

    def inherits(self, source: Source, cls: ast.ClassDef, name: str) -> bool:
        """Whether a class of the old tree is known to inherit a name from a base."""
        family = self.ancestors(source, cls)
        if hasattr(object, name) or any(name in syntax.members(node) for node in family[1:]):
            return True
        bases = {syntax.last_name(base) for node in family for base in node.bases}
        return any(hasattr(getattr(builtins, base, None), name) for base in bases)

    def ancestors(self, source: Source, cls: ast.ClassDef) -> list[ast.ClassDef]:
        """A class of the old tree, and after it those of its bases that are in the tree."""
        found = [cls]
        origins = [source]
        for origin, node in zip(origins, found, strict=False):  # both grow
            for base in node.bases:
                for where, parent in self._classes(origin, syntax.last_name(base)):
                    if parent not in found:
                        found.append(parent)
                        origins.append(where)
        return found

    def uses_attribute(self, name: str) -> bool:
        """Whether any code of the old tree names an attribute so."""
        return any(
            isinstance(node, ast.Attribute) and node.attr == name
            for source in self._parsed(self.old.mentioning(name), new=False)
            for node in ast.walk(source.tree)
        )

    def _classes(self, source: Source, name: str) -> list[tuple[Source, ast.ClassDef]]:
        """The classes of the old tree that a name in a module can mean: its own, else any of that name."""
        if name in source.classes:
            return [(source, node) for node in source.classes[name]]
        if name not in self._classes_named:
            origins = self._parsed(self.old.mentioning("class " + name), new=False)
            self._classes_named[name] = [(o, node) for o in origins for node in o.classes.get(name, ())]
        return self._classes_named[name]
