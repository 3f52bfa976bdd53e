"""Nested functions: closures that exist, and those born before, during and after a transition, in either world."""

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import redirect
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

MAKE = """
    def make(x, gate=None):
        def inner(y=1):
            "Inner, old."
            return x, y, "old"
        if gate: gate()
        return inner
    def stay(gate):
        born = make(0)
        gate()
        return born, make(1)
"""


def test_closures_born_at_every_time(module, held):
    target = module(MAKE)
    before = target.make("before")
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, MAKE.replace("old", "new"), "make.<locals>.inner", "stay"))
    during = target.make("during")
    assert [fn()[2] for fn in (before, during)] == ["new"] * 2
    in_old_early, in_old_late = held.release()
    assert [fn()[2] for fn in (in_old_early, in_old_late)] == ["new"] * 2, (
        "born by the held thread, called by a moved one"
    )
    finish()
    after = target.make("after")
    everybody = [before, during, in_old_early, in_old_late, after]
    assert [fn() for fn in everybody] == [(x, 1, "new") for x in ("before", "during", 0, 1, "after")]
    assert len({id(fn.__code__) for fn in everybody}) == 1, "no dispatcher is left in any of them"

    held.begin(target.stay)
    lp.disable_patch("p")
    back = target.make("back")
    assert [fn()[2] for fn in [*everybody, back]] == ["old"] * 6
    assert [fn()[2] for fn in held.release()] == ["old"] * 2
    finish()
    everybody += [back, target.make("end")]
    assert [fn()[2] for fn in everybody] == ["old"] * 7
    assert len({id(fn.__code__) for fn in everybody}) == 1
    lp.unload_patch("p")


def test_closures_born_in_callbacks(module, held):
    """By the callback of the same object, when it is known already which closures there are."""
    target, first, born = module(MAKE), module("def f(): return 'old'", "lp_first"), []
    callbacks = {which: lambda obj: born.append(target.make(0)) for which in ("pre_patch", "pre_unpatch")}
    patch = kit.built("p", first, "def f(): return 'new'", "f")
    theirs = kit.built(
        "p", target, MAKE.replace("old", "new"), "make.<locals>.inner", "stay", callbacks=lp.Callbacks(**callbacks)
    )
    patch.objects.append(theirs.objects[0])
    held.begin(target.stay)
    lp.enable_patch(patch)
    assert [fn()[2] for fn in born] == ["new"]
    held.release()
    finish()
    held.begin(target.stay)
    lp.disable_patch("p")
    assert [fn()[2] for fn in born] == ["old"] * 2, "this thread has moved, the other one has not"
    held.release()
    finish()
    assert [fn()[2] for fn in born] == ["old"] * 2
    lp.unload_patch("p")


def test_a_thread_of_the_old_world_gets_the_old_version_of_every_closure(module, held):
    text = """
        def make(x):
            def inner(): return x, "old"
            return inner
        shared = [make("before")]
        def stay(gate):
            shared.append(make("early"))
            gate()
            shared.append(make("late"))
            return [fn() for fn in shared]
    """
    target = module(text)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "make.<locals>.inner", "stay"))
    target.shared.append(target.make("by a moved one"))
    assert [fn()[1] for fn in target.shared] == ["new"] * 3
    assert held.release() == [(x, "old") for x in ("before", "early", "by a moved one", "late")]
    finish()
    kit.take_out("p")


def test_closures_of_closures(module, held):
    """The innermost is patched. A middle one that exists, or is born during the transition, makes it redirected."""
    text = """
        def f():
            def g():
                def h(): return "old"
                return h
            return g
        before = f()
        shared = []
        def stay(gate):
            gate()
            g = f()
            shared.extend([g, g(), before()])
            return [shared[0]()(), shared[1](), shared[2]()]
    """
    target = module(text)
    h = target.before()
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f.<locals>.g.<locals>.h", "stay"))
    assert h() == target.before()() == target.f()()() == "new"
    assert held.release() == ["old"] * 3
    assert [target.shared[0]()(), target.shared[1](), target.shared[2]()] == ["new"] * 3
    finish()
    assert [h(), target.before()(), target.f()()(), target.shared[0]()()] == ["new"] * 4
    kit.take_out("p")
    assert [h(), target.before()(), target.f()()(), target.shared[0]()()] == ["old"] * 4


