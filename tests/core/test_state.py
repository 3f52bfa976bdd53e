"""System states: which patches may follow which, and how one hands its data to the next."""

import errno

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


@pytest.fixture
def target(module):
    return module("def f(gate=None):\n    if gate: gate()\n    return 'old'")


def patch(name, target, states, *, replace=False, **callbacks):
    made = kit.built(name, target, f"def f(gate=None):\n    if gate: gate()\n    return {name!r}", "f")
    made.objects[0].callbacks = lp.Callbacks(**callbacks)
    states = [lp.State(id, version) for id, version in states.items()]
    return lp.Patch(name, made.objects, replace=replace, states=states)


@pytest.mark.parametrize(
    ("states", "replace", "fits"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"s": 1}, False, False),
        ({"s": 1}, True, False),
        ({"s": 2}, False, True),
        ({"s": 2}, True, True),
        ({"s": 3}, True, True),
        ({"t": 1}, False, True),
        ({"t": 1}, True, False),
        ({"s": 2, "t": 1}, True, True),
    ],
)
def test_compatible(target, states, replace, fits):
    """Against an enabled patch with state s in version 2."""
    lp.enable_patch(patch("P", target, {"s": 2}))
    if fits:
        lp.enable_patch(patch("Q", target, states, replace=replace))
        assert target.f() == "Q"
        if replace:
            lp.unload_patch("P")
        kit.take_out("Q")
    else:
        with pytest.raises(lp.LivepatchError) as caught:
            lp.enable_patch(patch("Q", target, states, replace=replace))
        assert caught.value.errno == errno.EINVAL
        sentence = "livepatch: Livepatch patch (Q) is not compatible with the already installed livepatches."
        assert lp.dmesg()[-1] == sentence
        assert "state 's' in version 2" in str(caught.value)
        assert target.f() == "P"
    if lp.patches():
        kit.take_out("P")


def test_incompatibility_comes_before_missing_symbols_and_before_busy(target, held):
    held.begin(target.f)
    lp.enable_patch(patch("P", target, {"s": 2}))
    wrong = patch("Q", target, {"s": 1})
    wrong.objects[0].funcs[0].old_name = "missing"
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(wrong)
    assert "not compatible" in str(caught.value)
    missing = patch("Q", target, {"s": 2})
    missing.objects[0].funcs[0].old_name = "missing"
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(missing)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(patch("Q", target, {"s": 2}))
    assert caught.value.errno == errno.EBUSY
    held.release()
    finish()
    kit.take_out("P")


def test_get_state(target):
    made = patch("P", target, {"s": 2, 7: 1})
    assert (lp.get_state(made, "s").version, lp.get_state(made, 7).version, lp.get_state(made, "t")) == (2, 1, None)


def test_data_is_handed_over_and_back(target, held):
    """As authors are told to do it: pre_patch allocates or finds, post_unpatch frees unless somebody owns it."""
    log = []

    def callbacks(name):
        def pre_patch(obj):
            previous = lp.get_prev_state("s")
            mine = lp.get_state(by_name[name], "s")
            mine.data = previous.data if previous is not None else {"owner": name}
            log.append((name, "pre_patch", previous is not None))

        def post_unpatch(obj):
            log.append((name, "post_unpatch", lp.get_prev_state("s") is not None))

        return {"pre_patch": pre_patch, "post_unpatch": post_unpatch}

    by_name = {name: patch(name, target, {"s": 1}, replace=name != "P", **callbacks(name)) for name in "PQ"}
    lp.enable_patch(by_name["P"])
    finish()
    held.begin(target.f)
    lp.enable_patch(by_name["Q"])
    lp.write_enabled("Q", 0)
    held.release()
    finish()
    lp.unload_patch("Q")
    assert log == [("P", "pre_patch", False), ("Q", "pre_patch", True), ("Q", "post_unpatch", True)]
    lp.enable_patch(by_name["Q"])
    finish()
    assert lp.get_state(by_name["Q"], "s").data == {"owner": "P"}
    log.clear()
    lp.unload_patch("P")
    kit.take_out("Q")
    assert log == [("Q", "post_unpatch", False)]


def test_get_prev_state_outside_of_a_transition(target):
    lp.enable_patch(patch("P", target, {"s": 1}))
    assert lp.get_prev_state("s") is None
    assert "get_prev_state()" in lp.dmesg()[-1]
    kit.take_out("P")


def test_the_newest_of_several_previous_states(target):
    seen = []
    for name, version in (("P", 1), ("Q", 2)):
        lp.enable_patch(patch(name, target, {"s": version}))
    lp.enable_patch(patch("R", target, {"s": 3}, pre_patch=lambda obj: seen.append(lp.get_prev_state("s").version)))
    assert seen == [2]
    for name in "RQP":
        kit.take_out(name)


@pytest.mark.parametrize("states", [["s"], [lp.State("s", "1")]])
def test_what_are_no_states(target, states):
    made = patch("P", target, {})
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(lp.Patch("P", made.objects, states=states))
    assert caught.value.errno == errno.EINVAL
