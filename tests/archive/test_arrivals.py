"""Modules that only the new release has: who can import them, and when; and what has moved to another module."""

import gc
import importlib
import inspect
import sys
import threading
import traceback

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, namespace, refusal

import livepatch as lp
from livepatch.archive import fit, format
from livepatch.build import from_step, from_trees, steps
from livepatch.testing import finish, manual_rounds, tick


def modules():
    return {name: module for name, module in sys.modules.items() if name.startswith("lp_pkg")}


def held(function, *arguments):
    """A thread in a function that calls its last argument, and what lets it go on; its result is in the list."""
    inside, go, result = threading.Event(), threading.Event(), []

    def gate():
        inside.set()
        go.wait(60)

    thread = threading.Thread(target=lambda: result.append(function(*arguments, gate)))
    thread.start()
    assert inside.wait(60)

    def leave():
        go.set()
        thread.join(60)
        return result[0]

    return leave


@pytest.mark.parametrize(
    "statement",
    [
        "import lp_pkg.new\ndef f(): return lp_pkg.new.help()",
        "from . import new\ndef f(): return new.help()",
        "from .new import help\ndef f(): return help()",
        "from .new import help as g\ndef f(): return g()",
        "from .new import *\ndef f(): return help()",
        "import lp_pkg.new as n\ndef f(): return n.help()",
        "try:\n    from .new import help\nexcept ImportError:\n    help = None\ndef f(): return help()",
        "def f():\n    from .new import help\n    return help()",
        "def f():\n    import lp_pkg.new\n    return lp_pkg.new.help()",
    ],
)
def test_ways_to_import(package, statement):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    before, there = namespace(m), modules()
    attributes = namespace(sys.modules["lp_pkg"])
    archive = package.archive({M: statement, "lp_pkg/new.py": "def help(): return 'new'\n_hidden = 1"})
    assert (m.f(), modules()) == ("old", there)
    enabled(fit.bind(archive))
    assert m.f() == "new"
    assert sys.modules["lp_pkg"].new is sys.modules["lp_pkg.new"]
    assert not hasattr(m, "_hidden")
    disabled(archive.manifest)
    assert m.f() == "old"
    assert (namespace(m), modules()) == (before, there)
    assert namespace(sys.modules["lp_pkg"]) == attributes
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lp_pkg.new")


PACKAGE = {
    M: "from .sub.deep.leaf import LEAF\ndef f(): return LEAF",
    "lp_pkg/sub/__init__.py": "from .first import *\nfrom . import deep\n",
    "lp_pkg/sub/first.py": "__all__ = ['one']\nfrom ..n import helper\ndef one(): return helper()\ndef two(): pass",
    "lp_pkg/sub/deep/__init__.py": "from .. import first as up\n",
    "lp_pkg/sub/deep/leaf.py": "import collections\nfrom ...sub import one\nfrom . import up\nLEAF = one(), up.one()",
    "lp_pkg/n.py": "def old(): return 1\ndef helper(): return 'helper'",
    "lp_pkg/unused.py": "1 / 0",
}


def test_a_new_package_with_relative_imports_that_needs_what_is_new_elsewhere(package):
    package.have({M: "def f(): return 'old'", "lp_pkg/n.py": "def old(): return 1"})
    m, n = package.load(), package.load("lp_pkg.n")
    before = modules(), namespace(m), namespace(n), namespace(sys.modules["lp_pkg"])
    archive = package.archive(PACKAGE)
    assert [entry.module for entry in archive.manifest.modules] == [
        "lp_pkg.sub",
        "lp_pkg.sub.deep",
        "lp_pkg.sub.deep.leaf",
        "lp_pkg.sub.first",
    ]
    enabled(fit.bind(archive))
    assert m.f() == ("helper", "helper")
    assert sys.modules["lp_pkg.sub"].one is sys.modules["lp_pkg.sub.first"].one
    disabled(archive.manifest)
    assert (modules(), namespace(m), namespace(n), namespace(sys.modules["lp_pkg"])) == before


def test_who_holds_a_new_module_keeps_it(package):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    archive = package.archive(
        {M: "def f():\n    from . import new\n    return new", "lp_pkg/new.py": "def g(): return X\nX = 1"}
    )
    enabled(fit.bind(archive))
    new = m.f()
    assert new is m.f()
    disabled(archive.manifest)
    assert new.g() == 1
    enabled(fit.bind(archive))
    assert m.f() is not new
    disabled(archive.manifest)


