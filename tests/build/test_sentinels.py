"""A sentinel that is made otherwise stays the object that everybody compares with."""

import pytest
from tests.build.kit import report

USE = "def f(x=None): return x is missing\n"
SHOWN = "class Missing:\n    def __repr__(self): return 'missing'\n    def __reduce__(self): return 'missing'\n"
BARE = "missing = object()\n"
TYPE = "missing = type('Missing', (), {'__repr__': lambda x: 'missing'})()\n"


@pytest.mark.parametrize(
    ("old", "new"), [(BARE, f"{SHOWN}missing = Missing()\n"), (TYPE, f"{SHOWN}missing = Missing()\n"), (BARE, TYPE)]
)
def test_it_stays(old, new):
    found = report(old + USE, new + USE)
    assert not found.refused
    assert not found.values
    assert "it stays the object that it is" in [change.reason.partition(": ")[2] for change in found.notes]


@pytest.mark.parametrize(
    ("old", "new", "use"),
    [
        (BARE, "missing = None\n", USE),
        (BARE, f"{SHOWN}missing = Missing()\n", "def f(x=None): return missing\n"),  # nobody compares
        (BARE, f"{SHOWN}    def __bool__(self): return False\nmissing = Missing()\n", USE),
        (BARE, f"{SHOWN}missing = Missing(1)\n", USE),
        (BARE, "class Policy:\n    def allows(self): return False\nmissing = Policy()\n", USE),
        (BARE, "from elsewhere import Policy\nmissing = Policy()\n", USE),
        (BARE, "missing = type('Missing', (dict,), {})()\n", USE),
    ],
)
def test_what_counts_otherwise_is_no_sentinel(old, new, use):
    found = report(old + use, new + use)
    assert found.values or found.refused


ENUM = "import enum\nclass Missing(enum.Enum):\n    X = object()\n"
TYPES = "from typing import Union\nKind = Union[Missing, bytes]\ndef g() -> Missing: pass\n"


def test_a_class_that_only_makes_one_may_become_another():
    old, new = f"{SHOWN}missing = Missing()\n{USE}{TYPES}", f"{ENUM}missing = Missing.X\n{USE}{TYPES}"
    found = report({"pkg/m.py": old}, {"pkg/m.py": new})
    assert not found.refused
    assert {change.kind for change in found.changes if change not in found.notes} == {"import"}


@pytest.mark.parametrize(
    "more", ["def g(x): return isinstance(x, Missing)\n", "class D(Missing): pass\n", "X = Missing\n"]
)
def test_a_class_that_somebody_asks_for_may_not(more):
    old, new = f"{SHOWN}missing = Missing()\n{USE}{more}", f"{ENUM}missing = Missing.X\n{USE}{more}"
    assert report(old, new).refused
    other = {"pkg/n.py": "import pkg.m\nX = pkg.m.Missing()\n"}
    old, new = f"{SHOWN}missing = Missing()\n{USE}", f"{ENUM}missing = Missing.X\n{USE}"
    assert report({"pkg/m.py": old, **other}, {"pkg/m.py": new, **other}).refused


@pytest.mark.parametrize(
    ("more", "carried"),
    [
        ("def g(x): return x.name if x is missing else 0\n", False),
        ("def g(x): return missing.value\n", False),
        ("def g(self): return self.x is missing and self.x.value\n", False),
        ("def g(x): return 0 if x is missing else x.items\n", True),
        ("def g(x, y): return y.value if x is missing else 0\n", True),
    ],
)
def test_what_only_a_member_of_an_enumeration_could_answer(more, carried):
    old, new = f"{SHOWN}missing = Missing()\n{USE}", f"{ENUM}missing = Missing.X\n{USE}{more}"
    assert (not report(old, new).refused) == carried
    user = {"pkg/n.py": f"from pkg.m import missing\n{more}"}
    old, new = f"{SHOWN}missing = Missing()\n{USE}", f"{ENUM}missing = Missing.X\n{USE}"
    assert (not report({"pkg/m.py": old}, {"pkg/m.py": new, **user}).refused) == carried
