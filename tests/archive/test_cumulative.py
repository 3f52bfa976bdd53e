"""Archives that take the place of others: what both add, what only one does, and the way back."""

import sys
import threading

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.agent import patchfile
from livepatch.archive import fit, format
from livepatch.build import from_step, from_trees, steps
from livepatch.testing import finish, manual_rounds

OLD = """
    LIMIT = 1
    VERSION = "1.0"
    def f(x="old"): return "old", x
    def g(): return "old"
    def stay(gate):
        gate()
        return "old"
"""
FIRST = """
    LIMIT = 1
    VERSION = "1.1"
    def helper(): return "helper"
    def only_first(): return "first"
    def f(x="first"): return helper(), x
    def g(): return only_first()
    def stay(gate):
        gate()
        return helper()
"""
SECOND = """
    LIMIT = 1
    VERSION = "1.2"
    def helper(): return "helper"
    def only_second(): return "second"
    def f(x="old"): return only_second(), helper(), x
    def g(): return "old"
    def stay(gate):
        gate()
        return "old"
"""
BEFORE = (("old", "old"), "old", "1.0")


@pytest.fixture
def live(package):
    package.have({M: OLD})
    return package.load()


def cumulative(package, source, name):
    write(package.root / name, {"lp_pkg/__init__.py": "", M: source})
    return fit.bind(format.read(from_trees(package.old, package.root / name).archive(name, replaces=True)))


def says(live):
    return live.f(), live.g(), live.VERSION


def test_the_second_takes_the_place_of_the_first_and_goes_back_to_before_it(package, live):
    names = set(vars(live))
    enabled(cumulative(package, FIRST, "first"))
    assert says(live) == (("helper", "first"), "first", "1.1")
    enabled(cumulative(package, SECOND, "second"))
    assert says(live) == (("second", "helper", "old"), "old", "1.2")
    assert [patch.name for patch in lp.patches()] == ["second"]
    assert not hasattr(live, "only_first"), "nobody can call it any more"
    lp.unload_patch("first")
    assert live.f() == ("second", "helper", "old")
    disabled(lp.patches()[-1])
    assert says(live) == BEFORE
    assert set(vars(live)) == names


def test_the_first_keeps_what_it_has_if_the_replace_is_reversed(package, live):
    enabled(cumulative(package, FIRST, "first"))
    inside, go = threading.Event(), threading.Event()
    thread = threading.Thread(target=live.stay, args=(lambda: (inside.set(), go.wait(60)),))
    thread.start()
    inside.wait(60)
    with manual_rounds():
        lp.enable_patch(cumulative(package, SECOND, "second"))
        assert lp.patches()[-1].transition
        lp.write_enabled("second", 0)
        finish()
        go.set()
        thread.join()
    assert says(live) == (("helper", "first"), "first", "1.1")
    assert not hasattr(live, "only_second")
    lp.unload_patch("second")
    disabled(lp.patches()[-1])
    assert says(live) == BEFORE


def test_names_that_mean_something_else_are_refused(package, live):
    """Both worlds would share it while the transition runs."""
    enabled(cumulative(package, FIRST, "first"))
    other = SECOND.replace('return "helper"', 'return "another"')
    patch = cumulative(package, other, "second")
    assert "'helper' exists already" in refusal(lp.enable_patch, patch)
    assert says(live) == (("helper", "first"), "first", "1.1")
    disabled(lp.patches()[-1])


def test_a_patch_by_hand_replaces_an_archive(package, live):
    """It does not know what the archive has added; that goes when the archive is unloaded."""
    names = set(vars(live))
    enabled(package.bind({M: FIRST}, "first"))
    lp.enable_patch(lp.Patch("nothing", [], replace=True))
    finish()
    assert live.f() == ("old", "old")
    lp.unload_patch("first")
    patchfile.forget_unloaded()
    assert says(live) == BEFORE
    assert set(vars(live)) == names
    disabled(lp.patches()[-1])


def test_a_patch_that_was_based_on_another_takes_its_place(package, live):
    """It was built from where that one ended, and goes back to where that one began."""
    names = set(vars(live))
    first = package.archive({M: FIRST}, "first")
    enabled(fit.bind(first))
    third = FIRST.replace("return only_first()", 'return "third"').replace("1.1", "1.3")
    for folder, source in (("before", FIRST), ("after", third)):
        write(package.root / folder, {"lp_pkg/__init__.py": "", M: source})
    step = steps.trees(package.root / "before", package.root / "after")
    second = format.read(from_step(step, [first]).archive("second"))
    assert second.old == first.old
    enabled(fit.bind(second))
    assert says(live) == (("helper", "first"), "third", "1.3")
    assert [patch.name for patch in lp.patches()] == ["second"]
    disabled(lp.patches()[-1])
    assert says(live) == BEFORE
    lp.unload_patch("first")
    assert set(vars(live)) == names


