"""What is around the code of a function: defaults, signature, annotations, docstring, its kind, and its class."""

import asyncio
import inspect

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import cpython
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


def release(held):
    """Let the held thread go on, and the transition complete; gives what the thread returned."""
    result = held.release()
    finish()
    return result


STAY = """
def stay(gate):
    gate()
    return look()
"""
OLD = (
    STAY
    + '''
def f(a, b=1, *, k=2):
    """Old."""
    return a, b, k
kept = f
def look(): return f(0), f(0, k=9)
'''
)
NEW = (
    STAY
    + '''
def f(a, b=10, c=11, *, k=20, j=21):
    """New."""
    return a, b, c, k, j
'''
)
CHANGES = {"__defaults__": (10, 11), "__kwdefaults__": {"k": 20, "j": 21}, "__doc__": "New."}


def test_defaults_and_signature_change_with_the_code(module, held):
    target = module(OLD)
    defaults, kwdefaults = target.f.__defaults__, target.f.__kwdefaults__
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, NEW, "f", "stay", attributes={"f": CHANGES}))
    assert target.look() == ((0, 10, 11, 20, 21), (0, 10, 11, 9, 21))
    assert target.f(0, c=5) == (0, 10, 5, 20, 21), "a moved task may use the new parameters"
    assert release(held) == ((0, 1, 2), (0, 1, 9)), "and one that has not moved gets the old defaults"
    assert str(inspect.signature(target.kept)) == "(a, b=10, c=11, *, k=20, j=21)"
    assert target.f.__doc__ == "New."
    assert target.look() == ((0, 10, 11, 20, 21), (0, 10, 11, 9, 21))
    kit.take_out("p")
    assert str(inspect.signature(target.kept)) == "(a, b=1, *, k=2)"
    assert target.f.__doc__ == "Old."
    assert target.f.__defaults__ is defaults
    assert target.f.__kwdefaults__ is kwdefaults


def test_defaults_of_a_replacement_written_by_hand(module, held):
    def f(a, b=10, c=11, *, k=20, j=21):
        "New."
        return a, b, c, k, j

    target = module(OLD)
    held.begin(target.stay)
    lp.enable_patch(kit.by_hand("p", target, f=f, stay=lambda gate: gate()))
    assert target.look() == ((0, 10, 11, 20, 21), (0, 10, 11, 9, 21))
    assert release(held) == ((0, 1, 2), (0, 1, 9))
    assert inspect.signature(target.f) == inspect.signature(f)
    assert target.f.__doc__ == "New."
    assert f.__code__.co_filename == __file__
    kit.take_out("p")
    assert target.look() == ((0, 1, 2), (0, 1, 9))
    assert f.__defaults__ == (10, 11)


def test_defaults_that_are_taken_away(module):
    target = module("def f(a=1, *, k=2): return a, k")
    lp.enable_patch(
        kit.built(
            "p",
            target,
            "def f(a, *, k): return a, k",
            "f",
            attributes={"f": {"__defaults__": None, "__kwdefaults__": None}},
        )
    )
    with pytest.raises(TypeError, match="missing 1 required positional argument"):
        target.f()
    kit.take_out("p")
    assert target.f() == (1, 2)


def test_each_copy_keeps_defaults_that_the_patch_does_not_mention(module):
    text = """
        import types
        def f(a=1): return "old", a
        g = types.FunctionType(f.__code__, f.__globals__, "g", (2,))
    """
    target = module(text)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
    assert (target.f(), target.g()) == (("new", 1), ("new", 2))
    kit.take_out("p")
    assert (target.f(), target.g()) == (("old", 1), ("old", 2))


def test_attributes_may_be_filled_in_as_late_as_pre_patch(module):
    body = lp.Body(kit.bodies("def f(a=1): return a")["f", 1])
    target = module("def f(a=0): return a")

    def pre_patch(obj):
        assert obj.module is target
        body.attributes["__defaults__"] = (obj.module.f() + 7,)

    callbacks = lp.Callbacks(pre_patch=pre_patch)
    lp.enable_patch(lp.Patch("p", [lp.Object("lp_target", [lp.Func("f", body)], callbacks=callbacks)]))
    assert target.f() == 7
    kit.take_out("p")
    assert target.f() == 0


def test_annotations_change_and_come_back(module):
    text = "def f(a: int) -> 'str': return a"
    target = module(text)
    before = target.f.__annotations__
    patch = kit.built("p", target, text, "f", attributes={"f": {"__annotations__": {"a": float}}})
    lp.enable_patch(patch)
    assert inspect.get_annotations(target.f) == {"a": float}
    assert inspect.signature(target.f).parameters["a"].annotation is float
    kit.take_out("p")
    assert target.f.__annotations__ == before == {"a": int, "return": "str"}


