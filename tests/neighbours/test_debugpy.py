"""debugpy attached to a program that is being patched, spoken to in its own protocol."""

import json
import os
import socket
import subprocess
import sys

import pytest
from tests.core import kit
from tests.neighbours.traced import PROGRAM, RESULTS

PRELUDE = """\
import debugpy
print(*debugpy.listen(("127.0.0.1", 0)), flush=True)
debugpy.wait_for_client()
"""


class Client:
    """As much of an editor as sets breakpoints and goes on from each."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=kit.PATIENCE)
        self.stream = self.socket.makefile("rb")
        self.sent = 0
        self.waiting = []

    def send(self, command, **arguments):
        self.sent += 1
        text = json.dumps({"seq": self.sent, "type": "request", "command": command, "arguments": arguments}).encode()
        self.socket.sendall(b"Content-Length: %d\r\n\r\n%s" % (len(text), text))

    def receive(self):
        length = 0
        while (line := self.stream.readline().strip()) or not length:
            if line.lower().startswith(b"content-length:"):
                length = int(line.partition(b":")[2])
        return json.loads(self.stream.read(length))

    def answer(self, command, **arguments):
        """Ask, and give the answer; events that come before it wait."""
        self.send(command, **arguments)
        while True:
            message = self.receive()
            if message["type"] == "response" and message["command"] == command:
                assert message["success"], message
                return message.get("body", {})
            self.waiting.append(message)

    def event(self, *names):
        """The next event of one of these names."""
        while True:
            message = self.waiting.pop(0) if self.waiting else self.receive()
            if message.get("event") in names:
                return message

    def close(self):
        self.stream.close()
        self.socket.close()


def test_breakpoints_of_both_versions(files, tmp_path):
    """Each is met whenever its version runs, in every thread, also in the middle of a transition, and none is lost."""
    pytest.importorskip("debugpy")
    target, new = files
    program = tmp_path / "program.py"
    text = PRELUDE + PROGRAM.replace("NEW", repr(new))
    program.write_text(text)
    by_hand = next(n for n, line in enumerate(text.splitlines(), 1) if 'word = "by hand"' in line)
    places = {target.__file__: 6, new: 8, str(program): by_hand}
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path]),
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    }
    command = [sys.executable, str(program)]
    with subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True) as process:
        host, port = process.stdout.readline().split()
        client = Client((host, int(port)))
        try:
            client.answer("initialize", adapterID="test", pathFormat="path", linesStartAt1=True)
            client.send("attach", justMyCode=True)
            client.event("initialized")
            for path, line in places.items():
                client.answer("setBreakpoints", source={"path": path}, breakpoints=[{"line": line}])
            client.answer("configurationDone")
            stops = []
            while (event := client.event("stopped", "terminated", "exited"))["event"] == "stopped":
                thread = event["body"]["threadId"]
                top = client.answer("stackTrace", threadId=thread, levels=1)["stackFrames"][0]
                stops.append((os.path.basename(top["source"]["path"]), top["line"]))
                client.answer("continue", threadId=thread)
        finally:
            client.close()
            output, _ = process.communicate(timeout=kit.PATIENCE)
    old, newer = ("lp_traced.py", 6), ("new.py", 8)
    assert stops == [old, old, newer, old, newer, ("program.py", by_hand), old]
    assert output.strip() == str(RESULTS)
    assert process.returncode == 0
