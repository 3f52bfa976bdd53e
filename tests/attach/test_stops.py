"""Who is stopped is told from who is slow, at once and in the middle of a question. No test measures time: the naive
client waits for as long as it may, which is longer than any test.
"""

import contextlib
import os
import signal
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.agent.targets import Target, eventually

from livepatch.attach import client as clients
from livepatch.attach import processes, stops, way
from livepatch.attach.client import Client
from livepatch.attach.processes import status
from livepatch.cli.app import run
from livepatch.core.model import LivepatchError

pytestmark = pytest.mark.once

AGENT = "import livepatch as lp; lp.start_agent(); say('ready'); hear()"
#: Longer than a test may take.
FOREVER = 100_000.0

TRACER = """
    import ctypes
    ptrace = ctypes.CDLL(None).ptrace
    ptrace.argtypes = [ctypes.c_long] * 4
    for thread in map(int, sys.argv[1:]):
        assert ptrace(0x4206, thread, 0, 0) == 0  # PTRACE_SEIZE
        assert ptrace(0x4207, thread, 0, 0) == 0  # PTRACE_INTERRUPT
    say("tracing")
    hear()
"""


@pytest.fixture
def target():
    with Target(AGENT) as running:
        assert running.hear() == "ready"
        yield running


def stop(target):
    target.signal(signal.SIGSTOP)


def go_on(target):
    target.signal(signal.SIGCONT)
    eventually(lambda: status(target.pid)["State"].startswith("S"))


def sentence_of(pid):
    return f"Process {pid} is stopped and does not answer; `kill -CONT {pid}` lets it go on."


def test_it_is_said_before_anything_is_asked(target):
    stop(target)
    with pytest.raises(LivepatchError) as error:
        Client(target.pid, timeout=FOREVER)
    assert (error.value.symbol, str(error.value)) == ("ETIMEDOUT", sentence_of(target.pid))
    go_on(target)
    with Client(target.pid) as client:
        assert client.call("list") == []


@pytest.mark.parametrize("params", [{}, {"padding": "x" * 2**22}])
def test_it_is_said_in_the_middle(target, params):
    """Also if what is asked does not fit into the socket."""
    with Client(target.pid) as client:
        stop(target)
        with pytest.raises(LivepatchError) as error:
            client.call("list", timeout=FOREVER, **params)
    later = f"`livepatch status --pid {target.pid}` tells later what became of 'list'."
    assert (error.value.symbol, str(error.value)) == ("ETIMEDOUT", f"{sentence_of(target.pid)} {later}")
    go_on(target)
    with Client(target.pid) as client:
        assert client.call("list") == []


