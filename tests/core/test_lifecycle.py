"""The life of a patch: what the log says, which callbacks run, and what is refused, as the kernel does it.

The sentences and their order are those of the kernel's own tests (tools/testing/selftests/livepatch).
"""

import errno

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import log, registry
from livepatch.testing import finish, tick

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


# -- what the log says -----------------------------------------------------------------------------------------


def test_log_of_enable_disable_unload(patch, target):
    lp.enable_patch(patch)
    assert logged() == ENABLE + ENABLED
    assert target.f() == "new"
    lp.disable_patch("P")
    assert logged() == DISABLE + DISABLED
    lp.unload_patch("P")
    assert logged() == []


def test_log_of_a_transition_that_is_held(patch, held, target):
    held.begin(target.f)
    lp.enable_patch(patch)
    assert logged() == ENABLE
    tick()
    assert logged() == []
    held.release()
    finish()
    assert logged() == ENABLED
    kit.take_out("P")


def test_log_of_reversals_there_and_back(patch, target, held):
    held.begin(target.f)
    lp.enable_patch(patch)
    assert logged() == ENABLE
    for _ in range(3):
        lp.write_enabled("P", 0)
        assert logged() == TO_UNPATCHED
        lp.write_enabled("P", 1)
        assert logged() == TO_PATCHED
    lp.disable_patch("P")
    assert logged() == TO_UNPATCHED
    tick()
    assert logged() == DISABLED, "the thread in f never moved: it is in the new target state"
    assert not lp.patches()
    assert held.release() == "old"
    lp.unload_patch("P")


def test_log_of_a_disable_that_is_reversed(patch, target, held):
    lp.enable_patch(patch)
    held.begin(target.f)
    logged()
    lp.write_enabled("P", "0")
    assert logged() == DISABLE
    lp.write_enabled("P", "1")
    assert logged() == TO_PATCHED
    tick()
    assert logged() == ENABLED
    assert [(p.enabled, p.transition) for p in lp.patches()] == [(True, False)]
    assert held.release() == "new"
    assert target.f() == "new"
    kit.take_out("P")


def test_log_of_force_says_patched_in_both_directions(patch, held, target):
    held.begin(target.f)
    lp.enable_patch(patch)
    logged()
    lp.force_transition("P")
    assert logged() == ["forcing remaining tasks to the patched state"]
    tick()
    assert logged() == ENABLED
    held.release()
    held.begin(target.f)
    lp.disable_patch("P")
    logged()
    lp.force_transition("P")
    assert logged() == ["forcing remaining tasks to the patched state"]
    tick()
    assert logged() == DISABLED
    held.release()


def test_log_of_a_refusing_callback(target):
    callbacks = lp.Callbacks(pre_patch=lambda obj: -errno.ENODEV)
    refused(errno.ENODEV, lp.enable_patch, kit.built("P", target, NEW, "f", callbacks=callbacks))
    assert logged() == [
        "enabling patch 'P'",
        "'P': initializing patching transition",
        "pre-patch callback failed for object 'lp_target'",
        "failed to enable patch 'P'",
        "'P': canceling patching transition, going to unpatch",
        "'P': completing unpatching transition",
        "'P': unpatching complete",
    ]
    assert target.f() == "old"


def test_log_of_a_redirection_that_fails(module):
    """`__class__` is wanted and cannot be found out: the object's symbols are fine, patching it is not."""
    target = module("class A:\n    def m(self): return 1\nkept = A()\ndel A")
    new = "class A:\n    def m(self): return __class__"
    refused(errno.EINVAL, lp.enable_patch, kit.built("P", target, new, "A.m"))
    assert logged() == [
        "enabling patch 'P'",
        "'P': initializing patching transition",
        "failed to patch object 'lp_target'",
        "failed to enable patch 'P'",
        "'P': canceling patching transition, going to unpatch",
        "'P': completing unpatching transition",
        "'P': unpatching complete",
    ]
    assert target.kept.m() == 1


@pytest.mark.parametrize("direction", ["patching", "unpatching"])
def test_log_of_signals_at_the_16th_round_in_vain_and_only_once(patch, held, direction, target):
    if direction == "unpatching":
        lp.enable_patch(patch)
    held.begin(target.f)
    if direction == "patching":
        lp.enable_patch(patch)  # the first round
    else:
        lp.disable_patch("P")
    logged()
    for _ in range(14):
        tick()
    assert logged() == []
    tick()
    assert logged() == ["signaling remaining tasks"]
    for _ in range(40):
        tick()
    assert logged() == []
    held.release()
    finish()
    if direction == "patching":
        lp.disable_patch("P")
        finish()
    lp.unload_patch("P")


