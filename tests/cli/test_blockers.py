"""Who is in the way, as a person and as a program is told: `check` and what stays, `load` and its warnings, `tasks`."""

import os
import pty
import re
import sys
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE, Target, eventually

from livepatch.attach.client import Client

START = "from livepatch.cli import main; main()"

#: A service with a thread of each sort. What lasts for half a second lasts, so that tests need not wait.
SERVICE = """
    import asyncio, concurrent.futures, livepatch as lp
    from livepatch.core import blockers
    blockers.LASTING = 0.5
    leave, inside = threading.Event(), threading.Semaphore(0)
    def answer(): return "old"
    def slow():
        inside.release()
        leave.wait()
    def serve():
        while True: slow()
    async def handle():
        inside.release()
        await asyncio.Event().wait()
    def brief():
        inside.release()
        hear()
    lp.start_agent()
    pool = concurrent.futures.ThreadPoolExecutor(1, thread_name_prefix="pool")
    say("ready")
    while (word := hear()):
        if word == "serve": threading.Thread(target=serve, name="server", daemon=True).start()
        if word == "slow": threading.Thread(target=slow, name="worker", daemon=True).start()
        if word == "pool": pool.submit(slow)
        if word == "handle":
            threading.Thread(target=asyncio.run, args=(handle(),), name="loop", daemon=True).start()
        if word == "brief": say("inside"); brief(); continue
        if word == "leave": leave.set(); continue
        inside.acquire()
        say("inside")
"""
NEVER = "never returns: mark it immediate (livepatch build --immediate '*:serve') or patch what it calls"


@pytest.fixture
def service():
    with Target(SERVICE) as target:
        assert target.hear() == "ready"
        yield target
        target.say("leave")


@pytest.fixture
def enter(service):
    """Have somebody go into what the test patches."""

    def entered(*words):
        for word in words:
            service.say(word)
            assert service.hear() == "inside"

    return entered


@pytest.fixture
def asleep(service):
    """Wait until all threads of the service sleep: who is not woken runs no more.

    A thread that has only not had its turn for a while looks the same from inside, and is then seen to run.
    """

    def threads():
        found = {}
        for thread in Path(f"/proc/{service.pid}/task").iterdir():
            lines = (thread / "status").read_text().splitlines()
            found[thread.name] = [line for line in lines if line.startswith("State:") or "ctxt_switches" in line]
        return found

    def at_rest():
        # Twice the same: one that waited for another of them has begun to run when that had gone to sleep.
        found = threads()
        return all("S (sleeping)" in state for state, *_ in found.values()) and found == threads()

    return lambda: eventually(at_rest)


def by_name(tasks):
    return {task["name"]: task for task in tasks}


# -- check -----------------------------------------------------------------------------------------------


def test_check_says_who_stays(lp, service, enter, asleep, patch):
    enter("slow", "pool", "serve")
    file = patch("fix", "slow", "serve")
    asleep()
    done = lp("check", file, "--pid", service.pid, "--watch", 0.8)
    assert done.status == 0
    first, _, then = done.out.partition("Seeing which of them stay there, for up to 0.8 s ...\n")
    rows = {line.split()[1]: re.split("  +", line) for line in first.splitlines() if line.startswith("thread")}
    for name, origin, hint in (
        (
            "worker",
            r"slow \(<string>:\d+\)",
            r"(goes when slow\(\) returns|slow\(\) is all that runs here); waits for .*",
        ),
        ("pool_0", "worker of ThreadPoolExecutor", "returns when the current job ends; waits for a lock in .*"),
        ("server", r"serve \(<string>:\d+\)", rf"serve\(\) {re.escape(NEVER)}; waits for a lock in .*"),
    ):
        kind, task, came_from, where, since, said = rows[name]
        assert (kind, task) == ("thread", name)
        assert re.fullmatch(origin, came_from)
        assert re.fullmatch(r"(slow|serve) \(<string>:\d+\)", where)
        assert re.fullmatch(r"\d+ s", since)
        assert re.fullmatch(hint, said)
    assert then == ""
    said = sorted(line.partition(": thread ")[2] for line in done.err.splitlines())
    assert len(said) == 3
    place = r"\(<string>:\d+\) for \d+ s"
    assert re.match(rf"pool_0 has been in slow {place}: returns when the current job ends", said[0])
    assert re.match(rf"server has been in serve {place}: serve\(\) {re.escape(NEVER)}", said[1])
    assert re.match(rf"worker has been in slow {place}: slow\(\) is all that runs here: if it never returns", said[2])


