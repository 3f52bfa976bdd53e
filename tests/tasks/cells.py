"""What every kind of task must do under a patch, one function each; run as a program, with a kind's name, it does all.

    python -m tests.tasks.cells NAME-OF-A-KIND

prints a line of JSON for each: {"cell": ..., "error": null or what went wrong}.

f calls g and h, and pauses in between, so that whoever exchanges functions one by one, or moves a task in the middle,
is found out: a call has to return the same version three times.
"""

from __future__ import annotations

import json
import os
import sys
import time
import traceback
from contextlib import suppress

from tests.tasks.worlds import WORLDS, module, result

TARGET = """
async def f(pause):
    version = "old"
    await pause()
    return version, await g(), h()
async def g():
    return "old"
def h():
    return "old"
"""

TASKS = """
import target
async def nothing():
    pass
async def thrice(gate, breathe):
    first = await target.f(gate.wait)
    await breathe()
    second = await target.f(nothing)
    return first, second, await target.f(nothing)
async def outside(gate, spawn, children):
    await target.f(nothing)
    children.append(spawn(target.f, nothing))
    await gate.wait()
async def waits_then_bears(gate, stopped, breathe, spawn, children):
    async def pause():
        await gate.wait()
        while not stopped():
            children.append(spawn(target.f, nothing))
            await breathe()
    return await target.f(pause)
async def hammer(record, stopped, breathe):
    while not stopped():
        for _ in range(3):
            record(await target.f(nothing))
        record(await target.f(breathe))
"""

OLD, NEW = ("old",) * 3, ("new",) * 3


class Stage:
    """A process of one kind, with the functions to patch."""

    def __init__(self, name: str) -> None:
        self.world = WORLDS[name]()
        self.world.prepare()
        import livepatch as lp
        from livepatch.core.codes import definitions

        self.world.prepare_late()
        self.lp = lp
        self.target = module("target", self.suited(TARGET), "target_old.py")
        self.tasks = module("tasks", self.suited(TASKS), "tasks.py")
        new = compile(self.suited(TARGET.replace('"old"', '"new"')), "target_new.py", "exec")
        self.new = {definition.name: definition.code for definition in definitions(new)}

    def suited(self, source: str) -> str:
        return source.replace("async ", "").replace("await ", "") if self.world.plain else source

    def patch(self):
        return self.lp.Patch(
            "p", [self.lp.Object("target", [self.lp.Func(name, self.lp.Body(code)) for name, code in self.new.items()])]
        )

    def spawn(self, function, *args):
        return self.world.spawn(function, *args)

    async def join(self, handle):
        return await result(self.world.join(handle))

    async def call(self):
        """f, as a new task that is nobody's child sees it."""
        return await self.join(self.spawn(self.target.f, self.tasks.nothing))

    def newcomer(self, version):
        """What a new task sees while a transition runs, if its creator sees this."""
        return OLD if self.world.state_of == "unpatched" else version

    async def until(self, condition, what: str) -> None:
        deadline = time.monotonic() + 30
        while not condition():
            assert time.monotonic() < deadline, f"in vain: {what}: {self.lp.patches()} {self.lp.tasks()}"
            await result(self.world.sleep())

    async def settled(self) -> None:
        await self.until(lambda: not any(p.transition for p in self.lp.patches()), "the transition is complete")

    async def disable(self) -> None:
        """Take the patch back, wherever it is on its way."""
        with suppress(self.lp.LivepatchError):  # it is out already
            self.lp.write_enabled("p", 0)
        await self.until(lambda: not self.lp.patches(), "the patch is gone")
        with suppress(self.lp.LivepatchError):
            self.lp.unload_patch("p")

    async def held(self, function, *args):
        """A task that is held in f, and the gate that lets it go."""
        gate = self.world.gate()
        handle = self.spawn(function, gate, *args)
        await self.until(lambda: self.holding(), "the task is in f")
        return gate, handle

    def holding(self):
        return [t for t in self.lp.tasks() if any(frame.startswith("f (target_old.py") for frame in t.stack)]

    async def blocked(self, function, *args):
        """The same, with a transition that waits for it, and for it alone."""
        gate, handle = await self.held(function, *args)
        self.lp.enable_patch(self.patch())
        await self.until(lambda: self.lp.patches()[0].left == 1, "all others have moved")
        return gate, handle


async def enable(stage):
    assert await stage.call() == OLD
    stage.lp.enable_patch(stage.patch())
    await stage.settled()
    assert await stage.call() == NEW


async def disable(stage):
    stage.lp.enable_patch(stage.patch())
    await stage.settled()
    await stage.disable()
    assert await stage.call() == OLD


async def blocked(stage):
    gate, handle = await stage.blocked(stage.tasks.thrice, stage.world.sleep)
    for _ in range(20):
        await result(stage.world.sleep())
    assert stage.lp.patches()[0].transition
    (blocker,) = [task for task in stage.lp.tasks() if task.blocking]
    assert blocker.kind == stage.world.kind, blocker
    assert any("f (target_old.py" in frame for frame in blocker.blocking), blocker
    assert blocker.patch_state == 0
    gate.set()
    assert (await stage.join(handle))[0] == OLD


