"""Suspended frames that belong to an asyncio task, and those of which nobody can tell.

A task that waits inside of an affected frame keeps itself where it is, and nobody else. Where the way from the task to
the frame cannot be followed, the frame is nobody's, and keeps everybody.
"""

import asyncio
import types

import pytest
from tests.core import kit
from tests.core.kit import rounds

import livepatch as lp
from livepatch.testing import tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    import asyncio, contextlib, itertools, types
    def g(): return "old"
    def gen():
        yield "old", g()
        yield "old", g()
    async def agen(wait=None):
        try:
            yield "old", g()
            if wait: await wait()
            yield "old", g()
        finally:
            if wait: await wait()
    async def coro(wait):
        first = g()
        await wait()
        return "old", first, g()
    @types.coroutine
    def legacy(wait):
        first = g()
        yield from wait().__await__()
        return "old", first, g()
    @contextlib.contextmanager
    def managed():
        first = g()
        yield
        met.append(("old", first, g()))
    @contextlib.asynccontextmanager
    async def amanaged():
        first = g()
        yield
        met.append(("old", first, g()))
    met = []
"""
NEW = SOURCE.replace("old", "new")
NAMES = ("g", "gen", "agen", "coro", "legacy", "managed", "amanaged")

WAYS = """
    import asyncio, contextlib, itertools, types
    class Delegates:
        def __init__(self, inner): self.inner = inner
        def __await__(self): return self.inner.__await__()
    class Generates(Delegates):
        def __await__(self): return (yield from self.inner.__await__())
    class Iterates(Delegates):
        def __await__(self): return self
        def __iter__(self): return self
        def __next__(self): return self.inner.send(None)
    class InC(Delegates):
        def __await__(self):
            def whole():
                result.append((yield from self.inner.__await__()))
            result = []
            yield from itertools.chain(whole())
            return result[0]
    async def followed(t, wait): return await t.coro(wait)
    async def nested(t, wait): return await followed(t, wait)
    async def of_types(t, wait): return await t.legacy(wait)
    async def delegates(t, wait): return await Delegates(t.coro(wait))
    async def generates(t, wait): return await Generates(t.coro(wait))
    async def iterates(t, wait): return await Iterates(t.coro(wait))
    async def iterates_over_c(t, wait): return await InC(t.coro(wait))
    async def async_for(t, wait): return [met async for met in t.agen(wait)]
    async def asend(t, wait):
        generator = t.agen(wait)
        await generator.asend(None)
        return await generator.asend(None)
    async def anext_with_default(t, wait):
        generator = t.agen(wait)
        return await anext(generator), await anext(generator, None)
    async def aclose(t, wait):
        generator = t.agen(wait)
        first = await anext(generator)
        await generator.aclose()
        return first
    async def athrow(t, wait):
        generator = t.agen(wait)
        first = await anext(generator)
        with contextlib.suppress(KeyError): await generator.athrow(KeyError)
        return first
    async def waits_for(t, wait): return await asyncio.wait_for(t.coro(wait), 600)
    async def gathers(t, wait): return await asyncio.gather(t.coro(wait))
    async def shields(t, wait): return await asyncio.shield(t.coro(wait))
    async def loops_over_a_generator(t, wait):
        met = []
        for step in t.gen():
            await wait()
            met.append(step)
        return met
    async def between_two_steps(t, wait):
        met = []
        async for step in t.agen():
            await wait()
            met.append(step)
        return met
    async def in_a_with(t, wait):
        with t.managed(): await wait()
        return t.met.pop()
    async def in_an_async_with(t, wait):
        async with t.amanaged(): await wait()
        return t.met.pop()
    async def in_a_stack(t, wait):
        with contextlib.ExitStack() as stack:
            stack.enter_context(t.managed())
            await wait()
        return t.met.pop()
    async def in_an_async_stack(t, wait):
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(t.amanaged())
            stack.enter_context(t.managed())
            await wait()
        return t.met.pop(), t.met.pop()
    async def not_started(t, wait):
        held = t.coro(wait)
        await wait()
        return await held
    async def a_fixture(t, wait):
        teardown = [itertools.chain(t.gen())]
        first = next(teardown[0])
        await wait()
        return first, next(teardown[0])
