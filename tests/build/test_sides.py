"""The old and the new lines that a change is about."""

import pytest
from tests.build.kit import files

from livepatch.build import from_step
from livepatch.build.sides import opcodes
from livepatch.build.sources import Tree
from livepatch.build.steps import Step


def built(old, new):
    return from_step(Step(Tree.sort(files(old)), Tree.sort(files(new))))


def sides(old, new):
    """(fate, name) -> the lines of the old and of the new source, as text."""
    build = built(old, new)
    found = {}
    for change in build.report.changes:
        spans = build.sides.of(change)
        texts = ["\n".join(build.sides.lines(change.file, span, new=i == 1)) for i, span in enumerate(spans)]
        found[change.fate, change.name] = tuple(texts)
    return found


OLD = """\
import os
LIMIT = 1

class C(
    dict,
):
    # first
    @property
    def p(self):
        return 10
    def m(self): return LIMIT
    def gone(self): pass

def f():
    def g():
        return 20
    return g()

def f(): return 30, TABLE

if os.name:
    TABLE = [
        40,
    ]
"""
P = "    @property\n    def p(self):\n        return "
G = "    def g():\n        return "
TABLE = "if os.name:\n    TABLE = [\n        {},\n    ]"


@pytest.mark.parametrize(
    ("before", "after", "of", "old", "new"),
    [
        ("return 10", "return 11", ("carried", "C.p"), P + "10", P + "11"),
        ("return LIMIT", "return 5", ("carried", "C.m"), "    def m(self): return LIMIT", "    def m(self): return 5"),
        ("LIMIT = 1", "# higher\nLIMIT = 2", ("value", "LIMIT"), "LIMIT = 1", "LIMIT = 2"),
        ("return 20", "return 21", ("carried", "f.<locals>.g"), G + "20", G + "21"),
        ("30", "31", ("carried", "f"), "def f(): return 30, TABLE", "def f(): return 31, TABLE"),
        ("40", "41", ("value", "TABLE"), TABLE.format(40), TABLE.format(41)),
        ("    # first", "    x = 1", ("added", "C.x"), "", "    x = 1"),
        ("    def gone(self): pass\n", "", ("note", "C.gone"), "    def gone(self): pass", ""),
        ("import os", "import os\ndef h(): pass", ("added", "h"), "", "def h(): pass"),
        ("import os", "import os\nclass D:\n    x = 1", ("added", "D"), "", "class D:\n    x = 1"),
        ("import os", "import os\nprint(1)", ("refused", ""), "", "print(1)"),
    ],
)
def test_what_a_change_is_about(before, after, of, old, new):
    assert OLD.count(before) == 1
    assert sides(OLD, OLD.replace(before, after))[of] == (old, new)


def test_of_a_class_that_both_have_only_the_head():
    old = "class A: pass\nclass B(A):\n    def f(self): pass\nclass C(A):\n\n    @property\n    def f(self): pass\n"
    found = sides(old, old.replace("class C(A)", "class C(B)"))
    assert {texts for of, texts in found.items() if of[1] == "C"} == {("class C(A):\n", "class C(B):\n")}


def test_an_attribute_is_shown_where_the_constructor_sets_it():
    old = "class C:\n    def __init__(self): pass\n    def f(self): return 1\n"
    new = "class C:\n    def __init__(self):\n        self.x = 1\n    def f(self): return self.x\n"
    shown = "    def __init__(self): pass", "    def __init__(self):\n        self.x = 1"
    assert sides(old, new)["added", "C.x"] == shown


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_lines_are_those_of_python(end):
    old = {"m.py": "# \x0c\x0b\x85\u2028 one line\ndef f():\n    return 1\n".replace("\n", end)}
    build = built(old, {"m.py": old["m.py"].replace("1", "2")})
    (change,) = build.report.functions
    assert build.sides.of(change) == ((2, 3), (2, 3))
    assert build.sides.lines("m.py", (2, 3), new=True) == ["def f():", "    return 2"]


def test_other_encodings():
    sources = [f"# coding: latin-1\ndef f(): return 'ä', {n}\n".encode("latin-1") for n in (1, 2)]
    build = from_step(Step(*(Tree.sort({"m.py": source}) for source in sources)))
    assert build.sides.lines("m.py", (2, 2), new=False) == ["def f(): return 'ä', 1"]


@pytest.mark.parametrize("content", ["def f(:\n", "# coding: no-such\nx = 1\n", "x = '\0'\n", "", "if 1:\n" * 120])
def test_what_is_no_python_has_no_sides_and_breaks_nothing(content):
    build = built({"m.py": "x = 1\n", "n.py": "def f(): return 1\n"}, {"m.py": content, "n.py": "def f(): return 2\n"})
    assert [build.sides.of(change)[1] for change in build.report.changes if change.file == "m.py"] in ([None], [])


def test_the_json_has_what_a_page_needs():
    old = "__version__ = '1'\ndef f(): return 1\ndef g(): pass\n"
    new = "__version__ = '2'\n\ndef f():\n    return 2\ndef h(): pass\n"
    found = built(old, new).to_json()
    (f,) = found["carried"]
    assert (f["file"], f["name"], f["old"], f["new"], f["consistent"]) == ("pkg/m.py", "f", (2, 2), (3, 4), True)
    assert [(c["name"], c["old"], c["new"], c["consistent"]) for c in found["added"]] == [("h", None, (5, 5), True)]
    assert [(c["name"], c["old"], c["new"], c["consistent"]) for c in found["at completion"]] == [
        ("__version__", (1, 1), (1, 1), False)
    ]
    assert [(c["name"], c["old"], c["new"], c["consistent"]) for c in found["note"]] == [("g", (3, 3), None, None)]


def test_a_new_member_of_an_enumeration_is_not_consistent():
    old = "import enum\nclass E(enum.Enum):\n    A = 1\n"
    report = built(old, old + "    B = 2\n").report
    assert [change.name for change in report.not_consistent] == ["E.B"]
    assert report.narrowed(exclude=["*:E.B"]).not_consistent == []


@pytest.mark.parametrize(
    ("old", "new"),
    [("", ""), ("a", ""), ("", "a"), ("abcabc", "abxabc"), ("aaa", "aa"), ("ab", "ba"), ("abcd", "abcd")],
)
def test_opcodes_lead_from_the_old_to_the_new(old, new):
    made, at = [], (0, 0)
    for tag, i1, i2, j1, j2 in opcodes(list(old), list(new)):
        assert at == (i1, j1)
        assert (tag == "equal") == (old[i1:i2] == new[j1:j2])
        made += old[i1:i2] if tag == "equal" else new[j1:j2]
        at = i2, j2
    assert (made, at) == (list(new), (len(old), len(new)))
