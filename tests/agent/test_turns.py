"""The switch interval is short while a client is served, and the program's at all other times."""

import select
import sys
import time

import pytest

from livepatch.agent import turns as module
from livepatch.agent.turns import SHORT, Turns

from .targets import Line, Target

#: It says which interval it sees; "until" waits for it to be what the test says.
LOOKS = """
import livepatch, time
{setup}
say(livepatch.start_agent())
while True:
    asked = hear().split()
    if asked[0] == "set": sys.setswitchinterval(float(asked[1]))
    while asked[0] == "until" and sys.getswitchinterval() != float(asked[1]): time.sleep(0.001)
    say(sys.getswitchinterval())
"""
OURS = 0.000103


@pytest.fixture
def interval():
    """Whatever a test makes of that of this process."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.005)
    yield
    sys.setswitchinterval(before)


@pytest.fixture
def turns(interval, monkeypatch):
    monkeypatch.setattr(module, "_turn", lambda: 0.0)
    return Turns()


def asked(target, *words):
    target.say(" ".join(map(str, words)))
    return float(target.hear())


# -- one of our own ----------------------------------------------------------------------------------------------------


def test_short_while_somebody_is_served(turns):
    turns.serve()
    assert sys.getswitchinterval() == OURS
    turns.serve()
    assert 0 < turns.rests_in() <= module.QUIET
    turns.rest()
    assert sys.getswitchinterval() == 0.005
    assert turns.rests_in() is None
    turns.rest()
    assert sys.getswitchinterval() == 0.005


def test_who_changes_it_meanwhile_keeps_it(turns):
    turns.serve()
    sys.setswitchinterval(0.002)
    turns.serve()
    assert sys.getswitchinterval() == 0.002
    turns.rest()
    assert sys.getswitchinterval() == 0.002
    turns.serve()
    turns.rest()
    assert sys.getswitchinterval() == 0.002


def test_one_that_is_shorter_is_left_alone(turns):
    sys.setswitchinterval(0.00002)
    shorter = sys.getswitchinterval()
    turns.serve()
    assert sys.getswitchinterval() == shorter
    turns.rest()
    assert sys.getswitchinterval() == shorter


def test_ours_set_again_by_who_had_read_it_does_not_stay(turns):
    turns.serve()
    read = sys.getswitchinterval()
    turns.rest()
    sys.setswitchinterval(read)
    turns.mend()
    assert sys.getswitchinterval() == 0.005
    sys.setswitchinterval(read)
    turns.serve()
    turns.rest()
    assert sys.getswitchinterval() == 0.005


def test_nothing_is_mended_while_somebody_is_served(turns):
    turns.serve()
    turns.mend()
    assert sys.getswitchinterval() == OURS
    turns.rest()


def test_long_turns_are_not_made_more(turns, monkeypatch):
    """Each of them is waited for whenever we are interrupted."""
    monkeypatch.setattr(module, "_turn", lambda: 1.0)
    turns.serve()
    assert sys.getswitchinterval() == 0.005
    monkeypatch.setattr(module, "_turn", lambda: 0.0)
    turns.serve()  # it is believed for a while
    assert sys.getswitchinterval() == 0.005
    assert turns.rests_in() is None


@pytest.mark.parametrize("first", ["arrival", "agent"])
def test_an_arrival_and_the_agent_end_it_together(turns, first):
    sys.setswitchinterval(101e-6)
    turns.take_over(0.005, sys.getswitchinterval())
    turns.serve()
    (turns.leave if first == "arrival" else turns.rest)()
    assert sys.getswitchinterval() < SHORT
    (turns.rest if first == "arrival" else turns.leave)()
    assert sys.getswitchinterval() == 0.005


def test_a_child_has_the_programs_own(turns):
    turns.serve()
    turns._lock.acquire()  # by a thread that does not exist in the child
    turns.start_over()
    assert sys.getswitchinterval() == 0.005
    turns.serve()
    turns.rest()
    assert sys.getswitchinterval() == 0.005


# -- real processes ----------------------------------------------------------------------------------------------------


def test_a_process_has_its_own_back_after_requests_good_and_bad():
    with Target(LOOKS.format(setup="")) as target:
        path = target.hear()
        before = asked(target, "look")
        assert before == 0.005
        for method, params in ("hello", {}), ("unknown", {}), ("load", {"file": "x.livepatch", "data": "UEs="}):
            with Line(path) as client:
                assert "error" in client.call(method, **params) or method == "hello"
                assert asked(target, "until", before) == before


def test_a_process_that_is_served_has_short_turns():
    """While requests come one after the other; and what the program then wants is what it gets."""
    with Target(LOOKS.format(setup="")) as target, Line(target.hear()) as client:
        target.say(f"until {OURS}")
        while not select.select([target.process.stdout], [], [], 0)[0]:
            client.call("hello")
        assert float(target.hear()) == OURS
        assert asked(target, "set", 0.002) == 0.002
        time.sleep(2 * module.QUIET)
        assert asked(target, "look") == 0.002


def test_a_child_forked_meanwhile_has_the_programs_own():
    setup = """
import os
def fork():
    if (child := os.fork()) == 0:
        say(sys.getswitchinterval())
        os._exit(0)
    os.waitpid(child, 0)
"""
    script = LOOKS.format(setup=setup).replace("    asked = hear", '    if hear() == "fork": fork()\n    asked = hear')
    with Target(script) as target, Line(target.hear()) as client:
        client.call("hello")
        target.say("fork")
        assert float(target.hear()) == 0.005
