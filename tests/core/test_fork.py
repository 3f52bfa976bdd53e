"""A forked child keeps what its parent had, and can go on by itself."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

# The parent forks inside of a transition that a thread holds up, and outside of one; the child says what it sees.
PROGRAM = """
import os, sys, threading
import livepatch as lp
from livepatch.core import registry

parked = threading.Event()
reached = threading.Event()

def f(): return "old"
def park():
    reached.set()
    parked.wait()
def new_f(): return "new"
def new_park(): pass

def patch(name="p"):
    return lp.Patch(name, [lp.Object(None, [lp.Func("f", new_f), lp.Func("park", new_park)])])

def in_child(look):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        try:
            look()
            sys.stdout.flush()
        except BaseException as error:
            print("FAILED", repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0

def until_in():
    assert lp.wait("p", 60)
    print([p.transition for p in lp.patches()], f())

def take_out():
    lp.disable_patch("p", timeout=60)
    assert lp.wait("p", 60)
    print(lp.patches(), f())

if sys.argv[1] == "inside":
    thread = threading.Thread(target=park, daemon=True)
    thread.start()
    reached.wait()
    lp.enable_patch(patch())
    print([p.transition for p in lp.patches()], f())
    in_child(until_in)
    print([p.transition for p in lp.patches()], f())
    parked.set()
    assert lp.wait("p", 60)
else:
    lp.enable_patch(patch(), timeout=60)
    in_child(take_out)
take_out()
"""


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("inside", ["[True] new", "[False] new", "[True] new", "[] old"]),
        ("outside", ["[] old", "[] old"]),
    ],
)
def test_fork(when, said):
    """The thread that holds the parent's transition up does not exist in the child, whose transition completes."""
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, when]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines() == said


def test_forks_while_patches_go_in_and_out(module, worker):
    """No child may find a lock that is held by a thread that it does not have."""
    from tests.core import kit

    import livepatch as lp

    target = module("def f(): return 'old'")
    stop = []

    def change() -> None:
        while not stop:
            lp.enable_patch(kit.built("p", target, "def f(): return 'new'", "f"), timeout=60)
            lp.disable_patch("p", timeout=60)
            kit.until(lambda: not lp.patches())
            lp.unload_patch("p")

    changing = worker().begin(change)
    for _ in range(30):
        pid = os.fork()
        if pid == 0:
            # Needs both locks, and the threads' own.
            os._exit(0 if target.f() in ("old", "new") and lp.tasks() is not None and lp.wait("p", 30) else 1)
        assert os.waitpid(pid, 0)[1] == 0
    stop.append(True)
    changing.result(60)
