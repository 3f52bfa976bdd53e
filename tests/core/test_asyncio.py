"""asyncio tasks, in asyncio's loop and in uvloop: each is a task of its own, wherever it waits.

The main thread of these tests runs the loop; rounds are made from another thread, or from a task.
"""

import asyncio
import threading
import weakref

import pytest
from tests.core import kit
from tests.core.kit import rounds

import livepatch as lp
from livepatch.core import registry
from livepatch.core.tasks import asyncio as asyncio_kind
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    import asyncio
    def g(): return "old"
    async def h():
        await asyncio.sleep(0)
        return "old"
    async def f(wait=None):
        first = g()
        if wait: await wait()
        return "old", first, g(), await h()
    async def agen():
        for _ in range(3):
            yield "old", g()
    def sync(wait):
        wait()
        return "old", g()
"""
NEW = SOURCE.replace("old", "new")
NAMES = ("g", "h", "f", "agen", "sync")
OLD, NEWS = ("old",) * 4, ("new",) * 4


def run_asyncio(main):
    return asyncio.run(main())


def run_uvloop(main):
    uvloop = pytest.importorskip("uvloop")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def has_eager_tasks(run):
    """Not before 3.12; and uvloop passes what the factory of some later releases does not take."""

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        sleep = asyncio.sleep(0)
        try:
            await asyncio.create_task(sleep)
        except TypeError:
            sleep.close()
            return False
        finally:
            asyncio.get_running_loop().set_task_factory(None)
        return True

    return hasattr(asyncio, "eager_task_factory") and run(main)


@pytest.fixture(params=[run_asyncio, run_uvloop])
def run(request):
    return request.param


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return kit.built("p", target, NEW, *NAMES)


class Parked:
    """A task that is in the middle of f."""

    def __init__(self, target, name="parked"):
        self._reached, self._go = asyncio.Event(), asyncio.Event()
        self.task = asyncio.create_task(target.f(self._wait), name=name)

    async def _wait(self):
        self._reached.set()
        await self._go.wait()

    async def arrived(self):
        await self._reached.wait()
        return self

    async def go_on(self):
        self._go.set()
        return await self.task


async def finished():
    for _ in range(10_000):
        if registry.running_transition() is None:
            return
        await rounds(1)
    raise AssertionError(lp.tasks())


def state(task):
    (found,) = [shown for shown in lp.tasks() if shown.ident == hex(id(task))]
    return found.patch_state


async def taken_out():
    lp.disable_patch("p")
    await finished()
    lp.unload_patch("p")


def test_a_task_that_waits_in_an_old_coroutine_holds_the_transition_and_is_named(target, patch, run):
    async def main():
        parked = await Parked(target).arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert [p.transition for p in lp.patches()] == [True]
        (blocker,) = [task for task in lp.tasks() if task.blocking]
        assert (blocker.kind, blocker.name, blocker.patch_state) == ("asyncio", "parked", 0)
        assert blocker.blocking[0].startswith("f (lp_target_old.py:")
        assert blocker.stack[0].startswith("Event.wait ("), "innermost first"
        assert await target.f() == NEWS, "this task has moved"
        assert await parked.go_on() == OLD, "and that one stays in its world to the end"
        await finished()
        assert await target.f() == NEWS
        await taken_out()
        assert await target.f() == OLD

    run(main)


def test_reversal_with_a_task_in_each_world(target, patch, run):
    async def main():
        old = await Parked(target, "old").arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        new = await Parked(target, "new").arrived()
        for goal in (0, 1, 0, 1):
            lp.write_enabled("p", goal)
            await rounds()
            assert [p.transition for p in lp.patches()] == [True]
            assert {task.name for task in lp.tasks() if task.blocking} == {"old" if goal else "new"}
        assert await new.go_on() == NEWS
        assert await old.go_on() == OLD
        await finished()
        await taken_out()

    run(main)


def test_a_task_moves_at_the_end_of_its_outermost_call_without_a_round(target, patch, run):
    async def main():
        blocker = await Parked(target, "blocker").arrived()
        started = asyncio.Event()
        met = []

        async def works():
            met.append(await target.f(started.wait))
            met.append(await target.f())

        worker = asyncio.create_task(works())
        await asyncio.sleep(0.001)
        lp.enable_patch(patch)
        started.set()
        await worker
        assert met == [OLD, OLD], "it entered before the transition: only a round can move it"

        worker = asyncio.create_task(works())
        await worker
        assert met[2] in (OLD, NEWS)
        assert met[3] == NEWS
        await blocker.go_on()
        await finished()
        await taken_out()

    run(main)


def test_a_task_that_never_leaves_an_unpatched_coroutine_moves_when_it_waits(target, patch, run):
    """Idle switching: nothing of the patch is in its chain."""

    async def main():
        stop, met = asyncio.Event(), []

        async def server():
            while not stop.is_set():
                met.append(await target.f())
                await asyncio.sleep(0)

        parked, serving = await Parked(target).arrived(), asyncio.create_task(server())
        await asyncio.sleep(0)
        lp.enable_patch(patch)
        await rounds()
        assert state(serving) == 1
        assert state(parked.task) == 0
        del met[:]
        while len(met) < 3:
            await asyncio.sleep(0)
        assert set(met) == {NEWS}
        stop.set()
        await serving
        await parked.go_on()
        await finished()
        await taken_out()

    run(main)


def test_a_task_that_has_not_run_yet(target, patch, run):
    """`create_task(f())` before the transition: the coroutine is of the old version, and has not begun."""

    async def main():
        waiting = asyncio.create_task(target.f())
        lp.enable_patch(patch)
        tick()
        assert [p.transition for p in lp.patches()] == [True]
        assert await waiting == OLD
        await finished()
        assert await target.f() == NEWS
        await taken_out()

    run(main)


def test_tasks_born_during_a_transition_are_of_the_world_of_their_creator(target, patch, run):
    """`wait_for` and `gather` make tasks of coroutines: a call in the old world would meet the new one in them."""

    async def main():
        async def wait():
            reached.set()
            await go.wait()
            children.append(asyncio.create_task(target.h()))
            met.append(await children[0])

        reached, go, children, met = asyncio.Event(), asyncio.Event(), [], []
        parent = asyncio.create_task(target.f(wait))
        await reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert await asyncio.create_task(target.h()) == "new", "of a creator that has moved"
        go.set()
        assert await parent == OLD
        assert met == ["old"]
        await finished()
        await taken_out()

    run(main)


def test_gather_in_the_old_world(target, patch, run):
    async def main():
        async def wait():
            reached.set()
            await go.wait()
            met.extend(await asyncio.gather(target.h(), target.h()))
            met.append(await asyncio.wait_for(target.h(), kit.PATIENCE))

        reached, go, met = asyncio.Event(), asyncio.Event(), []
        parent = asyncio.create_task(target.f(wait))
        await reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        go.set()
        assert await parent == OLD
        assert met == ["old"] * 3
        await finished()
        await taken_out()

    run(main)


def test_an_async_generator_that_a_task_iterates_over(target, patch, run):
    """Behind `async for` the generator is hidden from the chain of the task."""

    async def main():
        reached, go = asyncio.Event(), asyncio.Event()

        async def consume():
            met = []
            async for word in target.agen():
                met.append(word)
                reached.set()
                await go.wait()
            return met

        consumer = asyncio.create_task(consume(), name="consumer")
        await reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert [p.transition for p in lp.patches()] == [True]
        assert "agen" in kit.blocking()
        go.set()
        assert await consumer == [("old", "old")] * 3
        await finished()
        assert [word async for word in target.agen()] == [("new", "new")] * 3
        await taken_out()

    run(main)


def test_a_generator_that_waits_inside_of_async_for(module, run):
    """The task waits in the generator: its chain leads through an async_generator_asend."""
    text = """
        def g(): return "old"
        async def agen(wait):
            await wait()
            yield "old", g()
    """
    target = module(text)

    async def main():
        reached, go = asyncio.Event(), asyncio.Event()

        async def wait():
            reached.set()
            await go.wait()

        async def consume():
            return [word async for word in target.agen(wait)]

        consumer, other = asyncio.create_task(consume(), name="consumer"), asyncio.create_task(go.wait())
        await reached.wait()
        await asyncio.to_thread(lp.enable_patch, kit.built("p", target, text.replace("old", "new"), "g", "agen"))
        await rounds()
        assert state(other) == 1, "the generator has an owner: only that one is held"
        (blocker,) = [task for task in lp.tasks() if task.blocking]
        assert (blocker.name, blocker.blocking[0].partition(" ")[0]) == ("consumer", "agen")
        go.set()
        assert await consumer == [("old", "old")]
        await other
        await finished()
        await taken_out()

    run(main)


def test_callbacks_belong_to_the_thread_of_the_loop(target, patch, run):
    async def main():
        parked, met = await Parked(target).arrived(), []
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        asyncio.get_running_loop().call_soon(lambda: met.append(target.g()))
        await asyncio.sleep(0)
        assert met == ["new"]
        await parked.go_on()
        await finished()
        await taken_out()

    run(main)


def test_the_thread_of_the_loop_waits_for_the_patched_function_below_it(module, run):
    """The loop runs inside of a patched function: tasks move, the thread does not, and its callbacks stay old."""
    text = """
        def g(): return "old"
        async def f(): return "old", g()
        def serve(run, main): return "old", run(main), g()
    """
    target = module(text)

    async def main():
        met = []
        await asyncio.to_thread(lp.enable_patch, kit.built("p", target, text.replace("old", "new"), "f", "g", "serve"))
        await rounds()
        met.append(await target.f())
        asyncio.get_running_loop().call_soon(lambda: met.append(target.g()))
        await asyncio.sleep(0)
        assert "serve" in kit.blocking()
        return met

    assert target.serve(run, main) == ("old", [("new", "new"), "old"], "old")
    finish()
    kit.take_out("p")


def test_a_loop_that_does_not_run(target, patch):
    """Its tasks cannot run a callback, and cannot run either: they are checked from outside."""
    loop = asyncio.new_event_loop()
    gate, elsewhere = loop.create_future(), asyncio.Event()
    inside = loop.create_task(target.f(lambda: gate))
    outside = loop.create_task(elsewhere.wait())
    loop.run_until_complete(asyncio.sleep(0))
    lp.enable_patch(patch)
    for _ in range(3):
        tick()
    assert state(inside) == 0
    assert state(outside) == 1
    gate.set_result(None)
    assert loop.run_until_complete(inside) == OLD
    elsewhere.set()
    loop.run_until_complete(outside)
    finish()
    assert loop.run_until_complete(target.f()) == NEWS
    lp.disable_patch("p")
    finish()
    lp.unload_patch("p")
    loop.close()


def test_several_loops_in_several_threads(target, patch, run):
    """One of them is held by a task; the tasks of the other move."""
    ready, over = threading.Barrier(3), threading.Event()
    met = {}

    def serve(name, park):
        async def main():
            parked = await Parked(target, name).arrived() if park else None
            await asyncio.to_thread(ready.wait)
            while not over.is_set():
                await asyncio.sleep(0.001)
                met[name] = await target.f()
            return await parked.go_on() if park else None

        met[name + " parked"] = run(main)

    threads = [threading.Thread(target=serve, args=(name, name == "held")) for name in ("held", "free")]
    for thread in threads:
        thread.start()
    ready.wait()
    lp.enable_patch(patch)

    def both_have_moved():
        tick()
        return met.get("held") == met.get("free") == NEWS

    kit.until(both_have_moved)
    assert [p.transition for p in lp.patches()] == [True]
    over.set()
    for thread in threads:
        thread.join()
    assert met["held parked"] == OLD
    finish()
    kit.take_out("p")


def test_a_task_that_enables_from_inside_of_a_patched_coroutine(target, patch, run):
    async def main():
        async def wait():
            lp.enable_patch(patch)

        assert await target.f(wait) == OLD
        await finished()
        assert await target.f() == NEWS
        await taken_out()

    run(main)


def test_rounds_made_by_a_task_of_the_loop(target, patch, run):
    """No other thread takes part: the process drives its transitions from a coroutine."""

    async def main():
        parked = await Parked(target).arrived()
        others = [asyncio.create_task(asyncio.sleep(0.001)) for _ in range(3)]
        lp.enable_patch(patch)
        for _ in range(3):
            tick()
            await asyncio.sleep(0)
        assert state(asyncio.current_task()) == 1
        assert state(parked.task) == 0
        assert await parked.go_on() == OLD
        await asyncio.gather(*others)
        for _ in range(3):
            tick()
            await asyncio.sleep(0)
        assert not any(p.transition for p in lp.patches())
        lp.disable_patch("p")
        await finished()
        lp.unload_patch("p")

    run(main)


def test_a_task_that_is_cancelled_in_the_old_world(target, patch, run):
    async def main():
        parked = await Parked(target).arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        parked.task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await parked.task
        await finished()
        await taken_out()

    run(main)


def test_force_with_a_task_in_the_old_world(target, patch, run):
    async def main():
        parked = await Parked(target).arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        lp.force_transition("p")
        await rounds(1)
        assert not any(p.transition for p in lp.patches())
        assert await parked.go_on() == ("old", "old", "new", "new")
        await taken_out()

    run(main)


def test_an_ordinary_function_in_a_worker_thread_of_the_loop(target, patch, run):
    async def main():
        gate = kit.Gate()
        working = asyncio.create_task(asyncio.to_thread(target.sync, gate))
        await asyncio.to_thread(gate.arrived)
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert kit.blocking() == ["sync"]
        assert await target.f() == NEWS
        gate.open()
        assert await working == ("old", "old")
        await finished()
        await taken_out()

    run(main)


@pytest.mark.parametrize("how", ["gather", "eager"])
def test_many_tasks(target, patch, run, how):
    """Hundreds of requests under way when the transition starts: each is of one world."""
    if how == "eager" and not has_eager_tasks(run):
        pytest.skip("needs eager tasks")

    async def main():
        if how == "eager":
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)

        async def request(n):
            met = []
            for _ in range(20):
                met.append(await target.f())
                await asyncio.sleep(0)
            return met

        requests = asyncio.gather(*[request(n) for n in range(200)])
        await asyncio.sleep(0)
        lp.enable_patch(patch)
        while not requests.done():
            await rounds(1)
        for met in await requests:
            assert set(met) <= {OLD, NEWS}
            assert met == sorted(met, key=lambda words: words == NEWS), "nobody sees the old version again"
        await finished()
        await taken_out()

    run(main)


def test_a_task_made_by_a_class_of_its_own(target, patch):
    """Some frameworks subclass Task; in Python, not in C."""

    class Own(asyncio.Task):
        pass

    async def main():
        asyncio.get_running_loop().set_task_factory(lambda loop, coro, **names: Own(coro, loop=loop, **names))
        parked = await Parked(target).arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert [task.name for task in lp.tasks() if task.blocking] == ["parked"]
        assert await parked.go_on() == OLD
        await finished()
        await taken_out()

    run_asyncio(main)


def test_the_task_factory_of_a_loop_is_given_back(target, patch, run):
    async def main():
        loop = asyncio.get_running_loop()
        for factory in (None, lambda loop, coro, **options: asyncio.Task(coro, loop=loop, **options)):
            loop.set_task_factory(factory)
            parked = await Parked(target).arrived()
            await asyncio.to_thread(lp.enable_patch, patch)
            await rounds()
            assert loop.get_task_factory() is not factory
            task = asyncio.create_task(target.f(), name="named")
            assert task.get_name() == "named"
            assert await task == NEWS
            await parked.go_on()
            await finished()
            assert loop.get_task_factory() is factory
            await taken_out()
            assert loop.get_task_factory() is factory

    run(main)


def test_a_factory_that_is_set_during_a_transition_stays(target, patch, run):
    async def main():
        loop = asyncio.get_running_loop()
        parked = await Parked(target).arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        ours = loop.get_task_factory()

        def factory(loop, coro, **options):
            return ours(loop, coro, **options)

        loop.set_task_factory(factory)
        await parked.go_on()
        await finished()
        assert loop.get_task_factory() is factory
        assert await asyncio.create_task(target.f()) == NEWS
        await taken_out()
        assert await asyncio.create_task(target.f()) == OLD

    run(main)


def test_tasks_that_have_ended_are_not_kept(target, patch):
    """A transition may be held for hours; meanwhile every request is a task."""

    async def main():
        parked = await Parked(target).arrived()
        await asyncio.to_thread(lp.enable_patch, patch)
        alive = weakref.WeakSet()
        for _ in range(20):
            tasks = [asyncio.create_task(target.f()) for _ in range(100)]
            alive.update(tasks)
            await asyncio.gather(*tasks)
            del tasks
            await rounds(1)
        assert len(alive) < 500
        await parked.go_on()
        await finished()
        await taken_out()

    run_asyncio(main)


def test_eager_tasks_are_of_the_world_of_their_creator(target, patch):
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("needs eager tasks")

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        reached, go, met = asyncio.Event(), asyncio.Event(), []

        async def wait():
            reached.set()
            await go.wait()
            met.append(await asyncio.create_task(target.f()))

        parent = asyncio.create_task(target.f(wait))
        await reached.wait()
        await asyncio.to_thread(lp.enable_patch, patch)
        await rounds()
        assert await asyncio.create_task(target.f()) == NEWS
        go.set()
        assert await parent == OLD
        assert met == [OLD]
        await finished()
        await taken_out()

    run_asyncio(main)


def test_two_threads_that_are_the_first_to_notice_a_task_of_a_loop(monkeypatch):
    """While tasks are listed, one that comes is noticed by its own thread; what either notices is looked at."""

    async def main():
        kind, make = asyncio_kind.Loops(), asyncio_kind._Loop
        first, second = (asyncio.ensure_future(asyncio.sleep(0)) for _ in range(2))

        def interrupted(loop):
            monkeypatch.setattr(asyncio_kind, "_Loop", make)
            kind.notice(second)
            return make(loop)

        monkeypatch.setattr(asyncio_kind, "_Loop", interrupted)
        kind.notice(first)
        (here,) = kind._loops.values()
        assert {task for tasks in here.held for task in tasks} == {first, second}

    asyncio.run(main())
