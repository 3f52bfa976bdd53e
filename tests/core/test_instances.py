"""Live instances: all that there were at one instant, of every kind of class that can promise it."""

import asyncio
import collections
import dataclasses
import enum
import errno
import functools
import gc
import re
import signal
import threading
import types
import typing
import weakref

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import heap


class Plain:
    pass


class Empty:
    __slots__ = ()


class Slotted:
    __slots__ = ("a",)


class Weak:
    __slots__ = ("__weakref__",)


class Int(int):
    __slots__ = ()


class Bytes(bytes):
    __slots__ = ()


class Float(float):
    __slots__ = ()


class Text(str):
    __slots__ = ()


class Tuple(tuple):
    __slots__ = ()


class Dict(dict):
    __slots__ = ()


class List(list):
    pass


class Error(Exception):
    pass


class Generic(typing.Generic[typing.TypeVar("T")]):
    pass


class Partial(functools.partial):
    pass


class Module(types.ModuleType):
    pass


class Meta(type):
    pass


class Local(threading.local):
    pass


class Deque(collections.deque):
    pass


@dataclasses.dataclass(slots=True)
class Record:
    a: int = 1


class Named(typing.NamedTuple):
    a: int


Point = collections.namedtuple("Point", "x")

KINDS = [Plain, Empty, Slotted, Weak, Int, Bytes, Float, Text, Tuple, Dict, List, Error, Generic, Local, Deque, Record]
MADE = {
    **{cls: cls for cls in KINDS},
    Partial: lambda: Partial(len),
    Module: lambda: Module("name"),
    Meta: lambda: Meta("C", (), {}),
    Named: lambda: Named(1),
    Point: lambda: Point(1),
}


@pytest.fixture(autouse=True)
def none_of_others():
    gc.collect()


@pytest.mark.parametrize("cls", MADE, ids=lambda cls: cls.__name__)
def test_every_kind_of_class(cls):
    """If a Python hides some of these from its collector, this fails, and `check_class` must know better."""
    made = [MADE[cls]() for _ in range(3)]
    for _ in range(2):
        assert {id(thing) for thing in lp.each_instance(cls)} == {id(thing) for thing in made}
        gc.collect()  # it stops to look at some objects that refer to nothing


def test_members_of_an_enumeration():
    class Color(enum.IntEnum):
        RED = 1
        BLUE = 2

    assert set(lp.each_instance(Color)) == set(Color)


WRITTEN_IN_C = [object, tuple, dict, int, type, types.FunctionType, types.FrameType, types.ModuleType, Exception]
WRITTEN_IN_C += [asyncio.Future, functools.partial, re.Pattern, collections.deque, type(threading.Lock()), type(len)]


@pytest.mark.parametrize("cls", WRITTEN_IN_C, ids=lambda cls: cls.__name__)
def test_what_is_written_in_c_is_refused(cls):
    with pytest.raises(lp.LivepatchError) as caught:
        lp.each_instance(cls)  # at once, not when the first is asked for
    assert caught.value.errno == errno.EINVAL
    sentence = f"Not all instances of '{cls.__qualname__}' can be found, since it is written in C; take a subclass"
    assert str(caught.value).startswith(sentence)


def test_what_is_no_class_is_refused():
    with pytest.raises(lp.LivepatchError, match=r"^each_instance needs a class, and 5 is none\.$"):
        lp.each_instance(5)


class Hostile(type):
    def __subclasscheck__(cls, other):
        raise AssertionError

    def __eq__(cls, other):
        raise AssertionError

    def __hash__(cls):
        raise AssertionError

    def __getattribute__(cls, name):
        raise AssertionError


def test_nobody_is_asked():
    class Odd(metaclass=Hostile):
        def __eq__(self, other):
            raise AssertionError

        def __bool__(self):
            raise AssertionError

        @property
        def __class__(self):
            raise AssertionError

    odd = Odd()
    (found,) = lp.each_instance(Odd)
    assert found is odd


def test_subclasses():
    class Child(Plain):
        pass

    class Grandchild(Child, Weak):
        pass

    made = Plain(), Child(), Grandchild()
    assert {type(thing) for thing in lp.each_instance(Plain)} == {Plain, Child, Grandchild}
    assert list(lp.each_instance(Plain, subclasses=False)) == [made[0]]
    assert list(lp.each_instance(Child, subclasses=False)) == [made[1]]


