"""Redirection of every kind of function: in the middle of a transition, after it, and after the way back."""

import errno
import functools
import gc
import sys
import threading
import types

import pytest
from tests.core import kit
from tests.core.shapes import SHAPES, source

import livepatch as lp
from livepatch.core import caches, cpython, redirect
from livepatch.core.originals import start_new_thread
from livepatch.core.symbols import Tables
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


def originals(module, functions):
    """The function objects behind the names, all of them, and their code."""
    tables = Tables([module])
    codes = [tables.find(module, *(f if isinstance(f, tuple) else (f, 0)), "").code for f in functions]
    found = redirect.functions_of(codes)
    return [(code, function) for code in codes for function in found[id(code)]]


def looks(function):
    """All that one can see of a function; kept things are compared by identity."""
    names = ["__code__", "__defaults__", "__kwdefaults__", "__doc__", "__name__", "__qualname__", "__module__"]
    names += ["__closure__", "__globals__"]
    names += ["__annotate__"] if cpython.LAZY_ANNOTATIONS else ["__annotations__"]
    names += ["__type_params__"] if cpython.TYPE_PARAMS else []
    return {name: getattr(function, name) for name in names}, dict(function.__annotations__), dict(vars(function))


def assert_same_looks(now, before):
    assert {name for name, thing in now[0].items() if thing is not before[0][name]} == set()
    assert now[1:] == before[1:]


@pytest.fixture(params=SHAPES)
def shape(request, module):
    functions, _ = SHAPES[request.param]
    text = source(request.param)
    target = module(text)
    return target, functions, kit.built("p", target, text.replace("old", "new"), "stay", *functions)


def test_every_kind_of_function_goes_there_and_back(shape):
    target, functions, patch = shape
    carriers = originals(target, functions)
    before = [looks(function) for _, function in carriers]
    for _ in range(2):
        assert set(target.probe()) == {"old"}
        lp.enable_patch(patch)
        finish()
        assert set(target.probe()) == {"new"}
        new = {id(code) for obj in patch.objects for func in obj.funcs for code in [func.new_func.code]}
        for _, function in carriers:
            assert function.__code__.co_filename == "new.py", "the code is the new one itself, and no dispatcher"
            assert id(function.__code__) in new or function.__code__.co_flags & 0x100
        lp.disable_patch("p")
        finish()
        for (code, function), look in zip(carriers, before, strict=True):
            assert function.__code__ is code
            assert_same_looks(looks(function), look)
        lp.unload_patch("p")


def test_every_kind_of_function_in_the_middle(shape, worker):
    """One thread is inside of a patched function and stays in the old world for all functions; all others move."""
    target, _, patch = shape
    held, free, gate = worker(), worker(), kit.Gate()
    inside = held.begin(target.stay, gate)
    gate.arrived()
    lp.enable_patch(patch)
    assert set(target.probe()) == {"new"}
    assert set(free.do(target.probe)) == {"new"}
    gate.open()
    assert set(inside.result(kit.PATIENCE)) == {"old"}
    assert set(target.probe()) == {"new"}
    finish()
    assert set(held.do(target.probe)) == {"new"}

    back = kit.Gate()
    inside = held.begin(target.stay, back)
    back.arrived()
    lp.disable_patch("p")
    assert set(free.do(target.probe)) == {"old"}
    back.open()
    assert set(inside.result(kit.PATIENCE)) == {"new"}
    finish()
    assert set(held.do(target.probe)) == {"old"}
    lp.unload_patch("p")


def test_every_kind_of_function_is_reversed(shape, worker):
    target, _, patch = shape
    held, gate = worker(), kit.Gate()
    inside = held.begin(target.stay, gate)
    gate.arrived()
    for _ in range(2):
        lp.enable_patch(patch)
        assert set(target.probe()) == {"new"}
        lp.disable_patch("p")
        tick()
        assert set(target.probe()) == {"old"}
        assert not lp.patches()
        lp.unload_patch("p")
    gate.open()
    assert set(inside.result(kit.PATIENCE)) == {"old"}
    assert set(target.probe()) == {"old"}