def test_new_code_in_a_new_module_is_found_by_tracebacks_and_inspect(package):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    enabled(package.bind({M: "from .new import f", "lp_pkg/new.py": "def f():\n    return 1 / 0  # here\n"}))
    try:
        m.f()
    except ZeroDivisionError:
        text = traceback.format_exc()
    assert 'File "<livepatch fix>/lp_pkg/new.py", line 2, in f' in text
    assert "return 1 / 0  # here" in text
    assert inspect.getsource(sys.modules["lp_pkg.new"].f) == "def f():\n    return 1 / 0  # here\n"
    assert not hasattr(sys.modules["lp_pkg.new"], "__file__")
    disabled(lp.patches()[-1])


SYNTAX = {
    "annotations": "class C:\n    x: int = 1\n    later: Unknown\ny: list[int] = [1]\ndef make() -> C: return C().x",
    "annotations as strings": "from __future__ import annotations\nclass C:\n    x: No = 1\ndef make(): return C.x",
    "type parameters": "class C[T]:\n    x = 1\n    def m[U](self, u: U) -> T: return 1\ndef make(): return C().m(1)",
    "the type statement": "type Pair[T] = tuple[T, T]\ndef make(): return 1 if Pair.__value__ else 2",
    "bytes in another encoding": "# -*- coding: latin-1 -*-\nX = 'a'\ndef make(): return len(X)",
    "match": "def make():\n    match [1]:\n        case [x]: return x",
}


def compiles(source):
    try:
        compile(source, "", "exec")
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, source in SYNTAX.items() if compiles(source)])
def test_syntax(package, name):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    before = modules(), namespace(m)
    body = SYNTAX[name].replace("    later: Unknown\n", "    later: 'Unknown'\n")
    archive = package.archive({M: "from .new import *\ndef f(): return make()", "lp_pkg/new.py": body})
    enabled(fit.bind(archive))
    assert m.f() == 1
    disabled(archive.manifest)
    assert (modules(), namespace(m)) == before


STAY = {M: "def f(gate):\n    gate()\n    return g()\ndef g(): return 'old'"}
STAYED = {
    M: "from . import new\ndef f(gate):\n    gate()\n    return new.help()\ndef g(): return new.help()",
    "lp_pkg/new.py": "def help(): return 'new'",
}


def test_both_worlds(package):
    package.have(STAY)
    m = package.load()
    before = modules(), namespace(m)
    leave = held(m.f)
    with manual_rounds():
        lp.enable_patch(package.bind(STAYED))
        tick()
        assert lp.patches()[-1].transition
        assert m.g() == "new"
        assert leave() == "old"
        finish()
    leave = held(m.f)
    with manual_rounds():
        lp.write_enabled("fix", 0)
        tick()
        assert lp.patches()[-1].transition
        assert "lp_pkg.new" in sys.modules, "somebody is in new code"
        assert m.g() == "old"
        assert leave() == "new"
        finish()
    lp.unload_patch("fix")
    assert (modules(), namespace(m)) == before


def test_the_switch_between_the_worlds_is_where_a_function_comes_from_elsewhere(package):
    """It moved and changed on the way: the name means another function, in every module that has it."""
    old = {
        M: "import re\ndef f(x): return 'old', x\ndef g(gate):\n    gate()\n    return f(1)\ndef h(): return f(1)",
        "lp_pkg/user.py": "from .m import f\ndef h(): return f(2)",
    }
    package.have(old)
    m, user = package.load(), package.load("lp_pkg.user")
    f = m.f
    before = modules(), namespace(m), namespace(user)
    new = {
        M: "import re\nfrom .new import f\ndef g(gate):\n    gate()\n    return f(1), 1\ndef h(): return f(1)",
        "lp_pkg/new.py": "def f(x): return 'new', x",
    }
    archive = package.archive(new)
    leave = held(m.g)
    with manual_rounds():
        lp.enable_patch(fit.bind(archive))
        tick()
        assert (m.h(), user.h(), f(3), m.f(4)) == (("new", 1), ("new", 2), ("new", 3), ("new", 4))
        assert leave() == ("old", 1), "it has read the name after others had moved"
        finish()
    assert m.f is user.f is sys.modules["lp_pkg.new"].f
    leave = held(m.g)
    with manual_rounds():
        lp.write_enabled("fix", 0)
        tick()
        assert (m.h(), user.h(), f(3)) == (("old", 1), ("old", 2), ("old", 3))
        assert leave() == (("new", 1), 1)
        finish()
    lp.unload_patch("fix")
    assert (modules(), namespace(m), namespace(user)) == before
    assert m.f is f


