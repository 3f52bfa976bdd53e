"""One class for each kind of task: how a process of it starts a task, waits for one, and pauses.

What is shared by all is written once, with `async` and `await`: see `cells.py`, which takes these words out for kinds
whose tasks are plain functions. Everything here runs in a process of its own, since some libraries change the whole
process for good.
"""

from __future__ import annotations

import inspect
import queue
import sys
import threading
import time
from types import ModuleType


class Threads:
    """Threads of `threading`; the base of all kinds with plain functions."""

    plain = True  # tasks are plain functions, not coroutine functions
    kind = "thread"  # what livepatch calls it
    #: Whose state a new task has: that of the one that makes it ("creator"), of the worker that happens to take it
    #: ("worker"), or of who has not moved ("unpatched").
    state_of = "creator"

    def prepare(self) -> None:
        """Before livepatch is imported."""

    def prepare_late(self) -> None:
        """After that."""

    def run(self, main) -> None:
        """Run a coroutine function that calls the methods below."""
        try:
            main().send(None)
        except StopIteration:
            pass

    def spawn(self, function, *args):
        """Start a task; its handle. Called from the main program and from tasks."""
        results: queue.SimpleQueue = queue.SimpleQueue()
        self.begin(lambda: results.put(outcome(function, args)))
        return results

    def begin(self, function) -> None:
        threading.Thread(target=function).start()

    def join(self, handle):
        """What the task returned."""
        return settled(handle.get(timeout=60))

    def sleep(self, seconds: float = 0.001):
        """Let the others go on."""
        time.sleep(seconds)

    def gate(self):
        """Something with `wait()` and `set()`."""
        return threading.Event()


def outcome(function, args):
    try:
        return function(*args), None
    except BaseException as error:
        return None, error


def settled(result):
    value, error = result
    if error is not None:
        raise error
    return value


class Daemons(Threads):
    def begin(self, function):
        threading.Thread(target=function, daemon=True).start()


class LowLevel(Threads):
    """`_thread`'s, which `threading` knows nothing of."""

    def begin(self, function):
        import _thread

        _thread.start_new_thread(function, ())


class Foreign(Threads):
    """Threads that C code has started, and that enter Python."""

    state_of = "unpatched"

    def prepare(self):
        import ctypes

        self._libc = ctypes.CDLL(None)
        self._type = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
        self._entries = []  # must outlive their threads

    def begin(self, function):
        import ctypes

        def entry(_):
            function()

        self._entries.append(self._type(entry))
        assert self._libc.pthread_create(ctypes.byref(ctypes.c_ulong()), None, self._entries[-1], None) == 0


class Pool(Threads):
    """Work items of `concurrent.futures`."""

    state_of = "worker"

    def prepare(self):
        from concurrent.futures import ThreadPoolExecutor

        self._pool = ThreadPoolExecutor(64)

    def spawn(self, function, *args):
        return self._pool.submit(function, *args)

    def join(self, handle):
        return handle.result(60)


class Asyncio(Threads):
    plain = False
    kind = "asyncio"

    def run(self, main):
        import asyncio

        asyncio.run(main())

    def spawn(self, function, *args):
        import asyncio

        return asyncio.ensure_future(function(*args))

    async def join(self, handle):
        return await handle

    async def sleep(self, seconds=0.001):
        import asyncio

        await asyncio.sleep(seconds)

    def gate(self):
        import asyncio

        return asyncio.Event()


class Eager(Asyncio):
    """Tasks that begin to run while they are made (3.12)."""

    def run(self, main):
        import asyncio

        async def eagerly():
            asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
            await main()

        asyncio.run(eagerly())


class Groups(Asyncio):
    """Tasks of an asyncio.TaskGroup."""

    def run(self, main):
        import asyncio

        async def grouped():
            async with asyncio.TaskGroup() as self._group:
                await main()

        asyncio.run(grouped())

    def spawn(self, function, *args):
        return self._group.create_task(function(*args))


class Uvloop(Asyncio):
    def run(self, main):
        import uvloop

        uvloop.run(main())


