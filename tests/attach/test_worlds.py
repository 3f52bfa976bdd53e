"""The agent comes into containers and other worlds, and finds what it needs there."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from tests.agent.targets import Line, Target, eventually
from tests.attach.worlds import PREFIX, PYTHON, World, as_user, living

from livepatch.attach import entry, processes
from livepatch.attach.client import Client
from livepatch.attach.files import files_for
from livepatch.core.model import LivepatchError

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
    "no /proc": World(f"mount -t tmpfs tmpfs /proc; {TMP}; {SHM}"),
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
        with entry.attach(pid, timeout=60) as client:
            assert client.hello["pid"] == int(inner)
            assert client.hello["uid"] == world.uid
        (socket,) = eventually(lambda: len(found := left(pid)) == 1 and found)
        assert socket.endswith(f"/livepatch-{world.uid}/{inner}.sock")
        assert socket.startswith("/dev/shm/" if name == "a read-only root" else "/tmp/")
        with Client(pid) as again:
            assert again.call("list") == []


def test_no_place_is_one_sentence_and_nothing_is_left():
    world = World(f"{PROC}; {READ_ONLY.format('/tmp')}; {READ_ONLY.format('/dev/shm')}; mount -o remount,bind,ro /")
    with living(world, SCRIPT) as (target, pid):
        target.hear()
        with pytest.raises(LivepatchError) as refused:
            entry.attach(pid)
        found = re.fullmatch(
            r"No file for process \d+ can be put into its /tmp \(Read-only file system\) or /dev/shm \(Read-only file"
            r" system\); make room for a file of \d+ KiB there, or start it with `livepatch run -- \.\.\.`\.",
            str(refused.value),
        )
        assert found
        assert refused.value.symbol == "EROFS"
        assert left(pid) == []


def test_a_socket_that_finds_no_place_is_one_sentence():
    """Of a process that starts its agent by itself."""
    script = """
        import livepatch
        from livepatch.agent import places
        places.BASES = ("/nowhere", "/proc")
        try:
            livepatch.start_agent()
        except livepatch.LivepatchError as error:
            say(error.symbol, error)
    """
    with Target(script) as target:
        assert target.hear() == (
            "ENOENT The agent's socket cannot be made in /nowhere (No such file or directory) or /proc (No such file or"
            " directory); let the process write to one of these."
        )


def test_a_trap_in_the_second_place_is_not_used(tmp_path):
    world = World(
        f"{PROC}; {READ_ONLY.format('/tmp')}; {SHM}; mkdir /dev/shm/trap; ln -s /dev/shm/trap /dev/shm/livepatch-0"
    )
    with living(world, SCRIPT) as (target, pid):
        target.hear()
        with pytest.raises(
            LivepatchError, match="/dev/shm/livepatch-0 is a symbolic link and not a directory; remove it"
        ):
            entry.attach(pid)
        assert os.listdir(f"/proc/{pid}/root/dev/shm/trap") == []


def test_a_file_system_that_does_not_know_our_root_takes_files_of_its_own_users():
    """One that was mounted in the user namespace: the plain way, as root and then chown, fails there."""
    world = WORLDS["a container with users of its own"]
    with living(world, SCRIPT) as (target, pid):
        target.hear()
        with pytest.raises(OSError, match="Value too large"):
            os.mkdir(f"/proc/{pid}/root/tmp/naive")
        with files_for(processes.examine(pid)) as files:
            files.write("x", b"")
            assert os.stat(f"/proc/{pid}/root{files.inside('x')}").st_uid == 100000
            files.remove("x")
        assert left(pid) == []
    os.mkdir(probe := f"/tmp/livepatch-probe-{os.getpid()}")  # and we are ourselves again
    assert os.stat(probe).st_uid == 0
    os.rmdir(probe)


def test_only_root_and_its_own_user_may_speak_to_an_agent_there():
    """Root has no number in there, and the number that stands for that is no password for others."""
    world = World(f"{PROC}; {TMP}; {SHM}", spaces=("user", "mount", "pid"), ids=((0, 100000, 65536),))
    with living(world, SCRIPT) as (target, pid):
        target.hear()
        entry.attach(pid).close()
        for uid in (65534, 101000, 165534):
            said = as_user(uid, lambda: Client(pid).hello["pid"])
            assert said.startswith("NoAccess("), said
        # Even one whom somebody let into the directory.
        folder = f"/proc/{pid}/root/tmp/livepatch-0"
        os.chmod(folder, 0o777)
        os.chmod(f"{folder}/1.sock", 0o777)
        descriptor = os.open(folder, os.O_PATH)

        def speak():
            with Line(f"/proc/self/fd/{descriptor}/1.sock") as line:
                return line.call("hello")

        for uid in (101000, 65533):
            assert as_user(uid, speak) in ("None", repr(BrokenPipeError(32, "Broken pipe"))), uid
        os.close(descriptor)
        os.chmod(folder, 0o700)
        Client(pid).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_the_ordinary_user_who_made_a_container_attaches_to_what_is_in_it():
    world = WORLDS["a container of an ordinary user"]
    with living(world, SCRIPT) as (target, pid):
        target.hear()
        require_reachable_for(1234)
        assert as_user(1234, lambda: entry.attach(pid, timeout=60).hello["uid"]) == "0"


def require_reachable_for(uid):
    """Whether another user can run this Python at all, where the checkout and its environment are."""
    said = as_user(
        uid, lambda: subprocess.run([sys.executable, "-c", "import livepatch"], capture_output=True).returncode
    )
    if said != "0":
        pytest.skip(f"user {uid} cannot run {sys.executable}, which is in somebody's own folder")


# -- what is on the disk is not what runs ----------------------------------------------------------------------------


def copy_of_python(folder):
    """The interpreter's file alone, which finds its library by PYTHONHOME."""
    copy = folder / os.path.basename(PYTHON)
    shutil.copy2(PYTHON, copy)
    return copy, {"PYTHONHOME": PREFIX}


@pytest.mark.parametrize("instead", ["nothing", "another program"])
def test_the_file_that_runs_is_gone(tmp_path, instead):
    copy, env = copy_of_python(tmp_path)
    with Target(SCRIPT, command=[str(copy)], env=env) as target:
        target.hear()
        copy.unlink()
        if instead == "another program":
            shutil.copy2("/bin/false", copy)
        with entry.attach(target.pid, timeout=60) as client:
            assert client.hello["pid"] == target.pid


def test_a_virtual_environment_without_livepatch(tmp_path):
    subprocess.run([PYTHON, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
    with Target(SCRIPT, command=[str(tmp_path / "venv" / "bin" / "python")]) as target:
        target.hear()
        with entry.attach(target.pid, timeout=60) as client:
            assert client.hello["pid"] == target.pid


@pytest.mark.skipif(
    "/libpython" not in Path("/proc/self/maps").read_text(), reason="this Python was built without a shared library"
)
def test_the_library_that_runs_is_gone(tmp_path):
    copy, env = copy_of_python(tmp_path)
    library = tmp_path / sysconfig.get_config_var("INSTSONAME")
    shutil.copy2(os.path.join(sysconfig.get_config_var("LIBDIR"), library.name), library)
    with Target(SCRIPT, command=[str(copy)], env={**env, "LD_LIBRARY_PATH": str(tmp_path)}) as target:
        target.hear()
        assert f"{library}\n" in Path(f"/proc/{target.pid}/maps").read_text()
        library.unlink()
        copy.unlink()
        with entry.attach(target.pid, timeout=60) as client:
            assert client.hello["pid"] == target.pid
