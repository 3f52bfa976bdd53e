"""Foreign code that runs where nobody called it: signal handlers, finalizers, trace functions, log handlers.

Each test says which naive implementation it is for. Wherever such code can run, it may call patched functions, raise,
or wait for a lock whose owner calls a patched function.
"""

import _thread
import collections
import contextlib
import gc
import logging
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import pytest
from tests.core import cut_off, kit
from tests.core.cut_off import Interrupt, free

import livepatch as lp
from livepatch.core.transition import switch_lock
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = f"""{cut_off.SOURCE.rstrip()}
    def stay(gate):
        first = f()
        gate()
        return first, f()
"""
NEW = SOURCE.replace("old", "new")
NAMES = (*cut_off.NAMES, "stay")
OLD, NEWS = ("old", "old"), ("new", "new")


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return kit.built("p", target, NEW, *NAMES)


class Once:
    """Calls something the first time that a thread comes to an event in a function of the core."""

    def __init__(self, file, name, event, action, when=lambda frame: True):
        self.place, self.action, self.when, self.done = (file, name, event), action, when, False

    def __enter__(self):
        self.before = sys.gettrace()
        sys.settrace(self.trace)
        return self

    def __exit__(self, *error):
        sys.settrace(self.before)

    def trace(self, frame, event, arg):
        file, name, wanted = self.place
        code = frame.f_code
        here = event == wanted and code.co_name == name and code.co_filename.endswith(file)
        if here and not self.done and self.when(frame):
            self.done = True
            self.action()
        return self.trace


# -- the deadlock: foreign code under the switch lock waits for who waits for the switch lock --------------------

#: Places at which a checker holds the switch lock.
LOCKED = [
    ("stacks.py", "affected", "call"),
    ("transition.py", "movable", "call"),
    ("transition.py", "_renew_fast", "return"),
]


@pytest.mark.parametrize("place", LOCKED)
@pytest.mark.parametrize("call", ["f", "gen"])
def test_foreign_code_under_the_lock_waits_for_somebody_in_a_trampoline(target, patch, held, worker, place, call):
    """A finalizer, a weakref callback or a trace function may run at any line, and may take a lock of the application.

    A lock for which trampolines wait, however it is held, stands still here for ever.
    """
    application, waiting, met, got = threading.Lock(), kit.Gate(), [], []
    held.begin(target.stay)
    thread, gate = worker(), kit.Gate()

    def inside(*_):
        gate()
        with application:
            waiting()
            met.append(target.f() if call == "f" else next(target.gen()))

    going = thread.begin(target.stay, inside)
    gate.arrived()
    lp.enable_patch(patch)
    gate.open()
    waiting.arrived()

    def foreign():
        waiting.open()
        got.append(application.acquire(timeout=kit.PATIENCE / 2))
        application.release()

    with Once(*place, foreign) as once:
        tick()
    assert once.done
    assert got == [True]
    assert going.result(kit.PATIENCE) == (OLD, OLD)
    assert met == [OLD]
    held.release()
    finish()
    kit.take_out("p")
    assert free()


def test_what_a_checker_has_seen_does_not_count_when_somebody_came_in_meanwhile(target, patch, held, worker):
    """The thread is found clean; before that is written down, it enters an old function without the lock.

    An implementation that only lets it in tears the call: it moves to the new world in the middle of f.
    """
    exec("def slow(gate): return 'old', gate(), g()", vars(target))
    patch = kit.built("p", target, NEW + "    def slow(gate): return 'new', gate(), g()\n", *NAMES, "slow")
    thread, before, inside, met = worker(), kit.Gate(), kit.Gate(), []
    going = thread.begin(lambda: (before(), met.append(target.slow(inside))))
    before.arrived()

    def foreign():
        before.open()
        inside.arrived()

    of_the_thread = lambda frame: frame.f_locals["task"] == thread.ident
    with Once("transition.py", "switch", "call", foreign, of_the_thread) as once:
        lp.enable_patch(patch)
    assert once.done
    assert kit.blocking() == ["slow"]
    inside.open()
    going.result(kit.PATIENCE)
    assert met == [("old", None, "old")]
    finish()
    kit.take_out("p")


def test_the_transition_does_not_complete_when_somebody_came_in_meanwhile(target, patch, worker):
    """Everybody has arrived, a new thread comes in without the lock, and only then it is said to be over."""
    text = NEW + "    def slow(gate): return 'new', gate(), g()\n"
    exec("def slow(gate): return 'old', gate(), g()", vars(target))
    inside, met, done = kit.Gate(), [], threading.Event()

    def strange():
        met.append(target.slow(inside))
        done.set()

    def foreign():
        _thread.start_new_thread(strange, ())
        inside.arrived()

    place = ("suspended.py", "any_live", "return")
    with Once(*place, foreign) as once:
        lp.enable_patch(kit.built("p", target, text, *NAMES, "slow"))
    assert once.done
    inside.open()
    assert done.wait(kit.PATIENCE)
    assert met in ([("old", None, "old")], [("new", None, "new")])
    finish()
    kit.take_out("p")


