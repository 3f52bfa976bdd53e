"""What shells complete, and that nothing is touched for it."""

import io
import signal
import sys
from contextlib import redirect_stdout

import pytest
from tests.agent.targets import Target
from tests.cli.conftest import patiently
from tests.cli.shells import START, Shell

from livepatch.attach.client import Client, NotPrepared
from livepatch.cli import candidates
from livepatch.cli.app import run

PLAIN = [getattr(sys, "_base_executable", sys.executable)]


@pytest.fixture
def offers(monkeypatch):
    """What is offered behind a line, as (type, value, help)."""
    patiently(monkeypatch)

    def answered(line):
        monkeypatch.setenv("COMP_LINE", line)
        monkeypatch.setenv("_LIVEPATCH_COMPLETE", "bash_complete")
        with redirect_stdout(io.TextIOWrapper(raw := io.BytesIO(), write_through=True)), pytest.raises(SystemExit):
            run([])
        monkeypatch.delenv("_LIVEPATCH_COMPLETE")
        return [tuple(line.split("\t")) for line in raw.getvalue().decode().splitlines() if line]

    return answered


def values(offered):
    return [value for _, value, _ in offered]


@pytest.fixture(params=START)
def shell(request, tmp_path):
    for name in ("fix.livepatch", "fixture.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()
    with Shell(request.param, tmp_path) as opened:
        yield opened


@pytest.mark.slow
def test_in_a_real_shell(shell, lp, service, patch):
    assert lp("load", patch("corrected", "answer"), "--pid", service.pid).status == 0
    assert shell.completed("livepatch unin", "uninstall") == ["uninstall"]
    assert shell.completed("livepatch status --js", "--json") == ["status", "--json"]
    assert shell.completed("livepatch load fi", "fix.livepatch") == ["load", "fix.livepatch"]  # not the other file
    assert shell.completed("livepatch verify ./fi", "fix.livepatch") == ["verify", "./fix.livepatch"]
    assert shell.completed("livepatch load ./fi", "fix.livepatch") == ["load", "./fix.livepatch"]
    assert [word.rstrip("/") for word in shell.completed("livepatch load fol", "folder")] == ["load", "folder"]
    assert shell.completed(f"livepatch disable --pid {service.pid} ", "corrected") == [
        "disable",
        "--pid",
        str(service.pid),
        "corrected",
    ]
    assert shell.completed("livepatch load --on-stall=k", "keep")[-1] in ("--on-stall=keep", "keep")
    listed = shell.listed("livepatch status --pid ", str(service.pid))
    assert str(service.pid) in listed
    assert "import sys, threading" in listed  # of its command line


@pytest.mark.slow
def test_outside_of_livepatch_it_says_nothing(shell):
    """A line that makes no sense, and a command that is broken: nothing appears between the words."""
    assert shell.completed("livepatch nonsense --pid=x --wrong ", "--wrong") == ["nonsense", "--pid=x", "--wrong"]
    shell.run("printf '#!/bin/sh\\necho a b >&2; exit 3\\n' > bin/livepatch")
    assert shell.completed("livepatch lo", "lo") == ["lo"]


def test_processes_come_with_their_command_lines(offers, service):
    for line in ("livepatch load x --pid ", "livepatch status --tree=", f"livepatch attach {str(service.pid)[:2]}"):
        offered = {value: help_ for kind, value, help_ in offers(line) if kind == "plain"}
        assert "import sys" in offered[str(service.pid)], line
    assert str(service.pid) not in values(offers(f"livepatch status --pid {service.pid} --pid "))


def test_patches_are_those_that_the_command_can_be_about(offers, service, lp, patch, occupied):
    pid = service.pid
    assert offers(f"livepatch disable --pid {pid} ") == []
    lp("load", patch("first", "answer"), "--pid", pid)
    lp("load", patch("second", "slow"), "--pid", pid, "--timeout", 0, "--on-stall", "keep")

    def offered(command):
        return sorted(values(offers(f"livepatch {command} --pid {pid} ")))

    assert offered("disable") == ["first", "second"]
    assert offered("force") == ["second"]
    assert offered("unload") == offered("enable") == []
    assert ("plain", "first", f"enabled in {pid}") in offers(f"livepatch disable --pid {pid} f")
    assert "second" in values(offers("livepatch force "))  # in whatever process
    assert str(pid) in values(offers("livepatch disable first --pid "))
    assert str(pid) not in values(offers("livepatch disable third --pid "))
    lp("disable", "second", "--pid", pid)
    lp("disable", "first", "--pid", pid)
    assert offered("unload") == ["first", "second"]


def test_installed_patches(offers, lp, trees, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    old, new = trees("def f(): return 1\n", "def f(): return 2\n")
    lp("build", "--old", old, "--new", new, "-o", tmp_path / "kept.livepatch")
    assert lp("install", "--user", tmp_path / "kept.livepatch").status == 0
    assert "kept" in values(offers("livepatch uninstall ke"))
    (tmp_path / "data/livepatch/0000-broken.livepatch").write_bytes(b"no archive")
    assert values(offers("livepatch uninstall ")) == ["kept"]


def test_files_are_left_to_the_shell(offers):
    assert offers("livepatch info ") == [("suffix", ".livepatch", "")]
    assert values(offers("livepatch check ")) == [".livepatch", ".py"]
    assert offers("livepatch run ") == [("command", "", "")]
    assert offers("livepatch run -- env ")[0][0] == "file"


def test_no_process_is_touched(offers, service, monkeypatch):
    """One without an agent stays without; one that is stopped is passed over, and stays stopped."""
    monkeypatch.setattr(candidates, "_PATIENCE", 0.2)
    service.signal(signal.SIGSTOP)
    with Target("say('ready'); hear()", command=PLAIN) as bare:
        assert bare.hear() == "ready"
        for line in ("load x --pid ", "tasks --pid ", f"disable --pid {bare.pid} ", f"disable --pid {service.pid} "):
            offers(f"livepatch {line}")
        with pytest.raises(NotPrepared):
            Client(bare.pid)
    service.signal(signal.SIGCONT)


def test_nothing_is_carried_out(offers):
    """An option that does its work when it is read, such as --installed, must not do it now."""
    assert "--pid" in values(offers("livepatch list --installed --"))
    assert "--pid" in values(offers("livepatch load --help --p"))


def test_every_command_and_option_is_offered(offers):
    from livepatch.cli.app import COMMANDS

    assert values(offers("livepatch ")) == list(COMMANDS)
    assert "--on-stall" in values(offers("livepatch load --"))
    assert values(offers("livepatch completion ")) == ["bash", "zsh", "fish"]


@pytest.mark.parametrize(
    "line", ["", "livepatch 'open", 'livepatch load --pid "', "livepatch \\", "livepatch load \xff "]
)
def test_no_line_is_an_error(offers, line):
    offers(line)


def test_what_breaks_is_no_sentence(offers, monkeypatch, capsys):
    from livepatch.attach import processes

    def broken():
        raise RuntimeError

    monkeypatch.setattr(processes, "pythons", broken)
    assert offers("livepatch status --pid ") == []
    assert capsys.readouterr() == ("", "")
