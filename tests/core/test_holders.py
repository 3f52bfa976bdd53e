"""Who holds a suspended frame: named for people, and counted for the transition."""

import contextlib
import gc
import itertools
import re
import types
import weakref

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import cpython
from livepatch.core.holders import held_by, held_only_by
from livepatch.core.suspended import find, statuses_of
from livepatch.testing import finish

APP = """
    import asyncio, collections, contextlib, functools, threading, types
    def gen():
        yield "old"
        yield "old"
    @contextlib.contextmanager
    def managed(): yield "old"
    def started():
        generator = gen()
        next(generator)
        return generator
    @types.coroutine
    def pause(): yield
    class Pool:
        class Inner: pass
        def __init__(self, current): self.current = current
    class Slots:
        __slots__ = ("first", "second")
    class Thief:
        def __getattribute__(self, name): raise AssertionError(name)
    def closes_over(thing): return lambda: thing
    def entered(manager):
        manager.__enter__()
        return manager
    def stack(*managers):
        made = contextlib.ExitStack()
        for manager in managers: made.enter_context(manager)
        return made
    async def coro(thing):
        await pause()
        return thing
    async def loops():
        for _ in gen(): await pause()
    async def enters():
        with managed(): await pause()
    def begun(coroutine):
        coroutine.send(None)
        return coroutine
"""


@pytest.fixture
def app(module):
    return module(APP, "lp_app")


#: What a program does with a generator, and how that is put into words.
PLACES = {
    "pool = Pool(started())": "lp_app.Pool.current",
    "pool = Pool(started()); vars(pool)": "lp_app.Pool.current",
    "inner = Pool.Inner(); inner.job = started()": "lp_app.Pool.Inner.job",
    "Pool.Inner.shared = started()": "lp_app.Pool.Inner.shared",
    "slots = Slots(); slots.second = started()": "lp_app.Slots.second",
    "current = started()": "lp_app.current",
    "jobs = {'first': [(started(), 1)]}": "a tuple in a list in a dict in lp_app.jobs",
    "pool = Pool(collections.deque([started()]))": "a deque in lp_app.Pool.current",
    "later = functools.partial(next, started())": "a tuple in a partial in lp_app.later",
    "lines = enumerate(started())": "an enumerate in lp_app.lines",
    "ready = closes_over(started())": "function lp_app.closes_over.<locals>.<lambda>",
    "pool = Pool(stack(managed()))": "an ExitStack in lp_app.Pool.current",
    "manager = entered(managed())": "a context manager in lp_app.manager",
    "thief = Thief(); object.__setattr__(thief, 'loot', started())": "lp_app.Thief.loot",
    "suspended = begun(loops())": "loops (lp_app_old.py)",
    "suspended = begun(enters())": "a context manager in enters (lp_app_old.py)",
}


@pytest.mark.parametrize("place", PLACES)
def test_a_blocker_is_named_with_what_holds_it(app, place):
    exec(place, vars(app))
    things = find([app.gen.__code__, app.managed.__wrapped__.__code__])
    (words,) = held_by(things)
    assert re.sub(r":\d+\)", ")", words) == PLACES[place]
    (status,) = statuses_of(things, 0)
    assert status.origin == f"held by {words}"
    assert status.name == "generator"


def test_a_local_variable_of_a_suspended_frame(app):
    app.kept = app.begun(app.coro(app.started()))
    (words,) = held_by(find([app.gen.__code__]))
    assert re.search(r"coro \(lp_app_old.py:\d+\)$", words)
    assert words.startswith("local thing of ") is cpython.LOCALS_ARE_A_VIEW


RUNNING = """
    def variable(gate):
        mine = started()
        gate()
    def variable_of_a_stack(gate):
        with stack(managed()) as mine:
            gate()
    def loop(gate):
        for _ in gen():
            gate()
    def block(gate):
        with managed():
            gate()
"""


@pytest.mark.parametrize("function", ["variable", "variable_of_a_stack", "loop", "block"])
def test_what_only_a_running_call_holds(app, module, held, function):
    """The collector does not see into frames that run."""
    user = module(APP + RUNNING, "lp_user")
    held.begin(getattr(user, function))
    (words,) = held_by(find([user.gen.__code__, user.managed.__wrapped__.__code__]))
    held.release()
    of = f"{function} (lp_user_old.py:"
    if cpython.LOCALS_ARE_A_VIEW and "variable" in function:
        assert f"local mine of {of}" in words
    else:
        assert "a call that is running" in words
        assert f"probably {of}" in words or function == "variable", "that mentions `started` only"
    assert words.startswith(("an ExitStack in ", "a context manager in ", "a call", "local"))


def test_asking_keeps_nothing_alive(app, module, held, garbage):
    """Up to 3.12 a frame keeps a copy of its variables once somebody asked for them, and the object with it."""
    user = module(
        APP
        + """
    def keeps_and_drops(gate):
        mine = started()
        gate()
        del mine
        gate.second()
    """,
        "lp_user",
    )
    gates = kit.Gate(), kit.Gate()
    gates[0].second = gates[1]
    worker = kit.Worker()
    going = worker.begin(user.keeps_and_drops, gates[0])
    gates[0].arrived()
    held_by(find([user.gen.__code__]))
    gates[0].open()
    gates[1].arrived()
    assert find([user.gen.__code__]) == []
    gates[1].open()
    going.result(kit.PATIENCE)
    worker.close()


def test_many_at_once_in_a_few_passes(app):
    app.pool = app.Pool([app.started() for _ in range(500)])
    shown = statuses_of(find([app.gen.__code__]), 0)
    assert len(shown) == 500
    named = [status.origin for status in shown if status.origin]
    assert named == ["held by a list in lp_app.Pool.current"] * 50


