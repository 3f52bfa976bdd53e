"""Statements that a patch runs for what they do to something else: at completion, and taken back with it."""

import collections
import dataclasses
import importlib
import sys
import types

import pytest
from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace, refusal
from tests.core.kit import Gate

import livepatch as lp
from livepatch.archive import fit

OTHER = """
    import collections
    LIST = ["a", "b"]
    QUEUE = collections.deque(["a"])
    SHORT = collections.deque(["a"], 1)
    SET = {"a"}
    TABLE = {"a": 1, "b": 2}
    LISTS = collections.defaultdict(list)
    class Kept(dict): pass
    KEPT = Kept()
    class Thing:
        flag = 1
        @property
        def cautious(self): return 1
        @cautious.setter
        def cautious(self, value): raise AssertionError
    class Strict(Thing):
        def __setattr__(self, name, value): raise AssertionError
    thing, strict = Thing(), Strict()
"""
OLD = """
    import sys
    from lp_pkg import other
    class C:
        table = {}
    def hold(gate): gate(); return 1
    def look(): return tuple(other.LIST)
"""
NEW = """
    def make(): return ["made"]
    if "c" not in other.LIST:
        other.LIST.append("c")
    if "a" not in other.LIST:
        other.LIST.append("never")
    for name in ("c", "d"):
        if name not in other.LIST:
            other.LIST.append(name)
    other.LIST.insert(0, "first")
    other.QUEUE.extend("bc")
    other.SET.add("a")
    other.SET.update(["b"], ["c"])
    other.TABLE["a"] = 10
    other.TABLE.update({"c": 3}, d=4)
    other.TABLE.setdefault("b", 20)
    other.TABLE.setdefault("e")
    other.LISTS["made"] = make()
    setattr(other.thing, "flag", 2)
    setattr(other, "NEW", make)
    if not other.Thing.flag:
        other.thing.never = 1
    C.table["c"] = C
"""
KEPT = ("LIST", "QUEUE", "SET", "TABLE", "LISTS")


def state(other):
    return [repr(getattr(other, name)) for name in KEPT], vars(other.thing).copy(), set(namespace(other))


def test_it_is_done_at_completion_and_taken_back(package):
    package.have({M: OLD, "lp_pkg/other.py": OTHER})
    m = package.load()
    before = state(m.other)
    for _ in range(2):
        patch = package.bind({M: OLD + NEW})
        enabled(patch)
        other = m.other
        assert other.LIST == ["first", "a", "b", "c", "d"]
        assert collections.deque("abc") == other.QUEUE
        assert {"a", "b", "c"} == other.SET
        assert other.TABLE == {"a": 10, "b": 2, "c": 3, "d": 4, "e": None}
        assert other.LISTS == {"made": ["made"]}
        assert (other.thing.flag, other.Thing.flag, other.NEW) == (2, 1, m.make)
        assert m.C.table == {"c": m.C}
        disabled(patch)
        assert state(other) == before
        assert m.C.table == {}


def test_what_others_have_done_meanwhile_stays(package):
    package.have({M: OLD, "lp_pkg/other.py": OTHER})
    m = package.load()
    other = m.other
    patch = package.bind({M: OLD + NEW})
    enabled(patch)
    other.LIST.append("theirs")
    other.LIST.remove("c")
    other.SET.add("theirs")
    other.SET.discard("b")
    other.TABLE["a"] = "theirs"
    del other.TABLE["c"]
    other.TABLE["f"] = 6
    other.thing.flag = 3
    disabled(patch)
    assert other.LIST == ["a", "b", "theirs"]
    assert {"a", "theirs"} == other.SET
    assert other.TABLE == {"a": "theirs", "b": 2, "f": 6}
    assert other.thing.flag == 3


def test_nothing_is_done_before_all_have_moved_nor_taken_back(package, worker):
    package.have({M: OLD, "lp_pkg/other.py": OTHER})
    m = package.load()
    new = OLD.replace("gate(); return 1", "gate(); return 2") + '    other.LIST.append("c")\n'
    without, with_ = ("a", "b"), ("a", "b", "c")
    seen = in_both_worlds(package.bind({M: new}), worker, Gate(), m.hold, m.look)
    assert seen == [without, (1, without), with_, (2, with_)]
    assert m.look() == without


