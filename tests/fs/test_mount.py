"""Making a mount and ending it, what is said where there can be none, and targets that do not play along."""

import errno
import os
import signal
import subprocess
import sys

import pytest
from tests.agent.targets import PATIENCE, Target, eventually
from tests.attach.test_client import impostor
from tests.fs.conftest import LIVEPATCH, SERVICE, load, mounting, unmount

from livepatch.attach.processes import alive

PREPARED = "import livepatch as lp; lp.start_agent()" + SERVICE.replace("\n    ", "\n")


@pytest.fixture
def directory(tmp_path):
    """An empty directory; nothing stays mounted on it."""
    path = tmp_path / "mnt"
    path.mkdir()
    yield path
    unmount(path)


def prepared():
    target = Target(PREPARED)
    assert target.hear() == "ready"
    return target


def refused(directory, *command, **options):
    """The one sentence that the command says when it cannot mount."""
    command = [*command, *LIVEPATCH, "mount", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, **options)
    assert done.returncode == 1, done
    assert not done.stdout
    assert done.stderr.count("livepatch: ") == 1, done.stderr
    return done.stderr.splitlines()[-1].removeprefix("livepatch: ")


# -- the end -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_unmounts(directory, number):
    with mounting(directory) as mount:
        inside = os.open(directory, os.O_RDONLY)  # as somebody's shell
        try:
            mount.process.send_signal(number)
            assert mount.process.wait(PATIENCE) == 0
        finally:
            os.close(inside)
        assert mount.process.stdout.read() == mount.process.stderr.read() == ""
        assert not os.path.ismount(directory)
        assert os.listdir(directory) == []


def test_umount_ends_the_command(directory):
    with mounting(directory) as mount:
        unmount(directory)
        assert mount.process.wait(PATIENCE) == 0
        assert mount.process.stderr.read() == ""


