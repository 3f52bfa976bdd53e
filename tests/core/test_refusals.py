"""What is refused when, with which errno, and that nothing has changed then; and what one sees of a patch.

The cases are those of the kernel's documentation and of its observed behaviour.
"""

import errno
import threading

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import log, registry
from livepatch.testing import finish, manual_rounds

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    def f(gate=None):
        if gate: gate()
        return "old"
    def g(): return "old"
"""
NEW = SOURCE.replace("old", "new")


def logged():
    """What was logged since the last time."""
    lines = [line.removeprefix("livepatch: ") for line in lp.dmesg()]
    log.clear()
    return lines


def refused(number, call, *args, **kwargs):
    """The sentence of a refusal; nothing may have changed by it."""
    before = lp.patches(), registry.loaded()
    with pytest.raises(lp.LivepatchError) as caught:
        call(*args, **kwargs)
    assert caught.value.errno == number, caught.value
    assert isinstance(caught.value, OSError)
    assert [(p.name, p.enabled, p.transition) for p in lp.patches()] == [
        (p.name, p.enabled, p.transition) for p in before[0]
    ]
    assert [p.name for p in registry.loaded()] == [p.name for p in before[1]]
    sentence = str(caught.value)
    assert sentence
    assert "\n" not in sentence
    return sentence


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return kit.built("P", target, NEW, "f", "g")


ENABLE = ["enabling patch 'P'", "'P': initializing patching transition", "'P': starting patching transition"]
ENABLED = ["'P': completing patching transition", "'P': patching complete"]
DISABLE = ["'P': initializing unpatching transition", "'P': starting unpatching transition"]
DISABLED = ["'P': completing unpatching transition", "'P': unpatching complete"]
TO_UNPATCHED = ["'P': reversing transition from patching to unpatching", "'P': starting unpatching transition"]
TO_PATCHED = ["'P': reversing transition from unpatching to patching", "'P': starting patching transition"]


# -- what is refused when --------------------------------------------------------------------------------------


def test_what_an_author_can_get_wrong(module):
    target = module(SOURCE)
    good = lambda: 0
    cases = [
        (errno.EINVAL, "not a patch"),
        (errno.EINVAL, lp.Patch("", [])),
        (errno.EINVAL, lp.Patch(None, [])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("lp_target", [lp.Func("", good)])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("lp_target", [lp.Func(None, good)])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("lp_target", [lp.Func("f" * 512, good)])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("lp_target", [lp.Func("f", None)])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("lp_target", [lp.Func("f", good, old_sympos=-1)])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("lp_target", [lp.Func("f", good, suspended="no")])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object("", [lp.Func("f", good)])])),
        (errno.EINVAL, lp.Patch("P", [lp.Object(7, [lp.Func("f", good)])])),
        (errno.EINVAL, lp.Patch("P", [], consistency="none")),
        (errno.EEXIST, lp.Patch("P", [lp.Object("lp_target"), lp.Object("lp_target")])),
        (errno.EEXIST, lp.Patch("P", [lp.Object(None), lp.Object("__main__")])),
        (errno.EEXIST, lp.Patch("P", [lp.Object("lp_target", [lp.Func("f", good), lp.Func("f", good)])])),
        (errno.EEXIST, lp.Patch("P", [lp.Object("lp_target", [lp.Func("f", good), lp.Func("f", good, old_sympos=1)])])),
    ]
    for number, patch in cases:
        refused(number, lp.enable_patch, patch)
    assert target.f() == "old"


def test_an_empty_patch_is_accepted():
    lp.enable_patch(lp.Patch("P", []))
    assert logged() == ENABLE + ENABLED
    assert [p.enabled for p in lp.patches()] == [True]
    kit.take_out("P")


def test_an_object_without_functions_is_patched(module):
    module(SOURCE)
    lp.enable_patch(lp.Patch("P", [lp.Object("lp_target"), lp.Object("lp_absent")]))
    (status,) = lp.patches()
    assert [(o["name"], o["patched"]) for o in status.objects] == [("lp_target", True), ("lp_absent", False)]
    kit.take_out("P")


def test_a_name_is_loaded_until_it_is_unloaded(patch, target):
    lp.enable_patch(patch)
    assert "(enabled)" in refused(errno.EEXIST, lp.enable_patch, kit.built("P", target, NEW, "f"))
    lp.disable_patch("P")
    assert "(disabled but not unloaded)" in refused(errno.EEXIST, lp.enable_patch, patch)
    assert target.f() == "old"
    lp.unload_patch("P")
    lp.enable_patch(patch)
    assert target.f() == "new"
    kit.take_out("P")


def test_one_transition_at_a_time(patch, target, held, module):
    other = module("def h(): return 1", "lp_other")
    lp.enable_patch(kit.built("Q", other, "def h(): return 2", "h"))
    held.begin(target.f)
    lp.enable_patch(patch)
    logged()
    refused(errno.EBUSY, lp.enable_patch, kit.built("R", other, "def h(): return 3", "h"))
    refused(errno.EBUSY, lp.disable_patch, "Q")
    refused(errno.EINVAL, lp.force_transition, "Q")
    refused(errno.EINVAL, lp.write_enabled, "Q", 1)
    assert logged() == [], "nothing of it is logged"
    assert other.h() == 2
    held.release()
    finish()
    kit.take_out("P")
    kit.take_out("Q")


def test_symbol_errors_win_over_a_running_transition(patch, held, target):
    held.begin(target.f)
    lp.enable_patch(patch)
    bad = lp.Patch("R", [lp.Object("lp_target", [lp.Func("nothing", lambda: 0)])])
    refused(errno.EINVAL, lp.enable_patch, bad)
    refused(errno.EEXIST, lp.enable_patch, lp.Patch("P", []))
    held.release()
    finish()
    kit.take_out("P")


def test_writing_nothing_does_nothing(patch):
    lp.enable_patch(patch)
    lp.write_enabled("P", "")
    assert [p.enabled for p in lp.patches()] == [True]
    kit.take_out("P")


@pytest.mark.parametrize("value", ["garbage", "2", "-1", 2, -1, "o", None, 1.0, b"1", [], "x0", " ", "\n", " 0"])
def test_writing_garbage(patch, value):
    lp.enable_patch(patch)
    refused(errno.EINVAL, lp.write_enabled, "P", value)
    kit.take_out("P")


@pytest.mark.parametrize("value", [0, False, "0", "n", "No", "f", "FALSE", "off", "d", "disable", "0\n"])
def test_writing_false(patch, value):
    lp.enable_patch(patch)
    lp.write_enabled("P", value)
    assert not lp.patches()
    lp.unload_patch("P")


@pytest.mark.parametrize("value", [1, True, "1", "y", "Yes", "t", "on", "ON", "e", "enable"])
def test_writing_the_value_that_it_has(patch, value, held, target):
    lp.enable_patch(patch)
    refused(errno.EINVAL, lp.write_enabled, "P", value)
    held.begin(target.f)
    lp.disable_patch("P")
    refused(errno.EINVAL, lp.disable_patch, "P")
    lp.write_enabled("P", value)
    refused(errno.EINVAL, lp.write_enabled, "P", value)
    held.release()
    finish()
    kit.take_out("P")


def test_a_disabled_patch_is_not_there_any_more(patch):
    refused(errno.ENOENT, lp.write_enabled, "P", 1)
    lp.enable_patch(patch)
    lp.disable_patch("P")
    assert "loaded but disabled" in refused(errno.ENOENT, lp.write_enabled, "P", 1)
    refused(errno.ENOENT, lp.write_enabled, "P", 0)
    refused(errno.ENOENT, lp.disable_patch, "P")
    refused(errno.ENOENT, lp.force_transition, "P")
    lp.unload_patch("P")
    refused(errno.ENOENT, lp.unload_patch, "P")


def test_force_needs_a_transition_of_this_patch(patch):
    lp.enable_patch(patch)
    refused(errno.EINVAL, lp.force_transition, "P")
    kit.take_out("P")


def test_what_is_in_use_cannot_be_unloaded(patch, held, target):
    held.begin(target.f)
    lp.enable_patch(patch)
    refused(errno.EAGAIN, lp.unload_patch, "P")
    held.release()
    finish()
    refused(errno.EAGAIN, lp.unload_patch, "P")
    held.begin(target.f)
    lp.disable_patch("P")
    refused(errno.EAGAIN, lp.unload_patch, "P")
    held.release()
    finish()
    lp.unload_patch("P")


def test_a_forced_enable_pins_nothing(patch, held, target):
    held.begin(target.f)
    lp.enable_patch(patch)
    lp.force_transition("P")
    finish()
    assert registry.taints == ["P"]
    held.release()
    assert [p.forced for p in lp.patches()] == [False]
    kit.take_out("P")


@pytest.mark.parametrize("reversed_", [False, True])
def test_a_forced_disable_pins_the_patch_for_ever(patch, held, target, reversed_):
    if not reversed_:
        lp.enable_patch(patch)
    held.begin(target.f)
    if reversed_:
        held.begin(target.f)
        lp.enable_patch(patch)
        held.release()
    lp.disable_patch("P")
    lp.force_transition("P")
    finish()
    assert not lp.patches()
    assert [p.forced for p in registry.loaded()] == [True]
    refused(errno.EAGAIN, lp.unload_patch, "P")
    refused(errno.EEXIST, lp.enable_patch, patch)
    held.release()
    refused(errno.EAGAIN, lp.unload_patch, "P")
    assert target.f() == "old"


def test_a_task_that_was_forced_out_of_a_patch_is_still_in_its_code(patch, target, held):
    """The next patch's one-level check trusts that nobody is in there. Force says that somebody may be: a taint."""
    lp.enable_patch(patch)
    held.begin(target.f)
    lp.disable_patch("P")
    lp.force_transition("P")
    finish()
    lp.enable_patch(kit.built("Q", target, NEW.replace("new", "newer"), "f"))
    assert registry.taints == ["P"]
    assert target.f() == "newer"
    assert held.release() == "new"
    finish()
    kit.take_out("Q")


