"""Consistency under fire: f calls g and h in every way there is, while patches go in and out.

Each call returns which version of every function it met. A call that met two is torn: somebody saw half of the
patch. The same harness with a naive exchange of the functions, one by one, has to find torn calls, or it proves
nothing. Reversal in the middle and force are part of the run; what is forced is a bystander that is parked in
a patched function, so that force has something to do and the hammering tasks still may not see half of anything.
"""

from __future__ import annotations

import asyncio
import random
import sys
import threading
import types

import pytest

import livepatch as lp
from livepatch.core import registry

THREADS = """
import threading
parked = threading.Event()
def f(x):
    v = "old"
    for i in range(20): pass
    w = g(x)
    return v, *w, *(h(x) if x % 7 == 0 else ()), *(gen(x) if x % 3 == 0 else ()), *Klass().m(x)
def g(x):
    s = 0
    for i in range(x % 50): s += i
    return "old", *h(x)
def h(x):
    return ("old",)
def gen(x):
    yield "old"
    yield from h(x)
    yield "old"
class Klass:
    def m(self, x):
        return "old", *h(x)
def park():
    parked.wait()
    return "old"
"""

ASYNC = """
import asyncio, threading
parked = threading.Event()
async def f(x):
    v = "old"
    if x % 3 == 0: await asyncio.sleep(0)
    w = await g(x)
    return v, *w, *h(x), *gen(x), *[u async for u in agen(x)]
async def g(x):
    await asyncio.sleep(0)
    return "old", *h(x)
def h(x):
    return ("old",)
def gen(x):
    yield "old"
    yield from h(x)
async def agen(x):
    yield "old"
    if x % 5 == 0: await asyncio.sleep(0)
    for v in await g(x): yield v
    yield "old"
def park():
    parked.wait()
    return "old"
"""

NAMES = {THREADS: ("f", "g", "h", "gen", "Klass.m", "park"), ASYNC: ("f", "g", "h", "gen", "agen", "park")}


class Range:
    """The module under fire, its patch, and what was observed."""

    def __init__(self, source: str) -> None:
        self.module = types.ModuleType("fire_target")
        exec(compile(source, "fire_old.py", "exec"), self.module.__dict__)
        new = compile(source.replace('"old"', '"new"'), "fire_new.py", "exec")
        self.codes = {d.name: d.code for d in registry_definitions(new)}
        self.names = NAMES[source]
        self.seen: dict[str, int] = {"old": 0, "new": 0}
        self.torn = 0
        self.calls = 0
        self.stop = False

    def record(self, met: tuple[str, ...]) -> None:
        self.calls += 1
        if len(set(met)) == 1:
            self.seen[met[0]] += 1
        else:
            self.torn += 1

    def patch(self) -> lp.Patch:
        funcs = [lp.Func(name, lp.Body(self.codes[name])) for name in self.names]
        return lp.Patch("fire", [lp.Object("fire_target", funcs)])

    def functions(self) -> list[types.FunctionType]:
        found = []
        for name in self.names:
            thing = self.module
            for part in name.split("."):
                thing = getattr(thing, part)
            found.append(thing)
        return found


def registry_definitions(code: types.CodeType):
    from livepatch.core.codes import definitions

    return definitions(code)


def until(condition, what: str) -> None:
    for _ in range(60_000):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError(f"in vain: {what}: {registry.tasks()}")


def transitions(target: Range, count: int) -> int:
    """Patches in and out with reversals and force, at least `count` completed transitions."""
    done = 0
    chance = random.Random(7)
    while done < count:
        kind = chance.random()
        if kind < 0.05:
            forced(target)
            done += 2
            continue
        lp.enable_patch(target.patch())
        if kind < 0.4:
            for _ in range(chance.randrange(1, 4)):
                try:
                    lp.write_enabled("fire", chance.random() < 0.5)
                except lp.LivepatchError:
                    pass  # it had that value, or was gone already
        until(lambda: lp.wait("fire", 1), "the patch is in, or out again")
        if enabled():
            lp.disable_patch("fire")
            if kind > 0.8:
                try:
                    lp.write_enabled("fire", 1)
                except lp.LivepatchError:
                    pass  # gone already
                until(lambda: lp.wait("fire", 1), "the reversal is complete")
                done += 1
            if enabled():
                lp.disable_patch("fire")
        until(lambda: lp.wait("fire", 1) and not lp.patches(), "the patch is out")
        lp.unload_patch("fire")
        done += 2
    return done


