"""Attributes that instances made by the old release do not have."""

import pytest
from tests.build.kit import refusals, report

OLD = """
    class Base:
        def setup(self): self.inherited = 1

    class C(Base):
        declared: int
        shared = 1
        def __init__(self): self.old = 1
        def read(self): return self.old
        def other(self): return 2

    def outside(c): return c.old
"""


def with_new(reader, attribute="new"):
    return OLD.replace("self.old = 1", f"self.old = 1; self.{attribute} = 2").replace("return 2", reader)


@pytest.mark.parametrize(
    "reader",
    ["return self.new", "self.new += 1", "self.new.append(1)", "print(self.new); self.new = 1", "del self.new"],
)
def test_a_read_of_a_new_attribute_is_refused(reader):
    (refusal,) = refusals(OLD, with_new(reader))
    assert "C.other: it reads the attribute 'new', which the old C never sets" in refusal


@pytest.mark.parametrize(
    "reader",
    [
        "return 3",
        "self.new = 1; return self.new",
        "return getattr(self, 'new', None)",
        "return self.new if hasattr(self, 'new') else 1",
    ],
)
def test_code_that_copes_is_carried(reader):
    found = report(OLD, with_new(reader))
    assert not found.refused
    assert "C.new" in [note.name for note in found.notes]


@pytest.mark.parametrize("attribute", ["old", "inherited", "declared", "shared"])
def test_attributes_that_the_old_class_knows(attribute):
    assert not refusals(OLD, with_new(f"return self.{attribute}", attribute))


def test_new_methods_count_and_so_does_other_code():
    new = with_new("return 2").replace("return c.old", "return c.new")
    assert "outside" in refusals(OLD, new)[0]
    assert "C.added" in refusals(OLD, with_new("return 2\n        def added(self): return self.new"))[0]


def test_an_attribute_of_that_name_elsewhere_may_be_another():
    assert not refusals(
        OLD + "    def g(x): return x.new",
        with_new("return 2").replace("c.old", "c.new") + "    def g(x): return x.new",
    )


@pytest.mark.parametrize(("was", "now"), [("0", "b''"), ("None", "[]"), ("()", "[]")])
def test_another_type_of_initial_value(was, now):
    old = f"class C:\n    def __init__(self): self.x = {was}\n    def read(self): return self.x\n"
    new = old.replace(was, now).replace("return self.x", "return len(self.x)")
    assert "starts as" in refusals(old, new)[0]
    assert not refusals(old, old.replace(was, now))
