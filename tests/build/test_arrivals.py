"""Modules that only the new tree has, `import *`, and what has moved: brought, adopted, refused."""

import pytest
from tests.build.kit import refusals, report

OLD = {
    "pkg/__init__.py": "",
    "pkg/m.py": "def f(): return 1",
    "pkg/n.py": "X = 1\n__version__ = '1'\ndef g(): return X",
}
OLD["pkg/o.py"] = "from .n import g as of_n\ndef h(): return of_n()"


def step(new, old=None):
    """The refusals of a step in which `pkg.m` imports `pkg.new` and these files are new, or others."""
    before = OLD | (old or {})
    return refusals(before, before | {"pkg/m.py": "def f():\n    from . import new\n    return new"} | new)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "import re\nX = re.compile('x')",
        "from .n import g\ndef h(): return g()",
        "import logging\nlogger = logging.getLogger(__name__)\nlogging.getLogger(__name__).addHandler(1)",
        "import sys\nif sys.platform == 'x':\n    import a\nelse:\n    a = None",
        "X = []\nX.append(1)\nX[0] = 2\nfor x in X:\n    X.remove(x)\nX += [1]\ndel x",
        "class C: pass\nC.x = 1",
        "class C:\n    def __init__(self):\n        self.register()\n        for x in y: print(x)",
        "import typing\nif typing.TYPE_CHECKING:\n    from .n import X",
        "__all__ = ['x']\n__all__ += ['y']\nx = y = 1",
        "assert True\nraise ImportError",
    ],
)
def test_new_modules_that_are_brought(body):
    before = OLD
    found = report(before, before | {"pkg/m.py": "def f():\n    from . import new", "pkg/new.py": body})
    assert not found.refused
    assert [c.module for c in found.added] == ["pkg.new"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"pkg/new.py": "def"}, "this Python cannot compile it"),
        ({"pkg/new.py": "print(1)"}, "`print(1)` has an effect on what is not its own"),
        ({"pkg/new.py": "from . import n\nn.X = 2"}, "`n.X = 2` has an effect"),
        ({"pkg/new.py": "from .n import g\ng.x = 2"}, "`g.x = 2` has an effect"),
        ({"pkg/new.py": "from . import n\nif n.X:\n    n.register(1)"}, "`n.register(1)` has an effect"),
        ({"pkg/new.py": "HERE = __file__"}, "it reads `__file__`"),
        ({"pkg/new.py": "def f():\n    from importlib import resources"}, "importlib.resources"),
        ({"pkg/new/deep.py": "", "pkg/m.py": "import pkg.new.deep"}, "a new folder without `__init__.py`"),
        ({"pkg/new.py": "from .n import X", "pkg/n.py": "X = 2\ndef g(): return X"}, "it imports X of pkg.n"),
        ({"pkg/new.py": "from .n import *", "pkg/n.py": "X = 2\ndef g(): return X"}, "it imports X of pkg.n"),
        (
            {"pkg/new.py": "from . import n\ndef h(): return n.X", "pkg/n.py": "X = 2\ndef g(): return X"},
            "it reads X of",
        ),
        (
            {"pkg/new.py": "from .n import X", "pkg/n.py": "X = '2'\n__version__ = X\ndef g(): return X"},
            "it imports X of",
        ),
    ],
)
def test_new_modules_that_are_refused(files, reason):
    assert reason in " ".join(step(files))


@pytest.mark.parametrize(
    ("old", "reason"),
    [
        ({"pkg/__init__.py": "new = 1"}, "pkg uses the name new for something else"),
        ({"pkg/__init__.py": "def f(): return new"}, "pkg uses the name new for something else"),
        ({"pkg/n.py": "def f():\n    try: from . import new\n    except ImportError: return 1"}, "pkg/n.py imports it"),
        ({"pkg/n.py": "try: from .new import x\nexcept ImportError: x = 1"}, "pkg/n.py imports it"),
    ],
)
def test_new_modules_that_old_code_would_notice(old, reason):
    assert reason in " ".join(step({"pkg/new.py": "x = 1"}, old))


def test_a_module_that_becomes_a_package_is_refused():
    """What is new in it would be lost otherwise, without a word."""
    new = {"pkg/__init__.py": "", "pkg/m.py": OLD["pkg/m.py"], "pkg/n/__init__.py": "X = 1\ndef g(): return 'fixed'"}
    assert "it was a module and is now a package" in " ".join(refusals(OLD, new))


def test_who_leaves_out_a_new_module_leaves_out_who_needs_it():
    new = OLD | {"pkg/m.py": "from .new import x\ndef f(): return x", "pkg/new.py": "x = 1"}
    found = report(OLD, new).narrowed(exclude=["pkg.new"])
    assert found.refused
    found = report(OLD, new).narrowed(only=["pkg.m"])
    assert {change.module for change in found.added} == {"pkg.m", "pkg.new"}


