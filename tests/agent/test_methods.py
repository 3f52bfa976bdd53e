"""What a client can have done in a process, and what it is refused."""

import base64
import errno
import os
import signal
import time

import pytest
from tests.agent.targets import Line, Target, eventually

SERVICE = """
    import livepatch as lp
    leave, inside = threading.Event(), threading.Event()
    def answer(): return "old"
    def slow():
        inside.set()
        leave.wait()
    say(lp.start_agent())
    while (word := hear()):
        if word == "ask": say(answer())
        if word == "enter":
            threading.Thread(target=slow, daemon=True).start()
            inside.wait()
            say("inside")
        if word == "leave": leave.set()
        if word == "look":
            import linecache
            modules = [name for name in sys.modules if name.startswith("__livepatch__.")]
            say(*modules, *(name for name in linecache.cache if name.startswith("<livepatch")))
"""

ANSWER = """
import livepatch as lp
def answer(): return "new"
__livepatch__ = lp.Patch("", [lp.Object(None, [lp.Func("answer", answer)])])
"""
SLOW = ANSWER.replace("answer", "slow").replace('""', '"slow"')


@pytest.fixture
def target():
    with Target(SERVICE) as running:
        yield running


@pytest.fixture
def line(target):
    with Line(target.hear()) as connected:
        yield connected


def send(line, method, source, file="fix.py"):
    data = source if isinstance(source, bytes) else source.encode()
    return line.call(method, file=file, data=base64.b64encode(data).decode())


def ask(target):
    target.say("ask")
    return target.hear()


def refusal(reply):
    return reply["error"]["data"]["symbol"], reply["error"]["data"]["sentence"]


def test_an_interpreter_that_is_not_supported_says_so_at_once():
    script = """
        import livepatch as lp
        from livepatch.core import cpython
        cpython.unsupported = lambda: "not this one."
        say(lp.start_agent())
        hear()
    """
    with Target(script) as target, Line(target.hear()) as line:
        assert refusal(line.call("hello")) == ("ENOSYS", "not this one.")


def test_load_disable_unload_and_again(target, line):
    for _ in range(3):
        assert ask(target) == "old"
        state = send(line, "load", ANSWER)["result"]
        assert (state["name"], state["enabled"], state["transition"]) == ("fix", True, False)
        assert ask(target) == "new"
        assert [patch["name"] for patch in line.call("list")["result"]] == ["fix"]
        state = line.call("write_enabled", name="fix", value="0")["result"]
        assert (state["enabled"], state["transition"]) == (False, False)
        assert ask(target) == "old"
        assert line.call("unload", name="fix")["result"] is None
        assert line.call("list")["result"] == []


def test_a_file_leaves_nothing_behind_when_its_patch_is_unloaded(target, line):
    target.say("look")
    assert target.hear() == ""
    send(line, "load", ANSWER)
    target.say("look")
    assert target.hear() == "__livepatch__.fix <livepatch fix>/fix.py"
    line.call("write_enabled", name="fix", value="0")
    line.call("unload", name="fix")
    target.say("look")
    assert target.hear() == ""


def test_check_changes_nothing_and_names_who_is_in_the_way(target, line):
    target.say("enter")
    assert target.hear() == "inside"
    found = send(line, "check", SLOW)["result"]
    assert found["name"] == "slow"
    assert found["objects"] == [{"name": "__main__", "functions": ["slow,1"], "immediate": []}]
    assert [task["kind"] for task in found["blocking"]] == ["thread"]
    assert found["blocking"][0]["blocking"][0].startswith("slow (")
    assert line.call("list")["result"] == []
    target.say("look")
    assert target.hear() == ""


def test_who_is_still_there_is_asked_without_the_file(target, line):
    assert line.call("still")["result"] == []
    target.say("enter")
    assert target.hear() == "inside"
    while not (still := line.call("still")["result"]):  # it may not have been asleep at the first look
        (found,) = send(line, "check", SLOW)["result"]["blocking"]
    assert {**still[0], "seconds": 0, "stuck": False} == {**found, "seconds": 0, "stuck": False}
    assert still[0]["seconds"] >= found["seconds"]
    target.say("leave")
    while line.call("still")["result"]:
        pass


