"""What the tests of the core share: modules to patch, patches for them, threads that obey, places to hold them at."""

import asyncio
import queue
import sys
import textwrap
import threading
import time
import types
import weakref
from concurrent.futures import Future
from contextlib import contextmanager

import livepatch as lp
from livepatch.core import flow, lists, registry
from livepatch.core.codes import definitions
from livepatch.core.tasks.asyncio import KIND
from livepatch.testing import manual_rounds, tick

#: How long anything may take before a test gives up: generous, the machine may be busy.
PATIENCE = 60.0


def until(condition, what: str = "what the test waits for") -> None:
    """Wait until the condition holds, without making rounds."""
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"in vain: {what}"
        time.sleep(0.001)


async def rounds(count: int = 3) -> None:
    """Some rounds, made by another thread, with turns of the loop between them.

    Whole ones: a loop looks at its tasks in slices of time, which are soon over where others need the processor.
    """
    for _ in range(count):
        await asyncio.to_thread(tick)
        await asyncio.sleep(0)
        while any(loop.scheduled for loop in list(KIND._loops.values())):
            await asyncio.sleep(0)


def asleep(ident: int) -> bool:
    """The thread waits in an event, and has got as far as the lock: it says so a few lines before it is there."""
    frame = sys._current_frames().get(ident)
    waits = frame is not None and frame.f_code is threading.Condition.wait.__code__
    return waits and flow.called(frame) == "waiter.acquire"


@contextmanager
def meanwhile(program, *, threads=2, interval=2e-5):
    """Threads that do this over and over, at that switch interval, and what the first to fail raised, at the end."""
    over, failed = threading.Event(), []

    def run():
        try:
            while not over.is_set():
                program()
        except BaseException as error:
            failed.append(error)

    sys.setswitchinterval(interval)
    running = [threading.Thread(target=run) for _ in range(threads)]
    try:
        for thread in running:
            thread.start()
        yield
    finally:
        over.set()
        for thread in running:
            thread.join(PATIENCE)
    if failed:
        raise failed[0]


class Gate:
    """A place in a program: whoever calls it is held there until the test opens it, or ends."""

    all: "weakref.WeakSet[Gate]" = weakref.WeakSet()

    def __init__(self):
        self.all.add(self)
        self.reached = threading.Event()
        self._go = threading.Event()
        self._ident = 0

    def __call__(self, *_):
        self._ident = threading.get_ident()
        self.reached.set()
        assert self._go.wait(PATIENCE), "nobody opened the gate"

    def arrived(self):
        assert self.reached.wait(PATIENCE), "nobody came to the gate"

    def waited_at(self):
        """Whoever came last has arrived, and waits: for tests of what is said of it."""
        self.arrived()
        until(lambda: asleep(self._ident), "somebody waits at the gate")

    def open(self):
        self._go.set()


class Worker(threading.Thread):
    """A thread that does what it is told, one thing after the other."""

    def __init__(self):
        super().__init__(name="a worker", daemon=True)
        self._jobs = queue.SimpleQueue()
        self.start()

    def run(self):
        while (job := self._jobs.get()) is not None:
            future, function, args = job
            try:
                future.set_result(function(*args))
            except BaseException as error:
                future.set_exception(error)
            del job, future, function, args

    def begin(self, function, *args) -> Future:
        """Let it call something, and go on."""
        future = Future()
        self._jobs.put((future, function, args))
        return future

    def do(self, function, *args):
        """Let it call something, and give what it returned."""
        return self.begin(function, *args).result(PATIENCE)

    def close(self):
        self._jobs.put(None)
        self.join(PATIENCE)
        assert not self.is_alive()


def load(name: str, source: str, **names) -> types.ModuleType:
    """A module of this source, imported; `names` are in its namespace from the beginning. The fixture removes it."""
    module = types.ModuleType(name)
    module.__dict__.update(names)
    sys.modules[name] = module
    exec(compile(textwrap.dedent(source), f"{name}_old.py", "exec"), module.__dict__)
    return module


def bodies(source: str) -> dict[tuple[str, int], types.CodeType]:
    """The code of every function in new source, by name and position."""
    return {(d.name, d.sympos): d.code for d in definitions(compile(textwrap.dedent(source), "new.py", "exec"))}


def built(name: str, module: types.ModuleType, source: str, *functions, attributes=None, callbacks=None, **options):
    """A patch as the builder makes it: the functions (a name, or a name and a position) as they are in new source."""
    codes = bodies(source)
    funcs = []
    for function in functions:
        old_name, sympos = function if isinstance(function, tuple) else (function, 0)
        body = lp.Body(codes[old_name, sympos or 1], dict((attributes or {}).get(old_name, {})))
        funcs.append(lp.Func(old_name, body, old_sympos=sympos, **options))
    return lp.Patch(name, [lp.Object(module.__name__, funcs, callbacks=callbacks)])


def by_hand(name: str, module: types.ModuleType, callbacks=None, **functions):
    """A patch as a person writes it. Double underscores in a keyword stand for a dot."""
    funcs = [lp.Func(old.replace("__", "."), new) for old, new in functions.items()]
    return lp.Patch(name, [lp.Object(module.__name__, funcs, callbacks=callbacks)])


def take_out(name: str) -> None:
    """Disable and unload a patch whose transition can complete at once."""
    from livepatch.testing import finish

    lp.disable_patch(name)
    finish()
    lp.unload_patch(name)


def blocking() -> list[str]:
    """The names of all functions that keep some task from moving."""
    return [frame.partition(" (")[0] for task in lp.tasks() for frame in task.blocking]


def clean_up() -> list[str]:
    """Take away everything that a test left behind, and say what that was."""
    left = [f"patch {patch.name}" for patch in registry.loaded() if not patch.forced]
    if registry.running_transition() is not None:
        left.append("a transition")
    with manual_rounds():
        while listed := lp.patches():
            name = next((patch.name for patch in listed if patch.transition), listed[-1].name)
            if not any(patch.transition for patch in listed):
                lp.disable_patch(name)
            if registry.running_transition() is not None:
                lp.force_transition(name)
                registry.tick()
    lists.loaded_patches.clear()
    registry.taints.clear()
    return left
