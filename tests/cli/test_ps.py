"""The list of the Python processes, and what the commands do with one that was not prepared."""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.agent.targets import Target, eventually
from tests.attach.test_processes import as_nobody

from livepatch.agent import PROTOCOL
from livepatch.attach import processes
from livepatch.attach.client import Client
from livepatch.cli import process as commands

PLAIN = [getattr(sys, "_base_executable", sys.executable)]

#: A process that speaks like an agent, up to a point.
PRETENDER = """
    import json, os, socket
    folder = f"/tmp/livepatch-{os.geteuid()}"
    os.makedirs(folder, 0o700, exist_ok=True)
    path = f"{folder}/{os.getpid()}.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    say("ready")
    def talk(client):
        try:
            with client, client.makefile("r") as lines:
                for line in lines:
                    asked = json.loads(line)
                    result = HELLO if asked["method"] == "hello" else LIST
                    reply = json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": result})
                    client.sendall(reply.encode() + b"\\n")
        except OSError: pass  # other tests ask it, too, and may not wait for the answer
    while True: threading.Thread(target=talk, args=listener.accept()[:1], daemon=True).start()
"""


@pytest.fixture
def plain():
    """A Python that was not prepared."""
    with Target("say('ready'); hear()", command=PLAIN) as target:
        target.hear()
        yield target


def listed(lp, pid):
    """What ps says of a process: to a program, and to a person (version, agent and patches)."""
    (found,) = [entry for entry in lp("ps", "--json").json if entry["pid"] == pid]
    lines = lp("ps").out.splitlines()
    assert lines[0].split() == ["PID", "PYTHON", "AGENT", "PATCHES", "COMMAND"]
    (cells,) = [cells for cells in (re.split("  +", line, maxsplit=4) for line in lines) if cells[0] == str(pid)]
    return found, cells[1:4]


def test_a_prepared_one(lp, service, patch):
    lp("load", patch("fix", "answer"), "--pid", service.pid)
    found, cells = listed(lp, service.pid)
    assert (found["agent"], found["ways"], found["uid"]) == ("yes", [], os.geteuid())
    assert [(each["name"], each["enabled"]) for each in found["patches"]] == [("fix", True)]
    assert found["patches"] == lp("list", "--pid", service.pid, "--json").json[0]["patches"]
    assert found["python"] == sys.version.split()[0]
    assert cells == [sys.version.split()[0], "yes", "fix"]


def test_one_in_transition_and_one_that_is_disabled(lp, occupied, patch):
    pid = ("--pid", occupied.pid)
    lp("load", patch("done", "answer"), *pid)
    lp("disable", "done", *pid)
    lp("load", patch("fix", "slow"), "--timeout", 0, "--on-stall", "keep", *pid)
    found, cells = listed(lp, occupied.pid)
    states = {each["name"]: (each["enabled"], each["transition"]) for each in found["patches"]}
    assert states == {"done": (False, False), "fix": (True, True)}
    assert re.fullmatch(r"done disabled, fix patching \(\d+/\d+\)", cells[2])


def test_one_that_was_not_prepared_is_not_touched(lp, plain):
    eventually(lambda: "running" not in Path(f"/proc/{plain.pid}/syscall").read_text())  # it sits in `hear`
    before = Path(f"/proc/{plain.pid}/status").read_text()
    found, cells = listed(lp, plain.pid)
    assert found["agent"] == "attachable"
    assert found["ways"]
    assert found["patches"] == []
    assert "error" not in found
    assert cells == [".".join(sys.version.split(".")[:2]), "attachable", "-"]
    switches = "voluntary_ctxt_switches"  # it has not run
    after = Path(f"/proc/{plain.pid}/status").read_text()
    assert after[after.index(switches) :] == before[before.index(switches) :]


def test_one_that_cannot_be_reached_says_why(lp, plain, tmp_path):
    old = tmp_path / "python3.9"
    shutil.copy(shutil.which("sleep"), old)
    plain.signal(signal.SIGSTOP)
    with subprocess.Popen([old, "1000"]) as sleeper:
        try:
            eventually(lambda: Path(f"/proc/{sleeper.pid}/cmdline").read_bytes().startswith(bytes(old)))
            found, cells = listed(lp, sleeper.pid)
            assert found["python"] == "3.9"
            assert found["agent"] == "no"
            assert found["error"]["short"] == "needs 3.11"
            assert found["error"]["sentence"].startswith(
                f"Process {sleeper.pid} runs Python 3.9, and livepatch needs 3.1"
            )
            assert cells == ["3.9", "no: needs 3.11", "-"]
            found, cells = listed(lp, plain.pid)
            assert cells[1] == "no: stopped"
            assert found["error"]["sentence"] == lp("attach", plain.pid, "--json").json["error"]["sentence"]
            assert lp("ps").status == 0
        finally:
            sleeper.kill()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_another_users_process_is_listed(service):
    def look():
        entries = map(commands._looked_at, processes.pythons())
        return next(
            (each["python"], each["agent"], each["error"]["short"]) for each in entries if each["pid"] == service.pid
        )

    version = sys.executable.rpartition("python")[2] or "?"
    assert as_nobody(look) == str((version, "no", "user 0"))