def test_status_and_check_say_what_holds_it(app, rounds_by_hand):
    app.pool = app.Pool(app.started())
    lp.enable_patch(kit.built("p", app, APP.replace("old", "new"), "gen"))
    (blocker,) = [task for task in lp.tasks() if task.kind == "suspended"]
    assert blocker.origin == "held by lp_app.Pool.current"
    app.pool.current.close()
    finish()
    kit.take_out("p")


# -- as a proof ------------------------------------------------------------------------------------------------


def generators(things):
    return [thing for thing in things if isinstance(thing, types.GeneratorType) and thing.gi_code.co_name != "pause"]


@types.coroutine
def pause():
    yield


def gen():
    yield 1
    yield 2


def begun():
    generator = gen()
    next(generator)
    return generator


def suspended(function, *args):
    coroutine = function(*args)
    coroutine.send(None)
    return coroutine


@contextlib.contextmanager
def managed():
    yield


async def local(kept):
    await pause()
    return kept


async def loops(things):
    for _ in things:
        await pause()


async def enters():
    with managed(), contextlib.ExitStack() as stack:
        stack.enter_context(managed())
        await pause()


MINE = {
    "a variable": lambda: suspended(local, begun()),
    "in containers": lambda: suspended(local, {"a": [(begun(), 1)]}),
    "twice": lambda: suspended(local, [begun()] * 2),
    "the iterator of a loop": lambda: suspended(loops, begun()),
    "inside of iterators": lambda: suspended(loops, itertools.chain(map(str, begun()))),
    "by two that share it": lambda: suspended(local, (lambda shared: ([shared], {1: shared}))(begun())),
}


@pytest.mark.parametrize("case", MINE)
def test_what_nobody_else_can_reach_is_proven(case):
    coroutine = MINE[case]()
    assert len(generators(held_only_by([coroutine]))) == 1
    coroutine.close()


def test_context_managers_and_stacks_of_them():
    coroutine = suspended(enters)
    assert len(generators(held_only_by([coroutine]))) == 2
    coroutine.close()


class Weakly(list):
    """A list that can be referred to weakly."""


OTHERS = {
    "a reference": lambda thing: thing,
    "a list": lambda thing: [thing],
    "an iterator in C": lambda thing: zip(thing),
    "a bound method": lambda thing: thing.send,
    "a suspended coroutine": lambda thing: suspended(local, thing),
    "a closure": lambda thing: lambda: thing,
}


@pytest.mark.parametrize("case", OTHERS)
def test_what_somebody_else_can_reach_is_not(case):
    """The naive answer is reachability: it can be reached from the coroutine, in each of these cases."""
    thing = begun()
    other = OTHERS[case](thing)
    coroutine = suspended(local, [thing])
    del thing
    assert generators(held_only_by([coroutine])) == []
    coroutine.close()
    del other


def test_what_somebody_else_can_reach_further_up_is_not():
    shared = [[begun()]]
    coroutine = suspended(local, shared)
    assert generators(held_only_by([coroutine])) == []
    del shared
    assert len(generators(held_only_by([coroutine]))) == 1
    coroutine.close()


def test_what_a_running_frame_can_reach_is_not(held):
    thing = begun()
    coroutine = suspended(local, [thing])
    held.begin(lambda thing, gate: gate(), thing)
    del thing
    assert generators(held_only_by([coroutine])) == []
    held.release()
    assert len(generators(held_only_by([coroutine]))) == 1
    coroutine.close()


def test_what_the_collector_does_not_see_is_not():
    """A reference that is nobody's, as an extension holds it that does not take part in collection."""
    ctypes = pytest.importorskip("ctypes")
    thing = begun()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(thing))
    coroutine = suspended(local, [thing])
    address = ctypes.py_object(thing)
    del address
    kept = weakref.ref(thing)
    del thing
    gc.collect()
    assert generators(held_only_by([coroutine])) == []
    assert held_by([kept()])
    ctypes.pythonapi.Py_DecRef(ctypes.py_object(kept()))
    gc.collect()
    assert len(generators(held_only_by([coroutine]))) == 1
    coroutine.close()


def test_what_can_be_had_weakly_is_not():
    inside = Weakly([begun()])
    known = weakref.ref(inside)
    coroutine = suspended(local, inside)
    del inside
    assert generators(held_only_by([coroutine])) == []
    assert known()
    del known
    assert len(generators(held_only_by([coroutine]))) == 1
    coroutine.close()


def test_cycles_are_not_followed():
    cycle = [begun()]
    cycle.append(cycle)
    coroutine = suspended(local, cycle)
    del cycle
    assert generators(held_only_by([coroutine])) == []
    coroutine.close()


def test_what_is_large_is_given_up():
    coroutine = suspended(local, [begun() for _ in range(20_000)])
    assert len(held_only_by([coroutine])) < 1000
    coroutine.close()


def test_what_two_coroutines_of_a_chain_share_is_theirs():
    """The inner one is known to somebody else, who cannot await it a second time. What they hold is theirs."""

    async def outer(kept):
        known.append(local(kept))
        await known[0]

    known = []
    coroutine = suspended(outer, [begun()])
    assert generators(held_only_by([coroutine])) == []
    assert len(generators(held_only_by([coroutine, coroutine.cr_await]))) == 1
    coroutine.close()


def test_references_are_counted_right_on_this_python():
    """Nothing but the coroutine, and then one reference more in each way that there is."""
    thing = begun()
    coroutine = suspended(local, thing)
    assert generators(held_only_by([coroutine])) == []
    del thing
    assert len(generators(held_only_by([coroutine]))) == 1
    coroutine.close()