def test_the_logger_gets_the_sentences_at_the_kernels_levels(patch, held, caplog, target):
    caplog.set_level(1, logger="livepatch")
    held.begin(target.f)
    lp.enable_patch(patch)
    lp.write_enabled("P", 0)
    lp.write_enabled("P", 1)
    lp.force_transition("P")
    finish()
    held.release()
    kit.take_out("P")
    levels = {record.getMessage(): record.levelname for record in caplog.records}
    assert {levels[line] for line in ("enabling patch 'P'", "'P': patching complete", TO_PATCHED[1])} == {"NOTICE"}
    assert {levels[line] for line in (ENABLE[1], ENABLED[0], TO_PATCHED[0])} == {"DEBUG"}
    assert levels["forcing remaining tasks to the patched state"] == "WARNING"


def test_a_broken_log_handler_does_not_tear_a_transition_apart(patch, target):
    def listener(now, sentence):
        raise ValueError("broken")

    log.listeners.append(listener)
    try:
        lp.enable_patch(patch)
    finally:
        log.listeners.remove(listener)
    assert target.f() == "new"
    kit.take_out("P")


# -- callbacks -------------------------------------------------------------------------------------------------


@pytest.fixture
def called():
    return []


@pytest.fixture
def objects(module, called):
    """Three objects with callbacks that say what is called for which; the second has no functions."""

    def make(name, source=SOURCE, refuse=None):
        loaded = module(source, name)

        def callback(which):
            def call(obj):
                assert obj.module is loaded
                assert obj.module_state == "LIVE"
                called.append(f"{which} {obj.name}")
                if which == "pre_patch" and refuse is not None:
                    return refuse(obj) if callable(refuse) else refuse

            return call

        names = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
        callbacks = lp.Callbacks(**{which: callback(which) for which in names})
        functions = ("f", "g") if name != "lp_b" else ()
        return kit.built("x", loaded, NEW, *functions, callbacks=callbacks).objects[0]

    return make


def take(called):
    taken = list(called)
    called.clear()
    return taken


def every(which, *names):
    return [f"{which} {name}" for name in names or ("lp_a", "lp_b", "lp_c")]


def test_callbacks_of_enable_and_disable(objects, called, worker):
    a, b, c = objects("lp_a"), objects("lp_b"), objects("lp_c")
    held, gate = worker(), kit.Gate()
    inside = held.begin(c.module or __import__("sys").modules["lp_c"].f, gate)
    gate.arrived()
    lp.enable_patch(lp.Patch("P", [a, b, c]))
    assert take(called) == every("pre_patch")
    gate.open()
    inside.result(kit.PATIENCE)
    finish()
    assert take(called) == every("post_patch")
    lp.disable_patch("P")
    assert take(called) == every("pre_unpatch") + every("post_unpatch"), "in list order, also on the way out"
    lp.unload_patch("P")
    assert take(called) == []


def test_redirection_of_an_object_follows_its_pre_patch(objects, module):
    """pre_patch and redirection alternate: when the second object's callback runs, the first one is redirected."""
    import sys

    seen = []

    def look(obj):
        codes = [sys.modules[name].f.__code__.co_filename for name in ("lp_a", "lp_c")]
        seen.append(codes)

    a, c = objects("lp_a", refuse=look), objects("lp_c", refuse=look)
    lp.enable_patch(lp.Patch("P", [a, c]))
    assert seen == [["lp_a_old.py", "lp_c_old.py"], ["<livepatch>", "lp_c_old.py"]]
    kit.take_out("P")


@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize(
    ("refusal", "number"),
    [(-19, 19), (-16, 16), (1, errno.EINVAL), ("no", errno.EINVAL), (False, None), (0, None), (None, None)],
)
def test_callbacks_when_a_pre_patch_refuses(objects, called, which, refusal, number):
    names = ["lp_a", "lp_b", "lp_c"]
    made = [objects(name, refuse=refusal if at == which else None) for at, name in enumerate(names)]
    patch = lp.Patch("P", made)
    if number is None:
        lp.enable_patch(patch)
        assert take(called) == every("pre_patch") + every("post_patch")
        kit.take_out("P")
        return
    refused(number, lp.enable_patch, patch)
    assert take(called) == every("pre_patch", *names[: which + 1]) + (
        every("post_unpatch", *names[:which]) if which else []
    )


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (ValueError("why"), errno.EINVAL),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (lp.LivepatchError(5, "five"), 5),
    ],
)
def test_callbacks_when_a_pre_patch_raises(objects, called, error, number):
    def refuse(obj):
        raise error

    patch = lp.Patch("P", [objects("lp_a"), objects("lp_b", refuse=refuse), objects("lp_c")])
    sentence = refused(number, lp.enable_patch, patch)
    assert sentence in ("why", "[Errno 28] full", "five")
    assert take(called) == ["pre_patch lp_a", "pre_patch lp_b", "post_unpatch lp_a"]


