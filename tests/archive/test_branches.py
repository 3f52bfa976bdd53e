"""Definitions whose conditions changed, in a live process: the same one is meant, or the patch is refused."""

import sys

import pytest
from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace, refusal

from livepatch.archive import fit

HERE = f"sys.version_info < ({sys.version_info[0]}, {sys.version_info[1] + 1})"
NOT_HERE = "sys.version_info < (3, 1)"


def variants(condition, first, second):
    return f"import sys\nif {condition}:\n    def f(): return {first}\nelse:\n    def f(): return {second}\n"


def patched(package, old, new):
    package.have({M: old + "def g(): return 1\n"})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: new + "def g(): return 2\n"})
    enabled(patch)
    seen = m.f(), m.g()
    disabled(patch)
    assert namespace(m) == before
    return seen


def test_the_same_definition_is_meant(package):
    assert patched(package, variants(HERE, 1, 2), variants(f"not not ({HERE})", 3, 4)) == (3, 2)


def test_the_only_definition_becomes_one_of_two(package):
    assert patched(package, "import sys\ndef f(): return 1\n", variants(NOT_HERE, 7, 1)) == (1, 2)


def test_another_definition_is_meant(package):
    package.have({M: variants(HERE, 1, 2)})
    m = package.load()
    archive = package.archive({M: variants(NOT_HERE, 1, 2)})
    before = namespace(m)
    for dry in (True, False):
        assert "Another definition of 'f' in 'lp_pkg.m' is chosen" in refusal(fit.bind, archive, dry=dry)
    assert namespace(m) == before


@pytest.mark.parametrize("dry", [False, True])
def test_somebody_has_taken_the_definition_away(package, dry):
    package.have({M: variants(HERE, 1, 2)})
    m = package.load()
    archive = package.archive({M: variants(f"not not ({HERE})", 1, 2)})
    del m.f
    assert "are others by now" in refusal(fit.bind, archive, dry=dry)


BASE = """
import sys
class C:
    def f(self): return "base"
class D(C):
    if {}:
        def f(self): return "old"
"""
MORE = """    elif {}:
        def f(self): return "new"
"""
HOLD = """
def hold(d, gate):
    first = d.f()
    gate()
    return first, d.f()
"""


@pytest.mark.parametrize(
    ("was", "first", "second", "results"),
    [
        (NOT_HERE, NOT_HERE, HERE, ("base", "new")),
        (HERE, HERE + " and not len('')", HERE, ("old", "old")),
        (HERE, NOT_HERE, HERE, ("old", "new")),
        (HERE, NOT_HERE, NOT_HERE, ("old", "base")),
        (NOT_HERE, NOT_HERE, NOT_HERE + " and True", ("base", "base")),
    ],
)
def test_methods_may_come_and_go(package, worker, was, first, second, results):
    package.have({M: BASE.format(was) + HOLD})
    m = package.load()
    d, before = m.D(), {cls: namespace(cls) for cls in (m.C, m.D)}
    new = BASE.format(first) + MORE.format(second) + HOLD.replace("return first", "return first + ''")
    patch = package.bind({M: new})
    seen = in_both_worlds(patch, worker, None, lambda gate: m.hold(d, gate), lambda: d.f())
    (entered, (held, _), left, (held_new, _)), (old, new) = seen, results
    assert (held, entered) == ((old, old), new)
    assert (held_new, left) == ((new, new), old)
    assert d.f() == results[0]
    for cls, names in before.items():
        assert namespace(cls).keys() == names.keys()
        assert all(vars(cls)[name] is value for name, value in names.items())


