"""Servers that people use, under load, while a patch of the application goes in and out: nobody notices."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.servers.harness import Customers, History, Server, Visitor, patch_by_hand, patch_from_source, visited


class Way(NamedTuple):
    """A way to serve the application, and what is usual for it."""

    command: str
    workers: int = 1
    #: The process that was started only starts others, and does not import the application.
    supervised: bool = False
    #: Connections are kept for the next request.
    keeps: bool = True
    urls: tuple[str, ...] = ("/",)


UVICORN = "uvicorn --uds {socket} --no-access-log --lifespan on"
GUNICORN = "gunicorn --bind unix:{socket} --no-control-socket"

WAYS = {
    "uvicorn-h11": Way(f"{UVICORN} --http h11 --loop asyncio app:asgi"),
    "uvicorn-httptools": Way(f"{UVICORN} --http httptools --loop uvloop app:asgi"),
    "hypercorn": Way("hypercorn --bind unix:{socket} --workers 0 app:asgi"),
    "gunicorn-sync": Way(f"{GUNICORN} --workers 2 app:wsgi", workers=2, supervised=True, keeps=False),
    "gunicorn-gthread": Way(f"{GUNICORN} --worker-class gthread --threads 4 app:wsgi", supervised=True),
    "waitress": Way("waitress-serve --unix-socket={socket} --threads 4 app:wsgi"),
    # werkzeug's server closes every connection by itself.
    "flask": Way("flask --app flask_site:site run --host unix://{socket}", keeps=False),
    "django-wsgi": Way(f"{GUNICORN} --worker-class gthread --threads 4 django_site:wsgi", supervised=True),
    "django-asgi": Way("uvicorn --uds {socket} --no-access-log --lifespan off django_site:asgi", urls=("/", "/later")),
}


@contextmanager
def served(way: Way) -> Iterator[tuple[list[int], Customers]]:
    """The processes that have the application, and customers of theirs."""
    count = way.workers + way.supervised
    with Server(way.command.split()) as server, visited(server, count, lambda: Visitor(server, way.urls)) as customers:
        yield server.pids()[way.supervised :], customers
    assert "Traceback" not in server.complaints


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_nobody_notices_a_patch(way: Way, tmp_path: Path) -> None:
    with served(way) as (pids, customers):
        history = History(pids, patch_from_source(tmp_path), customers)
        history.go(3)
    history.check(kept=way.keeps)


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())
def test_a_request_ends_as_it_began(way: Way, tmp_path: Path) -> None:
    patch = patch_by_hand(tmp_path, options='consistency="boundary"')
    with served(way) as (pids, customers):
        history = History(pids, patch, customers)
        history.go(3)
    history.check(kept=way.keeps, boundary=True)


@pytest.mark.parametrize("name", ["gunicorn-gthread", "uvicorn-h11"])
def test_the_naive_exchange_tears_answers(name: str, tmp_path: Path) -> None:
    """What `immediate` does is what everybody would do first: exchange the code. The same customers notice."""
    patch = patch_by_hand(tmp_path, options="immediate=True")
    with served(WAYS[name]) as (pids, customers):
        history = History(pids, patch, customers)
        for _ in range(50):
            history.go(1)
            if any(answer.torn for answer in customers.answers):
                break
    assert not customers.failed
    assert any(answer.torn for answer in customers.answers)


@pytest.mark.parametrize("name", ["gunicorn-gthread", "uvicorn-h11"])
def test_with_the_usual_model_a_request_may_move_in_the_middle(name: str, tmp_path: Path) -> None:
    """Between two calls, never within one; else `test_a_request_ends_as_it_began` would show nothing."""
    with served(WAYS[name]) as (pids, customers):
        history = History(pids, patch_by_hand(tmp_path), customers)
        for _ in range(50):
            history.go(1)
            if any(answer.mixed for answer in customers.answers):
                break
    history.check(kept=True)
    assert any(answer.mixed for answer in customers.answers)