def test_all_levels_are_patched_and_the_innermost_is_handed_over(module, held):
    """A middle one born during the transition and called in the old world makes an innermost one for a moved task."""
    text = """
        def f():
            def g():
                def h(): return "old"
                return h, "old"
            return g, "old"
        shared = []
        def stay(gate):
            gate()
            g, a = f()
            h, b = g()
            shared.append(h)
            return a, b, h()
    """
    target = module(text)
    names = ("f", "f.<locals>.g", "f.<locals>.g.<locals>.h", "stay")
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), *names))
    (g, a) = target.f()
    (h, b) = g()
    assert (a, b, h()) == ("new",) * 3
    assert held.release() == ("old",) * 3
    assert target.shared[0]() == "new", "the thread that calls it now has moved"
    finish()
    assert [target.shared[0](), h(), g()[0]()] == ["new"] * 3
    kit.take_out("p")
    assert [target.shared[0](), h(), g()[0]()] == ["old"] * 3


def test_closures_born_during_a_transition_look_as_they_should(module, held):
    target = module(MAKE)
    held.begin(target.stay)
    patch = kit.built(
        "p",
        target,
        MAKE.replace("old", "new"),
        "make.<locals>.inner",
        "stay",
        attributes={"make.<locals>.inner": {"__doc__": "Inner, new."}},
    )
    lp.enable_patch(patch)
    during = target.make(1)
    looks = (during.__name__, during.__qualname__, during.__module__, during.__defaults__)
    assert looks == ("inner", "make.<locals>.inner", "lp_target", (1,))
    assert during.__doc__ in ("Inner, old.", "Inner, new.")
    early, late = held.release()
    finish()
    after = target.make(2)
    assert [fn.__doc__ for fn in (early, during, late, after)] == ["Inner, new."] * 4
    kit.take_out("p")
    assert early.__doc__ == late.__doc__ == "Inner, old."


def test_a_closure_born_during_a_transition_keeps_its_docstring(module, held):
    text = MAKE.replace("Inner, old.", "Inner.")
    target = module(text)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "make.<locals>.inner", "stay"))
    during = target.make(1)
    assert during.__doc__ == "Inner."
    early, late = held.release()
    assert late.__doc__ == "Inner."
    finish()
    assert [fn.__doc__ for fn in (early, during, late)] == ["Inner."] * 3
    kit.take_out("p")
    assert [fn.__doc__ for fn in (early, during, late)] == ["Inner."] * 3


def test_the_enclosing_function_is_waited_for(module, held):
    """A call of `make` that began before the transition would give birth to an old closure after it."""
    target = module(MAKE)
    held.begin(target.make, "x")
    lp.enable_patch(kit.built("p", target, MAKE.replace("old", "new"), "make.<locals>.inner"))
    for _ in range(3):
        tick()
    assert kit.blocking() == ["make"]
    closure = held.release()
    finish()
    assert closure() == ("x", 1, "new")
    kit.take_out("p")
    assert closure() == ("x", 1, "old")


def test_a_closure_that_was_not_made_yet_when_the_patch_came(module):
    """Nobody carries its code: it is only a constant of the enclosing function."""
    target = module(MAKE)
    lp.enable_patch(kit.built("p", target, MAKE.replace("old", "new"), "make.<locals>.inner"))
    finish()
    born = target.make(1)
    assert born() == (1, 1, "new")
    kit.take_out("p")
    assert born() == (1, 1, "old")
    assert target.make(1)() == (1, 1, "old")


def test_a_long_call_of_the_enclosing_function_gives_birth_after_the_transition(module, held, worker):
    """It began in the new world, during the transition, and makes a closure long after: that one is like all others."""
    text = """
        def make(gate=None):
            if gate: gate()
            def inner(): return "old"
            return inner
        def stay(gate): gate()
    """
    target, other, gate = module(text), worker(), kit.Gate()
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "make.<locals>.inner", "stay"))
    making = other.begin(target.make, gate)
    gate.arrived()
    held.release()
    finish()
    gate.open()
    late = making.result(kit.PATIENCE)
    assert late() == "new"
    lp.disable_patch("p")
    finish()
    assert late() == "old"
    lp.unload_patch("p")


