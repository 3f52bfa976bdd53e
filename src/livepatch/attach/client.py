"""The administrator's end of an agent's socket.

The other end is somebody else's process: it may end in the middle of an answer, be stopped, or not be an
agent at all. So every wait has a limit, and all of this becomes one sentence. Before anything is said,
the kernel is asked who listens there (SO_PEERCRED): only the very process that was meant will do, whoever
made the socket file.
"""

from __future__ import annotations

import base64
import errno
import json
import os
import select
import socket
import struct
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from livepatch.agent import PROTOCOL
from livepatch.archive import policy
from livepatch.core.model import LivepatchError

from . import replies, stops
from .processes import NoAccess, Process, alive, require_python

#: Seconds that an agent may take to answer. Its thread needs the interpreter, which C code can keep to
#: itself for a while.
ANSWER_TIMEOUT = 15.0
#: Seconds of waiting after which it is looked whether the process is stopped, so that waiting is in vain; and if it was
#: at the last look.
_LOOK, _LOOK_AGAIN = 1.0, 0.1
#: Seconds for an answer that should be there: others were waited for meanwhile.
_GLANCE = 0.01
#: Seconds between two tries to get a place in the queue of those who want to connect.
_PLACE = 0.02
#: A load compiles, imports and runs callbacks.
LOAD_TIMEOUT = 120.0
#: The agent takes no longer requests.
FILE_LIMIT = 64 * 2**20
_ANSWER_LIMIT = 512 * 2**20
#: Events that came in the middle of a call and are still to be read; older ones are forgotten.
_EVENTS_LIMIT = 100_000


class NotPrepared(LivepatchError):
    """A Python process in which no agent listens."""

    def __init__(self, process: Process) -> None:
        super().__init__(
            errno.ENOTCONN,
            f"Process {process.pid} (Python {process.python}) has no livepatch agent and so no patches;"
            f" `livepatch attach {process.pid}` brings the agent in.",
        )
        self.process = process


class Unreachable(NotPrepared):
    """A process whose agent lives, but whose socket has been taken away."""

    def __init__(self, process: Process) -> None:
        LivepatchError.__init__(
            self,
            errno.ENOTCONN,
            f"The agent of process {process.pid} is there, but its socket has been removed, so that nobody knows which"
            f" patches it has; `livepatch attach {process.pid}` has it make another, as it does by itself within a"
            " minute.",
        )
        self.process = process


class AgentFailure(LivepatchError):
    """The agent met an error that nobody foresaw; `traceback` is the agent's."""

    traceback = ""


class Question(NamedTuple):
    """A request that was sent, for `Client.answer`."""

    number: int
    method: str


