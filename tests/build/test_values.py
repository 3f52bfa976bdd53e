"""Values that changed: what follows from them, how each is carried, and what cannot be."""

import pytest
from tests.build.kit import refusals, report, said


def carried(old, new):
    """(name, how) of the values, and the functions that are carried besides."""
    found = report(old, new)
    assert not found.refused, [str(change) for change in found.refused]
    values = {change.name: change.entry.how for change in [*found.values, *found.at_completion]}
    return values, [change.name for change in found.functions]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = 1", "x = 2"),
        ("x: int = 1", "x: int = 2"),
        ("x, y = 1, 0", "x, y = 2, 0"),
        ("x = y = 1", "x = y = 2"),
        ("x = 1", "x = 1\nx += 1"),
        ("x = []", "x = []\nx.append(1)"),
        ("x = {}\nx['a'] = 1", "x = {}\nx['a'] = 2"),
        ("x = {}\nx['a'] = 1", "x = {}"),
        ("x = {}\nx['a']['b'] = 1", "x = {}\nx['a']['b'] = 2"),
        ("x = {}\nfor k in 'ab': x[k] = 1", "x = {}\nfor k in 'abc': x[k] = 1"),
        ("if sys.platform == 'a': x = 1\nelse: x = 2", "if sys.platform == 'a': x = 1\nelse: x = 3"),
        (
            "try:\n    x = int('1')\nexcept ValueError:\n    x = 1",
            "try:\n    x = int('2')\nexcept ValueError:\n    x = 1",
        ),
        ("import re\nx = re.compile('a')", "import re\nx = re.compile('b', re.I | re.M)"),
        ("from re import compile as c\nx = c('a')", "from re import compile as c\nx = c('b')"),
        ("x = {k: [v] for k, v in zip('ab', 'cd')}", "x = {k: {v} for k, v in zip('ab', 'cd') if v}"),
        ("def make(n):\n    made = []\n    made.append(n)\n    return made\nx = make(1)", None),
        ("class P:\n    def __init__(self, n): self.n = n\nx = P(1)", None),
        (
            "import functools\nx = functools.partial(int, base=1)",
            "import functools\nx = functools.partial(int, base=2)",
        ),
        ("x = ' '.join(['a'])", "x = ', '.join(['a']).upper()"),
        ("x = lambda: 1\nx = 1", "x = lambda: 1\nx = 2"),
        ("x = 1\nx = 2", "x = 2\nx = 1"),
        ("x = 1\nx = 2", "x = 2"),
        ("import x", "x = 1"),
        ("x = 1", "from a import x"),
        ("y = 1\nx = [y]", "from a import z as y\nx = [y]"),
    ],
)
def test_forms_of_constants(old, new):
    new = new or old.replace("(1)", "(2)")
    values, functions = carried(old + "\ndef f(): return x", new + "\ndef f(): return x")
    assert values["x"] == "by world"
    assert functions == ["f"]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("x = open('a')", "x = open('b')", "`open` may do anything"),
        (
            "import threading\nx = threading.Lock()",
            "import threading\nx = threading.RLock()",
            "`threading.RLock` may do",
        ),
        ("import requests\nx = requests.get('a')", "import requests\nx = requests.get('b')", "`requests.get` may do"),
        ("def f():\n    print()\nx = f()", "def f():\n    print()\nx = [f()]", "`f` is called, in which `print`"),
        (
            "def f():\n    global x\n    x = 2\nx = 1",
            "def f():\n    global x\n    x = 2\nx = 3",
            "functions give it other",
        ),
        ("x = 1\n@deco(x)\ndef f(): pass", "x = 2\n@deco(x)\ndef f(): pass", "it was used with the old x"),
        ("x = 1\nclass C(base(x)): pass", "x = 2\nclass C(base(x)): pass", "it was used with the old x"),
        ("x = 1\nregister(x)", "x = 2\nregister(x)", "`register(x)`: it ran with the old x"),
        (
            "x = 1\nif x:\n    @deco\n    def f(): pass",
            "x = 2\nif x:\n    @deco\n    def f(): pass",
            "it was tested with the old x",
        ),
        (
            "x = 1\nif x:\n    register()\n    def f(): pass",
            "x = 2\nif x:\n    register()\n    def f(): pass",
            "it was tested with the old x",
        ),
        (
            "def g(): return 1\nx = g()\nif x:\n    def f(): pass",
            "def g(): return 2\nx = [g()]\nif x:\n    def f(): pass",
            "which is too late",
        ),
        ("x = 1\ny = open(x)", "x = 2\ny = open(x)", "it is made of x, which changed, and `open`"),
        ("import sys\nsys.path.append(1)", "import sys\nsys.path.append(2)", "is run once"),
        ("import a\na.b = 1", "import a", "is gone, but what it did remains"),
        ("class A:\n    def x(self): pass\nx = A()", "class A:\n    def x(self): pass\nx = A.x()", "may do anything"),
        ("x = len('a')\ndef len(y): return 1", "x = len('ab')\ndef len(y): return print()", "in which `print`"),
    ],
)
def test_refused(old, new, reason):
    assert reason in " ".join(refusals(old, new))


def test_what_is_made_of_a_constant():
    old = """
        x = 1
        y = [x]
        z = f"{y}"
        unrelated = 3
        def f(a=z): return a
        def g(): return y
        def h(): return unrelated
        class C:
            member = y
            second = member + [1]
            def m(self, b=second): return self.member
        class D(C):
            member = C.member + [2]
        class E:
            y = 5
            own = y
    """
    values, functions = carried(old, old.replace("x = 1", "x = 2"))
    assert set(values) == {"x", "y", "z", "C.member", "C.second", "D.member"}
    assert values["C.member"] == "by world"
    assert functions == ["f", "g", "C.m"]