# Written by hand, these are other programs: `super()` and mangled names belong to the class that a function was
# written in, closures have cells of their own (test_closures.py), and a copy has lost its own defaults.
OTHER_PROGRAMS = {
    "an outer function and its closure",
    "class in a function",
    "closure",
    "copy that shares the code",
    "decorator",
    "lambdas with defaults of their own",
    "metaclass and class hooks",
    "nested coroutine and generators",
    "private names",
    "special methods",
    "super",
}


@pytest.mark.parametrize("name", [name for name in SHAPES if name not in OTHER_PROGRAMS])
def test_replacements_written_by_hand(name, module, worker):
    """They come from a module of their own, whose globals they keep."""
    functions, _ = SHAPES[name]
    target = module(source(name))
    other = module(source(name).replace("old", "new"), "lp_replacements")
    replacements = {id(code): function for code, function in originals(other, functions)}.values()
    carriers = originals(target, functions)
    before = [looks(function) for _, function in carriers]
    funcs = [lp.Func("stay", other.stay)]
    for function, new in zip(functions, replacements, strict=True):
        old_name, sympos = function if isinstance(function, tuple) else (function, 0)
        funcs.append(lp.Func(old_name, new, old_sympos=sympos))
    held, gate = worker(), kit.Gate()
    inside = held.begin(target.stay, gate)
    gate.arrived()
    lp.enable_patch(lp.Patch("p", [lp.Object("lp_target", funcs)]))
    assert set(target.probe()) == {"new"}
    gate.open()
    assert set(inside.result(kit.PATIENCE)) == {"old"}
    finish()
    assert set(target.probe()) == {"new"}
    lp.disable_patch("p")
    finish()
    for (code, function), look in zip(carriers, before, strict=True):
        assert function.__code__ is code
        assert_same_looks(looks(function), look)
    assert set(target.probe()) == {"old"}
    lp.unload_patch("p")


# -- what holds results --------------------------------------------------------------------------------------------


def test_caches_are_emptied_when_a_transition_completes(module):
    """Both ways, and also where another decorator stands between the cache and the function."""
    text = """
        import functools
        def deco(fn):
            @functools.wraps(fn)
            def wrapper(x): return fn(x)
            return wrapper
        @functools.lru_cache
        def near(x): return "old"
        @functools.cache
        @deco
        def far(x): return "old"
        @functools.lru_cache
        def other(x): return object()
        class C:
            @functools.lru_cache
            def m(self, x): return "old"
        c = C()
        def g(x, y): return "old"
        through = functools.cache(functools.partial(g, 1))
        C.bound = functools.cache(c.m.__wrapped__.__get__(c))
        def probe(): return [near(1), far(1), c.m(1), through(2), C.bound(1)]
    """
    target = module(text)
    kept = target.other(1)
    assert set(target.probe()) == {"old"}
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "near", "far", "g", "C.m"))
    assert set(target.probe()) == {"new"}
    assert target.other(1) is kept, "a cache around something else is left alone"
    kit.take_out("p")
    assert set(target.probe()) == {"old"}


@pytest.mark.parametrize("others", ["stay", "die"])
def test_a_cache_that_was_made_meanwhile_is_emptied_too(module, worker, others):
    """It is made around a trampoline, and nobody is told; that there are no more caches than before says nothing."""
    target, held = module("import functools\ndef f(x=None): return x and x() or 'old'"), worker()
    gate, before = kit.Gate(), [functools.lru_cache(lambda: 0) for _ in range(3)]
    inside = held.begin(target.f, gate)
    gate.arrived()
    lp.enable_patch(kit.built("p", target, "import functools\ndef f(x=None): return x and x() or 'new'", "f"))
    stayed = worker().begin(lambda: None)
    made = functools.lru_cache(target.f)
    results = []
    start_new_thread(lambda: results.append(made()), ())  # nobody knows this one: it starts in the old world
    kit.until(lambda: results == ["old"])
    if others == "die":
        before.clear()
    stayed.result(kit.PATIENCE)
    gate.open()
    inside.result(kit.PATIENCE)
    finish()
    assert made() == "new"
    kit.take_out("p")


