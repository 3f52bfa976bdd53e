"""Neighbours who put something else where a function was: mocks, wrappers, registries, caches.

They hold the function object, and that is what a patch exchanges the code of. So calls go through them to the version
of the task, and when the patch or they go, in whatever order, the other is as it was.
"""

import copy
import functools
import inspect
import pickle
import sys
import threading
import unittest.mock

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.testing import finish

pytestmark = [pytest.mark.usefixtures("rounds_by_hand"), pytest.mark.once]

SOURCE = """
    import functools
    def f(x=1): return "old", x
    class C:
        def method(self, x=1): return "old", x
        @classmethod
        def of_class(cls, x=1): return "old", x
        @staticmethod
        def static(x=1): return "old", x
        @property
        def prop(self): return "old", 1
    def stay(call, gate):
        before = call()
        gate()
        return before, call()
"""
NEW = SOURCE.replace("old", "new")
NAMES = ("f", "C.method", "C.of_class", "C.static", "C.prop", "stay")
PLACES = {
    "function": (None, "f"),
    "method": ("C", "method"),
    "class method": ("C", "of_class"),
    "static method": ("C", "static"),
}
OLD, NEWS, SHOWN = ("old", 1), ("new", 1), ("shown",)


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture(params=PLACES)
def place(request, target):
    """Where a function is, and how to call what is there."""

    class Place:
        def __init__(self):
            cls, self.name = PLACES[request.param]
            self.owner = getattr(target, cls) if cls else target
            self.holder = vars(self.owner)[self.name]

        def call(self):
            return getattr(self.owner() if isinstance(self.owner, type) else self.owner, self.name)()

    return Place()


def patch(target, name="p"):
    return kit.built(name, target, NEW, *NAMES)


def wrapped_by_hand(place):
    """A wrapper in the place of the function, of the same kind; returns what takes it away."""
    held = place.holder
    inner = getattr(held, "__func__", held)

    @functools.wraps(inner)
    def wrapper(*args, **kwargs):
        return ("shown", *inner(*args, **kwargs))

    setattr(place.owner, place.name, type(held)(wrapper) if inner is not held else wrapper)
    return lambda: setattr(place.owner, place.name, held)


def wrapped_by_wrapt(place):
    wrapt = pytest.importorskip("wrapt")

    def wrapper(wrapped, instance, args, kwargs):
        return ("shown", *wrapped(*args, **kwargs))

    wrapt.wrap_function_wrapper(place.owner, place.name, wrapper)
    return lambda: setattr(place.owner, place.name, place.holder)


def wrapped_by_mock(place):
    """A spy: a mock with the signature of the function, which calls it."""
    held = place.holder
    inner = getattr(held, "__func__", held)

    def spy(*args, **kwargs):
        return ("shown", *inner(*args, **kwargs))

    kind = type(held) if inner is not held else lambda spy: spy
    mock = unittest.mock.patch.object(place.owner, place.name, new=kind(spy))
    mock.start()
    return mock.stop


WRAPPERS = [wrapped_by_hand, wrapped_by_wrapt, wrapped_by_mock]


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("order", ["patch", "wrapper"])
def test_a_wrapper_before_the_patch(target, place, wrap, order, held):
    """It goes on, around the version of whoever calls."""
    unwrap = wrap(place)
    assert place.call() == SHOWN + OLD
    held.begin(target.stay, place.call)
    lp.enable_patch(patch(target))
    assert place.call() == SHOWN + NEWS
    assert held.release() == (SHOWN + OLD,) * 2
    finish()
    if order == "patch":
        kit.take_out("p")
        assert place.call() == SHOWN + OLD
        unwrap()
    else:
        unwrap()
        assert place.call() == NEWS
        kit.take_out("p")
    assert place.call() == OLD
    assert vars(place.owner)[place.name] is place.holder


@pytest.mark.parametrize("wrap", WRAPPERS)
@pytest.mark.parametrize("order", ["patch", "wrapper", "in between"])
def test_a_wrapper_in_the_middle_of_a_transition(target, place, wrap, order, held):
    held.begin(target.stay, place.call)
    lp.enable_patch(patch(target))
    unwrap = wrap(place)
    assert place.call() == SHOWN + NEWS
    if order == "in between":
        unwrap()
    assert held.release() == (OLD, OLD if order == "in between" else SHOWN + OLD)
    finish()
    if order == "patch":
        held.begin(target.stay, place.call)
        lp.disable_patch("p")
        assert place.call() == SHOWN + OLD
        assert held.release() == (SHOWN + NEWS,) * 2
        finish()
        lp.unload_patch("p")
        unwrap()
    else:
        unwrap()
        assert place.call() == NEWS
        kit.take_out("p")
    assert place.call() == OLD
    assert vars(place.owner)[place.name] is place.holder