@pytest.mark.parametrize("method", ["load", "check"])
@pytest.mark.parametrize(
    ("source", "symbol", "sentence"),
    [
        pytest.param("x = 1", "EINVAL", "module fix is not marked as a livepatch module", id="no patch"),
        pytest.param("__livepatch__ = True", "EINVAL", "module fix is not marked as a livepatch module", id="no Patch"),
        pytest.param(
            "a = 1\nb = 1 / 0",
            "EINVAL",
            "fix.py failed with ZeroDivisionError (line 2): division by zero.",
            id="raises",
        ),
        pytest.param("def", "EINVAL", "fix.py failed with SyntaxError (line 1): invalid syntax.", id="syntax"),
        pytest.param("raise SystemExit", "EINVAL", "fix.py failed with SystemExit (line 1).", id="wants to exit"),
        pytest.param(b"\xff", "EINVAL", None, id="no text"),
        pytest.param(b"x\0", "EINVAL", None, id="a zero byte"),
        pytest.param(
            "import livepatch as lp, errno\nraise lp.LivepatchError(errno.ENODEV, 'not on this machine.')",
            "ENODEV", "not on this machine.", id="refuses itself",
        ),
        pytest.param(ANSWER.replace('Func("answer"', 'Func("nothing"'), "EINVAL", None, id="no such function"),
    ],
)  # fmt: skip
def test_a_bad_file_is_refused_and_forgotten(target, line, method, source, symbol, sentence):
    found, said = refusal(send(line, method, source))
    assert found == symbol
    assert sentence in (None, said)
    assert "\n" not in said
    assert line.call("list")["result"] == []
    target.say("look")
    assert target.hear() == ""
    assert ask(target) == "old"


@pytest.mark.parametrize("data", [b"", b"PK\3\4", b"PK\3\4" + bytes(100), b"garbage"])
def test_what_is_no_archive_is_refused(target, line, data):
    symbol, sentence = refusal(send(line, "load", data, file="fix.livepatch"))
    assert symbol == "ENOEXEC"
    assert "not a valid patch archive" in sentence
    assert line.call("list")["result"] == []


def test_bytes_that_are_no_base64_are_refused(line):
    assert refusal(line.call("load", file="fix.py", data="%%%"))[0] == "EBADMSG"


def test_the_same_twice(target, line):
    send(line, "load", ANSWER)
    assert refusal(send(line, "load", ANSWER))[0] == "EEXIST"
    named = ANSWER.replace('Patch(""', 'Patch("fix"')
    assert refusal(send(line, "load", named, file="other.py"))[0] == "EEXIST"
    assert ask(target) == "new"


def test_the_attribute_enabled(line):
    assert refusal(line.call("write_enabled", name="fix", value="0"))[0] == "ENOENT"
    send(line, "load", ANSWER)
    assert refusal(line.call("write_enabled", name="fix", value="garbage"))[0] == "EINVAL"
    assert refusal(line.call("write_enabled", name="fix", value="1"))[0] == "EINVAL"
    assert refusal(line.call("unload", name="fix"))[0] == "EAGAIN"
    assert refusal(line.call("force", name="fix"))[0] == "EINVAL"
    assert line.call("write_enabled", name="fix", value="")["result"]["enabled"] is True
    assert line.call("write_enabled", name="fix", value="no")["result"]["enabled"] is False
    assert refusal(line.call("write_enabled", name="fix", value="1"))[0] == "ENOENT"


def test_a_transition_is_shown_reversed_and_forced(target, line):
    target.say("enter")
    assert target.hear() == "inside"
    state = send(line, "load", SLOW, file="slow.py")["result"]
    assert (state["enabled"], state["transition"], state["left"]) == (True, True, 1)
    shown = line.call("status", name="slow", blockers=5)["result"]
    assert shown["blocking"][0]["blocking"][0].startswith("slow (")
    assert refusal(send(line, "load", ANSWER))[0] == "EBUSY"
    assert {task["patch_state"] for task in line.call("tasks")["result"]} == {0, 1}

    state = line.call("write_enabled", name="slow", value="0")["result"]
    assert state["enabled"] is False
    while line.call("status", name="slow")["result"]["transition"]:
        pass
    line.call("unload", name="slow")

    send(line, "load", SLOW, file="slow.py")
    line.call("force", name="slow")
    while line.call("status", name="slow")["result"]["transition"]:
        pass
    log = line.call("dmesg")["result"]
    assert "livepatch: forcing remaining tasks to the patched state" in log
    assert log[-1] == "livepatch: 'slow': patching complete"


