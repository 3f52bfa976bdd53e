"""Real processes to be patched, and clients that talk to their agents in the plainest way.

A target runs a script that says what it is doing, one line at a time; tests wait for lines, never for
time to pass.
"""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path

#: How long anything may take before a test gives up: generous, the machine may be busy.
PATIENCE = 60.0

#: The module that scripts use to talk to the test.
TALK = """
import sys, threading
def say(*words):
    sys.stdout.write(" ".join(map(str, words)) + "\\n")
    sys.stdout.flush()
def hear():
    return sys.stdin.readline().strip()
"""

#: How the script of a service ends that does what the test says. "ask": it says what its `answer()` is; "enter": a
#: thread of it is in `slow()`, until "leave". Other words may follow.
SERVES = """
    leave, inside = threading.Event(), threading.Event()
    def slow():
        inside.set()
        leave.wait()
    say("ready")
    while (word := hear()):
        if word == "ask": say(answer())
        if word == "enter":
            inside.clear()
            leave.clear()
            threading.Thread(target=slow, name="worker", daemon=True).start()
            inside.wait()
            say("inside")
        if word == "leave": leave.set()
"""


class Target:
    """A running script. It has `say(...)`, which the test reads with `hear`, and `hear()`, for what the test
    says.
    """

    def __init__(
        self,
        script: str,
        *,
        command: list[str] | None = None,
        env: Mapping[str, str] | None = None,
        folder: Path | None = None,
        arguments: tuple[str, ...] = (),
    ) -> None:
        text = TALK + textwrap.dedent(script)
        python = command or [sys.executable]
        self.process = subprocess.Popen(
            [*python, "-c", text, *arguments] if folder is None else [*python, str(_written(folder, text)), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=None if env is None else {**os.environ, **env},
        )
        self.pid = self.process.pid
        self._heard = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.kill()

    def kill(self) -> None:
        """End it, stopped or not."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def signal(self, number: signal.Signals) -> None:
        """Send it; a process that is to stop has stopped then, with all of its threads."""
        self.process.send_signal(number)
        if number == signal.SIGSTOP:
            os.waitid(os.P_PID, self.pid, os.WSTOPPED)

    def say(self, line: str = "") -> None:
        os.write(self.process.stdin.fileno(), line.encode() + b"\n")

    def hear(self) -> str:
        """The next line that the script says."""
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0, deadline - time.monotonic()))
            assert ready, f"the target said no line; so far: {self._heard!r}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"the target ended, saying {self._heard!r}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def hear_until(self, wanted: str) -> None:
        """Skip lines until this one."""
        while self.hear() != wanted:
            pass


def _written(folder: Path, text: str) -> Path:
    path = folder / "target.py"
    path.write_text(text)
    return path


def eventually(condition: Callable[[], object]) -> object:
    """Wait until the condition holds, and return its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return value


def free_port() -> int:
    """A port for a server that is to be told one. It is none of those that the kernel hands out by itself, so nobody
    gets it before that server does, and each process that tests begins to look at another one.
    """
    for port in range(10_000 + os.getpid() % 10_000, 32_768):
        with socket.socket() as found:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                found.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("there is no free port")


class Line:
    """A bare connection to a socket that speaks JSON lines."""

    def __init__(self, path: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(path)
        except OSError:
            self.sock.close()
            raise
        self._inbox = b""

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.sock.close()

    def send(self, message: object) -> None:
        self.sock.sendall(message if isinstance(message, bytes) else json.dumps(message).encode() + b"\n")

    def receive(self) -> dict | None:
        """The next message, None at the end."""
        while b"\n" not in self._inbox:
            try:
                data = self.sock.recv(1 << 16)
            except ConnectionResetError:
                return None
            if not data:
                return None
            self._inbox += data
        line, _, self._inbox = self._inbox.partition(b"\n")
        return json.loads(line)

    def call(self, method: str, **params: object) -> dict | None:
        self.send({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})
        while (message := self.receive()) is not None and message.get("id") != 1:
            pass
        return message
