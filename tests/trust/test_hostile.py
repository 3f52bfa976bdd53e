"""A process that is in an attacker's hands, and an administrator, perhaps root, who looks at it."""

import textwrap

import pytest
from tests.agent.targets import Target
from tests.attach.test_client import IMPOSTOR
from tests.cli.conftest import lp

from livepatch.attach import client, replies
from livepatch.attach.client import Client
from livepatch.core.model import LivepatchError, PatchStatus, TaskStatus
from livepatch.observe.report import Run

__all__ = ["lp"]

pytestmark = pytest.mark.once

#: One that greets well, and answers everything else with REPLY.
GREETS = """
    def answer(request):
        if request["method"] == "hello": return hello(request)
        return {reply}
    while True: serve(answer)
"""
GARBAGE = [
    "{'id': request['id'], 'result': None}",
    "{'id': request['id'], 'result': 5}",
    "{'id': request['id'], 'result': 'text'}",
    "{'id': request['id'], 'result': [5]}",
    "{'id': request['id'], 'result': [[]]}",
    "{'id': request['id'], 'result': [{}]}",
    "{'id': request['id'], 'result': {}}",
    "{'id': request['id'], 'result': [{'name': 7}]}",
    "{'id': request['id'], 'error': {'data': {'errno': 'x'}}}",
    "{'id': request['id'], 'error': [1]}",
    "{'id': request['id']}",
    "b'[' * 200000 + b'\\n'",
    "b'{\"id\": ' * 50000 + b'\\n'",
    "b'1' * 5000 + b'\\n'",
    "b'\\xff\\xfe\\n'",
    "b'\\0\\n'",
]


def impostor(reply):
    target = Target(textwrap.dedent(IMPOSTOR) + textwrap.dedent(GREETS).format(reply=reply))
    assert target.hear() == "ready"
    return target


@pytest.mark.parametrize("command", ["list", "status", "tasks", "dmesg", "disable x", "force x --yes", "unload x"])
@pytest.mark.parametrize("reply", ["5", "{}", "[{}]"])
def test_every_command_gets_garbage(lp, command, reply):
    """One sentence that says who is to blame, and no internal error of ours."""
    with impostor("{'id': request['id'], 'result': " + reply + "}") as target:
        done = lp(*command.split(), "--pid", target.pid)
        assert "Internal error" not in done.err
        if command not in ("unload x",):  # whose answer says nothing
            assert done.status == 1
            assert (
                done.err == f"livepatch: What listens in process {target.pid} does not speak like a livepatch agent.\n"
            )


@pytest.mark.parametrize("reply", GARBAGE)
def test_every_kind_of_garbage(lp, reply):
    with impostor(reply) as target:
        done = lp("list", "--pid", target.pid)
        assert done.status == 1
        assert done.err == f"livepatch: What listens in process {target.pid} does not speak like a livepatch agent.\n"


@pytest.mark.parametrize(
    "told",
    ["'protocol': 1, 'version': [], 'python': '3'", "'protocol': 1, 'version': '', 'python': None", "'protocol': 1"],
)
def test_one_that_greets_badly(lp, told):
    script = textwrap.dedent(IMPOSTOR) + f"serve(lambda request: {{'id': request['id'], 'result': {{{told}}}}})"
    with Target(script) as target:
        target.hear()
        done = lp("list", "--pid", target.pid)
        assert (done.status, "does not speak like a livepatch agent" in done.err) == (1, True)


def test_what_it_says_does_not_steer_the_terminal(lp):
    """Escape sequences can move the cursor, rename the window, and make one name look like another."""
    evil = "\\x1b[2J\\x1b]0;owned\\x07\\u202efix\\x9b31m\\r"
    patch = PatchStatus(evil, True, False, False, 1, False, evil, evil, [])._asdict()
    task = TaskStatus("thread", evil, "1", -1, [evil], [evil], evil)._asdict()
    for command, reply in (("list", [patch]), ("tasks", [task]), ("dmesg", [evil])):
        told = repr(reply).replace("\\\\", "\\")
        with impostor("{'id': request['id'], 'result': " + told + "}") as target:
            done = lp(command, "--pid", target.pid)
            assert (done.status, done.err) == (0, "")
            assert "\\x1b[2J" in done.out
            assert all(c.isprintable() or c == "\n" for c in done.out)
    refusal = "{'id': request['id'], 'error': {'data': {'errno': 1, 'sentence': '" + evil + "'}}}"
    with impostor(refusal) as target:
        done = lp("list", "--pid", target.pid)
        assert all(c.isprintable() or c == "\n" for c in done.err)


