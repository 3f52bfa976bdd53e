"""The same command once more, and processes that nobody prepared in the midst of others: servers replace their workers
all the time.
"""

import re
import signal
import uuid

import pytest
from tests.agent.targets import PATIENCE, SERVES, Target, eventually
from tests.cli.conftest import SERVICE
from tests.fleet.conftest import answers, pids, states
from tests.fleet.test_transaction import begin, outcomes

pytestmark = pytest.mark.once

#: Spawns, and does not fork, a Python that knows nothing of all this.
SPAWNING = f"""
    import livepatch as lp, subprocess
    def answer(): return "old"
    lp.start_agent()
    def spawn():
        command = [sys.executable, "-c", "import sys; print('there', flush=True); sys.stdin.read()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        child.stdout.readline()
        children.append(child)
        say(child.pid)
    children = []
    {SERVES}        if word == "spawn": spawn()
    """


def rows(done):
    """Of each process its patch and what became of it, as people read it."""
    return {int(pid): (patch, how) for pid, patch, how in re.findall(r"^(\d+) +(\S+) +(\S+)", done.out, re.MULTILINE)}


@pytest.fixture
def several():
    """Services that have a word in common, which begin when they are told to."""
    word, started = uuid.uuid4().hex, []

    def start(count):
        new = [Target(SERVICE, arguments=(word,)) for _ in range(count)]
        started.extend(new)
        for target in new:
            assert target.hear() == "ready"
        return new

    yield start, ("--name", word)
    for target in started:
        target.kill()


def test_a_load_is_repeated_for_who_has_come_since(lp, several, patch):
    start, name = several
    first, file = start(2), patch("fix", "answer")
    assert lp("load", file, *name).status == 0
    later = start(1)
    done = lp("load", file, *name)
    assert (done.status, done.err) == (0, "")
    assert done.out.startswith(f"'fix' is loaded into process {later[0].pid}: 1 function patched.\n")
    assert rows(done) == {target.pid: ("enabled", "untouched") for target in first} | {
        later[0].pid: ("enabled", "done")
    }
    assert answers([*first, *later]) == ["new"] * 3
    done = lp("load", file, *name)
    assert (done.status, done.out) == (1, "")
    assert done.err == "livepatch: 'fix' is loaded already into all 3 processes that it is for; nothing was done.\n"


def test_who_had_it_before_keeps_it_when_the_others_go_back(lp, several, patch):
    """Also if that was interrupted."""
    start, name = several
    first, file = start(2), patch("fix", "answer", "slow")
    assert lp("load", file, *name).status == 0
    (later,) = start(1)
    later.say("enter")
    assert later.hear() == "inside"
    done = lp("load", file, *name, "--timeout", 0.2, "--json")
    assert done.status == 3
    assert sorted(outcomes(done)) == ["reversed", "untouched", "untouched"]
    assert answers([*first, later]) == ["new", "new", "old"]
    waiting = begin("load", file, *name)
    eventually(lambda: states(lp, [later]) == [{"fix": (True, True)}])
    waiting.send_signal(2)
    out, err = waiting.communicate(timeout=PATIENCE)
    assert "nothing of 'fix' is patched" in err, out + err
    assert answers([*first, later]) == ["new", "new", "old"]
    assert states(lp, [*first, later]) == [{"fix": (True, False)}] * 2 + [{}]


def test_another_patch_of_that_name_is_refused(lp, several, patch):
    start, name = several
    first = start(1)
    assert lp("load", patch("fix", "answer"), *name).status == 0
    later = start(1)
    done = lp("load", patch("fix", "answer", "slow"), *name)
    assert done.status == 1
    assert f"process {first[0].pid}: A patch from a file 'fix.py' is loaded already" in done.err
    assert answers([*first, *later]) == ["new", "old"]


def test_one_that_was_named_by_its_number_has_to_take_it(lp, services, patch):
    targets, file = services(2), patch("fix", "answer")
    assert lp("load", file, "--pid", targets[0].pid).status == 0
    done = lp("load", file, *pids(targets))
    assert (done.status, done.out) == (1, "")
    assert answers(targets) == ["new", "old"]


@pytest.mark.parametrize("command", ["disable", "unload"])
def test_one_without_an_agent_has_nothing_to_take_back(lp, patch, command):
    with Target(SPAWNING) as target:
        assert target.hear() == "ready"
        assert lp("load", patch("fix", "answer"), "--pid", target.pid).status == 0
        if command == "unload":
            assert lp("disable", "fix", "--pid", target.pid).status == 0
        target.say("spawn")
        child = int(target.hear())
        done = lp(command, "fix", "--tree", target.pid)
        assert (done.status, done.err) == (0, "")
        if command == "disable":
            assert rows(done) == {target.pid: ("disabled", "done"), child: ("-", "unconcerned")}
        assert answers([target]) == ["old"]
        (_, bare) = lp("list", "--tree", target.pid, "--json").json
        assert (bare["pid"], bare["prepared"]) == (child, False)


def test_one_that_is_spawned_in_the_middle_of_a_disable_does_not_turn_it_round(lp, patch):
    """As uvicorn does when one of its workers dies."""
    with Target(SPAWNING) as target:
        assert target.hear() == "ready"
        assert lp("load", held(patch), "--pid", target.pid).status == 0
        target.say("enter")
        assert target.hear() == "inside"
        waiting = begin("disable", "held", "--tree", target.pid, "--timeout", PATIENCE)
        eventually(lambda: states(lp, [target]) == [{"held": (False, True)}])
        target.say("spawn")
        child = int(target.hear())
        target.say("leave")
        out, err = waiting.communicate(timeout=PATIENCE)
        assert (waiting.returncode, err) == (0, "")
        assert re.search(rf"^{child} +- +unconcerned", out, re.MULTILINE)
        assert answers([target]) == ["old"]


def held(patch):
    """Its own `slow` waits, too."""
    path = patch("held", "answer", "slow")
    text = path.read_text().replace(
        "def slow(): return 'new'",
        "def slow():\n    import __main__\n    __main__.inside.set()\n    __main__.leave.wait()",
    )
    path.write_text(text)
    return path


def test_many_processes_are_a_table(lp, several, patch):
    """One line for each, who has an agent or not; one that cannot be asked is told of, and keeps the others."""
    start, name = several
    targets = start(2)
    assert lp("load", patch("fix", "answer"), "--pid", targets[0].pid).status == 0
    with Target("say('ready'); hear()", arguments=(name[1],)) as bare:
        assert bare.hear() == "ready"
        done = lp("list", *name)
        assert (done.status, done.err) == (0, "")
        lines = {int(line.split()[0]): line.split()[1:] for line in done.out.splitlines()[1:]}
        assert lines == {
            targets[0].pid: ["fix", "1.2", "enabled", "1", "__main__"],
            targets[1].pid: ["-", "-", "no", "patch", "-", "-"],
            bare.pid: ["-", "-", "no", "agent", "-", "-"],
        }
        assert [sorted(process) for process in lp("list", *name, "--json").json] == [["patches", "pid", "prepared"]] * 3
        targets[1].signal(signal.SIGSTOP)
        done = lp("list", *name)
        assert done.status == 1
        assert f"Process {targets[1].pid} is stopped" in done.err
        assert len(done.out.splitlines()) == 3
