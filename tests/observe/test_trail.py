"""What the record says of a command: before it changes anything, and at its end, or that it had no end."""

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE, Target, eventually
from tests.observe.conftest import records
from tests.trust.kit import Machine

from livepatch.archive import installed, policy

START = "from livepatch.cli import main; main()"


def start_ticks(pid):
    with open(f"/proc/{pid}/stat", "rb") as stat:
        return int(stat.read().rpartition(b")")[2].split()[19])


def test_a_load_and_a_disable(lp, service, patch, record):
    file = patch("fix", "answer")
    assert lp("load", file, "--pid", service.pid).status == 0
    assert lp("disable", "fix", "--pid", service.pid, "--unload").status == 0
    found = records(record)
    said = [(one["phase"], one["operation"]) for one in found]
    assert said == [
        ("intent", "load"),
        ("outcome", "load"),
        ("intent", "disable"),
        ("intent", "unload"),
        ("outcome", "disable"),
    ]
    begun, ended, *_, disabled = found
    assert begun["patch"]["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert begun["patch"]["signer"] is None
    (target,) = begun["targets"]
    assert (target["pid"], target["start_ticks"]) == (service.pid, start_ticks(service.pid))
    assert target["executable"] == os.path.realpath(f"/proc/{service.pid}/exe")
    assert begun["who"]["uid"] == os.getuid()
    assert begun["host"] == os.uname().nodename
    assert begun["boot"] == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert ended["id"] == begun["id"] != disabled["id"]
    assert (ended["targets"][0]["outcome"], ended["targets"][0]["state"]["enabled"]) == ("done", True)
    assert ended["patch"]["name"] == disabled["patch"]["name"] == "fix"
    assert disabled["targets"][0]["state"]["enabled"] is False
    assert lp("audit", "--verify").status == 0


def test_an_unload_is_told(lp, service, patch, record):
    assert lp("load", patch("fix", "answer"), "--pid", service.pid).status == 0
    assert lp("unload", "fix", "--pid", service.pid).status == 1
    (target,) = records(record)[-1]["targets"]
    assert target["outcome"] == "left"
    assert lp("disable", "fix", "--pid", service.pid).status == 0
    assert lp("unload", "fix", "--pid", service.pid).status == 0
    assert [(one["phase"], one["operation"]) for one in records(record)[-2:]] == [
        ("intent", "unload"),
        ("outcome", "unload"),
    ]
    (target,) = records(record)[-1]["targets"]
    assert target["outcome"] == "done"


def test_an_archive_is_told_by_its_name_and_version(lp, service, trees, tmp_path, record):
    old, new = trees("def f():\n    return 1\n", "def f():\n    return 2\n", name="absent")
    made = tmp_path / "fix.livepatch"
    assert lp("build", "--old", old, "--new", new, "-o", made, "--name", "absent-fix").status == 0
    lp("load", made, "--pid", service.pid)
    assert records(record)[0]["patch"]["name"] == "absent-fix"
    assert records(record)[0]["patch"]["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()


def test_a_stall_tells_that_it_was_taken_back(lp, occupied, patch, record):
    assert lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1).status == 3
    found = records(record)
    assert [(one["phase"], one["operation"]) for one in found] == [
        ("intent", "load"),
        ("intent", "reverse"),
        ("outcome", "load"),
    ]
    assert found[-1]["targets"][0]["outcome"] == "reversed"


def test_force_is_told(lp, occupied, patch, record):
    lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1, "--on-stall", "force", "--yes")
    assert [one["operation"] for one in records(record)] == ["load", "force", "load"]


def test_a_refusal_is_told(lp, service, patch, record):
    assert lp("load", patch("fix", "answer", "nothing_of_that_name"), "--pid", service.pid).status == 1
    _, outcome = records(record)  # of one process, loading is the check
    assert outcome["phase"] == "outcome"
    assert "nothing_of_that_name" in outcome["error"]
    assert outcome["targets"][0]["outcome"] == "refused"
    assert "nothing_of_that_name" in lp("audit").out
    assert lp("disable", "other", "--pid", service.pid).status == 1


def test_a_killed_command_leaves_its_intent(lp, occupied, patch, record):
    command = [sys.executable, "-c", START, "load", str(patch("fix", "slow")), "--pid", str(occupied.pid)]
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        eventually(lambda: "starting patching" in lp("dmesg", "--pid", occupied.pid).out)
        assert [one["phase"] for one in records(record)] == ["intent"]
    finally:
        child.kill()
        child.wait(PATIENCE)
    assert [one["phase"] for one in records(record)] == ["intent"]
    assert "none: it is still running, or was killed" in lp("audit").out
    assert lp("disable", "fix", "--pid", occupied.pid).status == 0
    assert lp("audit", "--verify").status == 0


