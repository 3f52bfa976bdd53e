"""Whatever the other end does, the client says one sentence about it, and in time."""

import os
import signal
import textwrap
import time

import pytest
from tests.agent.targets import PATIENCE, Target

from livepatch.attach.client import AgentFailure, Client, NotPrepared, listens
from livepatch.attach.processes import NoAccess, examine
from livepatch.core.model import LivepatchError

#: A process that listens where an agent would, and does something else. It talks to the test alone: others that run
#: meanwhile ask whoever listens, such as `livepatch ps`.
IMPOSTOR = """
    import json, os, socket, struct
    os.makedirs(f"/tmp/livepatch-{os.geteuid()}", 0o700, exist_ok=True)
    path = f"/tmp/livepatch-{os.geteuid()}/{os.getpid()}.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path)
    listener.listen()
    say("ready")
    def accept():
        while True:
            client, _ = listener.accept()
            who = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            if struct.unpack("3i", who)[0] == os.getppid(): return client
            client.close()
    def serve(answer):
        global client
        client = accept()
        lines = client.makefile("rb")
        for line in lines:
            reply = answer(json.loads(line))
            client.sendall(reply if isinstance(reply, bytes) else json.dumps(reply).encode() + b"\\n")
        client.close()
    def hello(request, **more):
        told = {"protocol": 1, "python": "3.11.0", "version": "9.9", "started": 0.0, **more}
        return {"id": request["id"], "result": told}
"""

AGENT = "import livepatch as lp; lp.start_agent(); say('ready')\n"


def impostor(script):
    target = Target(textwrap.dedent(IMPOSTOR) + textwrap.dedent(script))
    assert target.hear() == "ready"
    return target


def refusal(pid, kind=LivepatchError, timeout=PATIENCE):
    with pytest.raises(LivepatchError) as error:
        Client(pid, timeout=timeout)
    assert type(error.value) is kind
    assert "\n" not in str(error.value)
    return error.value.symbol, str(error.value)


def test_calls_and_refusals():
    with Target(AGENT + "hear()") as target:
        target.hear()
        with Client(target.pid) as client:
            assert client.hello["pid"] == target.pid
            assert client.call("list") == []
            with pytest.raises(LivepatchError, match="There is no enabled patch 'nothing'") as error:
                client.call("write_enabled", name="nothing", value="0")
            assert error.value.symbol == "ENOENT"
            assert client.call("dmesg") == []


def test_not_prepared():
    with Target("say('ready'); hear()") as target:
        target.hear()
        symbol, sentence = refusal(target.pid, NotPrepared)
        assert symbol == "ENOTCONN"
        assert "has no livepatch agent and so no patches; " in sentence
        assert f"`livepatch attach {target.pid}` " in sentence