def test_defaults_that_mean_something_else_are_named():
    old = "x = 1\ndef f(a, b=x, *, c=x, d=2): return a"
    (change,) = report(old, old.replace("x = 1", "x = 3")).functions
    assert change.entry.anew == ("b", "c")


@pytest.mark.parametrize(
    "reader",
    [
        "from .m import x\ndef f(): return x",
        "from . import m\ndef f(): return m.x",
        "import pkg.m as other\ndef f(): return other.x",
        "def f():\n    from .m import x",
        "from .m import *\ndef f(): return x",
        "from .k import renamed\ndef f(): return renamed",
        "from .m import x\ny = [x]\ndef f(): return y",
        "from . import m\ny = [m.x]\ndef f(): return y",
        "from . import m\ndef f(a=m.x): return a",
        "from .m import x\nclass C:\n    def f(self): return [x for _ in range(3)]",
        "from .m import x\ndef f():\n    def g(): return x\n    return g",
        "from .m import x\nf = [lambda: x]",
    ],
)
def test_readers_in_other_modules_are_carried(reader):
    tree = {"pkg/__init__.py": "", "pkg/m.py": "x = 1", "pkg/k.py": "from .m import x as renamed", "pkg/n.py": reader}
    found = report(tree, tree | {"pkg/m.py": "x = 2"})
    assert not found.refused
    assert "pkg.m:x" in {change.key for change in found.values}
    assert {change.module for change in found.functions} == {"pkg.n"}


def test_a_reader_by_any_name_is_told():
    found = report("x = 1\ndef f(): return globals()", "x = 2\ndef f(): return globals()")
    (change,) = found.changes
    assert (change.fate, change.reason) == (
        "at completion",
        "set without consistency, and it is read by f (pkg/m.py:2)",
    )


def test_what_is_made_by_code_that_changed_waits_for_it():
    old = "x = 1\ndef make(): return [x]\ny = make()\nz = [y]\ndef f(): return z"
    values, _ = carried(old, old.replace("x = 1", "x = 2"))
    assert values == {"x": "by world", "y": "made late", "z": "made late"}


def test_a_class_body_that_someone_reads_as_a_dictionary_is_not_consistent():
    old = "class C:\n    x = {}\ndef f(c): return c.__dict__['x']"
    assert carried(old, old.replace("{}", "{1: 2}"))[0] == {"C.x": "at completion"}
    old = old.replace("c.__dict__['x']", "c.x")
    assert carried(old, old.replace("{}", "{1: 2}"))[0] == {"C.x": "by world"}


def test_release_names_need_no_function():
    old = "__version__ = '1'\nAGENT = f'a/{__version__}'\napp = App(__version__)\ndef f(): return AGENT, __version__"
    found = report(old, old.replace("'1'", "'2'"))
    assert {change.name for change in found.at_completion} == {"__version__", "AGENT"}
    assert not found.functions
    assert [note.name for note in found.notes] == ["app"]


def test_leaving_out_a_value_leaves_out_its_readers():
    found = report("x = 1\ndef f(): return x\ndef g(): return 1", "x = 2\ndef f(): return x\ndef g(): return 2")
    assert [c.name for c in found.narrowed(exclude=["*:x"]).functions] == ["g"]
    only = found.narrowed(only=["*:x"])
    assert [c.name for c in [*only.values, *only.functions]] == ["x", "f"]


def test_moving_a_constant_is_no_difference():
    assert said("x = 1\ny = 2\ndef f(): return x", "y = 2\nx = 1\ndef f(): return x") == {}


def test_members_of_enums_are_no_plain_values():
    assert refusals("import enum\nclass C(enum.Enum):\n    A = 1", "import enum\nclass C(enum.Enum):\n    A = 2")


def test_who_never_returns_is_not_waited_for():
    old = "x = 1\ndef f():\n    while True:\n        work(x)\ndef g(): return x\ndef h(): raise ValueError(x)"
    found = report(old, old.replace("x = 1", "x = 2"))
    assert [change.name for change in found.functions] == ["g", "h"]
    assert "it never returns" in found.notes[0].reason


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("X = (y := 1) + 1", "X = (y := 2) + 1"),
        ("X = [y for z in (1, 2) if (y := z)]", "X = [y for z in (1, 2, 3) if (y := z)]"),
        ("if y := 1:\n    X = y", "if y := 2:\n    X = y"),
    ],
)
def test_what_names_something_in_passing_is_refused(old, new):
    f = "\ndef f(): return X, y"
    (refusal,) = refusals(old + f, new + f)
    assert "constant X" in refusal
    assert "gives something a name in passing" in refusal


def test_what_a_function_names_in_passing_is_its_own():
    text = "N = 1\ndef h(): return (y := N) + y\nX = h()\ndef f(): return X"
    assert not refusals(text, text.replace("N = 1", "N = 2"))


@pytest.mark.parametrize("text", ["A = 1; go()", "go(); A = 1", "class C: A = 1; B = go()"])
def test_what_shares_its_line_is_refused(text):
    go = "L = []\ndef go(): L.append(1)\n"
    f = "\ndef f(): return A" if "class" not in text else "\ndef f(): return C.A"
    new = text.replace("A = 1", "A = 2")
    assert "another statement stands on its line" in " ".join(refusals(go + text + f, go + new + f))
    apart = new.replace("; ", "\n    " if ":" in new else "\n").replace(": A", ":\n    A")
    assert not refusals(go + text + f, go + apart + f)
