"""WebSockets that stay open while a patch goes in and out: a connection is a task that lives as long as its client."""

import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.servers.harness import ENOUGH, PATIENCE, Answer, History, Server, livepatch, patch_by_hand
from tests.servers.test_http import UVICORN, WAYS, Way, served
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, BytesMessage, CloseConnection, Event, Message, Request, TextMessage

pytestmark = pytest.mark.slow

WS = {"uvicorn": Way(f"{UVICORN} --ws wsproto app:asgi"), "hypercorn": WAYS["hypercorn"]}


class Talker:
    """An open WebSocket; each message is answered."""

    opened = 1

    def __init__(self, server: Server, urls: tuple[str, ...]) -> None:
        self.protocol = WSConnection(ConnectionType.CLIENT)
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(str(server.socket))
            self.send(Request(host="localhost", target=urls[0]))
            assert isinstance(self.receive(), AcceptConnection)
        except BaseException:
            self.sock.close()
            raise

    def send(self, event: Event) -> None:
        self.sock.sendall(self.protocol.send(event))

    def receive(self) -> Event:
        """The next whole event."""
        body = b""
        while True:
            for event in self.protocol.events():
                if not isinstance(event, Message):
                    return event
                body += event.data
                if event.message_finished:
                    return BytesMessage(data=body)
            self.protocol.receive_data(self.sock.recv(65536))

    def ask(self) -> Iterator[Answer]:
        asked = time.monotonic()
        self.send(TextMessage(data="?"))
        answer = self.receive()
        assert isinstance(answer, BytesMessage)
        yield Answer(asked, time.monotonic(), **json.loads(answer.data))

    def close(self) -> None:
        with self.sock:
            self.send(CloseConnection(code=1000))
            assert isinstance(self.receive(), CloseConnection)


@pytest.mark.parametrize("server", WS)
def test_open_websockets(server: str, built: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """They get the patch between two calls of what it changes. To `consistency="boundary"` a connection is one piece
    of work, so that it holds the patch up, and the command says so and takes it back.
    """
    patch = patch_by_hand(tmp_path, options='consistency="boundary"')
    with served(WS[server]) as site, site.visited(Talker) as customers:
        history = History(site.pids(), built, customers)
        history.go(3)
        capsys.readouterr()
        assert livepatch(["load", str(patch), "--pid", str(site.pids()[0]), "--timeout", "0.5"]) == 3
        assert "asyncio Task-" in capsys.readouterr().err
        history.spans.append(("old", *customers.ask_on(ENOUGH)))
    history.check(kept=True)
