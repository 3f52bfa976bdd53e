"""Attributes that a module deletes from its classes, in one of the two versions only."""

import pytest
from tests.build.kit import refusals, report, said

CLASSES = """
class A:
    __slots__ = ("x",)
    y = 1
class B(A):
    __slots__ = ()
"""


@pytest.mark.parametrize("deleting", ["del A.__slots__", "del A.__slots__, B.__slots__", "del (A.y, [B.__slots__])"])
def test_a_del_that_comes_or_goes_is_about_values_of_classes(deleting):
    for old, new in ((deleting, ""), ("", deleting)):
        found = report(CLASSES + old, CLASSES + new)
        assert not found.refused
        names = sorted(change.name for change in found.changes)
        assert names == sorted(name for name in ("A.__slots__", "A.y", "B.__slots__") if name in _named(deleting))
        assert {change.fate for change in found.changes} == {"at completion", "value"} & {
            "at completion" if name.endswith("__") else "value" for name in names
        }


def _named(deleting):
    return deleting.replace("[", "").replace("]", "").replace("(", " ").replace(")", "").replace(",", " ").split()


def test_only_what_is_no_longer_deleted_follows():
    changes = said(CLASSES + "del A.__slots__, B.__slots__", CLASSES + "del B.__slots__")
    assert changes == {"at completion": ["A.__slots__"]}
    changes = said(CLASSES + "del A.__slots__", CLASSES + "del A.__slots__, B.__slots__")
    assert changes == {"at completion": ["B.__slots__"]}


@pytest.mark.parametrize(
    ("classes", "deleting"),
    [
        (CLASSES, "del A.nothing"),  # nothing says what it is
        (CLASSES, "del A.y, name"),
        (CLASSES, "del A.y.z"),
        (CLASSES, "del A.__dict__['y']"),
        (CLASSES, "if A: del A.y"),
        (CLASSES + "A.y = 2\n", "del A.y"),  # the class body is not all that says what it is
        (CLASSES + "A = A\n", "del A.y"),
        (CLASSES + "if B:\n    class A: y = 1\n", "del A.y"),
        ("class A:\n    __y = 1\n", "del A.__y"),
        ("class A:\n    def y(self): pass\n", "del A.y"),
        ("@register\nclass A:\n    y = 1\n", "del A.y"),
        ("import enum\nclass A(enum.Enum):\n    y = 1\n", "del A.y"),
        ("from elsewhere import A\n", "del A.y"),
        (CLASSES + "del A.y\n", "del A.y"),  # twice
    ],
)
def test_what_else_is_deleted_is_refused(classes, deleting):
    assert refusals(classes + deleting, classes)
    assert refusals(classes, classes + deleting)


def test_a_value_that_cannot_be_made_again_can_only_go():
    old = "class A:\n    y = open()\n"
    assert refusals(old + "del A.y", old)
    assert not refusals(old, old + "del A.y")


def test_a_value_that_changed_and_is_deleted_is_refused():
    assert refusals(CLASSES + "del A.y", CLASSES.replace("y = 1", "y = 2") + "del A.y")
    assert refusals(CLASSES, CLASSES.replace("y = 1", "y = 2") + "del A.y")


def test_to_delete_an_item_does_not_delete_the_name():
    old = "T = {1: 1, 2: 2}\ndel T[1]\ndef f(): return T"
    assert said(old, old.replace("2: 2", "2: 3"))["value"] == ["T"]


SET = CLASSES + "def f(): return A.y"


def test_an_attribute_that_is_no_longer_set_below_the_class():
    assert said(SET + "\nA.y = 2", SET)["value"] == ["A.y"]
    assert said(SET + "\nA.z = 2", SET) == {"note": ["A.z"]}


@pytest.mark.parametrize(
    ("classes", "setting"),
    [
        (SET, "A.y = 2\nA.y = 3"),
        (SET, "A.y.z = 2"),
        (SET, "B.y = 2"),  # the inherited one would come to light
        (SET, "A.__eq__ = f"),
        (SET, "if A: A.z = 2"),
        (SET, "A.z += 2"),
        (SET + "\ndef g(x): return hasattr(x, 'z')", "A.z = 2"),
        (SET + "\nA = A", "A.z = 2"),
        ("class A:\n    def y(self): pass", "A.y = 2"),
        ("from elsewhere import A", "A.z = 2"),
        ("@register\nclass A: pass", "A.z = 2"),
    ],
)
def test_what_else_is_no_longer_set_is_refused(classes, setting):
    assert refusals(classes + "\n" + setting, classes)


def test_names_of_imports_that_are_deleted_or_no_longer():
    reading = "\ndef f(): return x"
    assert said("import x", "import x\ndel x") == {"note": ["x"]}
    assert said("", "import x, y\ndel x, y") == {"added": ["x", "y"], "note": ["x", "y"]}
    assert said("import x\ndel x", "import x") == {"note": ["x"]}
    assert said("import x\ndel x", "import x" + reading) == {"added": ["x", "f"]}
    assert said("X = 1", "X = 1\ndel X") == {"note": ["X"]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("import x\ndef f(): return x", "import x\ndef f(): return x\ndel x"),
        ("import x", "import x\ndel x, x.y"),
        ("X = 1\ndef f(): return X", "X = 1\ndef f(): return X\ndel X"),
        ("def f(): pass", "def f(): pass\ndel f"),
        ("import x\ndef f(): pass\ndel x, f", "import x\ndef f(): pass"),
    ],
)
def test_other_names_that_are_deleted_are_refused(old, new):
    assert refusals(old, new)


def test_a_name_that_another_module_imports_is_not_deleted():
    other = {"pkg/__init__.py": "", "pkg/n.py": "def f():\n    from pkg.m import x\n    return x"}
    assert refusals({**other, "pkg/m.py": "import x"}, {**other, "pkg/m.py": "import x\ndel x"})
