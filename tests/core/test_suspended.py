"""Frames that no stack shows: generators, coroutines and async generators, suspended, held, handed over and dropped.

An activation never mixes versions: whatever a generator calls is of the version that the generator is of, whoever
resumes it.
"""

import contextlib
import gc
import inspect
import itertools

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    import contextlib, types
    def g(): return "old"
    def gen(n=3):
        for _ in range(n):
            yield "old", g()
    def chain(n=3): yield from gen(n)
    def closing(met):
        try:
            yield "old"
        finally:
            met.append(("old", g()))
    @contextlib.contextmanager
    def managed(): yield "old"
    async def agen(n=3):
        for _ in range(n):
            yield "old", g()
    @types.coroutine
    def pause(): yield
    async def coro():
        first = g()
        await pause()
        return "old", first, g()
    def stay(gate):
        gate()
        return "old", g()
"""
NEW = SOURCE.replace("old", "new")
NAMES = ("g", "gen", "chain", "closing", "managed", "agen", "coro", "stay")
OLD_ACTIVATION = [("old", "old")] * 3
NEW_ACTIVATION = [("new", "new")] * 3


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return kit.built("p", target, NEW, *NAMES)


def in_transition():
    return [patch.transition for patch in lp.patches()] == [True]


def still_held(by, rounds=5):
    """The transition does not complete, and says because of what."""
    for _ in range(rounds):
        tick()
    assert in_transition()
    assert by in kit.blocking(), lp.tasks()
    return True


def step(coroutine):
    """One step of a coroutine: what it returned, or "suspended"."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    return "suspended"


def anext_of(generator):
    return step(generator.__anext__())


# -- what exists when the transition starts ---------------------------------------------------------------------


def started(target):
    generator = target.gen()
    assert next(generator) == ("old", "old")
    return generator


def started_async(target):
    generator = target.agen()
    with contextlib.suppress(StopIteration):
        generator.__anext__().send(None)
    return generator


def started_coroutine(target):
    coroutine = target.coro()
    assert step(coroutine) == "suspended"
    return coroutine