# -- what one sees ---------------------------------------------------------------------------------------------


def test_the_status_of_a_patch_through_its_life(target, held):
    patch = lp.Patch(
        "P",
        [lp.Object("lp_target", [lp.Func("f", lambda gate=None: "new"), lp.Func("g", lambda: "new", old_sympos=1)])],
        version="1.2",
        description="A fix.",
    )
    held.begin(target.f)
    lp.enable_patch(patch)
    (status,) = lp.patches()
    assert (status.enabled, status.transition, status.stack_order) == (True, True, 1)
    assert (status.version, status.description, status.replace, status.forced) == ("1.2", "A fix.", False, False)
    assert status.objects == [{"name": "lp_target", "patched": True, "functions": ["f,1", "g,1"], "immediate": []}]
    assert status.left == 1
    assert status.total >= 2
    assert status.seconds > 0
    lp.write_enabled("P", 0)
    assert [(p.enabled, p.transition) for p in lp.patches()] == [(False, True)]
    lp.write_enabled("P", 1)
    held.release()
    finish()
    (status,) = lp.patches()
    assert (status.enabled, status.transition, status.left, status.seconds) == (True, False, 0, 0.0)
    lp.disable_patch("P")
    assert lp.patches() == []
    assert [(p.name, p.enabled, p.stack_order) for p in registry.loaded()] == [("P", False, 0)]
    lp.unload_patch("P")
    assert registry.loaded() == []


