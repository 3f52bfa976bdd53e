"""Changes of a module's statements: what may be added, what may change, what cannot."""

import pytest
from tests.build.kit import refusals, report, said


@pytest.mark.parametrize(
    ("new", "added"),
    [
        ("import os", ["os"]),
        ("import os.path", ["os"]),
        ("import os.path as p", ["p"]),
        ("from os import path, sep as s", ["path", "s"]),
        ("from . import sibling", ["sibling"]),
        ("LIMIT = 10", ["LIMIT"]),
        ("LIMIT: int = 10", ["LIMIT"]),
        ("A, B = 1, 2", ["A", "B"]),
        ("A = B = 1", ["A", "B"]),
        ("logger = logging.getLogger(__name__)", ["logger"]),
        ("def f(): pass", ["f"]),
        ("class C(Base): x = 1", ["C"]),
        ("try:\n    import fast\nexcept ImportError:\n    fast = None", ["fast"]),
        ("if sys.platform == 'x':\n    A = 1\nelse:\n    A = 2", ["A"]),
        ("if x:\n    def f(): pass", ["f"]),
        (
            "try:\n    import fast\nexcept ImportError:\n    import slow\n    fast = slow.x\n    del slow",
            ["fast", "slow"],
        ),
        ("table = {}\ntable.update(a=1)\ntable['b'] = 2", ["table", "table.update(a=1)", "table['b'] = 2"]),
    ],
)
def test_added(new, added):
    assert said("import sys", "import sys\n" + new) == {"added": added}


def test_added_next_to_others():
    assert said(
        "from a import b\nif x:\n    def f(): pass", "from a import b, c\nif x:\n    D = 1\n    def f(): pass"
    ) == {"added": ["c", "D"]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import a\nimport b", "import b\nimport a"),
        ("import a, b", "import a\nimport b"),
        ("from a import b, c", "from a import (\n    c,\n    b,\n)"),
        ("x = 'a'", 'x = "a"'),
        ("x = 1\ny = 2", "y = 2\nx = 1"),
        ("x = 1", "x = 1\n'a string'\n..."),
        ("def f(): pass", "if not TYPE_CHECKING:\n    def f(): pass"),
    ],
)
def test_no_difference(old, new):
    assert said(old, new) == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import a", ""),
        ("x = 1", ""),
        ("x: int", "x: str"),
        ("import os, os.path", "import os"),
        ("", "if TYPE_CHECKING:\n    import a"),
        ("if typing.TYPE_CHECKING:\n    import a", "if typing.TYPE_CHECKING:\n    import b"),
        ("", "if __name__ == '__main__':\n    main()"),
        ("__all__ = ['a']", "__all__ = ['a', 'b']"),
        ("__all__ = ['a']", "__all__ = ['a']\n__all__ += ['b']\n__all__.extend(c)"),
        ("", "from __future__ import annotations"),
        ("from __future__ import annotations", ""),
        ("from typing import List\ndef f(x: List): pass", "from a import List\ndef f(x: List): pass"),
        ("", "from __future__ import division, print_function"),
        ("from __future__ import generator_stop\nX = 1", "X = 1"),
        ("try:\n    bool\nexcept NameError:\n    def bool(x): return 1", ""),
        ("len('abc') + 1", ""),
    ],
)
def test_noted(old, new):
    found = report(old, new)
    assert found.changes == found.notes


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("x = f()", "x = g()", "its value changed"),
        ("", "f()", "`f()` is run once, when the module is imported"),
        ("f()", "", "`f()` is gone, but what it did remains"),
        ("import x\ndef f(): x", "import x\ndef f(): x\ndel x", "is run once"),
        ("", "from a import *", "may bind any name"),
        ("", "for x in y: x.f()", "is run once"),
        ("", "import sys\nif sys.x: raise ImportError", "is run once"),
        ("", "from __future__ import barry_as_FLUFL", "barry_as_FLUFL came or went"),
        ("x = 1\ndef f(): pass", "def x(): pass\ndef f(): pass", "bound already"),
        ("import x\nx.f()", "x = 1\nx.f()", "it ran with the old x when the module was imported"),
        ("def f(): return len(x)", "def f(): return len(x)\ndef len(x): return 1", "uses this name already"),
        ("def f(): return open(x)", "from a import open\ndef f(): return open(x)", "uses this name already"),
        ("from a import len\ndef f(): return len(x)", "def f(): return len(x)", "means another one"),
        ("def len(): pass\ndef f(): return len(x)", "def f(): return len(x)", "means another one"),
        (
            "try:\n    import a\n    def f(): pass\nfinally: pass",
            "try:\n    import a\n    B = 1\n    def f(): pass\nfinally: pass",
            "it is new inside",
        ),
    ],
)
def test_refused(old, new, reason):
    found = refusals(old, new)
    assert found
    assert reason in found[0]


def test_an_import_from_elsewhere_is_left_to_the_loader():
    old = "try:\n    import a\nexcept ImportError:\n    a = None\ndef f(): return a"
    found = report(old, old.replace("ImportError", "ModuleNotFoundError"))
    assert [(c.kind, c.name) for c in found.added] == [("import", "a")]
    assert "must be the same object" in found.added[0].reason
    found = report(old, "from b import a\ndef f(): return a")
    assert [(c.kind, c.name, c.reason) for c in found.added] == [
        ("import", "a", "imported from elsewhere; it must be the same object")
    ]