def enabled() -> bool:
    return any(patch.enabled for patch in lp.patches())


def forced(target: Range) -> None:
    """A bystander is parked in a patched function; everybody else moves, and it is moved by force."""
    target.module.parked.clear()
    bystander = threading.Thread(target=target.module.park)
    bystander.start()
    until(lambda: "wait" in str([t.stack[:1] for t in lp.tasks() if t.name == bystander.name]), "it is parked")
    lp.enable_patch(target.patch())
    until(lambda: lp.patches()[0].left <= 1, "all others have moved")
    assert lp.patches()[0].transition
    lp.force_transition("fire")
    until(lambda: lp.wait("fire", 1), "the forced transition is complete")
    target.module.parked.set()
    bystander.join()
    lp.disable_patch("fire")
    until(lambda: lp.wait("fire", 1) and not lp.patches(), "the patch is out")
    lp.unload_patch("fire")


def naive(target: Range, count: int) -> int:
    """What hot reloaders do."""
    functions = target.functions()
    old = [function.__code__ for function in functions]
    new = [target.codes[name] for name in target.names]
    for done in range(count):
        for function, code in zip(functions, new if done % 2 == 0 else old, strict=True):
            function.__code__ = code
        threading.Event().wait(0.002)
    return count


def hammer_threads(target: Range, drive, count: int) -> int:
    def worker(k: int) -> None:
        i = k
        while not target.stop:
            i += 1
            target.record(target.module.f(i))

    threads = [threading.Thread(target=worker, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    try:
        return drive(target, count)
    finally:
        target.stop = True
        for thread in threads:
            thread.join()


def hammer_asyncio(target: Range, drive, count: int, run=asyncio.run) -> int:
    async def outer(x: int):
        return await target.module.f(x)

    async def client(k: int) -> None:
        i = k
        while not target.stop:
            i += 1
            target.record(await outer(i) if i % 4 else await asyncio.create_task(target.module.f(i)))
            if i % 50 == 0:
                await asyncio.sleep(0.001)

    async def main() -> None:
        clients = asyncio.gather(*[client(k) for k in range(30)])
        try:
            done.append(await asyncio.to_thread(drive, target, count))
        finally:
            target.stop = True
            await clients

    done: list[int] = []
    run(main())
    return done[0]


def hammer_uvloop(target: Range, drive, count: int) -> int:
    uvloop = pytest.importorskip("uvloop")
    return hammer_asyncio(target, drive, count, uvloop.run)


HAMMERS = {"threads": (hammer_threads, THREADS), "asyncio": (hammer_asyncio, ASYNC), "uvloop": (hammer_uvloop, ASYNC)}


@pytest.fixture
def fire(request):
    hammer, source = HAMMERS[request.param]
    target = Range(source)
    sys.modules["fire_target"] = target.module
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    yield target, hammer
    sys.setswitchinterval(interval)
    del sys.modules["fire_target"]


@pytest.mark.slow
@pytest.mark.parametrize("fire", HAMMERS, indirect=True)
def test_no_call_is_torn(fire):
    target, hammer = fire
    done = hammer(target, transitions, 40)
    assert done >= 40
    assert min(target.seen.values()), "both versions have been met"
    assert target.torn == 0, f"{target.torn} of {target.calls} calls met both versions"


@pytest.mark.parametrize("fire", HAMMERS, indirect=True)
def test_no_call_is_torn_quickly(fire):
    target, hammer = fire
    hammer(target, transitions, 12)
    assert target.torn == 0, f"{target.torn} of {target.calls} calls met both versions"


@pytest.mark.parametrize("fire", HAMMERS, indirect=True)
def test_naive_exchange_tears_calls(fire):
    target, hammer = fire
    for _ in range(20):
        target.stop = False
        hammer(target, naive, 200)
        if target.torn:
            return
    raise AssertionError(f"not one of {target.calls} calls was torn: the harness is blind")
