"""The agent comes into containers and other worlds, and finds what it needs there."""

import os

import pytest
from tests.attach.worlds import World, living

from livepatch.attach import entry
from livepatch.attach.client import Client
from livepatch.core import cpython

pytestmark = pytest.mark.skipif(not cpython.REMOTE_EXEC, reason="this Python has no sys.remote_exec")

#: Says its line, and works on while it is attached to.
SCRIPT = """
    import os, time
    say("ready", os.getpid(), os.getuid())
    end = time.monotonic() + 60
    while not os.path.exists("/dev/shm/livepatch-stop") and time.monotonic() < end: time.sleep(0.01)
"""

PROC = "mount -t proc proc /proc"
TMP = "mount -t tmpfs tmpfs /tmp"
SHM = "mount -t tmpfs tmpfs /dev/shm"
READ_ONLY = "mount -t tmpfs -o ro tmpfs {}"

WORLDS = {
    "a container": World(f"{PROC}; {TMP}; {SHM}"),
    "other mounts": World(f"{TMP}; {SHM}", spaces=("mount",)),
    "a container of an ordinary user": World(
        f"{PROC}; {TMP}; {SHM}", spaces=("user", "mount", "pid"), ids=((0, 1234, 1),), owner=1234
    ),
    "a container with users of its own": World(
        f"{PROC}; {TMP}; {SHM}", spaces=("user", "mount", "pid"), ids=((0, 100000, 65536),)
    ),
    "an ordinary user in one": World(
        f"{PROC}; {TMP}; {SHM}", spaces=("user", "mount", "pid"), ids=((0, 100000, 65536),), uid=1000
    ),
    "users of its own among our processes": World(f"{TMP}; {SHM}", spaces=("user", "mount"), ids=((0, 100000, 1000),)),
    "a read-only root": World(f"{PROC}; {READ_ONLY.format('/tmp')}; {SHM}; mount -o remount,bind,ro /"),
    "a full /tmp": World(
        f"{PROC}; mount -t tmpfs -o size=16k tmpfs /tmp; {SHM}; cat /dev/zero >/tmp/full 2>/dev/null || true"
    ),
    "another root": World(
        "mkdir -p /run/other && mount --rbind / /run/other; mount -t tmpfs tmpfs /run/other/tmp;"
        " mount -t tmpfs tmpfs /run/other/dev/shm",
        root="/run/other",
        spaces=("mount",),
    ),
}


def left(pid):
    """What livepatch has put into the target's world."""
    found = []
    for base in ("tmp", "dev/shm"):
        for folder, _, names in os.walk(f"/proc/{pid}/root/{base}"):
            found += [f"/{base}/{os.path.basename(folder)}/{name}" for name in names if "livepatch" in folder]
    return found


@pytest.mark.parametrize("name", WORLDS)
def test_the_agent_comes_into(name):
    world = WORLDS[name]
    with living(world, SCRIPT) as (target, pid):
        _, inner, uid = target.hear().split()
        assert int(uid) == world.uid
        with entry.attach(pid, timeout=30) as client:
            assert client.hello["pid"] == int(inner)
            assert client.hello["uid"] == world.uid
        (socket,) = left(pid)
        assert socket.endswith(f"/livepatch-{world.uid}/{inner}.sock")
        assert socket.startswith("/dev/shm/" if name == "a read-only root" else "/tmp/")
        with Client(pid) as again:
            assert again.call("list") == []
