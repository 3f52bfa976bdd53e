"""Who is in the way, where it came from, for how long, and what would let it go; looking keeps nothing alive."""

import _thread
import asyncio
import concurrent.futures
import functools
import socket
import socketserver
import sys
import threading
import time
import weakref
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
from tests.agent.targets import Target
from tests.core import kit

import livepatch as lp
from livepatch.core import blockers, registry
from livepatch.core.blockers import NEVER, Case, explain
from livepatch.core.stacks import stack
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


@pytest.fixture(autouse=True)
def nothing_remembered():
    blockers.memory._seen.clear()
    yield
    blockers.memory._seen.clear()


@pytest.fixture
def target(module):
    return module("def f(gate): gate()\ndef g(gate):\n    while True: gate()")


def patch(target, *functions, **options):
    made = kit.built("P", target, "def f(gate): pass\ndef g(gate): pass", *(functions or ("f", "g")))
    return lp.Patch("P", made.objects, **options)


def in_the_way(found, name=None):
    (one,) = [task for task in found if task.blocking and name in (None, task.name)]
    return one


def checked(target, *functions):
    return registry.check_patch(patch(target, *functions))


class Stop(BaseException):
    """Ends what would go on for ever."""


class Gate(kit.Gate):
    """A gate that whoever comes through does not come back from."""

    def __call__(self, *_):
        super().__call__()
        raise Stop


# -- what would let it go ------------------------------------------------------------------------------------------


def hint_of(found):
    """What is said of the one that is in the way, without what it waits for."""
    return in_the_way(found).hint.partition(";")[0]


def test_a_work_item(target):
    gate = kit.Gate()
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pool.submit(target.f, gate)
        gate.arrived()
        assert hint_of(checked(target)) == "returns when the current job ends"
        gate.open()


def test_requests_of_two_servers(target):
    gate = kit.Gate()

    class Handler(socketserver.BaseRequestHandler):
        def handle(self):
            target.f(gate)

    def application(environ, start):
        target.f(gate)
        start("200 OK", [])
        return []

    class Quiet(WSGIRequestHandler):
        def log_message(self, *_):
            pass

    for server in (
        socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler),
        make_server("127.0.0.1", 0, application, handler_class=Quiet),
    ):
        gate = kit.Gate()
        serving = threading.Thread(target=server.serve_forever, args=(0.01,), name="server")
        serving.start()
        with socket.create_connection(server.server_address) as client:
            client.sendall(b"GET / HTTP/1.0\r\n\r\n")
            gate.arrived()
            found = checked(target)
            gate.open()
            client.recv(100)
        server.shutdown()
        serving.join()
        server.server_close()
        assert hint_of(found) == "returns when the current request ends"


def test_what_never_returns_is_known_at_once(target, worker):
    gate = Gate()
    ended = worker().begin(target.g, gate)
    gate.waited_at()
    one = in_the_way(checked(target))
    said = "mark it immediate (livepatch build --immediate 'lp_target:g') or patch what it calls"
    assert one.hint.startswith(f"g() never returns: {said}; waits for a lock in ")
    assert blockers.stuck(one)
    gate.open()
    with pytest.raises(Stop):
        ended.result(kit.PATIENCE)


def test_the_outermost_of_them_decides(module, worker):
    """What is to return is the one that all the others are called by."""
    target = module("def f(gate): gate()\ndef g(gate):\n    while True: f(gate)")
    gate = Gate()
    ended = worker().begin(target.g, gate)
    gate.arrived()
    one = in_the_way(checked(target))
    assert [frame.partition(" ")[0] for frame in one.blocking] == ["f", "g"]
    assert one.hint.startswith(f"g() {NEVER}")
    gate.open()
    with pytest.raises(Stop):
        ended.result(kit.PATIENCE)


def test_what_is_not_known_to_loop(target, held):
    held.begin(target.f)
    assert hint_of(checked(target)) == "goes when f() returns"
    held.release()


