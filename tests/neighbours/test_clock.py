"""Tools that stop or move the clock of a program: transitions go on.

Rounds, the end of a wait and the agent's thread go by a clock of their own (`core/originals.py`).
"""

import sys
import time
import unittest.mock

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import originals, rounds

SOURCE = """
    def f(gate=None):
        if gate: gate()
        return "old"
"""
NEW = SOURCE.replace("old", "new")


def frozen_by_freezegun():
    freezegun = pytest.importorskip("freezegun")
    return freezegun.freeze_time("2020-02-02")


def frozen_by_time_machine():
    time_machine = pytest.importorskip("time_machine")
    return time_machine.travel(0.0, tick=False)


def frozen_by_mock():
    """As tests do by hand. Sleep does not sleep, either."""
    return unittest.mock.patch.multiple("time", monotonic=lambda: 0.0, time=lambda: 0.0, sleep=lambda seconds: None)


@pytest.fixture(params=[frozen_by_freezegun, frozen_by_time_machine, frozen_by_mock])
def frozen(request):
    return request.param()


def really_until(condition):
    """As `kit.until`, whose clock stands still here."""
    deadline = originals.monotonic() + kit.PATIENCE
    while not condition():
        assert originals.monotonic() < deadline
        kit.threading.Event().wait(0.001)


def test_the_clock_is_the_usual_one():
    before, now, after = time.monotonic(), originals.monotonic(), time.monotonic()
    assert before <= now <= after


def test_the_agent_makes_its_rounds(module, held, frozen):
    """The transition has to wait for a thread, so that it takes more than the first round."""
    target = module(SOURCE)
    held.begin(target.f)
    with frozen:
        lp.enable_patch(kit.built("p", target, NEW, "f"))
        really_until(lambda: rounds._wait > 0.1)
        assert lp.patches()[0].transition
        held.release()
        really_until(lambda: not lp.patches()[0].transition)
        assert target.f() == "new"
        lp.disable_patch("p")
        really_until(lambda: not lp.patches())
    assert target.f() == "old"
    lp.unload_patch("p")


@pytest.mark.usefixtures("rounds_by_hand")
def test_waiting_ends(module, held, frozen):
    """Where nobody makes rounds it makes them itself, and it gives up in time."""
    target = module(SOURCE)
    held.begin(target.f)
    with frozen:
        lp.enable_patch(kit.built("p", target, NEW, "f"))
        assert not lp.wait("p", 0.2)
        assert lp.patches()[0].seconds > 0.1
    held.release()
    with frozen:
        from livepatch.testing import finish

        finish()
    kit.take_out("p")


def test_a_clock_that_was_stopped_before_livepatch_came(frozen):
    """The agent may be attached in the middle of that: it must find a clock that goes."""
    with frozen:
        saved = sys.modules.pop("livepatch.core.originals")
        try:
            import importlib

            fresh = importlib.import_module("livepatch.core.originals")
            before = fresh.monotonic()
            really_until(lambda: fresh.monotonic() > before)
        finally:
            sys.modules["livepatch.core.originals"] = saved
            sys.modules["livepatch.core"].originals = saved
