"""No client holds the agent up, and nobody else gets in."""

import json
import os
import socket
import sys
import tempfile

import pytest

from livepatch.agent import places, poll, server

MEGABYTE = b"x" * 2**20


@pytest.fixture
def polled():
    return poll.Poll()


@pytest.fixture
def running(polled, tmp_path, monkeypatch):
    """A server that answers `big` with a megabyte and everything else with itself."""
    directory = tmp_path / "sockets"
    monkeypatch.setattr(places, "directory_of", lambda uid, base: str(directory))
    made = server.Server(polled, lambda line, client: (MEGABYTE if line == b"big" else bytes(line)) + b"\n")
    yield made
    for sock in made.sockets():
        sock.close()


def turn(polled, times=20):
    """What the agent's thread does, until nobody wants anything."""
    for _ in range(times):
        calls = polled.wait(0)
        for call in calls:
            call()
        if not calls:
            return


@pytest.fixture
def connect(running, polled):
    made = []

    def connected():
        client = socket.socket(socket.AF_UNIX)
        client.connect(running.path)
        client.setblocking(False)
        made.append(client)
        turn(polled)
        return client

    yield connected
    for client in made:
        client.close()


def gone(client):
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True
    except BlockingIOError:
        return False


def test_a_line_is_answered(connect, polled):
    client = connect()
    client.send(b"one\ntw")
    turn(polled)
    assert client.recv(100) == b"one\n"
    client.send(b"o\nthree\n")
    turn(polled)
    assert client.recv(100) == b"two\nthree\n"


def test_a_client_that_reads_nothing_is_not_listened_to(running, connect, polled):
    slow, other = connect(), connect()
    for _ in range(50):
        try:
            slow.send(b"big\n" * 100)
        except BlockingIOError:
            break
        turn(polled, 3)
    owed = max(len(connection.outbox) for connection in running.connections)
    assert owed <= 2 * len(MEGABYTE)
    other.send(b"hello\n")
    turn(polled)
    assert other.recv(100) == b"hello\n"


def test_it_gets_everything_when_it_reads_again(connect, polled):
    slow = connect()
    slow.send(b"big\nbig\nlast\n")
    received = b""
    while not received.endswith(b"last\n"):
        turn(polled, 3)
        try:
            received += slow.recv(2**16)
        except BlockingIOError:
            continue
    assert received == (MEGABYTE + b"\n") * 2 + b"last\n"


def test_a_line_without_end_is_cut(running, connect, polled, monkeypatch):
    monkeypatch.setattr(server, "LINE_LIMIT", 2**16)
    client = connect()
    for _ in range(3):
        try:
            client.send(b"x" * 2**16)
        except (BlockingIOError, BrokenPipeError):
            pass
        turn(polled)
    assert gone(client)
    assert running.connections == []


def test_a_dead_client_is_forgotten(running, connect, polled):
    client = connect()
    client.send(b"big\n")
    client.close()
    turn(polled)
    assert running.connections == []
    assert len(polled) == 1


def test_a_follower_that_falls_behind_is_dropped(running, connect, polled):
    client = connect()
    (connection,) = running.connections
    for _ in range(30):
        connection.push(b"x" * 2**17 + b"\n")
    assert running.connections == []
    turn(polled)
    while not gone(client):
        pass


def test_the_quietest_goes_when_there_are_too_many(running, connect, polled, monkeypatch):
    monkeypatch.setattr(server, "CONNECTIONS_LIMIT", 3)
    clients = [connect() for _ in range(3)]
    clients[0].send(b"still here\n")
    turn(polled)
    connect()
    assert [gone(client) for client in clients[1:]] == [True, False]
    assert clients[0].recv(100) == b"still here\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become somebody else")
def test_another_user_is_turned_away(polled, monkeypatch):
    """Even if the directory let it through."""
    with tempfile.TemporaryDirectory() as folder:
        monkeypatch.setattr(places, "directory_of", lambda uid, base: f"{folder}/sockets")
        running = server.Server(polled, lambda line, client: bytes(line) + b"\n")
        for path in (folder, f"{folder}/sockets", running.path):
            os.chmod(path, 0o777)
        stranger = os.fork()
        if stranger == 0:
            with socket.socket(socket.AF_UNIX) as client:
                os.setuid(65534)
                client.connect(running.path)
                os._exit(0 if client.recv(1) == b"" else 1)
        polled.wait(None)
        turn(polled)
        assert os.waitpid(stranger, 0)[1] == 0
        assert running.connections == []
        running.listener.close()


def test_a_second_server_takes_the_path_over(running, polled, tmp_path):
    """As after an exec: the file is there, but its listener is not."""
    running.listener.close()
    another = poll.Poll()
    again = server.Server(another, lambda line, client: json.dumps("again").encode() + b"\n")
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(again.path)
        client.send(b"\n")
        turn(another)
        assert client.recv(100) == b'"again"\n'
    for sock in again.sockets():
        sock.close()


def test_who_asked_when_the_agents_thread_was_to_end_does_not_wait_for_an_answer(running, connect, polled):
    """What was read is lost. The naive server keeps the connection, and the client waits for two minutes."""
    asking, other = connect(), connect()
    answer = running.answer
    running.answer = lambda line, client: sys.exit()
    asking.send(b"hello\n")
    with pytest.raises(SystemExit):
        turn(polled)
    running.answer = answer
    assert gone(asking)
    other.send(b"hello\n")
    turn(polled)
    assert other.recv(100) == b"hello\n"