class ToThread(Asyncio):
    """What asyncio has threads do."""

    plain = True
    state_of = "worker"
    kind = "thread"

    def run(self, main):
        import asyncio

        async def threaded():
            from concurrent.futures import ThreadPoolExecutor

            self._loop = asyncio.get_running_loop()
            self._loop.set_default_executor(ThreadPoolExecutor(64))
            await main()

        asyncio.run(threaded())

    def spawn(self, function, *args):
        import asyncio

        if threading.current_thread() is threading.main_thread():
            return asyncio.ensure_future(asyncio.to_thread(function, *args))
        return self._loop.run_in_executor(None, function, *args)  # only its result is asked for elsewhere

    def sleep(self, seconds=0.001):
        import asyncio

        return (asyncio if threading.current_thread() is threading.main_thread() else time).sleep(seconds)

    def gate(self):
        return threading.Event()


class ManyLoops(Asyncio):
    """Each task in a loop of its own, in a thread of its own."""

    def run(self, main):
        Threads.run(self, main)

    def spawn(self, function, *args):
        import asyncio

        return Threads.spawn(self, lambda: asyncio.run(function(*args)))

    def join(self, handle):
        return settled(handle.get(timeout=60))

    def sleep(self, seconds=0.001):
        import asyncio

        try:
            asyncio.get_running_loop()
        except RuntimeError:
            return time.sleep(seconds)
        return asyncio.sleep(seconds)

    def gate(self):
        return Slowly()


class Slowly:
    """A gate that tasks of any loop can wait at."""

    def __init__(self):
        self.set_already = False

    async def wait(self):
        import asyncio

        while not self.set_already:
            await asyncio.sleep(0.001)

    def set(self):
        self.set_already = True


class Sqlalchemy(Asyncio):
    """Plain functions in a greenlet that is part of an asyncio task."""

    plain = True

    def spawn(self, function, *args):
        import asyncio

        from sqlalchemy.util import greenlet_spawn

        return asyncio.ensure_future(greenlet_spawn(function, *args))

    def sleep(self, seconds=0.001):
        import asyncio

        import greenlet
        from sqlalchemy.util import await_only

        nap = asyncio.sleep(seconds)
        return nap if greenlet.getcurrent().parent is None else await_only(nap)

    def gate(self):
        import asyncio

        from sqlalchemy.util import await_only

        event = asyncio.Event()

        class Gate:
            set = event.set

            def wait(self):
                await_only(event.wait())

        return Gate()


class Trio(Threads):
    plain = False
    kind = "trio"

    def run(self, main):
        import trio

        async def nursed():
            async with trio.open_nursery() as self._nursery:
                await main()

        trio.run(nursed)

    def spawn(self, function, *args):
        import trio

        done, results = trio.Event(), []

        async def task():
            try:
                results.append((await function(*args), None))
            except Exception as error:
                results.append((None, error))
            done.set()

        self._nursery.start_soon(task)
        return done, results

    async def join(self, handle):
        await handle[0].wait()
        return settled(handle[1][0])

    async def sleep(self, seconds=0.001):
        import trio

        await trio.sleep(seconds)

    def gate(self):
        import trio

        return trio.Event()


class Anyio(Trio):
    """anyio's tasks are its backend's."""

    backend = "asyncio"
    kind = "asyncio"

    def run(self, main):
        import anyio

        async def grouped():
            async with anyio.create_task_group() as self._nursery:
                await main()

        anyio.run(grouped, backend=self.backend)

    def spawn(self, function, *args):
        import anyio

        done, results = anyio.Event(), []

        async def task():
            try:
                results.append((await function(*args), None))
            except Exception as error:
                results.append((None, error))
            done.set()

        self._nursery.start_soon(task)
        return done, results

    async def sleep(self, seconds=0.001):
        import anyio

        await anyio.sleep(seconds)

    def gate(self):
        import anyio

        return anyio.Event()


class AnyioTrio(Anyio):
    backend = "trio"
    kind = "trio"


class Greenlets(Threads):
    """Plain greenlets; whoever waits goes through all of them, round and round."""

    kind = "greenlet"

    def run(self, main):
        import greenlet

        self._main = greenlet.getcurrent()
        self._ready: list = []
        super().run(main)

    def spawn(self, function, *args):
        import greenlet

        results: list = []
        child = greenlet.greenlet(lambda: results.append(outcome(function, args)))
        self._ready.append(child)
        return results

    def sleep(self, seconds=0.001):
        import greenlet

        if greenlet.getcurrent() is not self._main:
            self._main.switch()
            return
        time.sleep(seconds)
        for child in list(self._ready):
            # A child that was made by another one would return into that.
            child.parent = self._main if child else child.parent
            child.switch()
            if child.dead:
                self._ready.remove(child)

    def join(self, handle):
        while not handle:
            self.sleep()
        return settled(handle[0])

    def gate(self):
        world = self

        class Gate:
            open = False

            def set(self):
                self.open = True

            def wait(self):
                while not self.open:
                    world.sleep()

        return Gate()


