"""A command is killed, or stopped, at every step: what it leaves behind is whole, and the next one tells the truth."""

import os
import signal

import pytest
from tests.faults.kit import is_whole

#: Each begins with the patch not loaded, or loaded; the last runs into a task that holds it up.
COMMANDS = {
    "load": ("old", ["load", "PATCH"]),
    "load that stalls": ("held", ["load", "HELD", "--timeout", "0.2"]),
    "disable": ("new", ["disable", "fix", "--unload"]),
    "unload": ("disabled", ["unload", "fix"]),
    "check": ("old", ["check", "PATCH"]),
}


def begin(service, lp, situation):
    if situation in ("new", "disabled"):
        assert lp("load", service.patch, "--pid", service.pid).status == 0
    if situation == "disabled":
        assert lp("disable", "fix", "--pid", service.pid).status == 0
    if situation in ("held", "moving"):
        service.occupy()
    if situation == "moving":
        assert lp("load", service.held, "--pid", service.pid, "--timeout", 0, "--on-stall", "keep").status == 3


def words(service, command):
    known = {"PATCH": str(service.patch), "HELD": str(service.held)}
    return [*(known.get(word, word) for word in command), "--pid", service.pid]


def over(service, lp):
    """Let go whoever holds it up, and take everything away."""
    service.say("leave")
    is_whole(service, lp)


def test_the_naive_exchange_is_noticed(service):
    service.say("naive")
    assert service.hear() != "new torn 0"


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_killed_at_every_step(service, lp, name):
    situation, command = COMMANDS[name]
    step, killed = 0, True
    while killed:
        step += 1
        begin(service, lp, situation)
        done = lp(*words(service, command), at=step, happens=lambda: os.kill(os.getpid(), signal.SIGKILL))
        killed = done.status == -signal.SIGKILL
        over(service, lp)
    assert step > 10
