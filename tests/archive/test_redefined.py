"""Functions that need not be alive: a version in C, or another one, took their name when the module was imported."""

import sys
import threading

import pytest
from tests.archive.kit import M, disabled, enabled, namespace
from tests.build.kit import refusals

import livepatch as lp
from livepatch.testing import finish, manual_rounds, tick

OLD = """
    def count(items): return "slow"
    def other(): return "old"
    try:
        from {} import {} as count
    except ImportError:
        pass
"""
NEW = OLD.replace('"slow"', '"slower"').replace('"old"', '"new"')


def test_a_function_whose_name_a_faster_version_has_taken(package):
    package.have({M: OLD.format("builtins", "len")})
    live = package.load()
    patch = package.bind({M: NEW.format("builtins", "len")})
    enabled(patch)
    assert (live.count, live.other()) == (len, "new")
    disabled(patch)
    assert (live.count, live.other()) == (len, "old")


def test_it_is_changed_where_there_is_no_faster_version(package):
    package.have({M: OLD.format("no_such_module", "len")})
    live = package.load()
    patch = package.bind({M: NEW.format("no_such_module", "len")})
    enabled(patch)
    assert (live.count(()), live.other()) == ("slower", "new")
    disabled(patch)
    assert (live.count(()), live.other()) == ("slow", "old")


VARIANTS = """
    import sys
    if sys.platform == {where!r}:
        def f(gate=int): return "one", gate()
        class C:
            if 1 < 2:
                def m(self): return "m", 1
            else:
                def m(self): return "m", 2
    else:
        def f(gate=int): return "two", gate()
        class C:
            def m(self): return "m", 1
    def g(): return "g", f()
"""
SINGLE = """
    import sys
    def f(gate=int): return "new", gate()
    if sys.platform == {where!r}:
        class C:
            def m(self): return "m", 3
    else:
        class C:
            def m(self): return "m", 3
    def g(): return "G", f()
"""


@pytest.mark.parametrize("where", [sys.platform, "elsewhere"])
def test_one_function_takes_the_place_of_two_of_which_one_is_alive(package, where):
    package.have({M: VARIANTS.format(where=where)})
    live = package.load()
    f, held, before = live.f, live.C().m, namespace(live)
    was = live.g()
    inside, go, found = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(f(lambda: (inside.set(), go.wait(60))[1])))
    thread.start()
    inside.wait(60)
    with manual_rounds():
        patch = package.bind({M: SINGLE.format(where=where)})
        lp.enable_patch(patch)
        tick()
        assert (live.g(), live.f is f) == (("G", ("new", 0)), True)
        go.set()
        thread.join(60)
        finish()
    assert found == [(was[1][0], True)]
    assert (f(), held()) == (("new", 0), ("m", 3))
    disabled(patch)
    assert (live.g(), namespace(live), held()) == (was, before, ("m", 1))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("if a:\n    def f(): return 1", "def f(): return 2"),
        ("if a:\n    def f(): return 1\nelif b:\n    def f(): return 2", "def f(): return 3"),
        ("if a:\n    def f(): return 1\nelse:\n    f = 2", "def f(): return 3"),
        ("def f(): return 1", "if a:\n    def f(): return 2\nelse:\n    def f(): return 3"),
    ],
)
def test_where_perhaps_none_is_alive_it_is_refused(old, new):
    assert refusals("import sys\n" + old, "import sys\n" + new)