def test_finalizers_take_a_lock_whose_owner_calls_patched_functions(target, patch, held, worker):
    """The collector runs them wherever it likes, and here it runs all the time. The classical deadlock."""
    application, stop, met = threading.RLock(), threading.Event(), set()

    class Cycle:
        def __init__(self):
            self.me = self

        def __del__(self):
            with application:
                met.add(target.f())

    class Watched:
        pass

    def watch():
        thing = Watched()
        thing.me = thing
        watched.append(
            weakref.ref(thing, lambda _: (application.acquire(), met.add(target.f()), application.release()))
        )

    watched = collections.deque(maxlen=1000)

    def works():
        count = 0
        while not stop.is_set():
            with application:
                met.add(target.f())
            count += 1
            Cycle()
            watch()
            if count % 50 == 0:
                time.sleep(0.001)  # or the heap grows while it is looked through, for ever longer
        return count

    going = [worker().begin(works) for _ in range(2)]
    threshold = gc.get_threshold()
    gc.set_threshold(1)
    try:
        for _ in range(4):
            held.begin(target.stay)
            lp.enable_patch(patch)
            for _ in range(10):
                Cycle()
                watch()
                tick()
            held.release()
            finish()
            lp.disable_patch("p")
            finish()
            lp.unload_patch("p")
    finally:
        gc.set_threshold(*threshold)
        stop.set()
    assert all(thread.result(kit.PATIENCE) for thread in going)
    gc.collect()
    assert met == {OLD, NEWS}
    assert free()


# -- signal handlers -----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def alarms(handler, interval=0.0003):
    """The handler is called again when it has ended and the interval is over: slow, it would only interrupt itself."""

    going = True

    def handle(*args):
        try:
            handler(*args)
        finally:
            signal.setitimer(signal.ITIMER_REAL, interval * going)

    before = signal.signal(signal.SIGALRM, handle)
    signal.setitimer(signal.ITIMER_REAL, interval)
    try:
        yield
    finally:
        going = False
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def test_a_signal_handler_calls_patched_functions_all_the_time(target, patch, held):
    """It interrupts enabling, rounds, reversal and completion. A lock that is not re-entrant stands still."""
    met = []
    with alarms(lambda *_: (met.append(target.f()), met.extend(target.gen()))):
        for _ in range(6):
            held.begin(target.stay)
            lp.enable_patch(patch)
            tick()
            for value in (0, 1):
                lp.write_enabled("p", value)
            tick()
            held.release()
            finish()
            lp.disable_patch("p")
            finish()
            lp.unload_patch("p")
    assert set(met) <= {OLD, NEWS}
    assert len(met) > 10
    assert free()


