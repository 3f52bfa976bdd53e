"""Every test of the core leaves the process as it found it: no patch, no transition, no thread, no module, no hook."""

import gc
import sys
import threading

import pytest
from tests.core import kit

from livepatch.core import log, redirect
from livepatch.testing import manual_rounds


def threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name != "livepatch"}


@pytest.fixture(autouse=True)
def nothing_stays():
    before, starter, finders = threads(), dict(vars(threading)), list(sys.meta_path)
    log.clear()
    yield
    left = kit.clean_up()
    kit.until(lambda: threads() <= before, f"the end of {threads() - before}")
    stray = list(redirect.redirections.values())
    redirect.redirections.clear()
    assert not left
    assert not stray
    assert {name for name, thing in vars(threading).items() if starter.get(name) is not thing} <= set()
    assert sys.meta_path == finders


@pytest.fixture
def rounds_by_hand():
    """No round is made but the first one of a transition, and those that the test makes."""
    with manual_rounds():
        yield


@pytest.fixture
def module():
    """Loads modules from source, and removes them."""
    before = set(sys.modules)

    def load(source, name="lp_target", **names):
        return kit.load(name, source, **names)

    yield load
    for name in set(sys.modules) - before:
        if name.startswith("lp_"):
            del sys.modules[name]


@pytest.fixture
def worker():
    """Makes threads that obey, and ends them."""
    made = []

    def make():
        made.append(kit.Worker())
        return made[-1]

    yield make
    for gate in tuple(kit.Gate.all):
        gate.open()
    for thread in made:
        thread.close()


@pytest.fixture
def held(worker):
    """Holds threads inside of functions, so that they stay in their world; `release()` lets the oldest go on."""

    class Held:
        def __init__(self):
            self.inside = []

        def begin(self, function, *args):
            """Let a thread call the function, whose last argument is the gate, and wait until it is there."""
            gate = kit.Gate()
            self.inside.append((gate, worker().begin(function, *args, gate)))
            gate.arrived()

        def release(self):
            """Open its gate, and give what the function returned."""
            gate, future = self.inside.pop(0)
            gate.open()
            return future.result(kit.PATIENCE)

    return Held()


@pytest.fixture
def garbage():
    """For tests that look at what dies: collects before and after."""
    gc.collect()
    yield gc.collect
    gc.collect()
