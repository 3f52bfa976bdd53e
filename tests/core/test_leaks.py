"""Hundreds of times in and out again: the number of objects and the memory are where they were.

Each case runs in a small process of its own, because asking the heap costs time in proportion to its size, and because
a test runner keeps things. What counts is growth per cycle, after a warm-up.
"""

import json
import os
import subprocess
import sys
import textwrap

import pytest

#: For the plain cases, and for those that differ from them in one thing.
MANY, SOME = 200, 60

PRELUDE = """
import gc, importlib, json, logging, os, sys, threading, types, weakref
logging.getLogger("livepatch").disabled = True
import livepatch as lp
from livepatch.core import lists, redirect, registry, trampoline
from livepatch.core.codes import definitions
from livepatch.testing import finish, manual_rounds, tick

SOURCE = '''
import functools
def f(x=1, *, k=2):
    "Doc, old."
    return "old"
@functools.lru_cache
def cached(x): return "old"
class C:
    def m(self): return "old"
    @property
    def p(self): return "old"
def gen():
    yield "old"
    yield f()
async def coro(): return f()
async def agen():
    yield f()
def make(x):
    def inner():
        def innermost(): return x, "old"
        return innermost
    return inner
closures = [make(n) for n in range(10)]
def stay(gate):
    met = make(5)()()
    gate()
    return met, f(), make(5)()()
'''
NAMES = ("f", "cached", "C.m", "C.p", "gen", "coro", "agen", "make.<locals>.inner.<locals>.innermost", "stay")

def load(name="target"):
    module = sys.modules[name] = types.ModuleType(name)
    exec(compile(SOURCE, "old.py", "exec"), module.__dict__)
    return module

FEW = ("f", "gen", "make.<locals>.inner.<locals>.innermost", "stay")

def patch(name="p", module="target", names=FEW, **callbacks):
    codes = {d.name: d.code for d in definitions(compile(SOURCE.replace("old", "new"), "new.py", "exec"))}
    attributes = {"f": {"__defaults__": (3,), "__kwdefaults__": {"k": 4}, "__doc__": "Doc, new."}}
    funcs = [lp.Func(n, lp.Body(codes[n], attributes.get(n))) for n in names]
    return lp.Patch(name, [lp.Object(module, funcs, callbacks=lp.Callbacks(**callbacks))])

def drive(coroutine):
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value

def use(module):
    return [module.f(), *module.gen(), module.closures[0]()()[1]]

def use_all(module):
    c = module.C()
    return [*use(module), module.cached(1), c.m(), c.p, drive(module.coro())]

class Held:
    "A thread inside of an old function, which makes every transition a real one."
    def __init__(self, module):
        self.reached, self.go = threading.Event(), threading.Event()
        self.thread = threading.Thread(target=module.stay, args=(self.gate,))
        self.thread.start()
        assert self.reached.wait(60)
    def gate(self):
        self.reached.set()
        assert self.go.wait(60)
    def release(self):
        self.go.set()
        self.thread.join(60)

def out(name="p"):
    lp.disable_patch(name)
    finish()
    lp.unload_patch(name)

target = load()
"""

