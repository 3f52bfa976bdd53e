"""Prepared processes in containers, patches that are installed there, and a kernel that lets nobody trace."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.targets import Target
from tests.attach.test_worlds import PROC, READ_ONLY, WORLDS
from tests.attach.worlds import World, living, require_namespaces
from tests.cli.conftest import lp, trees

import livepatch
from livepatch.attach.client import Client, NotPrepared

__all__ = ["lp", "trees"]

PACKAGE = Path(livepatch.__file__).parent

#: A service whose module is imported after the agent has started, as that of a server is.
PREPARED = """
    import os, sys
    sys.path.insert(0, sys.argv[1])
    import livepatch as lp
    say("socket", lp.start_agent())
    import shop
    say("ready")
    while hear(): say(shop.price())
"""
OLD, NEW = "def price():\n    return 'old'\n", "def price():\n    return 'new'\n"


@pytest.fixture
def library():
    """What the image has: livepatch and the service. Where everybody may read it, and no world hides it."""
    folder = Path(f"/var/tmp/livepatch-image-{os.getpid()}")
    folder.mkdir(mode=0o755)
    shutil.copytree(PACKAGE, folder / "livepatch", ignore=shutil.ignore_patterns("__pycache__", "build", "cli", "demo"))
    (folder / "shop.py").write_text(OLD)
    (folder / "data" / "livepatch").mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def archive(lp, trees, tmp_path):
    old, new = trees(OLD, NEW, name="shop")
    assert lp("build", "--old", old, "--new", new, "-o", tmp_path / "fix.livepatch").status == 0
    return tmp_path / "fix.livepatch"


def price(target):
    target.say("price")
    return target.hear()


@pytest.mark.slow
@pytest.mark.parametrize("name", WORLDS)
def test_a_prepared_process_is_patched_in(name, lp, library, archive):
    with living(WORLDS[name], PREPARED, arguments=(str(library),)) as (target, pid):
        assert target.hear().startswith("socket /")
        assert target.hear() == "ready"
        assert price(target) == "old"
        done = lp("load", archive, "--pid", pid, "--no-attach")
        assert done.status == 0, done.err
        assert price(target) == "new"
        assert "'fix': enabled" in lp("status", "--pid", pid).out
        assert lp("disable", "fix", "--unload", "--pid", pid).status == 0
        assert price(target) == "old"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a container", "a read-only root", "a full /tmp", "another root"])
def test_an_installed_patch_is_applied_in(name, lp, library, archive):
    """It is read, never written: the file system may be read-only."""
    installed = library / "data" / "livepatch" / "0001-fix.livepatch"
    shutil.copy(archive, installed)
    installed.chmod(0o644)
    env = {"XDG_DATA_HOME": str(library / "data")}
    with living(WORLDS[name], PREPARED, arguments=(str(library),), env=env) as (target, pid):
        assert target.hear().startswith("socket /")
        assert target.hear() == "ready"
        assert price(target) == "new"
        assert lp("disable", "fix", "--pid", pid).status == 0
        assert price(target) == "old"


@pytest.mark.slow
def test_no_place_for_a_socket_keeps_no_service_from_starting(library, archive):
    """`livepatch run` goes on without an agent, and says why; what is installed is applied nevertheless."""
    shutil.copy(archive, installed := library / "data" / "livepatch" / "0001-fix.livepatch")
    installed.chmod(0o644)
    world = World(f"{PROC}; {READ_ONLY.format('/tmp')}; {READ_ONLY.format('/dev/shm')}; mount -o remount,bind,ro /")
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        import shop
        say(shop.price())
        hear()
    """
    env = {"XDG_DATA_HOME": str(library / "data"), "PYTHONPATH": str(library / "livepatch/attach/site")}
    with living(world, script, arguments=(str(library),), env=env) as (target, pid):
        assert target.hear() == "new"
        with pytest.raises(NotPrepared):
            Client(pid)


# -- nobody may trace ------------------------------------------------------------------------------------------------

#: The command in a world whose kernel says so; what Yama would say is read from a file that stands in its place.
YAMA = """
set -e
mount --make-rprivate /
mkdir -p "$1/kernel/yama"
echo "$2" > "$1/kernel/yama/ptrace_scope"
mount -t tmpfs tmpfs /mnt
mkdir -p /mnt/sys
mount --rbind /proc/sys /mnt/sys
mount -t tmpfs tmpfs /proc/sys
for each in /mnt/sys/*; do
    name=$(basename "$each")
    mkdir "/proc/sys/$name"
    [ "$name" = kernel ] || mount --rbind "$each" "/proc/sys/$name"
done
mkdir /proc/sys/kernel/yama
cp "$1/kernel/yama/ptrace_scope" /proc/sys/kernel/yama/
shift 2
exec "$@"
"""


#: As in a container: root, without the capability.
DROPPED = ["setpriv", "--bounding-set=-sys_ptrace", "--inh-caps=-sys_ptrace"]


def in_yama(tmp_path, scope, *arguments, drop=True):
    require_namespaces()
    command = [*(DROPPED if drop else ()), sys.executable, "-m", "livepatch", *map(str, arguments)]
    return subprocess.run(
        ["unshare", "-m", "sh", "-c", YAMA, "sh", tmp_path, str(scope), *command],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(PACKAGE.parent)},
    )


def neighbour(script):
    """A target that has no more capabilities than the command."""
    require_namespaces()
    return Target(script, command=[*DROPPED, sys.executable])


@pytest.mark.parametrize(
    ("scope", "drop", "says"),
    [
        (1, True, "run livepatch as root or with the capability CAP_SYS_PTRACE"),
        (2, True, "set that to 0 with sysctl"),
        (3, False, "start the process with `livepatch run -- ...`"),
    ],
)
def test_yama_is_one_sentence_and_nothing_is_touched(tmp_path, scope, drop, says):
    with neighbour("say('ready'); hear()") as target:
        assert target.hear() == "ready"
        done = in_yama(tmp_path, scope, "attach", target.pid, drop=drop)
        assert done.returncode == 4, done
        assert says in done.stderr
        assert f"kernel.yama.ptrace_scope is {scope}" in done.stderr
        assert len(done.stderr.splitlines()) == 1
        with pytest.raises(NotPrepared):
            Client(target.pid)


def test_yama_does_not_matter_to_who_may_trace(tmp_path):
    with neighbour("say('ready'); hear()") as target:
        assert target.hear() == "ready"
        done = in_yama(tmp_path, 1, "attach", target.pid, drop=False)
        assert done.returncode == 0, done
        assert in_yama(tmp_path, 0, "list", "--pid", target.pid).returncode == 0


def test_yama_does_not_matter_to_a_prepared_process(tmp_path):
    with neighbour("import livepatch; livepatch.start_agent(); say('ready'); hear()") as target:
        assert target.hear() == "ready"
        listed = in_yama(tmp_path, 3, "list", "--pid", target.pid)
        assert "No patch is loaded." in listed.stdout, listed


def test_more_capabilities_than_ours_are_one_sentence(tmp_path):
    """The kernel shows a root nothing of another root that may do more."""
    with Target("say('ready'); hear()") as target:
        assert target.hear() == "ready"
        done = in_yama(tmp_path, 0, "attach", target.pid)
        assert done.returncode == 4
        assert "it lacks the capability CAP_SYS_PTRACE, which containers withhold" in done.stderr