async def unblocked(stage):
    gate, handle = await stage.blocked(stage.tasks.thrice, stage.world.sleep)
    assert await stage.call() == stage.newcomer(NEW), "who is not held has moved"
    gate.set()
    first, second, third = await stage.join(handle)
    assert first == OLD
    assert second in (OLD, NEW), "nobody may have looked in between"
    assert third == NEW, "it moves when it leaves f"
    await stage.settled()
    assert await stage.call() == NEW


async def reverse(stage):
    gate, handle = await stage.blocked(stage.tasks.thrice, stage.world.sleep)
    from livepatch.testing import manual_rounds

    with manual_rounds():  # nobody keeps the way back from its end: one round in between, and there is none to reverse
        for _ in range(3):
            stage.lp.write_enabled("p", 0)
            stage.lp.write_enabled("p", 1)
    assert stage.lp.patches()[0].transition
    stage.lp.write_enabled("p", 0)
    await stage.until(lambda: not stage.lp.patches(), "the patch is gone: who is held is in the old world already")
    stage.lp.unload_patch("p")
    assert await stage.call() == OLD
    gate.set()
    assert await stage.join(handle) == (OLD, OLD, OLD)


async def force(stage):
    gate, handle = await stage.blocked(stage.tasks.thrice, stage.world.sleep)
    stage.lp.force_transition("p")
    await stage.settled()
    gate.set()
    first, *others = await stage.join(handle)
    assert first == ("old", "new", "new"), "that is what force does"
    assert others == [NEW, NEW]


async def inherit(stage):
    children: list = []
    # Who has moved has children that have.
    gate, handle = await stage.blocked(stage.tasks.thrice, stage.world.sleep)
    end = stage.world.gate()
    moved = stage.spawn(stage.tasks.outside, end, stage.world.spawn, children)
    await stage.until(lambda: children, "the child of one who has moved")
    assert await stage.join(children.pop()) == stage.newcomer(NEW)
    end.set()
    await stage.join(moved)
    gate.set()
    await stage.join(handle)
    await stage.settled()
    await stage.disable()
    # Who has not has children that have not.
    gate, stop = stage.world.gate(), []
    parent = stage.spawn(
        stage.tasks.waits_then_bears, gate, lambda: stop, stage.world.sleep, stage.world.spawn, children
    )
    await stage.until(stage.holding, "the parent is in f")
    stage.lp.enable_patch(stage.patch())
    await stage.until(lambda: stage.lp.patches()[0].left == 1, "all others have moved")
    gate.set()
    seen = set()
    for _ in range(500):
        await stage.until(lambda: children, "the child of one who has not moved")
        seen.add(await stage.join(children.pop(0)))
        # A child may have been looked at before its first call, and moved; then another one has not. No worker is
        # anybody's child.
        if OLD in seen or stage.world.state_of == "worker":
            break
    else:
        raise AssertionError("not one child was as its parent")
    assert seen <= {OLD, NEW}
    assert stage.world.state_of == "worker" or await stage.call() == stage.newcomer(NEW)
    stop.append(True)
    assert await stage.join(parent) == OLD


async def under_fire(stage, drive):
    """Tasks that call f all the time, while `drive` is at it; the calls that met more than one version."""
    torn, seen, stop = [], set(), []

    def record(versions):
        seen.add(versions)
        if len(set(versions)) > 1:
            torn.append(versions)

    tasks = [stage.spawn(stage.tasks.hammer, record, lambda: stop, stage.world.sleep) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        await drive()
    finally:
        sys.setswitchinterval(interval)
        stop.append(True)
        for task in tasks:
            await stage.join(task)
    return torn, seen


async def torn(stage):
    async def drive():
        for count in range(12):
            stage.lp.enable_patch(stage.patch())
            for value in (0, 1) if count % 3 == 2 else ():
                with suppress(stage.lp.LivepatchError):  # it had arrived by then
                    stage.lp.write_enabled("p", value)
                await result(stage.world.sleep())
            await stage.settled()
            await result(stage.world.sleep(0.003))
            await stage.disable()
            await result(stage.world.sleep(0.003))

    torn, seen = await under_fire(stage, drive)
    assert not torn, torn[:5]
    assert seen == {OLD, NEW}


async def naive(stage):
    """What hot reloaders do has to fail, or the cell above proves nothing."""

    async def drive():
        functions = {name: getattr(stage.target, name) for name in stage.new}
        old = {name: function.__code__ for name, function in functions.items()}
        for count in range(400):
            for name, function in functions.items():
                function.__code__ = (old if count % 2 else stage.new)[name]
            await result(stage.world.sleep())

    torn, _ = await under_fire(stage, drive)
    assert torn, "not one call was torn: the harness is blind"


CELLS = (enable, disable, blocked, unblocked, reverse, force, inherit, torn, naive)


def main(name: str) -> None:
    stage = Stage(name)
    for cell in CELLS:

        async def one(cell=cell):
            error = None
            try:
                await cell(stage)
                await stage.settled()
                await stage.disable()
            except BaseException:
                error = traceback.format_exc()
            print(json.dumps({"cell": cell.__name__, "error": error}), flush=True)
            if error is not None:
                os._exit(1)  # tasks may hang in the middle of anything

        stage.world.run(one)


if __name__ == "__main__":
    main(sys.argv[1])