def test_two_loads_at_once(target, line):
    """Both files arrive before the first is answered; the second must not slip into the first one's
    transition.
    """
    target.say("enter")
    assert target.hear() == "inside"
    for number, (file, source) in enumerate([("slow.py", SLOW), ("fix.py", ANSWER)], 1):
        params = {"file": file, "data": base64.b64encode(source.encode()).decode()}
        line.send({"jsonrpc": "2.0", "id": number, "method": "load", "params": params})
    assert line.receive()["result"]["transition"] is True
    assert line.receive()["error"]["data"]["errno"] == errno.EBUSY
    assert ask(target) == "old"


def test_followers_hear_of_log_and_transitions(target, line):
    path = f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock"
    with Line(path) as follower:
        assert follower.call("subscribe")["result"] is None
        send(line, "load", ANSWER)
        events = []
        while not events or events[-1].get("params", {}).get("line") != "'fix': patching complete":
            events.append(follower.receive())
        assert events[0]["params"].pop("time") == pytest.approx(time.time(), abs=600)
        assert events[0] == {"jsonrpc": "2.0", "method": "log", "params": {"line": "enabling patch 'fix'"}}
        told = follower.receive()
        assert told["method"] == "transition"
        assert (told["params"]["name"], told["params"]["enabled"], told["params"]["transition"]) == ("fix", True, False)
        line.call("write_enabled", name="fix", value="0")
        while told["params"].get("listed", True):
            told = follower.receive()
        assert told["params"] == {"name": "fix", "listed": False}


def test_a_follower_that_leaves_is_forgotten(target, line):
    path = f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock"
    with Line(path) as follower:
        follower.call("subscribe")
    send(line, "load", ANSWER)
    assert line.call("list")["result"][0]["enabled"]


READING = """
    import os, time
    import livepatch as lp
    from livepatch.archive import format
    point = "before"
    def read(data):
        global point
        point = "in the middle"
        say("reading")
        time.sleep(1)
        point = "after"
        raise lp.LivepatchError(22, "no archive.")
    format.read = read
    say(lp.start_agent())
    hear()
    pid = os.fork()
    if pid == 0:
        say(point)
        os._exit(0)
    os.waitpid(pid, 0)
    hear()
"""


def test_a_fork_waits_while_an_archive_is_read():
    """Modules are imported for that, and who is forked in the middle of an import can never have that module."""
    with Target(READING) as target, Line(target.hear()) as line:
        data = base64.b64encode(b"PK").decode()
        line.send({"jsonrpc": "2.0", "id": 1, "method": "load", "params": {"file": "a.livepatch", "data": data}})
        assert target.hear() == "reading"
        target.say("fork")
        assert target.hear() == "after"


def test_what_was_asked_is_done_although_who_asked_has_gone(target):
    """All of it, in its order: a process that was stopped meanwhile is told to load, and then to go back."""
    path = target.hear()
    target.signal(signal.SIGSTOP)
    with Line(path) as gone:
        data = base64.b64encode(ANSWER.encode()).decode()
        load = {"method": "load", "params": {"file": "fix.py", "data": data}}
        back = {"method": "write_enabled", "params": {"name": "fix", "value": "0"}}
        for number, request in enumerate((load, {"method": "tasks"}, back)):
            gone.send({"jsonrpc": "2.0", "id": number, **request})
    target.signal(signal.SIGCONT)
    with Line(path) as line:
        eventually(lambda: [p["enabled"] for p in line.call("list")["result"]] == [False])
        log = line.call("dmesg")["result"]
        assert "livepatch: enabling patch 'fix'" in log
        assert "livepatch: 'fix': unpatching complete" in log
        sent = line.call("file", name="fix")["result"]
        assert (sent["file"], base64.b64decode(sent["data"])) == ("fix.py", ANSWER.encode())
        line.call("unload", name="fix")
        assert refusal(line.call("file", name="fix"))[0] == "ENOENT"
