"""Waiting for a transition, and the ways in which it can end."""

import os
import pty
import re
import signal
import subprocess
import sys

import pytest
from tests.agent.targets import PATIENCE, Target, eventually

START = "from livepatch.cli import main; main()"
IN_SLOW = re.compile(r"^livepatch:   thread worker: slow \(.+:\d+\)$", re.MULTILINE)


def state(lp, pid):
    (process,) = lp("list", "--pid", pid, "--json").json
    return {patch["name"]: (patch["enabled"], patch["transition"]) for patch in process["patches"]}


def test_a_stalled_load_goes_back(lp, occupied, patch):
    file = patch("fix", "slow")
    for _ in range(2):  # nothing of it stays, so it can be tried again
        done = lp("load", file, "--pid", occupied.pid, "--timeout", 0.1)
        assert done.status == 3
        assert (
            "Patching 'fix' did not complete within 0.1 s: 1 of 2 tasks are still in code that it changes." in done.err
        )
        assert IN_SLOW.search(done.err)
        assert done.err.endswith("livepatch: It was taken back: nothing of 'fix' is patched.\n")
        assert state(lp, occupied.pid) == {}
    occupied.say("leave")
    eventually(lambda: not has_worker(lp, occupied.pid))
    assert lp("load", file, "--pid", occupied.pid).status == 0


def test_a_stalled_load_is_kept(lp, occupied, patch):
    done = lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1, "--on-stall", "keep")
    assert done.status == 3
    assert IN_SLOW.search(done.err)
    assert f"`livepatch disable fix --pid {occupied.pid}` takes it back.\n" in done.err
    assert state(lp, occupied.pid) == {"fix": (True, True)}
    assert "In the way:\n" in lp("status", "--pid", occupied.pid).out
    # and is then taken back by hand
    assert lp("disable", "fix", "--pid", occupied.pid).status == 0
    assert state(lp, occupied.pid) == {"fix": (False, False)}


def test_of_several_processes_one_table_shows_where_each_is(lp, occupied, patch):
    program = "import livepatch; livepatch.start_agent(); print('ready', flush=True); input()"
    with Target(program) as bare, Target("say('ready'); hear()") as plain:
        assert (bare.hear(), plain.hear()) == ("ready", "ready")
        lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0, "--on-stall", "keep")
        several = [argument for target in (occupied, bare, plain) for argument in ("--pid", target.pid)]
        done = lp("status", *several)
        head, *rows = (line.split() for line in done.out[: done.out.index("\n\n")].splitlines())
        assert head == ["PID", "PATCH", "VERSION", "STATE", "LEFT", "FOR"]
        assert rows[0][:7] == [str(occupied.pid), "fix", "1.2", "patching", "1", "of", "2"]
        assert re.fullmatch(r"\d+\.\d s", " ".join(rows[0][7:]))
        assert rows[1:] == [
            [str(bare.pid), "-", "-", "no", "patch", "-", "-"],
            [str(plain.pid), "-", "-", "no", "agent", "-", "-"],
        ]
        assert f"\n\nIn the way of process {occupied.pid}:\n" in done.out
        assert re.search(r"^thread +worker +.*goes when slow\(\) returns", done.out, re.MULTILINE)
        told = lp("status", "--json", *several).json
        assert [each["prepared"] for each in told] == [True, True, False]
        assert [len(each["blocking"]) for each in told] == [1, 0, 0]


def test_a_stalled_load_is_forced(lp, occupied, patch):
    done = lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1, "--on-stall", "force", "--yes")
    assert done.status == 3
    assert "livepatch: The remaining tasks were forced: 'fix' is enabled" in done.err
    assert "never be unloaded" not in done.err
    assert state(lp, occupied.pid) == {"fix": (True, False)}


def test_a_stalled_load_is_not_forced_without_being_asked(lp, occupied, patch):
    """Nobody is at a terminal, and nobody said so beforehand: then it is not even begun."""
    done = lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1, "--on-stall", "force")
    assert (done.status, done.out) == (1, "")
    assert done.err == "livepatch: Force gives up consistency; say --yes if that is meant.\n"
    assert "enabling" not in lp("dmesg", "--pid", occupied.pid).out


def test_a_stall_for_programs(lp, occupied, patch):
    done = lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.1, "--json")
    assert done.status == 3
    assert done.json["stalled"] == "reversed"
    assert (done.json["enabled"], done.json["transition"]) == (False, False)
    assert done.json["blocking"][0]["name"] == "worker"


def has_worker(lp, pid):
    (process,) = lp("tasks", "--pid", pid, "--json").json
    return "worker" in {task["name"] for task in process["tasks"]}


