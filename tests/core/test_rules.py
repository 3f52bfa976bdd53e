"""What is easily got wrong: the twenty-five rules at the end of the kernel's semantics, a test each.

Each would fail on the implementation that comes to mind first. Rule 24, about shadow variables, is in `test_shadow.py`.
"""

import errno
import importlib
import sys
import threading
import types

import pytest
from tests.core import kit
from tests.core.test_lifecycle import logged, refused
from tests.core.test_modules import absent, called, on_disk

import livepatch as lp
from livepatch.core import lists, redirect, registry
from livepatch.core.log import listeners
from livepatch.core.transition import Transition
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")
__all__ = ["called", "on_disk"]

SOURCE = """
    def f(gate=None):
        if gate: gate()
        return "old"
    def g(gate=None):
        if gate: gate()
        return "old"
    def both(gate):
        first = f()
        gate()
        return first, g()
"""


@pytest.fixture
def target(module):
    return module(SOURCE)


def patch(name, target, *functions, **options):
    """A patch under which these functions say its name."""
    made = kit.built(name, target, SOURCE.replace('"old"', repr(name)), *functions or ("f", "g"))
    return lp.Patch(name, made.objects, **options)


def callbacks(patch, log, **refuse):
    """Every object of the patch writes down (callback, object, state); `refuse`: what pre_patch returns, by object."""

    def callback(which):
        def call(obj):
            log.append((which, obj.kernel_name, obj.module_state))
            return refuse.get(obj.name) if which == "pre_patch" else None

        return call

    names = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
    for obj in patch.objects:
        obj.callbacks = lp.Callbacks(**{which: callback(which) for which in names})
    return patch


def three(module, name="P"):
    """A patch for three modules that are there."""
    objects = [patch("x", module(SOURCE, f"lp_{letter}")).objects[0] for letter in "abc"]
    return lp.Patch(name, objects)


def left():
    return lp.patches()[0].left


def test_rule_01_a_task_in_the_target_state_is_never_stack_checked(target, held):
    held.begin(target.f)
    lp.enable_patch(patch("P", target))
    tick()
    assert lp.patches()[0].transition
    lp.write_enabled("P", 0)
    tick()
    assert lp.patches() == [], "it sits in the old function, and that is where it is to be"
    assert held.release() == "old"
    lp.unload_patch("P")


def test_rule_02_one_level_down_is_checked_and_on_the_way_back_the_patchs_own(target, held):
    """A thread two levels down (there by force) holds nobody; one in the version directly below does."""
    held.begin(target.f)
    lp.enable_patch(patch("P", target))
    lp.force_transition("P")
    finish()
    lp.enable_patch(patch("Q", target))
    finish()
    held.begin(target.f)
    lp.enable_patch(patch("R", target))
    assert left() == 0
    assert lp.patches()[-1].left == 1
    assert held.release() == "old"
    tick()
    assert lp.patches()[-1].transition
    assert held.release() == "Q"
    finish()
    held.begin(target.f)
    lp.disable_patch("R")
    tick()
    assert lp.patches()[-1].transition, "now it is R's own function"
    assert held.release() == "R"
    finish()
    lp.unload_patch("R")
    for name in "QP":
        kit.take_out(name)


def test_rule_02_a_nop_on_the_way_back_checks_the_original(target, held):
    lp.enable_patch(patch("P", target, "f"))
    held.begin(target.f)
    lp.enable_patch(patch("Q", target, "g", replace=True))
    gate = kit.Gate()
    thread = kit.Worker()
    inside = thread.begin(target.f, gate)  # it moves when it enters, and runs the original through the nop
    gate.arrived()
    lp.write_enabled("Q", 0)
    held.release()
    tick()
    assert lp.patches()[-1].transition
    assert kit.blocking() == ["f"]
    gate.open()
    assert inside.result(kit.PATIENCE) == "old"
    thread.close()
    finish()
    lp.unload_patch("Q")
    kit.take_out("P")


