"""The agent is brought into a running process that knows nothing of it, or nothing happens to the process."""

import contextlib
import fcntl
import os
import re
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.agent.targets import Target, eventually

from livepatch.attach import bundle, entry, remote
from livepatch.attach.injector import Injector
from livepatch.core import cpython
from livepatch.core.model import LivepatchError

#: The interpreter outside of any virtual environment: it has no livepatch.
PLAIN = [getattr(sys, "_base_executable", sys.executable)]
DIRECTORY = f"/tmp/livepatch-{os.geteuid()}"

needs_remote_exec = pytest.mark.skipif(not cpython.REMOTE_EXEC, reason="this Python has no sys.remote_exec")

BUSY = "say('ready')\nimport time\nwhile True: time.sleep(0.01)\n"


def everybody_can_read(path):
    return all(place.stat().st_mode & 0o005 for place in (path, *path.parents))


@contextlib.contextmanager
def running(script, **options):
    with Target(script, command=PLAIN, **options) as target:
        assert target.hear() == "ready"
        yield target


def files_of(pid):
    try:
        return sorted(name for name in os.listdir(DIRECTORY) if name.startswith(f"{pid}."))
    except FileNotFoundError:
        return []


@pytest.fixture(params=["auto", "pending_call", *(["remote_exec"] if cpython.REMOTE_EXEC else [])])
def method(request):
    """Each way that there is into a Python like this one."""
    return request.param


def refused(pid, timeout=0.5, method="auto"):
    with pytest.raises(LivepatchError) as error:
        entry.attach(pid, timeout=timeout, method=method)
    assert "\n" not in str(error.value)
    return error.value.symbol, str(error.value)


def test_a_prepared_process_is_just_connected_to():
    with Target("import livepatch as lp; lp.start_agent(); say('ready'); hear()") as target:
        target.hear()
        with entry.attach(target.pid) as client:
            assert client.hello["pid"] == target.pid


def test_the_agent_comes_in_and_leaves_only_its_socket(method):
    with running(BUSY) as target:
        with entry.attach(target.pid, method=method) as client:
            assert client.hello["pid"] == target.pid
            assert client.call("list") == []
        eventually(lambda: files_of(target.pid) == [f"{target.pid}.sock"])
        with entry.attach(target.pid, method=method) as client:
            assert client.hello["pid"] == target.pid


def test_nothing_is_left_in_the_program(method):
    script = """
        say('ready')
        import os, time
        before = set(globals())
        while not os.path.exists(f"/tmp/livepatch-{os.geteuid()}/{os.getpid()}.sock"): time.sleep(0.01)
        while any("livepatch-" in entry for entry in sys.path): time.sleep(0.01)
        while threading.active_count() == 1: time.sleep(0.01)  # the agent's thread makes itself known
        say(sorted(set(globals()) - before - {"before"}), threading.active_count())
        hear()
    """
    with running(script) as target:
        entry.attach(target.pid, method=method).close()
        assert target.hear() == "[] 2"


def test_a_patch_can_be_loaded_when_the_zip_is_gone(tmp_path, method):
    """What is imported late would not be found any more."""
    patch = tmp_path / "fix.py"
    patch.write_text(
        "import livepatch as lp\n__livepatch__ = lp.Patch('', [lp.Object(None, [lp.Func('f', lambda: 'new')])])\n"
    )
    script = """
        import time
        def f(): return "old"
        say('ready')
        while f() == "old": time.sleep(0.01)
        say(f())
        hear()
    """
    with running(script) as target:
        with entry.attach(target.pid, method=method) as client:
            client.send_file("check", patch)
            assert client.send_file("load", patch)["enabled"]
            assert target.hear() == "new"
            assert client.call("tasks")
            assert client.call("dmesg")


def test_a_package_of_its_own_is_preferred(method):
    """A program that uses livepatch but has started no agent keeps the livepatch that it has."""
    with Target("import livepatch\n" + BUSY) as target:
        target.hear()
        with entry.attach(target.pid, method=method) as client:
            assert client.hello["version"]


WAITS = {
    "lock": "threading.Event().wait()",
    "join": "thread = threading.Thread(target=hear); thread.start(); thread.join()",
    "sleep": "import time; time.sleep(1000)",
    "epoll": "import select; select.epoll().poll()",
    "pipe": "import os; os.read(0, 1)",
    "child": "import subprocess; subprocess.run(['sleep', '1000'])",
}


@pytest.mark.parametrize("wait", WAITS)
def test_a_main_thread_that_waits_lets_it_in(wait, method):
    if method == "remote_exec" and wait in ("lock", "join"):
        pytest.skip("there only a pending call gets in; it is refused, see below")
    with running(f"say('ready'); {WAITS[wait]}") as target:
        entry.attach(target.pid, method=method, timeout=60).close()


WAITING = """
    sys.stderr = sys.stdout  # where the interpreter would complain, before it says anything else
    say("ready")
    gone = threading.Event()
    threading.Thread(target=lambda: (hear(), gone.set())).start()
    gone.wait()
    say("went on")
    import time
    while True: time.sleep(0.01)
"""


