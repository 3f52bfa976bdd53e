"""A real mount, made by the real command, and what it takes to never leave one behind."""

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE, SERVES, Target, eventually

from livepatch.attach.client import Client
from livepatch.core.model import LivepatchError
from livepatch.fs.mount import binding

LIVEPATCH = [sys.executable, "-m", "livepatch"]

#: A service that is to be prepared.
SERVICE = f"""
    def answer(): return "old"
    def outer():
        def inner(): return "old"
        return inner
    {SERVES}"""

PATCH = """
import livepatch as lp
import __main__
def answer(): return "new"
def slow():
    __main__.inside.set()
    __main__.leave.wait()
funcs = [lp.Func("answer", answer), lp.Func("slow", slow)]
absent = [lp.Func("Class.method", answer, old_sympos=2), lp.Func("outer.<locals>.inner", answer)]
__livepatch__ = lp.Patch("", [lp.Object(None, funcs), lp.Object("not.imported", absent)])
"""


def impossible() -> str | None:
    """Why nothing can be mounted here."""
    try:
        binding()
        if os.geteuid() == 0:
            os.close(os.open("/dev/fuse", os.O_RDWR))
    except LivepatchError as error:
        return str(error)
    except OSError as error:
        return f"/dev/fuse cannot be opened: {error.strerror}."
    return None


@pytest.fixture(scope="session", autouse=True)
def fuse():
    """Without FUSE nothing of this can be tested, and whoever reads the result must see that."""
    why = impossible()
    if why is not None:
        pytest.skip(f"livepatch mount is NOT TESTED: {why}")


class Mount:
    """`livepatch mount` as a process, and the shell commands that people use in it."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.path = directory
        # The kernel ends it if the test run is killed: then it unmounts.
        command = ["setpriv", "--pdeathsig", "TERM", *LIVEPATCH, "mount", str(directory), *options]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        line = self.process.stdout.readline()
        assert line.startswith(f"Mounted on {directory}"), line + self.process.stderr.read()

    def sh(self, script: str, *, status: int = 0, shell: str = "sh") -> str:
        """What a shell says to a script that is run in the mount; stderr too if it is to fail."""
        command = [shell, "-c", script]
        environment = {**os.environ, "LC_ALL": "C"}
        done = subprocess.run(command, cwd=self.path, capture_output=True, text=True, env=environment, timeout=PATIENCE)
        assert done.returncode == status, done
        return done.stdout if status == 0 else done.stderr

    def end(self) -> str:
        """End it as Ctrl-C does, and give what it said on stderr."""
        self.process.terminate()
        self.process.wait(PATIENCE)
        with self.process.stdout, self.process.stderr:
            assert not self.process.stdout.read()
            return self.process.stderr.read()


def unmount(directory: Path) -> bool:
    """Take a mount away, whatever state it is in; whether there was one."""
    listed = f" {directory} " in Path("/proc/self/mounts").read_text()
    if listed:
        by_root, by_user = ["umount", "-l"], ["fusermount3", "-u", "-z"]
        subprocess.run([*(by_root if os.geteuid() == 0 else by_user), str(directory)], check=True)
    return listed


@contextmanager
def mounting(directory: Path, *options: str) -> Iterator[Mount]:
    directory.mkdir(exist_ok=True)
    try:
        mount = Mount(directory, *options)
        try:
            yield mount
        finally:
            if mount.process.poll() is None:
                mount.process.terminate()
            try:
                mount.process.wait(PATIENCE)
            finally:
                mount.process.kill()
                mount.process.wait()
                mount.process.stdout.close()
                mount.process.stderr.close()
    finally:
        left = unmount(directory)
    assert not left, "it was not unmounted"


@pytest.fixture(scope="module")
def mount(tmp_path_factory):
    """One mount for all tests of a module: it shows every prepared process."""
    with mounting(tmp_path_factory.mktemp("fs") / "mnt", "--timeout", "20") as mounted:
        yield mounted


@pytest.fixture
def service(mount):
    """A process under `livepatch run`; `folder` is its own in the mount."""
    with Target(SERVICE, command=[*LIVEPATCH, "run", "--", sys.executable]) as target:
        assert target.hear() == "ready"
        eventually(lambda: str(target.pid) in os.listdir(mount.path))
        yield target


@pytest.fixture
def patched(service):
    """The service with the patch `fix`, and no transition."""
    load(service)
    with Client(service.pid) as client:
        eventually(lambda: not client.call("status", name="fix")["transition"])
    return service


@pytest.fixture
def in_transition(service):
    """The service, and the patch being loaded: a thread is in the way until the test says "leave"."""
    service.say("enter")
    assert service.hear() == "inside"
    load(service)
    return service


def load(target, source=PATCH):
    """Load a patch into a process, as `fix`."""
    with Client(target.pid) as client:
        client.call("load", file="fix.py", data=base64.b64encode(source.encode()).decode())


@pytest.fixture
def bash():
    """The shell whose `echo` says what the errno of a write was."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    return "bash"
