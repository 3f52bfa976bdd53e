"""The command and the process run different Pythons: from the build to the report, and back.

Each of our Pythons is the command for all others, so both directions are tried.
"""

import json
import os
import subprocess
import sys

import pytest
from tests.agent.targets import Target
from tests.attach.test_bundle import others

import livepatch

OLD = """
import asyncio
LIMIT = 10
class Cart:
    def __init__(self, *prices): self.prices = prices
    def total(self): return sum(price for price in self.prices if price < LIMIT)
def answer():
    return f"old {[price for price in (1, 20)]} {Cart(1, 20).total()}"
async def served():
    await asyncio.sleep(0)
    return answer()
def slow(inside, leave):
    inside.set()
    leave.wait()
    return "old"
"""
NEW = OLD.replace("LIMIT = 10", "LIMIT = 30").replace('f"old', 'f"new').replace('return "old"', 'return "new"')
SERVICE = """
import asyncio, threading
import shop
inside, leave = threading.Event(), threading.Event()
say("ready", "%d.%d" % sys.version_info[:2], sys.modules["livepatch"].__file__)
while (word := hear()):
    if word == "ask": say(shop.answer(), "/", asyncio.run(shop.served()))
    if word == "enter":
        inside.clear(); leave.clear()
        threading.Thread(target=shop.slow, args=(inside, leave), name="worker", daemon=True).start()
        inside.wait()
        say("inside")
    if word == "leave": leave.set()
"""
BEFORE, AFTER = "old [1, 20] 1 / old [1, 20] 1", "new [1, 20] 21 / new [1, 20] 21"


@pytest.fixture
def trees(tmp_path):
    for name, text in (("old", OLD), ("new", NEW)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "shop.py").write_text(text)
    return tmp_path


@pytest.fixture
def lp(tmp_path):
    """The command line as users have it, in a process of this Python."""
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(livepatch.__file__))}

    def command(*arguments, status=0):
        words = [sys.executable, "-m", "livepatch", *map(str, arguments)]
        done = subprocess.run(words, capture_output=True, text=True, env=environment, cwd=tmp_path)
        assert done.returncode == status, (words, done.stdout, done.stderr)
        assert "Traceback" not in done.stderr
        return done

    return command


def asked(target):
    target.say("ask")
    return target.hear()


@pytest.mark.slow
@pytest.mark.parametrize("python", others())
def test_a_process_of_another_python(python, trees, lp):
    """Everything that a process is asked, of one that `livepatch run` has started."""
    lp("build", "-o", trees / "fix.livepatch", "--old", trees / "old", "--new", trees / "new")
    command = [sys.executable, "-m", "livepatch", "run", "--", python]
    with Target(SERVICE, command=command, folder=trees / "old", env={"PYTHONPATH": ours()}) as target:
        ready, version, where = target.hear().split()
        assert (ready, os.path.dirname(os.path.dirname(where))) == ("ready", ours())
        assert version in python or python.endswith("python3")
        assert version != f"{sys.version_info[0]}.{sys.version_info[1]}"
        pid = ("--pid", target.pid)
        (listed,) = [entry for entry in json.loads(lp("ps", "--json").stdout) if entry["pid"] == target.pid]
        assert (listed["agent"], listed["python"].startswith(version)) == ("yes", True)
        lp("check", trees / "fix.livepatch", *pid)

        target.say("enter")
        assert target.hear() == "inside"
        stalled = lp("load", "fix.livepatch", *pid, "--timeout", 0.2, "--report", "stalled.html", status=3)
        assert "thread worker: slow (" in stalled.stderr
        assert "It was taken back: nothing of 'fix' is patched." in stalled.stderr
        assert "worker" in (trees / "stalled.html").read_text()
        assert "No patch is loaded." in lp("status", *pid).stdout
        target.say("leave")
        assert asked(target) == BEFORE

        lp("load", "fix.livepatch", *pid, "--report", "load.html")
        assert asked(target) == AFTER
        page = (trees / "load.html").read_text()
        assert version in page
        assert "completed" in page
        status = lp("status", *pid).stdout
        assert f"Python {version}" in status
        assert "'fix': enabled" in status
        lp("tasks", *pid, "--stacks")
        assert f'livepatch_patch_enabled{{pid="{target.pid}",patch="fix"}} 1' in lp("status", *pid, "--metrics").stdout

        lp("disable", "fix", *pid)
        assert asked(target) == BEFORE
        lp("unload", "fix", *pid)
        assert "No patch is loaded." in lp("status", *pid).stdout
        assert "'fix': unpatching complete" in lp("dmesg", *pid).stdout


def ours():
    return os.path.dirname(os.path.dirname(livepatch.__file__))
