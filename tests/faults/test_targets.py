"""Something happens to the target at every step of a command: it ends, stops, forks, becomes another program, loses its
socket or its agent's thread. It is never half patched, and the next command tells the truth.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.targets import eventually
from tests.faults.kit import Service, is_told, is_whole, patches_of, settled

from livepatch.attach.client import Client, listens
from livepatch.attach.processes import examine

COMMANDS = {
    "load": ["load", "PATCH"],
    "disable": ["disable", "fix"],
}


def words(service, command, timeout):
    known = [str(service.patch) if word == "PATCH" else word for word in COMMANDS[command]]
    return [*known, "--pid", service.pid, "--timeout", timeout]


def begin(service, lp, command):
    """It is loaded if that is what is taken back."""
    if settled(service.pid) and command == "disable":
        return
    if settled(service.pid):
        assert lp("disable", "fix", "--pid", service.pid).status == 0
    if patches_of(service.pid):
        assert lp("unload", "fix", "--pid", service.pid).status == 0
    if command == "disable":
        assert lp("load", service.patch, "--pid", service.pid).status == 0


def each_step(service, lp, command, happens, after, timeout=30):
    """Let it happen at every step of a command; `after` looks at what it led to, and returns who is next."""
    begin(service, lp, command)
    count = lp(*words(service, command, timeout)).steps
    assert count >= 10
    for at in range(1, count + 1):
        begin(service, lp, command)
        pid = service.pid
        done = lp(*words(service, command, timeout), at=at, happens=lambda pid=pid: happens(pid))
        if done.steps < at:  # it was through sooner this time
            break
        service = after(service, done) or service
    is_whole(service, lp)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_the_socket_is_removed(service, lp, command):
    def after(service, done):
        looked = lp("list", "--pid", service.pid)
        assert "no agent is there" not in looked.out  # who cannot ask does not know
        if looked.status:  # neither has the load brought it back, nor the agent itself
            assert "its socket has been removed" in looked.err
            shown = lp("attach", service.pid)
            assert shown.status == 0, shown.err
        is_told(service, lp)

    each_step(service, lp, command, lambda pid: service.socket.unlink(), after)
    with Client(service.pid) as client:  # nobody's connection was lost over that
        assert not [line for line in client.call("dmesg") if "the agent failed" in line]


def test_a_socket_that_is_gone_comes_back_by_itself(service, lp, monkeypatch):
    """When its agent has anything to do, such as the rounds of a transition."""
    service.occupy()
    assert lp("load", service.held, "--pid", service.pid, "--timeout", 0, "--on-stall", "keep").status == 3
    service.socket.unlink()
    eventually(service.socket.exists)
    assert patches_of(service.pid) == {"fix": (True, True)}
    service.say("leave")
    is_whole(service, lp)


@pytest.mark.slow
def test_the_whole_directory_is_removed_and_somebody_else_listens_there(service, lp, tmp_path):
    assert lp("load", service.patch, "--pid", service.pid).status == 0
    commands = (["list"], ["status"], ["disable", "fix"], ["check", str(service.patch), "--no-attach"])
    there = False
    while not there:  # its agent makes its own anew when it has anything to do, as for the `ps` of another test
        with other_server(service.socket) as bound:
            other = service.socket.stat().st_ino
            looks = [lp(*command, "--pid", service.pid) for command in commands]
            listed = json.loads(lp("ps", "--json").out)
            there = bound and service.socket.stat().st_ino == other
            attached = lp("attach", service.pid)
    for looked in looks:
        assert looked.status == 1, looked
        assert "its socket has been removed" in looked.err
        assert looked.out == ""
    (entry,) = [entry for entry in listed if entry["pid"] == service.pid]
    assert (entry["agent"], entry["error"]["short"]) == ("no", "its socket is gone")
    assert attached.status == 0
    is_whole(service, lp)


@contextlib.contextmanager
def other_server(path):
    """Somebody who says things that are no answers, where the agent was."""
    path.unlink()
    code = """
import socket, sys
server = socket.socket(socket.AF_UNIX)
server.bind(sys.argv[1])
server.listen()
print(flush=True)
while True:
    client, _ = server.accept()
    try: client.sendall(b'{"jsonrpc": "2.0", "id": 1, "result": []}\\n' * 9)
    except OSError: pass  # one that only looked who listens
"""
    with subprocess.Popen([sys.executable, "-c", code, str(path)], stdout=subprocess.PIPE) as server:
        try:
            yield bool(server.stdout.readline())
        finally:
            server.kill()


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_killed(service, lp, command, tmp_path):
    """The command says that it has ended, and does not take that for anything else."""
    with contextlib.ExitStack() as stack:

        def after(service, done):
            service.process.wait(60)
            over = done.status == 0 and not done.err  # it had its answer by then
            assert over or (done.status == 4 and ("ended" in done.err or "no process" in done.err)), done
            assert lp("status", "--pid", service.pid).status == 4
            return stack.enter_context(Service(tmp_path))

        each_step(service, lp, command, lambda pid: os.kill(pid, signal.SIGKILL), after)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_it_becomes_another_program(service, lp, command, tmp_path):
    with contextlib.ExitStack() as stack:

        def happens(pid):
            before = Path(f"/proc/{pid}/cmdline").read_bytes()
            os.kill(pid, signal.SIGUSR2)
            eventually(lambda: Path(f"/proc/{pid}/cmdline").read_bytes() not in (before, b""))

        def after(service, done):
            assert done.status in (0, 1, 4), done
            shown = lp("status", "--pid", service.pid)
            assert "No patch is loaded" in shown.out, shown  # a load may have brought the agent in, and been refused
            service.kill()
            return stack.enter_context(Service(tmp_path))

        each_step(service, lp, command, happens, after)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_it_forks(service, lp, command):
    """The child is as whole as its parent, and ends its own transition."""

    def happens(pid):
        os.kill(pid, signal.SIGUSR1)

    def after(service, done):
        assert done.status == 0, done
        while not (said := service.hear()).startswith("forked "):
            pass
        child = int(said.split()[1])
        eventually(lambda: listens(examine(child)))
        settled(child)
        assert set(patches_of(child)) <= {"fix"}
        os.kill(child, signal.SIGKILL)
        is_told(service, lp)

    each_step(service, lp, command, happens, after)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_stopped(service, lp, command):
    """The command does not wait for ever, says that it is stopped, and what it asked is done or not done, but whole."""

    def after(service, done):
        assert done.status in (0, 1, 3), done
        os.kill(service.pid, signal.SIGCONT)
        is_told(service, lp)

    def happens(pid):
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: " (stopped)" in Path(f"/proc/{pid}/status").read_text())

    each_step(service, lp, command, happens, after, timeout=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("command", COMMANDS)
def test_its_agent_is_killed(service, lp, command):
    """Its thread, by a program that ends its threads: another one takes over."""

    def happens(pid):
        service.say("kill agent")

    def after(service, done):
        assert done.status in (0, 1), done
        service.hear_until("killed")
        is_told(service, lp)

    each_step(service, lp, command, happens, after)