@needs_remote_exec
def test_a_blocked_main_thread_is_named_and_nothing_surprises_it_later():
    with running(WAITING) as target:
        symbol, sentence = refused(target.pid, method="remote_exec")
        assert symbol == "ETIMEDOUT"
        assert sentence.startswith(
            f"Process {target.pid} did not let the agent in within 0.5 s: its main thread is blocked in a system call,"
            " waiting for a lock or another thread"
        )
        (request,) = files_of(target.pid)  # the interpreter will look for it
        assert request.endswith(".request.py")
        target.say()  # now it does, and nothing else happens
        assert target.hear() == "went on"
        eventually(lambda: files_of(target.pid) == [])


@needs_remote_exec
def test_a_request_that_nobody_reads_any_more_is_cleared_away_by_the_next_agent():
    with running(WAITING) as target:
        refused(target.pid, method="remote_exec")
        assert len(files_of(target.pid)) == 1
    with running(BUSY) as another:
        entry.attach(another.pid).close()
        assert files_of(target.pid) == []


SEVERAL = """
    import time
    try:
        import _interpreters as interpreters
    except ImportError:
        import _xxsubinterpreters as interpreters
    sys.stderr = sys.stdout
    another = interpreters.create()
    busy = "import time\\nwhile True: time.sleep(0.001)"
    run = getattr(interpreters, "run_string", None) or interpreters.exec
    threading.Thread(target=run, args=(another, busy), daemon=True).start()
    def where(): return "old"
    done = threading.Event()
    def watch():
        while where() == "old": time.sleep(0.001)
        done.set()
    threading.Thread(target=watch).start()
    say("ready")
    {waits}
    while where() == "old": time.sleep(0.001)  # this thread may be the last to move
    say(where(), __name__)
    hear()
"""

WHILE = ["done.wait()", "while not done.is_set(): time.sleep(0.001)", "while not done.is_set(): pass"]


@pytest.mark.parametrize("waits", WHILE)
def test_of_several_interpreters_it_is_the_main_one(waits, tmp_path):
    patch = tmp_path / "fix.py"
    patch.write_text(
        "import livepatch as lp\n__livepatch__ = lp.Patch('', [lp.Object(None, [lp.Func('where', lambda: 'new')])])\n"
    )
    with running(SEVERAL.format(waits=waits)) as target:
        with entry.attach(target.pid, timeout=30) as client:
            assert client.send_file("load", patch)["enabled"]
        assert target.hear() == "new __main__"
        target.process.kill()


def test_one_that_can_start_no_thread_says_so_to_us_only(method):
    script = """
        import resource, time
        sys.stderr = sys.stdout
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**20, used + 2**20))
        say("ready")
        for _ in range(300): time.sleep(0.01)
        say("fine")
        hear()
    """
    with running(script) as target:
        _, sentence = refused(target.pid, timeout=30, method=method)
        assert re.search("cannot start a thread|can't start new thread", sentence)
        assert target.hear() == "fine"


#: What an interpreter that asks may come to in the middle: does the target have the request?
ENDS = {
    "killed": ("os.kill(os.getpid(), 9)", True),
    "killed before": ("os.kill(os.getpid(), 9)", False),
    "slow": ("import time; time.sleep(1000)", True),
    "refuses": ("1 / 0", False),
}


@needs_remote_exec
@pytest.mark.parametrize("ends", ENDS)
def test_one_that_may_have_been_asked_finds_its_script(ends, monkeypatch):
    """Else it would complain to the errors of the program, whenever it comes by."""
    what, asked = ENDS[ends]
    asks = remote._HELPER if asked else "import sys"
    monkeypatch.setattr(remote, "_HELPER", f"{asks}\nimport os\n{what}")
    monkeypatch.setattr(remote, "_TIMEOUT", 1.0)
    monkeypatch.setattr(remote, "_ENDS", 0.1)
    with running(WAITING) as target:
        refused(target.pid, method="remote_exec")
        assert len(files_of(target.pid)) == (ends != "refuses")
        target.say()
        assert target.hear() == "went on"
        if asked:
            eventually(lambda: files_of(target.pid) == [])


