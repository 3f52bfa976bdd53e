"""Threads: born at every time, busy, interrupted by signals and finalizers, in pools, switched below Python."""

import concurrent.futures
import gc
import signal
import sys
import threading

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import cpython, originals, registry, stacks, transition
from livepatch.core.tasks import exempt_thread, threads
from livepatch.core.transition import exempt_threads
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    def g(): return "old"
    def f(): return "old", g()
    def stay(gate):
        first = f()
        gate()
        return first, f()
"""
NEW = SOURCE.replace("old", "new")
OLD, NEWS = ("old", "old"), ("new", "new")


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return kit.built("p", target, NEW, "f", "g", "stay")


def in_thread(function):
    met = []
    thread = threading.Thread(target=lambda: met.append(function()))
    thread.start()
    thread.join(kit.PATIENCE)
    return met[0]


def moved():
    return registry.running_transition().moved


# -- born at every time ----------------------------------------------------------------------------------------


def test_a_new_thread_is_of_the_world_of_the_thread_that_starts_it(target, patch, worker):
    held, gate, met = worker(), kit.Gate(), []
    inside = held.begin(target.stay, lambda: (gate(), met.append(in_thread(target.f))))
    gate.arrived()
    lp.enable_patch(patch)
    assert in_thread(target.f) == NEWS
    gate.open()
    assert inside.result(kit.PATIENCE) == (OLD, OLD)
    assert met == [OLD]
    finish()
    kit.take_out("p")


@pytest.mark.parametrize(
    "make", [lambda f: threading.Timer(0, f), lambda f: type("T", (threading.Thread,), {"run": f})()]
)
def test_other_ways_to_start_a_thread(target, patch, worker, make):
    held, gate, met = worker(), kit.Gate(), []

    def start():
        gate()
        thread = make(lambda *_: met.append(target.f()))
        thread.start()
        thread.join(kit.PATIENCE)

    inside = held.begin(target.stay, start)
    gate.arrived()
    lp.enable_patch(patch)
    gate.open()
    inside.result(kit.PATIENCE)
    assert met == [OLD]
    finish()
    kit.take_out("p")


def test_a_thread_that_nobody_knows_starts_in_the_old_world_and_moves_at_its_first_exit(target, patch, held):
    """`_thread`, and threads of C code."""
    held.begin(target.stay)
    lp.enable_patch(patch)
    met, done = [], threading.Event()

    def strange():
        met.extend([target.f(), target.f()])
        done.set()

    before = moved()["exit"]
    originals.start_new_thread(strange, ())
    assert done.wait(kit.PATIENCE)
    assert met == [OLD, NEWS]
    assert moved()["exit"] == before + 1
    held.release()
    finish()
    kit.take_out("p")


def test_threads_that_are_born_and_die_by_the_hundred(target, patch, held):
    """Their idents are used again, by threads of the other world."""
    held.begin(target.stay)
    lp.enable_patch(patch)
    for _ in range(100):
        assert in_thread(target.f) == NEWS
    tick()
    assert lp.patches()[0].left == 1
    assert len(registry.running_transition().goal) < 60
    held.release()
    finish()
    kit.take_out("p")


@pytest.fixture
def starter():
    """For a test that hooks the start of threads itself."""
    before = getattr(threading, cpython.THREAD_STARTER)
    yield
    setattr(threading, cpython.THREAD_STARTER, before)
    threads.KIND._starter = None


def test_somebody_else_hooks_the_start_of_threads(target, patch, held, starter):
    """A debugger comes during the transition, and keeps what it found there; it calls that ever after."""
    held.begin(target.stay)
    lp.enable_patch(patch)
    found = getattr(threading, cpython.THREAD_STARTER)
    hook = lambda *args, **kwargs: found(*args, **kwargs)
    setattr(threading, cpython.THREAD_STARTER, hook)
    assert in_thread(target.f) == NEWS
    held.release()
    finish()
    assert getattr(threading, cpython.THREAD_STARTER) is hook
    assert in_thread(target.f) == NEWS
    for _ in range(2):
        lp.disable_patch("p")
        finish()
        assert in_thread(target.f) == OLD
        lp.unload_patch("p")
        lp.enable_patch(patch)
        finish()
    kit.take_out("p")


def test_a_pool_keeps_its_worlds(target, patch):
    gate = kit.Gate()
    with concurrent.futures.ThreadPoolExecutor(1) as busy, concurrent.futures.ThreadPoolExecutor(1) as idle:
        idle.submit(target.f).result()
        inside = busy.submit(target.stay, gate)
        gate.arrived()
        lp.enable_patch(patch)
        assert idle.submit(target.f).result() == NEWS
        waiting = busy.submit(target.f)
        gate.open()
        assert inside.result() == (OLD, OLD)
        finish()
        assert waiting.result() in (OLD, NEWS)
        assert busy.submit(target.f).result() == NEWS
    kit.take_out("p")


# -- moving ----------------------------------------------------------------------------------------------------


def test_a_busy_thread_moves_without_a_round_when_it_leaves_its_outermost_call(target, patch, held, worker):
    """It begins a call in the old world after the transition started, and the next one is new."""
    thread, gate = worker(), kit.Gate()
    held.begin(target.stay)
    inside = thread.begin(target.stay, gate)
    gate.arrived()
    lp.enable_patch(patch)
    gate.open()
    assert inside.result(kit.PATIENCE) == (OLD, OLD)
    before = moved()["exit"]
    assert thread.do(target.f) == OLD, "no round was made, and it had no trampoline to return from"
    assert thread.do(target.f) == NEWS
    assert moved()["exit"] == before + 1
    held.release()
    finish()
    kit.take_out("p")


def test_a_long_loop_says_where_it_may_be_moved(module, held):
    """`update_patch_state` is a safe point: what is called from there on is new."""
    text = """
        def g(): return "old"
        def stay(gate): gate()
    """
    target = module(text)
    met, first, second = [], kit.Gate(), kit.Gate()

    def loop():
        first()
        met.append(target.g())
        second()
        lp.update_patch_state()
        met.append(target.g())

    thread = kit.Worker()
    held.begin(target.stay)
    going = thread.begin(target.stay, lambda: None)
    going.result(kit.PATIENCE)
    going = thread.begin(loop)
    first.arrived()
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "g", "stay"))
    for value in (0, 1):  # nobody has moved but by the first round; after two reversals all wait for a round
        lp.write_enabled("p", value)
    first.open()
    second.arrived()
    second.open()
    going.result(kit.PATIENCE)
    assert met[-1] == "new"
    held.release()
    finish()
    kit.take_out("p")
    thread.close()


def test_a_safe_point_inside_of_a_patched_function_moves_nobody(target, patch, held, worker):
    thread, gate = worker(), kit.Gate()
    held.begin(target.stay)
    inside = thread.begin(target.stay, lambda: (gate(), lp.update_patch_state()))
    gate.arrived()
    lp.enable_patch(patch)
    gate.open()
    assert inside.result(kit.PATIENCE) == (OLD, OLD)
    held.release()
    finish()
    lp.update_patch_state()
    kit.take_out("p")


def test_an_exempt_thread_is_not_waited_for(target, patch, worker):
    """livepatch's own threads: they are no tasks, and run the version of before the transition."""
    thread, gate = worker(), kit.Gate()
    inside = thread.begin(target.stay, gate)
    gate.arrived()
    exempt_thread(thread.ident)
    lp.enable_patch(patch)
    try:
        assert not any(p.transition for p in lp.patches())
        assert thread.ident not in {task.ident for task in lp.tasks()}
        gate.open()
        inside.result(kit.PATIENCE)
    finally:
        exempt_threads.discard(thread.ident)
    kit.take_out("p")