def test_an_import_of_something_that_moved_and_is_another_now_is_refused():
    old = {"p/__init__.py": "", "p/a.py": "def f(): pass", "p/b.py": "", "p/m.py": "from .a import f\nf()"}
    new = {"p/__init__.py": "", "p/a.py": "", "p/b.py": "def f(): return 1", "p/m.py": "from .b import f\nf()"}
    assert "p/m.py:1: import f: it moved to p.b" in refusals(old, new)
    new = {"p/__init__.py": "", "p/a.py": "def f(): pass", "p/m.py": "from .c import f\nf()", "p/c.py": "f = 1"}
    assert "imported from p.c, which is new" in " ".join(refusals(old, new))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("__version__ = '1'", "__version__ = '2'"),
        ("__version__ = version = '1'", "__version__ = version = '2'"),
        ("VERSION = (1, 0)\ndef f(): return VERSION", "VERSION = (1, 1)\ndef f(): return VERSION"),
        ("unused = {'a': 1}", "unused = frozenset({'b': 2})"),
        (
            "R = t.Union[str, int]\ndef f(x: R): return t.cast(R, x)",
            "R = t.Union[str]\ndef f(x: R): return t.cast(R, x)",
        ),
        ("x: int = 1", "x: int = 2"),
    ],
)
def test_at_completion(old, new):
    found = report(old, new)
    assert found.changes == found.at_completion


def test_importers_of_a_version_follow():
    old = {
        "p/__init__.py": "from .version import __version__ as v",
        "p/version.py": "__version__ = '1'",
        "p/use.py": "from . import v\nfrom .version import __version__\ndef f(): return __version__, v",
    }
    found = report(old, old | {"p/version.py": "__version__ = '2'"})
    assert [(c.module, c.name, c.entry.origin) for c in found.at_completion] == [
        ("p", "v", "p.version:__version__"),
        ("p.use", "v", "p:v"),
        ("p.use", "__version__", "p.version:__version__"),
        ("p.version", "__version__", ""),
    ]
    assert "read by f (p/use.py:3)" in found.at_completion[3].reason


def test_what_importers_make_of_a_version_follows():
    old = {
        "p/__init__.py": "from .version import __version__\nAGENT = 'p/' + __version__\n"
        "class C:\n    agent = AGENT\n    def f(self, agent=AGENT): return agent",
        "p/version.py": "__version__ = '1'",
        "p/use.py": "from . import __version__ as v, AGENT\nNAME = f'use {v}'\nOPENED = open(v)",
    }
    found = report(old, old | {"p/version.py": "__version__ = '2'"})
    made = ("p:AGENT", "p:C.agent", "p.use:NAME", "p.use:AGENT")
    assert {change.key for change in found.at_completion} >= set(made)
    assert not found.refused
    assert [(c.key, "stays as it is" in c.reason) for c in found.notes if c.module == "p.use"] == [
        ("p.use:OPENED", True)
    ]


def test_what_is_made_of_imported_types_is_left_alone():
    old = {
        "p/__init__.py": "",
        "p/types.py": "import typing\nT = typing.Union[str, int]",
        "p/use.py": "from .types import T\nregister(T)\nX = open(T)",
    }
    found = report(old, old | {"p/types.py": "import typing\nT = typing.Union[str, bytes]"})
    assert {change.key for change in found.changes} == {"p.types:T", "p.use:T"}


@pytest.mark.parametrize(
    "other",
    [
        "def f(x): return x",
        "def f():\n    x = 1\n    return x",
        "def f(y: x) -> x: pass",
        "if TYPE_CHECKING:\n    from .m import x\n    y = x",
        "__all__ = ['x']",
        "from .m import x",
        "self.x",
    ],
)
def test_what_reads_nothing(other):
    tree = {"pkg/m.py": "x = 1", "pkg/n.py": other}
    found = report(tree, tree | {"pkg/m.py": "x = 2"})
    assert not found.refused
    assert not found.functions
    assert not found.values


def test_import_star_passes_new_names_on():
    tree = {"pkg/__init__.py": "from .m import *", "pkg/m.py": "def f(): pass"}
    found = report(tree, tree | {"pkg/m.py": "def f(): pass\ndef g(): pass\ndef _h(): pass"})
    assert [(c.module, c.name) for c in found.added] == [("pkg", "g"), ("pkg.m", "g"), ("pkg.m", "_h")]
    assert not found.refused


def test_import_star_does_not_pass_on_what_nobody_knows():
    tree = {"pkg/__init__.py": "from .m import *", "pkg/m.py": "__all__ = list(names())\ndef f(): pass"}
    found = report(tree, tree | {"pkg/m.py": "__all__ = list(names())\ndef f(): pass\ndef g(): pass"})
    assert [c.reason for c in found.notes] == ["new names, which `import *` in pkg/__init__.py does not pass on: g"]


@pytest.mark.parametrize(
    "new",
    [
        "try:\n    import a\n    import c\n    def f(): pass\nexcept ImportError:\n    import b as a",
        "try:\n    import a\n    check()\n    import c\n    def f(): pass\nexcept ImportError: pass",
        "try:\n    import a\n    def f(): pass\nexcept ImportError:\n    import c",
        "try:\n    import a\n    def f(): pass\nexcept ImportError: pass\nelse:\n    import c",
    ],
)
def test_an_import_in_a_try_that_cannot_be_tried_alone(new):
    old = new.replace("    import c\n", "").replace("    import c", "    pass")
    assert any("import c" in refusal for refusal in refusals(old + "\ndef g(): pass", new + "\ndef g(): return c"))