@pytest.mark.parametrize(
    ("statement", "what"),
    [
        ("other.SHORT.append(1)", "limited length"),
        ("other.KEPT['x'] = 1", "'Kept'"),
        ("other.TABLE.append(1)", "'append' of a 'dict'"),
        ("other.LIST[0] = 1", "'list'"),
        ("other.TABLE[[]] = 1", "unhashable"),
        ("other.LIST.append(other.missing)", "missing"),
        ("other.missing.append(1)", "missing"),
        ("if other.missing: other.LIST.append(1)", "missing"),
        ("setattr(other.strict, 'x', 1)", "'Strict'"),
        ("setattr(other.thing, 'cautious', 1)", "'cautious'"),
        ("setattr(other.LIST, 'x', 1)", "'list'"),
    ],
)
def test_what_cannot_be_taken_back_here_refuses_and_changes_nothing(package, statement, what):
    package.have({M: OLD, "lp_pkg/other.py": OTHER})
    m = package.load()
    before = state(m.other), namespace(m).keys()
    patch = package.bind({M: OLD + f'    other.LIST.append("c")\n    {statement}\n'})
    assert what in refusal(lp.enable_patch, patch)
    assert (state(m.other), namespace(m).keys()) == before


def test_one_that_fails_later_is_logged_and_the_others_are_done(package):
    old = OLD + "    def bad(x=1): return x\n"
    new = OLD + "    def bad(x=1): raise ValueError(x)\n"
    package.have({M: old, "lp_pkg/other.py": OTHER})
    m = package.load()
    before = state(m.other)
    patch = package.bind({M: new + "    other.LIST.append(bad())\n    other.SET.add('c')\n"})
    enabled(patch)
    assert (["a", "b"], {"a", "c"}) == (m.other.LIST, m.other.SET)
    assert any("`put(other.LIST, 'append', bad())`" in line for line in lp.dmesg())
    disabled(patch)
    assert state(m.other) == before


def test_a_cumulative_patch_does_it_itself(package):
    package.have({M: OLD, "lp_pkg/other.py": OTHER})
    m = package.load()
    before = state(m.other)
    enabled(package.bind({M: OLD + '    other.LIST.append("c")\n    other.SET.add("c")\n'}, "one"))
    new = OLD + '    if "c" not in other.LIST:\n        other.LIST.append("c")\n'
    archive = package.archive({M: new}, "two")
    replacing = _replacing(archive)
    enabled(replacing)
    assert (["a", "b", "c"], {"a"}) == (m.other.LIST, m.other.SET)
    disabled(replacing)
    assert state(m.other) == before
    lp.unload_patch("one")


def _replacing(archive):
    return fit.bind(dataclasses.replace(archive, manifest=dataclasses.replace(archive.manifest, replace=True)))


def test_a_module_that_comes_later_brings_what_it_does(package):
    late = "lp_pkg/late.py"
    package.have({M: OLD, "lp_pkg/other.py": OTHER, late: "from lp_pkg import other\n"})
    m = package.load()
    before = state(m.other)
    new = "from lp_pkg import other\nother.LIST.append('late')\n"
    patch = package.bind({M: OLD.replace("return 1", "return 2"), late: new})
    enabled(patch)
    assert m.other.LIST == ["a", "b"]
    importlib.import_module("lp_pkg.late")
    assert m.other.LIST == ["a", "b", "late"]
    disabled(patch)
    assert state(m.other) == before


def test_the_class_of_the_module(package, worker):
    new = """
    class Module(sys.modules[__name__].__class__):
        def __call__(self): return LIMIT
    sys.modules[__name__].__class__ = Module
    """
    package.have({M: OLD + "    LIMIT = 1\n    def limit(): return LIMIT\n", "lp_pkg/other.py": OTHER})
    m = package.load()
    other = importlib.import_module("lp_pkg.other")
    changed = OLD.replace("gate(); return 1", "gate(); return 2")
    patch = package.bind({M: changed + "    LIMIT = 2\n    def limit(): return LIMIT\n" + new})
    calls = lambda: (callable(m), m.LIMIT, m.limit())
    seen = in_both_worlds(patch, worker, Gate(), m.hold, calls)
    assert seen[1] == (1, (False, 1, 1))
    assert seen[3] == (2, (True, 2, 2))
    assert type(m) is types.ModuleType is type(other)
    assert not hasattr(m, "Module")
    assert sys.modules["lp_pkg.m"] is m


def test_what_is_set_to_something_else_goes_back(package):
    package.have({M: OLD + "    other.TABLE['x'] = 1\n", "lp_pkg/other.py": OTHER})
    m = package.load()
    patch = package.bind({M: OLD + "    other.TABLE['x'] = 2\n"})
    enabled(patch)
    assert list(m.other.TABLE.items())[-1] == ("x", 2)
    disabled(patch)
    assert list(m.other.TABLE.items())[-1] == ("x", 1)