# -- interrupted -----------------------------------------------------------------------------------------------


class Interruption:
    """Calls a function in the running thread when `event` happens in a frame of `file` with that `name`."""

    def __init__(self, file, name, event, action):
        self.file, self.name, self.event, self.action, self.count = file, name, event, action, 0

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)

    def __exit__(self, *error):
        sys.settrace(self.before)

    def trace(self, frame, event, arg):
        code = frame.f_code
        if (
            code.co_filename.endswith(self.file)
            and code.co_name == self.name
            and event == self.event
            and not self.count
        ):
            self.count += 1
            sys.settrace(None)
            frame.f_trace = None
            try:
                self.action()
            finally:
                if self.count < 2:
                    sys.settrace(self.trace)
        return self.trace


@pytest.mark.parametrize("where", [("redirect.py", "enter", "return"), ("transition.py", "choose", "return")])
def test_a_signal_handler_between_choosing_and_calling_is_of_the_same_world(target, patch, held, where):
    """A round is made just there, by whoever: the thread must not be moved, although no old version is on its stack."""
    held.begin(target.stay)
    inside, met = [], []

    def action():
        inside.append(target.f())
        tick()
        tick()
        inside.append(target.f())

    def strange():
        with Interruption(*where, action):
            met.append(target.f())
        done.set()

    done = threading.Event()
    lp.enable_patch(patch)
    originals.start_new_thread(strange, ())
    assert done.wait(kit.PATIENCE)
    assert met == [OLD]
    assert inside == [OLD, OLD]
    held.release()
    finish()
    kit.take_out("p")