ERRORS = """
import re
LIMIT = [1]
class Error(Exception):
    def __init__(self, what): self.what = what
    def again(self): return Error(clean(self.what)), LIMIT
class Worse(Error): pass
def clean(text): return re.sub(" +", " ", text)
"""
CAUGHT = """
def fail(worse): raise (Worse if worse else Error)("a  b")
def catch(gate):
    try:
        gate()
        fail(True)
    except Worse as error:
        return error, "old"
def kind(error): return isinstance(error, Error), "old"
"""


@pytest.mark.parametrize("statement", ["from .errors import Error, Worse, clean, LIMIT", "from .errors import *"])
@pytest.mark.parametrize("there", [False, True])
def test_what_has_moved_is_the_same_object_for_both_worlds(package, statement, there):
    """`except` clauses of tasks that have not moved and those of tasks that have catch the same."""
    package.have({M: ERRORS + CAUGHT, **({"lp_pkg/errors.py": "def other(): return 1"} if there else {})})
    m = package.load()
    error, worse, clean, limit = m.Error, m.Worse, m.clean, m.LIMIT
    errors = package.load("lp_pkg.errors") if there else None
    before = modules(), namespace(m), namespace(errors) if errors else None
    moved = ERRORS + "def other(): return 1\n"
    new = statement + CAUGHT.replace('"old"', '"new"')
    archive = package.archive({M: new, "lp_pkg/errors.py": moved})
    leave = held(m.catch)
    caught = m.Worse("before")
    with manual_rounds():
        lp.enable_patch(fit.bind(archive))
        tick()
        assert lp.patches()[-1].transition
        errors = sys.modules["lp_pkg.errors"]
        assert (errors.Error, errors.Worse, errors.clean, errors.LIMIT) == (error, worse, clean, limit)
        assert errors.clean is clean
        assert errors.LIMIT is limit
        assert m.kind(caught) == (True, "new")
        with pytest.raises(errors.Error):
            m.fail(False)
        found, world = leave()
        assert (type(found), world, found.again()[0].what) == (worse, "old", "a b")
        finish()
    assert m.catch(lambda: None)[1] == "new"
    assert (m.Error, m.Worse, m.clean) == (error, worse, clean)
    disabled(archive.manifest)
    assert (modules(), namespace(m), namespace(errors) if there else None) == before
    assert m.kind(caught) == (True, "old")


def test_a_module_that_is_renamed_hands_its_classes_over(package):
    package.have({M: "from .impl import C\ndef f(): return C()", "lp_pkg/impl.py": "class C:\n    x = 1"})
    m = package.load()
    cls, there = m.C, modules()
    write(package.root / "fix2", {"lp_pkg/__init__.py": "", M: "from ._impl import C\ndef f(): return C(), 1"})
    write(package.root / "fix2", {"lp_pkg/_impl.py": "class C:\n    x = 1"})
    archive = format.read(from_trees(package.old, package.root / "fix2").archive("fix"))
    enabled(fit.bind(archive))
    assert type(m.f()[0]) is cls is sys.modules["lp_pkg._impl"].C
    disabled(archive.manifest)
    assert modules() == there


def test_a_star_that_was_there_passes_new_names_on(package):
    old = {"lp_pkg/__init__.py": "from .n import *", "lp_pkg/n.py": "def f(): return 'old'", M: "def g(): return 1"}
    package.have(old)
    m = package.load()
    top = sys.modules["lp_pkg"]
    before = namespace(top)
    archive = package.archive(
        {
            "lp_pkg/n.py": "def f(): return 'new'\ndef helper(): return 'helper'\n_no = 1",
            M: "import lp_pkg\ndef g(): return lp_pkg.helper()",
        }
    )
    enabled(fit.bind(archive))
    assert (m.g(), top.f(), hasattr(top, "_no")) == ("helper", "new", False)
    disabled(archive.manifest)
    assert namespace(top) == before


