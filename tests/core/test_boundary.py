"""consistency="boundary": a task moves between two pieces of work and never in the middle of one. And the switch."""

import asyncio
import concurrent.futures
import errno

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


@pytest.fixture
def target(module):
    return module("def f(): return 'old'\ndef request(gate):\n    first = f()\n    gate()\n    return first, f()")


def patch(target, consistency="boundary"):
    made = kit.built("P", target, "def f(): return 'new'", "f")
    return lp.Patch("P", made.objects, consistency=consistency)


def still_running():
    tick()
    return lp.patches()[0].transition


def test_not_in_the_middle_of_a_work_item(target):
    """No patched function is on its stack, and yet the request that has begun goes on with the old version."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        gate = kit.Gate()
        first = pool.submit(target.request, gate)
        gate.arrived()
        lp.enable_patch(patch(target))
        assert still_running()
        gate.open()
        assert first.result(kit.PATIENCE) == ("old", "old")
        finish()
        gate.reached.clear()
        assert pool.submit(target.request, gate).result(kit.PATIENCE) == ("new", "new")
    kit_out(target)


def test_the_same_request_moves_in_the_middle_with_the_usual_model(target, held):
    held.begin(target.request)
    lp.enable_patch(patch(target, "stack"))
    finish()
    assert held.release() == ("old", "new")
    kit_out(target)


def test_a_thread_moves_when_it_says_so(target, worker):
    """Its loop is its own, so that nobody else can know where a piece of work ends."""
    gates = kit.Gate(), kit.Gate()
    seen = []

    def work():
        for gate in gates:
            seen.append(target.request(gate))
            lp.update_patch_state()

    thread = worker()
    working = thread.begin(work)
    gates[0].arrived()
    lp.enable_patch(patch(target))
    assert target.f() == "new", "who calls livepatch is between two pieces of work"
    assert still_running()
    assert ["(in the middle of its work" in str(t.blocking) for t in lp.tasks() if t.name == "a worker"] == [True]
    gates[0].open()
    gates[1].arrived()
    finish()
    gates[1].open()
    working.result(kit.PATIENCE)
    thread.close()
    assert seen == [("old", "old"), ("new", "new")]
    kit_out(target)


def test_that_a_patched_function_returns_is_no_boundary(target, worker):
    thread, gate = worker(), kit.Gate()
    working = thread.begin(lambda: (target.f(), gate(), target.f()))
    gate.arrived()
    lp.enable_patch(patch(target))
    gate.open()
    assert working.result(kit.PATIENCE)[0::2] == ("old", "old")
    thread.close()
    finish()
    kit_out(target)


def test_an_asyncio_task_ends_as_it_began(target):
    async def request(event):
        first = target.f()
        await event.wait()
        return first, target.f()

    async def main():
        event = asyncio.Event()
        old = asyncio.create_task(request(event))
        await asyncio.sleep(0)
        lp.enable_patch(patch(target))
        await asyncio.sleep(0)
        new = asyncio.create_task(request(event))
        for _ in range(3):
            tick()
            await asyncio.sleep(0.01)
        event.set()
        seen = await old, await new
        for _ in range(100):
            tick()
            await asyncio.sleep(0.001)
        return seen

    assert asyncio.run(main()) == (("old", "old"), ("new", "new"))
    finish()
    kit_out(target)


def kit_out(target):
    kit.take_out("P")
    assert target.f() == "old"


# -- the global switch ---------------------------------------------------------------------------------------------


def test_nothing_is_patched_while_redirection_is_off(target):
    lp.set_redirection(False)
    try:
        with pytest.raises(lp.LivepatchError) as caught:
            lp.enable_patch(patch(target, "stack"))
        assert caught.value.errno == errno.EBUSY
        assert lp.dmesg() == [
            "livepatch: enabling patch 'P'",
            "livepatch: 'P': initializing patching transition",
            "livepatch: failed to register ftrace handler for function 'f' (-16)",
            "livepatch: failed to patch object 'lp_target'",
            "livepatch: failed to enable patch 'P'",
            "livepatch: 'P': canceling patching transition, going to unpatch",
            "livepatch: 'P': completing unpatching transition",
            "livepatch: 'P': unpatching complete",
        ]
        assert target.f() == "old"
        lp.enable_patch(lp.Patch("callbacks", [lp.Object("lp_target")]))
        kit.take_out("callbacks")
    finally:
        lp.set_redirection(True)
    lp.enable_patch(patch(target, "stack"))
    with pytest.raises(lp.LivepatchError) as caught:
        lp.set_redirection(False)
    assert caught.value.errno == errno.EBUSY
    assert target.f() == "new"
    kit.take_out("P")