@pytest.mark.parametrize("when", ["1e300", "-1e300", "float('nan')", "float('inf')"])
def test_a_time_that_is_none(lp, when):
    hello = f"'protocol': 1, 'version': '', 'python': '3', 'started': {when}"
    answers = f"{{'hello': {{{hello}}}, 'list': [], 'timed_dmesg': [{{'time': {when}, 'line': 'x'}}]}}"
    answer = f"lambda request: {{'id': request['id'], 'result': {answers}[request['method']]}}"
    with Target(textwrap.dedent(IMPOSTOR) + f"while True: serve({answer})") as target:
        target.hear()
        for command in (["status"], ["dmesg", "--time"]):
            done = lp(*command, "--pid", target.pid)
            assert (done.status, done.err) == (0, "") or "does not speak like a livepatch agent" in done.err


def test_what_people_write_stays_as_it_is():
    said = "Größe\tüber\n日本語 'x'"
    assert replies.visible({"a": [said, 1, None, True]}) == {"a": [said, 1, None, True]}
    assert replies.visible("\x1b") == "\\x1b"


def test_the_forms_are_those_of_real_answers():
    """A field that is added to a status needs no change here; one that goes, does."""
    patch = PatchStatus("x", True, False, False, 1, False)._asdict()
    task = TaskStatus("thread", "x", "1", -1)._asdict()
    assert set(replies._PATCH) == set(patch)
    assert set(replies._TASK) == set(task)
    assert set(replies._OVER) == set(Run._fields) | {"patch"}


@pytest.mark.parametrize("moved", [None, 7, {}, {"exit": 1}, dict.fromkeys(replies._MOVED, "many")])
def test_one_that_tells_of_a_past_that_makes_no_sense(lp, tmp_path, moved):
    """What is asked only for the report keeps neither the command nor the report from their end."""
    patch = PatchStatus("fix", True, False, False, 1, False, "", "", [])._asdict()
    over = {"patch": "fix", "direction": "unpatching", "outcome": "completed", "began": 0.0, "ended": 1e15, "total": 1}
    over |= {"reversals": 0, "moves": [], **({"moved": moved} if moved is not None else {})}
    nothing = {"totals": [], "moved": dict.fromkeys(replies._MOVED, 0), "refusals": [], "reversals": 0, "forced": []}
    answers = {
        "list": [patch],
        "write_enabled": {**patch, "enabled": False},
        "dmesg": [],
        "history": {"now": 0.0, "transitions": [over], "running": [], **nothing},
    }
    report = tmp_path / "report.html"
    with impostor("{'id': request['id'], 'result': " + repr(answers) + ".get(request['method'])}") as target:
        done = lp("disable", "fix", "--pid", target.pid, "--report", report)
        assert (done.status, done.err) == (0, "")
        assert f"Process {target.pid}" in report.read_text()


@pytest.mark.parametrize(
    "flood",
    [
        'b\'{"method": "log", "params": {}}\\n\' * 1000',
        'b\'{"id": 0, "result": 1}\\n\' * 1000',
        "b'x' * 100000",
        "b' ' * 100000",
    ],
)
def test_one_that_talks_for_ever(flood):
    """And never says what was asked. It is over in time, and what came is not kept for ever."""
    script = f"""
        first = hello
        def answer(request):
            if request["method"] == "hello": return first(request)
            while True: client.sendall({flood})
        try: serve(answer)
        except OSError: hear()
    """
    with Target(textwrap.dedent(IMPOSTOR) + textwrap.dedent(script)) as target:
        target.hear()
        with Client(target.pid) as connection:
            with pytest.raises(LivepatchError) as caught:
                connection.call("list", timeout=0.5)
            assert caught.value.symbol in ("ETIMEDOUT", "EPROTO")
            assert len(connection._events) <= client._EVENTS_LIMIT


def test_one_that_never_reads(tmp_path, monkeypatch):
    """A load is larger than what the kernel keeps for a reader."""
    monkeypatch.setattr(client, "LOAD_TIMEOUT", 0.5)
    file = tmp_path / "fix.py"
    file.write_bytes(b"#" * (8 << 20))
    script = """
        client = accept()
        lines = client.makefile("rb", 0)
        request = json.loads(lines.readline())
        client.sendall(json.dumps(hello(request)).encode() + b"\\n")
        hear()
    """
    with Target(textwrap.dedent(IMPOSTOR) + textwrap.dedent(script)) as target:
        target.hear()
        with Client(target.pid) as connection, pytest.raises(LivepatchError) as caught:
            connection.send_file("load", file)
        assert caught.value.symbol == "ETIMEDOUT"
