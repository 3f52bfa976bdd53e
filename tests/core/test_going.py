"""Modules that go under a patch: unloaded, deleted, imported again, reloaded."""

import errno
import importlib
import sys
import types

import pytest
from tests.core import kit
from tests.core.test_modules import NEW, SOURCE, absent, called, logged, no_trace, on_disk

import livepatch as lp
from livepatch.core import lists
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")
__all__ = ["called", "on_disk"]

ALL = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
REVERTED = "reverting patch '{}' on unloading module 'lp_later'"
APPLIED = "applying patch '{}' to loading module 'lp_later'"


@pytest.fixture
def target(on_disk):
    on_disk("lp_later")
    return importlib.import_module("lp_later")


def told(called):
    """(patch, callback, state of the module) of those that ran since the last time."""
    found = [(who, which, state) for who, which, _, state in called]
    called.clear()
    return found


def test_a_module_is_unloaded(target, called):
    lp.enable_patch(absent("p", called=called))
    finish()
    called.clear()
    logged()
    lp.unload_module("lp_later")
    assert told(called) == [("p", "pre_unpatch", "GOING"), ("p", "post_unpatch", "GOING")]
    assert logged() == [REVERTED.format("p")]
    assert target.f() == "old", "who still holds a function holds the original"
    assert lp.patches()[0].objects[0]["patched"] is False
    no_trace()
    again = importlib.import_module("lp_later")
    assert again is not target
    assert (again.early, again.f()) == ("new", "new")
    assert told(called) == [("p", "pre_patch", "COMING"), ("p", "post_patch", "COMING")]
    kit.take_out("p")
    assert again.f() == "old"


def test_all_patches_are_reverted_oldest_first(target, called):
    for name in "ab":
        lp.enable_patch(absent(name, new=NEW.replace("new", f"new {name}"), called=called))
    called.clear()
    logged()
    lp.unload_module("lp_later")
    assert told(called) == [(name, which, "GOING") for name in "ab" for which in ALL[2:]]
    assert logged() == [REVERTED.format("a"), REVERTED.format("b")]
    assert target.f() == "old"
    for name in "ab":
        kit.take_out(name)


@pytest.mark.parametrize("goal", ["patching", "unpatching"])
def test_a_module_goes_in_the_middle_of_a_transition(target, module, held, called, goal):
    """pre_unpatch is skipped: post_patch has not run, or it has run when the patch was disabled."""
    stay = module("def stay(gate):\n    gate()\n    return 'old'", "lp_stay")
    patch = absent("p", called=called)
    patch.objects += kit.built("x", stay, "def stay(gate):\n    gate()\n    return 'new'", "stay").objects
    if goal == "unpatching":
        lp.enable_patch(patch)
        finish()
    held.begin(stay.stay)
    if goal == "unpatching":
        lp.disable_patch("p")
    else:
        lp.enable_patch(patch)
    assert lp.patches()[0].transition
    called.clear()
    logged()
    lp.unload_module("lp_later")
    assert told(called) == [("p", "post_unpatch", "GOING")]
    assert logged() == [REVERTED.format("p")]
    assert target.f() == "old"
    again = importlib.import_module("lp_later")
    assert told(called) == [("p", "pre_patch", "COMING")]
    assert again.early == again.f() == ("new" if goal == "patching" else "old"), "this thread has moved"
    held.release()
    finish()
    last = "post_patch" if goal == "patching" else "post_unpatch"
    assert told(called) == [("p", last, "LIVE")]
    if goal == "patching":
        kit.take_out("p")
    else:
        lp.unload_patch("p")
    assert again.f() == "old"


def test_somebody_is_inside_of_a_module_that_goes(target, held, called):
    """It is no longer anybody's business: the transition completes without it."""
    held.begin(target.g)
    lp.enable_patch(absent("p", called=called))
    assert lp.patches()[0].transition
    lp.unload_module("lp_later")
    finish()
    assert not lp.patches()[0].transition
    assert held.release() == "old"
    assert [which for _, which, _ in told(called)] == ["pre_patch", "post_unpatch"]
    kit.take_out("p")


def test_deletion_is_noticed_by_the_next_operation(target, called):
    lp.enable_patch(absent("p", called=called))
    called.clear()
    del sys.modules["lp_later"]
    with pytest.raises(lp.LivepatchError):
        lp.write_enabled("p", 1)
    assert told(called) == [("p", "pre_unpatch", "GOING"), ("p", "post_unpatch", "GOING")]
    assert target.f() == "old"
    kit.take_out("p")
    assert told(called) == []


def test_deletion_is_noticed_by_a_round(target, module, held, called):
    stay = module("def stay(gate):\n    gate()\n    return 'old'", "lp_stay")
    lp.enable_patch(absent("p", called=called))
    held.begin(stay.stay)
    lp.enable_patch(kit.built("q", stay, "def stay(gate):\n    gate()\n    return 'new'", "stay"))
    called.clear()
    del sys.modules["lp_later"]
    tick()
    assert [which for _, which, _ in told(called)] == ["pre_unpatch", "post_unpatch"]
    held.release()
    finish()
    kit.take_out("q")
    kit.take_out("p")


def test_deletion_is_noticed_by_the_next_import(target, called):
    lp.enable_patch(absent("p", called=called))
    called.clear()
    logged()
    del sys.modules["lp_later"]
    again = importlib.import_module("lp_later")
    assert told(called) == [
        ("p", "pre_unpatch", "GOING"),
        ("p", "post_unpatch", "GOING"),
        ("p", "pre_patch", "COMING"),
        ("p", "post_patch", "COMING"),
    ]
    assert logged() == [REVERTED.format("p"), APPLIED.format("p")]
    assert (target.f(), again.f(), again.early) == ("old", "new", "new")
    kit.take_out("p")


