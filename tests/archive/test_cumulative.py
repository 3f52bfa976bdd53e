"""Archives that take the place of others: what both add, what only one does, and the way back."""

import pytest
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.testing import finish

OLD = """
    LIMIT = 1
    VERSION = "1.0"
    def f(x="old"): return "old", x
    def g(): return "old"
"""
FIRST = """
    LIMIT = 1
    VERSION = "1.1"
    def helper(): return "helper"
    def only_first(): return "first"
    def f(x="first"): return helper(), x
    def g(): return only_first()
"""
SECOND = """
    LIMIT = 1
    VERSION = "1.2"
    def helper(): return "helper"
    def only_second(): return "second"
    def f(x="old"): return only_second(), helper(), x
    def g(): return "old"
"""
BEFORE = (("old", "old"), "old", "1.0")


@pytest.fixture
def live(package):
    package.have({M: OLD})
    return package.live("lp_pkg.m")


def says(live):
    return live.f(), live.g(), live.VERSION


def test_the_second_takes_the_place_of_the_first_and_goes_back_to_before_it(package, live):
    names = set(vars(live))
    enabled(package.bind({M: FIRST}, "first", replace=True))
    assert says(live) == (("helper", "first"), "first", "1.1")
    enabled(package.bind({M: SECOND}, "second", replace=True))
    assert says(live) == (("second", "helper", "old"), "old", "1.2")
    assert [patch.name for patch in lp.patches()] == ["second"]
    assert not hasattr(live, "only_first"), "nobody can call it any more"
    lp.unload_patch("first")
    assert live.f() == ("second", "helper", "old")
    disabled(lp.patches()[0])
    assert says(live) == BEFORE
    assert set(vars(live)) == names


def test_the_first_keeps_what_it_has_if_the_replace_is_reversed(package, live, held_by):
    enabled(package.bind({M: FIRST}, "first", replace=True))
    with held_by(live.f):
        lp.enable_patch(package.bind({M: SECOND}, "second", replace=True))
        assert lp.patches()[-1].transition
        lp.write_enabled("second", 0)
        finish()
    assert says(live) == (("helper", "first"), "first", "1.1")
    assert not hasattr(live, "only_second")
    lp.unload_patch("second")
    disabled(lp.patches()[0])
    assert says(live) == BEFORE


def test_names_that_mean_something_else_are_refused(package, live):
    """Both worlds would share it while the transition runs."""
    enabled(package.bind({M: FIRST}, "first", replace=True))
    other = SECOND.replace('return "helper"', 'return "another"')
    patch = package.bind({M: other}, "second", replace=True)
    assert "'helper' exists already" in refusal(lp.enable_patch, patch)
    assert says(live) == (("helper", "first"), "first", "1.1")
    disabled(lp.patches()[0])


def test_a_patch_by_hand_replaces_an_archive(package, live):
    enabled(package.bind({M: FIRST}, "first"))
    lp.enable_patch(lp.Patch("nothing", [], replace=True))
    finish()
    assert live.f() == ("old", "old")
    lp.unload_patch("first")
    disabled(lp.patches()[0])