def test_a_suspended_frame_that_began_in_a_transition_holds_the_next_one(module, held):
    """With a function nested in it, it runs a copy of its code if it began during a transition. It counts the same."""
    text = """
        def gen():
            def inner(): return "old"
            yield inner()
            yield inner()
            yield "old"
        def stay(gate): gate()
    """
    target = module(text)
    held.begin(target.stay)
    names = ("gen", "gen.<locals>.inner", "stay")
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), *names))
    suspended = target.gen()
    assert next(suspended) == "new"
    held.release()
    finish()
    lp.disable_patch("p")
    for _ in range(3):
        tick()
    assert [patch.transition for patch in lp.patches()] == [True]
    assert list(suspended) == ["new", "new"]
    finish()
    lp.unload_patch("p")
    assert list(target.gen()) == ["old"] * 3


def test_two_patches_of_one_enclosing_function(module):
    """Each patches another closure of `make`. What `make` makes is the newer's by now, and the older can go first."""
    text = """
        def make():
            def a(): return "old a"
            def b(): return "old b"
            return a, b
    """
    target = module(text)
    made = [target.make()]

    def results():
        made.append(target.make())
        found = [[fn() for fn in closures] for closures in made]
        assert all(pair == found[0] for pair in found)
        return found[0]

    for name in "ab":
        new = text.replace(f"old {name}", f"new {name}")
        lp.enable_patch(kit.built(name, target, new, f"make.<locals>.{name}"))
        finish()
    assert results() == ["new a", "new b"]
    kit.take_out("a")
    assert results() == ["old a", "new b"]
    new = text.replace("old a", "newer a")
    lp.enable_patch(kit.built("a2", target, new, "make.<locals>.a"))
    finish()
    assert results() == ["newer a", "new b"]
    kit.take_out("b")
    assert results() == ["newer a", "old b"]
    kit.take_out("a2")
    assert results() == ["old a", "old b"]


def test_the_older_of_two_patches_of_one_enclosing_function_goes_while_somebody_is_inside(module, held):
    """Who has not moved goes on making closures of the patch that goes; who has, makes those of before it."""
    text = """
        def make(gate=None):
            if gate: gate()
            def a(): return "old a"
            def b(): return "old b"
            return a(), b()
    """
    target = module(text)
    for name in "ab":
        new = text.replace(f"old {name}", f"new {name}")
        lp.enable_patch(kit.built(name, target, new, f"make.<locals>.{name}"))
        finish()
    held.begin(target.make)
    lp.disable_patch("a")
    assert target.make() == ("old a", "new b")
    assert lp.patches()[0].transition
    lp.write_enabled("a", 1)
    finish()
    assert target.make() == ("new a", "new b")
    assert held.release() == ("new a", "new b")
    held.begin(target.make)
    lp.disable_patch("b")
    assert target.make() == ("new a", "old b")
    assert held.release() == ("new a", "new b")
    finish()
    lp.unload_patch("b")
    assert target.make() == ("new a", "old b")
    kit.take_out("a")
    assert target.make() == ("old a", "old b")


def test_a_later_patch_of_a_closure_inside_of_a_replaced_function_is_not_lost(module):
    """The first patch replaced `make` with code of its own, in which the second one's original does not occur.

    It could have no effect on closures made from now on, so it is refused. It must not pass in silence.
    """
    text = """
        def make():
            word = "old"
            def inner(): return "old"
            return inner
    """
    target = module(text)
    lp.enable_patch(kit.built("a", target, text.replace('word = "old"', 'word = "new"'), "make"))
    finish()
    with pytest.raises(lp.LivepatchError, match="'make' has been replaced by another patch") as caught:
        lp.enable_patch(kit.built("b", target, text.replace("old", "new"), "make.<locals>.inner"))
    assert caught.value.symbol == "EBUSY"
    kit.take_out("a")
    lp.enable_patch(kit.built("b", target, text.replace("old", "new"), "make.<locals>.inner"))
    finish()
    assert target.make()() == "new"
    kit.take_out("b")


