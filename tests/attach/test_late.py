"""An attach whose time is over when the process has begun to let the agent in, and is slow with the rest."""

import errno
import os
import sys
import time
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE, Target, eventually

from livepatch.attach import entry
from livepatch.attach.client import Client, NotPrepared
from livepatch.core.model import LivepatchError

#: The interpreter outside of any virtual environment: it finds no livepatch.
PLAIN = [getattr(sys, "_base_executable", sys.executable), "-E"]

#: Whoever imports `json`, which the agent does, waits until this process is told to go on.
SLOW = """
import pathlib
assert "json" not in sys.modules
go = threading.Event()
class Slow:
    def find_spec(self, name, path=None, target=None):
        if name == "json":
            pathlib.Path(sys.argv[1]).touch()
            go.wait()
sys.meta_path.insert(0, Slow())
say("ready")
hear()
go.set()
hear()
"""


#: As soon as the agent listens, C code keeps the interpreter to itself for longer than the rest of the attach's time.
BUSY = """
import ctypes, os, sys, time
say("ready")
while not os.path.exists(sys.argv[1].format(os.getpid())): time.sleep(0.001)
ctypes.PyDLL(None).usleep(4_000_000)
hear()
"""


class Clock:
    """The time of `entry`: so many seconds are gone when the target has begun, and so many more with the next look."""

    def __init__(self, begun, then):
        self._begun, self._then = begun, list(then)
        self._ahead = 0.0
        self.before_sleep = []

    def monotonic(self):
        if self._begun.exists() and self._then:
            self._ahead += self._then.pop(0)
        return time.monotonic() + self._ahead

    def sleep(self, seconds):
        if self._ahead and self.before_sleep:
            self.before_sleep.pop()()
        time.sleep(seconds)


@pytest.fixture
def slow(tmp_path):
    with Target(SLOW, command=PLAIN, arguments=(str(tmp_path / "begun"),)) as target:
        assert target.hear() == "ready"
        yield target


def test_it_is_waited_for(slow, tmp_path, monkeypatch):
    clock = Clock(tmp_path / "begun", [PATIENCE + 1])
    clock.before_sleep.append(slow.say)
    monkeypatch.setattr(entry, "time", clock)
    with entry.attach(slow.pid, timeout=PATIENCE) as client:
        assert client.call("list") == []


def test_it_is_not_waited_for_without_end(slow, tmp_path, monkeypatch):
    """What is said then is true: the agent comes."""
    monkeypatch.setattr(entry, "time", Clock(tmp_path / "begun", [PATIENCE + 1, entry._ARRIVES]))
    with pytest.raises(LivepatchError, match="has begun to let the agent in, but is too busy") as caught:
        entry.attach(slow.pid, timeout=PATIENCE)
    assert caught.value.errno == errno.ETIMEDOUT
    slow.say()

    def agent():
        try:
            return Client(slow.pid)
        except NotPrepared:
            return None

    with eventually(agent) as client:
        assert client.call("list") == []


def test_an_agent_that_listens_is_given_time_to_answer(monkeypatch):
    socket = f"/tmp/livepatch-{os.geteuid()}/{{}}.sock"
    with Target(BUSY, command=PLAIN, arguments=(socket,)) as target:
        assert target.hear() == "ready"
        monkeypatch.setattr(entry, "time", Clock(Path(socket.format(target.pid)), [PATIENCE - 2]))
        with entry.attach(target.pid, timeout=PATIENCE) as client:
            assert client.call("list") == []