def test_all_that_a_thread_does(target, monkeypatch):
    """It could return, but it was there ten seconds ago, and nothing else is below it."""
    monkeypatch.setattr(blockers, "LASTING", 0.0)
    gate = kit.Gate()
    thread = threading.Thread(target=target.f, args=(gate,))
    thread.start()
    gate.arrived()
    first, second = (in_the_way(checked(target)) for _ in range(2))
    gate.open()
    thread.join()
    said = "mark it immediate (livepatch build --immediate 'lp_target:f') or patch what it calls"
    assert second.hint.partition(";")[0] == f"f() is all that runs here: if it never returns, {said}"
    assert first.seconds < second.seconds
    assert blockers.stuck(second)


def test_suspended_frames(module):
    target = module(
        """
        def f(gate): yield 1
        async def g(gate): pass
        async def h(gate): yield 1
        """
    )
    made = kit.built(
        "P", target, "def f(gate): yield\nasync def g(gate): pass\nasync def h(gate): yield", "f", "g", "h"
    )
    things = target.f(None), target.g(None), target.h(None)
    next(things[0])
    hints = {task.name: task.hint.rpartition(": ")[2] for task in registry.check_patch(made)}
    assert hints == {
        "generator": "goes when it is exhausted or closed",
        "coroutine": "never started, goes when it is awaited or closed",
        "async_generator": "goes when it is exhausted or closed",
    }
    held = explain(Case("suspended", thing=things[0], holder="the list Shop.queue"))
    assert held == "held by the list Shop.queue: goes when it is exhausted or closed"
    things[1].close()


def test_a_generator_that_loops_for_ever_is_not_said_to(module, worker):
    """Whoever resumes it may let it go."""
    target = module("def f(gate):\n    while True:\n        gate()\n        yield 1")
    gate = kit.Gate()
    began = worker().begin(lambda: next(target.f(gate)))
    gate.arrived()
    found = registry.check_patch(kit.built("P", target, "def f(gate): yield 2", "f"))
    gate.open()
    began.result(kit.PATIENCE)
    assert hint_of([task for task in found if task.kind == "thread"]) == "goes when it is exhausted or closed"


def test_asyncio_tasks(module):
    target = module(
        """
        import asyncio
        async def f(gate): await asyncio.sleep(3600)
        async def g(gate):
            while True: await asyncio.sleep(3600)
        """
    )
    made = kit.built("P", target, "async def f(gate): pass\nasync def g(gate): pass", "f", "g")

    async def main():
        tasks = [asyncio.create_task(target.f(None), name="f"), asyncio.create_task(target.g(None), name="g")]
        await asyncio.sleep(0)
        found = {task.name: task for task in registry.check_patch(made)}
        for task in tasks:
            task.cancel()
        return found

    found = asyncio.run(main())
    assert found["f"].hint == "goes on when the future it awaits is done; waits in asyncio.sleep"
    said = f"{NEVER} (livepatch build --immediate 'lp_target:g') or patch what it calls"
    assert found["g"].hint == f"g() {said}; waits in asyncio.sleep"
    assert found["f"].origin == "f (lp_target_old.py:3), loop of MainThread"


def test_between_two_pieces_of_work(module, worker):
    target = module("def f(): pass\ndef request(gate): gate()")
    made = kit.built("P", target, "def f(): return 1", "f")
    gate, thread = kit.Gate(), worker()
    thread.begin(target.request, gate)
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        gate.waited_at()
        gate.reached.clear()
        pool.submit(target.request, gate)
        gate.waited_at()
        lp.enable_patch(lp.Patch("P", made.objects, consistency="boundary"))
        found = lp.tasks()
        gate.open()
    said = in_the_way(found, "pool_0").hint
    assert said.startswith("moves at the end of the job; waits for a lock in ")
    said = in_the_way(found, "a worker").hint
    assert said.startswith("moves when it calls livepatch.update_patch_state(); waits for a lock in ")
    thread.close()
    finish()
    kit.take_out("P")


def test_a_task_that_only_waits_for_its_turn(target):
    """Its loop is busy with what has nothing to do with the patch."""
    gate = kit.Gate()

    async def main():
        asyncio.create_task(asyncio.sleep(0.01), name="waits")  # noqa: RUF006 - its end is not waited for
        await asyncio.sleep(0)
        gate()

    loop = threading.Thread(target=asyncio.run, args=(main(),))
    loop.start()
    gate.arrived()
    lp.enable_patch(patch(target))
    (waits,) = [task for task in lp.tasks() if task.name == "waits"]
    gate.open()
    loop.join()
    assert (waits.blocking, waits.hint) == ([], "moves when its loop is idle")
    assert waits.seconds is not None
    finish()
    kit.take_out("P")