def test_rule_03_enabled_is_the_goal_and_transition_says_whether_it_is_reached(target, held):
    held.begin(target.f)
    lp.enable_patch(patch("P", target))
    seen = [(p.enabled, p.transition) for p in lp.patches()]
    lp.write_enabled("P", 0)
    seen += [(p.enabled, p.transition) for p in lp.patches()]
    lp.write_enabled("P", 1)
    seen += [(p.enabled, p.transition) for p in lp.patches()]
    held.release()
    finish()
    assert seen == [(True, True), (False, True), (True, True)]
    assert [(p.enabled, p.transition) for p in lp.patches()] == [(True, False)]
    kit.take_out("P")


def test_rule_04_what_writing_enabled_does(target, held):
    lp.enable_patch(patch("P", target))
    refused(errno.EINVAL, lp.write_enabled, "P", "1")
    held.begin(target.f)
    lp.write_enabled("P", "0")
    refused(errno.EINVAL, lp.write_enabled, "P", "0")
    for value in "1010":
        lp.write_enabled("P", value)
        refused(errno.EINVAL, lp.write_enabled, "P", value)
    held.release()
    finish()
    refused(errno.ENOENT, lp.write_enabled, "P", "1")
    lp.unload_patch("P")


def test_rule_05_there_is_no_re_enabling(target):
    made = patch("P", target)
    lp.enable_patch(made)
    lp.disable_patch("P")
    finish()
    assert lp.tree.listdir("") == []
    refused(errno.EEXIST, lp.enable_patch, made)
    lp.unload_patch("P")
    lp.enable_patch(made)
    kit.take_out("P")


def test_rule_06_no_lifo_and_only_the_front_entrys_flag_counts(target, held):
    """While an older patch is being disabled, calls of what a newer one has in front are not affected, moved or not."""
    lp.enable_patch(patch("P", target))
    lp.enable_patch(patch("Q", target, "f"))
    held.begin(target.g)
    lp.disable_patch("P")
    assert lp.patches()[0].transition
    assert (target.f(), target.g()) == ("Q", "old")
    assert target.f.__code__ is lists.listed[1].objects[0].funcs[0].new_func.code, "not even a trampoline"
    assert held.release() == "P"
    finish()
    assert (target.f(), target.g()) == ("Q", "old")
    lp.unload_patch("P")
    kit.take_out("Q")


def test_rule_07_busy_is_found_late_and_not_logged(target, held):
    held.begin(target.f)
    lp.enable_patch(patch("P", target, states=[lp.State("s", 2)]))
    logged()
    refused(errno.EBUSY, lp.enable_patch, patch("Q", target, states=[lp.State("s", 2)]))
    assert logged() == []
    missing = patch("Q", target)
    missing.objects[0].funcs[0].old_name = "missing"
    refused(errno.EINVAL, lp.enable_patch, missing)
    assert logged() == ["symbol 'missing' not found in symbol table"]
    refused(errno.EINVAL, lp.enable_patch, patch("Q", target, states=[lp.State("s", 1)]))
    held.release()
    finish()
    kit.take_out("P")


def test_rule_08_a_module_that_comes_in_the_middle_is_right_for_every_task(target, on_disk, held):
    on_disk("lp_later", SOURCE)
    made = patch("P", target)
    made.objects += patch("P", types.SimpleNamespace(__name__="lp_later"), "f", "g", "both").objects
    held.begin(lambda gate: (target.f(gate), importlib.import_module("lp_later").both(lambda: None)))
    lp.enable_patch(made)
    assert all(func.transition for obj in made.objects for func in obj.funcs), "also those of the absent module"
    came = importlib.import_module("lp_later")
    assert came.f() == "P"
    assert held.release() == ("old", ("old", "old")), "it had not moved when it entered"
    finish()
    kit.take_out("P")