def test_what_is_gone_is_there_for_who_has_not_moved(package):
    old = "LIMIT = 7\ndef f(gate):\n    gate()\n    return gone(), LIMIT\ndef gone(): return 'gone'"
    package.have({M: old})
    m = package.load()
    before = namespace(m)
    leave = held(m.f)
    with manual_rounds():
        lp.enable_patch(package.bind({M: "def f(gate):\n    gate()\n    return 'new'"}))
        tick()
        assert lp.patches()[-1].transition
        assert leave() == ("gone", 7)
        finish()
    assert (m.f(lambda: None), m.gone(), m.LIMIT) == ("new", "gone", 7)
    disabled(lp.patches()[-1])
    assert m.f(lambda: None) == ("gone", 7)
    assert namespace(m) == before


# -- what is refused when it is loaded -----------------------------------------------------------------------


def test_what_is_there_already_is_refused(package):
    package.have({M: "def f(): return 1\ndef g(): return 1"})
    m = package.load()
    before = namespace(m)
    files = {M: "from . import new\ndef f(): return new\ndef g(): return 1", "lp_pkg/new.py": "x = 1"}
    archive = package.archive(files)
    top = sys.modules["lp_pkg"]
    top.new = 1
    assert "'new' exists already in the live module 'lp_pkg'" in refusal(fit.bind, archive)
    del top.new
    sys.modules["lp_pkg.new"] = m
    assert "'lp_pkg.new' exists already in this process" in refusal(fit.bind, archive)
    del sys.modules["lp_pkg.new"]
    enabled(fit.bind(archive))
    files[M] = "from . import new\ndef f(): return 1\ndef g(): return new"
    assert "exists already" in refusal(fit.bind, package.archive(files, "other"))
    disabled(archive.manifest)
    assert namespace(m) == before


@pytest.mark.parametrize(
    "body", ["x = 1 / 0", "import lp_nowhere", "from .m import nothing", "from lp_pkg import n\nraise ValueError"]
)
def test_a_body_that_fails_leaves_nothing(package, body):
    package.have({M: "def f(): return 1", "lp_pkg/n.py": "x = 1"})
    m = package.load()
    package.load("lp_pkg.n")
    before = modules(), namespace(m), list(sys.meta_path), namespace(sys.modules["lp_pkg"])
    files = {M: "from .first import x\nfrom .new import y\ndef f(): return 2", "lp_pkg/first.py": "x = 1"}
    archive = package.archive({**files, "lp_pkg/new.py": body + "\ny = 1"})
    refusal(lambda: lp.enable_patch(fit.bind(archive)))
    assert (modules(), namespace(m), list(sys.meta_path), namespace(sys.modules["lp_pkg"])) == before
    assert m.f() == 1


def test_imports_of_new_modules_are_done_before_anything_is_locked(package):
    package.have({M: "def f(): return 1", "lp_pkg/n.py": "x = 1"})
    package.load()
    files = {M: "from .new import x\ndef f(): return x", "lp_pkg/new.py": "from .more import x"}
    patch = package.bind(
        {**files, "lp_pkg/more.py": "try:\n    import lp_nowhere\nexcept ImportError: pass\nfrom .n import x"}
    )
    assert "lp_pkg.n" in sys.modules
    assert "lp_pkg.new" not in sys.modules
    enabled(patch)
    assert "lp_pkg.more" in sys.modules
    disabled(patch)


def test_a_dry_run_imports_nothing(package):
    package.have({M: "def f(): return 1"})
    package.load()
    before = modules(), list(sys.meta_path)
    fit.bind(package.archive({M: "from .new import x\ndef f(): return x", "lp_pkg/new.py": "x = 1"}), dry=True)
    assert (modules(), list(sys.meta_path)) == before


def test_the_version_of_the_release_follows_into_a_new_module(package):
    """It changes when the transition is over, for all at once; the module is run before."""
    package.have({M: "def f(gate): return gate(), 'old'", "lp_pkg/v.py": "__version__ = '1'"})
    m, v = package.load(), package.load("lp_pkg.v")
    new = "from .v import __version__ as V\ndef agent():\n    from .v import __version__\n    return V, __version__"
    leave = held(m.f)
    files = {M: "from . import new\ndef f(gate): return gate(), new.agent()", "lp_pkg/new.py": new}
    archive = package.archive({**files, "lp_pkg/v.py": "__version__ = '2'"})
    with manual_rounds():
        lp.enable_patch(fit.bind(archive))
        tick()
        assert m.f(int)[1] == (v.__version__, v.__version__) == ("1", "1")
        assert leave()[1] == "old"
        finish()
    assert m.f(int)[1] == (v.__version__, v.__version__) == ("2", "2")
    disabled(archive.manifest)
    assert (m.f(int)[1], v.__version__) == ("old", "1")