@pytest.mark.parametrize("command", ["list", "status", "tasks", "dmesg", "disable fix", "unload fix", "load FILE"])
def test_every_command_says_so(target, command, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(clients.Client.call, "__kwdefaults__", {"timeout": FOREVER})
    monkeypatch.setattr(clients.Client.__init__, "__kwdefaults__", {"timeout": FOREVER})
    file = tmp_path / "fix.py"
    file.write_text("import livepatch as lp\n__livepatch__ = lp.Patch('', [])\n")
    stop(target)
    assert run([*command.replace("FILE", str(file)).split(), "--pid", str(target.pid)]) == 1
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", f"livepatch: {sentence_of(target.pid)}\n")
    go_on(target)
    with Client(target.pid) as client:
        assert client.call("list") == [], "what could not be told was not left in its socket"


def test_a_load_that_was_asked_for_is_not_said_to_be_refused(target, monkeypatch, capsys, tmp_path):
    """It stands in the socket, and is done when the process goes on."""
    file = tmp_path / "fix.py"
    file.write_text("import livepatch as lp\n__livepatch__ = lp.Patch('', [])\n")
    ask = clients.Client.ask

    def stopped_before(self, method, **options):
        if method == "load":
            stop(target)
        return ask(self, method, **options)

    monkeypatch.setattr(clients.Client, "ask", stopped_before)
    assert run(["load", str(file), "--pid", str(target.pid)]) == 3
    later = f"`livepatch status --pid {target.pid}` tells later what became of 'load'."
    assert capsys.readouterr() == ("", f"livepatch: {sentence_of(target.pid)} {later}\n")
    go_on(target)
    with Client(target.pid) as client:
        eventually(lambda: client.call("dmesg"))


def test_who_is_let_go_again_and_again_is_not_stopped(target, monkeypatch):
    """As by programs that limit a process's share of the processor: it is stopped at both looks."""

    def runs_for_a_moment(seconds):
        go_on(target)
        stop(target)

    stop(target)
    monkeypatch.setattr(stops, "time", SimpleNamespace(sleep=runs_for_a_moment))
    assert stops.sentence(target.pid) is None
    monkeypatch.undo()
    assert stops.sentence(target.pid) == sentence_of(target.pid)


def traced_by(*threads):
    tracer = Target(TRACER, arguments=tuple(map(str, threads)))
    assert tracer.hear() == "tracing"
    for thread in threads:
        eventually(lambda thread=thread: status(thread)["State"].startswith("t"))
    return tracer


def test_a_debugger_that_holds_all_threads(target):
    threads = [int(name) for name in os.listdir(f"/proc/{target.pid}/task")]
    assert len(threads) > 1
    with traced_by(*threads) as tracer, pytest.raises(LivepatchError) as error:
        Client(target.pid, timeout=FOREVER)
    who = f"process {tracer.pid} ("
    assert str(error.value).startswith(f"Process {target.pid} is stopped by {who}")
    assert str(error.value).endswith("), which traces it, and does not answer; let it go on there.")
    with Client(target.pid) as client:
        assert client.call("list") == []


def test_a_debugger_that_holds_the_main_thread_only(target):
    """The agent's thread answers: this is no stop."""
    with traced_by(target.pid), Client(target.pid) as client:
        assert client.call("list") == []


def test_who_has_ended_is_not_stopped(target):
    stop(target)
    target.kill()
    assert stops.sentence(target.pid) is None


#: What of the control groups there is here can be frozen: a folder, the file, and what is written there for each.
FREEZERS = {
    "version 1": ("/sys/fs/cgroup/freezer", "freezer.state", "FROZEN", "THAWED"),
    "version 2 beside it": ("/sys/fs/cgroup/unified", "cgroup.freeze", "1", "0"),
    "version 2": ("/sys/fs/cgroup", "cgroup.freeze", "1", "0"),
}


@contextlib.contextmanager
def frozen_as(version, pid):
    """As `docker pause` does it. Gives what lets it go on."""
    folder, file, freeze, thaw = FREEZERS[version]
    group, around = Path(folder, f"livepatch-test-{os.getpid()}"), Path(folder, "cgroup.procs")
    if not os.access(around, os.W_OK):
        pytest.skip("no such control groups here, or not for us")
    group.mkdir()
    try:
        (group / "cgroup.procs").write_text(str(pid))
        (group / file).write_text(freeze)
        eventually(lambda: stops.frozen(pid))
        try:
            yield lambda: (group / file).write_text(thaw)
        finally:
            (group / file).write_text(thaw)
            around.write_text(str(pid))
    finally:
        eventually(lambda: not (group / "cgroup.procs").read_text())
        group.rmdir()


@pytest.mark.parametrize("version", FREEZERS)
def test_a_frozen_container(target, version):
    """Refused at once, with an agent and without one, and nothing is done when it thaws."""
    assert not stops.frozen(target.pid)
    with Target("say('ready'); hear()") as unprepared:
        unprepared.hear()
        for pid in (target.pid, unprepared.pid):
            with frozen_as(version, pid) as thaw:
                if pid == target.pid:
                    with pytest.raises(LivepatchError, match=f"^Process {pid} is frozen with its container and"):
                        Client(pid, timeout=FOREVER)
                else:
                    with pytest.raises(way.NoWay, match=f"^Process {pid} is frozen with its container; let it go on"):
                        way.into(processes.require_python(pid))
                thaw()
                eventually(lambda pid=pid: not stops.frozen(pid))
    with Client(target.pid) as client:
        assert client.call("list") == []
