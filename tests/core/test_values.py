"""Code that is given values for global names, and what is in the place of a name while a transition runs."""

import dis
import sys
import types

import pytest

from livepatch.core import cpython, values
from livepatch.core.model import Object, Value
from livepatch.core.values import substitute

SOURCE = """
def plain(): return X
def called(a): return X(a, X=a), X(*[a]), X(a).real
def attribute(o): return o.X, X, o.X
def method(o): return o.X(X)
def nested():
    class C:
        x = X
        def m(self): return X
    return [X for _ in range(2)], (lambda: X)(), {X: C.x}, C().m()
def own():
    class C:
        X = 1
        y = X
    return C.y
def generator():
    try:
        yield X
    except X:
        yield [X]
    finally:
        yield (X,)
async def coroutine(): return X
def large(o): return X, [MANY], o.X, X
""".replace("MANY", ", ".join(f"o.name{number}" for number in range(300)))


class _Some:
    def __getattr__(self, name):
        return lambda *args: (name, args) if args else name


@pytest.fixture
def functions():
    namespace = {"X": int}
    exec(SOURCE, namespace)
    return namespace


def given(function, **names):
    code = substitute(function.__code__, names)
    return types.FunctionType(code, function.__globals__)


def test_values_take_the_place_of_names(functions):
    some = _Some()
    some.X = "attribute"
    assert given(functions["plain"], X=5)() == 5
    assert given(functions["called"], X=lambda a, X=2: a * X)(3) == (9, 6, 6)
    assert given(functions["attribute"], X=5)(some) == ("attribute", 5, "attribute")
    some.X = lambda x: [x]
    assert given(functions["method"], X=5)(some) == [5]
    assert given(functions["nested"], X=5)() == ([5, 5], 5, {5: 5}, 5)
    assert given(functions["own"], X=5)() == 1
    made = given(functions["generator"], X=KeyError)()
    assert (next(made), made.throw(KeyError()), next(made)) == (KeyError, [KeyError], (KeyError,))
    large = given(functions["large"], X=5)(some)
    assert (large[0], large[3], len(large[1])) == (5, 5, 300)


def test_the_rest_of_the_code_is_as_it_was(functions):
    code = functions["generator"].__code__
    copy = substitute(code, {"X": KeyError})
    assert list(copy.co_lines()) == list(code.co_lines())
    assert copy.co_exceptiontable == code.co_exceptiontable
    assert copy.co_stacksize == code.co_stacksize
    assert not [i for i in dis.get_instructions(copy) if i.opname.startswith("LOAD_GLOBAL") and i.argval == "X"]
    assert substitute(code, {"Y": 1}) is code


def test_what_is_called_has_its_null_where_this_python_wants_it():
    names = [i.opname for i in dis.get_instructions("f(1)")]
    assert (names.index("PUSH_NULL") > names.index("LOAD_NAME")) is cpython.NULL_COMES_LAST


def test_a_module_shows_it_to_who_asks_for_an_attribute_only_as_long_as_it_must():
    module = types.ModuleType("some")
    module.x = 1
    kind = type(module)
    value = Value(module, "x", 2, 1)
    with values.seen_here([value]):
        assert (module.x, vars(module)["x"]) == (2, 1)
        assert isinstance(module, kind)
        assert type(module).__name__ == "module"
    assert type(module) is kind
    assert module.x == 1


def test_what_is_no_module_is_left_alone():
    entry = types.SimpleNamespace(x=1)
    with values.seen_here([Value(entry, "x", 2, 1)]):
        assert entry.x == 1


def test_settling_twice_is_settling_once():
    class C:
        x = 1

    obj = Object("some")
    obj.values = [Value(C, "x", 2, 1), Value(C, "y", 3, values.ABSENT), Value(sys, "lp_nothing", 4, values.ABSENT)]
    for _ in range(2):
        values.settle(obj, 1)
        assert (C.x, C.y, sys.lp_nothing) == (2, 3, 4)
    for _ in range(2):
        values.settle(obj, 0)
        assert C.x == 1
        assert not hasattr(C, "y")
        assert not hasattr(sys, "lp_nothing")