def test_a_blocked_thread_is_named_with_the_function_that_it_is_in(patch, held, target):
    held.begin(target.f)
    lp.enable_patch(patch)
    (blocker,) = [task for task in lp.tasks() if task.blocking]
    assert (blocker.kind, blocker.name, blocker.patch_state) == ("thread", "a worker", 0)
    assert blocker.blocking[0].startswith("f (lp_target_old.py:")
    assert any(frame.startswith("Worker.run (") for frame in blocker.stack)
    assert {task.patch_state for task in lp.tasks() if task is not blocker} >= {1}
    held.release()
    finish()
    assert {task.patch_state for task in lp.tasks()} == {-1}
    kit.take_out("P")


def test_a_thread_that_enables_from_inside_of_a_patched_function_waits_for_itself(module):
    text = """
        def f(enable):
            enable()
            return "old", g()
        def g(): return "old"
    """
    target = module(text)
    assert target.f(lambda: lp.enable_patch(kit.built("P", target, text.replace("old", "new"), "f", "g"))) == (
        "old",
        "old",
    )
    assert [p.transition for p in lp.patches()] == [True]
    finish()
    assert target.f(lambda: None) == ("new", "new")
    kit.take_out("P")


# -- immediate, ignored, waiting -------------------------------------------------------------------------------