def test_the_intent_is_on_the_disk_before_the_process_is_asked(lp, service, patch, record):
    """A stopped process has seen nothing yet."""
    command = [sys.executable, "-c", START, "load", str(patch("fix", "answer")), "--pid", str(service.pid)]
    service.say("ask")
    assert service.hear() == "old"
    # It is stopped by the very write of the record: what comes after that has not happened.
    hook = f"""
import os, pathlib, signal
from livepatch.observe import audit
append = audit.append
def stopping(*arguments):
    append(*arguments)
    os.kill({service.pid}, signal.SIGSTOP)
    while not all("(stopped)" in (task / "status").read_text() for task in TASKS.iterdir()): pass
TASKS = pathlib.Path("/proc/{service.pid}/task")
audit.append = stopping
"""
    child = subprocess.Popen(
        [sys.executable, "-c", hook + START, *command[3:]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        eventually(lambda: record.exists() and len(records(record)) == 1)
        assert records(record)[0]["phase"] == "intent"
    finally:
        child.kill()
        child.wait(PATIENCE)
        service.signal(signal.SIGCONT)


# -- when it cannot be written -------------------------------------------------------------------------------------


@pytest.fixture
def unwritable(tmp_path, monkeypatch):
    """A place that nobody, root included, can write to."""
    monkeypatch.setenv("LIVEPATCH_AUDIT", str(tmp_path / "missing" / "audit.jsonl"))


def test_a_record_that_cannot_be_written_is_a_warning(lp, service, ask, patch, unwritable):
    done = lp("load", patch("fix", "answer"), "--pid", service.pid)
    assert done.status == 0
    assert "livepatch: This is not in the audit record, which cannot be written: " in done.err
    assert ask() == "new"


def test_strict_mode_refuses_then_and_touches_nothing(lp, service, ask, patch, unwritable, tmp_path, monkeypatch):
    assert lp("load", patch("fix", "answer"), "--pid", service.pid).status == 0
    machine = Machine(tmp_path)  # the service itself is not strict, or it would have refused the patch
    monkeypatch.setattr(policy, "SYSTEM", str(machine.etc))
    (machine.etc / policy.CONFIG).write_text("strict = true\n")
    before = lp("dmesg", "--pid", service.pid).out
    done = lp("disable", "fix", "--pid", service.pid)
    assert done.status == 1
    assert done.err.count("\n") == 1
    assert "Strict mode wants an audit record" in done.err
    assert lp("dmesg", "--pid", service.pid).out == before
    assert ask() == "new"
    monkeypatch.setenv("LIVEPATCH_AUDIT", "none")  # strict mode does not take that for an answer
    assert lp("disable", "fix", "--pid", service.pid).status == 1
    monkeypatch.setenv("LIVEPATCH_AUDIT", str(tmp_path / "elsewhere"))
    assert lp("disable", "fix", "--pid", service.pid).status == 0


def test_nothing_is_written_where_that_is_said(lp, service, patch, monkeypatch):
    monkeypatch.setenv("LIVEPATCH_AUDIT", "none")
    done = lp("load", patch("fix", "answer"), "--pid", service.pid)
    assert (done.status, done.err) == (0, "")
    assert lp("audit").status == 1


# -- what else is written --------------------------------------------------------------------------------------------


def test_installing_and_uninstalling(lp, trees, tmp_path, record, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setattr(installed, "SYSTEM", str(tmp_path / "system"))
    old, new = trees("def f():\n    return 1\n", "def f():\n    return 2\n", name="shop")
    made = tmp_path / "fix.livepatch"
    assert lp("build", "--old", old, "--new", new, "-o", made, "--name", "fix").status == 0
    assert lp("install", "--user", made).status == 0
    assert lp("uninstall", "--user", "fix").status == 0
    found = records(record)
    assert [(one["phase"], one["operation"]) for one in found] == [
        ("intent", "install"),
        ("outcome", "install"),
        ("intent", "uninstall"),
        ("outcome", "uninstall"),
    ]
    assert found[0]["patch"]["sha256"] == hashlib.sha256(made.read_bytes()).hexdigest()
    monkeypatch.setenv("LIVEPATCH_AUDIT", str(tmp_path / "missing" / "audit.jsonl"))
    done = lp("install", "--user", made)
    assert (done.status, "This is not in the audit record" in done.err) == (0, True)


def test_bringing_the_agent_in_is_recorded(lp, record):
    with Target("say('ready')\nhear()") as plain:
        assert plain.hear() == "ready"
        child = plain.process  # it waits in a read: the attach gets it out of there
        done = lp("attach", plain.pid)
        assert child.poll() is None
    found = records(record)
    assert [(one["phase"], one["operation"]) for one in found] == [("intent", "attach"), ("outcome", "attach")]
    assert found[0]["targets"][0]["pid"] == plain.pid
    assert ("error" in found[1]) == (done.status != 0)


def test_what_is_shown_steers_no_terminal(lp, record):
    line = {"phase": "intent", "id": "1", "operation": "load\x1b[2J", "patch": {"name": "a\x9bb"}, "prev": "0" * 64}
    record.write_text(json.dumps(line) + "\n")
    record.chmod(0o600)
    out = lp("audit").out
    assert "\x1b" not in out
    assert "\x9b" not in out
    assert "load\\x1b[2J" in out


@pytest.mark.parametrize("content", ["[]", "null", '{"prev": 1}', '{"prev": "0", "targets": [1], "who": 7}', "\x00"])
def test_a_record_of_another_form_is_told_and_not_believed(lp, record, content):
    record.write_text(content + "\n")
    assert lp("audit").status == 0
    assert lp("audit", "--verify").status == 1
