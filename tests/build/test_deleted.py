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