# -- what it waits for ---------------------------------------------------------------------------------------------

#: In a process of their own, since most of them never end; each says what is to be said of it.
WAITING = """
import queue, socket, subprocess, sys, threading, time
from livepatch.core.blockers import Case, explain
from livepatch.core.stacks import stack
lock = threading.Lock()
lock.acquire()
def sleeps(): time.sleep(3600)
def takes_a_lock(): lock.acquire()
def takes_it_with():
    with lock: pass
def gets(): queue.Queue().get()
def accepts():
    with socket.create_server(("127.0.0.1", 0)) as server: server.accept()
def waits_for_a_process(): subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE).wait()
def reads(): sys.stdin.readline()
def computes():
    while True: len("")
SAID = {
    sleeps: {"waits in time.sleep"},
    takes_a_lock: {"waits for a lock in lock.acquire"},
    takes_it_with: {"waits for a lock in 'with lock'", "waits in a with statement"},
    gets: {"waits for a lock in queue.Queue.get"},
    accepts: {"waits for a socket in socket.socket.accept"},
    waits_for_a_process: {"waits for a process in subprocess.Popen.wait"},
    reads: {"waits for input in sys.stdin.readline"},
    computes: {""},
}
end = time.monotonic() + 60
for function, wanted in SAID.items():
    thread = threading.Thread(target=function, daemon=True)
    thread.start()
    said = None
    while said not in wanted and time.monotonic() < end:
        time.sleep(0.001)
        said = explain(Case("thread", stack(sys._current_frames()[thread.ident])))
    if said not in wanted:
        print(function.__name__, said)
print("done", flush=True)
"""


def test_what_it_waits_for():
    with Target(WAITING) as process:
        assert process.hear() == "done"


# -- where it came from --------------------------------------------------------------------------------------------


class Runs(threading.Thread):
    def __init__(self, gate):
        super().__init__(daemon=True)
        self.gate = gate

    def run(self):
        self.gate()


def waits(gate):
    gate()


class Callable:
    def method(self, gate):
        gate()

    def __call__(self, gate):
        gate()


HERE = __file__
LINE = waits.__code__.co_firstlineno


@pytest.mark.parametrize(
    ("start", "origin"),
    [
        pytest.param(
            lambda g: threading.Thread(target=waits, args=(g,)).start(), f"waits ({HERE}:{LINE})", id="target"
        ),
        pytest.param(lambda g: Runs(g).start(), f"Runs.run ({HERE}:{Runs.run.__code__.co_firstlineno})", id="run"),
        pytest.param(lambda g: threading.Timer(0, waits, [g]).start(), f"waits ({HERE}:{LINE})", id="timer"),
        pytest.param(
            lambda g: threading.Thread(target=functools.partial(waits, g)).start(),
            f"waits ({HERE}:{LINE})",
            id="partial",
        ),
        pytest.param(
            lambda g: threading.Thread(target=Callable().method, args=(g,)).start(),
            f"Callable.method ({HERE}:{Callable.method.__code__.co_firstlineno})",
            id="method",
        ),
        pytest.param(lambda g: threading.Thread(target=Callable(), args=(g,)).start(), "Callable", id="callable"),
        pytest.param(
            lambda g: _thread.start_new_thread(waits, (g,)),
            f"foreign thread (_thread or C code), waits ({HERE}:{LINE})",
            id="foreign",
        ),
    ],
)
def test_where_a_thread_came_from(start, origin):
    gate, before = kit.Gate(), set(sys._current_frames())
    start(gate)
    gate.arrived()
    found = [task.origin for task in lp.tasks()]
    gate.open()
    kit.until(lambda: set(sys._current_frames()) <= before)
    assert origin in found
    assert "main thread" in found


