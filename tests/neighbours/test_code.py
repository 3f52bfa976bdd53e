"""Somebody else exchanges the code of a function: before a patch, in the middle of its transition, or later.

Who came first keeps it and the second is refused; and whoever goes first, no change is lost and none stays behind.
"""

import argparse
import asyncio
import dataclasses
import enum
import errno
import inspect
import random

import pytest
from tests.core import kit
from tests.neighbours import exchange

import livepatch as lp
from livepatch.core import neighbours
from livepatch.core.codes import definitions
from livepatch.testing import finish

pytestmark = [pytest.mark.usefixtures("rounds_by_hand"), pytest.mark.once]

SOURCE = """
    import asyncio
    def g(): return "old"
    def f(x, *, y=2): return "old", x, y, g()
    async def c(x, *, y=2): return "old", x, y, g()
    def gen(x, *, y=2):
        yield "old", x, y, g()
    def stay(call, gate):
        before = call()
        gate()
        return before, call()
    def make(word):
        def closure(x, *, y=2): return "old", x, y, g(), word
        return closure
    closure = make("kept")
"""
NEW = SOURCE.replace("old", "new")
NAMES = ("g", "f", "c", "gen", "stay", "make.<locals>.closure")


def hook(inner, args, kwargs):
    """A wrapper that shows."""
    made = inner(*args, **kwargs)
    if hasattr(made, "__await__"):
        return shown_later(made)
    return shown_in_turn(made) if hasattr(made, "send") else ("wrapped", *made)


async def shown_later(made):
    return "wrapped", *(await made)


def shown_in_turn(made):
    for one in made:
        yield "wrapped", *one


@pytest.fixture(params=exchange.WRAPPERS)
def wrap(request):
    return exchange.WRAPPERS[request.param]


@pytest.fixture
def target(module):
    return module(SOURCE)


def patch(target, name="p"):
    return kit.built(name, target, NEW, *NAMES)


@pytest.fixture(params=["f", "c", "gen", "closure"])
def one(request, target):
    """A function of one kind, how to call it, and what it returns in each world, wrapped or not."""

    class One:
        def __init__(self):
            self.function = getattr(target, request.param)
            self.original = self.function.__code__

        def call(self):
            made = self.function(1)
            if hasattr(made, "__await__"):
                return asyncio.run(made)
            return next(made) if hasattr(made, "send") else made

        def expected(self, word, *, wrapped=False):
            last = ("kept",) if request.param == "closure" else ()
            return (*(("wrapped",) if wrapped else ()), word, 1, 2, word, *last)

    return One()


def refused(call, *args):
    with pytest.raises(lp.LivepatchError) as caught:
        call(*args)
    assert caught.value.errno == errno.EBUSY
    assert "\n" not in str(caught.value)
    return str(caught.value)


def whoever_goes_first(order, one, unwrap):
    if order == "patch":
        kit.take_out("p")
        assert one.call() == one.expected("old", wrapped=True)
        unwrap()
    else:
        unwrap()
        assert one.call() == one.expected("new")
        kit.take_out("p")
    assert one.call() == one.expected("old")
    assert one.function.__code__ is one.original


# -- wrappers ----------------------------------------------------------------------------------------------------


def test_who_wrapped_first_keeps_it(target, one, wrap):
    unwrap = wrap(one.function, hook)
    sentence = refused(lp.enable_patch, patch(target))
    name = one.function.__qualname__
    assert sentence == f"The code of '{name}' in 'lp_target' has been exchanged by '{__name__}'; take that back first."
    assert f"livepatch: failed to register ftrace handler for function '{name}' (-16)" in lp.dmesg()
    assert not lp.patches()
    assert one.call() == one.expected("old", wrapped=True)
    assert target.g() == "old"
    unwrap()
    lp.enable_patch(patch(target))
    assert one.call() == one.expected("new")
    kit.take_out("p")
    assert one.function.__code__ is one.original