def test_replacements_of_closures_written_by_hand(module, held):
    """They see the module that they were written in, and each closure keeps the defaults that it was born with."""
    text = """
        def make(x):
            def inner(y=x, *, k=x): return "old", y, k
            return inner
        before = make(1)
        def stay(gate):
            born = make(2)
            gate()
            return born, born(), make(3), make(3)()
    """
    word = "new"

    def inner(y=None, *, k=None):
        return word, y, k

    def stay(gate):
        return None

    target = module(text)
    held.begin(target.stay)
    lp.enable_patch(kit.by_hand("p", target, stay=stay, **{"make.<locals>.inner": inner}))
    during = target.make(4)
    assert [target.before(), during()] == [("new", 1, 1), ("new", 4, 4)]
    early, met_early, late, met_late = held.release()
    assert (met_early, met_late) == (("old", 2, 2), ("old", 3, 3))
    finish()
    everybody = [target.before, early, late, during, target.make(5)]
    assert [fn() for fn in everybody] == [("new", n, n) for n in (1, 2, 3, 4, 5)]
    kit.take_out("p")
    assert [fn() for fn in everybody] == [("old", n, n) for n in (1, 2, 3, 4, 5)]


def test_a_nested_replacement_must_have_the_same_parameters(module):
    target = module(MAKE)
    before = target.make(1)
    new = MAKE.replace("inner(y=1)", "inner(y=1, z=2)")
    with pytest.raises(lp.LivepatchError, match="must have the same parameters"):
        lp.enable_patch(kit.built("p", target, new, "make.<locals>.inner"))
    assert before() == (1, 1, "old")


def test_a_closure_over_variables_called_like_those_of_a_trampoline(module, held):
    text = """
        def make(args, kwargs):
            def inner(a=3, *b): return args, kwargs, a, b, "old"
            return inner
        before = make(1, 2)
        def stay(gate): gate()
    """
    target = module(text)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "make.<locals>.inner", "stay"))
    assert target.before() == target.make(1, 2)() == (1, 2, 3, (), "new")
    held.release()
    finish()
    kit.take_out("p")


def test_many_free_variables_keep_their_order(module, held):
    names = [f"v{n}" for n in range(40)]
    text = f"""
def make({", ".join(names)}):
    def inner(): return {", ".join(reversed(names))}, "old"
    return inner
before = make(*range(40))
def stay(gate): gate()
"""
    expected = (*reversed(range(40)), "new")
    target = module(text)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "make.<locals>.inner", "stay"))
    assert target.before() == target.make(*range(40))() == expected
    held.release()
    finish()
    assert target.before() == expected
    kit.take_out("p")


def test_thousands_of_closures_are_all_reached(module):
    target = module(MAKE)
    many = [target.make(n) for n in range(3000)]
    lp.enable_patch(kit.built("p", target, MAKE.replace("old", "new"), "make.<locals>.inner"))
    finish()
    assert {fn()[2] for fn in many} == {"new"}
    kit.take_out("p")
    assert {fn()[2] for fn in many} == {"old"}
    assert len({id(fn.__code__) for fn in many}) == 1


def test_one_code_in_two_namespaces(module, held):
    """A loader of plugins executed one code object twice. Closures keep the globals of the function that made them."""
    code = compile("def make():\n    def inner(): return name, 'old'\n    return inner", "plugin.py", "exec")
    text = "def stay(gate): gate()"
    first, second = module("name = 'first'\n" + text, "lp_first"), module("name = 'second'", "lp_second")
    for target in (first, second):
        exec(code, target.__dict__)
    new = "def make():\n    def inner(): return name, 'new'\n    return inner\n" + text
    held.begin(first.stay)
    lp.enable_patch(kit.built("p", first, new, "make.<locals>.inner", "stay"))
    during = first.make(), second.make()
    assert [fn() for fn in during] == [("first", "new"), ("second", "new")]
    held.release()
    finish()
    assert [fn() for fn in during] == [("first", "new"), ("second", "new")]
    kit.take_out("p")
    assert [fn() for fn in during] == [("first", "old"), ("second", "old")]


def test_private_functions_of_livepatch_are_not_taken_for_closures(module, held, garbage):
    """Versions carry originals' code, too; a transition leaves none behind that the next one would patch."""
    target = module(MAKE)
    target.kept = target.make(1)
    code = target.kept.__code__
    for _ in range(3):
        held.begin(target.stay)
        lp.enable_patch(kit.built("p", target, MAKE.replace("old", "new"), "make.<locals>.inner", "stay"))
        target.kept()
        held.release()
        finish()
        kit.take_out("p")
    garbage()
    assert redirect.functions_of([code])[id(code)] == [target.kept]