def test_where_a_worker_came_from():
    with concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool") as pool:
        pool.submit(int).result()
        assert [task.origin for task in lp.tasks() if task.name == "pool_0"] == ["worker of ThreadPoolExecutor"]


def test_a_trampoline_is_not_where_it_came_from(target):
    """The function that the thread was made for, and the coroutine's, are being patched just now."""
    gate = kit.Gate()
    inside = threading.Thread(target=target.f, args=(gate,), name="inside")
    inside.start()
    gate.arrived()
    lp.enable_patch(patch(target))
    assert target.f.__code__.co_filename == "<livepatch>"
    found = in_the_way(lp.tasks(), "inside").origin
    gate.open()
    inside.join()
    finish()
    assert found == "f (lp_target_old.py:1)"
    kit.take_out("P")


# -- for how long --------------------------------------------------------------------------------------------------


def test_for_how_long_a_transition_waits(target, worker):
    """Who came later has waited for less, whenever somebody looks."""
    assert {(task.seconds, task.hint) for task in lp.tasks()} == {(None, "")}
    first, second, gate = kit.Gate(), kit.Gate(), kit.Gate()
    late = threading.Thread(target=target.f, args=(gate,), name="late")
    worker().begin(target.f, lambda: (first(), late.start(), second()))
    first.arrived()
    lp.enable_patch(patch(target))
    first.open()
    second.arrived()
    gate.arrived()
    blockers.memory._seen.clear()
    since = {thread.name: registry.running_transition().since(thread.ident) for thread in threading.enumerate()}
    assert since["a worker"] < since["late"]
    later = in_the_way(lp.tasks(), "late").seconds
    assert later >= 0
    again = in_the_way(lp.tasks(), "late").seconds
    assert again > later
    gate.open()
    late.join()
    second.open()
    finish()
    kit.take_out("P")


def frame_in(code):
    """The id of the frame that runs this code now."""
    frames = (frame for top in sys._current_frames().values() for frame in stack(top))
    return next(id(frame) for frame in frames if frame.f_code is code)


def drive(function, gates):
    """Calls it again and again, from C."""
    list(map(function, gates))


def loop(function, gates):
    for gate in gates:
        function(gate)


@pytest.mark.parametrize("way", [drive, loop])
def test_another_call_at_the_same_address(target, way):
    """Ids say that it is the same; it is not, and nobody is told that it has stayed."""
    gates = [kit.Gate() for _ in range(1000)]
    thread = threading.Thread(target=way, args=(target.f, gates), daemon=True)
    thread.start()
    seen, reused = set(), False
    try:
        for gate in gates:
            gate.arrived()
            now = frame_in(target.f.__code__)
            if now in seen:  # the naive comparison finds the frame that it has seen
                assert blockers.memory.still() == []
                reused = True
                break
            seen.add(now)
            if len(seen) == 1:
                checked(target)
            gate.open()
    finally:
        for gate in gates:
            gate.open()
        thread.join()
    assert reused


def polls(gate):
    while not gate._go.is_set():
        gate.reached.set()
        time.sleep(0.0001)


def test_the_same_call_of_a_thread_that_is_awake(module):
    """Called once, from a place that is passed once: it can be no other, however often the thread runs meanwhile."""
    target = module("def f(gate): polls(gate)", polls=polls)
    gate = kit.Gate()
    thread = threading.Thread(target=target.f, args=(gate,))
    thread.start()
    gate.arrived()
    kit.until(lambda: checked(target, "f") and blockers.memory.still())
    seconds, looks = 0.0, 0
    while looks < 20 or not seconds:
        looks += 1
        time.sleep(0.001)
        for still in blockers.memory.still():  # nothing, if the thread did not stand still long enough to be seen
            assert still.seconds > seconds
            seconds = still.seconds
        assert len(blockers.memory._seen) == 1
    gate.open()
    thread.join()
    assert blockers.memory.still() == []
    assert not blockers.memory._seen


def seen_asleep(target, monkeypatch, lasting=blockers.LASTING):
    """What is known of the thread before and after 10 ms. The system may put it to sleep a little after it says so."""
    found = []

    def twice():
        monkeypatch.setattr(blockers, "LASTING", 10.0)
        checked(target)
        found[:] = blockers.memory.still()
        time.sleep(0.01)
        monkeypatch.setattr(blockers, "LASTING", lasting)
        found.extend(blockers.memory.still())
        return len(found) == 2

    kit.until(twice, "the thread sleeps")
    return found