@pytest.mark.parametrize("order", ["patch", "wrapper"])
def test_a_wrapper_around_a_patched_function(target, one, wrap, order):
    lp.enable_patch(patch(target))
    unwrap = wrap(one.function, hook)
    assert one.call() == one.expected("new", wrapped=True)
    assert one.function.__qualname__ in refused(lp.enable_patch, patch(target, "q"))
    whoever_goes_first(order, one, unwrap)


@pytest.mark.parametrize("order", ["patch", "wrapper", "wrapper in the middle"])
def test_a_wrapper_that_comes_in_the_middle_of_a_transition(target, one, wrap, order, held):
    """Both worlds go through it, and it wraps whatever is in force when the transition has completed."""
    held.begin(target.stay, one.call)
    lp.enable_patch(patch(target))
    assert one.call() == one.expected("new")
    unwrap = wrap(one.function, hook)
    assert one.call() == one.expected("new", wrapped=True)
    if order == "wrapper in the middle":
        unwrap()
    wrapped = order != "wrapper in the middle"
    assert held.release() == (one.expected("old"), one.expected("old", wrapped=wrapped))
    finish()
    assert one.call() == one.expected("new", wrapped=wrapped)
    if wrapped:
        whoever_goes_first(order, one, unwrap)
    else:
        kit.take_out("p")
        assert one.function.__code__ is one.original


def test_a_wrapper_that_comes_while_a_patch_goes(target, one, wrap, held):
    lp.enable_patch(patch(target))
    held.begin(target.stay, one.call)
    lp.disable_patch("p")
    unwrap = wrap(one.function, hook)
    assert one.call() == one.expected("old", wrapped=True)
    assert held.release() == (one.expected("new"), one.expected("new", wrapped=True))
    finish()
    lp.unload_patch("p")
    assert one.call() == one.expected("old", wrapped=True)
    unwrap()
    assert one.function.__code__ is one.original


def test_a_wrapped_transition_is_reversed(target, one, wrap, held):
    held.begin(target.stay, one.call)
    lp.enable_patch(patch(target))
    unwrap = wrap(one.function, hook)
    lp.disable_patch("p")
    finish()
    lp.unload_patch("p")
    assert held.release() == (one.expected("old"), one.expected("old", wrapped=True))
    unwrap()
    assert one.call() == one.expected("old")
    assert one.function.__code__ is one.original


def test_a_patch_that_goes_from_under_a_wrapper_goes_consistently(target, one, wrap, held):
    """The copy that the wrapper calls gets a trampoline like any other function."""
    lp.enable_patch(patch(target))
    unwrap = wrap(one.function, hook)
    held.begin(target.stay, one.call)
    lp.disable_patch("p")
    assert one.call() == one.expected("old", wrapped=True)
    assert held.release() == (one.expected("new", wrapped=True),) * 2
    finish()
    lp.unload_patch("p")
    unwrap()
    assert one.function.__code__ is one.original


def test_wrappers_around_wrappers(target, wrap):
    lp.enable_patch(patch(target))
    hooks = [lambda inner, args, kwargs, mark=mark: (mark, *inner(*args, **kwargs)) for mark in "ab"]
    unwraps = [wrap(target.f, one) for one in hooks]
    assert target.f(1) == ("b", "a", "new", 1, 2, "new")
    kit.take_out("p")
    assert target.f(1) == ("b", "a", "old", 1, 2, "old")
    for unwrap in reversed(unwraps):
        unwrap()
    assert target.f(1) == ("old", 1, 2, "old")


def test_a_wrapper_that_would_pass_on_what_the_old_version_lacks_stays_around_the_new_one(module, wrap):
    """It was made for the parameters that it found."""
    target = module("def f(x, y='old'): return x, y")
    lp.enable_patch(
        kit.built(
            "p",
            target,
            "def f(x, y='old', z='new'): return x, y, z",
            "f",
            attributes={"f": {"__defaults__": ("old", "new")}},
        )
    )
    unwrap = wrap(target.f, hook)
    assert "has been exchanged since it was patched" in refused(lp.disable_patch, "p")
    assert target.f(1) == ("wrapped", 1, "old", "new")
    unwrap()
    kit.take_out("p")
    assert target.f(1) == (1, "old")