def test_a_real_signal_handler_calls_patched_functions(target, patch, held):
    """The main thread is bombarded, in trampolines and in the middle of the checker's own work."""
    if threading.current_thread() is not threading.main_thread():
        pytest.skip("signals are for the main thread")
    met = []
    on = False

    def bombard(*_):
        # Once more only when this one is over: where time is short they would come inside of each other for ever.
        if _:
            met.append(target.f())
        signal.setitimer(signal.ITIMER_REAL, 0.0005 if on else 0)

    before = signal.signal(signal.SIGALRM, bombard)
    try:
        for _ in range(5):
            held.begin(target.stay)
            on = True
            bombard()
            lp.enable_patch(patch)
            for _ in range(20):
                tick()
                met.append(target.f())
            held.release()
            finish()
            lp.disable_patch("p")
            finish()
            on = False
            bombard()
            lp.unload_patch("p")
    finally:
        on = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert set(met) == {OLD, NEWS}


PLACES = [
    ("redirect.py", "enter", "return"),
    ("transition.py", "choose", "return"),
    ("redirect.py", "exit_switch", "call"),
]


@pytest.mark.parametrize("where", PLACES)
def test_an_exception_out_of_a_signal_handler_leaves_nothing_counted(target, patch, held, where, monkeypatch):
    """Time-outs and Ctrl-C raise anywhere, in trampolines too. The thread does not count as in a call for ever."""
    monkeypatch.delitem(sys.modules, "greenlet", raising=False)

    class TimeoutFromHandler(Exception):
        pass

    def action():
        raise TimeoutFromHandler

    def strange():
        with Interruption(*where, action):
            try:
                target.f()
            except TimeoutFromHandler:
                raised.append(True)
        done.set()
        over.wait(kit.PATIENCE)

    raised, done, over = [], threading.Event(), threading.Event()
    held.begin(target.stay)
    lp.enable_patch(patch)
    originals.start_new_thread(strange, ())
    assert done.wait(kit.PATIENCE)
    assert raised == [True]
    held.release()
    try:
        finish(5)
    finally:
        over.set()
    kit.take_out("p")


def test_running_out_of_stack_in_a_trampoline_leaves_nothing_counted(module, held):
    text = """
        def f(n): return f(n + 1)
        def stay(gate): gate()
    """
    target = module(text)

    def strange():
        for _ in range(3):
            try:
                target.f(0)
            except RecursionError:
                raised.append(True)
        done.set()
        over.wait(kit.PATIENCE)

    raised, done, over = [], threading.Event(), threading.Event()
    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("n + 1", "n + 2"), "f", "stay"))
    originals.start_new_thread(strange, ())
    assert done.wait(kit.PATIENCE)
    assert raised == [True] * 3
    held.release()
    try:
        finish(5)
    finally:
        over.set()
    kit.take_out("p")