@pytest.fixture
def held_disable(lp, occupied, patch):
    """A patch whose disable stalls: the replacement of `answer` waits, and the service is inside of it."""
    pid = occupied.pid
    file = patch("fix", "slow")
    file.write_text(
        file.read_text().replace(
            "def slow(): return 'new'",
            "def slow():\n    import __main__ as m\n    m.inside.set()\n    m.leave.wait()\n",
        )
    )
    occupied.say("leave")
    eventually(lambda: not has_worker(lp, pid))
    assert lp("load", file, "--pid", pid).status == 0
    occupied.say("enter")
    assert occupied.hear() == "inside"
    return occupied


def test_a_stalled_disable_goes_back(lp, held_disable):
    done = lp("disable", "fix", "--pid", held_disable.pid, "--timeout", 0.1)
    assert done.status == 3
    assert "Unpatching 'fix' did not complete within 0.1 s" in done.err
    assert done.err.endswith("livepatch: It was taken back: 'fix' stays enabled.\n")
    assert state(lp, held_disable.pid) == {"fix": (True, False)}


def test_enable_reverses_a_running_disable(lp, held_disable):
    pid = ("--pid", held_disable.pid)
    assert lp("enable", "fix", *pid).status == 1
    assert lp("disable", "fix", *pid, "--timeout", 0.1, "--on-stall", "keep").status == 3
    assert lp("disable", "fix", *pid).status == 1
    assert lp("enable", "fix", *pid) == (0, f"'fix' is enabled in process {held_disable.pid}.\n", "")
    assert state(lp, held_disable.pid) == {"fix": (True, False)}


def test_a_forced_disable_cannot_be_unloaded(lp, held_disable):
    pid = ("--pid", held_disable.pid)
    done = lp("disable", "fix", *pid, "--timeout", 0.1, "--on-stall", "force", "--yes", "--unload")
    assert done.status == 3
    assert "'fix' can never be unloaded." in done.err
    done = lp("unload", "fix", *pid)
    assert done.status == 1
    assert "removed by force" in done.err


def test_force_must_be_meant(lp, occupied, patch):
    pid = ("--pid", occupied.pid)
    lp("load", patch("fix", "slow"), *pid, "--timeout", 0, "--on-stall", "keep")
    done = lp("force", "fix", *pid)
    assert done.status == 1
    assert "say --yes if that is meant" in done.err
    assert state(lp, occupied.pid) == {"fix": (True, True)}
    done = lp("force", "fix", "--yes", *pid)
    assert (done.status, done.out) == (0, f"'fix' is enabled in process {occupied.pid}, by force.\n")
    assert lp("force", "fix", "--yes", *pid).status == 1


def test_a_transition_that_completes_while_we_wait(lp, occupied, patch):
    import threading

    threading.Timer(0.3, occupied.say, ["leave"]).start()
    done = lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", PATIENCE)
    assert (done.status, done.err) == (0, "")
    assert done.out.endswith(f"'fix' is loaded into process {occupied.pid}: 1 function patched.\n")


def test_progress_is_said_in_lines_when_nobody_watches(lp, occupied, patch):
    done = lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 4)
    assert done.status == 3
    line = done.out.splitlines()[0]
    assert line.startswith("patching 'fix': 1 of 2 tasks left, waiting for thread worker in slow (")


def test_somebody_else_reverses_it(lp, occupied, patch):
    waiting = begin("load", patch("fix", "slow"), "--pid", occupied.pid)
    eventually(lambda: state(lp, occupied.pid) == {"fix": (True, True)})
    assert lp("disable", "fix", "--pid", occupied.pid).status == 0
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1
    assert err == "livepatch: Somebody else reversed it meanwhile: 'fix' is disabled.\n"


# -- on a terminal ---------------------------------------------------------------------------------------