"""
TASKS = [name for name in kit.bodies(WAYS) if "." not in name[0] and name[0] != "<lambda>"]


@pytest.fixture
def target(module):
    return module(SOURCE, "lp_target")


@pytest.fixture
def ways(module):
    return module(WAYS, "lp_ways")


@pytest.fixture
def patch(target):
    return kit.built("p", target, NEW, *NAMES)


def flat(met):
    """Everything in what a way returned."""
    return {met} if isinstance(met, str) else {word for part in met for word in flat(part)}


async def finished():
    for _ in range(5000):
        if not lp.patches() or not lp.patches()[-1].transition:
            return
        await rounds(1)
    raise AssertionError(lp.tasks())


async def taken_out():
    lp.disable_patch("p")
    await finished()
    lp.unload_patch("p")


class Place:
    """Where the task waits: more than once, if need be."""

    def __init__(self):
        self.reached, self.go = asyncio.Event(), asyncio.Event()

    async def __call__(self):
        self.reached.set()
        await self.go.wait()


@pytest.mark.parametrize("way", [name for name, _ in TASKS])
def test_a_frame_that_belongs_to_a_task_keeps_that_task_and_nobody_else(target, ways, patch, way):
    async def main():
        place = Place()
        task = asyncio.create_task(getattr(ways, way)(target, place), name="holds")
        await place.reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert [p.transition for p in lp.patches()] == [True]
        states = {shown.name: shown.patch_state for shown in lp.tasks() if shown.kind == "asyncio"}
        mine = asyncio.current_task().get_name()
        inner = {name for name in states if name not in ("holds", mine)}  # `wait_for` of 3.11, `gather`, `shield`
        assert states[mine] == 1, "this task has moved"
        assert 0 in {states[name] for name in {"holds", *inner}}
        assert target.g() == "new"
        blocking = [shown for shown in lp.tasks() if shown.blocking]
        assert blocking
        place.go.set()
        assert flat(await task) == {"old"}
        await finished()
        again = Place()
        again.go.set()
        assert flat(await getattr(ways, way)(target, again)) == {"new"}
        await taken_out()

    asyncio.run(main())


def kept_by_two(ways, target, wait):
    """The object that the task awaits is known elsewhere, and so is the coroutine behind it, to whom it may be sent."""
    ways.known = ways.Iterates(target.coro(wait))

    async def main():
        return await ways.known

    return main(), "lp_ways.Iterates.inner"


def in_a_cycle(ways, target, wait):
    awaitable = ways.Iterates(target.coro(wait))
    awaitable.me = awaitable
    ways.known = {"it": awaitable}

    async def main(awaitable):
        return await awaitable

    return main(awaitable), "lp_ways.Iterates.inner"


def begun_by_hand(ways, target, wait):
    ways.known = target.coro(wait)
    ways.known.send(None)

    async def main():
        await wait()
        ways.known.close()
        return "old"

    return main(), "lp_ways.known"


def not_awaited_and_known_elsewhere(ways, target, wait):
    ways.known = [target.coro(wait)]

    async def main():
        await wait()
        return await ways.known.pop()

    return main(), "a list in lp_ways.known"


@pytest.mark.parametrize("make", [kept_by_two, in_a_cycle, begun_by_hand, not_awaited_and_known_elsewhere])
def test_a_frame_of_which_nobody_can_tell_whose_it_is_keeps_everybody(target, ways, patch, make):
    async def main():
        place = Place()
        coroutine, holder = make(ways, target, place)
        task = asyncio.create_task(coroutine, name="holds")
        await place.reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        states = {shown.name: shown.patch_state for shown in lp.tasks() if shown.kind == "asyncio"}
        assert set(states.values()) == {0}
        assert target.g() == "old"
        (shown,) = [shown for shown in lp.tasks() if shown.kind == "suspended"]
        assert shown.origin == f"held by {holder}"
        place.go.set()
        assert flat(await task) == {"old"}
        del ways.known
        await finished()
        await taken_out()

    asyncio.run(main())


def test_what_a_task_hands_over_stays_in_its_world(target, ways, patch):
    """A coroutine that was not started is the task's own, until it puts it into a queue for one that has moved.

    Had it only an owner, as what is being awaited has, it would meet the new g in there.
    """

    async def main():
        place, queue = Place(), asyncio.Queue()

        async def producer():
            jobs = [target.coro(lambda: asyncio.sleep(0))]
            await place()
            queue.put_nowait(jobs.pop())

        async def consumer():
            job = await queue.get()
            return target.g(), await job, target.g()

        producing, consuming = asyncio.create_task(producer()), asyncio.create_task(consumer())
        await place.reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert target.g() == "new"
        place.go.set()
        await producing
        assert await consuming == ("new", ("old", "old", "old"), "new")
        await finished()
        await taken_out()

    asyncio.run(main())


def test_what_a_task_leaves_behind_stays_in_its_world(target, ways, patch):
    """The first task ends; what it had begun is nobody's then, and is awaited by one that has moved."""

    async def main():
        place, left = Place(), []

        async def first():
            begun = target.coro(target_pause)
            begun.send(None)
            await place()
            left.append(begun)

        task = asyncio.create_task(first())
        await place.reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert target.g() == "new"
        place.go.set()
        await task
        await rounds()
        with pytest.raises(StopIteration) as stop:
            left.pop().send(None)
        assert stop.value.value == ("old", "old", "old")
        await finished()
        await taken_out()

    asyncio.run(main())


@types.coroutine
def target_pause():
    yield


# -- generators in the middle of their execution --------------------------------------------------------------------

BUSY = """
    def g(): return "old"
    def gen(gate):
        first = g()
        gate()
        yield "old", first, g()
    def outside(gate): return [*gen(gate)]
    async def inside(gate): return [*gen(gate)]
    def runs_a_loop(gate):
        asyncio.run(inside(gate))
        yield "old"
    import asyncio
"""


def test_a_generator_that_a_thread_executes_keeps_that_thread(module, held):
    target = module(BUSY)
    held.begin(target.outside)
    lp.enable_patch(kit.built("p", target, BUSY.replace("old", "new"), "g", "gen"))
    tick()
    assert target.g() == "new"
    blocking = [task for task in lp.tasks() if task.blocking]
    assert [task.name for task in blocking if task.kind == "thread"] == ["a worker"]
    assert held.release() == [("old", "old", "old")]
    for _ in range(3):
        tick()
    assert not lp.patches()[0].transition
    kit.take_out("p")


def test_a_generator_that_a_task_of_a_loop_executes_is_not_its_threads(module, held):
    """The task may keep it and go on to wait; the thread could be moved then, and the task be free."""
    target = module(BUSY)
    held.begin(lambda gate: asyncio.run(target.inside(gate)))
    lp.enable_patch(kit.built("p", target, BUSY.replace("old", "new"), "g", "gen"))
    for _ in range(3):
        tick()
    assert target.g() == "old", "nobody has claimed it"
    assert held.release() == [("old", "old", "old")]
    for _ in range(3):
        tick()
    assert not lp.patches()[0].transition
    kit.take_out("p")
