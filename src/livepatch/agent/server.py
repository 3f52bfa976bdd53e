"""The socket of the agent: who may speak, and lines in and out without ever waiting for anybody.

Everything here runs in the agent's thread, which also drives the transitions. So no client may hold it
up: sockets never block, a request line has a limit, a client that does not read its answers is not
listened to until it does, and one that follows events and falls behind is dropped. When too many are
connected, the one that has been quiet the longest goes.

The kernel tells who connected (SO_PEERCRED): root and the user the process runs as, nobody else.
"""

from __future__ import annotations

import _socket as socket  # what nobody replaces
import os
import struct
from collections.abc import Callable
from contextlib import suppress

from livepatch.core.model import LivepatchError

from . import places, poll

#: The longest request line: an archive of 64 MiB in base64, and its envelope.
LINE_LIMIT = 90 * 2**20
#: How much a client that follows events may fall behind.
EVENTS_LIMIT = 2**20
CONNECTIONS_LIMIT = 32
_CHUNK = 2**18
#: What the kernel shows for a user whom a user namespace does not know.
_OVERFLOW_UID = 65534

Answer = Callable[[bytearray, "Connection"], "bytes | None"]


class Connection:
    """One client: what came from it and is not a whole line yet, and what it has not taken yet."""

    def __init__(self, server: Server, sock: socket.socket) -> None:
        self.server = server
        self.sock = sock
        self.inbox = bytearray()
        self.outbox = bytearray()
        self.follows = False  # it subscribed to events

    def send(self, line: bytes) -> None:
        """Queue a line; what the client does not take at once goes out when it does."""
        self.outbox += line
        self.flush()

    def push(self, line: bytes) -> None:
        """Queue an event; a client that is too far behind is dropped."""
        if len(self.outbox) + len(line) > EVENTS_LIMIT:
            self.server.drop(self)
        else:
            self.send(line)

    def receive(self) -> None:
        """Take what the client sent, and answer the lines that are complete."""
        try:
            data = self.sock.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self.server.drop(self)
            return
        self.inbox += data
        if b"\n" in data:
            self.answer_lines()
        elif len(self.inbox) > LINE_LIMIT:
            self.server.drop(self)

    def answer_lines(self) -> None:
        """Answer complete lines, one at a time, as long as the client takes the answers."""
        while not self.outbox and (end := self.inbox.find(b"\n")) >= 0:
            line = self.inbox[:end]
            del self.inbox[: end + 1]
            reply = self.server.answer(line, self)
            if reply is not None:
                self.send(reply)

    def flush(self) -> None:
        """Write what the client takes now."""
        try:
            while self.outbox:
                with memoryview(self.outbox) as view:
                    sent = self.sock.send(view[:_CHUNK])
                del self.outbox[:sent]
        except BlockingIOError:
            pass
        except OSError:  # it is gone; what it asked before that is carried out, until its end is read
            self.outbox.clear()
        if self in self.server.connections:
            self.server.listen_to(self)