def test_who_poses_as_an_instance_is_none():
    class Proxy:
        @property
        def __class__(self):
            return Plain

    proxy = Proxy()
    assert isinstance(proxy, Plain)
    assert list(lp.each_instance(Plain)) == []


def test_each_is_let_go_of():
    made = [Plain() for _ in range(4)]
    gone = [weakref.ref(thing) for thing in made]
    found = lp.each_instance(Plain)
    made.clear()
    for count in range(1, 4):
        thing = next(found)
        del thing
        assert sum(reference() is None for reference in gone) == count
    del found
    assert all(reference() is None for reference in gone)


def test_what_is_made_meanwhile_is_not_among_them():
    made = [Plain()]
    for _ in lp.each_instance(Plain):
        made.append(Plain())
    assert len(made) == 2


def test_one_whose_constructor_has_not_returned():
    gate = kit.Gate()

    class Slow:
        def __init__(self):
            gate()
            self.done = True

    worker = kit.Worker()
    try:
        future = worker.begin(Slow)
        gate.arrived()
        (half,) = lp.each_instance(Slow)
        assert not hasattr(half, "done")
        gate.open()
        assert future.result(kit.PATIENCE) is half
    finally:
        gate.open()
        worker.close()


def test_frozen_objects_are_found_and_stay_frozen():
    made = [Plain() for _ in range(3)]
    gc.collect()
    gc.freeze()
    try:
        count = gc.get_freeze_count()
        assert {id(thing) for thing in lp.each_instance(Plain)} == {id(thing) for thing in made}
        assert gc.get_freeze_count() >= count
    finally:
        gc.unfreeze()


def test_the_size_of_the_heap():
    before = heap.size()
    made = [Plain() for _ in range(10_000)]
    assert heap.size() - before > len(made) // 2


@pytest.mark.parametrize("cls", [Tuple, Point, Bytes, Text, frozenset], ids=lambda cls: cls.__name__)
def test_sequences_that_are_being_filled_are_left_alone(cls):
    """Unlike a tuple itself, an instance of a subclass is made of a whole one: to hold it disturbs nobody."""

    class Frozen(frozenset):
        pass

    cls = Frozen if cls is frozenset else cls
    make = {Point: lambda: Point._make(str(n) for n in range(1)), Text: lambda: Text("text")}.get(
        cls, lambda: cls(n for n in range(25))
    )

    def program():
        assert len(make()) in (1, 4, 25)

    with kit.meanwhile(program, interval=1e-6):
        for _ in range(15):
            list(lp.each_instance(cls))


MANY = 20_000


def test_many_while_others_make_and_drop_theirs():
    """Whoever was there is given once, whatever is born and dies meanwhile, with finalizers that look themselves."""

    class Mortal(Plain):
        def __del__(self):
            self.last = True

    def live():
        kept = [Mortal() for _ in range(50)]
        references = [weakref.ref(thing, lambda _: Plain()) for thing in kept]
        circle = Mortal()
        circle.me = circle
        assert len(tuple(Plain() for _ in range(25))) == 25
        del kept, references, circle

    made = [Plain() if number % 2 else Mortal() for number in range(MANY)]
    wanted = {id(thing) for thing in made}
    with kit.meanwhile(live, threads=3):
        for _ in range(10):
            seen = collections.Counter(id(thing) for thing in lp.each_instance(Plain) if id(thing) in wanted)
            assert len(seen) == MANY
            assert set(seen.values()) == {1}


def test_interrupted_anywhere():
    """Ctrl-C in the middle leaves nothing behind: no instance held, and the collector as it was."""
    made = [Plain() for _ in range(2_000)]
    references = [weakref.ref(thing) for thing in made]
    interrupted = 0
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    try:
        for number in range(40):
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 * (number + 1))
                for _ in range(3):
                    for _ in lp.each_instance(Plain):
                        pass
            except KeyboardInterrupt:
                interrupted += 1
            finally:
                try:
                    signal.setitimer(signal.ITIMER_REAL, 0)
                except KeyboardInterrupt:
                    interrupted += 1
            assert gc.isenabled()
    finally:
        signal.signal(signal.SIGALRM, before)
    assert interrupted
    del made, _
    assert all(reference() is None for reference in references)
