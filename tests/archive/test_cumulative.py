"""Archives that take the place of others: what both add, what only one does, and the way back."""

import threading

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.agent import patchfile
from livepatch.archive import fit, format
from livepatch.build import from_trees
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
