"""What comes and goes leaves nothing: objects and memory stay where they were."""

from __future__ import annotations

import gc
import subprocess
import sys

PROGRAM = """
import gc, os, sys, types
import livepatch as lp
from livepatch.core.codes import definitions

SOURCE = '''
import functools
def f(x): return "old"
def gen(x): yield "old"
async def co(x): return "old"
class K:
    def m(self): return "old"
    @property
    def p(self): return "old"
def make(n):
    def inner(): return "old", n
    return inner
@functools.lru_cache
def cached(x): return "old"
closures = [make(i) for i in range(20)]
'''
target = types.ModuleType("target")
sys.modules["target"] = target
exec(compile(SOURCE, "old.py", "exec"), target.__dict__)
NAMES = ("f", "gen", "co", "K.m", "K.p", "make", "make.<locals>.inner", "cached")

def cycle(built):
    if built:
        new = compile(SOURCE.replace('"old"', '"new"'), "new.py", "exec")
        codes = {d.name: d.code for d in definitions(new)}
        funcs = [lp.Func(name, lp.Body(codes[name])) for name in NAMES]
    else:
        def by_hand(x): return "new"
        def inner(): return "new", 0
        funcs = [lp.Func("f", by_hand), lp.Func("make.<locals>.inner", inner)]
    lp.enable_patch(lp.Patch("p", [lp.Object("target", funcs)]), timeout=60)
    assert target.f(1) == "new" and target.closures[0]()[0] == "new" == target.make(1)()[0]
    list(target.gen(1)), target.cached(1), target.K().m(), target.K().p
    lp.disable_patch("p", timeout=60)
    assert lp.wait("p", 60) and not lp.patches() and target.f(1) == "old"
    lp.unload_patch("p")

def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

def look():
    gc.collect()
    return len(gc.get_objects()), resident()

for number in range(100):
    cycle(number % 2)
before = look()
for number in range(200):
    cycle(number % 2)
after = look()
print(*before, *after)
"""


def test_two_hundred_cycles():
    """In a process of its own; the first hundred are for caches and the allocator to fill up."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    objects, resident, objects_after, resident_after = map(int, done.stdout.split())
    assert objects_after <= objects + 20, f"{objects_after - objects} objects more"
    assert resident_after <= resident * 1.03, f"{resident_after - resident} bytes more"


def test_tasks_are_let_go(module):
    """A transition knows tasks; afterwards nobody does."""
    import asyncio
    import weakref

    from tests.core import kit

    import livepatch as lp

    target = module("def f(): return 'old'")

    async def main() -> list[weakref.ref]:
        event = asyncio.Event()
        tasks = [asyncio.create_task(event.wait()) for _ in range(100)]
        await asyncio.sleep(0)
        lp.enable_patch(kit.built("p", target, "def f(): return 'new'", "f"), timeout=60)
        while lp.patches()[0].transition:
            await asyncio.sleep(0.001)
        event.set()
        await asyncio.gather(*tasks)
        return [weakref.ref(task) for task in tasks]

    references = asyncio.run(main())
    gc.collect()
    assert not [task for task in (reference() for reference in references) if task is not None]
    lp.disable_patch("p", timeout=60)
    kit.until(lambda: not lp.patches())
    lp.unload_patch("p")
