"""A process that was only just started: waited for if it will start its agent by itself, attached to at once if not."""

import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.agent.targets import Target

from livepatch.attach import entry, prepare
from livepatch.fleet import members
from livepatch.fleet.selection import Selection

#: Starts its agent when it is told to.
LATE = "say('ready')\nhear()\nimport livepatch as lp; lp.start_agent()\nhear()\n"


@pytest.fixture(autouse=True)
def childhood(monkeypatch):
    """It lasts for longer than any test."""
    monkeypatch.setattr(members, "CHILDHOOD", 1e6)


def member_of(pid):
    (found,) = Selection(pids=(pid,)).require()
    return members.Member(found)


def unexpected(pid):
    raise AssertionError("it was attached to")


@pytest.mark.timeout(120)
def test_one_that_nobody_prepared_is_attached_to():
    """Its parent is a shell, which certainly has no agent."""
    with Target("import os\nsay(os.getpid())\nhear()", command=["sh", "-c", '"$@"; :', "sh", sys.executable]) as target:
        member = member_of(int(target.hear()))
        assert member.reach(entry.attach, wait=True)
        assert member.before == []
        member.close()
        target.say("end")
        target.process.wait(60)


def waited_for(pid, go):
    """Whether it is waited for and not attached to, until its own agent is there."""
    member = member_of(pid)
    assert not member.reach(unexpected, wait=False)
    with ThreadPoolExecutor(1) as pool:
        reached = pool.submit(member.reach, unexpected, wait=True)
        threading.Event().wait(0.05)
        assert not reached.done()
        go()
        assert reached.result(60)
    member.close()


def test_one_that_was_prepared_is_waited_for():
    """`-S` keeps the preparation from starting the agent, as a busy machine would for a while."""
    with Target(LATE, command=[sys.executable, "-S"], env=late_environment()) as target:
        assert target.hear() == "ready"
        waited_for(target.pid, lambda: target.say("go"))


def late_environment():
    path = [entry for entry in sys.path if entry]
    return prepare.environment({"PYTHONPATH": ":".join(path)})


#: The same as a program by itself, without what a `Target` brings along.
LATE_CHILD = "import sys\nhear = sys.stdin.readline\ndef say(word): print(word, flush=True)\n" + LATE

PARENT = f"""
import livepatch as lp, subprocess
lp.start_agent()
command = [sys.executable, "-c", {LATE_CHILD!r}]
with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as child:
    child.stdout.readline()
    say(child.pid)
    hear()
    child.stdin.write("go\\n")
    hear()
say("ended")
"""


def test_a_child_of_one_that_has_an_agent_is_waited_for():
    with Target(PARENT) as target:
        waited_for(int(target.hear()), lambda: target.say("go"))
        target.say("end")
        assert target.hear() == "ended"