def test_reload_is_going_and_coming_in_one(target, called):
    early = target.f
    lp.enable_patch(absent("p", called=called))
    called.clear()
    logged()
    assert importlib.reload(target) is target
    assert told(called) == [
        ("p", "pre_unpatch", "GOING"),
        ("p", "post_unpatch", "GOING"),
        ("p", "pre_patch", "COMING"),
        ("p", "post_patch", "COMING"),
    ]
    assert logged() == [REVERTED.format("p"), APPLIED.format("p")]
    assert (target.early, target.f(), target.f is early) == ("new", "new", False)
    kit.take_out("p")
    assert target.f() == "old"


def test_a_refused_reload(target, called):
    """In the kernel a module that is refused is not there; what others hold of it has its original code."""
    lp.enable_patch(absent("p", called=called))
    lp.enable_patch(absent("q", called=called))
    refusing = {"now": False}
    for patch in lists.listed:
        if patch.name == "q":
            patch.objects[0].callbacks.pre_patch = lambda obj: -errno.ENODEV if refusing["now"] else None
    refusing["now"] = True
    with pytest.raises(ImportError, match="Patch 'q' refused 'lp_later'") as caught:
        importlib.reload(target)
    assert caught.value.errno == errno.ENODEV
    assert "lp_later" not in sys.modules
    assert target.f() == "old"
    refusing["now"] = False
    again = importlib.import_module("lp_later")
    assert again.f() == "new"
    assert not [name for name in sys.modules if "refused" in name]
    kit.take_out("q")
    kit.take_out("p")


def test_a_reload_whose_body_raises_leaves_the_module_patched(target, on_disk, called):
    """Python leaves the module where it is, so that it must not stay without the fix."""
    lp.enable_patch(absent("p", called=called))
    on_disk(
        "lp_later",
        SOURCE + "    import sys\n    if hasattr(sys.modules['lp_flag'], 'fail'): raise ValueError('its own')",
    )
    sys.modules["lp_flag"] = types.SimpleNamespace(fail=True)
    with pytest.raises(ValueError, match="its own"):
        importlib.reload(target)
    assert sys.modules["lp_later"] is target
    assert target.f() == "new"
    kit.take_out("p")
    assert target.f() == "old"


def test_a_reload_that_cannot_be_compiled_changes_nothing(target, on_disk, called):
    lp.enable_patch(absent("p", called=called))
    called.clear()
    on_disk("lp_later", "def f(:")
    with pytest.raises(SyntaxError):
        importlib.reload(target)
    assert (target.f(), called) == ("new", [])
    kit.take_out("p")


def test_reload_of_another_module_is_not_disturbed(target, on_disk, called):
    on_disk("lp_other")
    other = importlib.import_module("lp_other")
    lp.enable_patch(absent("p", called=called))
    called.clear()
    importlib.reload(other)
    assert target.f() == "new"
    assert called == []
    kit.take_out("p")


def test_what_cannot_be_unloaded(target, on_disk, module):
    for name in ("lp_pkg.__init__", "lp_pkg.sub"):
        on_disk(name)
    importlib.import_module("lp_pkg.sub")
    cases = {
        "lp_nowhere": "ENOENT",
        "__main__": "EINVAL",
        "livepatch": "EINVAL",
        "livepatch.core.lists": "EINVAL",
        "lp_pkg": "EAGAIN",
    }
    for name, symbol in cases.items():
        with pytest.raises(lp.LivepatchError) as caught:
            lp.unload_module(name)
        assert caught.value.symbol == symbol, name
    package = sys.modules["lp_pkg"]
    lp.unload_module("lp_pkg.sub")
    assert not hasattr(package, "sub")
    lp.unload_module("lp_pkg")
    no_trace("lp_pkg")


def test_a_module_that_is_being_imported_cannot_be_unloaded(on_disk):
    on_disk(
        "lp_later",
        "import livepatch as lp\ntry: lp.unload_module('lp_later')\nexcept lp.LivepatchError as e: said = e.symbol",
    )
    assert importlib.import_module("lp_later").said == "EBUSY"


def test_callbacks_cannot_unload_modules(target, called):
    patch = absent("p")
    patch.objects[0].callbacks.pre_patch = lambda obj: lp.unload_module("lp_later")
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(patch)
    assert caught.value.errno == errno.EDEADLK
    assert target.f() == "old"


def test_functions_of_before_a_reload_are_patched_like_those_of_after_it(target, on_disk):
    """Somebody has imported them from the module, and goes on calling them."""
    early = target.f
    importlib.reload(target)
    assert early is not target.f
    lp.enable_patch(absent("p"))
    assert early() == target.f() == "new"
    kit.take_out("p")
    assert early() == target.f() == "old"


def test_who_is_inside_of_a_function_of_before_a_reload_is_waited_for(target, held):
    held.begin(target.g)
    importlib.reload(target)
    lp.enable_patch(absent("p"))
    assert lp.patches()[0].transition
    assert held.release() == "old"
    finish()
    kit.take_out("p")


def test_a_patch_after_a_reload_under_another_reaches_what_that_one_redirects(target):
    """Although somebody keeps a function of before the reload alive, which looks like the same definition."""
    early = target.f
    lp.enable_patch(absent("p"))
    importlib.reload(target)
    lp.enable_patch(absent("q", new=NEW.replace("new", "newer")))
    assert (early(), target.f()) == ("old", "newer")
    kit.take_out("q")
    assert (early(), target.f()) == ("old", "new")
    kit.take_out("p")
    assert (early(), target.f()) == ("old", "old")