def test_a_mock_hides_a_patch_and_gives_back_the_function(target, place):
    """Whatever has become of the function meanwhile."""
    with unittest.mock.patch.object(place.owner, place.name, autospec=True) as mock:
        mock.return_value = "mocked"
        lp.enable_patch(patch(target))
        assert place.call() == "mocked"
    assert place.call() == NEWS
    with unittest.mock.patch.object(place.owner, place.name, return_value="mocked"):
        kit.take_out("p")
        assert place.call() == "mocked"
    assert place.call() == OLD
    assert vars(place.owner)[place.name] is place.holder


def test_a_mock_specified_by_a_function_in_the_middle_of_a_transition(target, held):
    held.begin(target.stay, target.f)
    lp.enable_patch(patch(target))
    spec = unittest.mock.create_autospec(target.f, return_value=5)
    assert spec(x=3) == 5
    with pytest.raises(TypeError):
        spec(1, 2, 3)
    held.release()
    finish()
    kit.take_out("p")


# -- signatures, pickles, registries ---------------------------------------------------------------------------------


def test_signatures_through_chains_of_wrappers_are_those_of_the_version(module, held):
    text = """
        import functools
        def deco(fn):
            @functools.wraps(fn)
            def wrapper(*args, **kwargs): return fn(*args, **kwargs)
            return wrapper
        @deco
        @deco
        def f(x): return "old"
        def stay(gate): gate()
    """
    target = module(text)
    new = text.replace("def f(x)", "def f(x, y=2)").replace("old", "new").replace("gate()", "gate(); 0", 1)
    added = {"f": {"__defaults__": (2,)}}
    lp.enable_patch(kit.built("p", target, new, "f", attributes=added))
    assert str(inspect.signature(target.f)) == "(x, y=2)"
    assert inspect.unwrap(target.f)(1, 3) == "new"
    kit.take_out("p")
    assert str(inspect.signature(target.f)) == "(x)"
    with pytest.raises(TypeError):
        target.f(1, 2)


def test_functions_are_pickled_and_copied_by_name_at_any_time(target, held):
    """What was pickled in one world is the function of the other, too: it is the same."""

    def round_trip():
        things = [target.f, target.C.method, target.C.of_class, target.C().method, functools.partial(target.f, 2)]
        for thing in things:
            assert copy.deepcopy(thing)() if thing is not target.C.method else True
        return [pickle.dumps(thing) for thing in things]

    before = round_trip()
    held.begin(target.stay, target.f)
    lp.enable_patch(patch(target))
    middle = round_trip()
    held.release()
    finish()
    after = round_trip()
    for pickled in (before, middle, after):
        f, method, of_class, bound, partial = map(pickle.loads, pickled)
        assert f is target.f
        assert f() == method(target.C()) == of_class() == bound() == NEWS
        assert partial() == ("new", 2)
    kit.take_out("p")
    assert pickle.loads(after[0])() == OLD


def test_single_dispatch(module, held):
    """Registrations are functions like any other; one that comes meanwhile stays."""
    text = """
        import functools
        @functools.singledispatch
        def show(x): return "old"
        @show.register
        def of_int(x: int): return "old int"
        class C:
            @functools.singledispatchmethod
            def show(self, x): return "old"
            @show.register
            def of_int(self, x: int): return "old int"
        def stay(call, gate):
            before = call()
            gate()
            return before, call()
    """
    target = module(text)

    def shown():
        return target.show(""), target.show(1), target.C().show(""), target.C().show(1)

    old = ("old", "old int") * 2
    new = ("new", "new int") * 2
    assert shown() == old
    held.begin(target.stay, shown)
    names = ("show", "of_int", "C.show", "C.of_int", "stay")
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), *names))
    assert shown() == new
    target.show.register(float, lambda x: "theirs")
    assert held.release() == (old, old)
    finish()
    assert shown() == new
    assert target.show(1.0) == "theirs"
    kit.take_out("p")
    assert shown() == old
    assert target.show(1.0) == "theirs"


# -- caches ------------------------------------------------------------------------------------------------------------


