"""Attributes of live classes that only one of the two releases deletes: they come and go with the patch."""

import pytest
from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace, refusal
from tests.core.kit import Gate

import livepatch as lp

CLASSES = """
    class Base:
        y = "inherited"
    class A(Base):
        __slots__ = ("x",)
        y = [1]
    class B(A):
        __slots__ = ()
"""
DELETING = """
    del (A.__slots__, B.__slots__)
    del A.y
"""
FUNCTIONS = """
    def hold(gate): gate(); return 1
    def look(): return A.y, B().y, A().y
"""
MARKED = FUNCTIONS.replace("gate(); return 1", "gate(); return 2")


def shapes(m):
    return [namespace(cls) for cls in (m.Base, m.A, m.B)]


def test_an_attribute_that_is_no_longer_deleted_comes_and_goes(package):
    package.have({M: CLASSES + DELETING + FUNCTIONS})
    m = package.load()
    before = shapes(m)
    for _ in range(2):
        patch = package.bind({M: CLASSES + FUNCTIONS})
        enabled(patch)
        assert (vars(m.A)["__slots__"], vars(m.B)["__slots__"], vars(m.A)["y"]) == (("x",), (), [1])
        assert m.look() == ([1], [1], [1])
        m.A().x = 1
        disabled(patch)
        assert shapes(m) == before
        assert m.look() == ("inherited",) * 3


def test_an_attribute_that_is_deleted_now_goes_and_comes_back(package):
    package.have({M: CLASSES + FUNCTIONS})
    m = package.load()
    before, value = shapes(m), m.A.y
    patch = package.bind({M: CLASSES + FUNCTIONS + DELETING})
    enabled(patch)
    assert not {"__slots__", "y"} & vars(m.A).keys()
    assert "__slots__" not in vars(m.B)
    assert m.look() == ("inherited",) * 3
    disabled(patch)
    assert shapes(m) == before
    assert m.A.y is value


@pytest.mark.parametrize("goes", [True, False])
def test_each_world_has_its_own_while_tasks_move(package, worker, goes):
    with_, without = CLASSES + DELETING, CLASSES
    old, new = (with_, without) if goes else (without, with_)
    package.have({M: old + FUNCTIONS})
    m = package.load()
    patch = package.bind({M: new + MARKED})
    own, inherited = ([1],) * 3, ("inherited",) * 3
    was, now = (inherited, own) if goes else (own, inherited)
    seen = in_both_worlds(patch, worker, Gate(), m.hold, m.look)
    assert seen == [now, (1, was), was, (2, now)]


def test_a_class_that_somebody_has_changed_refuses(package):
    package.have({M: CLASSES + DELETING + FUNCTIONS})
    m = package.load()
    m.A.__slots__ = ()
    before = shapes(m)
    patch = package.bind({M: CLASSES + FUNCTIONS})
    assert "'A.__slots__'" in refusal(lp.enable_patch, patch)
    assert shapes(m) == before


def test_what_is_no_longer_set_below_the_class(package, worker):
    package.have({M: CLASSES + FUNCTIONS + "    A.y = 'set'\n    A.z = 1\n"})
    m = package.load()
    before = shapes(m)
    patch = package.bind({M: CLASSES + MARKED})
    seen = in_both_worlds(patch, worker, Gate(), m.hold, m.look)
    was, now = ("set",) * 3, ([1],) * 3
    assert seen == [now, (1, was), was, (2, now)]
    assert shapes(m) == before


def test_what_is_no_longer_set_and_was_changed_refuses(package):
    package.have({M: CLASSES + FUNCTIONS + "    A.y = 'set'\n"})
    m = package.load()
    m.A.y = "theirs"
    assert "'A.y'" in refusal(lp.enable_patch, package.bind({M: CLASSES + FUNCTIONS}))
    assert m.A.y == "theirs"


def test_names_that_are_no_longer_deleted_come_and_go(package):
    old = "import json\nX = [1]\ndel json, X\ndef f(): return None\n"
    new = "import json\nX = [1]\ndef f(): return json.dumps(X)\n"
    package.have({M: old.replace("json, X", "json\ndel X")})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: new})
    enabled(patch)
    assert m.f() == "[1]"
    disabled(patch)
    assert namespace(m) == before
    assert m.f() is None