def test_finalizers_call_patched_functions_while_the_collector_is_asked(module, held):
    """They run wherever memory is allocated: in a trampoline, under the switch lock, in the middle of a scan."""
    text = """
        def f(): return "old"
        class C:
            def __init__(self): self.me = self
            def __del__(self): met.append(f())
        def stay(gate): gate()
        met = []
    """
    target = module(text)
    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for _ in range(3):
            held.begin(target.stay)
            lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f", "C.__del__", "stay"))
            for _ in range(50):
                target.C()
                tick()
            held.release()
            finish()
            target.C()
            kit.take_out("p")
    finally:
        gc.set_threshold(*threshold)
    gc.collect()
    assert set(target.met) <= {"old", "new"}
    assert len(target.met) == 153


# -- switched below Python -------------------------------------------------------------------------------------


def test_a_greenlet_that_is_switched_out_of_an_old_call_holds_its_thread(module, held):
    """Its frames are on nobody's stack, but the call that it is in the middle of is counted."""
    greenlet = pytest.importorskip("greenlet")
    text = """
        def g(): return "old"
        def f(switch):
            switch()
            return "old", g()
        def stay(gate): gate()
    """
    target = module(text)
    met, ready, go, done = [], threading.Event(), threading.Event(), threading.Event()

    def strange():
        hub = greenlet.getcurrent()
        inside = greenlet.greenlet(lambda: met.append(target.f(hub.switch)))
        inside.switch()
        ready.set()
        assert go.wait(kit.PATIENCE)
        met.append(target.g())
        inside.switch()
        done.set()

    held.begin(target.stay)
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f", "g", "stay"))
    originals.start_new_thread(strange, ())
    assert ready.wait(kit.PATIENCE)
    held.release()
    for _ in range(3):
        tick()
    assert [p.transition for p in lp.patches()] == [True]
    go.set()
    assert done.wait(kit.PATIENCE)
    assert met == ["old", ("old", "old")]
    finish()
    kit.take_out("p")


def test_a_thread_inside_of_an_old_call_does_not_walk_its_stack_every_time(module, worker, monkeypatch):
    """From where it could not move it looks again in the next round; from elsewhere at once."""
    text = """
        def f(): return "old"
        def stay(gate):
            gate()
            return [f() for _ in range(100)], [f() for _ in range(100)]
    """
    target, thread, gate, looks = module(text), worker(), kit.Gate(), []
    look = transition.Transition.exit
    monkeypatch.setattr(transition.Transition, "exit", lambda *args: looks.append(args) or look(*args))
    inside = thread.begin(target.stay, gate)
    gate.arrived()
    lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f", "stay"))
    gate.open()
    assert {word for words in inside.result(kit.PATIENCE) for word in words} == {"old"}
    assert len(looks) <= 2
    assert thread.do(target.f) == "old"
    assert thread.do(target.f) == "new"
    del looks[:]
    finish()
    kit.take_out("p")


def test_all_stacks_in_one_look_are_those_of_one_look_each(worker):
    """Generators stand between frames of a thread; threads that run meanwhile are left out or right."""
    gates, stop = [kit.Gate() for _ in range(20)], threading.Event()

    def deep(number, gate):
        if number:
            return deep(number - 1, gate)
        return next(waits(gate))

    def waits(gate):
        yield gate()

    def busy():
        while not stop.is_set():
            list(waits(lambda: None))

    for number, gate in enumerate(gates):
        worker().begin(deep, number, gate)
        gate.arrived()
    running = [threading.Thread(target=busy) for _ in range(3)]
    sys.setswitchinterval(2e-5)
    try:
        for thread in running:
            thread.start()
        for _ in range(300):
            found = stacks.thread_stacks()
            depths = [[f.f_code for f in frames].count(deep.__code__) for frames in found.values()]
            assert set(range(1, 21)) <= set(depths)
            for thread in running:
                frames = found.get(thread.ident)
                assert frames is None or frames[-1].f_code is threading.Thread._bootstrap.__code__
    finally:
        stop.set()
        for thread in running:
            thread.join()
    assert found[threading.get_ident()][0].f_code.co_name == "test_all_stacks_in_one_look_are_those_of_one_look_each"