def test_in_the_background(directory):
    command = [*LIVEPATCH, "mount", directory.name, "--background"]
    done = subprocess.run(command, cwd=directory.parent, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0, done
    process = int(done.stdout.split(" by process ")[1].split(";")[0])
    assert os.path.ismount(directory)
    assert os.getsid(process) == process
    unmount(directory)
    eventually(lambda: not alive(process))


def test_what_goes_wrong_in_the_background_is_said(directory):
    (directory / "file").touch()
    done = subprocess.run(
        [*LIVEPATCH, "mount", directory, "--background"], capture_output=True, text=True, timeout=PATIENCE
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"livepatch: {directory} is not empty; choose an empty directory.\n"


# -- where there can be no mount -----------------------------------------------------------------------------------


def test_a_directory_that_will_not_do(directory):
    assert refused(directory / "x") == f"{directory}/x does not exist; make it first: mkdir {directory}/x"
    (directory / "x").touch()
    assert refused(directory / "x") == f"{directory}/x cannot be a mount point: Not a directory."
    assert refused(directory) == f"{directory} is not empty; choose an empty directory."


def test_a_directory_that_has_a_mount(directory):
    with mounting(directory) as mount:
        assert f"Something is mounted on {directory} already" in refused(directory)
        mount.process.kill()
        mount.process.wait()
        sentence = f"{directory} is a mount whose process is gone; remove it first: fusermount3 -u {directory}"
        assert refused(directory) == sentence
        unmount(directory)


def test_a_system_without_libfuse(directory):
    sentence = refused(directory, env={**os.environ, "FUSE_LIBRARY_NAME": "no-such-library"})
    assert sentence.startswith("There is no libfuse 3 on this system; install the system's package fuse3")


def test_an_installation_without_the_binding(directory):
    code = "import sys; sys.modules['mfusepy'] = None; from livepatch.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code, "mount", directory], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "livepatch: `livepatch mount` needs mfusepy; install it with: pip install 'livepatch[fuse]'\n"


needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")


@needs_root
def test_a_system_without_fuse(directory):
    # Nothing of it may reach the host; in a chroot the root is no mount, and /dev is.
    script = """
        { mount --make-rprivate / || mount --make-rprivate /dev; } 2>/dev/null &&
        mount -t tmpfs none /dev && mknod /dev/null c 1 3 && exec "$@"
    """
    alone = ["unshare", "--mount", "--propagation", "unchanged"]
    assert "no /dev/fuse" in refused(directory, *alone, "sh", "-c", script, "sh")


@needs_root
def test_a_container_that_may_not_mount(directory):
    sentence = refused(directory, "setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin")
    assert sentence.startswith(f"FUSE cannot mount {directory}; the line above says why.")


# -- targets -------------------------------------------------------------------------------------------------------


def test_a_target_that_does_not_answer_holds_nobody_else_up(directory):
    with mounting(directory, "--timeout", "5") as mount, prepared() as stopped, prepared() as other:
        load(stopped)
        load(other)
        values = [f"{target.pid}/livepatch/fix/enabled" for target in (stopped, other)]
        assert mount.sh(f"cat {' '.join(values)}") == "1\n1\n"
        stopped.signal(signal.SIGSTOP)
        waiting = [subprocess.Popen(["cat", directory / values[0]], stderr=subprocess.PIPE) for _ in range(4)]
        for _ in range(5):
            assert mount.sh(f"cat {values[1]}") == "1\n"
        for command in waiting:
            assert b"Connection timed out" in command.communicate(timeout=PATIENCE)[1]
        assert str(stopped.pid) in mount.sh("ls").split(), "it is there, and one may wait for it"
        assert mount.sh(f"ls {stopped.pid}") == "livepatch\ntask\n"
        assert "Connection timed out" in mount.sh(f"ls {stopped.pid}/task", status=2)
        assert "1\n" in subprocess.run(["cat", *values], cwd=directory, capture_output=True, text=True).stdout
        stopped.signal(signal.SIGCONT)
        eventually(lambda: (directory / values[0]).exists())
        assert mount.sh(f"cat {values[0]}") == "1\n"


def test_a_target_that_was_stopped_before_anybody_looked(directory):
    with mounting(directory, "--timeout", "0.3") as mount, prepared() as stopped:
        stopped.signal(signal.SIGSTOP)
        assert str(stopped.pid) in mount.sh("ls").split()
        assert "Connection timed out" in mount.sh(f"ls {stopped.pid}/livepatch", status=2)


def test_a_target_that_dies_vanishes(directory):
    with mounting(directory) as mount, prepared() as dying, prepared() as other:
        load(dying)
        with open(directory / f"{dying.pid}/livepatch/fix/enabled", "rb", buffering=0) as file:
            assert file.read(1) == b"1"
            dying.kill()
            with pytest.raises(OSError) as caught:
                os.pread(file.fileno(), 10, 0)
            assert caught.value.errno == errno.ENOENT
        eventually(lambda: not (directory / str(dying.pid)).exists())
        assert "No such file" in mount.sh(f"cat {dying.pid}/livepatch/fix/enabled", status=1)
        listed = mount.sh("ls").split()
        assert str(dying.pid) not in listed
        assert str(other.pid) in listed


def test_a_target_that_becomes_another_program_vanishes(directory):
    with (
        mounting(directory) as mount,
        Target(
            "import os, livepatch as lp; say(lp.start_agent()); hear()\nos.execvp('sleep', ['sleep', '600'])"
        ) as target,
    ):
        target.hear()
        assert mount.sh(f"ls {target.pid}") == "livepatch\ntask\n"
        target.say()
        eventually(lambda: str(target.pid) not in mount.sh("ls").split())
        assert "No such file" in mount.sh(f"ls {target.pid}", status=2)


def test_processes_without_an_agent_are_not_there(directory):
    with mounting(directory) as mount, Target("say('ready'); hear()") as bare:
        bare.hear()
        listed = mount.sh("ls").split()
        for pid in (bare.pid, os.getpid(), mount.process.pid):
            assert str(pid) not in listed
            assert not (directory / str(pid)).exists()


def test_an_agent_that_answers_nonsense(directory):
    script = """
        accept = lambda: listener.accept()[0]  # it is the mount that asks
        while True:
            serve(lambda request: hello(request) if request["method"] == "hello" else {**request, "result": [7]})
    """
    with mounting(directory) as mount, impostor(script) as target:
        for path in ("livepatch/fix/enabled", "task/1/comm"):
            assert "Protocol error" in mount.sh(f"cat {target.pid}/{path}", status=1)
        target.kill()
        assert mount.end() == ""


@needs_root
def test_files_belong_to_whom_the_process_belongs_to(directory):
    script = PREPARED.replace("lp.start", "import os; os.setgid(65533); os.setuid(65534); lp.start")
    with mounting(directory) as mount, Target(script) as target:
        assert target.hear() == "ready"
        assert mount.sh(f"stat -c %u:%g {target.pid} {target.pid}/task") == "65534:65533\n" * 2


def test_a_large_patch_and_many_tasks_are_listed_completely(directory):
    script = PREPARED.replace(
        'say("ready")',
        """for n in range(300): exec(f"def f{n}(): pass")
for n in range(300): threading.Thread(target=leave.wait, name=f"t{n}", daemon=True).start()
say("ready")""",
    )
    with mounting(directory) as mount, Target(script) as target:
        assert target.hear() == "ready"
        functions = "[lp.Func(f'f{n}', lambda: 1) for n in range(300)]"
        load(target, f"import livepatch as lp\n__livepatch__ = lp.Patch('fix', [lp.Object(None, {functions})])\n")
        listed = mount.sh(f"ls -lR {target.pid}/livepatch")
        assert {f"f{n},1" for n in range(300)} <= set(listed.split())
        names = mount.sh(f"cat {target.pid}/task/*/comm").split()
        assert {f"t{n}" for n in range(300)} <= set(names)
        states = mount.sh(f"cat {target.pid}/task/*/patch_state").split()
        assert len(states) == len(names)
        assert set(states) <= {"-1", "1"}