@needs_remote_exec
def test_ctrl_c_does_not_come_between_a_request_and_its_script(monkeypatch):
    """Neither the one that a terminal sends to all, nor ours: what has just begun is awaited."""
    monkeypatch.setattr(remote, "_HELPER", f"import time; time.sleep(0.5)\n{remote._HELPER}")
    with running(WAITING) as target:
        timer = threading.Timer(0.25, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            entry.attach(target.pid, method="remote_exec")
        target.say()
        assert target.hear() == "went on"
        eventually(lambda: files_of(target.pid) == [])


def test_a_sleep_that_may_not_be_shortened_is_named_and_gets_its_time():
    script = """
        import ctypes, time
        libc = ctypes.CDLL(None)
        say('ready')
        began = time.monotonic()
        left = libc.sleep(6)
        say(left, time.monotonic() - began >= 6)
        hear()
    """
    with running(script) as target:
        symbol, sentence = refused(target.pid, method="pending_call")
        assert symbol == "ETIMEDOUT"
        assert sentence.startswith(f"Process {target.pid} did not let the agent in within 0.5 s: its main thread is")
        assert files_of(target.pid) == []
        assert target.hear() == "0 True"


@needs_remote_exec
@pytest.mark.parametrize("how", ["environment", "option"])
def test_a_process_that_forbids_it_is_refused_at_once(how):
    command = [*PLAIN, "-X", "disable-remote-debug"] if how == "option" else PLAIN
    env = {"PYTHON_DISABLE_REMOTE_DEBUG": "1"} if how == "environment" else {}
    with Target(BUSY, command=command, env=env) as target:
        target.hear()
        symbol, sentence = refused(target.pid)
        assert symbol == "EPERM"
        assert "was started with remote debugging disabled" in sentence
        assert files_of(target.pid) == []


def test_an_agent_that_does_not_start_says_why(monkeypatch):
    monkeypatch.setattr(bundle, "_SCRIPT", bundle._SCRIPT.replace('names["arrive"]', "1 / 0; "))
    with running(BUSY) as target:
        symbol, sentence = refused(target.pid, timeout=60)
        assert symbol == "ENOEXEC"
        assert sentence == f"The agent did not start in process {target.pid}: division by zero"
        assert files_of(target.pid) == []
        monkeypatch.undo()
        entry.attach(target.pid).close()  # and it can be tried again


def test_a_packed_program_lacks_what_it_does_not_use(monkeypatch):
    monkeypatch.setattr(bundle, "_SCRIPT", bundle._SCRIPT.replace('names["arrive"]', "import no_such_module; "))
    with running(BUSY) as target:
        symbol, sentence = refused(target.pid, timeout=60)
        assert symbol == "ENOEXEC"
        assert sentence.startswith(
            f"Process {target.pid} lacks a part of the standard library that the agent needs (No"
        )
        assert "PyInstaller: --hidden-import livepatch" in sentence
        assert files_of(target.pid) == []


def test_one_that_ends_meanwhile(method, monkeypatch):
    with running("say('ready'); hear()") as target:
        original = Injector.__init__

        def and_kill(*arguments, **options):
            target.kill()
            original(*arguments, **options)

        monkeypatch.setattr(Injector, "__init__", and_kill)
        symbol, sentence = refused(target.pid, timeout=60, method=method)
        assert symbol == "ESRCH"
        assert f"{target.pid} " in sentence
        assert files_of(target.pid) == []


@needs_remote_exec
def test_an_executable_of_its_own_does_it_if_ours_is_of_another_version(monkeypatch):
    monkeypatch.setattr(cpython, "VERSION", (3, 11))
    with running(BUSY) as target:
        entry.attach(target.pid).close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start a process of another user")
@pytest.mark.skipif(not everybody_can_read(Path(os.__file__)), reason="this Python's library is closed to other users")
def test_root_brings_it_into_the_process_of_another_user(method):
    script = "import os; os.setgid(65534); os.setuid(65534)\n" + BUSY
    with running(script) as target:
        with entry.attach(target.pid, method=method) as client:
            assert client.hello["uid"] == 65534
        found = os.stat("/tmp/livepatch-65534")
        assert (found.st_uid, found.st_mode & 0o777) == (65534, 0o700)


def test_a_directory_that_is_not_safe_is_not_used(monkeypatch, tmp_path):
    """The target's /tmp may be somebody else's trap."""
    trap = f"livepatch-trap-{os.getpid()}"
    os.symlink(tmp_path, f"/tmp/{trap}")
    monkeypatch.setattr("livepatch.agent.places.directory_of", lambda uid, base: f"{base}/{trap}")
    try:
        with running(BUSY) as target:
            symbol, sentence = refused(target.pid)
            assert symbol == "EACCES"
            assert sentence == f"/tmp/{trap} is a symbolic link and not a directory; remove it and try again."
        assert list(tmp_path.iterdir()) == []
    finally:
        os.unlink(f"/tmp/{trap}")


def test_many_attaches_at_once_are_one_agent(method):
    with running(BUSY) as target:
        with ThreadPoolExecutor(4) as pool:
            clients = list(pool.map(lambda _: entry.attach(target.pid, timeout=60, method=method), range(4)))
        assert {client.hello["pid"] for client in clients} == {target.pid}
        for client in clients:
            client.close()
        eventually(lambda: files_of(target.pid) == [f"{target.pid}.sock"])


def test_who_keeps_an_attach_waiting_costs_it_a_half_of_its_time_and_no_more(monkeypatch):
    """What is left is what the process itself gets: the two together last no longer than was said."""
    left = []
    bring = entry._bring
    monkeypatch.setattr(entry, "_bring", lambda *given: left.append(given[2]) or bring(*given[:2], 30))
    with running(BUSY) as target, open(f"/proc/{target.pid}/environ", "rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with entry.attach(target.pid, timeout=1) as client:
            assert client.hello["pid"] == target.pid
    assert len(left) == 1
    assert left[0] <= 0.5