def test_a_collection_while_a_stack_is_walked():
    """Making frame objects starts one, up to Python 3.11. Finalizers run in it, and meanwhile the thread ends."""

    def deep(levels, gate):
        return deep(levels - 1, gate) if levels else gate()

    def finalize(phase, _):
        gates[-1].open()
        thread.join()

    gates, threshold, found = [], gc.get_threshold(), []
    for allocations in range(0, 60, 4):
        gates.append(kit.Gate())
        thread = threading.Thread(target=deep, args=[40, gates[-1]])
        thread.start()
        gates[-1].arrived()
        gc.collect()
        gc.callbacks.append(finalize)
        gc.set_threshold(allocations)
        try:
            seen = stacks.thread_stack(thread.ident)
        finally:
            gc.set_threshold(*threshold)
            gc.callbacks.remove(finalize)
        assert gc.isenabled()
        found.append([frame.f_code for frame in seen].count(deep.__code__))
        gates[-1].open()
        thread.join()
    assert set(found) <= {0, 41}
    assert 41 in found


@pytest.mark.parametrize("directions", [1, 2])
def test_a_greenlet_that_is_resumed_while_its_stack_is_walked(module, directions):
    """Suspended, it shows a generator, and f below; resumed meanwhile, the generator yields and leads nowhere."""
    greenlet = pytest.importorskip("greenlet")
    text = """
        def f(pause, leave):
            def ticks():
                while True:
                    pause()
                    yield
            version = "old"
            for _ in ticks():
                if leave.is_set():
                    return version
    """
    sys.setswitchinterval(1e-5)
    target = module(text)
    for _ in range(12):
        met, inside, leave = [], threading.Event(), threading.Event()

        def switch(met=met, inside=inside, leave=leave):
            hub = greenlet.getcurrent()
            suspended = greenlet.greenlet(lambda: met.append(target.f(hub.switch, leave)))
            while not suspended.dead:
                suspended.switch()
                inside.set()

        busy = threading.Thread(target=switch)
        busy.start()
        assert inside.wait(kit.PATIENCE)
        lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "f"))
        for _ in range(directions - 1):
            lp.write_enabled("p", 0)
            lp.write_enabled("p", 1)
        for _ in range(15):
            tick()
        waits = lp.patches()[0].transition
        leave.set()
        busy.join()
        assert waits, "the greenlet was in f all the time"
        finish()
        kit.take_out("p")


TICKING = """
import threading
inside, leave = threading.Semaphore(0), threading.Event()
def ticks():
    for i in range(50):
        yield i
def f():
    version = "old"
    inside.release()
    while not leave.is_set():
        for _ in ticks():
            pass
    return version
"""


def test_a_stack_that_is_walked_while_a_generator_on_it_yields(module):
    """The frame of one that has yielded leads nowhere: walked step by step, the stack would end there, without f."""
    sys.setswitchinterval(1e-5)
    target = module(TICKING)
    for _ in range(15):
        busy = [threading.Thread(target=target.f) for _ in range(2)]
        for thread in busy:
            thread.start()
        for _ in busy:
            target.inside.acquire()
        lp.enable_patch(kit.built("p", target, TICKING.replace("old", "new"), "f"))
        for _ in range(15):
            tick()
        waits = lp.patches()[0].transition
        target.leave.set()
        for thread in busy:
            thread.join()
        assert waits, "both threads were in f all the time"
        finish()
        kit.take_out("p")
        target.leave.clear()