def test_who_is_said_to_stay_was_looked_at_again(lp, service, enter, patch, monkeypatch):
    """Also if the time is over at once, as it may be on a busy machine."""
    enter("slow")
    asked, call = [], Client.call
    monkeypatch.setattr(Client, "call", lambda *about, **more: (asked.append(about[1]), call(*about, **more))[1])
    lp("check", patch("fix", "slow"), "--pid", service.pid, "--watch", 1e-9)
    assert asked.count("still") == 1


def test_check_is_done_when_nobody_stays(lp, service, enter, patch):
    """It would wait for the end of the world."""
    import threading

    for seconds in (0.3, 1, 3, 10, 30):  # until the command has begun to look before it leaves
        service.say("brief")
        assert service.hear() == "inside"
        leaves = threading.Timer(seconds, service.say, ["go"])
        leaves.start()
        done = lp("check", patch("fix", "brief"), "--pid", service.pid, "--watch", 10 * PATIENCE)
        leaves.join()
        assert (done.status, done.err) == (0, "")
        if not done.out.endswith("No task is in the way now.\n"):
            break
    assert done.out.endswith("None of them was seen to stay.\n")


def test_check_for_programs(lp, service, enter, asleep, patch):
    enter("slow", "handle")
    asleep()
    (found,) = lp("check", patch("fix", "slow"), "--pid", service.pid, "--watch", 0.1, "--json").json
    (one,) = found["blocking"]
    assert (one["kind"], one["name"]) == ("thread", "worker")
    assert one["stuck"] == (one["seconds"] >= 0.5)
    assert re.fullmatch(r"slow \(<string>:\d+\)", one["origin"])
    assert one["hint"].endswith("; waits for a lock in threading.Event.wait")
    (stays,) = found["stay"]
    assert stays["ident"] == one["ident"]
    assert stays["seconds"] >= one["seconds"] + 0.1
    (found,) = lp("check", patch("fix", "slow"), "--pid", service.pid, "--watch", 0, "--json").json
    assert found["stay"] == []


# -- load ------------------------------------------------------------------------------------------------


def test_load_warns_of_what_never_returns(lp, service, enter, patch):
    enter("serve")
    done = lp("load", patch("fix", "serve"), "--pid", service.pid, "--timeout", 4)
    assert done.status == 3
    first = done.err.splitlines()[0]
    said = rf"serve\(\) {re.escape(NEVER)}"
    assert re.match(rf"livepatch: thread server (is|has been) in serve \(<string>:\d+\).*: {said}", first)
    assert sum("thread server" in line and "serve()" in line for line in done.err.splitlines()) == 1, "it is said once"
    assert f"livepatch:     serve() {NEVER}" in done.err


def test_load_knows_what_check_has_seen(lp, service, enter, asleep, patch):
    enter("pool")
    file, pid = patch("fix", "slow"), ("--pid", service.pid)
    asleep()
    lp("check", file, *pid, "--watch", 0.6)
    done = lp("load", file, *pid, "--timeout", 4)
    assert done.status == 3
    assert re.match(r"livepatch: thread pool_0 has been in slow \(<string>:\d+\) for \d+ s: returns when", done.err)


def test_a_load_that_nobody_is_in_the_way_of_says_nothing(lp, service, enter, patch):
    enter("serve")
    done = lp("load", patch("fix", "answer"), "--pid", service.pid)
    assert (done.status, done.err) == (0, "")


# -- tasks -----------------------------------------------------------------------------------------------