class Client:
    """A connection to the agent of one process, ready to be called.

    Raises NoAccess if there is no such Python process or it is not ours, NotPrepared if no agent listens
    in it, and LivepatchError if the agent cannot be used; ETIMEDOUT at once if the process is stopped.
    """

    #: What it said of itself.
    hello: dict[str, Any]

    def __init__(self, pid: int, *, timeout: float = ANSWER_TIMEOUT) -> None:
        begun = time.monotonic()
        self._open(pid, until=begun + timeout)
        try:
            if stopped := stops.sentence(pid):
                raise LivepatchError(errno.ETIMEDOUT, stopped)
            self.hello = self.answer(self.ask("hello", timeout=timeout), timeout=timeout, begun=begun)
            if self.hello.get("protocol") != PROTOCOL:
                raise LivepatchError(
                    errno.EPROTO,
                    f"Process {pid} has the agent of another livepatch (version {self.hello.get('version')});"
                    " use that version of the command.",
                )
        except BaseException:
            self.close()
            raise

    @classmethod
    def unheard(cls, pid: int) -> Self:
        """A connection to an agent that does not answer: what it is told is done when the process goes on."""
        client = cls.__new__(cls)
        client._open(pid)
        client.hello = {}
        return client

    def _open(self, pid: int, *, until: float = 0.0) -> None:
        self.pid = pid
        self.process = require_python(pid)
        self._inbox = bytearray()
        self._events: deque[dict[str, Any]] = deque(maxlen=_EVENTS_LIMIT)
        self._number = 0
        self._look = _LOOK
        self._sock = _connect(self.process, until)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @property
    def connected(self) -> bool:
        """The other end has not closed the connection yet."""
        if self._sock.fileno() < 0:
            return False
        look = select.poll()
        look.register(self._sock, select.POLLRDHUP)
        return not look.poll(0)

    def close(self) -> None:
        self._sock.close()

    def call(self, method: str, *, timeout: float = ANSWER_TIMEOUT, **params: Any) -> Any:
        """Call a method of the agent and return its result; LivepatchError carries the agent's refusal."""
        return self.answer(self.ask(method, timeout=timeout, **params), timeout=timeout)

    def ask(self, method: str, *, timeout: float = ANSWER_TIMEOUT, **params: Any) -> Question:
        """Send a request without waiting for its answer, so that several processes work at the same time."""
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        question = Question(self._number, method)
        data = memoryview(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout
        try:
            while data:  # a large one does not fit into the socket at once
                try:
                    self._sock.settimeout(max(0.001, min(self._look, deadline - time.monotonic())))
                    data = data[self._sock.send(data) :]
                except TimeoutError:
                    self._give_up(method, timeout, deadline)
        except LivepatchError:
            self.close()  # the other end has half of a line, and must take nothing else for the rest of it
            raise
        except OSError:
            raise self._lost(method) from None
        return question

    def answer(self, question: Question, *, timeout: float = ANSWER_TIMEOUT, begun: float | None = None) -> Any:
        """The answer to what was asked. LivepatchError(ETIMEDOUT) if it does not come in time, or the process is
        stopped: it may be waited for again, or something else be asked, and then what comes late is passed over.

        The time counts from now, or from `begun`, by the monotonic clock; one that has come is read in any case.
        """
        now = time.monotonic()
        deadline = now + timeout if begun is None else max(begun + timeout, now + _GLANCE)
        try:
            while True:
                try:
                    message = self._receive(min(deadline, time.monotonic() + self._look))
                except TimeoutError:
                    self._give_up(question.method, timeout, deadline)
                    continue
                if message.get("id") == question.number:
                    break
                if replies.is_event(message):
                    self._events.append(message)
        except ConnectionError:
            raise self._lost(question.method) from None
        if "result" in message:
            if not replies.has_form(question.method, message["result"]):
                raise self._garbage()
            return message["result"]
        raise self._refusal(message)

    def send_file(self, method: str, path: Path) -> dict[str, Any]:
        """`load` or `check` a patch file; the agent asks the rules that hold there."""
        result: dict[str, Any] = self.call(method, timeout=LOAD_TIMEOUT, **as_params(path))
        return result

    def event(self, timeout: float) -> dict[str, Any] | None:
        """The next event since `subscribe` was called, or None if there is none for so many seconds."""
        if self._events:
            return self._events.popleft()
        try:
            message = self._receive(time.monotonic() + timeout)
        except TimeoutError:
            return None
        except ConnectionError:
            raise self._lost("subscribe") from None
        if not replies.is_event(message):
            raise self._garbage()
        return message

    def _receive(self, deadline: float) -> dict[str, Any]:
        """The next message; TimeoutError when the deadline passes before it is complete."""
        searched = 0
        while (end := self._inbox.find(b"\n", searched)) < 0:
            searched = len(self._inbox)
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._sock.settimeout(left)
            data = self._sock.recv(2**20)
            if not data:
                raise ConnectionResetError
            self._inbox += data
            if len(self._inbox) > _ANSWER_LIMIT:
                raise self._garbage()
        line = self._inbox[:end]
        del self._inbox[: end + 1]
        try:
            message = json.loads(line)
        except (ValueError, RecursionError):
            raise self._garbage() from None
        if not isinstance(message, dict):
            raise self._garbage()
        shown: dict[str, Any] = replies.visible(message)
        return shown

    def _give_up(self, method: str, timeout: float, deadline: float) -> None:
        """After a wait in vain: raise if there is no more time, or no sense in it."""
        later = f"`livepatch status --pid {self.pid}` tells later what became of '{method}'."
        if stopped := stops.sentence(self.pid):
            self._look = _LOOK_AGAIN
            raise LivepatchError(errno.ETIMEDOUT, f"{stopped} {later}")
        self._look = _LOOK
        if time.monotonic() >= deadline:
            sentence = f"Process {self.pid} did not answer '{method}' within {timeout:g} s; it may be busy in C code."
            raise LivepatchError(errno.ETIMEDOUT, f"{sentence} {later}")

    def _garbage(self) -> LivepatchError:
        return LivepatchError(
            errno.EPROTO, f"What listens in process {self.pid} does not speak like a livepatch agent."
        )

    def _lost(self, method: str) -> LivepatchError:
        # The socket closes a moment before the process is gone from /proc.
        deadline = time.monotonic() + 1.0
        while alive(self.pid) and time.monotonic() < deadline:
            time.sleep(0.01)
        if alive(self.pid):
            return LivepatchError(
                errno.ECONNRESET, f"The agent of process {self.pid} closed the connection during '{method}'."
            )
        return NoAccess(errno.ESRCH, f"Process {self.pid} ended during '{method}'.")

    def _refusal(self, message: dict[str, Any]) -> LivepatchError:
        error = message.get("error")
        data = error.get("data") if isinstance(error, dict) else None
        if not isinstance(data, dict) or not isinstance(data.get("errno"), int):
            return self._garbage()
        number, sentence = data["errno"], str(data.get("sentence"))
        if "traceback" in data:
            failure = AgentFailure(number, sentence)
            failure.traceback = str(data["traceback"])
            return failure
        return LivepatchError(number, sentence)


def as_params(path: Path) -> dict[str, Any]:
    """A patch file as the parameters of `load` and `check`, if the rules that hold here let it out."""
    if path.stat().st_size > FILE_LIMIT:
        raise LivepatchError(errno.EFBIG, f"{path} is larger than {FILE_LIMIT >> 20} MiB, too large for a patch.")
    content = path.read_bytes()
    policy.require(content, path.name)
    return {"file": path.name, "data": base64.b64encode(content).decode()}


def listens(process: Process) -> bool:
    """Whether an agent listens in this process and the caller may talk to it. Nothing is said, nothing waits."""
    try:
        _connect(process).close()
    except LivepatchError as error:
        return error.errno == errno.ETIMEDOUT  # it is there, but accepts nobody just now
    return True


def _connect(process: Process, until: float = 0.0) -> socket.socket:
    """A socket whose other end is this very process; `until` then it waits for a place in the queue there."""
    denied = False
    for path in process.sockets():
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.settimeout(ANSWER_TIMEOUT)
            _queue(sock, path, process.pid, until)
            if _peer_pid(sock) == process.pid:
                return sock
        except PermissionError:
            denied = True
        except LivepatchError:
            sock.close()
            raise
        except OSError:
            pass
        sock.close()
    if denied and process.uid != os.geteuid():
        raise NoAccess(
            errno.EACCES, f"Process {process.pid} belongs to user {process.uid}; run livepatch as that user or as root."
        )
    raise Unreachable(process) if process.listens_unseen() else NotPrepared(process)


def _queue(sock: socket.socket, path: str, pid: int, until: float) -> None:
    """Connect, if need be when others have been served.

    Each try that a stopped process has not answered keeps its place in the queue until that goes on, so the queue may
    be full for a moment then.
    """
    while True:
        try:
            return sock.connect(path)
        except BlockingIOError:  # the kernel waits for a place only where it waits without a limit
            stopped = stops.sentence(pid)
            if stopped is not None or time.monotonic() >= until:
                busy = f"The agent of process {pid} accepts no connection; it may be busy in C code."
                raise LivepatchError(errno.ETIMEDOUT, stopped or busy) from None
        time.sleep(_PLACE)


def _peer_pid(sock: socket.socket) -> int:
    """The process that listens at the other end, as the kernel knows it."""
    pid, _uid, _gid = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(pid)