def test_without_new_caches_a_transition_ends_without_a_pass_over_the_heap(module, monkeypatch):
    target = module("import functools\n@functools.cache\ndef f(): return 'old'")
    passes, look = [], gc.get_referrers
    assert target.f() == "old"
    lp.enable_patch(kit.built("p", target, "import functools\n@functools.cache\ndef f(): return 'new'", "f"))
    assert target.f() == "new"
    monkeypatch.setattr(gc, "get_referrers", lambda *things: passes.append(len(things)) or look(*things))
    caches.cached()
    assert len(passes) == 1
    caches.clear([target.f.__wrapped__])
    assert len(passes) == 1
    caches.clear([target.f.__wrapped__])
    assert len(passes) == 2, "what was known then is known no more"
    monkeypatch.undo()
    kit.take_out("p")


def test_a_result_of_the_old_version_does_not_reach_the_cache_after_completion(module, worker):
    """The call has left the old version and is on its way back through the trampoline to the cache around it.

    Its task has moved, so nothing but that trampoline keeps a round from completing, and emptying the cache too early.
    """
    text = """
        import functools
        @functools.cache
        def f(x):
            gates[x]()
            return "old"
    """
    gates, returning, done = [kit.Gate(), kit.Gate()], kit.Gate(), threading.Event()
    target, held = module(text, gates=gates), worker()

    def trace(frame, event, arg):
        if event == "return" and frame.f_code.co_filename == "<livepatch>" and arg == "old":
            returning()
        return trace

    def call():
        sys.settrace(trace)
        target.f(1)
        sys.settrace(None)
        done.set()

    inside = held.begin(target.f, 0)
    gates[0].arrived()
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
    start_new_thread(call, ())  # nobody knows this one: it starts in the old world
    gates[1].arrived()
    gates[0].open()
    inside.result(kit.PATIENCE)
    gates[1].open()
    returning.arrived()
    for _ in range(3):
        tick()
    returning.open()
    assert done.wait(kit.PATIENCE)
    finish()
    assert target.f(1) == "new"
    kit.take_out("p")


def test_values_that_a_cached_property_left_in_instances_stay(module):
    text = """
        import functools
        class C:
            @functools.cached_property
            def p(self): return "old"
    """
    target = module(text)
    seen, fresh = target.C(), target.C()
    assert seen.p == "old"
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "C.p"))
    finish()
    assert (seen.p, fresh.p) == ("old", "new")
    kit.take_out("p")


# -- several patches, and others who exchange code -----------------------------------------------------------------


def test_a_patch_that_takes_the_place_of_a_dead_one_in_memory_runs_its_own_code(module):
    """Redirections outlive patches, and whatever they remember by id must not."""
    text = "def f(): return 0"
    target = module(text)
    lp.enable_patch(kit.built("base", target, text.replace("0", "'base'"), "f"))
    for number in range(1, 16):
        lp.enable_patch(kit.built("p", target, text.replace("0", str(number)), "f"))
        assert target.f() == number
        kit.take_out("p")
        assert target.f() == "base"
    kit.take_out("base")
    assert target.f() == 0


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0], [0, 2, 1], [2, 0, 1]])
def test_stacked_patches_go_in_any_order(module, worker, order):
    """The front is the youngest that is left; a held thread sees what was in front when the transition began."""
    text = """
        def f(): return "old", 0
        def g(): return "old", 0
        def stay(gate):
            before = f(), g()
            gate()
            return before, (f(), g())
    """
    target, held = module(text), worker()
    for number in range(3):
        lp.enable_patch(kit.built(str(number), target, text.replace('"old", 0', f'"new", {number}'), "f", "g", "stay"))
        assert target.f() == target.g() == ("new", number)
    left = [0, 1, 2]
    for number in order:
        gate, front = kit.Gate(), left[-1]
        inside = held.begin(target.stay, gate)
        gate.arrived()
        lp.disable_patch(str(number))
        left.remove(number)
        assert [patch.stack_order for patch in lp.patches() if patch.enabled] in (
            [*range(1, len(left) + 1)],
            [1, 3],
            [2, 3],
            [2],
        )
        gate.open()
        assert inside.result(kit.PATIENCE) == ((("new", front),) * 2,) * 2
        finish()
        expected = ("new", left[-1]) if left else ("old", 0)
        assert target.f() == target.g() == expected
        assert [patch.name for patch in lp.patches()] == [str(number) for number in left]
        lp.unload_patch(str(number))