def test_caches_around_wrappers_are_emptied(module):
    """wrapt's wrappers look like what they wrap, and have no `__wrapped__` of their own in their namespace."""
    wrapt = pytest.importorskip("wrapt")
    text = """
        import functools
        @functools.cache
        @shown
        def f(): return "old"
        class C:
            @functools.cache
            @shown
            def m(self): return "old"
        c = C()
        def plain(): return "old"
    """

    @wrapt.decorator
    def shown(wrapped, instance, args, kwargs):
        return "shown", wrapped(*args, **kwargs)

    target = module(text, shown=shown)
    bound = functools.cache(shown(target.plain))

    def results():
        assert target.f.cache_info().currsize == 0
        return {target.f(), target.c.m(), bound()}

    assert results() == {("shown", "old")}
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f", "C.m", "plain"))
    assert results() == {("shown", "new")}
    kit.take_out("p")
    assert results() == {("shown", "old")}


def test_a_cache_around_a_function_that_somebody_has_wrapped_inside(module):
    """The function carries a wrapper's code and the copy ours; the cache is around the function."""
    from tests.neighbours import exchange

    text = """
        import functools
        def f(): return "old"
        cached = functools.cache(f)
    """
    target = module(text)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
    unwrap = exchange.wrap(target.f, lambda inner, args, kwargs: ("shown", inner()))
    assert target.cached() == ("shown", "new")
    kit.take_out("p")
    assert target.cached() == ("shown", "old")
    unwrap()


def test_cached_properties_stay_and_it_is_said(module):
    text = """
        import functools
        class C:
            @functools.cached_property
            def p(self): return "old"
            @functools.cached_property
            def untouched(self): return "old"
    """
    target = module(text)
    seen, fresh = target.C(), target.C()
    assert seen.p == "old"
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "C.p"))
    assert (seen.p, fresh.p) == ("old", "new")
    kit.take_out("p")
    assert (seen.p, fresh.p, target.C().p) == ("old", "new", "old")
    sentence = "livepatch: what the cached property 'C.p' has left in instances stays"
    assert lp.dmesg().count(sentence) == 2
    assert not any("untouched" in line for line in lp.dmesg())


# -- import hooks ------------------------------------------------------------------------------------------------------


def test_hooks_that_wait_for_a_module_which_a_patch_waits_for(tmp_path, monkeypatch, module):
    """Each in front of the other on the way of the import."""
    wrapt = pytest.importorskip("wrapt")
    finders = list(sys.meta_path)
    monkeypatch.syspath_prepend(tmp_path)

    def hook(target):
        met.append(target.f())
        wrapt.wrap_function_wrapper(target, "f", lambda wrapped, _, args, kwargs: ("shown", wrapped()))

    def new():
        return "new"

    def heard(obj):
        called.append(obj.module_state)

    try:
        for first in ("patch", "hook"):
            name, met, called = f"lp_hooked_{first}", [], []
            (tmp_path / f"{name}.py").write_text("def f(): return 'old'\nborn = f()\n")
            steps = [
                lambda: lp.enable_patch(
                    lp.Patch("p", [lp.Object(name, [lp.Func("f", new)], callbacks=lp.Callbacks(heard, heard))])
                ),
                lambda: wrapt.register_post_import_hook(hook, name),
            ]
            for step in steps if first == "patch" else steps[::-1]:
                step()
            target = __import__(name)
            assert met == ["new"]
            assert called == ["COMING", "COMING"]
            assert (target.born, target.f()) == ("new", ("shown", "new"))
            kit.take_out("p")
            assert target.f() == ("shown", "old")
    finally:
        sys.meta_path[:] = finders  # wrapt leaves its own there


def test_who_wraps_the_starter_of_threads_in_the_middle_of_a_transition(target, held, monkeypatch):
    """Our hook is inside of theirs then, and neither is lost."""
    name = next(n for n in ("_start_joinable_thread", "_start_new_thread") if hasattr(threading, n))
    before, met = getattr(threading, name), []
    held.begin(target.stay, target.f)
    lp.enable_patch(patch(target))
    ours = getattr(threading, name)

    def theirs(*args, **kwargs):
        met.append(threading.get_ident())
        return ours(*args, **kwargs)

    setattr(threading, name, theirs)
    seen = []
    for _ in range(2):
        thread = threading.Thread(target=lambda: seen.append(target.f()))
        thread.start()
        thread.join()
        if held.inside:
            held.release()
            finish()
    assert seen == [NEWS, NEWS]
    assert len(met) == 2
    assert getattr(threading, name) is theirs
    kit.take_out("p")
    assert getattr(threading, name) is theirs
    setattr(threading, name, before)
