"""What the collector shows of a program that goes on meanwhile."""

import sys

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import caches, carriers, heap, suspended, symbols


def function():
    return 1


class Thing:
    pass


def waiting():
    yield


THING, GENERATOR = Thing(), waiting()
next(GENERATOR)

#: What is asked for, and what a program puts into tuples meanwhile.
QUESTIONS = {
    "functions": (lambda: carriers.functions_of([function.__code__]), function.__code__),
    "generators": (lambda: suspended.find([waiting.__code__]), waiting.__code__),
    "symbols": (lambda: symbols.Tables([sys.modules[__name__]]), globals()),
    "instances": (lambda: heap.instances(Thing), THING),
    "each instance": (lambda: list(lp.each_instance(Thing)), THING),
    "size": (heap.size, THING),
    "caches": (caches.cached, type(caches.cached)),
    "holders": (lambda: heap.holders(GENERATOR), GENERATOR),
}


@pytest.mark.parametrize("question", QUESTIONS)
def test_tuples_that_are_being_made_are_left_alone(question):
    """Who holds one, even for an instant in which others run, lets `tuple(...)` of somebody fail: a SystemError."""
    ask, thing = QUESTIONS[question]
    made = []
    with kit.meanwhile(lambda: made.append(len(tuple(thing for _ in range(25)))), interval=1e-6):
        for _ in range(30):
            ask()
    assert set(made) == {25}


class Noisy(type):
    """A metaclass of somebody: to ask it may do anything."""

    def __eq__(cls, other):
        raise AssertionError

    def __hash__(cls):
        raise AssertionError

    def __subclasscheck__(cls, other):
        raise AssertionError

    def __instancecheck__(cls, other):
        raise AssertionError


def test_classes_are_not_asked():
    class Odd(metaclass=Noisy):
        pass

    class Odder(Odd):
        pass

    odd = [Odd(), Odder()]
    assert {type(thing).__name__ for thing in heap.instances(Odd)} == {"Odd", "Odder"}
    assert len(heap.referrers(Odder, of=Odd)) == 1
    assert any(holder is odd for holder in heap.holders(odd[0]))


def test_holders():
    """Tuples are shown where something else shows them."""
    thing = Thing()
    kept = {"in": (thing,), "by itself": thing}
    found = heap.holders(thing)
    assert [type(holder) for holder in found if type(holder) in (dict, tuple)] == [dict, tuple]
    assert any(holder is kept for holder in found)
    assert any(holder is kept["in"] for holder in found)


def test_counts_compare():
    """A look costs no reference more than none."""
    assert heap.counted(Thing)[0] == heap.counted(Thing, Noisy)[0] == heap.counted(Thing)[0]
    more = Thing()
    (count, found), before = heap.counted(Thing, Noisy), heap.counted(Thing)[0]
    assert count == before
    assert any(thing is more for thing in found)