def test_disabling_a_patch_that_others_hide_does_not_touch_the_function(module, worker):
    """Its code runs nowhere: nobody is waited for, and no call is slower meanwhile."""
    text = """
        def f(gate=None):
            if gate: gate()
            return 0
    """
    target, held, gate = module(text), worker(), kit.Gate()
    lp.enable_patch(kit.built("a", target, text.replace("0", "1"), "f"))
    lp.enable_patch(kit.built("b", target, text.replace("0", "2"), "f"))
    inside = held.begin(target.f, gate)
    gate.arrived()
    code = target.f.__code__
    lp.disable_patch("a")
    assert not any(patch.transition for patch in lp.patches())
    assert target.f.__code__ is code
    gate.open()
    assert inside.result(kit.PATIENCE) == 2
    lp.unload_patch("a")
    kit.take_out("b")
    assert target.f() == 0


def test_code_that_somebody_else_put_there_stays(module):
    """Another tool exchanged the code of a patched function. More in tests/neighbours."""
    text = "def f(): return 'old'\ndef g(): return 'old'"
    target = module(text)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f", "g"))
    ours, foreign = target.f.__code__, (lambda: "foreign").__code__
    target.f.__code__ = foreign
    with pytest.raises(lp.LivepatchError, match="The code of 'f' in 'lp_target' has been exchanged") as caught:
        lp.disable_patch("p")
    assert caught.value.errno == errno.EBUSY
    assert target.f.__code__ is foreign
    assert target.g() == "new"
    target.f.__code__ = ours
    kit.take_out("p")
    assert target.f() == target.g() == "old"


def test_a_copy_made_during_a_transition_works_ever_after(module, worker):
    """It carries a trampoline of a transition that is over, and goes on to the function that it was copied from."""
    text = """
        def f(gate=None):
            if gate: gate()
            return "old"
    """
    target, held, gate = module(text), worker(), kit.Gate()
    inside = held.begin(target.f, gate)
    gate.arrived()
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
    copy = types.FunctionType(target.f.__code__, target.f.__globals__, "copy", (None,))
    assert copy() == "new"
    gate.open()
    assert inside.result(kit.PATIENCE) == "old"
    finish()
    assert copy() == "new"
    kit.take_out("p")
    assert copy() == "old"


def test_functions_that_were_frozen_are_found(module):
    """A server that forks calls gc.freeze() first, and the collector does not look at anything then."""
    text = "def f(): return 'old'"
    target = module(text)
    gc.freeze()
    try:
        lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
        assert target.f() == "new"
        assert gc.get_freeze_count()
        kit.take_out("p")
    finally:
        gc.unfreeze()
    assert target.f() == "old"


def test_the_locals_of_every_frame_can_be_read(module, worker):
    """Reporters of errors and debuggers do. A frame whose free variables are not filled in crashes CPython 3.11."""
    text = """
        class A:
            def m(self): raise ValueError("old")
        class C(A):
            def m(self, gate=None):
                if gate: gate()
                return super().m()
        def make(word):
            def inner(): raise ValueError(word)
            return inner
        kept = make("old")
    """

    def read():
        words = []
        for call in (target.C().m, target.kept):
            try:
                call()
            except ValueError as error:
                words.append(str(error))
                trace = error.__traceback__
                while trace:
                    assert isinstance(dict(trace.tb_frame.f_locals), dict)
                    trace = trace.tb_next
        return words

    target, held, gate = module(text), worker(), kit.Gate()
    inside = held.begin(target.C().m, gate)
    gate.arrived()

    def by_hand(self, gate=None):
        raise ValueError("new")

    def inner():
        raise ValueError("new")

    lp.enable_patch(kit.by_hand("p", target, C__m=by_hand, **{"make.<locals>.inner": inner}))
    assert read() == ["new", "new"]
    assert held.begin(read) is not None
    gate.open()
    assert isinstance(inside.exception(kit.PATIENCE), ValueError)
    finish()
    assert read() == ["new", "new"]
    kit.take_out("p")
    assert read() == ["old", "old"]