def test_a_patch_of_what_another_has_added(package):
    """What the first has added is compiled as the second's old source has it, calls of imported modules too."""
    old = "import os\ndef f(): return 1"
    more = "import os\ndef f(): return g()\ndef g(): return os.getpid() and (lambda: 2)()"
    package.have({M: old})
    live = package.load()
    names = set(vars(live))
    enabled(package.bind({M: more}, "first"))
    assert live.f() == 2
    for folder, source in (("before", more), ("after", more.replace("2)()", "3)()"))):
        write(package.root / folder, {"lp_pkg/__init__.py": "", M: source})
    enabled(fit.bind(format.read(from_trees(package.root / "before", package.root / "after").archive("second"))))
    assert live.f() == 3
    disabled(lp.patches()[-1])
    assert live.f() == 2
    disabled(lp.patches()[-1])
    assert live.f() == 1
    assert set(vars(live)) == names


def test_values_that_only_the_first_has_changed_are_as_before_it(package, live):
    source = (
        "LIMIT = 1\nclass C:\n    limit = 1\ndef f(gate=lambda: None):\n    gate()\n    return LIMIT, C.limit, m()\n"
    )
    write(package.old, {M: source + "def m(): return 0\n"})
    del sys.modules["lp_pkg.m"]
    live = package.load()
    first = source.replace("1", "2") + "def m(): return 0\n"
    enabled(cumulative(package, first, "first"))
    assert live.f() == (2, 2, 0)
    patch = cumulative(package, source + "def m(): return 5\n", "second")
    held, go = threading.Event(), threading.Event()

    def gate():
        held.set()
        go.wait(60)

    seen = []
    with manual_rounds():
        thread = threading.Thread(target=lambda: seen.append(live.f(gate)))
        thread.start()
        held.wait(60)
        lp.enable_patch(patch)
        assert live.f() == (1, 1, 5)
        go.set()
        thread.join(60)
        finish()
    assert seen == [(2, 2, 0)]
    assert live.f() == (1, 1, 5)
    disabled(patch)
    lp.unload_patch("first")
    assert live.f() == (1, 1, 0)


CLASSES = """
    import enum
    class A:
        def __init__(self): pass
        def m(self): return "A"
    class B:
        def m(self): return "B"
    class E(enum.Enum):
        X = 1
    class C(A):
        @staticmethod
        def s(x): return x
        def r(self): return 1
    {}
"""
CHANGED = (
    CLASSES.replace("X = 1", "X = 1\n        Y = 2")
    .replace("class C(A)", "class C(B, A)")
    .replace("@staticmethod\n        def s(x): return x", "@classmethod\n        def s(cls, x): return cls, x")
    .replace("def r(self): return 1", "def r(self): return self.k\n        def __init__(self): self.k = []")
)


def test_what_two_patches_change_in_classes_goes_back_to_before_the_first(package):
    package.have({M: CLASSES.format("")})
    m = package.load()
    one, bases, members = m.C(), m.C.__bases__, dict(vars(m.C))

    def seen():
        return one.m(), m.C.s(1), one.r(), list(m.E.__members__), m.C.__bases__

    before = seen()
    enabled(cumulative(package, CHANGED.format(""), "first"))
    changed = seen()
    assert changed == ("B", (m.C, 1), [], ["X", "Y"], (m.B, m.A))
    enabled(cumulative(package, CHANGED.format("def later(): pass"), "second"))
    assert seen() == changed
    lp.disable_patch("second")
    finish()
    assert seen() == before
    assert m.C.__bases__ == bases
    assert dict(vars(m.C)) == members
    lp.unload_patch("second")
    lp.unload_patch("first")


def test_what_one_patch_added_the_next_may_change(package):
    """It is compiled as in the whole module: calls of imported names have code of their own."""
    head = """
        from __future__ import annotations
        import os, textwrap as t
        try:
            import json
        except ImportError:
            json = None
    """
    package.have({M: head + "\n        class C: pass\n"})
    added = """
        def f(): return os.getpid() and t.dedent("1")
        class C:
            def m(self): return json.loads("1")
    """
    first = package.archive({M: head + added}, "first")
    m = package.load()
    enabled(fit.bind(first))
    assert (m.f(), m.C().m()) == ("1", 1)
    package.have({M: head + added})
    second = package.archive({M: head + added.replace('"1"', '"2"')}, "second")
    enabled(fit.bind(second))
    assert (m.f(), m.C().m()) == ("2", 2)
    disabled(second.manifest)
    assert (m.f(), m.C().m()) == ("1", 1)
    disabled(first.manifest)
    assert not hasattr(m, "f")
