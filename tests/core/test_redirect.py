"""Redirection of every kind of function: in the middle of a transition, after it, and after the way back."""

import pytest

import livepatch as lp
from livepatch.core import cpython, redirect
from livepatch.core.symbols import Tables
from livepatch.testing import finish, tick
from tests.core import kit
from tests.core.shapes import SHAPES, source

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
    target, functions, patch = shape
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
        assert set(target.probe()) == {"new"}, "reversal makes no round"
        tick()
        assert set(target.probe()) == {"old"}
        assert not lp.patches()
        lp.unload_patch("p")
    gate.open()
    assert set(inside.result(kit.PATIENCE)) == {"old"}
    assert set(target.probe()) == {"old"}


HAND_WRITTEN = [name for name in SHAPES if name not in ("private names", "registry")]


@pytest.mark.parametrize("name", HAND_WRITTEN)
def test_replacements_written_by_hand(name, module, worker):
    """They come from a module of their own, whose globals they keep."""
    functions, _ = SHAPES[name]
    target = module(source(name))
    other = module(source(name).replace("old", "new"), "lp_replacements")
    news = originals(other, functions)
    wanted = {}
    for (code, new) in news:
        wanted.setdefault(id(code), new)
    carriers = originals(target, functions)
    before = [looks(function) for _, function in carriers]
    funcs = [
        lp.Func(*(f[0], new) if isinstance(f, tuple) else (f, new), old_sympos=f[1] if isinstance(f, tuple) else 0)
        for f, new in zip(functions, wanted.values(), strict=True)
    ]
    if "<locals>" in str(functions):
        pytest.skip("a replacement for a closure has cells of its own; see test_closures.py")
    patch = lp.Patch("p", [lp.Object("lp_target", [*funcs, lp.Func("stay", other.stay)])])
    held, gate = worker(), kit.Gate()
    inside = held.begin(target.stay, gate)
    gate.arrived()
    lp.enable_patch(patch)
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
