"""Atomic replace, and several patches at a time: what is in front decides, whatever goes first."""

import errno
import importlib
import itertools
import sys
import types

import pytest
from tests.core import kit
from tests.core.test_modules import on_disk

import livepatch as lp
from livepatch.core import lists, redirect
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")
__all__ = ["on_disk"]

SOURCE = """
    def a(gate=None):
        if gate: gate()
        return "old a"
    def b(): return "old b"
    def c(): return "old c"
    def make(gate=None):
        def inner(): return "old inner"
        if gate: gate()
        return inner
"""


@pytest.fixture
def target(module):
    return module(SOURCE)


def version(name, target, *functions, word=None, replace=False, called=None, **options):
    """A patch that says its own name in these functions."""

    def callback(which):
        return lambda obj: called.append((name, which, obj.name))

    which = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
    callbacks = lp.Callbacks(**{each: callback(each) for each in which}) if called is not None else None
    new = SOURCE.replace('"old', f'"{word or name}')
    patch = kit.built(name, target, new, *functions, callbacks=callbacks)
    return lp.Patch(name, patch.objects, replace=replace, **options)


def says(target):
    return [fn().partition(" ")[0] for fn in (target.a, target.b, target.c, target.make())]


def listed():
    return [(patch.name, patch.stack_order) for patch in lp.patches()]


@pytest.mark.parametrize("order", list(itertools.permutations("PQR")))
def test_patches_are_disabled_in_any_order(target, order):
    """Each of three patches has a function of its own and one that all share; what is left in front decides."""
    for name, function in zip("PQR", "abc", strict=True):
        lp.enable_patch(version(name, target, function, "make.<locals>.inner"))
    assert says(target) == ["P", "Q", "R", "R"]
    left = list("PQR")
    for name in order:
        kit.take_out(name)
        left.remove(name)
        own = [name if name in left else "old" for name in "PQR"]
        assert says(target) == [*own, left[-1] if left else "old"]
        assert listed() == [(name, at) for at, name in enumerate(left, 1)]


def test_one_transition_reverts_one_function_and_upgrades_another(target, held):
    lp.enable_patch(version("P", target, "a", "b"))
    held.begin(target.a)
    lp.enable_patch(version("Q", target, "b", "c", replace=True))
    assert [(p.name, p.enabled, p.transition) for p in lp.patches()] == [("P", True, False), ("Q", True, True)]
    assert says(target) == ["old", "Q", "Q", "old"], "this thread has moved to the new set"
    with pytest.raises(lp.LivepatchError) as caught:
        lp.disable_patch("P")
    assert caught.value.errno == errno.EBUSY
    assert held.release() == "P a"
    finish()
    assert [(p.name, p.enabled) for p in lp.patches()] == [("Q", True)]
    assert says(target) == ["old", "Q", "Q", "old"]
    assert len(redirect.redirections) == 2
    lp.unload_patch("P")
    kit.take_out("Q")
    assert says(target) == ["old"] * 4


def test_whoever_has_not_moved_goes_on_with_all_of_the_replaced_patches(target, module, held):
    """Not with the originals: one inside of b sees a, b and c as the older patches left them."""
    stay = module("def stay(then, gate):\n    gate()\n    return then()", "lp_stay")
    new = "def stay(then, gate):\n    gate()\n    return then()\n'new'"
    lp.enable_patch(version("P", target, "a", "make.<locals>.inner"))
    lp.enable_patch(version("Q", target, "b"))
    patch = version("R", target, "c", replace=True)
    patch.objects += kit.built("x", stay, new, "stay").objects
    held.begin(stay.stay, lambda: says(target))
    lp.enable_patch(patch)
    assert says(target) == ["old", "old", "R", "old"]
    assert held.release() == ["P", "Q", "old", "P"]
    finish()
    assert listed() == [("R", 1)]
    assert says(target) == ["old", "old", "R", "old"]
    for name in "PQ":
        lp.unload_patch(name)
    kit.take_out("R")


def test_the_way_back_checks_for_the_originals(target, held):
    """A nop's version is the original: who entered that in the new world has to leave it when this is reversed."""
    lp.enable_patch(version("P", target, "a", "b"))
    gate = kit.Gate()
    held.begin(target.a)
    lp.enable_patch(version("Q", target, "b", replace=True))
    inside = kit.Worker()
    inside.do(lambda: None)
    entered = inside.begin(target.a, gate)
    gate.arrived()
    lp.write_enabled("Q", 0)
    held.release()
    assert lp.patches()[-1].transition
    finish_blocked = kit.blocking()
    assert finish_blocked in (["a"], [])
    gate.open()
    assert entered.result(kit.PATIENCE) == "old a"
    inside.close()
    finish()
    assert listed() == [("P", 1)]
    assert says(target) == ["P", "P", "old", "old"]
    lp.unload_patch("Q")
    kit.take_out("P")


def test_replaced_patches_run_no_callbacks_and_are_still_listed_in_post_patch(target):
    called = []
    seen = {}
    lp.enable_patch(version("P", target, "a", called=called, states=[lp.State("s", 1, data="P's")]))
    finish()
    patch = version("Q", target, "b", replace=True, called=called, states=[lp.State("s", 1)])

    def post_patch(obj):
        seen["listed"] = [p.name for p in lp.patches()]
        seen["enabled"] = [p.enabled for p in lp.patches()]
        seen["data"] = lp.get_prev_state("s").data

    patch.objects[0].callbacks.post_patch = post_patch
    called.clear()
    lp.enable_patch(patch)
    finish()
    assert called == [("Q", "pre_patch", "lp_target")]
    assert seen == {"listed": ["P", "Q"], "enabled": [False, True], "data": "P's"}
    assert listed() == [("Q", 1)]
    lp.unload_patch("P")
    kit.take_out("Q")