# -- several patches -----------------------------------------------------------------------------------------

FIRST = {M: "from .new import x\ndef f(): return x()", "lp_pkg/new.py": "def x(): return 'first'\nLIST = []"}


def test_a_cumulative_patch_goes_on_with_the_same_module(package):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    before = modules(), namespace(m), namespace(sys.modules["lp_pkg"])
    enabled(package.bind(FIRST, "first"))
    new = sys.modules["lp_pkg.new"]
    for name in ("second", "third"):
        write(package.root / name, {"lp_pkg/__init__.py": "", **FIRST, M: FIRST[M] + f", '{name}'"})
        enabled(fit.bind(format.read(from_trees(package.old, package.root / name).archive(name, replaces=True))))
        assert m.f() == ("first", name)
        assert sys.modules["lp_pkg.new"] is new is sys.modules["lp_pkg"].new
    write(package.root / "last", {"lp_pkg/__init__.py": "", M: "def f(): return 'last'"})
    enabled(fit.bind(format.read(from_trees(package.old, package.root / "last").archive("last", replaces=True))))
    assert (m.f(), modules()) == ("last", before[0])
    for name in ("first", "second", "third"):
        lp.unload_patch(name)
    disabled(lp.patches()[-1])
    assert (modules(), namespace(m), namespace(sys.modules["lp_pkg"])) == before


def test_a_cumulative_patch_with_another_such_module_is_refused(package):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    enabled(package.bind(FIRST, "first"))
    write(package.root / "second", {"lp_pkg/__init__.py": "", **FIRST, "lp_pkg/new.py": "def x(): return 2"})
    archive = format.read(from_trees(package.old, package.root / "second").archive("second", replaces=True))
    assert "exists already" in refusal(fit.bind, archive)
    assert m.f() == "first"
    disabled(lp.patches()[-1])


def test_a_patch_that_is_based_on_one_brings_what_that_has_brought(package):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    before = modules(), namespace(m)
    first = package.archive(FIRST, "first")
    enabled(fit.bind(first))
    after = {"lp_pkg/__init__.py": "", **FIRST, M: FIRST[M] + ", 2"}
    write(package.root / "after", after)
    step = steps.trees(package.root / "first", package.root / "after")
    second = format.read(from_step(step, [first]).archive("second"))
    assert [entry.module for entry in second.manifest.modules] == ["lp_pkg.new"]
    enabled(fit.bind(second))
    assert m.f() == ("first", 2)
    lp.unload_patch("first")
    disabled(second.manifest)
    assert (modules(), namespace(m)) == before
    write(package.root / "less", {"lp_pkg/__init__.py": "", M: "def f(): return 3"})
    build = from_step(steps.trees(package.root / "first", package.root / "less"), [first])
    assert "would take it back" in " ".join(map(str, build.report.refused))


def test_a_patch_for_a_module_that_a_patch_has_brought(package):
    package.have({M: "def f(): return 'old'"})
    m = package.load()
    before = modules(), namespace(m)
    enabled(package.bind(FIRST, "first"))
    write(
        package.root / "second",
        {"lp_pkg/__init__.py": "", **FIRST, "lp_pkg/new.py": "def x(): return 'second'\nLIST = []"},
    )
    enabled(fit.bind(format.read(from_trees(package.root / "first", package.root / "second").archive("second"))))
    assert m.f() == "second"
    disabled(lp.patches()[-1])
    assert m.f() == "first"
    disabled(lp.patches()[-1])
    assert (modules(), namespace(m)) == before


def test_nothing_of_a_new_module_stays_in_memory(package):
    package.have({M: "def f(): return 'old'"})
    package.load()
    archive = package.archive(
        {M: "from .new import C\ndef f(): return C", "lp_pkg/new.py": "class C: marker = 'lp-marker'"}
    )
    enabled(fit.bind(archive))
    disabled(archive.manifest)
    gc.collect()
    assert not [
        thing for thing in gc.get_objects() if isinstance(thing, type) and vars(thing).get("marker") == "lp-marker"
    ]