class Server:
    """The listening socket of this process and its clients, registered in what the agent's thread polls.

    `answer` gets each request line with its connection and returns the line to send back.
    """

    def __init__(self, polled: poll.Poll, answer: Answer) -> None:
        self.polled = polled
        self.answer = answer
        self.connections: list[Connection] = []  # the most recently active last
        self._listen()

    def _listen(self) -> None:
        self.listener, self.path = _listen()
        self._mark = os.lstat(self.path)
        self.polled.register(self.listener, poll.READ, self.accept)

    def is_reachable(self) -> bool:
        """The socket is still where clients look for it: nobody has cleaned it away, or put another one there."""
        try:
            return os.path.samestat(os.lstat(self.path), self._mark)
        except FileNotFoundError:
            return False
        except OSError:  # we may not look: it is no more ours to say
            return True

    def listen_anew(self) -> socket.socket:
        """Where it is not reachable any more; returns the socket that nobody can reach, to be closed. Raises
        LivepatchError if there is no place, and then nothing has changed.
        """
        before = self.listener
        self._listen()
        self.polled.unregister(before)
        return before

    def accept(self) -> None:
        """Let a client in if it is root or our own user."""
        try:
            descriptor, _ = self.listener._accept()  # type: ignore[attr-defined]
            sock = socket.socket(fileno=descriptor)
        except OSError:  # it went away again, or there is no descriptor left for it
            return
        if not self._may_speak(sock):
            sock.close()
            return
        if len(self.connections) >= CONNECTIONS_LIMIT:
            self.drop(self.connections[0])
        sock.setblocking(False)
        connection = Connection(self, sock)
        self.connections.append(connection)
        self.polled.register(sock, poll.READ, lambda: self.attend(connection))

    def _may_speak(self, sock: socket.socket) -> bool:
        """Whether the other end is root or our own user, as the kernel knows it.

        Root of an outer user namespace has no number in ours. It is known by having come in all the same, through a
        directory that is closed to everybody but us.
        """
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        pid, uid, _gid = struct.unpack("3i", credentials)
        if uid in (0, os.geteuid()):
            return True
        try:
            closed = places.directory_problem(os.lstat(os.path.dirname(self.path)), os.geteuid()) is None
        except OSError:
            return False
        return closed and _has_no_number_here(pid, uid)

    def attend(self, connection: Connection) -> None:
        """The client sent something, or can take more of what it is owed."""
        if connection not in self.connections:  # dropped since poll reported it
            return
        self.connections.remove(connection)
        self.connections.append(connection)
        try:
            if connection.outbox:
                connection.flush()
                if connection.sock.fileno() >= 0:
                    connection.answer_lines()
            else:
                connection.receive()
        except BaseException:  # a program that ends its threads: the client must not wait for what was read and is lost
            self.drop(connection)
            raise

    def listen_to(self, connection: Connection) -> None:
        """Wait for the client to read while it is owed something, else for its next request."""
        wanted = poll.WRITE if connection.outbox else poll.READ
        key = self.polled.key(connection.sock)
        if key.events != wanted:
            self.polled.register(connection.sock, wanted, key.call)

    def drop(self, connection: Connection) -> None:
        """Forget a client."""
        if connection in self.connections:
            self.connections.remove(connection)
            self.polled.unregister(connection.sock)
            connection.sock.close()
            connection.inbox.clear()
            connection.outbox.clear()

    def sockets(self) -> list[socket.socket]:
        """All sockets of this server, the listening one first."""
        return [self.listener, *(connection.sock for connection in self.connections)]


def _listen() -> tuple[socket.socket, str]:
    """A socket that listens in the first place which takes one, and its path."""
    problems = []
    for base in places.BASES:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            places.clear_leftovers(places.ensure_directory(base))
            path = places.socket_path(base)
            with suppress(FileNotFoundError):
                os.unlink(path)  # of an earlier process with our pid, or of ourselves before an exec
            listener.setblocking(False)
            listener.bind(path)
            listener.listen(16)
            return listener, path
        except OSError as error:
            listener.close()
            if isinstance(error, LivepatchError):
                raise
            problems.append(error)
    raise LivepatchError(
        problems[0].errno or 0,
        "The agent's socket cannot be made in "
        + " or ".join(f"{base} ({error.strerror})" for base, error in zip(places.BASES, problems, strict=True))
        + "; let the process write to one of these.",
    )


def _has_no_number_here(pid: int, uid: int) -> bool:
    """Whether this user is one whom our user namespace does not know.

    A namespace that has a user with the very number that stands for those leaves that in doubt, unless the other end
    is also outside of our pid namespace.
    """
    if uid != _OVERFLOW_UID:
        return False
    try:
        with open("/proc/self/uid_map") as text:
            ranges = [(int(first), int(count)) for first, _, count in map(str.split, text)]
    except OSError:
        return False
    known = any(first <= uid < first + count for first, count in ranges)
    return not known or (pid == 0 and sum(count for _, count in ranges) < 2**32 - 1)