def test_only_what_is_imported_is_brought():
    new = OLD | {"pkg/m.py": "from .new import x\ndef f(): return x", "pkg/new.py": "import pkg.more\nx = 1"}
    found = report(OLD, new | {"pkg/more.py": "", "pkg/cli.py": "1 / 0"})
    assert [c.module for c in found.added if c.kind == "module"] == ["pkg.more", "pkg.new"]
    assert [c.module for c in found.notes if c.kind == "module"] == ["pkg.cli"]


# -- import * ------------------------------------------------------------------------------------------------

STAR = {"pkg/__init__.py": "", "pkg/m.py": "def f(): return 1\nlast = 1", "pkg/n.py": "def g(): return 1\n_h = 1"}


@pytest.mark.parametrize(
    ("n", "names"),
    [
        ("def g(): return 1\n_h = 1", ["g"]),
        ("__all__ = ['_h']\ndef g(): return 1\n_h = 1", ["_h"]),
        ("__all__ = ['g']\n__all__ += ('_h',)\ndef g(): return 1\n_h = 1", ["_h", "g"]),
        ("import typing\nif typing.TYPE_CHECKING:\n    import no\ndef g(): return 1\n_h = 1", ["g", "typing"]),
        ("def g(): return 1\n_h = 1\nlast = 2", ["g"]),
        ("from .o import *\ndef g(): return 1\n_h = 1", ["g", "o"]),
    ],
)
def test_a_new_star_stands_for_names(n, names):
    old = STAR | {"pkg/n.py": n, "pkg/o.py": "o = 1"}
    found = report(old, old | {"pkg/m.py": "from .n import *\ndef f(): return g\nlast = 1"})
    assert not found.refused
    assert sorted(change.name for change in found.added) == names


@pytest.mark.parametrize(
    ("m", "n", "reason"),
    [
        ("from .n import *", "__all__ = names()", "may bind any name"),
        ("from .n import *", "from elsewhere import *", "may bind any name"),
        ("from elsewhere import *", "", "may bind any name"),
        ("from .n import *\ndef f(): return len(g)", "def len(): pass\ndef g(): pass", "uses this name already"),
        ("last = 1\nfrom .n import *", "last = 2", "bound in one more place"),
    ],
)
def test_stars_that_are_refused(m, n, reason):
    old = STAR | {"pkg/n.py": n, "pkg/m.py": "def f(): return len(g)\nlast = 1"}
    assert reason in " ".join(refusals(old, old | {"pkg/m.py": m}))


# -- what has moved ------------------------------------------------------------------------------------------

MOVING = "import re\nclass C:\n    def m(self): return help(re)\ndef help(x): return x, TABLE\nTABLE = {}\n"


def adopted(old, new):
    found = report(old, new)
    assert not found.refused
    return sorted(
        origin
        for change in found.added
        for origin in (getattr(change.entry, "adopts", None) or [getattr(change.entry, "origin", "")])
        if origin
    )


@pytest.mark.parametrize("target", ["pkg/new.py", "pkg/n.py"])
@pytest.mark.parametrize("back", ["from .{} import C, help, TABLE", "from .{} import *", "from .{} import C"])
def test_what_has_moved_is_adopted(target, back):
    old = {"pkg/__init__.py": "", "pkg/m.py": MOVING + "def f(): return C", "pkg/n.py": "x = 1\n"}
    back = back.format(target[4:-3])
    new = old | {"pkg/m.py": back + "\ndef f(): return C, 1", target: old.get(target, "") + MOVING}
    assert adopted(old, new) == ["pkg.m:C", "pkg.m:TABLE", "pkg.m:help"]


def test_what_has_moved_and_is_not_imported_back_is_adopted_too():
    old = {"pkg/__init__.py": "", "pkg/m.py": MOVING + "def f(): return C", "pkg/n.py": "x = 1\n"}
    new = old | {"pkg/m.py": "from . import n\ndef f(): return n.C", "pkg/n.py": "x = 1\n" + MOVING}
    assert adopted(old, new) == ["pkg.m:C", "pkg.m:TABLE", "pkg.m:help"]


def test_another_value_of_the_same_name_is_not_adopted():
    """Two caches that have the same name are two caches."""
    old = {"pkg/__init__.py": "", "pkg/m.py": "CACHE = {}\ndef f(): return CACHE", "pkg/n.py": "def g(): return 1"}
    new = old | {"pkg/m.py": "def f(): return 1", "pkg/n.py": "CACHE = {}\ndef g(): return CACHE"}
    assert adopted(old, new) == []