def test_the_same_call_of_a_thread_that_sleeps(target, held, monkeypatch):
    """It is called in a loop, but the system has not switched to the thread since."""
    held.begin(target.f)
    before, after = seen_asleep(target, monkeypatch)
    assert after.seconds >= before.seconds + 0.01
    held.release()
    kit.until(lambda: not blockers.memory.still())


def test_the_same_coroutine(module):
    target = module("async def f(event): await event.wait()")
    made = kit.built("P", target, "async def f(event): pass", "f")

    async def main():
        event = asyncio.Event()

        async def again():
            while True:
                await target.f(event)

        task = asyncio.create_task(again())
        await asyncio.sleep(0)
        registry.check_patch(made)
        assert [status.hint for status in blockers.memory.still()] == [
            "goes on when the future it awaits is done; waits for a lock in asyncio.Event.wait"
        ]
        event.set()
        event.clear()
        await asyncio.sleep(0)  # the call returns, and the next one waits
        assert blockers.memory.still() == []
        task.cancel()

    asyncio.run(main())


def test_ten_seconds_are_said(target, held, monkeypatch):
    held.begin(target.f)
    before, after = seen_asleep(target, monkeypatch, 0.01)
    held.release()
    assert (blockers.stuck(after), before.hint) == (True, "goes when f() returns; " + before.hint.partition("; ")[2])


# -- nothing is kept -----------------------------------------------------------------------------------------------


class Precious:
    """A local variable of a call."""


def test_what_was_seen_is_not_kept_alive(module, held, garbage):
    target = module("def f(thing, gate): gate()")
    made = kit.built("P", target, "def f(thing, gate): pass", "f")
    gone = []
    thing = Precious()
    weakref.finalize(thing, gone.append, "thing")
    held.begin(target.f, thing)
    del thing
    registry.check_patch(made)
    assert len(blockers.memory._seen) == 1
    held.release()
    garbage()
    assert gone == ["thing"]
    assert len(blockers.memory._seen) == 1, "and yet it is remembered"


def test_code_that_was_read_is_not_kept_alive(module, held, garbage):
    target = module("def f(gate): gate()")
    held.begin(target.f)
    checked_code = weakref.ref(target.f.__code__)
    registry.check_patch(kit.built("P", target, "def f(gate): pass", "f"))
    held.release()
    del target.f
    garbage()
    assert checked_code() is None


def test_only_so_many_are_remembered(target, held, monkeypatch):
    monkeypatch.setattr(blockers.Memory, "LIMIT", 2)
    for _ in range(3):
        held.begin(target.f)
    assert len([task for task in checked(target) if task.hint]) == 3
    assert len(blockers.memory._seen) == 2
    for _ in range(3):
        held.release()


# -- greenlets and trio --------------------------------------------------------------------------------------------


def test_a_greenlet(module):
    greenlet = pytest.importorskip("greenlet")
    target = module("def f(gate): gate()")
    inside = greenlet.greenlet(target.f)
    inside.switch(greenlet.getcurrent().switch)
    (one,) = [task for task in checked(target, "f") if task.kind == "greenlet"]
    (still,) = blockers.memory.still()  # it is nobody's to run but ours
    assert one.hint == "goes on when another greenlet switches to it"
    assert one.origin == "f (lp_target_old.py:1)"
    assert still.ident == one.ident
    inside.switch()
    assert blockers.memory.still() == []


def test_a_trio_task(module):
    trio = pytest.importorskip("trio")
    target = module("async def f(event): await event.wait()")
    made = kit.built("P", target, "async def f(event): pass", "f")

    async def main():
        event = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(target.f, event)
            await trio.sleep(0.01)
            found = registry.check_patch(made)
            event.set()
        return found

    one = in_the_way(trio.run(main))
    assert one.hint.startswith("goes on when what it awaits is done")
    assert one.origin == "f (lp_target_old.py:1)"
