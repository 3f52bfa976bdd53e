"""Servers of several processes under load, patched as one; and workers that die and are born in the middle."""

import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.agent.targets import Target
from tests.servers.conftest import redis
from tests.servers.harness import (
    ENOUGH,
    SERVED,
    STALL,
    Answer,
    Customers,
    History,
    Server,
    Visitor,
    eventually,
    patch_from_source,
    visited,
)
from tests.servers.test_celery import QUIET, Principal
from tests.servers.test_http import GUNICORN, UVICORN

from livepatch.attach.client import Client
from livepatch.attach.prepare import environment
from livepatch.cli.app import run as livepatch
from livepatch.core.model import LivepatchError
from livepatch.fleet.selection import Selection

__all__ = ["redis"]

#: Each process takes a while to begin, and says that it has: so there is a middle.
SLOW = """
import livepatch as lp, os, time
def begin(obj):
    open(f"begun-{os.getpid()}", "w").close()
    time.sleep(3)
__livepatch__ = {"work": lp.Callbacks(pre_patch=begin, pre_unpatch=begin)}
"""


class Way(NamedTuple):
    """How a server is started, how many processes it then has, and whether all of them have the application."""

    command: str
    processes: int
    preloaded: bool = False


WAYS = {
    "gunicorn": Way(f"{GUNICORN} --workers 4 app:wsgi", 5),
    "gunicorn-preload": Way(f"{GUNICORN} --workers 4 --preload app:wsgi", 5, preloaded=True),
    "uvicorn-workers": Way(f"{UVICORN} --workers 3 app:asgi", 4),
    "celery-prefork": Way(f"celery --app jobs worker --pool prefork --concurrency 3 {QUIET}", 4, preloaded=True),
}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An archive that changes every function of the application, and takes a while to begin."""
    folder = tmp_path_factory.mktemp("slow")
    patch_from_source(folder)
    (folder / "hooks.py").write_text(SLOW)
    path = folder / "slow.livepatch"
    trees = ("--old", str(folder / "old"), "--new", str(folder / "new"))
    assert not livepatch(["build", *trees, "--hooks", str(folder / "hooks.py"), "-o", str(path)])
    return path


class Fleet(History):
    """A patch that goes in and out of all processes of a server with one command."""

    def __init__(self, server: Server, patch: Path, customers: Customers) -> None:
        super().__init__([], patch, customers)
        self.tree = ("--tree", str(server.process.pid), "--timeout", str(2 * STALL))

    def load(self) -> None:
        assert livepatch(["load", str(self.patch), *self.tree]) == 0

    def disable(self) -> None:
        assert livepatch(["disable", self.patch.stem, "--unload", *self.tree]) == 0


class Stubborn:
    """Somebody who asks again when the process that was to answer has been killed."""

    opened = 1

    def __init__(self, make: object) -> None:
        self.make = make
        self.customer = make()

    def ask(self) -> Iterator[Answer]:
        try:
            yield from self.customer.ask()
        except (OSError, HTTPException, RuntimeError, AssertionError, ValueError):
            self.close()
            time.sleep(0.05)
            self.customer = self.make()
        except Exception as error:
            if type(error).__name__ != "WorkerLostError":
                raise

    def close(self) -> None:
        self.customer.close()


@contextmanager
def serving(name: str, request: pytest.FixtureRequest, *, stubborn: bool = False) -> Iterator[tuple[Server, Customers]]:
    way, env, words, count = WAYS[name], {}, [], 4
    if name.startswith("celery"):
        address = request.getfixturevalue("redis")
        queue = f"{name}-{os.getpid()}-{time.monotonic_ns()}"
        env, words, count = {"JOBS_BROKER": address, "JOBS_RESULTS": address}, ["--queues", queue], 1
    with Server([*way.command.split(), *words], **env) as server:

        def customer():
            return Principal(address, queue) if env else Visitor(server)

        make = (lambda: Stubborn(customer)) if stubborn else customer
        with visited(server, make, processes=way.processes, count=count) as customers:
            yield server, customers
    assert "Traceback" not in server.complaints or stubborn


@pytest.mark.once
@pytest.mark.parametrize(
    "name", [name if name == "gunicorn" else pytest.param(name, marks=pytest.mark.slow) for name in WAYS]
)
def test_nobody_notices_a_patch_of_all(name, request, tmp_path, capfd):
    with serving(name, request) as (server, customers):
        history = Fleet(server, patch_from_source(tmp_path), customers)
        history.go(2)
    history.check(kept=not name.startswith("gunicorn"))
    said = capfd.readouterr()
    way = WAYS[name]
    count = way.processes if way.preloaded else way.processes - 1
    assert f"'built' is loaded into {count} processes: " in said.out
    supervisor = (
        f"process {server.process.pid} has none of the modules that the patch changes; what it starts from now on"
    )
    assert (supervisor in said.err) is not way.preloaded


def imported(server: Server, patch: Path) -> int:
    """How many processes of the server have what the patch changes."""
    found = 0
    for pid in server.pids():
        try:
            with Client(pid) as client:
                found += "error" not in client.send_file("check", patch)
        except LivepatchError:
            pass
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_a_worker_is_killed_in_the_middle(name, request, slow):
    """Its successor is forked or spawned by one that has not begun, that is just beginning, or that never will."""
    way = WAYS[name]
    with serving(name, request, stubborn=True) as (server, customers):
        eventually(
            lambda: imported(server, slow) == way.processes - (not way.preloaded), "they have not all imported it"
        )
        history = Fleet(server, slow, customers)
        history.spans.append(("old", *customers.ask_on(ENOUGH)))
        for operation, version in ((history.load, "new"), (history.disable, "old")):
            before = server.pids()
            victim = before[-2]

            def kill(victim=victim):
                eventually(lambda: (server.folder / f"begun-{victim}").exists(), "it has not begun")
                os.kill(victim, signal.SIGKILL)

            killer = threading.Thread(target=kill)
            killer.start()
            operation()
            killer.join()
            assert victim not in server.pids()
            eventually(lambda: len(server.pids()) == way.processes, "it has no successor")
            history.spans.append((version, *customers.ask_on(4 * ENOUGH)))
            for mark in server.folder.glob("begun-*"):
                mark.unlink()
    history.check(kept=False)


#: Each worker goes after a few jobs, and there is always one that has just begun.
POOL = """
    import json, multiprocessing, os, sys, time, work
    def job(number):
        time.sleep(0.01)
        return os.getpid(), work.edge(), work.answer()
    def main(method):
        multiprocessing.set_forkserver_preload(["work"])
        with multiprocessing.get_context(method).Pool(3, maxtasksperchild=20) as pool:
            while True:
                began = time.monotonic()
                say(json.dumps([began, pool.map(job, range(12), chunksize=1)]))
    if __name__ == "__main__":
        main(sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_pool_whose_workers_come_and_go(method, tmp_path):
    """From the end of the command on, every job of every worker is new, whenever the worker was born; and back."""
    patch = patch_from_source(tmp_path)
    (tmp_path / "work.py").write_text((SERVED / "work.py").read_text())
    path = os.pathsep.join([environment({})["PYTHONPATH"], str(tmp_path), os.environ.get("PYTHONPATH", "")])
    with Target(POOL, env={"PYTHONPATH": path}, folder=tmp_path, arguments=(method,)) as target:
        workers, ended = set(), threading.Event()
        rounds = []

        def listen():
            while not ended.is_set():
                try:
                    rounds.append(json.loads(target.hear()))
                except (AssertionError, OSError, ValueError):
                    return

        def after(moment):
            """The jobs of rounds that began then, by the pool's own clock: we may hear of them much later."""

            def since():
                return [jobs for began, jobs in list(rounds) if began > moment]

            eventually(lambda: len(since()) > 10, "the pool does not go on")
            return [done for jobs in since() for done in jobs]

        listener = threading.Thread(target=listen)
        listener.start()
        try:
            after(0)
            for _ in range(2):
                for words, version in (("load", "new"), ("disable", "old")):
                    what = [words, str(patch)] if words == "load" else [words, "built", "--unload"]
                    assert livepatch([*what, "--tree", str(target.pid), "--timeout", str(2 * STALL)]) == 0
                    jobs = after(time.monotonic())
                    assert {met for _, edge, chain in jobs for met in (edge, *chain)} == {version}
                    workers |= {pid for pid, _, _ in jobs}
            assert len(workers) > 3  # they have really come and gone
            everything = [job for _, jobs in rounds for job in jobs]
            assert not [chain for _, _, chain in everything if len(set(chain)) > 1]
        finally:
            ended.set()
            below = Selection(trees=(target.pid,)).find()
            target.kill()
            for each in below[1:]:
                with suppress(ProcessLookupError):
                    os.kill(each.pid, signal.SIGKILL)
            listener.join()