def test_an_unloaded_module_gets_its_functions_back_from_under_wrappers(module, wrap):
    target = module(SOURCE)
    lp.enable_patch(patch(target))
    unwrap = wrap(target.f, hook)
    lp.unload_module("lp_target")
    assert target.f(1) == ("wrapped", "old", 1, 2, "old")
    unwrap()
    assert target.f(1) == ("old", 1, 2, "old")
    kit.take_out("p")


def test_patches_and_wrappers_come_and_go_under_threads(target):
    """What a function says and what it calls are of one version, through a wrapper or not."""
    seen, dice = set(), random.Random(4)

    def hammer():
        for made in (target.f(1), next(target.gen(1))):
            seen.add((made[-4], made[-1]))

    with kit.meanwhile(hammer):
        for _ in range(6):
            unwraps = []
            first = dice.choice([None, target.f, target.gen])
            if first is not None:
                unwraps.append(exchange.wrap(first, hook))
                refused(lp.enable_patch, patch(target))
                unwraps.pop()()
            lp.enable_patch(patch(target))
            unwraps += [exchange.wrap(function, hook) for function in (target.f, target.gen)]
            finish()
            if dice.random() < 0.5:
                unwraps.pop()()
            lp.disable_patch("p")
            while unwraps:
                unwraps.pop()()
            finish()
            lp.unload_patch("p")
    assert seen == {("old", "old"), ("new", "new")}
    assert target.f(1) == ("old", 1, 2, "old")


# -- rewriting ---------------------------------------------------------------------------------------------------


def test_who_rewrote_first_keeps_it(target):
    restore = exchange.rewrite(target.f, exchange.Probe())
    assert refused(lp.enable_patch, patch(target)) == (
        "The code of 'f' in 'lp_target' has been exchanged by 'tests.neighbours.exchange'; take that back first."
    )
    refused(lp.enable_patch, lp.Patch("q", [lp.Object("lp_target", [lp.Func("f", lambda x: 0)])]))
    assert target.f(1) == ("old!", 1, 2, "old")
    restore()
    lp.enable_patch(patch(target))
    kit.take_out("p")
    assert target.f(1) == ("old", 1, 2, "old")


def test_a_function_is_held_by_who_holds_the_one_around_it(target):
    restore = exchange.rewrite(target.make, exchange.Probe())
    assert "'make' in 'lp_target'" in refused(lp.enable_patch, kit.built("p", target, NEW, "make.<locals>.closure"))
    restore()


def test_a_patch_does_not_go_from_under_code_that_may_be_its_own(target):
    """It would leave it in one function and take it from all others."""
    lp.enable_patch(patch(target))
    restore = exchange.rewrite(target.f)
    refused(lp.enable_patch, lp.Patch("all", [lp.Object("lp_target", [lp.Func("g", lambda: 0)])], replace=True))
    assert refused(lp.disable_patch, "p").startswith("The code of 'f' in 'lp_target' has been exchanged since")
    assert [(p.enabled, p.transition) for p in lp.patches()] == [(True, False)]
    assert target.f(1) == ("new!", 1, 2, "new")
    restore()
    kit.take_out("p")
    assert target.f(1) == ("old", 1, 2, "old")


def test_a_patch_goes_from_under_who_holds_what_a_newer_one_hides(target):
    """The function stays as it is, so nobody is in the way."""
    lp.enable_patch(kit.built("p", target, NEW, "f", "g"))
    lp.enable_patch(kit.built("q", target, SOURCE.replace("old", "newer"), "f"))
    restore = exchange.rewrite(target.f)
    kit.take_out("p")
    assert target.f(1) == ("newer", 1, 2, "old")
    restore()
    kit.take_out("q")
    assert target.f(1) == ("old", 1, 2, "old")