def on_terminal(*arguments, answer=b""):
    """What a command draws on a terminal, and its exit status."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="150")
        os.execv(sys.executable, [sys.executable, "-c", START, *map(str, arguments)])
    drawn = b""
    try:
        while True:
            data = os.read(terminal, 65536)
            drawn += data
            if b"Do it?" in drawn and answer:
                os.write(terminal, answer)
                answer = b""
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    return re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", drawn).decode(), os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


pytestmark = pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")


def test_a_bar_shows_how_far_it_is(lp, occupied, patch):
    drawn, status = on_terminal("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 5)
    assert status == 3
    assert re.search(r"patching 'fix' .* 1/2 moved, 1 left +\d of 5 s", drawn)
    assert re.search(r"waiting for this task:\s+• thread worker in slow \(.+:\d+\)", drawn)
    assert "It was taken back: nothing of 'fix' is patched." in drawn


def test_a_table_is_drawn(lp, occupied, patch):
    drawn, status = on_terminal("tasks", "--pid", occupied.pid)
    assert status == 0
    assert re.search(r"thread +worker ", drawn)


@pytest.mark.parametrize(("answer", "status", "transition"), [(b"n\n", 130, True), (b"y\n", 0, False)])
def test_force_asks(lp, occupied, patch, answer, status, transition):
    lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0, "--on-stall", "keep")
    drawn, ended = on_terminal("force", "fix", "--pid", occupied.pid, answer=answer)
    assert "1 of 2 tasks are still in code that 'fix' changes:" in drawn
    assert "these tasks will run old and new code side by side. Do it?" in drawn
    assert ended == status
    assert state(lp, occupied.pid) == {"fix": (True, transition)}


@pytest.mark.parametrize(
    ("answer", "said", "state_after"),
    [
        (b"n\n", "It was taken back: nothing of 'fix' is patched.", {}),
        (b"y\n", "The remaining tasks were forced: 'fix' is enabled", {"fix": (True, False)}),
    ],
)
def test_force_on_a_stall_asks_when_it_comes_to_it(lp, occupied, patch, answer, said, state_after):
    """And who does not want it then gets everything back."""
    arguments = ("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.2, "--on-stall", "force")
    drawn, status = on_terminal(*arguments, answer=answer)
    assert "After force these tasks will run old and new code side by side. Do it?" in drawn
    assert said in drawn
    assert status == 3
    assert state(lp, occupied.pid) == state_after


# -- interrupted -----------------------------------------------------------------------------------------


def begin(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", START, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted_it_goes_back(lp, occupied, patch, number):
    waiting = begin("load", patch("fix", "slow"), "--pid", occupied.pid)
    eventually(lambda: state(lp, occupied.pid) == {"fix": (True, True)})
    waiting.send_signal(number)
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    assert "Interrupted; taking the patch back" in err
    assert err.endswith("It was taken back: nothing of 'fix' is patched.\n")
    assert "Traceback" not in err
    assert state(lp, occupied.pid) == {}


def test_a_terminal_that_is_closed_takes_it_back(lp, occupied, patch):
    """Although nothing can be said any more: every word of it is an input/output error then."""
    file = patch("fix", "slow")
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS="150")
        os.execv(sys.executable, [sys.executable, "-c", START, "load", str(file), "--pid", str(occupied.pid)])
    drawn = b""
    while b"waiting for this task" not in drawn:
        drawn += os.read(terminal, 65536)
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 130
    assert state(lp, occupied.pid) == {}


def test_interrupted_twice_it_leaves_at_once(lp, occupied, patch):
    """The agent does not answer, so the way back takes long."""
    waiting = begin("load", patch("fix", "slow"), "--pid", occupied.pid)
    eventually(lambda: state(lp, occupied.pid) == {"fix": (True, True)})
    occupied.signal(signal.SIGSTOP)
    waiting.send_signal(signal.SIGINT)
    assert "Interrupted; taking the patch back" in waiting.stderr.readline()
    waiting.send_signal(signal.SIGINT)
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    assert (
        err == f"livepatch: Left as it is, perhaps in transition; `livepatch status --pid {occupied.pid}` shows it.\n"
    )
    occupied.signal(signal.SIGCONT)
    # The second one may have come after it was told to go back.
    assert state(lp, occupied.pid) in ({"fix": (True, True)}, {"fix": (False, True)}, {"fix": (False, False)})


def test_interrupted_before_anything_began(lp, service, tmp_path):
    """The patch file takes its time."""
    (tmp_path / "fix.py").write_text("import __main__\n__main__.say('loading')\n__main__.leave.wait()\n")
    waiting = begin("load", tmp_path / "fix.py", "--pid", service.pid)
    assert service.hear() == "loading"
    waiting.send_signal(signal.SIGINT)
    assert "Interrupted" in waiting.stderr.readline()
    service.say("leave")
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    assert err == "livepatch: Nothing had begun yet; nothing was changed.\n"
    assert state(lp, service.pid) == {}


def test_a_target_that_ends_while_we_wait(lp, occupied, patch):
    waiting = begin("load", patch("fix", "slow"), "--pid", occupied.pid)
    eventually(lambda: state(lp, occupied.pid) == {"fix": (True, True)})
    occupied.kill()
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 4
    assert err == f"livepatch: Process {occupied.pid} ended during 'status'.\n"