CASES = {
    "built from source": """
        def cycle():
            lp.enable_patch(patch(names=NAMES))
            assert set(use_all(target)) == {"new"}
            out()
            assert set(use_all(target)) == {"old"}
    """,
    "written by hand": """
        def cycle():
            word = "new"
            def f(x=1, *, k=2, j=3): return word
            def m(self): return word
            def gen(): yield from [word, f()]
            async def coro(): return f()
            funcs = [lp.Func("f", f), lp.Func("C.m", m), lp.Func("gen", gen), lp.Func("coro", coro)]
            lp.enable_patch(lp.Patch("p", [lp.Object("target", funcs)]))
            assert target.f() == target.C().m() == drive(target.coro()) == "new"
            assert list(target.gen()) == ["new", "new"]
            out()
            assert set(use(target)) == {"old"}
    """,
    "with a thread in the old version, and one in the new": """
        def cycle():
            held = Held(target)
            lp.enable_patch(patch())
            kept = [target.make(1), target.make(2)()]
            assert set(use(target)) == {"new"}
            held.release()
            finish()
            held = Held(target)
            lp.disable_patch("p")
            kept += [target.make(1), target.make(2)()]
            assert set(use(target)) == {"old"}
            held.release()
            finish()
            lp.unload_patch("p")
    """,
    "with reversals and force": """
        def cycle():
            held = Held(target)
            lp.enable_patch(patch())
            use(target)
            for value in (0, 1, 0):
                lp.write_enabled("p", value)
                tick()
                use(target)
                if not lp.patches():
                    lp.unload_patch("p")
                    break
            lp.enable_patch(patch("q"))
            use(target)
            lp.force_transition("q")
            finish()
            registry.taints.clear()
            held.release()
            out("q")
    """,
    "with suspended frames": """
        def cycle():
            held = Held(target)
            lp.enable_patch(patch())
            new = [target.gen() for _ in range(3)]
            for generator in new:
                next(generator)
            unstarted = target.gen(), target.gen()
            held.release()
            finish()
            lp.disable_patch("p")
            tick()
            assert lp.patches()
            del new, generator
            finish()
            lp.unload_patch("p")
            assert list(unstarted[0]) == ["old", "old"]
    """,
    "with asyncio tasks": """
        import asyncio
        async def one():
            go = asyncio.Event()
            async def request():
                met = [await target.coro()]
                await go.wait()
                return [*met, await target.coro(), *[word async for word in target.agen()]]
            requests = [asyncio.create_task(request()) for _ in range(5)]
            await asyncio.sleep(0)
            lp.enable_patch(patch(names=("f", "coro", "agen")))
            go.set()
            await asyncio.gather(*requests)
            while any(p.transition for p in lp.patches()):
                tick()
                await asyncio.sleep(0)
            lp.disable_patch("p")
            while lp.patches():
                tick()
                await asyncio.sleep(0)
            lp.unload_patch("p")
        def cycle():
            asyncio.run(one())
    """,
    "stacked": """
        def cycle():
            for name in "abc":
                lp.enable_patch(patch(name, names=("f", "gen")))
                use(target)
            for name in "bca":
                out(name)
    """,
    "refused": """
        def refuse(obj): return -16
        def cycle():
            for bad in (patch(pre_patch=refuse), lp.Patch("p", [lp.Object("target", [lp.Func("nothing", cycle)])])):
                try:
                    lp.enable_patch(bad)
                except lp.LivepatchError:
                    pass
                else:
                    raise AssertionError
            use(target)
    """,
    "modules that come and go": """
        def cycle():
            module = load("passing")
            held = Held(module)
            lp.enable_patch(patch(module="passing"))
            assert set(use(module)) == {"new"}
            held.release()
            finish()
            out()
            assert set(use(module)) == {"old"}
            del sys.modules["passing"]
            alive.add(module.f)
        alive = weakref.WeakSet()
        def check():
            assert not alive, "functions outlive their module"
    """,
    "modules that wait for the patch": """
        import tempfile
        folder = tempfile.mkdtemp()
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        open(os.path.join(folder, "later.py"), "w").write(SOURCE)
        def cycle():
            lp.enable_patch(patch(module="later"))
            module = importlib.import_module("later")
            assert set(use(module)) == {"new"}
            out()
            del sys.modules["later"]
    """,
}

MEASURE = """
def check(): pass
{case}
def measure():
    gc.collect()
    with open("/proc/self/statm") as statm:
        resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return len(gc.get_objects()), resident, len(gc.garbage)

with manual_rounds():
    for _ in range({warm_up}):
        cycle()
    before = measure()
    for _ in range({cycles}):
        cycle()
    after = measure()
    check()
left = [redirect.redirections, redirect._stale, redirect._copies, lists.listed, lists.loaded_patches]
print(json.dumps([before, after, [len(table) for table in left]]))
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="needs /proc")
@pytest.mark.parametrize("case", CASES)
def test_nothing_is_left_of_patches_that_came_and_went(case):
    cycles = MANY if case in ("built from source", "written by hand") else SOME
    text = PRELUDE + MEASURE.format(case=textwrap.dedent(CASES[case]), warm_up=20, cycles=cycles)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stdout + done.stderr
    (objects, resident, _), (objects_after, resident_after, garbage), tables = json.loads(done.stdout)
    assert objects_after - objects < cycles / 5, "objects that stay"
    assert resident_after < resident * 1.1, "memory that stays"
    assert garbage == 0
    assert tables == [0] * len(tables)
