"""Servers that people use, under load, while a patch of the application goes in and out: nobody notices."""

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.servers.harness import (
    ENOUGH,
    PATIENCE,
    Answer,
    Customer,
    Customers,
    History,
    Server,
    Visitor,
    eventually,
    patch_by_hand,
    visited,
)


class Way(NamedTuple):
    """A way to serve the application, and what is usual for it."""

    command: str
    workers: int = 1
    #: The process that was started only starts others, and does not import the application.
    supervised: bool = False
    #: Connections are kept for the next request.
    keeps: bool = True
    urls: tuple[str, ...] = ("/",)
    #: Some of them are tested also where time is short.
    marks: tuple[pytest.MarkDecorator, ...] = (pytest.mark.slow,)


UVICORN = "uvicorn --uds {socket} --no-access-log"
GUNICORN = "gunicorn --bind unix:{socket} --no-control-socket"

WAYS = {
    "uvicorn-h11": Way(f"{UVICORN} --http h11 --loop asyncio app:asgi", marks=()),
    "uvicorn-httptools": Way(f"{UVICORN} --http httptools --loop uvloop app:asgi"),
    "uvicorn-workers": Way(f"{UVICORN} --workers 2 app:asgi", workers=2, supervised=True),
    "hypercorn": Way("hypercorn --bind unix:{socket} --workers 0 app:asgi", marks=()),
    "hypercorn-trio": Way("hypercorn --bind unix:{socket} --workers 0 --worker-class trio trio_site:asgi"),
    "hypercorn-wsgi": Way("hypercorn --bind unix:{socket} --workers 0 app:wsgi"),
    "gunicorn-sync": Way(f"{GUNICORN} --workers 2 app:wsgi", workers=2, supervised=True, keeps=False),
    "gunicorn-gthread": Way(f"{GUNICORN} --worker-class gthread --threads 4 app:wsgi", supervised=True, marks=()),
    "gunicorn-gevent": Way(f"{GUNICORN} --worker-class gevent app:wsgi", supervised=True),
    "gunicorn-asgi": Way(f"{GUNICORN} --worker-class asgi app:asgi", supervised=True),
    "waitress": Way("waitress-serve --unix-socket={socket} --threads 4 app:wsgi", marks=()),
    # werkzeug's server closes every connection by itself.
    "flask": Way("flask --app flask_site:site run --host unix://{socket}", keeps=False),
    "django-wsgi": Way(f"{GUNICORN} --worker-class gthread --threads 4 django_site:wsgi", supervised=True),
    "django-asgi": Way("uvicorn --uds {socket} --no-access-log --lifespan off django_site:asgi", urls=("/", "/later")),
}


class Pipeline:
    """A client that sends its next request before it has read the answer to the last one, as HTTP/1.1 allows.

    The server then begins a request while it ends the one before, in the same task.
    """

    opened = 1

    def __init__(self, server: Server, urls: tuple[str, ...] = ("/",)) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(PATIENCE)
        try:
            self.sock.connect(str(server.socket))
        except OSError:
            self.sock.close()
            raise
        self.lines = self.sock.makefile("rb")
        self.asked = [self.send(), self.send()]

    def send(self) -> float:
        self.sock.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return time.monotonic()

    def ask(self) -> Iterator[Answer]:
        self.asked.append(self.send())
        yield self.receive()

    def receive(self) -> Answer:
        assert b" 200 " in self.lines.readline()
        while (header := self.lines.readline().lower()) != b"\r\n":
            if header.startswith(b"content-length:"):
                length = int(header.partition(b":")[2])
        return Answer(self.asked.pop(0), time.monotonic(), **json.loads(self.lines.read(length)))

    def close(self) -> None:
        with self.sock, self.lines:
            while self.asked:
                self.receive()