@pytest.mark.parametrize("values", ["A, B = 1, 2", "A = B = 1"])
def test_values_that_are_set_together_are_set_anew_where_they_have_moved_to(values):
    old = {"pkg/__init__.py": "", "pkg/m.py": f"{values}\ndef f(): return A", "pkg/n.py": ""}
    new = old | {"pkg/m.py": "from .n import A, B\ndef f(): return A", "pkg/n.py": values}
    assert adopted(old, new) == []
    assert adopted(new, old) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return help(re)", "return help(re), 1"),
        ("import re\n", "import regex as re\n"),
        ("return x, TABLE", "return x, TABLE, 1"),
        ("TABLE = {}", "TABLE = {1: 2}"),
        ("class C:", "class C(Exception):"),
    ],
)
def test_a_class_that_changed_on_its_way_is_refused(old, new):
    before = {"pkg/__init__.py": "", "pkg/m.py": MOVING + "def f(): return C"}
    for target in ("pkg/new.py", "pkg/n.py"):
        tree = before | ({"pkg/n.py": ""} if target == "pkg/n.py" else {})
        after = tree | {"pkg/m.py": f"from .{target[4:-3]} import *\ndef f(): return C, 1"}
        found = " ".join(refusals(tree, after | {target: MOVING.replace(old, new)}))
        assert "changed on its way from pkg.m" in found


def test_a_value_that_functions_assign_is_not_shared():
    """Each of the two modules would see its own."""
    source = "STATE = 1\nclass C:\n    def m(self): return STATE\ndef put():\n    global STATE\n    STATE = 2\n"
    old = {"pkg/__init__.py": "", "pkg/m.py": source, "pkg/n.py": ""}
    new = old | {"pkg/m.py": "from .n import C, put", "pkg/n.py": source}
    assert "changed on its way" in " ".join(refusals(old, new))


def test_a_function_that_changed_on_its_way_is_exchanged_where_it_is_imported_back():
    old = {"pkg/__init__.py": "", "pkg/m.py": "def f(x): return 1\ndef g(): return f(1)", "pkg/n.py": ""}
    new = old | {"pkg/m.py": "from .n import f\ndef g(): return f(1)", "pkg/n.py": "def f(x): return 2"}
    found = report(old, new)
    assert not found.refused
    assert ("pkg.m", "f") in [(c.module, c.name) for c in found.functions if "exchanged as a whole" in c.reason]


@pytest.mark.parametrize(
    ("m", "n", "reason"),
    [
        ("from .n import f\ndef g(): return f(1)\nY = f(2)", "def f(x): return 2", "no longer bound"),
        ("from .n import f\ndef g(): return f(1)", "async def f(x): return 2", "no longer bound"),
        ("from .n import f\ndef g(): return f(1)", "f = 2", "no longer bound"),
        ("from .n import f\ndef g(): return f(1)", "@cache\ndef f(x): return 2", "no longer bound"),
    ],
)
def test_a_function_that_cannot_be_exchanged_for_another(m, n, reason):
    old = {"pkg/__init__.py": "", "pkg/m.py": "def f(x): return 1\ndef g(): return f(1)", "pkg/n.py": ""}
    old["pkg/m.py"] += "\nY = f(2)" if "Y" in m else ""
    assert reason in " ".join(refusals(old, old | {"pkg/m.py": m, "pkg/n.py": n}))


def test_a_function_with_another_name_is_a_new_one():
    old = {"pkg/__init__.py": "", "pkg/m.py": "def f(x): return 1\ndef g(): return f(1)"}
    found = report(old, old | {"pkg/m.py": "def new_name(x): return 1\ndef g(): return new_name(1)"})
    assert [change.name for change in found.added] == ["new_name"]
    assert [change.name for change in found.functions] == ["g"]
    assert not found.refused


# -- what runs before new code is in force -------------------------------------------------------------------

HELPERS = {
    "pkg/__init__.py": "",
    "pkg/m.py": "def g(): return 1\ndef f(): return 1\nclass C:\n    def __init__(self): self.set()\n"
    "    def set(self): self.x = 1\n    def other(self): return 1",
    "pkg/n.py": "from .m import g\ndef h(): return g()",
}


@pytest.mark.parametrize(
    ("changed", "added", "refused"),
    [
        ("def g(): return 2", "X = g()", True),
        ("def g(): return 2", "X = [g() for _ in ()]", True),
        ("def g(): return 2", "from .n import h\nX = h()", True),
        ("def g(): return 2", "def new(): return g()\nX = new()", True),
        ("def g(): return 2", "class D:\n    x = g()", True),
        ("self.x = 2", "X = C()", True),
        ("def g(): return 2", "def new(): return g()", False),
        ("def g(): return 2", "X = lambda: g()", False),
        ("def other(self): return 2", "X = C()", False),
        ("def f(): return 2", "X = g()", False),
    ],
)
def test_new_names_must_not_be_made_by_code_that_changes(changed, added, refused):
    """They are made while that still is as it was."""
    new = HELPERS["pkg/m.py"].replace(changed.replace("2", "1"), changed) + "\n" + added
    found = refusals(HELPERS, HELPERS | {"pkg/m.py": new})
    assert ("which changes, when the patch is loaded" in " ".join(found)) == refused
    assert bool(found) == refused
