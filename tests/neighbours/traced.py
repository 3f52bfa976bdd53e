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


#: A program that goes through all of it by itself; NEW is to be replaced.
PROGRAM = """\
import pathlib
import threading
import livepatch as lp
from livepatch.core.codes import definitions
from livepatch.testing import finish, manual_rounds
import lp_traced as target

source = pathlib.Path("new.py").read_text()
codes = {d.name: d.code for d in definitions(compile(source, NEW, "exec"))}

def by_hand(x=1):
    word = "by hand"
    return word, "by hand", x

def patch(name, **functions):
    return lp.Patch(name, [lp.Object("lp_traced", [lp.Func(*pair) for pair in functions.items()])])

inside, go, results = threading.Event(), threading.Event(), []

def gate():
    inside.set()
    go.wait(60)

with manual_rounds():
    results.append(target.f())
    thread = threading.Thread(target=lambda: results.append(target.stay(target.f, gate)))
    thread.start()
    inside.wait(60)
    lp.enable_patch(patch("p", **{name: lp.Body(code) for name, code in codes.items()}))
    results.append(target.f())
    go.set()
    thread.join()
    finish()
    results.append(target.f())
    lp.enable_patch(patch("q", f=by_hand))
    finish()
    results.append(target.f())
    for name in "pq":
        lp.disable_patch(name)
        finish()
        lp.unload_patch(name)
    results.append(target.f(2))
print(results)
"""
RESULTS = [OLD, NEWS, (OLD, OLD), NEWS, ("by hand", "by hand", 1), ("old", "old", 2)]
