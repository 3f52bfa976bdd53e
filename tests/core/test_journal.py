"""What is kept of transitions and refusals: true, bounded, and nothing of a task's."""

import asyncio
import gc
import os
import threading
import weakref

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import journal, registry
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    def f(gate=None):
        if gate: gate()
        return "old"
"""


@pytest.fixture(autouse=True)
def _nothing_before():
    journal.start_over()
    yield
    journal.start_over()


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return lambda: kit.built("P", target, SOURCE.replace("old", "new"), "f")


def ways():
    """Of the last transition, who moved how: by task."""
    return {move.task: move.way for move in journal.history[-1].moves}


def test_a_transition_leaves_an_entry_and_its_moves_only_if_they_were_asked_for(patch):
    lp.enable_patch(patch())
    (over,) = journal.history
    assert (over.patch, over.direction, over.outcome, over.reversals) == ("P", "patching", "completed", 0)
    assert over.began <= over.ended
    assert sum(over.moved.values()) == over.total > 0
    assert over.moves == []
    journal.arm(None)
    lp.disable_patch("P")
    assert (journal.history[-1].direction, journal.history[-1].outcome) == ("unpatching", "completed")
    assert ways()["MainThread"] == "stack check"
    assert len(journal.history[-1].moves) == journal.history[-1].total
    lp.unload_patch("P")
    lp.enable_patch(patch())  # it was asked for one
    assert journal.history[-1].moves == []
    assert journal.history[-2].moves == []
    assert journal.transitions == {("patching", "completed"): 2, ("unpatching", "completed"): 1}
    kit.take_out("P")


def test_who_leaves_by_itself_moves_by_exit(patch, target, worker):
    """Nobody looks from outside here: it is the trampoline of its next call that moves it."""
    thread, first, second = worker(), kit.Gate(), kit.Gate()
    call = thread.begin(lambda: (target.f(first), target.f(second)))
    first.arrived()
    journal.arm(None)
    lp.enable_patch(patch())
    first.open()
    second.arrived()
    assert registry.running_transition() is not None
    second.open()
    call.result(kit.PATIENCE)
    finish()
    assert ways()[thread.name] == "exit"
    kit.take_out("P")


async def outlasts_a_transition(sleeper, patch):
    """The patch is enabled while this task sleeps, with its moves on record; then the task ends."""
    await asyncio.sleep(0)
    journal.arm(None)
    lp.enable_patch(patch())
    while registry.running_transition() is not None:
        tick()
        await asyncio.sleep(0)
    sleeper.cancel()


def test_asyncio_tasks_move_when_their_loop_is_idle(patch):
    async def main():
        asyncio.current_task().set_name("the one")
        await outlasts_a_transition(asyncio.create_task(asyncio.sleep(1000), name="sleeper"), patch)

    asyncio.run(main())
    assert {"the one", "sleeper"} <= ways().keys()
    assert ways()["sleeper"] in ("idle", "stack check")
    kit.take_out("P")


def test_force_and_end_are_told(patch, target, held):
    held.begin(target.f)
    journal.arm(None)
    lp.enable_patch(patch())
    lp.force_transition("P")
    finish()
    assert "force" in ways().values()
    assert journal.history[-1].moved["force"] == 1
    kit.take_out("P")


def test_a_reversal_is_no_completion(patch, target, held):
    held.begin(target.f)
    lp.enable_patch(patch())
    lp.disable_patch("P")
    finish()
    (over,) = journal.history
    assert (over.direction, over.outcome, over.reversals) == ("patching", "reversed", 1)
    assert journal.reversals == 1
    assert journal.transitions == {("patching", "reversed"): 1}
    lp.unload_patch("P")


def test_a_disable_that_is_reversed(patch, target, held):
    lp.enable_patch(patch())
    held.begin(target.f)
    lp.disable_patch("P")
    lp.write_enabled("P", 1)
    finish()
    assert (journal.history[-1].direction, journal.history[-1].outcome) == ("unpatching", "reversed")
    kit.take_out("P")


def test_what_a_callback_refuses_is_canceled(target):
    def refuse(obj):
        return -16

    callbacks = {target.__name__: lp.Callbacks(pre_patch=refuse)}
    with pytest.raises(lp.LivepatchError):
        lp.enable_patch(
            lp.Patch("P", [lp.Object(target.__name__, [], callbacks=next(iter(callbacks.values())))]),
        )
    assert [(over.direction, over.outcome) for over in journal.history] == [("patching", "canceled")]
    assert journal.refusals == {("enable", "EBUSY"): 1}


def test_a_running_transition_can_be_asked_late(patch, target, held):
    held.begin(target.f)
    lp.enable_patch(patch())
    journal.arm(registry.running_transition())
    held.release()
    finish()
    assert len(journal.history[-1].moves) == 1  # the others had gone
    kit.take_out("P")


def test_nothing_of_a_task_is_kept(patch):
    """A record has names. A task that ends in the middle, or was there at the end, is let go of."""
    kept = []

    async def main():
        task = asyncio.create_task(asyncio.sleep(1000))
        kept.append(weakref.ref(task))
        await outlasts_a_transition(task, patch)

    asyncio.run(main())
    gc.collect()
    assert [ref() for ref in kept] == [None]
    assert journal.history[-1].moves
    kit.take_out("P")


def test_all_of_it_is_bounded(patch, monkeypatch):
    for _ in range(2 * journal.history.maxlen):
        lp.enable_patch(patch())
        kit.take_out("P")
    assert len(journal.history) == journal.history.maxlen
    record = journal.Record()
    for number in range(journal.MOVES_LIMIT + 10):
        record.moved(number, "exit")
    assert len(record.moves) == journal.MOVES_LIMIT


def test_a_name_that_raises_is_left_out(patch):
    class Odd(threading.Thread):
        @property
        def name(self):
            raise ZeroDivisionError

        @name.setter
        def name(self, value):
            pass

    over, there = threading.Event(), threading.Event()
    thread = Odd(target=lambda: (there.set(), over.wait()))
    thread.start()
    there.wait()
    journal.arm(None)
    lp.enable_patch(patch())
    over.set()
    thread.join()
    finish()
    assert "MainThread" in ways()
    assert len(journal.history[-1].moves) == journal.history[-1].total
    kit.take_out("P")


def test_a_forked_child_begins_with_nothing(patch):
    lp.enable_patch(patch())
    with pytest.raises(lp.LivepatchError):
        lp.disable_patch("nothing")
    pid = os.fork()
    if not pid:
        empty = not journal.history and not journal.refusals and not any(journal.moved.values())
        os._exit(0 if empty and not journal.transitions else 1)
    assert os.waitpid(pid, 0)[1] == 0
    assert journal.refusals == {("write_enabled", "ENOENT"): 1}
    kit.take_out("P")