def test_dynamic_objects_and_nops_are_seen_only_during_the_transition(target, module, held):
    other = module(SOURCE, "lp_other")
    lp.enable_patch(version("P", target, "a"))
    lp.enable_patch(version("Q", other, "a", "b"))
    held.begin(other.a)
    lp.enable_patch(version("R", target, "b", replace=True))
    shown = {obj["name"]: (obj["patched"], sorted(obj["functions"])) for obj in lp.patches()[-1].objects}
    assert shown == {"lp_target": (True, ["a,1", "b,1"]), "lp_other": (True, ["a,1", "b,1"])}
    assert lp.tree.listdir("R/lp_other") == ["a,1", "b,1", "patched"]
    held.release()
    finish()
    assert [(obj["name"], obj["functions"]) for obj in lp.patches()[0].objects] == [("lp_target", ["b,1"])]
    assert (says(target), says(other)) == (["old", "R", "old", "old"], ["old"] * 4)
    for name in "PQ":
        lp.unload_patch(name)
    kit.take_out("R")
    assert not redirect.redirections


@pytest.mark.parametrize("goal", ["replaced", "reversed"])
def test_a_module_comes_while_it_is_being_replaced(target, on_disk, held, goal):
    """It gets the patches that are being replaced, the nops, and whatever this thread is to see of them."""
    on_disk("lp_later", SOURCE + "    early = a(), b(), make()()")
    later = types.SimpleNamespace(__name__="lp_later")
    patch = version("P", target, "a")
    patch.objects += version("x", later, "a", "make.<locals>.inner", word="P").objects
    lp.enable_patch(patch)
    held.begin(target.a)
    lp.enable_patch(version("Q", target, "b", replace=True))
    came = importlib.import_module("lp_later")
    assert came.early == ("old a", "old b", "old inner"), "Q takes it back for those who have moved"
    assert says(came) == ["old"] * 4
    if goal == "reversed":
        lp.write_enabled("Q", 0)
    held.release()
    finish()
    assert says(came) == (["old"] * 4 if goal == "replaced" else ["P", "old", "old", "P"])
    assert says(target) == (["old", "Q", "old", "old"] if goal == "replaced" else ["P", "old", "old", "old"])
    gone, left = ("P", "Q") if goal == "replaced" else ("Q", "P")
    lp.unload_patch(gone)
    kit.take_out(left)
    assert says(came) == ["old"] * 4


def test_a_failed_replace_changes_nothing(target):
    lp.enable_patch(version("P", target, "a"))
    patch = version("Q", target, "b", replace=True)
    patch.objects[0].callbacks.pre_patch = lambda obj: -errno.ENODEV
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(patch)
    assert caught.value.errno == errno.ENODEV
    assert listed() == [("P", 1)]
    assert says(target) == ["P", "old", "old", "old"]
    patch.objects[0].callbacks.pre_patch = None
    lp.enable_patch(patch)
    assert says(target) == ["old", "Q", "old", "old"], "the same patch, once more"
    lp.unload_patch("P")
    kit.take_out("Q")


def test_a_closure_is_replaced_reverted_and_replaced(target):
    """The functions around it, which the patches derive, go with it."""
    before = target.make()
    seen = []
    for name, functions in (("P", ["make.<locals>.inner"]), ("Q", ["a"]), ("R", ["make.<locals>.inner", "b"])):
        lp.enable_patch(version(name, target, *functions, replace=True))
        finish()
        seen.append((before(), target.make()(), target.a(), target.b()))
    assert seen == [
        ("P inner", "P inner", "old a", "old b"),
        ("old inner", "old inner", "Q a", "old b"),
        ("R inner", "R inner", "old a", "R b"),
    ]
    assert listed() == [("R", 1)]
    for name in "PQ":
        lp.unload_patch(name)
    kit.take_out("R")
    assert before() == target.make()() == "old inner"


def test_force_pins_what_is_being_replaced(target, held):
    for name in "PQ":
        lp.enable_patch(version(name, target, "a"))
    held.begin(target.a)
    lp.enable_patch(version("R", target, "b", replace=True))
    lp.force_transition("R")
    finish()
    held.release()
    for name in "PQ":
        with pytest.raises(lp.LivepatchError) as caught:
            lp.unload_patch(name)
        assert caught.value.errno == errno.EAGAIN
    kit.take_out("R")
    lists.loaded_patches.clear()


def test_everything_is_replaced_by_nothing(target):
    lp.enable_patch(version("P", target, "a"))
    lp.enable_patch(version("Q", target, "b"))
    lp.enable_patch(lp.Patch("empty", [], replace=True))
    finish()
    assert listed() == [("empty", 1)]
    assert says(target) == ["old"] * 4
    assert not redirect.redirections
    for name in "PQ":
        lp.unload_patch(name)
    kit.take_out("empty")


def test_the_same_function_is_found_whether_its_position_is_0_or_1(target):
    patch = version("P", target, ("a", 1))
    lp.enable_patch(patch)
    lp.enable_patch(version("Q", target, "a", replace=True))
    assert says(target)[0] == "Q"
    lp.unload_patch("P")
    kit.take_out("Q")


def test_what_was_imported_later_is_replaced_too(target, on_disk):
    on_disk("lp_later", SOURCE)
    later = types.SimpleNamespace(__name__="lp_later")
    lp.enable_patch(version("P", later, "a"))
    lp.enable_patch(version("Q", target, "b", replace=True))
    assert says(importlib.import_module("lp_later")) == ["old"] * 4
    assert sys.modules["lp_later"].a.__code__.co_filename.endswith("lp_later.py")
    lp.unload_patch("P")
    kit.take_out("Q")