def test_code_of_the_middle_of_a_transition_leads_to_what_is_in_force_ever_after(target, one, held):
    """It is rewritten, it is put back when the transition is over, and when the patch is gone."""
    held.begin(target.stay, one.call)
    lp.enable_patch(patch(target))
    restore = exchange.rewrite(one.function, exchange.Probe())
    assert one.call() == one.expected("new")
    assert held.release() == (one.expected("old"),) * 2
    finish()
    assert one.call() == one.expected("new")
    restore()
    assert one.call() == one.expected("new")
    kit.take_out("p")
    assert one.call() == one.expected("old")
    restore()
    assert one.call() == one.expected("old")
    held.begin(target.stay, one.call)
    lp.enable_patch(patch(target, "q"))
    assert one.call() == one.expected("new")
    restore()
    assert held.release() == (one.expected("old"),) * 2
    finish()
    assert one.call() == one.expected("new")
    kit.take_out("q")
    assert one.function.__code__ is one.original


def test_what_is_put_back_in_the_middle_of_a_later_transition_is_consistent(target, held):
    """A trampoline of a transition that is over finds the one that runs, and says there what it makes."""
    held.begin(target.stay, lambda: target.f(1))
    lp.enable_patch(patch(target))
    trampolines = {name: getattr(target, name).__code__ for name in ("f", "gen")}
    held.release()
    finish()
    held.begin(target.stay, lambda: (target.f(1), next(target.gen(1))))
    lp.disable_patch("p")
    for name, code in trampolines.items():
        getattr(target, name).__code__ = code
    generator = target.gen(1)
    assert next(generator) == target.f(1) == ("old", 1, 2, "old")
    assert held.release() == ((("new", 1, 2, "new"),) * 2,) * 2
    finish()
    lp.unload_patch("p")
    assert target.f(1) == ("old", 1, 2, "old")


# -- by what somebody is known -----------------------------------------------------------------------------------


@pytest.fixture
def imported(tmp_path, monkeypatch, module):
    """Imports modules from files."""
    monkeypatch.syspath_prepend(tmp_path)

    def load(source, name="lp_file"):
        (tmp_path / f"{name}.py").write_text(source)
        return __import__(name)

    return load


def by_hand(module, name):
    def new(*args):
        return "new"

    return lp.Patch("p", [lp.Object(module.__name__, [lp.Func(name, new)])])


def test_code_of_another_function(imported):
    target = imported("def f(): return 'f'\ndef g(): return 'g'\n")
    before, target.f.__code__ = target.f.__code__, target.g.__code__
    assert "The code of 'f' in 'lp_file'" in refused(lp.enable_patch, by_hand(target, "f"))
    target.f.__code__ = before
    lp.enable_patch(by_hand(target, "f"))
    kit.take_out("p")


def test_code_from_another_file(imported):
    target, other = imported("def f(): return 'f'\n"), imported("def f(): return 'fixed'\n", "lp_fix")
    before, target.f.__code__ = target.f.__code__, other.f.__code__
    assert f"exchanged for code from {other.__file__};" in refused(lp.enable_patch, by_hand(target, "f"))
    assert target.f() == "fixed"
    target.f.__code__ = before
    lp.enable_patch(by_hand(target, "f"))
    kit.take_out("p")


def test_no_code_that_the_compiler_makes_looks_like_somebody_elses():
    """Whatever a release of Python folds into constants."""
    text = """
def f(x: int = 1, *, y: "str" = ...) -> None:
    "doc"
    a = x[1:2], x in {1, 2, "s"}, 1j, -0.0, b"", 2**80, (1, (2, None, ...)), not True, x[::2], x[:, 1:]
    class C: z = [lambda: a]
    return [i for i in x] if 0 else f"{x!r:>{y}}"
"""
    sources = [
        text,
        *(inspect.getsource(module) for module in (inspect, enum, dataclasses, random, asyncio.tasks, argparse)),
    ]
    for source in sources:
        for definition in definitions(compile(source, "any", "exec")):
            assert neighbours.put_in(definition.code) == []