def test_a_class_beside_an_import(package):
    """As a library that is optional may be replaced by a part of Python."""
    old = """
        try:
            import json as lib
        except ImportError:
            HAS = False
        else:
            HAS = True
        if HAS:
            class C:
                def f(self): return 1
        def f(): return HAS, C().f()
    """
    new = """
        try:
            from json import lp_no_such_name as lib
            HAS = True
            class C:
                def f(self): return "none"
        except ImportError:
            try:
                import json as lib
                if lib.__name__ == "other":
                    raise ImportError("no")
            except (ImportError, ValueError):
                HAS = False
            else:
                HAS = 1
                class C:
                    def f(self): return 1
        def f(): return HAS, C().f()
        def g(): return 1
    """
    package.have({M: old})
    m = package.load()
    c, before = m.C(), namespace(m)
    patch = package.bind({M: new})
    enabled(patch)
    assert (repr(m.f()), m.C) == ("(1, 1)", type(c))
    disabled(patch)
    assert repr(m.f()) == "(True, 1)"
    assert namespace(m) == before
    other = package.archive({M: new.replace("lp_no_such_name", "loads")}, "other")
    assert "Another definition of 'C'" in refusal(fit.bind, other)
    assert namespace(m) == before


OPTIONAL = """
import re
try:
    import {lib} as lib
    if "m" < "{version}":
        lib = None
except ImportError:
    lib = None
if lib is not None:
    class C:
        def f(self): return 1
KINDS = ["a"]
if lib is not None:
    KINDS.append("b")
def f(): return lib is not None, "C" in globals() and C().f(), KINDS
"""
FLAG = """
import re
try:
    import {lib} as lib
except ImportError:
    HAS_LIB = False
else:
    _version = tuple(re.findall("[a-z]+", "{version}"))
    if ("m",) < _version:
        HAS_LIB = False
    else:
        HAS_LIB = True
if HAS_LIB:
    class C:
        def f(self): return 2
        def g(self): return 3
KINDS = ["a"]
if HAS_LIB:
    KINDS.append("b")
    KINDS.append("c")
def f(): return HAS_LIB, "C" in globals() and C().f(), KINDS
"""


@pytest.mark.parametrize(
    ("lib", "version", "before", "after"),
    [
        ("json", "a", (True, 1, ["a", "b"]), (True, 2, ["a", "b", "c"])),
        ("json", "z", (False, False, ["a"]), (False, False, ["a"])),
        ("lp_no_such_name", "a", (False, False, ["a"]), (False, False, ["a"])),
    ],
)
def test_a_flag_takes_the_place_of_what_it_is_about(package, worker, lib, version, before, after):
    hold = """
def hold(gate):
    first = f()
    gate()
    return first, f()
"""
    old, new = (text.format(lib=lib, version=version) for text in (OPTIONAL, FLAG))
    package.have({M: old + hold})
    m = package.load()
    names = namespace(m)
    patch = package.bind({M: new + hold.replace("return first", "return first + ()")})
    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, None, m.hold, m.f)
    assert (held, entered) == ((before, before), after)
    assert (held_new, left) == ((after, after), before)
    assert namespace(m) == names


def test_a_flag_that_chooses_another_definition(package):
    """The new release asks for more, so what it would not define any more is there."""
    package.have({M: OPTIONAL.format(lib="json", version="a")})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: FLAG.format(lib="json", version="z")})
    assert "Another definition of 'C' in 'lp_pkg.m' is chosen" in refusal(enabled, patch)
    assert namespace(m) == before


def test_a_flag_of_another_module_chooses(package):
    """Its module comes first, whatever it is called."""
    other = "lp_pkg/z.py"
    text = """
        from .z import FLAG
        from lp_pkg import z
        if FLAG:
            def f(): return 1
        else:
            def f(): return 2
        class C:
            if z.FLAG:
                def f(self): return FLAG
            else:
                def f(self): return None
    """
    package.have({M: text, other: "FLAG = 1\n"})
    m = package.load()
    patch = package.bind({M: text.replace("return 1", "return 3"), other: "FLAG = [2]\n"})
    enabled(patch)
    assert (m.f(), m.C().f()) == (3, [2])
    disabled(patch)
    assert (m.f(), m.C().f()) == (1, 1)
    other = package.bind({M: text, other: "FLAG = 0\n"}, "other")
    assert "Another definition" in refusal(enabled, other)
    assert (m.f(), m.C().f()) == (1, 1)
