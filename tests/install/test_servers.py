"""Installed patches in real servers: the first request gets the new code already, from every worker, later ones too."""

import os
import signal
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

import pytest
from tests.agent.targets import PATIENCE, eventually, free_port
from tests.install.test_start import install

from livepatch.attach import prepare

pytestmark = pytest.mark.once

APP = """
import os, shop
def app(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [f"{shop.price()} {os.getpid()}".encode()]
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": message["type"] + ".complete"})
            if message["type"] == "lifespan.shutdown": return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": f"{shop.price()} {os.getpid()}".encode()})
"""


@contextmanager
def serving(machine, *command):
    """A server on a port of its own, as `livepatch run` starts it; yields the process and a way to ask."""
    (machine.source / "app.py").write_text(APP)
    with open(machine.root / "log", "wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=machine.source,
            env=prepare.environment({**os.environ, **machine.env}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(PATIENCE)


def first_answers(port, process, number):
    """The first answers there are, as (what, pid): nobody has asked before."""

    def ask():
        assert process.poll() is None
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
                return tuple(reply.read().decode().split())
        except OSError:
            time.sleep(0.05)
            return None

    return [eventually(ask) for _ in range(number)]


@pytest.mark.slow
@pytest.mark.parametrize("preload", [[], ["--preload"]])
def test_gunicorn(machine, preload):
    install(machine, machine.archive())
    port = free_port()
    with serving(machine, "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", *preload, "app:app") as process:
        answers = first_answers(port, process, 20)
        assert {answer for answer, _ in answers} == {"new"}
        dead = int(answers[0][1])
        os.kill(dead, signal.SIGKILL)
        eventually(lambda: not os.path.exists(f"/proc/{dead}"))
        assert {answer for answer, _ in first_answers(port, process, 20)} == {"new"}


@pytest.mark.slow
def test_uvicorn_workers(machine):
    install(machine, machine.archive())
    port = free_port()
    with serving(machine, "uvicorn", "--workers", "2", "--port", str(port), "app:asgi") as process:
        assert {answer for answer, _ in first_answers(port, process, 20)} == {"new"}


@pytest.mark.slow
def test_one_for_another_version_and_a_broken_one_do_not_matter(machine):
    install(machine, machine.archive(old="def price():\n    return 'x'\n"), 1)
    (machine.data / "0002-broken.livepatch").write_bytes(b"broken")
    port = free_port()
    with serving(machine, "gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "app:app") as process:
        assert {answer for answer, _ in first_answers(port, process, 5)} == {"old"}
