"""What the vulnerable process notes and tells: the oracle of the corpus must see what a patch could leave behind."""

import json

import pytest
from corpus.case import Failure, cases, target

MODULE = """
from functools import partial
CONSTANT, TABLE, ORDER, SEEN = "value", {"a": 1}, [1, 2], set()
count = 0
def f(a=CONSTANT, *, b=TABLE): return a
def use():
    global count
    count += 1
    TABLE["more"] = count
class C:
    x = (1, 2)
    @property
    def p(self): return 1
    @staticmethod
    def s(): return 1
    @classmethod
    def k(cls): return 1
C.itself = C
"""

#: Each leaves something behind, with what it is told to be.
CHANGES = {
    "m.CONSTANT = 'other'": "lp_pkg.m.CONSTANT is 'other', was 'value'",
    "m.extra = 1": "lp_pkg.m.extra is 1, was nothing",
    "del m.SEEN": "lp_pkg.m.SEEN is nothing, was set()",
    "m.TABLE['a'] = 2": "lp_pkg.m.TABLE['a'] is 2, was 1",
    "m.ORDER[0] = 5": "lp_pkg.m.ORDER[0] is 5, was 1",
    "m.C.x = (1, 2, 3)": "lp_pkg.m.C.x is (1, 2, 3), was (1, 2)",
    "m.f.__defaults__ = ('other',)": "lp_pkg.m.f.__defaults__ is ",
    "m.f.__code__ = (lambda a, *, b: 2).__code__": "lp_pkg.m.f.__code__ is ",
    "m.C.s.__code__ = (lambda: 2).__code__": "lp_pkg.m.C.s.__code__ is ",
    "m.C.k.__func__.__doc__ = 'text'": "lp_pkg.m.C.k.__doc__ is 'text', was None",
    "m.C.p.fget.__code__ = (lambda self: 2).__code__": "lp_pkg.m.C.p.fget.__code__ is ",
}


@pytest.fixture
def process(tmp_path):
    """A process with a package, and a question for each change."""
    package = tmp_path / "packages" / "lp_pkg"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "m.py").write_text(MODULE)
    case = tmp_path / "case"
    case.mkdir()
    lines = ["from lp_pkg import m", "def use(): m.use()", "def vulnerable(): return True", "def fail(): 1 / 0"]
    lines += [f"def change{number}():\n    {change}" for number, change in enumerate(CHANGES)]
    (case / "poc.py").write_text("\n".join(lines))
    (case / "works.py").write_text("import poc\ndef works(): return poc.m.f() == 'value'\n")
    with target(case, package.parent) as running:
        yield running


def test_what_is_left_behind_is_told(process):
    process.expect("at first", vulnerable=True)
    process.ask("use")
    assert process.ask("remember") >= 5
    process.ask("use")
    process.ask("settle")
    process.ask("use")
    assert process.ask("changed") == []  # the program's own state goes on
    for number, told in enumerate(CHANGES.values()):
        before = process.ask("changed")
        process.ask(f"change{number}")
        (new,) = set(process.ask("changed")) - set(before)
        assert new.startswith(told)


def test_what_everything_consists_of_is_described_by_value(process):
    described = process.ask("describe")["lp_pkg.m"]
    assert described["CONSTANT"] == "'value'"
    assert described["TABLE"] == "dict('a': 1)"
    assert described["C.x"] == "tuple(1, 2)"
    assert described["C.itself"] == described["C"] == "class lp_pkg.m.C(builtins.object)"
    for number, change in enumerate(CHANGES):
        before = process.ask("describe")["lp_pkg.m"]
        process.ask(f"change{number}")
        assert (process.ask("describe")["lp_pkg.m"] != before) is ("__doc__" not in change)


def test_what_goes_wrong_is_a_failure_with_a_sentence(process):
    with pytest.raises(Failure, match=r"fail\(\) failed: ZeroDivisionError.* in fail \(poc.py:4\)"):
        process.ask("fail")
    with pytest.raises(Failure, match="now the process is still vulnerable"):
        process.expect("now", vulnerable=False)
    process.ask("change0")
    process.ask("change6")
    with pytest.raises(Failure, match=r"then works\(\) is false"):
        process.expect("then", vulnerable=True)


def test_each_case_of_the_project_says_what_it_is():
    for case in cases():
        known = json.loads((case / "case.json").read_text())
        assert {"package", "v1", "v2", "requires", "advisory", "what"} <= known.keys()
        assert "def vulnerable(" in (case / "poc.py").read_text()