def test_rule_09_a_module_that_comes_while_its_patch_is_being_disabled(target, on_disk, held):
    on_disk("lp_later", SOURCE)
    log = []
    made = patch("P", target)
    made.objects += callbacks(patch("P", types.SimpleNamespace(__name__="lp_later")), log).objects
    lp.enable_patch(made)
    held.begin(target.f)
    lp.disable_patch("P")
    importlib.import_module("lp_later")
    held.release()
    finish()
    assert log == [("pre_patch", "lp_later", "COMING"), ("post_unpatch", "lp_later", "LIVE")]
    lp.unload_patch("P")


def test_rule_10_list_order_always_and_redirection_alternates_with_pre_patch(module):
    log = []
    made = callbacks(three(module), log)
    names = ["lp_a", "lp_b", "lp_c"]
    reached = []
    for obj in made.objects:
        write_down = obj.callbacks.pre_patch

        def pre_patch(obj, write_down=write_down):
            reached.append([sys.modules[name].f.__code__.co_filename for name in names].count("<livepatch>"))
            return write_down(obj)

        obj.callbacks.pre_patch = pre_patch
    lp.enable_patch(made)
    finish()
    assert reached == [0, 1, 2], "how many are redirected when each pre_patch runs"
    lp.disable_patch("P")
    finish()
    for which in ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch"):
        assert [obj for called, obj, _ in log if called == which] == names
    lp.unload_patch("P")


def test_rule_11_pre_unpatch_is_skipped_in_reversals_and_for_what_goes_in_a_transition(target, module, held):
    log = []
    module(SOURCE, "lp_gone")
    made = patch("P", target)
    made.objects += patch("P", sys.modules["lp_gone"]).objects
    held.begin(target.f)
    lp.enable_patch(callbacks(made, log))
    log.clear()
    lp.unload_module("lp_gone")
    assert log == [("post_unpatch", "lp_gone", "GOING")]
    lp.write_enabled("P", 0)
    finish()
    assert log[1:] == [("post_unpatch", "lp_target", "LIVE")]
    held.release()
    lp.unload_patch("P")


def test_rule_12_reversing_a_disable_runs_post_patch_again_without_pre_patch(target, held):
    log = []
    lp.enable_patch(callbacks(patch("P", target), log))
    held.begin(target.f)
    lp.disable_patch("P")
    lp.write_enabled("P", 1)
    finish()
    held.release()
    assert [which for which, *_ in log] == ["pre_patch", "post_patch", "pre_unpatch", "post_patch"]
    kit.take_out("P")


def test_rule_13_a_failed_pre_patch_cancels_through_completion(module):
    log = []
    refused(errno.ENODEV, lp.enable_patch, callbacks(three(module), log, lp_b=-errno.ENODEV))
    assert [(which, obj) for which, obj, _ in log] == [
        ("pre_patch", "lp_a"),
        ("pre_patch", "lp_b"),
        ("post_unpatch", "lp_a"),
    ]
    assert logged()[-4:] == [
        "failed to enable patch 'P'",
        "'P': canceling patching transition, going to unpatch",
        "'P': completing unpatching transition",
        "'P': unpatching complete",
    ]
    assert not redirect.redirections


def test_rule_14_a_refused_module_is_rolled_back_and_the_refusing_patch_stays(on_disk):
    on_disk("lp_later")
    log = []
    lp.enable_patch(callbacks(absent("P"), log))
    lp.enable_patch(callbacks(absent("Q"), log, lp_later=-errno.ENODEV))
    with pytest.raises(ImportError) as caught:
        importlib.import_module("lp_later")
    assert caught.value.errno == errno.ENODEV
    assert [which for which, *_ in log] == ["pre_patch", "post_patch", "pre_patch", "pre_unpatch", "post_unpatch"]
    assert [(p.name, p.enabled) for p in lp.patches()] == [("P", True), ("Q", True)]
    assert "lp_later" not in sys.modules
    for name in "PQ":
        kit.take_out(name)