@pytest.mark.parametrize("step", [pytest.param(7, marks=pytest.mark.slow), 29])
@pytest.mark.parametrize("which", ["enable", "disable"])
def test_an_exception_at_any_line_leaves_all_or_nothing(which, step):
    """Whatever was cut off is finished by a later round, or undone. A completion that is done once stays half done."""
    command = [sys.executable, "-m", "tests.core.cut_off", which, str(step)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


#: Where an exception out of a signal handler may hit a task that is in the middle of a trampoline.
IN_TRAMPOLINES = [
    ("redirect.py", "enter", "call"),
    ("redirect.py", "enter", "return"),
    ("switch.py", "enter", "call"),
    ("switch.py", "enter", "return"),
    ("transition.py", "choose", "return"),
    ("transition.py", "_state_of", "return"),
    ("transition.py", "track", "call"),
    ("transition.py", "track", "return"),
    ("suspended.py", "add", "return"),
    ("redirect.py", "exit_switch", "call"),
    ("transition.py", "_exit", "return"),
]


@pytest.mark.parametrize("place", IN_TRAMPOLINES)
def test_an_exception_in_a_trampoline_leaves_the_task_in_one_world_and_no_lock_held(target, patch, held, worker, place):
    """A lock that is taken before the `try` that gives it back stays held; a count stays, and the thread with it."""
    thread, hit = worker(), []

    def interrupted():
        def strike():
            hit.append(place)
            raise Interrupt

        with contextlib.suppress(Interrupt), Once(*place, strike):
            list(target.gen())
            target.f()

    held.begin(target.stay)
    going = thread.begin(target.stay, lambda: (gate(), interrupted(), met.append(target.f())))
    gate, met = kit.Gate(), []
    gate.arrived()
    lp.enable_patch(patch)
    new = target.gen()  # as long as it is there, everybody has to ask
    assert next(new) == NEWS
    gate.open()
    assert going.result(kit.PATIENCE) == (OLD, OLD)
    new.close()
    assert met == [OLD]
    assert hit == [place]
    assert switch_lock.acquire(timeout=kit.PATIENCE)
    switch_lock.release()
    held.release()
    finish()
    assert thread.do(target.f) == NEWS
    kit.take_out("p")


# -- trace functions, monitoring, warnings, logging -----------------------------------------------------------------


def hammered(target, patch, held):
    """A transition in both directions, with rounds, a reversal, and somebody who holds it up for a while."""
    held.begin(target.stay)
    lp.enable_patch(patch)
    for value in (0, 1):
        lp.write_enabled("p", value)
    for _ in range(3):
        tick()
        target.f()
    assert held.release() == (OLD, OLD)
    finish()
    kit.take_out("p")
    assert free()


class Traced:
    """Calls patched functions for whatever happens in the core: under its lock, in the middle of every line.

    But not for each of the thousands of objects that a line goes over.
    """

    def __init__(self, target):
        self.target, self.met, self.inside = target, set(), False
        self.times = collections.Counter()

    def __call__(self, *args):
        frame = sys._getframe(1)
        line = frame.f_code, frame.f_lineno
        self.times[line] += 1
        if not self.inside and self.times[line] <= 50 and "/livepatch/core/" in frame.f_code.co_filename:
            self.inside = True
            try:
                self.met.add(self.target.f())
                self.met |= set(self.target.gen())
            finally:
                self.inside = False
        return self

    def all_is_well(self):
        return self.met == {OLD, NEWS}


@pytest.mark.parametrize("install", [sys.settrace, sys.setprofile])
def test_a_trace_function_calls_patched_functions_while_the_core_is_traced(target, patch, held, install):
    """A lock that is not re-entrant stands still; a state that is in disorder for a line tears the call."""
    traced = Traced(target)
    install(traced)
    try:
        hammered(target, patch, held)
    finally:
        install(None)
    assert traced.all_is_well()


@pytest.mark.skipif(not hasattr(sys, "monitoring"), reason="sys.monitoring is of 3.12")
def test_a_monitoring_tool_calls_patched_functions_while_the_core_is_monitored(target, patch, held):
    """The same, in every thread."""
    traced, monitoring = Traced(target), sys.monitoring
    tool, events = monitoring.PROFILER_ID, monitoring.events
    monitoring.use_tool_id(tool, "a test")

    def called(code, *args):
        if "/livepatch/core/" in code.co_filename and not traced.inside:
            traced.inside = True
            try:
                traced.met.add(target.f())
            finally:
                traced.inside = False

    try:
        for event in (events.PY_START, events.LINE):
            monitoring.register_callback(tool, event, called)
        monitoring.set_events(tool, events.PY_START | events.LINE)
        hammered(target, patch, held)
    finally:
        monitoring.set_events(tool, 0)
        monitoring.free_tool_id(tool)
    assert traced.all_is_well()


def test_warnings_are_shown_by_a_patched_function(module, held):
    """It runs in the middle of what warns, which is patched as well."""
    text = """
        import warnings
        met = []
        def g(): return "old"
        def show(message, *args, **kwargs): met.append(("old", g()))
        def f():
            warnings.warn("look", stacklevel=1)
            return "old", g()
        def stay(gate):
            first = f()
            gate()
            return first, f()
    """
    target = module(text)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = target.show
        held.begin(target.stay)
        lp.enable_patch(kit.built("p", target, text.replace("old", "new"), "g", "show", "f", "stay"))
        assert target.f() == NEWS
        assert held.release() == (OLD, OLD)
        finish()
        kit.take_out("p")
    assert set(target.met) == {OLD, NEWS}


class Handler(logging.Handler):
    """Calls a patched function under a lock of its own, like all handlers of the standard library do."""

    def __init__(self, target):
        super().__init__()
        self.target, self.met, self.held = target, set(), []

    def emit(self, record):
        self.held.append(switch_lock._is_owned())
        self.met.add(self.target.f())
        if record.name == "livepatch":
            logging.getLogger("lp_other").warning("seen: %s", record.getMessage())


def test_log_handlers_call_patched_functions_while_livepatch_logs(target, patch, held, worker):
    """A record under the switch lock would wait for the handler's lock, whose owner waits in a trampoline."""
    handler, stop = Handler(target), threading.Event()
    loggers = [logging.getLogger(name) for name in ("livepatch", "lp_other")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.DEBUG)

    def logs():
        while not stop.is_set():
            loggers[1].warning("working")

    going = worker().begin(logs)
    try:
        for _ in range(3):
            hammered(target, patch, held)
    finally:
        stop.set()
        going.result(kit.PATIENCE)
        for logger, level in zip(loggers, levels, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
    assert handler.met == {OLD, NEWS}
    assert not any(handler.held), "no record is written under the switch lock"