def test_annotations_of_a_replacement_written_by_hand(module):
    def f(a: float) -> list[int]:
        return a

    target = module("def f(a: int) -> 'str': return a")
    lp.enable_patch(kit.by_hand("p", target, f=f))
    assert inspect.get_annotations(target.f) == {"a": float, "return": list[int]}
    kit.take_out("p")
    assert inspect.get_annotations(target.f) == {"a": int, "return": "str"}


@pytest.mark.skipif(not cpython.LAZY_ANNOTATIONS, reason="annotations are computed when the function is made")
def test_annotations_that_cannot_be_computed_are_left_alone(module):
    """They name something that is imported for type checkers only: reading them raises, and we need not read them."""
    text = "def f(a: Nowhere) -> 'x': return 'old'"
    target = module(text)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
    assert target.f(1) == "new"
    with pytest.raises(NameError):
        target.f.__annotations__
    kit.take_out("p")
    target.Nowhere = int
    assert target.f.__annotations__ == {"a": int, "return": "x"}


@pytest.mark.skipif(not cpython.LAZY_ANNOTATIONS, reason="annotations are computed when the function is made")
def test_annotations_that_somebody_has_read_are_the_same_object_afterwards(module):
    text = "def f(a: int): return 'old'"
    target = module(text)
    read = target.f.__annotations__
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
    assert target.f.__annotations__ is read
    kit.take_out("p")
    assert target.f.__annotations__ is read


@pytest.mark.skipif(not cpython.TYPE_PARAMS, reason="needs PEP 695")
def test_type_parameters_change_and_come_back(module):
    text = "def f[T](a: T): return 'old'"
    target = module(text)
    (before,) = target.f.__type_params__
    (other,) = module("def f[S](a: S): return 'new'", "lp_other").f.__type_params__
    lp.enable_patch(
        kit.built("p", target, text.replace("old", "new"), "f", attributes={"f": {"__type_params__": (other,)}})
    )
    assert target.f(1) == "new"
    assert target.f.__type_params__ == (other,)
    kit.take_out("p")
    assert target.f.__type_params__ == (before,)


def test_attributes_that_somebody_set_are_not_touched(module, held):
    target = module(OLD)
    target.f.mark = mark = object()
    target.f.__name__ = "renamed"
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, NEW, "f", "stay", attributes={"f": CHANGES}))
    assert target.f.mark is mark
    release(held)
    assert (target.f.mark, target.f.__name__) == (mark, "renamed")
    kit.take_out("p")
    assert vars(target.f) == {"mark": mark}


# -- what others see of a function ------------------------------------------------------------------------------

KINDS = """
    import types
    def plain(a, b=2, *rest, k=3, **more):
        "Plain."
        return "old"
    async def coroutine(a): return "old"
    def generator(a): yield "old"
    async def async_generator(a): yield "old"
    @types.coroutine
    def iterable_coroutine(a): yield "old"
    def stay(gate):
        gate()
        return "old"
    def look(): return "old"
"""
NAMES = ("plain", "coroutine", "generator", "async_generator", "iterable_coroutine")


def seen(function):
    questions = (
        inspect.isfunction,
        inspect.iscoroutinefunction,
        inspect.isgeneratorfunction,
        inspect.isasyncgenfunction,
        lambda f: bool(f.__code__.co_flags & inspect.CO_ITERABLE_COROUTINE),
        lambda f: str(inspect.signature(f)),
        lambda f: (f.__name__, f.__qualname__, f.__module__, f.__doc__),
        lambda f: f.__code__.co_name,
        lambda f: f.__code__.co_firstlineno > 0,
    )
    return [question(function) for question in questions]


@pytest.mark.parametrize("by_hand", [False, True])
def test_a_function_looks_the_same_during_a_transition_and_after_it(module, held, by_hand):
    """Frameworks ask a function what it is, at any time, and remember the answer."""
    target = module(KINDS)
    before = {name: seen(getattr(target, name)) for name in NAMES}
    held.begin(target.stay)
    if by_hand:
        other = module(KINDS.replace("old", "new"), "lp_other")
        lp.enable_patch(kit.by_hand("p", target, stay=other.stay, **{name: getattr(other, name) for name in NAMES}))
    else:
        lp.enable_patch(kit.built("p", target, KINDS.replace("old", "new"), "stay", *NAMES))
    assert {name: seen(getattr(target, name)) for name in NAMES} == before
    release(held)
    assert {name: seen(getattr(target, name)) for name in NAMES} == before
    kit.take_out("p")
    assert {name: seen(getattr(target, name)) for name in NAMES} == before


def test_wrong_arguments_are_refused_at_the_call_during_a_transition_too(module, held):
    """Not when the generator is started or the coroutine awaited, where nobody expects it."""
    target = module(KINDS)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, KINDS.replace("old", "new"), "stay", *NAMES))
    for name in NAMES:
        with pytest.raises(TypeError, match=rf"{name}\(\) missing 1 required positional argument: 'a'"):
            getattr(target, name)()
    release(held)
    kit.take_out("p")