class Gevent(Threads):
    kind = "greenlet"

    def spawn(self, function, *args):
        import gevent

        return gevent.spawn(function, *args)

    def join(self, handle):
        return handle.get(timeout=60)

    def sleep(self, seconds=0.001):
        import gevent

        gevent.sleep(seconds)

    def gate(self):
        import gevent.event

        return gevent.event.Event()


class GeventBefore(Gevent):
    """With threads replaced before livepatch is imported."""

    def prepare(self):
        from gevent import monkey

        monkey.patch_all()

    def gate(self):
        return threading.Event()  # which is gevent's now


class GeventAfter(GeventBefore):
    def prepare(self):
        pass

    def prepare_late(self):
        super().prepare()


class GeventThreads(GeventBefore):
    """What were threads, and are greenlets now."""

    def spawn(self, function, *args):
        return Threads.spawn(self, function, *args)

    def begin(self, function):
        threading.Thread(target=function).start()

    def join(self, handle):
        return Threads.join(self, handle)


class Eventlet(Threads):
    kind = "greenlet"

    def prepare(self):
        import warnings

        warnings.simplefilter("ignore", DeprecationWarning)
        import eventlet  # noqa: F401

    def spawn(self, function, *args):
        import eventlet

        return eventlet.spawn(function, *args)

    def join(self, handle):
        return handle.wait()

    def sleep(self, seconds=0.001):
        import eventlet

        eventlet.sleep(seconds)

    def gate(self):
        import eventlet.event

        class Gate:
            def __init__(self):
                self._event = eventlet.event.Event()
                self.wait = self._event.wait

            def set(self):
                self._event.send(True)

        return Gate()


class EventletPatched(Eventlet):
    def prepare(self):
        super().prepare()
        import eventlet

        eventlet.monkey_patch()


WORLDS = {
    "threads": Threads,
    "daemon threads": Daemons,
    "_thread": LowLevel,
    "foreign threads": Foreign,
    "concurrent.futures": Pool,
    "asyncio": Asyncio,
    "asyncio, eager": Eager,
    "asyncio.TaskGroup": Groups,
    "asyncio, many loops": ManyLoops,
    "asyncio.to_thread": ToThread,
    "uvloop": Uvloop,
    "trio": Trio,
    "anyio on asyncio": Anyio,
    "anyio on trio": AnyioTrio,
    "greenlet": Greenlets,
    "SQLAlchemy": Sqlalchemy,
    "gevent": Gevent,
    "gevent, patched before": GeventBefore,
    "gevent, patched after": GeventAfter,
    "gevent, its threads": GeventThreads,
    "eventlet": Eventlet,
    "eventlet, patched": EventletPatched,
}

#: What has to be there for it.
NEEDS = {
    "uvloop": "uvloop",
    "trio": "trio",
    "anyio on asyncio": "anyio",
    "anyio on trio": "trio",
    "greenlet": "greenlet",
    "SQLAlchemy": "greenlet",
    "gevent": "gevent",
    "gevent, patched before": "gevent",
    "gevent, patched after": "gevent",
    "gevent, its threads": "gevent",
    "eventlet": "eventlet",
    "eventlet, patched": "eventlet",
}


def there(world: str) -> bool:
    """Whether this Python has what the kind needs."""
    import importlib.util

    if world == "asyncio, eager" and sys.version_info < (3, 12):
        return False
    return world not in NEEDS or importlib.util.find_spec(NEEDS[world]) is not None


async def result(thing):
    """Of a call that may or may not have to be awaited."""
    return await thing if inspect.isawaitable(thing) else thing


def module(name: str, source: str, file: str) -> ModuleType:
    made = ModuleType(name)
    sys.modules[name] = made
    exec(compile(source, file, "exec"), made.__dict__)
    return made