def test_callbacks_when_a_redirection_fails(objects, called, module):
    """post_unpatch runs for the failing object, too: its pre_patch had succeeded."""
    bad = objects("lp_c", "class A:\n    def f(self): return 1\nkept = A()\ndel A")
    bad.funcs = (
        kit.built("x", module("", "lp_x"), "class A:\n    def f(self): return __class__", "A.f").objects[0].funcs
    )
    patch = lp.Patch("P", [objects("lp_a"), bad, objects("lp_b")])
    refused(errno.EINVAL, lp.enable_patch, patch)
    assert take(called) == ["pre_patch lp_a", "pre_patch lp_c", "post_unpatch lp_a", "post_unpatch lp_c"]


def test_callbacks_of_reversals(objects, called, worker):
    import sys

    patch = lp.Patch("P", [objects("lp_a"), objects("lp_b")])
    target, held = sys.modules["lp_a"], worker()
    gate = kit.Gate()
    inside = held.begin(target.f, gate)
    gate.arrived()
    lp.enable_patch(patch)
    take(called)
    lp.disable_patch("P")
    assert take(called) == [], "a reversal of enabling calls no pre_unpatch"
    finish()
    assert take(called) == every("post_unpatch", "lp_a", "lp_b")
    lp.unload_patch("P")
    gate.open()
    inside.result(kit.PATIENCE)

    lp.enable_patch(patch)
    take(called)
    gate = kit.Gate()
    inside = held.begin(target.f, gate)
    gate.arrived()
    lp.disable_patch("P")
    assert take(called) == every("pre_unpatch", "lp_a", "lp_b")
    lp.write_enabled("P", 1)
    assert take(called) == [], "a reversal of disabling calls no pre_patch"
    finish()
    assert take(called) == every("post_patch", "lp_a", "lp_b"), "for the second time, matching the pre_unpatch"
    gate.open()
    inside.result(kit.PATIENCE)
    lp.disable_patch("P")
    assert take(called) == every("pre_unpatch", "lp_a", "lp_b") + every("post_unpatch", "lp_a", "lp_b")
    lp.unload_patch("P")


def test_force_does_not_change_which_callbacks_run(objects, called, worker):
    import sys

    patch, held, gate = lp.Patch("P", [objects("lp_a")]), worker(), kit.Gate()
    inside = held.begin(sys.modules["lp_a"].f, gate)
    gate.arrived()
    lp.enable_patch(patch)
    lp.force_transition("P")
    assert take(called) == ["pre_patch lp_a"]
    tick()
    assert take(called) == ["post_patch lp_a"]
    gate.open()
    inside.result(kit.PATIENCE)
    kit.take_out("P")


def test_the_transition_runs_until_the_callbacks_have_run(target):
    """They come before the final notice; the patch is seen in transition, and its calls reach the new version."""
    seen = {}

    def look(which):
        def call(obj):
            (status,) = lp.patches()
            seen[which] = status.enabled, status.transition, target.f(), lp.dmesg()[-1].removeprefix("livepatch: ")

        return call

    names = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
    callbacks = lp.Callbacks(**{which: look(which) for which in names})
    lp.enable_patch(kit.built("P", target, NEW, "f", callbacks=callbacks))
    lp.disable_patch("P")
    lp.unload_patch("P")
    assert seen == {
        "pre_patch": (False, True, "old", ENABLE[1]),
        "post_patch": (True, True, "new", ENABLED[0]),
        "pre_unpatch": (True, True, "new", DISABLE[0]),
        "post_unpatch": (False, True, "old", DISABLED[0]),
    }


@pytest.mark.parametrize("which", ["post_patch", "pre_unpatch", "post_unpatch"])
def test_exceptions_in_the_other_callbacks_are_logged_and_swallowed(target, which):
    def fail(obj):
        raise ValueError("broken")

    lp.enable_patch(kit.built("P", target, NEW, "f", callbacks=lp.Callbacks(**{which: fail})))
    kit.take_out("P")
    assert any("broken" in line for line in logged())
    assert target.f() == "old"


@pytest.mark.parametrize("which", ["pre_patch", "post_patch", "pre_unpatch", "post_unpatch"])
def test_callbacks_must_not_come_back_in(target, which):
    """The kernel would deadlock. Every operation is refused with EDEADLK, and rounds are not made."""
    results = {}

    def intrude(obj):
        attempts = {
            "enable": lambda: lp.enable_patch(lp.Patch("Q", [])),
            "disable": lambda: lp.disable_patch("P"),
            "write": lambda: lp.write_enabled("P", not lp.patches()[0].enabled),
            "force": lambda: lp.force_transition("P"),
            "unload": lambda: lp.unload_patch("P"),
        }
        for name, attempt in attempts.items():
            try:
                attempt()
            except lp.LivepatchError as error:
                results[name] = error.errno
        tick()
        lp.wait("P", 0.01)

    lp.enable_patch(kit.built("P", target, NEW, "f", callbacks=lp.Callbacks(**{which: intrude})))
    assert target.f() == "new"
    kit.take_out("P")
    assert results == dict.fromkeys(["enable", "disable", "write", "force", "unload"], errno.EDEADLK)
    assert target.f() == "old"
