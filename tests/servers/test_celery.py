"""Celery workers under load, while a patch of the application goes in and out of each of their processes.

A job is here what a request is elsewhere: it may not fail, and its result says which versions it has met.
"""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import celery
import pytest
from tests.servers.harness import (
    PATIENCE,
    Answer,
    Customers,
    History,
    Server,
    patch_by_hand,
    visited,
)

pytestmark = pytest.mark.slow

QUIET = "--without-gossip --without-mingle --without-heartbeat --loglevel WARNING"

#: How a worker is started, and how many processes it then has.
POOLS = {
    "prefork": (f"celery --app jobs worker --pool prefork --concurrency 2 {QUIET}", 3),
    "threads": (f"celery --app jobs worker --pool threads --concurrency 4 {QUIET}", 1),
    "gevent": (f"celery --app jobs worker --pool gevent --concurrency 4 {QUIET}", 1),
}


class Principal:
    """Has a few jobs under way at a time."""

    opened = 1

    def __init__(self, redis: str, queue: str) -> None:
        self.app = celery.Celery("principal", broker=redis, backend=redis)
        self.queue = queue

    def ask(self) -> Iterator[Answer]:
        asked = time.monotonic()
        for result in [self.app.send_task("jobs.answer", queue=self.queue) for _ in range(6)]:
            yield Answer(asked, asked, **json.loads(result.get(timeout=PATIENCE)))._replace(answered=time.monotonic())

    def close(self) -> None:
        self.app.backend.result_consumer.stop()
        self.app.backend.client.close()
        self.app.close()


class Pool(NamedTuple):
    """A running worker."""

    server: Server
    processes: int
    redis: str
    queue: str

    @contextmanager
    def visited(self) -> Iterator[Customers]:
        with visited(
            self.server, lambda: Principal(self.redis, self.queue), processes=self.processes, count=1
        ) as customers:
            yield customers


@pytest.fixture(scope="module", params=POOLS)
def pool(request: pytest.FixtureRequest, redis: str) -> Iterator[Pool]:
    command, processes = POOLS[request.param]
    queue = uuid.uuid4().hex
    with Server([*command.split(), "--queues", queue], JOBS_BROKER=redis, JOBS_RESULTS=redis) as server:
        yield Pool(server, processes, redis, queue)
    assert "Traceback" not in server.complaints


def test_no_job_notices_a_patch(pool: Pool, built: Path) -> None:
    with pool.visited() as customers:
        history = History(pool.server.pids(), built, customers)
        history.go(3)
    history.check(kept=True)


def test_a_job_ends_as_it_began(pool: Pool, tmp_path: Path) -> None:
    with pool.visited() as customers:
        history = History(pool.server.pids(), patch_by_hand(tmp_path, options='consistency="boundary"'), customers)
        history.go(2)
    history.check(kept=True, boundary=True)