class Site(NamedTuple):
    """A running server."""

    way: Way
    server: Server

    @contextmanager
    def visited(self, make: Callable[[Server, tuple[str, ...]], Customer] = Visitor) -> Iterator[Customers]:
        count = self.way.workers + self.way.supervised
        with visited(self.server, lambda: make(self.server, self.way.urls), processes=count) as customers:
            yield customers

    def pids(self) -> list[int]:
        """The processes that have the application."""
        return self.server.pids()[self.way.supervised :]


@contextmanager
def served(way: Way) -> Iterator[Site]:
    with Server(way.command.split()) as server:
        yield Site(way, server)
    assert "Traceback" not in server.complaints


@pytest.fixture(scope="module", params=[pytest.param(way, id=name, marks=way.marks) for name, way in WAYS.items()])
def site(request: pytest.FixtureRequest) -> Iterator[Site]:
    with served(request.param) as found:
        yield found


def test_nobody_notices_a_patch(site: Site, built: Path) -> None:
    with site.visited() as customers:
        history = History(site.pids(), built, customers)
        history.go(3)
    history.check(kept=site.way.keeps)


def test_a_request_ends_as_it_began(site: Site, tmp_path: Path) -> None:
    patch = patch_by_hand(tmp_path, options='consistency="boundary"')
    with site.visited() as customers:
        history = History(site.pids(), patch, customers)
        history.go(2)
    history.check(kept=site.way.keeps, boundary=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gunicorn-gthread", "uvicorn-h11"])
def test_the_naive_exchange_tears_answers(name: str, tmp_path: Path) -> None:
    """What `immediate` does is what everybody would do first: exchange the code. The same customers notice."""
    patch = patch_by_hand(tmp_path, options="immediate=True")
    with served(WAYS[name]) as site, site.visited() as customers:
        history = History(site.pids(), patch, customers)
        for _ in range(50):
            history.go(1)
            if any(answer.torn for answer in customers.answers):
                break
    assert not customers.failed
    assert any(answer.torn for answer in customers.answers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gunicorn-gthread", "uvicorn-h11"])
def test_with_the_usual_model_a_request_may_move_in_the_middle(name: str, tmp_path: Path) -> None:
    """Between two calls, never within one; else `test_a_request_ends_as_it_began` would show nothing."""
    with served(WAYS[name]) as site, site.visited() as customers:
        history = History(site.pids(), patch_by_hand(tmp_path), customers)
        for _ in range(50):
            history.go(1)
            if any(answer.mixed for answer in customers.answers):
                break
    history.check(kept=True)
    assert any(answer.mixed for answer in customers.answers)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["uvicorn-h11", "uvicorn-httptools", "hypercorn", "gunicorn-asgi", "waitress"])
def test_pipelined_requests_do_not_hold_a_patch_up(name: str, built: Path, tmp_path: Path) -> None:
    """Each is born in the middle of the one before, and a new one is there before the last one ends."""
    with served(WAYS[name]) as site, site.visited(Pipeline) as customers:
        usual = History(site.pids(), built, customers)
        usual.go(2)
        strict = History(site.pids(), patch_by_hand(tmp_path, options='consistency="boundary"'), customers)
        strict.go(2)
    usual.check(kept=True)
    strict.check(kept=True, boundary=True)


@pytest.mark.slow
def test_a_worker_that_is_forked_from_a_patched_process_has_the_patch(built: Path) -> None:
    """With --preload the application is in the process that forks the workers."""
    way = Way(f"{GUNICORN} --preload --workers 1 app:wsgi", workers=2, keeps=False)
    with served(way) as site, site.visited() as customers:
        first = History(site.pids(), built, customers)
        first.load()
        os.kill(site.server.process.pid, signal.SIGTTIN)  # one worker more
        eventually(lambda: len({answer.pid for answer in customers.answers}) == 2, "the new worker had nothing to do")
        both = History(site.server.wait_until_prepared(3), built, customers)
        both.spans.append(("new", *customers.ask_on(ENOUGH)))
        both.disable()
        both.go(2)
    both.check(kept=False)
    (second,) = {answer.pid for answer in customers.answers} - set(first.pids)
    assert next(answer for answer in customers.answers if answer.pid == second).edges == ["new", "new"]