def test_what_only_looks_exchanged(imported):
    """Functions made by `exec` can be patched; what no source defines is not found."""
    target = imported(
        "import dataclasses, functools\n"
        "exec('def made(): return 1')\n"
        "def forget(f):\n"
        "    @functools.wraps(f)\n"
        "    def wrapper(): return 'wrapper'\n"
        "    del wrapper.__wrapped__\n"
        "    return wrapper\n"
        "@forget\n"
        "def lost(): return 1\n"
        "@dataclasses.dataclass\n"
        "class D:\n"
        "    x: int\n"
    )
    lp.enable_patch(by_hand(target, "made"))
    assert target.made() == "new"
    kit.take_out("p")
    for name in ("lost", "D.__init__"):
        with pytest.raises(lp.LivepatchError, match=f"symbol '{name}' not found"):
            lp.enable_patch(by_hand(target, name))


def test_an_exchange_without_any_sign_is_taken_for_the_original_and_comes_back_with_it(target):
    restore = exchange.rewrite(target.f)
    code = target.f.__code__
    lp.enable_patch(kit.built("p", target, NEW, "f"))
    assert target.f(1) == ("new", 1, 2, "old")
    kit.take_out("p")
    assert target.f.__code__ is code
    assert target.f(1) == ("old!", 1, 2, "old")
    restore()


# -- attributes and copies ---------------------------------------------------------------------------------------


def test_attributes_that_somebody_set_meanwhile_stay(module):
    target = module("def f(x=1, *, y=1): 'old'; return x, y\ndef g(x=1): 'old'; return x")
    new = "def f(x=2, *, y=2): 'new'; return x, y\ndef g(x=2): 'new'; return x"
    changed = {"__defaults__": (2,), "__doc__": "new"}
    attributes = {"f": changed | {"__kwdefaults__": {"y": 2}}, "g": changed}
    lp.enable_patch(kit.built("p", target, new, "f", "g", attributes=attributes))
    assert (target.f(), target.g(), target.f.__doc__) == ((2, 2), 2, "new")
    target.f.__defaults__ = (3,)
    target.g.__doc__ = "theirs"
    target.g.__annotations__ = {"x": int}
    kit.take_out("p")
    assert target.f() == (3, 1)
    assert target.g() == 1
    assert (target.f.__doc__, target.g.__doc__, target.g.__annotations__) == ("old", "theirs", {"x": int})
    lp.enable_patch(kit.built("p", target, new, "f", "g", attributes=attributes))
    assert target.g.__annotations__ == {"x": int}
    target.f.__kwdefaults__ = {"y": 4}
    kit.take_out("p")
    assert target.f() == (3, 4)


def test_annotations_that_nobody_set_are_those_of_the_version_again(module):
    target = module("def f(x: int): return 'old'\ndef g(x): return 'old'")
    new = {"f": {"__annotations__": {"x": str}}, "g": {"__annotations__": {"x": str}}}
    before = target.f.__annotations__
    for _ in range(2):
        text = "def f(x: str): return 'new'\ndef g(x: str): return 'new'"
        lp.enable_patch(kit.built("p", target, text, "f", "g", attributes=new))
        assert target.f.__annotations__ == target.g.__annotations__ == {"x": str}
        kit.take_out("p")
        assert (target.f.__annotations__, target.g.__annotations__) == (before, {})
    target.f.__annotations__ = {"x": bytes}
    lp.enable_patch(kit.built("p", target, text, "f", "g", attributes=new))
    target.f.__annotations__ = {"x": bool}
    kit.take_out("p")
    assert target.f.__annotations__ == {"x": bool}


def test_a_copy_of_a_patched_function_goes_back_with_it(module):
    """Whoever makes one holds the new version; who had its code before the patch keeps that."""
    target = module("def f(x=1): return 'old', x\ndef helper(x=1): return 'new', x")
    helper = target.helper.__code__
    body = lp.Body(helper, {"__defaults__": (2,)})
    lp.enable_patch(lp.Patch("p", [lp.Object("lp_target", [lp.Func("f", body)])]))
    copy = type(target.f)(target.f.__code__, vars(target), "copy", target.f.__defaults__)
    assert target.f() == copy() == ("new", 2)
    kit.take_out("p")
    assert target.f() == copy() == ("old", 1)
    assert target.helper.__code__ is helper
    assert target.helper() == ("new", 1)