def test_rule_15_coming_is_before_the_body_and_a_failed_body_is_going(on_disk):
    log = sys.modules["lp_log"] = []
    on_disk("lp_later", "import sys\nsys.modules['lp_log'].append('body')\ndef f(): return 'old'\nraise ValueError")
    lp.enable_patch(callbacks(absent("P", functions=("f",)), log))
    with pytest.raises(ValueError):
        importlib.import_module("lp_later")
    assert log == [
        ("pre_patch", "lp_later", "COMING"),
        ("post_patch", "lp_later", "COMING"),
        "body",
        ("pre_unpatch", "lp_later", "GOING"),
        ("post_unpatch", "lp_later", "GOING"),
    ]
    kit.take_out("P")


def test_rule_16_replaced_patches_run_no_callbacks_and_go_after_the_notice(target):
    log, listed = [], []

    def listener(now, sentence):
        listed.append((sentence, [p.name for p in lp.patches()]))

    lp.enable_patch(callbacks(patch("P", target, states=[lp.State("s", 1)]), log))
    log.clear()
    made = callbacks(patch("Q", target, replace=True, states=[lp.State("s", 1)]), log)
    made.objects[0].callbacks.post_patch = lambda obj: log.append(lp.get_prev_state("s").version)
    listeners.append(listener)
    try:
        lp.enable_patch(made)
    finally:
        listeners.remove(listener)
    assert log == [("pre_patch", "lp_target", "LIVE"), 1]
    assert listed[-1] == ("'Q': patching complete", ["P", "Q"])
    assert [p.name for p in lp.patches()] == ["Q"]
    lp.unload_patch("P")
    kit.take_out("Q")


def test_rule_17_nops_cover_everything_that_is_listed(target, module, on_disk, held):
    """Of all patches, whatever the position was called, in modules that it does not name, and in absent ones."""
    other = module(SOURCE, "lp_other")
    on_disk("lp_later", SOURCE)
    lp.enable_patch(patch("P", target, ("f", 1)))
    lp.enable_patch(patch("Q", target, "f", "g"))
    lp.enable_patch(patch("R", other))
    lp.enable_patch(patch("S", types.SimpleNamespace(__name__="lp_later"), "f"))
    held.begin(other.f)
    made = patch("T", target, "f", replace=True)
    lp.enable_patch(made)
    assert [(obj.name, [nop.key for nop in obj.nops], obj.dynamic) for obj in made.all_objects()] == [
        ("lp_target", [("g", 1)], False),
        ("lp_other", [("f", 1), ("g", 1)], True),
        ("lp_later", [("f", 1)], True),
    ]
    assert (target.f(), target.g(), other.f()) == ("T", "old", "old")
    held.release()
    finish()
    assert made.dynamic == made.objects[0].nops == []
    assert importlib.import_module("lp_later").f() == "old"
    for name in "PQRS":
        lp.unload_patch(name)
    kit.take_out("T")


def test_rule_18_force_marks_what_is_being_removed_and_completes_with_the_next_round(target, held):
    held.begin(target.f)
    lp.enable_patch(patch("P", target))
    lp.force_transition("P")
    assert lp.patches()[0].transition
    tick()
    assert not lp.patches()[0].transition
    held.release()
    kit.take_out("P")
    lp.enable_patch(patch("Q", target))
    held.begin(target.f)
    lp.disable_patch("Q")
    lp.force_transition("Q")
    tick()
    assert lp.patches() == []
    held.release()
    refused(errno.EAGAIN, lp.unload_patch, "Q")
    refused(errno.EEXIST, lp.enable_patch, patch("Q", target))


def test_rule_19_signals_at_the_16th_round_once_and_reversal_starts_anew(target, held):
    held.begin(target.f)
    held.begin(target.f)
    lp.enable_patch(patch("P", target))
    logged()
    for _ in range(14):
        tick()
    assert logged() == []
    tick()
    assert logged() == ["signaling remaining tasks"]
    for _ in range(31):
        tick()
    assert logged() == []
    rounds = registry.running_transition().rounds
    lp.write_enabled("P", 0)
    lp.write_enabled("P", 1)
    assert (rounds > 16, registry.running_transition().rounds) == (True, 0), "and reversing makes no round"
    logged()
    for _ in range(15):
        tick()
    assert logged() == []
    tick()
    assert logged() == ["signaling remaining tasks"]
    held.release()
    held.release()
    finish()
    kit.take_out("P")


