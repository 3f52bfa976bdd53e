"""Attributes whose values have another type now."""

import ast

import pytest
from tests.archive.kit import M, disabled
from tests.archive.test_members import worlds  # noqa: F401 - a fixture

import livepatch as lp
from livepatch.archive.conversion import conversion
from livepatch.testing import finish, manual_rounds

OLD = """
    class C:
        def __init__(self): self.left = 0
        def start(self): self.left = 2
        def eat(self, data):
            self.left -= len(data)
            return self.left
        def look(self): return self.left
"""
NEW = """
    class C:
        def __init__(self): self.left = b""
        def start(self): self.left = b"ab"
        def eat(self, data):
            self.left = self.left[len(data):]
            return self.left
        def look(self): return self.left, self.left[:0]
"""


def test_each_world_sees_its_own_form(worlds):  # noqa: F811
    def question(m):
        fresh, started, eaten = m.C(), m.C(), m.C()
        started.start()
        eaten.start()
        eaten.eat(b"a")
        return lambda: [(one.left, one.look()) for one in (fresh, started, eaten)]

    before, after = worlds(OLD, NEW, question)
    assert before == [(0, 0), (2, 2), (1, 1)]
    assert after == [(b"", (b"", b"")), (b"ab", (b"ab", b"")), (b"b", (b"b", b""))]


def test_a_table_of_constants(worlds):  # noqa: F811
    old = "    class C:\n        def __init__(self): self.s = 0\n        def go(self): self.s = 1\n"
    old += "        def r(self): return self.s\n"
    new = old.replace("self.s = 0", "self.s = 'idle'").replace("self.s = 1", "self.s = 'busy'")
    new = new.replace("return self.s", "return self.s.upper()")

    def question(m):
        idle, busy = m.C(), type("Child", (m.C,), {})()
        busy.go()
        return lambda: [idle.r(), busy.r()]

    assert worlds(old, new, question) == ([0, 1], ["IDLE", "BUSY"])


def test_a_field_in_its_mutable_form(worlds):  # noqa: F811
    """What new code adds to it is not lost, and old code goes on with what it knows."""
    old = """
    from dataclasses import dataclass, field
    @dataclass
    class C:
        name: str = "x"
        data: bytes = b""
        def add(self, more): self.data += more
    def add(c, more):
        c.add(more)
        return bytes(c.data)
    """
    new = old.replace('bytes = b""', "bytearray = field(default_factory=bytearray)").replace(
        "self.data += more", "self.data.extend(more)"
    )
    new = new.replace('name: str = "x"', 'name: str = "y"')

    def question(m):
        one = m.C(data=b"a")
        return lambda: (type(one.data), len(one.data) < len(m.add(one, b"b")), type(m.C().data), m.C().name, m.C.name)

    before, after = worlds(old, new, question)
    assert before == (bytes, True, bytes, "x", "x")
    assert after == (bytearray, True, bytearray, "y", "y")


@pytest.mark.parametrize(
    ("old", "new", "forth"),
    [
        (["0"], ["b''"], {0: b"", 5: 5}),
        (["0", "1"], ["'a'", "'b'"], {0: "a", 1: "b"}),
        (["0", "1"], ["'a'", "'a'"], None),
        (["0"], ["1"], {0: 1}),
        (["0", "1"], ["1", "0"], None),
        (["None"], ["[]"], None),
        (["0", "x"], ["b''", "b'a'"], None),
        (["0", "2", "x"], ["b''", "b'ab'", "y"], {0: b"", 1: b"b", 2: b"ab", 3: 3, None: None}),
        (["0", "2", "x"], ["b''", "b'abc'", "y"], None),
        (["0"], ["b''", "b'a'"], None),
    ],
)
def test_what_the_source_tells(old, new, forth):
    def cls(values):
        return ast.parse("class C:\n  def f(self):\n" + "".join(f"    self.a = {v}\n" for v in values)).body[0]

    found = conversion(cls(old), cls(new), "a")
    assert (found is None) == (forth is None)
    for was, now in (forth or {}).items():
        assert found[0](was) == now
        assert found[1](now) == was


def test_an_instance_without_the_attribute(package):
    package.have({M: OLD})
    m = package.load()
    one = m.C.__new__(m.C)
    patch = package.bind({M: NEW})
    with manual_rounds():
        lp.enable_patch(patch)
        with pytest.raises(AttributeError):
            one.look()
        one.left = b"x"
        del one.left
        assert not hasattr(one, "left")
        finish()
    disabled(patch)
