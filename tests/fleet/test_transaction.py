"""Several processes as one: all of them, or none, and every one is told of."""

import re
import signal
import subprocess
import sys
import threading

import pytest
from tests.agent.targets import PATIENCE, Target, eventually
from tests.fleet.conftest import answers, occupy, pids, states

pytestmark = pytest.mark.once

START = "from livepatch.cli import main; main()"


def begin(*arguments):
    return subprocess.Popen(
        [sys.executable, "-c", START, *map(str, arguments)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def outcomes(done):
    return [process["outcome"] for process in done.json["processes"]]


def test_in_and_out_of_all(lp, services, patch):
    targets = services(3)
    done = lp("load", patch("fix", "answer"), *pids(targets))
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith("'fix' is loaded into 3 processes: 1 function patched.\nPID ")
    assert re.search(rf"^{targets[1].pid} +enabled +done ", done.out, re.MULTILINE)
    assert answers(targets) == ["new"] * 3
    done = lp("disable", "fix", "--unload", *pids(targets), "--json")
    assert (done.status, done.err) == (0, "")
    assert done.json["unloaded"] is True
    assert [process["pid"] for process in done.json["processes"]] == [target.pid for target in targets]
    assert outcomes(done) == ["done"] * 3
    assert answers(targets) == ["old"] * 3
    assert states(lp, targets) == [{}] * 3


def test_one_that_refuses_keeps_the_others_from_being_touched(lp, services, patch):
    """The last one of them; who asks and loads one after the other has touched two by then."""
    targets = services(3)
    assert lp("load", patch("fix", "answer"), "--pid", targets[2].pid).status == 0
    file = patch("fix", "answer", "slow")
    done = lp("load", file, *pids(targets))
    assert (done.status, done.out) == (1, "")
    assert f"livepatch: process {targets[2].pid}: A patch from a file 'fix.py' is loaded already" in done.err
    assert done.err.endswith("livepatch: 1 of 3 processes refused, so nothing was changed in any of them.\n")
    for target in targets[:2]:
        assert "enabling" not in lp("dmesg", "--pid", target.pid).out
    done = lp("load", file, *pids(targets), "--json")
    assert outcomes(done) == ["untouched", "untouched", "refused"]
    assert done.json["error"]["symbol"] == "EEXIST"


def test_one_that_is_not_there(lp, services, patch):
    targets = services(2)
    done = lp("load", patch("fix", "answer"), *pids(targets), "--pid", 2**22 + 1)
    assert done.status == 4
    assert states(lp, targets) == [{}] * 2


def test_one_that_is_stopped_refuses_at_once(lp, services, patch):
    """It is asked before any is touched, and what it was asked does no harm when it goes on."""
    targets = services(3)
    targets[1].signal(signal.SIGSTOP)
    done = lp("load", patch("fix", "answer"), *pids(targets))
    assert done.status == 1
    pid = targets[1].pid
    assert f"process {pid}: Process {pid} is stopped and does not answer; `kill -CONT {pid}` lets it go on." in done.err
    targets[1].signal(signal.SIGCONT)
    assert states(lp, targets) == [{}] * 3


@pytest.fixture
def picky(tmp_path):
    """A patch that fits everywhere, and whose callback then refuses where the program says so."""
    path = tmp_path / "picky.py"
    path.write_text(
        "import livepatch as lp\n"
        "def answer(): return 'new'\n"
        "def pre_patch(obj):\n"
        "    import __main__ as m\n"
        "    return -16 if m.leave.is_set() else 0\n"
        "__livepatch__ = lp.Patch('', [lp.Object(None, [lp.Func('answer', answer)],"
        " callbacks=lp.Callbacks(pre_patch=pre_patch))])\n"
    )
    return path


def test_one_that_refuses_after_all_takes_the_others_back(lp, services, picky):
    targets = services(3)
    targets[1].say("leave")
    done = lp("load", picky, *pids(targets))
    assert done.status == 1
    assert re.search(
        rf"^livepatch: process {targets[1].pid}: The pre-patch callback .* refused", done.err, re.MULTILINE
    )
    assert "1 of 3 processes refused, so all of them go back." in done.err
    assert done.err.endswith("It was taken back everywhere: nothing of 'picky' is patched.\n")
    assert answers(targets) == ["old"] * 3
    assert states(lp, targets) == [{}] * 3
    assert "'picky': unpatching complete" in lp("dmesg", "--pid", targets[0].pid).out
    assert outcomes(lp("load", picky, *pids(targets), "--json")) == ["reversed", "refused", "reversed"]


def test_one_that_stalls_takes_the_others_back(lp, services, patch):
    targets = services(3)
    occupy(targets[1])
    file = patch("fix", "answer", "slow")
    done = lp("load", file, *pids(targets), "--timeout", 0.3)
    assert done.status == 3
    assert "Patching 'fix' did not complete within 0.3 s in 1 of 3 processes:\n" in done.err
    assert f"livepatch: process {targets[1].pid}: 1 of 2 tasks are still in code that it changes\n" in done.err
    assert "livepatch:   thread worker: slow (" in done.err
    assert done.err.endswith("It was taken back everywhere: nothing of 'fix' is patched.\n")
    assert answers(targets) == ["old"] * 3
    assert states(lp, targets) == [{}] * 3
    targets[1].say("leave")
    eventually(lambda: lp("load", file, *pids(targets), "--timeout", 0.3).status == 0)
    assert answers(targets) == ["new"] * 3


def test_a_stall_is_kept(lp, services, patch):
    targets = services(2)
    occupy(targets[0])
    file = patch("fix", "answer", "slow")
    done = lp("load", file, *pids(targets), "--timeout", 0.2, "--on-stall", "keep", "--json")
    assert done.status == 3
    assert done.json["stalled"] == "kept"
    assert outcomes(done) == ["left", "done"]
    assert done.json["processes"][0]["blocking"][0]["name"] == "worker"
    assert states(lp, targets) == [{"fix": (True, True)}, {"fix": (True, False)}]
    told = re.search("`livepatch (disable fix .*)` takes it back", done.err)[1]
    assert lp(*told.split()).status == 0  # reversed in the one, disabled in the other
    assert states(lp, targets) == [{"fix": (False, False)}] * 2
    assert lp("unload", "fix", *pids(targets)).out == "'fix' is unloaded from 2 processes.\n"


def test_force_is_for_those_that_stall(lp, services, patch):
    targets = services(2)
    occupy(targets[0])
    arguments = ("load", patch("fix", "answer", "slow"), *pids(targets), "--timeout", 0.2, "--on-stall", "force")
    assert lp(*arguments).status == 1
    assert states(lp, targets) == [{}] * 2
    done = lp(*arguments, "--yes")
    assert done.status == 3
    assert states(lp, targets) == [{"fix": (True, False)}] * 2
    assert "forcing remaining tasks" in lp("dmesg", "--pid", targets[0].pid).out
    assert "forcing remaining tasks" not in lp("dmesg", "--pid", targets[1].pid).out


def test_force_leaves_those_alone_that_are_done(lp, services, patch):
    targets = services(2)
    occupy(targets[0])
    file = patch("fix", "answer", "slow")
    lp("load", file, *pids(targets), "--timeout", 0, "--on-stall", "keep")
    eventually(lambda: states(lp, targets)[1] == {"fix": (True, False)})
    done = lp("force", "fix", "--yes", *pids(targets))
    assert done.status == 0
    assert done.out.startswith(f"'fix' is enabled in process {targets[0].pid}, by force.\n")
    assert states(lp, targets) == [{"fix": (True, False)}] * 2
    assert "forcing" not in lp("dmesg", "--pid", targets[1].pid).out
    assert "in none of the 2 processes" in lp("force", "fix", "--yes", *pids(targets)).err


#: A patch whose `slow` waits, so that disabling it stalls.
HOLDING = """
import livepatch as lp
def answer(): return 'new'
def slow():
    import __main__ as m
    m.inside.set()
    m.leave.wait()
__livepatch__ = lp.Patch('', [lp.Object(None, [lp.Func('answer', answer), lp.Func('slow', slow)])])
"""


def test_a_disable_that_stalls_brings_the_patch_back_where_it_was_gone(lp, services, tmp_path):
    """A disabled patch cannot be enabled again; the process has its file, and loads it anew."""
    targets = services(3)
    file = tmp_path / "fix.py"
    file.write_text(HOLDING)
    assert lp("load", file, *pids(targets)).status == 0
    occupy(targets[1])
    file.unlink()
    done = lp("disable", "fix", *pids(targets), "--timeout", 0.3, "--unload")
    assert done.status == 3
    assert done.err.endswith("livepatch: It was taken back everywhere: 'fix' stays enabled.\n")
    assert "unpatching complete" in lp("dmesg", "--pid", targets[0].pid).out
    assert answers(targets) == ["new"] * 3
    assert states(lp, targets) == [{"fix": (True, False)}] * 3
    targets[1].say("leave")
    eventually(lambda: lp("disable", "fix", *pids(targets), "--timeout", 0.3, "--unload").status == 0)
    assert answers(targets) == ["old"] * 3


def test_it_is_not_brought_back_in_front_of_a_newer_patch(lp, services, tmp_path):
    """That would put old code before new one; then it is said that it is gone, and where."""
    targets = services(2)
    file = tmp_path / "fix.py"
    file.write_text(HOLDING)
    newer = tmp_path / "newer.py"
    newer.write_text(HOLDING.replace("'new'", "'newer'").replace(", lp.Func('slow', slow)", ""))
    for path in (file, newer):
        assert lp("load", path, *pids(targets)).status == 0
    occupy(targets[1])
    done = lp("disable", "fix", *pids(targets), "--timeout", 0.3)
    assert done.status == 3
    said = f"process {targets[0].pid}: 'fix' stays disabled (newer patches lie in front of it"
    assert said in done.err
    assert "taken back everywhere" not in done.err
    assert answers(targets) == ["newer"] * 2
    assert states(lp, targets)[1]["fix"] == (True, False)


def test_what_a_cumulative_patch_had_replaced_comes_back(lp, services, patch, tmp_path):
    targets = services(2)
    assert lp("load", patch("first", "answer"), *pids(targets)).status == 0
    whole = tmp_path / "whole.py"
    text = patch("whole", "answer", "slow").read_text().replace("'new'", "'whole'")
    whole.write_text(text.replace("lp.Patch('',", "lp.Patch('', replace=True, objects="))
    occupy(targets[1])
    done = lp("load", whole, *pids(targets), "--timeout", 0.3)
    assert done.status == 3
    assert "taken back everywhere" in done.err
    assert answers(targets) == ["new"] * 2
    assert states(lp, targets) == [{"first": (True, False)}] * 2
    assert "unpatching" in lp("dmesg", "--pid", targets[0].pid).out  # it had completed there


def test_enable_reverses_a_disable_where_it_runs(lp, services, tmp_path):
    targets = services(2)
    file = tmp_path / "fix.py"
    file.write_text(HOLDING)
    assert lp("load", file, *pids(targets)).status == 0
    occupy(targets[0])
    assert lp("disable", "fix", "--pid", targets[0].pid, "--timeout", 0, "--on-stall", "keep").status == 3
    done = lp("enable", "fix", *pids(targets))
    assert done.status == 0, done.err
    assert states(lp, targets) == [{"fix": (True, False)}] * 2
    assert "in transition in none of the 2 processes" in lp("enable", "fix", *pids(targets)).err


# -- while it is under way -------------------------------------------------------------------------------


def in_transition(lp, target):
    return states(lp, [target]) == [{"fix": (True, True)}]


def test_one_that_dies_holds_nobody_up(lp, services, patch):
    targets = services(3)
    occupy(targets[1])
    waiting = begin("load", patch("fix", "answer", "slow"), *pids(targets), "--timeout", PATIENCE, "--json")
    eventually(lambda: in_transition(lp, targets[1]))
    targets[1].kill()
    out, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 0, err
    assert re.findall(r'"outcome": "(\w+)"', out) == ["done", "ended", "done"]
    assert answers([targets[0], targets[2]]) == ["new"] * 2


def test_when_all_have_died_there_is_no_process(lp, services, patch):
    targets = services(2)
    for target in targets:
        occupy(target)
    waiting = begin("load", patch("fix", "slow"), *pids(targets), "--timeout", PATIENCE)
    eventually(lambda: all(in_transition(lp, target) for target in targets))
    for target in targets:
        target.kill()
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 4
    assert "Traceback" not in err


def test_one_that_is_stopped_in_the_middle(lp, services, patch):
    """The others go back without it, and it goes back by itself when it goes on: it was told."""
    targets = services(3)
    occupy(targets[1])
    for seconds in (3, 10, 30):  # until it is stopped before it is taken back
        waiting = begin("load", patch("fix", "answer", "slow"), *pids(targets), "--timeout", seconds)
        eventually(lambda waiting=waiting: in_transition(lp, targets[1]) or waiting.poll() is not None)
        targets[1].signal(signal.SIGSTOP)
        _, err = waiting.communicate(timeout=PATIENCE)
        assert waiting.returncode == 3
        if "It was taken back everywhere" not in err:
            break
        targets[1].signal(signal.SIGCONT)
    pid = targets[1].pid
    assert f"process {pid}: It does not answer, and will go back when it does; `livepatch status --pid {pid}`" in err
    assert states(lp, [targets[0], targets[2]]) == [{}] * 2
    targets[1].signal(signal.SIGCONT)
    eventually(lambda: states(lp, [targets[1]]) == [{"fix": (False, False)}])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_all_go_back(lp, services, patch, number):
    targets = services(3)
    occupy(targets[1])
    waiting = begin("load", patch("fix", "answer", "slow"), *pids(targets))
    eventually(lambda: in_transition(lp, targets[1]))
    waiting.send_signal(number)
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 130
    assert err.endswith("It was taken back everywhere: nothing of 'fix' is patched.\n")
    assert states(lp, targets) == [{}] * 3


def test_somebody_else_reverses_it_in_one(lp, services, patch):
    targets = services(2)
    occupy(targets[1])
    waiting = begin("load", patch("fix", "answer", "slow"), *pids(targets))
    eventually(lambda: in_transition(lp, targets[1]))
    assert lp("disable", "fix", "--pid", targets[1].pid).status == 0
    _, err = waiting.communicate(timeout=PATIENCE)
    assert waiting.returncode == 1
    assert f"process {targets[1].pid}: Somebody else reversed it meanwhile: 'fix' is disabled." in err
    assert states(lp, targets) == [{}] * 2


def test_a_client_that_is_killed_leaves_no_half_of_a_patch(lp, services, patch):
    """The agents end what was begun, each by itself, and the next command tells the truth."""
    targets = services(2)
    occupy(targets[1])
    waiting = begin("load", patch("fix", "answer", "slow"), *pids(targets))
    eventually(lambda: in_transition(lp, targets[1]))
    waiting.kill()
    waiting.communicate()
    targets[1].say("leave")
    eventually(lambda: states(lp, targets) == [{"fix": (True, False)}] * 2)
    assert lp("disable", "fix", "--unload", *pids(targets)).status == 0


def test_a_bar_for_all(lp, services, patch):
    from tests.cli.test_settle import on_terminal

    targets = services(2)
    occupy(targets[0])
    drawn, status = on_terminal("load", patch("fix", "slow"), *pids(targets), "--timeout", 5)
    assert status == 3
    assert "patching 'fix' in 2 processes, 1 not done" in drawn
    assert re.search(rf"waiting for this task of process {targets[0].pid}:\s+• thread worker in slow \(", drawn)


# -- who is born meanwhile -------------------------------------------------------------------------------

FORKING = """
    import os, threading, time
    import livepatch as lp
    leave, inside = threading.Event(), threading.Event()
    def answer(): return "old"
    def slow():
        inside.set()
        leave.wait()
    lp.start_agent()
    threading.Thread(target=slow, name="worker", daemon=True).start()
    inside.wait()
    say("ready")
    while (word := hear()):
        if word == "leave": leave.set()
        if word == "fork":
            reader, writer = os.pipe()
            if os.fork() == 0:
                os.close(writer)
                while os.read(reader, 1): say(os.getpid(), answer())
                os._exit(0)
            say("forked")
        if word == "ask": os.write(writer, b"?")
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_child_that_is_forked_in_the_middle_is_part_of_it(lp, patch):
    """It is in the same transition. Going back includes it; who knows only the processes of the beginning leaves it."""
    with Target(FORKING) as target:
        assert target.hear() == "ready"
        for number, timeout in ((0, 5), (3, PATIENCE)):
            file = patch(f"fix{number}", "answer", "slow")
            waiting = begin("load", file, "--tree", target.pid, "--timeout", timeout)
            eventually(lambda file=file: states(lp, [target]) == [{file.stem: (True, True)}])
            target.say("fork")
            target.hear_until("forked")
            if number:
                threading.Timer(0.5, target.say, ["leave"]).start()
            out, err = waiting.communicate(timeout=PATIENCE)
            assert waiting.returncode == (0 if number else 3), err
            target.say("ask")
            child, word = target.hear().split()
            assert word == ("new" if number else "old")
            (process,) = lp("list", "--pid", child, "--json").json
            assert [patch["name"] for patch in process["patches"]] == (["fix3"] if number else [])
            if number:
                assert re.search(rf"^{child} +enabled +done, born meanwhile ", out, re.MULTILINE)