def test_what_calls_give_has_the_name_of_the_function(module, held):
    target = module(KINDS)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, KINDS.replace("old", "new"), "stay", *NAMES))
    for name in NAMES[1:]:
        made = getattr(target, name)(1)
        assert (made.__name__, made.__qualname__) == (name, name)
        if inspect.iscoroutine(made):
            made.close()
    made = target.coroutine(1)
    assert inspect.iscoroutine(made)
    made.close()
    assert inspect.isasyncgen(target.async_generator(1))
    assert inspect.isgenerator(target.generator(1))
    assert inspect.isawaitable(target.iterable_coroutine(1))
    release(held)
    kit.take_out("p")


def test_a_coroutine_that_nobody_awaited_is_still_reported(module, held):
    target = module(KINDS)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, KINDS.replace("old", "new"), "stay", *NAMES))
    with pytest.warns(RuntimeWarning, match="coroutine 'coroutine' was never awaited"):
        target.coroutine(1)
    release(held)
    kit.take_out("p")


def test_cancelling_reaches_the_coroutine_through_its_trampoline(module, held):
    text = """
        import asyncio
        async def f(started, met):
            started.set()
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                met.append("old")
                raise
            finally:
                met.append("old finally")
        def stay(gate): gate()
        def look(): pass
    """
    target = module(text)
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "stay", "f"))

    async def main():
        started, met = asyncio.Event(), []
        task = asyncio.create_task(target.f(started, met))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return met

    assert asyncio.run(main()) == ["new", "new finally"]
    release(held)
    kit.take_out("p")


# -- super() where there was none ----------------------------------------------------------------------------------

WITHOUT = """
    class A:
        def m(self): return "base"
        @classmethod
        def c(cls): return "base"
    class B(A):
        class Inner(A):
            def m(self, x=1): return "without", x
        def m(self, x=1): return "without", x
        @classmethod
        def c(cls): return "without"
    class Sub(B): pass
    def probe(): return B().m(), Sub().m(x=2), B.Inner().m(), Sub.c()
"""
WITH = WITHOUT.replace('return "without", x', "return super().m(), x, __class__.__name__").replace(
    'return "without"', "return super().c()"
)
METHODS = ("B.m", "B.Inner.m", "B.c")
RESULTS = {
    WITHOUT: (("without", 1), ("without", 2), ("without", 1), "without"),
    WITH: (("base", 1, "B"), ("base", 2, "B"), ("base", 1, "Inner"), "base"),
}


@pytest.mark.parametrize(("old", "new"), [(WITHOUT, WITH), (WITH, WITHOUT)])
def test_super_comes_or_goes(module, held, old, new):
    stay = "\n    def stay(gate):\n        gate()\n        return probe()\n"
    target = module(old + stay)
    codes = [target.B.m.__code__, target.B.Inner.m.__code__, target.B.c.__func__.__code__]
    target.look = target.probe
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, new + stay, "stay", *METHODS))
    assert target.probe() == RESULTS[new]
    assert release(held) == RESULTS[old]
    assert target.probe() == RESULTS[new]
    kit.take_out("p")
    assert target.probe() == RESULTS[old]
    assert [target.B.m.__code__, target.B.Inner.m.__code__, target.B.c.__func__.__code__] == codes


def test_super_that_comes_finds_the_class_by_its_name_or_refuses(module):
    """The class was removed from the module: nothing says what `__class__` is. Nothing may be left half done."""
    target = module(WITHOUT + "\n    Kept = B\n    del B")
    with pytest.raises(lp.LivepatchError, match=r"'B\.m' cannot be given the free variables") as caught:
        lp.enable_patch(kit.built("p", target, WITH, *METHODS))
    assert caught.value.symbol == "EINVAL"
    assert target.Kept().m() == ("without", 1)
    assert not lp.patches()


@pytest.mark.parametrize("nested", [False, True])
def test_a_body_with_free_variables_that_do_not_exist_is_refused(module, nested):
    if nested:
        old = "def f(x):\n    def g(): return x\n    return g\nkept = f(1)"
        new = "def f(x, y):\n    def g(): return x, y\n    return g"
        name = "f.<locals>.g"
        ask = lambda: target.kept()
    else:
        old = "def f(): return 1"
        new = "def make(x):\n    def f(): return x\n    return f"
        name = "f"
        ask = lambda: target.f()
    target = module(old)
    code = kit.bodies(new)["f.<locals>.g" if nested else "make.<locals>.f", 1]
    with pytest.raises(lp.LivepatchError, match="free variables") as caught:
        lp.enable_patch(lp.Patch("p", [lp.Object("lp_target", [lp.Func(name, lp.Body(code))])]))
    assert caught.value.symbol == "EINVAL"
    assert ask() == 1
    assert not lp.patches()
    assert not lp.core.registry.loaded()
    lp.enable_patch(kit.built("again", target, old, "f"))
    finish()
    kit.take_out("again")
