"""A module to be watched, from its file, and the file of its new version."""

import linecache

import pytest

import livepatch as lp
from livepatch.core.codes import definitions
from livepatch.testing import finish

SOURCE = """\
def g():
    return "old"


def f(x=1):
    first = g()
    return first, "old", x


def stay(call, gate):
    before = call()
    gate()
    return before, call()
"""
NEW = "# Comes first.\n\n" + SOURCE.replace("old", "new")
OLD, NEWS = ("old", "old", 1), ("new", "new", 1)


@pytest.fixture
def files(tmp_path, monkeypatch, module):
    """The module from its file, and the file of its new version."""
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lp_traced.py").write_text(SOURCE)
    (tmp_path / "new.py").write_text(NEW)
    yield __import__("lp_traced"), str(tmp_path / "new.py")
    linecache.clearcache()


def patch(files):
    target, new = files
    codes = {d.name: d.code for d in definitions(compile(NEW, new, "exec"))}
    funcs = [lp.Func(name, lp.Body(codes[name])) for name in ("f", "g", "stay")]
    return lp.Patch("p", [lp.Object(target.__name__, funcs)])


def through_all_of_it(files, held, look):
    """Call `look` with what a call must give: before, in the middle of both transitions, after each."""
    target, _ = files
    look(OLD)
    for change, before, after in ((lambda: lp.enable_patch(patch(files)), OLD, NEWS), (disable, NEWS, OLD)):
        held.begin(target.stay, target.f)
        change()
        look(after)
        assert held.release() == (before, before)
        finish()
        look(after)
    lp.unload_patch("p")


def disable():
    lp.disable_patch("p")
