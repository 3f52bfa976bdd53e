"""Targets in worlds of their own: other mounts, other pids, other users, as containers have them."""

import contextlib
import ctypes
import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import pytest
from tests.agent.targets import Target

#: The interpreter outside of any virtual environment, which has no livepatch, and its folder.
PYTHON = os.path.realpath(getattr(sys, "_base_executable", sys.executable))
PREFIX = os.path.realpath(sys.base_prefix)

#: Makes the namespaces, says which pid the target has outside of them, and becomes the target.
_LAUNCHER = """
import ctypes, json, os, subprocess, sys
world, command = json.loads(sys.argv[1]), sys.argv[2:]
libc = ctypes.CDLL(None, use_errno=True)
if libc.unshare(0x20000):
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
subprocess.run(["mount", "--make-rprivate", "/"], check=True)
if world["prefix"] != "/usr":
    subprocess.run(["mount", "--bind", world["prefix"], "/mnt"], check=True)
    os.environ["LD_LIBRARY_PATH"] = "/mnt/lib"  # of one that was built with a shared library
made, go, on = os.pipe(), os.pipe(), os.pipe()
child = os.fork()
if child:
    os.close(made[1])
    if os.read(made[0], 1):
        if world["owner"]:
            open(f"/proc/{child}/setgroups", "w").write("deny")
        for which in ("gid_map", "uid_map") if world["ids"] else ():
            with open(f"/proc/{child}/{which}", "w") as file:
                file.write("\\n".join(" ".join(map(str, line)) for line in world["ids"]))
        os.write(go[1], b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
if world["owner"] and os.geteuid() == 0:
    os.setgroups([])
    os.setgid(world["owner"])
    os.setuid(world["owner"])
flags = sum({"mount": 0x20000, "pid": 0x20000000, "user": 0x10000000}[space] for space in world["spaces"])
if libc.unshare(flags):
    sys.exit(f"unshare: {os.strerror(ctypes.get_errno())}")
os.write(made[1], b"x")
os.close(go[1])
os.read(go[0], 1)
inner = os.fork()
if inner:
    os.write(1, b"%d\\n" % inner)
    os.write(on[1], b"x")
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]))
os.read(on[0], 1)
if world["ids"]:
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
subprocess.run(["sh", "-ec", world["setup"] or ":"], check=True, stdin=subprocess.DEVNULL)
if world["root"]:
    os.chroot(world["root"])
    os.chdir("/")
if world["uid"]:
    os.setgid(world["uid"])
    os.setuid(world["uid"])
os.execv(command[0], command)
"""


@dataclass(frozen=True)
class World:
    """What is different for a target there. `ids` are lines of a uid_map, `uid` is the user it becomes in the end, and
    `owner` the ordinary user who makes it all.
    """

    setup: str = ""
    spaces: tuple[str, ...] = ("mount", "pid")
    ids: tuple[tuple[int, int, int], ...] = ()
    uid: int = 0
    owner: int = 0
    root: str = ""


@contextlib.contextmanager
def living(world: World, script: str, **options) -> Iterator[tuple[Target, int]]:
    """A target in such a world, and its pid here. The interpreter is found below /mnt, which every user can enter."""
    require_namespaces()
    python = PYTHON if PREFIX == "/usr" else "/mnt" + PYTHON.removeprefix(PREFIX)
    text = json.dumps({**asdict(world), "prefix": PREFIX})
    with Target(script, command=[sys.executable, "-c", _LAUNCHER, text, python], **options) as target:
        pid = int(target.hear())
        try:
            yield target, pid
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@functools.cache
def _namespaces() -> str:
    """Why there are none here, or nothing."""
    if os.geteuid() != 0:
        return "needs root to make namespaces"
    done = subprocess.run(
        ["unshare", "--user", "--mount", "--pid", "--fork", "true"], capture_output=True, text=True, check=False
    )
    return "" if done.returncode == 0 else f"this machine makes no namespaces: {done.stderr.strip()}"


def require_namespaces() -> None:
    if reason := _namespaces():
        pytest.skip(reason)


def as_user(uid: int, program) -> str:
    """What a function returns, as text, in a child that belongs to another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgroups([])
            os.setgid(uid)
            os.setuid(uid)
            ctypes.CDLL(None).prctl(4, 1)  # PR_SET_DUMPABLE: as if it had been started as that user
            said = str(program())
        except BaseException as error:
            said = repr(error)
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)
    with open(reader) as answer:
        said = answer.read()
    os.waitpid(child, 0)
    return said