def test_a_socket_that_another_process_made_is_not_spoken_to():
    """Also if the path is right: the kernel knows who listens."""
    with Target("say('ready'); hear()") as target:
        target.hear()
        script = textwrap.dedent(IMPOSTOR).replace("{os.getpid()}", str(target.pid))
        with Target(script + "serve(hello)") as liar:
            liar.hear()
            refusal(target.pid, NotPrepared)
            os.unlink(f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock")


def test_one_that_never_answers():
    with impostor("hear()") as target:
        symbol, sentence = refusal(target.pid, timeout=0.2)
        assert symbol == "ETIMEDOUT"
        assert sentence.startswith(f"Process {target.pid} did not answer 'hello' within 0.2 s;")


def test_one_of_several_that_does_not_answer():
    """The limit is said that there was for all, and not what others had left of it."""
    with impostor("serve(lambda request: hello(request) if request['method'] == 'hello' else b'')") as target:
        with Client(target.pid) as client:
            question = client.ask("list")
            with pytest.raises(LivepatchError, match=r"did not answer 'list' within 3 s;") as error:
                client.answer(question, timeout=3.0, begun=time.monotonic() - 3.0)
            assert error.value.symbol == "ETIMEDOUT"


#: A queue for one, which is full.
FULL = """
    listener.listen(0)
    first = socket.socket(socket.AF_UNIX)
    first.connect(path)
    first.close()
"""


def test_one_whose_queue_is_full_is_waited_for(monkeypatch):
    with impostor(FULL + "    say('full'); hear(); serve(hello); hear()") as target:
        assert target.hear() == "full"
        process = examine(target.pid)
        assert listens(process), "nothing waits"
        symbol, sentence = refusal(target.pid, timeout=0.2)
        assert symbol == "ETIMEDOUT"
        assert sentence == f"The agent of process {target.pid} accepts no connection; it may be busy in C code."
        sleep = time.sleep
        monkeypatch.setattr("livepatch.attach.client.time.sleep", lambda seconds: (target.say(), sleep(seconds)))
        with Client(target.pid, timeout=PATIENCE) as client:
            assert client.hello["version"] == "9.9"


def test_one_that_is_stopped():
    with Target(AGENT + "hear()") as target:
        target.hear()
        target.signal(signal.SIGSTOP)
        for _ in range(20):  # until its queue is full, and then
            symbol, sentence = refusal(target.pid, timeout=PATIENCE)
            assert symbol == "ETIMEDOUT"
            assert "is stopped and does not answer" in sentence
        target.signal(signal.SIGCONT)
        with Client(target.pid) as client:
            assert client.hello["pid"] == target.pid


@pytest.mark.parametrize(
    "reply",
    ["b'hello there\\n'", "b'[]\\n'", "b'\\xff\\n'", "{'id': 1}", "{'id': 1, 'error': 'no'}", "{'id': 1, 'error': {}}"],
)
def test_one_that_answers_garbage(reply):
    with impostor(f"serve(lambda request: {reply})") as target:
        symbol, sentence = refusal(target.pid)
        assert symbol == "EPROTO"
        assert sentence == f"What listens in process {target.pid} does not speak like a livepatch agent."


def test_one_that_talks_on_and_on_without_a_line():
    with impostor("serve(lambda request: b'x' * 10000)\nhear()") as target:
        assert refusal(target.pid, timeout=0.5)[0] == "ETIMEDOUT"


def test_one_that_closes_the_connection():
    with impostor("client = accept()\nclient.recv(10)\nclient.close()\nhear()") as target:
        symbol, sentence = refusal(target.pid)
        assert symbol == "ECONNRESET"
        assert sentence == f"The agent of process {target.pid} closed the connection during 'hello'."


def test_another_version():
    with impostor("serve(lambda request: hello(request, protocol=2))") as target:
        symbol, sentence = refusal(target.pid)
        assert symbol == "EPROTO"
        assert "another livepatch (version 9.9)" in sentence


@pytest.mark.parametrize("half", ["b''", "b'{\"id\": 2, '"])
def test_one_that_dies_in_the_middle(half):
    script = f"""
    def answer(request):
        if request["method"] == "hello":
            return hello(request)
        client.sendall({half})
        os._exit(1)
    serve(answer)
    """
    with impostor(script) as target, Client(target.pid) as client:
        with pytest.raises(NoAccess) as error:
            client.call("load", file="x", data="")
        assert error.value.symbol == "ESRCH"
        assert str(error.value) == f"Process {target.pid} ended during 'load'."


def test_answers_to_earlier_questions_and_events_are_sorted_out():
    script = """
    def answer(request):
        if request["method"] == "hello":
            return hello(request)
        return (
            b'{"id": 0, "result": "late"}\\n{"method": "log", "params": {"time": 1, "line": "x"}}\\n'
            b'{"id": 2, "result": 5}\\n'
        )
    serve(answer)
    """
    with impostor(script) as target, Client(target.pid) as client:
        assert client.call("anything") == 5
        assert client.event(0) == {"method": "log", "params": {"time": 1, "line": "x"}}
        assert client.event(0.01) is None


def test_an_unforeseen_error_brings_the_agents_traceback():
    script = "import livepatch.core.log as log; log.dmesg = None\n" + AGENT + "hear()"
    with Target(script) as target:
        target.hear()
        with Client(target.pid) as client, pytest.raises(AgentFailure) as error:
            client.call("dmesg")
    assert error.value.symbol == "EIO"
    assert "Traceback" in error.value.traceback


def test_a_file_that_is_too_large_is_not_sent(tmp_path, monkeypatch):
    monkeypatch.setattr("livepatch.attach.client.FILE_LIMIT", 10)
    (tmp_path / "large").write_bytes(b"x" * 11)
    with Target(AGENT + "hear()") as target:
        target.hear()
        with Client(target.pid) as client, pytest.raises(LivepatchError, match="too large for a patch") as error:
            client.send_file("load", tmp_path / "large")
    assert error.value.symbol == "EFBIG"


def test_whether_somebody_listens_is_seen_from_outside():
    with Target(AGENT + "hear()") as target, Target("say('ready'); hear()") as bare:
        target.hear(), bare.hear()
        process = examine(target.pid)
        assert listens(process)
        assert not listens(examine(bare.pid))
        target.signal(signal.SIGSTOP)
        assert listens(process), "also if it does not answer just now"
        target.kill()
        assert not listens(process)


def test_whether_the_connection_is_still_there():
    with Target(AGENT + "hear()") as target:
        target.hear()
        with Client(target.pid) as client:
            assert client.connected
            target.kill()
            assert not client.connected
        assert not client.connected


@pytest.mark.slow
def test_a_large_file_arrives():
    with Target(AGENT + "hear()") as target:
        target.hear()
        with Client(target.pid) as client:
            source = b"#" * (48 * 2**20)
            with pytest.raises(LivepatchError, match="is not marked as a livepatch module"):
                client.call("load", file="x.py", data=__import__("base64").b64encode(source).decode(), timeout=PATIENCE)
