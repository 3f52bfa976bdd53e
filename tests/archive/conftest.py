"""Packages on disk and archives for them; afterwards nothing of either is left in the process."""

import dataclasses
import importlib
import linecache
import sys
import textwrap

import pytest
from tests.core import kit

from livepatch.archive import fit, format
from livepatch.build import from_trees
from livepatch.core import redirect


def write(root, tree):
    for path, content in tree.items():
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(content))


class Package:
    """A source tree `lp_pkg` that is importable, and a way to patch what was imported of it."""

    def __init__(self, root):
        self.root = root
        self.old = root / "old"

    def have(self, tree):
        """These files, of which `lp_pkg/__init__.py` is made if it is not there."""
        write(self.old, {"lp_pkg/__init__.py": "", **tree})

    def load(self, name="lp_pkg.m"):
        return importlib.import_module(name)

    def hooked(self, hooks, old, new):
        """The archive of a step with hooks, and the module, which is imported."""
        self.have(old)
        module = self.load()
        return dataclasses.replace(self.archive(new), hooks=textwrap.dedent(hooks).encode()), module

    def archive(self, tree, name="fix", at_once=(), **options):
        """The archive of the step to these files, all others being as they are."""
        new = self.root / name
        write(new, {path.relative_to(self.old).as_posix(): path.read_text() for path in self.old.rglob("*.py")})
        write(new, tree)
        build = from_trees(self.old, new).narrowed(**options).at_once(at_once)
        return format.read(build.archive(name))

    def bind(self, tree, name="fix", **options):
        return fit.bind(self.archive(tree, name, **options))


@pytest.fixture
def package(tmp_path, monkeypatch):
    made = Package(tmp_path)
    monkeypatch.syspath_prepend(str(made.old))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield made
    left = kit.clean_up()
    for name in [name for name in sys.modules if name.startswith("lp_pkg")]:
        del sys.modules[name]
    assert not left
    assert not redirect.redirections
    assert not [file for file in linecache.cache if file.startswith("<livepatch")]


@pytest.fixture
def worker():
    made = kit.Worker()
    yield made
    made.close()