def test_an_immediate_function_neither_blocks_nor_waits(target, held):
    held.begin(target.f)
    lp.enable_patch(kit.built("P", target, NEW, "f", "g", immediate=True))
    assert not any(p.transition for p in lp.patches())
    assert target.f() == "new"
    assert held.release() == "old"
    kit.take_out("P")


def test_an_immediate_patch_is_one_whose_functions_are(target, held):
    patch = lp.Patch("P", kit.built("x", target, NEW, "f", "g").objects, immediate=True)
    held.begin(target.f)
    lp.enable_patch(patch)
    assert not any(p.transition for p in lp.patches())
    assert target.f() == "new"
    held.begin(target.f)
    lp.disable_patch("P")
    assert not lp.patches()
    assert (held.release(), held.release()) == ("old", "new")
    lp.unload_patch("P")


def test_an_immediate_function_among_consistent_ones(target, held, worker):
    """f is held, g is not waited for: it is new for everybody at once, the held thread included."""
    codes = kit.bodies(NEW)
    funcs = [lp.Func("f", lp.Body(codes["f", 1])), lp.Func("g", lp.Body(codes["g", 1]), immediate=True)]
    held.begin(target.f)
    lp.enable_patch(lp.Patch("P", [lp.Object("lp_target", funcs)]))
    assert [p.transition for p in lp.patches()] == [True]
    assert target.g() == "new"
    assert target.g.__code__ is codes["g", 1]
    held.release()
    finish()
    kit.take_out("P")
    assert target.g() == "old"


def test_suspended_frames_can_be_ignored(module):
    text = """
        def gen():
            yield "old"
            yield "old"
    """
    target = module(text)
    suspended = target.gen()
    next(suspended)
    lp.enable_patch(kit.built("P", target, text.replace("old", "new"), "gen", suspended="ignore"))
    assert not any(p.transition for p in lp.patches())
    assert list(suspended) == ["old"]
    assert list(target.gen()) == ["new", "new"]
    kit.take_out("P")


def test_waiting_with_a_timeout(patch, held, target):
    with manual_rounds():
        held.begin(target.f)
        lp.enable_patch(patch, timeout=0.02)
        assert [p.transition for p in lp.patches()] == [True]
        assert lp.wait("P", 0.02) is False
        assert lp.wait("Q", 0.0) is True
        held.release()
        finish()
        assert lp.wait("P", 0.0) is True
        lp.disable_patch("P", timeout=60)
        lp.unload_patch("P")


def test_two_threads_enable_at_once(module, target):
    """One after the other, or the second is refused because of the first one's transition: nothing in between."""
    targets = [module(SOURCE, f"lp_{n}") for n in range(4)]
    start, results = threading.Barrier(4), []

    def enable(n):
        start.wait()
        try:
            lp.enable_patch(kit.built(f"P{n}", targets[n], NEW, "f", "g"))
            results.append(None)
        except lp.LivepatchError as error:
            results.append(error.symbol)

    threads = [threading.Thread(target=enable, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(results) <= {None, "EBUSY"}
    finish()
    assert len(lp.patches()) == results.count(None)
    for patch in lp.patches():
        kit.take_out(patch.name)
    assert {target.f() for target in targets} == {"old"}


def test_an_object_belongs_to_one_patch(target):
    """Enabling resets what the core keeps in an object: sharing one would destroy the patch that is there."""
    patch = kit.built("P", target, NEW, "f")
    lp.enable_patch(patch)
    refused(errno.EINVAL, lp.enable_patch, lp.Patch("Q", patch.objects))
    refused(errno.EINVAL, lp.enable_patch, lp.Patch("Q", [lp.Object("lp_target", patch.objects[0].funcs)]))
    refused(errno.EINVAL, registry.check_patch, lp.Patch("Q", patch.objects))
    assert target.f() == "new"
    kit.take_out("P")
    assert target.f() == "old"