def test_agents_that_do_not_answer_are_waited_for_all_at_once(lp, monkeypatch):
    monkeypatch.setattr(commands, "_PATIENCE", 3.0)  # far more than all the rest takes
    number = 10
    prepared = [Target("import livepatch as lp; lp.start_agent(); say('ready'); hear()") for _ in range(number)]
    try:
        for target in prepared:
            target.hear()
            target.signal(signal.SIGSTOP)
        begun = time.monotonic()
        entries = {entry["pid"]: entry for entry in lp("ps", "--json").json}
        took = time.monotonic() - begun
        for target in prepared:
            assert entries[target.pid]["agent"] == "no answer"
            assert entries[target.pid]["error"]["symbol"] == "ETIMEDOUT"
        assert took < number * 3.0
        assert listed(lp, target.pid)[1][1:] == ["no answer", "-"]
    finally:
        for target in prepared:
            target.kill()


def test_one_that_ends_meanwhile_is_left_out(lp, service, plain, monkeypatch):
    """Whether it had an agent or not."""
    original = processes.pythons

    def then_killed():
        found = list(original())
        for target in (service, plain):
            assert target.pid in [process.pid for process in found]
            target.kill()
        return iter(found)

    monkeypatch.setattr(processes, "pythons", then_killed)
    done = lp("ps", "--json")
    assert done.status == 0
    assert not {service.pid, plain.pid} & {entry["pid"] for entry in done.json}


@pytest.mark.parametrize(
    ("hello", "patches"),
    [
        ([1], []),
        ({"protocol": PROTOCOL}, []),
        ({"protocol": PROTOCOL, "version": "1", "python": "3.11.1", "started": 1.0}, {"a": 1}),
        ({"protocol": PROTOCOL, "version": "1", "python": "3.11.1", "started": 1.0}, [{"name": 1, "transition": True}]),
        ({"protocol": PROTOCOL, "version": "1", "python": "3.11.1", "started": 1.0}, 7),
    ],
)
def test_one_that_answers_nonsense_spoils_nothing(lp, hello, patches):
    with Target(PRETENDER.replace("HELLO", repr(hello)).replace("LIST", repr(patches)), command=PLAIN) as liar:
        liar.hear()
        found, cells = listed(lp, liar.pid)
        assert (found["agent"], found["patches"]) == ("no", [])
        assert found["error"]["symbol"] == "EPROTO"
        assert cells[1:] == ["no: not an agent of this livepatch", "-"]
    with contextlib.suppress(FileNotFoundError):  # an agent of others that was just started has done so
        os.unlink(f"/tmp/livepatch-{os.geteuid()}/{liar.pid}.sock")


# -- commands, and one that was not prepared ---------------------------------------------------------------


def test_to_look_for_patches_brings_no_agent_in(lp, plain):
    pid = ("--pid", plain.pid)
    python = ".".join(sys.version.split(".")[:2])
    for command, key in (("list", "patches"), ("status", "patches"), ("dmesg", "lines")):
        done = lp(command, *pid)
        assert (done.status, done.err) == (0, "")
        headline, said = done.out.splitlines()
        assert headline.startswith(f"Process {plain.pid}, Python {python}: ")
        assert said == "No patch is loaded, and no agent is there."
        (found,) = lp(command, *pid, "--json").json
        assert (found["pid"], found["prepared"], found[key]) == (plain.pid, False, [])
    found, _ = listed(lp, plain.pid)
    assert found["agent"] == "attachable"


def test_no_attach(lp, plain, service, patch):
    for command in (["tasks"], ["check", patch("fix", "answer")], ["load", patch("fix", "answer")]):
        done = lp(*command, "--pid", plain.pid, "--no-attach")
        assert done.status == 1
        python = ".".join(sys.version.split(".")[:2])
        assert done.err == (
            f"livepatch: Process {plain.pid} (Python {python}) has no livepatch agent and so no patches;"
            f" `livepatch attach {plain.pid}` brings the agent in.\n"
        )
    assert listed(lp, plain.pid)[0]["agent"] == "attachable"
    done = lp("check", patch("fix", "answer"), "--pid", service.pid, "--no-attach", "--watch", 0)
    assert done.status == 0


def test_a_method_is_handed_on(lp, service, plain, monkeypatch):
    from livepatch.attach import entry

    asked = []

    def attach(pid, **options):
        asked.append(options)
        return Client(service.pid)

    monkeypatch.setattr(entry, "attach", attach)
    lp("attach", plain.pid, "--method", "pending_call", "--timeout", 7)
    lp("tasks", "--pid", plain.pid, "--method", "remote_exec")
    lp("tasks", "--pid", plain.pid)
    assert asked == [{"method": "pending_call", "timeout": 7.0}, {"method": "remote_exec"}, {"method": "auto"}]
    assert lp("tasks", "--pid", plain.pid, "--method", "gdb").status == 2