CASES = {
    "a generator": (started, "generator", "gen", lambda thing: thing.close()),
    "a generator that was not started": (lambda t: t.gen(), "generator", "gen", lambda thing: thing.close()),
    "a coroutine": (started_coroutine, "coroutine", "coro", step),
    "a coroutine that was not started": (lambda t: t.coro(), "coroutine", "coro", lambda thing: thing.close()),
    "an async generator": (started_async, "async_generator", "agen", lambda thing: step(thing.aclose())),
    "an async generator that was not started": (
        lambda t: t.agen(),
        "async_generator",
        "agen",
        lambda thing: step(thing.aclose()),
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("direction", ["patching", "unpatching"])
def test_what_is_held_in_a_variable_blocks_and_is_named(target, patch, case, direction):
    make, kind, name, end = CASES[case]
    if direction == "unpatching":
        lp.enable_patch(patch)
        make = {started: lambda t: (gen := t.gen(), next(gen))[0]}.get(make, make)
    thing = make(target)
    (lp.enable_patch(patch) if direction == "patching" else lp.disable_patch("p"))
    assert still_held(name)
    (shown,) = [task for task in lp.tasks() if task.kind == "suspended"]
    file = "lp_target_old.py" if direction == "patching" else "new.py"
    assert shown.name == kind
    assert shown.blocking == shown.stack
    assert shown.blocking[0].startswith(f"{name} ({file}:")
    assert shown.ident == hex(id(thing))
    end(thing)
    finish()
    if direction == "patching":
        lp.disable_patch("p")
    assert not lp.patches()
    lp.unload_patch("p")


@pytest.mark.parametrize("hide", [lambda g: map(str, g), lambda g: itertools.chain(g, []), lambda g: {1: [zip(g)]}])
def test_whoever_holds_it(target, patch, hide):
    hidden = hide(started(target))
    lp.enable_patch(patch)
    assert still_held("gen")
    del hidden
    finish()
    kit.take_out("p")


def test_inner_generators_block_too(target, patch):
    outer = target.chain()
    next(outer)
    lp.enable_patch(patch)
    assert still_held("gen")
    assert list(outer) == OLD_ACTIVATION[1:]
    finish()
    kit.take_out("p")


def test_a_context_manager_that_is_entered_blocks(target, patch):
    with target.managed() as met:
        lp.enable_patch(patch)
        assert still_held("managed")
    assert met == "old"
    finish()
    with target.managed() as met:
        lp.disable_patch("p")
        assert still_held("managed")
    assert met == "new"
    finish()
    lp.unload_patch("p")


def test_a_generator_of_a_function_that_is_not_patched_blocks_nobody(module):
    target = module("def g(): return 'old'\ndef gen():\n    yield g()\n    yield g()")
    generator = target.gen()
    next(generator)
    lp.enable_patch(kit.built("p", target, "def g(): return 'new'", "g"))
    assert not in_transition()
    assert next(generator) == "new"
    kit.take_out("p")


def test_a_generator_that_dies_lets_the_transition_go_on(target, patch):
    generator = started(target)
    lp.enable_patch(patch)
    assert still_held("gen")
    del generator
    finish()
    kit.take_out("p")


def test_a_generator_in_a_cycle_blocks_until_it_is_collected(target, patch, garbage):
    gc.disable()
    try:
        cycle = [started(target)]
        cycle.append(cycle)
        del cycle
        lp.enable_patch(patch)
        assert still_held("gen")
        garbage()
        finish()
    finally:
        gc.enable()
    kit.take_out("p")


def test_frozen_generators_are_found(target, patch):
    generator = started(target)
    gc.freeze()
    try:
        lp.enable_patch(patch)
        assert still_held("gen")
    finally:
        gc.unfreeze()
    generator.close()
    finish()
    kit.take_out("p")


# -- what is begun while the transition runs -----------------------------------------------------------------------


def test_what_is_created_and_not_started_during_a_transition_has_chosen_nothing(target, patch, held):
    """The version is chosen when the body begins to run, in the task that runs it: these hold nothing up."""
    held.begin(target.stay)
    lp.enable_patch(patch)
    generator, coroutine = target.gen(), target.coro()
    assert held.release() == ("old", "old")
    finish()
    assert list(generator) == NEW_ACTIVATION
    assert step(coroutine) == "suspended"
    assert step(coroutine) == ("new", "new", "new")
    kit.take_out("p")


def test_what_was_created_in_a_transition_and_is_started_after_the_way_back(target, patch, held):
    held.begin(target.stay)
    lp.enable_patch(patch)
    generator, coroutine = target.gen(), target.coro()
    held.release()
    finish()
    lp.disable_patch("p")
    assert not lp.patches(), "they have not begun: nobody is inside of anything"
    assert list(generator) == OLD_ACTIVATION
    assert step(coroutine) == "suspended"
    assert step(coroutine) == ("old", "old", "old")
    lp.unload_patch("p")


def test_each_thread_begins_generators_of_its_own_world(target, patch, worker):
    """The thread in `stay` begins one through a trampoline and keeps it: it holds that thread, and no other."""
    thread, gate, again = worker(), kit.Gate(), kit.Gate()
    target.kept = []

    def inside(function):
        gate()
        generator = function.gen()
        first = next(generator)
        function.kept.append(generator)
        again()
        return first

    target.stay_with = lambda: target.stay(lambda: met.append(inside(target)))
    met = []
    going = thread.begin(target.stay_with)
    gate.arrived()
    lp.enable_patch(patch)
    mine = target.gen()
    assert next(mine) == ("new", "new")
    gate.open()
    again.arrived()
    assert next(target.gen()) == ("new", "new")
    again.open()
    assert going.result(kit.PATIENCE) == ("old", "old")
    assert met == [("old", "old")]
    assert still_held("gen")
    assert {task.name for task in lp.tasks() if task.patch_state == 0 and task.kind == "thread"} == {"a worker"}
    target.kept[0].close()
    finish()
    assert list(mine) == NEW_ACTIVATION[1:]
    kit.take_out("p")


@pytest.mark.parametrize("begun", ["before the transition", "during the transition"])
@pytest.mark.parametrize("function", ["gen", "chain"])
def test_a_generator_of_the_old_world_resumed_by_threads_that_have_moved(target, patch, held, worker, begun, function):
    """The naive answer is the state of the thread that calls g."""
    thread = worker()
    make = getattr(target, function)
    if begun == "before the transition":
        held.begin(target.stay)
        generator = make()
        met = [next(generator)]
        lp.enable_patch(patch)
    else:
        begin, made = kit.Gate(), []
        going = thread.begin(target.stay, lambda: (begin(), made.append(make()), made.append(next(made[0]))))
        begin.arrived()
        held.begin(target.stay)
        lp.enable_patch(patch)
        begin.open()
        going.result(kit.PATIENCE)
        generator, first = made
        met = [first]
    tick()
    stranger = worker()
    if begun == "during the transition":
        assert target.g() == "new", "this thread has moved"
        assert stranger.do(target.g) == "new"
    met.append(next(generator))
    met.append(stranger.do(next, generator))
    assert met == OLD_ACTIVATION
    with pytest.raises(StopIteration):
        next(generator)
    held.release()
    finish()
    assert list(make()) == NEW_ACTIVATION
    kit.take_out("p")


@pytest.mark.parametrize("function", ["gen", "chain"])
def test_a_generator_of_the_new_world_resumed_by_a_thread_that_has_not_moved(target, patch, worker, function):
    """Begun here, handed to the thread that is still in `stay`: what it calls there must be new, too."""
    thread, gate, box = worker(), kit.Gate(), []
    going = thread.begin(target.stay, lambda: (gate(), box.append(next(box[0])), box.append(target.g())))
    gate.arrived()
    lp.enable_patch(patch)
    generator = getattr(target, function)()
    box.append(generator)
    assert next(generator) == ("new", "new")
    gate.open()
    assert going.result(kit.PATIENCE) == ("old", "old")
    assert box[1] == ("new", "new"), "inside of the generator"
    assert box[2] == "old", "and outside of it"
    assert list(generator) == NEW_ACTIVATION[2:]
    finish()
    kit.take_out("p")


def test_an_async_generator_of_the_new_world_resumed_by_a_thread_that_has_not_moved(target, patch, worker):
    thread, gate, box = worker(), kit.Gate(), []

    def resume():
        gate()
        try:
            box[0].__anext__().send(None)
        except StopIteration as stop:
            box.append(stop.value)

    going = thread.begin(target.stay, resume)
    gate.arrived()
    lp.enable_patch(patch)
    generator = target.agen()
    box.append(generator)
    assert anext_of(generator) == ("new", "new")
    gate.open()
    assert going.result(kit.PATIENCE) == ("old", "old")
    assert box[1] == ("new", "new")
    step(generator.aclose())
    finish()
    kit.take_out("p")


def test_the_end_of_a_generator_elsewhere_moves_nobody_in_the_middle(module, worker):
    """Begun by a thread in the middle of f, exhausted here: that thread is still in f, and stays in its world."""
    text = """
        def g(): return "old"
        def gen():
            yield "old"
        def f(gate, box):
            first = g()
            gate()
            box.append(gen())
            next(box[0])
            gate.second()
            return "old", first, g()
    """
    target, thread, gate, box = module(text), worker(), kit.Gate(), []
    gate.second = kit.Gate()
    going = thread.begin(target.f, gate, box)
    gate.arrived()
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f", "g", "gen"))
    gate.open()
    gate.second.arrived()
    assert list(box[0]) == []
    gate.second.open()
    assert going.result(kit.PATIENCE) == ("old", "old", "old")
    finish()
    kit.take_out("p")


# -- how they end ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["close", "drop", "collect", "throw"])
def test_what_a_generator_does_while_it_ends_is_of_its_world(target, patch, held, worker, garbage, way):
    met = []
    generator = target.closing(met)
    assert next(generator) == "old"
    held.begin(target.stay)
    lp.enable_patch(patch)
    tick()
    if way == "close":
        worker().do(generator.close)
    elif way == "throw":
        with pytest.raises(KeyError):
            generator.throw(KeyError())
    elif way == "collect":
        cycle = [generator]
        cycle.append(cycle)
        del cycle
    del generator
    garbage()
    assert met == [("old", "old")]
    held.release()
    finish()
    kit.take_out("p")


def test_what_a_thread_leaves_behind_when_it_ends_blocks_everybody(target, patch, held):
    thread, gate, made = kit.Worker(), kit.Gate(), []
    going = thread.begin(target.stay, lambda: (gate(), made.append(target.gen()), next(made[0])))
    gate.arrived()
    held.begin(target.stay)
    lp.enable_patch(patch)
    gate.open()
    going.result(kit.PATIENCE)
    thread.close()
    held.release()
    assert still_held("gen")
    assert [task.kind for task in lp.tasks() if task.blocking] == ["suspended"]
    assert list(made[0]) == OLD_ACTIVATION[1:]
    finish()
    kit.take_out("p")


# -- reversal, force, and transitions one after the other ------------------------------------------------------------


def test_reversal_does_not_wait_for_what_is_of_the_version_to_come(target, patch):
    generator = started(target)
    lp.enable_patch(patch)
    assert still_held("gen")
    lp.disable_patch("p")
    tick()
    assert not lp.patches()
    assert list(generator) == OLD_ACTIVATION[1:]
    lp.unload_patch("p")


def test_reversal_waits_for_what_was_begun_in_the_version_to_be_left(target, patch, held):
    held.begin(target.stay)
    lp.enable_patch(patch)
    generator = target.gen()
    assert next(generator) == ("new", "new")
    lp.disable_patch("p")
    assert still_held("gen")
    assert list(generator) == NEW_ACTIVATION[1:]
    held.release()
    finish()
    lp.unload_patch("p")


@pytest.mark.parametrize("make", [started, started_async, started_coroutine])
def test_what_began_in_one_transition_is_waited_for_by_the_next_and_not_by_its_reversal(target, patch, held, make):
    """It runs the new version behind a trampoline of a transition that is over."""
    held.begin(target.stay)
    lp.enable_patch(patch)
    thing = {started: lambda t: (gen := t.gen(), next(gen))[0]}.get(make, make)(target)
    held.release()
    finish()
    lp.disable_patch("p")
    for _ in range(3):
        tick()
    assert in_transition()
    lp.write_enabled("p", 1)
    finish(10)
    lp.disable_patch("p")
    if inspect.isgenerator(thing):
        assert list(thing) == NEW_ACTIVATION[1:]
    elif inspect.iscoroutine(thing):
        assert step(thing) == ("new", "new", "new")
    else:
        step(thing.aclose())
    finish()
    lp.unload_patch("p")


def test_force_leaves_them_alone_and_the_next_transition_waits_for_them(target, patch):
    generator = started(target)
    lp.enable_patch(patch)
    lp.force_transition("p")
    finish()
    assert next(generator) == ("old", "new"), "that is what force means"
    lp.disable_patch("p")
    finish()
    assert next(generator) == ("old", "old")
    lp.unload_patch("p")


def test_a_stacked_patch_waits_for_the_version_below_only(target, patch):
    generator = started(target)
    lp.enable_patch(patch)
    lp.force_transition("p")
    finish()
    lp.enable_patch(kit.built("q", target, NEW.replace("new", "newer"), *NAMES))
    assert not any(status.transition for status in lp.patches())
    generator.close()
    kit.take_out("q")
    kit.take_out("p")
