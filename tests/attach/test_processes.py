"""What a process is, told from outside."""

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from tests.agent.targets import Target, eventually

from livepatch.attach import processes
from livepatch.attach.processes import NoAccess

OURS = ".".join(sys.version.split(".")[:2])


def refused(pid):
    with pytest.raises(NoAccess) as error:
        processes.require_python(pid)
    assert "\n" not in str(error.value)
    return error.value.symbol, str(error.value)


def as_nobody(program):
    """What a function returns, as text, in a child that belongs to another user."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.setgid(65534)
            os.setuid(65534)
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


def test_a_python():
    with Target("say('ready'); hear()", arguments=("a b",)) as target:
        target.hear()
        found = processes.examine(target.pid)
        assert (found.pid, found.inner_pid, found.uid) == (target.pid, target.pid, os.geteuid())
        assert found.python == OURS
        assert found.command[-1] == "a b"
        assert found.title.endswith(" 'a b'")
        assert found in list(processes.pythons())
        assert processes.owner(target.pid) == (os.geteuid(), os.getegid())


def test_ourselves_are_not_listed():
    assert os.getpid() not in [process.pid for process in processes.pythons()]


def test_no_such_process():
    gone = subprocess.Popen(["true"])
    gone.wait()
    symbol, sentence = refused(gone.pid)
    assert (symbol, sentence) == (
        "ESRCH",
        f"There is no process {gone.pid}; `livepatch ps` lists the Python processes.",
    )


def test_a_title_is_fit_for_a_terminal():
    """A command line may hold anything, and root reads it."""
    with Target("say('ready'); hear()", arguments=("\x1b]0;evil\x07", "a\nb", "\x9bJ")) as target:
        target.hear()
        assert processes.examine(target.pid).title.isprintable()


def test_a_zombie_is_gone():
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert refused(ended.pid)[0] == "ESRCH"
        assert not processes.alive(ended.pid)
        with pytest.raises(NoAccess):
            processes.owner(ended.pid)


def test_one_that_ends_was_a_python_until_it_is_gone():
    """Its memory goes before it counts as ended, and nothing of it tells then what it was."""
    script = """
        import os
        while True:
            if (child := os.fork()) == 0: os._exit(0)
            say(child)
            hear()
            os.waitpid(child, 0)
    """
    with Target(script) as target:
        for _ in range(300):
            child = int(target.hear())
            with pytest.raises(NoAccess) as gone:
                while True:
                    processes.require_python(child)
            assert gone.value.symbol == "ESRCH", gone.value
            assert not processes.alive(child)
            target.say("next")


def test_no_python():
    with subprocess.Popen(["sleep", "1000"]) as sleeper:
        try:
            eventually(lambda: Path(f"/proc/{sleeper.pid}/cmdline").read_bytes() == b"sleep\x001000\0")
            symbol, sentence = refused(sleeper.pid)
            assert symbol == "ENOEXEC"
            assert sentence.startswith(f"Process {sleeper.pid} (sleep 1000) is no Python;")
        finally:
            sleeper.kill()


def test_a_thread_of_the_kernel_is_no_python():
    name = Path("/proc/2/comm")
    if not name.exists() or name.read_text() != "kthreadd\n":
        pytest.skip("they cannot be seen from here")
    assert refused(2)[0] in ("ENOEXEC", "EACCES")


def test_a_thread_is_not_a_process():
    idents, leave = [], threading.Event()

    def work():
        idents.append(threading.get_native_id())
        leave.wait()

    thread = threading.Thread(target=work)
    thread.start()
    while not idents:
        pass
    try:
        assert refused(idents[0]) == (
            "ESRCH",
            f"{idents[0]} is a thread of process {os.getpid()}; use --pid {os.getpid()}.",
        )
    finally:
        leave.set()
        thread.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_one_of_another_user():
    with Target("say('ready'); hear()") as target:
        target.hear()
        said = as_nobody(lambda: refused(target.pid))
    sentence = f"Process {target.pid} belongs to user 0; run livepatch as that user or as root."
    assert said == str((errno.errorcode[errno.EACCES], sentence))


@pytest.mark.parametrize(
    ("path", "version"),
    [
        ("/usr/bin/python3.11", "3.11"),
        ("/usr/bin/python3.13t", "3.13t"),
        ("/usr/bin/python3.14 (deleted)", "3.14"),
        ("/usr/lib/x86_64-linux-gnu/libpython3.12.so.1.0", "3.12"),
        ("/usr/lib/libpython3.14t.so", "3.14t"),
        ("/srv/x/_json.cpython-311-x86_64-linux-gnu.so", "3.11"),
        ("/srv/x/_json.cpython-314t-x86_64-linux-gnu.so", "3.14t"),
        ("/usr/bin/python2.7", "2.7"),
        ("/usr/lib/libpython2.7.so.1.0", "2.7"),
        ("/usr/bin/python3.6m", "3.6"),
        ("/usr/lib/libpython3.7dm.so.1.0", "3.7"),
        ("/srv/x/_json.cpython-37m-x86_64-linux-gnu.so", "3.7"),
        ("/usr/lib/libpython3.12d.so.1.0", "3.12"),
        ("/usr/bin/pypy3.10", "PyPy 3.10"),
        ("/srv/pypy/bin/libpypy3.10-c.so", "PyPy 3.10"),
        ("/usr/lib/x86_64-linux-gnu/libpypy3-c.so (deleted)", "PyPy 3"),
        ("/usr/bin/python4", None),
        ("/srv/pypy3.10/notes.txt", None),
        ("/usr/lib/python3.11/notes.txt", None),
        ("/usr/bin/python3.11-config", None),
        ("[heap]", None),
        ("", None),
    ],
)
def test_the_version_is_told_by_what_is_mapped(path, version):
    line = f"7f00-7f01 r-xp 00000000 fe:01 123   {path}\n".encode()
    assert processes._python_version(b"7f00-7f01 rw-p 00000000 00:00 0\n" + line) == version


@pytest.mark.parametrize(
    ("command", "brief"),
    [
        (
            ["/srv/venv/bin/python3.11", "/srv/venv/bin/gunicorn", "-w", "4", "app:app"],
            "python3.11 gunicorn -w 4 app:app",
        ),
        (["/usr/bin/python3", "-u", "/srv/venv/bin/gunicorn", "/bin/x"], "python3 -u gunicorn /bin/x"),
        (["/usr/bin/python3", "/srv/shop/serve.py"], "python3 /srv/shop/serve.py"),
        (["/usr/bin/python3", "-c", "run('/usr/bin/x y')"], """python3 -c 'run('"'"'/usr/bin/x y'"'"')'"""),
        (["gunicorn: master [/srv/bin/app]"], "'gunicorn: master [/srv/bin/app]'"),
        ([], "/usr/bin/python3"),
    ],
)
def test_a_command_line_in_brief(command, brief):
    """What runs, and not where the interpreter is."""
    process = processes.Process(1, 1, 0, "/usr/bin/python3", command, "3.11")
    assert process.brief == brief