def test_rule_20_a_child_inherits_state_and_pending_of_its_creator(target, held):
    """A thread that has not moved starts one: that has not moved either, though its stack is empty."""
    seen = {}

    def child():
        before = left()
        seen.update(child=target.both(lambda: None), pending=before)

    def run():
        thread = threading.Thread(target=child)
        thread.start()
        thread.join()

    held.begin(lambda gate: target.both(lambda: (gate(), run())))
    lp.enable_patch(patch("P", target, "f", "g", "both"))
    assert target.both(lambda: None) == ("P", "P")
    assert held.release() == ("old", "old")
    assert seen == {"child": ("old", "old"), "pending": 2}
    finish()
    kit.take_out("P")


@pytest.mark.parametrize("direction", ["patching", "unpatching"])
def test_rule_21_nobody_is_told_idle_before_the_last_trampoline_is_gone(target, direction, monkeypatch):
    """At every step of completion a call gets the target's version, whatever order the steps have."""
    seen = []
    settle, stop = redirect.Redirection.settle, Transition.stop

    def spy(before):
        def step(self, *args):
            seen.append((before.__name__, target.f(), target.g()))
            before(self, *args)
            seen.append((before.__name__, target.f(), target.g()))

        return step

    if direction == "unpatching":
        lp.enable_patch(patch("P", target))
    monkeypatch.setattr(redirect.Redirection, "settle", spy(settle))
    monkeypatch.setattr(Transition, "stop", spy(stop))
    (lp.enable_patch if direction == "patching" else lambda made: lp.disable_patch("P"))(patch("P", target))
    assert len(seen) == 6
    assert {said for _, *words in seen for said in words} == {"P" if direction == "patching" else "old"}
    monkeypatch.undo()
    if direction == "patching":
        kit.take_out("P")
    else:
        lp.unload_patch("P")


def test_rule_22_objects_without_functions_are_patched_and_have_callbacks(target):
    log = []
    made = callbacks(lp.Patch("P", [lp.Object(None), lp.Object("lp_target"), lp.Object("lp_absent")]), log)
    lp.enable_patch(made)
    assert [lp.tree.read(f"P/{name}/patched") for name in ("vmlinux", "lp_target", "lp_absent")] == ["1", "1", "0"]
    lp.disable_patch("P")
    assert [(which, obj) for which, obj, _ in log] == [
        (which, obj)
        for which in ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
        for obj in ("vmlinux", "lp_target")
    ]
    lp.unload_patch("P")


def test_rule_23_get_prev_state_outside_of_a_transition(on_disk):
    """A warning and nothing, also in the callbacks of a module that comes or goes."""
    on_disk("lp_later")
    seen = []
    lp.enable_patch(lp.Patch("P", [], states=[lp.State("s", 1)]))
    made = absent("Q")
    made.objects[0].callbacks = lp.Callbacks(
        pre_patch=lambda obj: seen.append(lp.get_prev_state("s")),
        post_unpatch=lambda obj: seen.append(lp.get_prev_state("s")),
    )
    lp.enable_patch(made)
    logged()
    importlib.import_module("lp_later")
    lp.unload_module("lp_later")
    assert seen == [None, None]
    assert len([line for line in logged() if "get_prev_state()" in line]) == 2
    for name in "QP":
        kit.take_out(name)


def test_rule_25_never_a_trampoline_with_an_empty_stack(target, monkeypatch):
    """On the stack before function objects are touched; and off it only to be settled at once, with nobody to ask."""
    seen = []
    install = redirect.Redirection.install

    def spy(self, *args):
        seen.append(len(self.stack))
        install(self, *args)

    monkeypatch.setattr(redirect.Redirection, "install", spy)
    lp.enable_patch(patch("P", target))
    kit.take_out("P")
    assert seen == [1, 1, 1, 1]
    assert not redirect.redirections
    assert "<livepatch>" not in (target.f.__code__.co_filename, target.g.__code__.co_filename)
