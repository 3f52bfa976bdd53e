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
def test_a_read_of_a_new_attribute_that_nobody_can_tell_is_refused(reader):
    (refusal,) = refusals(OLD, with_new(reader).replace("self.new = 2", "self.new = ask()"))
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
    new = with_new("return 2").replace("return c.old", "return c.new").replace("self.new = 2", "self.new = ask()")
    assert "outside" in refusals(OLD, new)[0]
    new = with_new("return 2\n        def added(self): return self.new").replace("self.new = 2", "self.new = ask()")
    assert "C.added" in refusals(OLD, new)[0]


def test_an_attribute_of_that_name_elsewhere_may_be_another():
    assert not refusals(
        OLD + "    def g(x): return x.new",
        with_new("return 2").replace("c.old", "c.new") + "    def g(x): return x.new",
    )


@pytest.mark.parametrize(("was", "now"), [("0", "b''"), ("None", "[]"), ("()", "[]")])
def test_another_type_of_initial_value(was, now):
    old = f"class C:\n    def __init__(self): self.x = {was}\n    def read(self): return self.x\n"
    old += "    def more(self): self.x += g()\n"
    new = old.replace(f"= {was}", f"= {now}").replace("return self.x", "return len(self.x)")
    assert "starts as" in refusals(old, new)[0]


def test_the_constructor_is_what_is_not_an_overload():
    overloads = (
        "class C:\n    @typing.overload\n    def __init__(self): ...\n    @overload\n    def __init__(self, *a): ...\n"
    )
    old = overloads + "    def __init__(self, *a): self.y = 1\n    def read(self): return self.y\n"
    new = old.replace("self.y = 1", "self.x = []").replace("self.y", "self.x")
    assert not refusals(old, new)


def given(old_init, new_init, more=""):
    """What the report says live instances get for the attribute `x` of a class with these constructors."""
    methods = f"    def read(self): return 1\n{more}"
    found = report(
        f"class C:\n    def __init__(self{old_init}\n{methods}",
        f"class C:\n    def __init__(self{new_init}\n{methods.replace('return 1', 'return self.x')}",
    )
    texts = [change.reason for change in found.changes if change.name == "C.x" and not found.refused]
    return texts[0].split("`")[1] if texts else None


@pytest.mark.parametrize(
    ("old_init", "new_init", "value"),
    [
        ("): pass", "): self.x = 1", "1"),
        ("): pass", "): self.x: list = []", "[]"),
        ("): pass", "): self.x = LIMIT * 2", "LIMIT * 2"),
        ("): pass", "): self.x = threading.Lock()", "threading.Lock()"),
        ("): pass", ", x=None): self.x = x", "None"),
        ("): pass", ", *, x=5): self.x = x or 3", "5 or 3"),
        (", a): self.a = a", ", a): self.a = a; self.x = a.lower()", "self.a.lower()"),
        (", a): self.a = a", ", a): self.a = a; b = len(a); self.x = b + 1", "len(self.a) + 1"),
        (", a): self.a = a", ", a):\n        self.a = a\n        self.y = 1\n        self.x = self.y", "1"),
        ("): pass", ", a=0):\n        if a: self.x = 1\n        else: self.x = 2", "1 if 0 else 2"),
        ("): pass", ", a=0):\n        if a: raise ValueError\n        self.x = 2", "2"),
        ("): pass", ", a=0):\n        self.x = 1\n        if a:\n            self.x = 2", "2 if 0 else 1"),
        # What cannot be told.
        ("): pass", "): self.x = connect()", None),
        (", a): pass", ", a): self.x = a", None),
        (", a): self.a = a + 1", ", a): self.a = a + 1; self.x = a", None),
        (", a=1): pass", ", a=1): self.x = a", None),
        ("): pass", ", *a): self.x = a", None),
        ("): pass", "):\n        for i in y: self.x = i", None),
        ("): pass", "):\n        try: self.x = 1\n        except E: self.x = 2", None),
        ("): pass", "):\n        self.x = 1\n        if ask(): self.x = 2", None),
        ("): pass", "):\n        if ask(): return\n        self.x = 2", None),
        ("): pass", "): self.x = [i for i in y]", None),
    ],
)
def test_what_instances_made_before_get(old_init, new_init, value):
    assert given(old_init, new_init) == value


def test_methods_that_the_constructor_calls_are_part_of_it():
    reset = "    def reset(me): me.x = 7\n"
    assert given("): pass", "): self.reset()", reset) is None  # the old class knows it
    old = "class C:\n    def __init__(self): pass\n    def read(self): return 1\n"
    new = "class C:\n    def __init__(self): self.reset()\n    def read(self): return self.x\n" + reset
    assert "`7`" in next(change.reason for change in report(old, new).changes if change.name == "C.x")
    assert refusals(old, new.replace("self.reset()", "self.reset(1)"))


def test_an_attribute_that_became_a_property():
    old = "class C:\n    def __init__(self): self.p = 1\n    def read(self): return 1\n"
    new = """class C:
    def __init__(self): self._p = 1
    def read(self): return self._p
    @property
    def p(self): return self._p
"""
    assert "`self.__dict__['p']`" in next(c.reason for c in report(old, new).changes if c.name == "C._p")


@pytest.mark.parametrize(
    "old_use", ["def g(x): return hasattr(x, 'new')", "def g(x): return getattr(x, 'new', None)", None]
)
def test_old_code_that_would_notice(old_use):
    old = OLD + "    " + (old_use or "")
    new = with_new("return self.new") + "    " + (old_use or "")
    assert bool(refusals(old, new)) == bool(old_use)


def test_no_default_for_slots_or_for_what_new_code_deletes():
    assert refusals(OLD, with_new("del self.new; return self.new"))
    old = "class C:\n    __slots__ = ('a',)\n    def read(self): return 1\n"
    new = "class C:\n    __slots__ = ('a',)\n    def __init__(self): self.b = 1\n    def read(self): return self.b\n"
    assert refusals(old, new)


def test_an_attribute_that_each_world_sees_in_its_own_form():
    old = "class C:\n    def __init__(self): self.x = 0\n    def read(self): return self.x\n"
    new = old.replace("= 0", "= b''").replace("return self.x", "return len(self.x)")
    assert "each world sees its own" in " ".join(change.reason for change in report(old, new).functions)
    more = "def g(c): c.x = 5\n"
    assert "starts as" in refusals(old + more, new + more)[0]