def test_tasks_tell_where_they_came_from(lp, service, enter):
    enter("pool", "handle")
    eventually(lambda: lp("tasks", "--pid", service.pid).out.count(".wait (") == 2)
    done = lp("tasks", "--pid", service.pid)
    assert done.out.splitlines()[1].split() == ["KIND", "NAME", "ORIGIN", "IN"]
    assert re.search(
        r"^thread +pool_0 +worker of ThreadPoolExecutor +Condition\.wait \(threading\.py:\d+\)$", done.out, re.M
    )
    assert re.search(
        r"^asyncio +Task-1 +handle \(<string>:\d+\), loop of loop +Event\.wait \(locks\.py:\d+\)$", done.out, re.M
    )
    assert re.search(r"^thread +MainThread +main thread ", done.out, re.M)
    done = lp("tasks", "--stacks", "--pid", service.pid)
    assert "  from worker of ThreadPoolExecutor\n" in done.out
    tasks = by_name(lp("tasks", "--pid", service.pid, "--json").json[0]["tasks"])
    assert tasks["MainThread"]["origin"] == "main thread"
    assert (tasks["pool_0"]["seconds"], tasks["pool_0"]["hint"]) == (None, "")


def test_tasks_of_a_transition(lp, service, enter, asleep, patch):
    enter("pool", "handle")
    file = patch("fix", "slow")
    asleep()
    lp("load", file, "--pid", service.pid, "--timeout", 0, "--on-stall", "keep")
    eventually(lambda: lp("tasks", "--pid", service.pid).out.count("unpatched") == 1)
    lines = lp("tasks", "--pid", service.pid).out.splitlines()
    assert lines[1].split("  ")[0] == "KIND"
    assert re.split(r"  +", lines[1]) == ["KIND", "NAME", "ORIGIN", "STATE", "BLOCKED BY", "SINCE", "HINT"]
    assert re.match(
        r"thread +pool_0 +worker .*  unpatched +slow \(<string>:\d+\) +\d+ s +returns when the current job", lines[2]
    )
    assert all(line.endswith("-") for line in lines[3:]), "whoever is in the way comes first"
    tasks = by_name(lp("tasks", "--pid", service.pid, "--json").json[0]["tasks"])
    assert tasks["pool_0"]["seconds"] > 0
    assert tasks["pool_0"]["hint"].startswith("returns when the current job ends; waits for a lock in ")
    shown = lp("status", "--pid", service.pid).out
    assert re.search(r"^In the way:\nKIND +TASK .*\nthread +pool_0 .* returns when the current job ends", shown, re.M)


def drawn(*arguments, columns=100):
    """What a command draws on a terminal of this width."""
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm", COLUMNS=str(columns))
        os.execv(sys.executable, [sys.executable, "-c", START, *map(str, arguments)])
    found = b""
    try:
        while data := os.read(terminal, 65536):
            found += data
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", found.decode()).replace("\r", "")


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_terminal_of_a_hundred_columns_shows_all_of_it(lp, service, enter, patch):
    enter("pool", "serve", "handle")
    lp("load", patch("fix", "slow", "serve"), "--pid", service.pid, "--timeout", 0, "--on-stall", "keep")
    eventually(lambda: lp("tasks", "--pid", service.pid).out.count("unpatched") == 2)
    lines = drawn("tasks", "--pid", service.pid).splitlines()[1:]
    assert max(map(len, lines)) <= 100
    # Sentences go on in the next line; put together again they are what a pipe shows.
    said = " ".join(" ".join(lines).split())
    never = re.escape(f"serve() {NEVER}")
    assert re.search(rf"• thread server in slow \(.+?:\d+\).*? {never}; waits for a lock in threading.Event.wait", said)
    assert re.search(r"• thread pool_0 in ", said)
    rest = lines[lines.index("") + 1 :]
    assert rest[0].split() == ["KIND", "NAME", "ORIGIN", "STATE", "IN"]
    assert [" patched " in line for line in rest if line.startswith("thread   loop ")] == [True]
    assert not [line for line in rest if line.startswith("thread   server ")]
