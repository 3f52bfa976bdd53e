"""Celery workers under load, while a patch of the application goes in and out of each of their processes.

A job is here what a request is elsewhere: it may not fail, and its result says which versions it has met.
"""

import json
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import celery
import pytest
from tests.servers.harness import (
    PATIENCE,
    Answer,
    Customers,
    History,
    Server,
    patch_by_hand,
    patch_from_source,
    visited,
)

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


@contextmanager
def working(pool: str, redis: str) -> Iterator[tuple[list[int], Customers]]:
    """The processes of a worker, and a principal who always has jobs for it."""
    command, processes = POOLS[pool]
    queue = uuid.uuid4().hex
    with (
        Server([*command.split(), "--queues", queue], JOBS_BROKER=redis, JOBS_RESULTS=redis) as server,
        visited(server, processes, lambda: Principal(redis, queue), count=1) as customers,
    ):
        yield server.pids(), customers
    assert "Traceback" not in server.complaints


@pytest.mark.parametrize("pool", POOLS)
def test_no_job_notices_a_patch(pool: str, redis: str, tmp_path: Path) -> None:
    with working(pool, redis) as (pids, customers):
        history = History(pids, patch_from_source(tmp_path), customers)
        history.go(3)
    history.check(kept=True)


@pytest.mark.parametrize("pool", POOLS)
def test_a_job_ends_as_it_began(pool: str, redis: str, tmp_path: Path) -> None:
    with working(pool, redis) as (pids, customers):
        history = History(pids, patch_by_hand(tmp_path, options='consistency="boundary"'), customers)
        history.go(3)
    history.check(kept=True, boundary=True)
