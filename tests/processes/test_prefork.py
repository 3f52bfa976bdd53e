"""Servers that fork workers in advance: by hand, and gunicorn with --preload; patched before the fork and after."""

import os
import signal
import socket
import sys
import threading
import time

import pytest
from tests.agent.targets import Target, eventually, free_port
from tests.processes.test_children import SHOP, call, load, path_of

from livepatch.attach.prepare import environment

BY_HAND = """
    import os, signal, socket, shop, sys
    listener = socket.create_server(("127.0.0.1", 0))
    def work():
        while True:
            connection, _ = listener.accept()
            with connection:
                if connection.recv(100):
                    connection.sendall(repr(shop.total()).encode() + b" %d" % os.getpid())
    def fork():
        pid = os.fork()
        if pid == 0:
            try:
                work()
            finally:
                os._exit(1)
        workers.add(pid)
    workers = set()
    for _ in range(3):
        fork()
    say(listener.getsockname()[1], *workers)
    while True:
        pid, _ = os.wait()
        workers.discard(pid)
        fork()
        say(pid)
"""


@pytest.fixture
def prepared(tmp_path):
    (tmp_path / "shop.py").write_text(SHOP)
    return {"PYTHONPATH": os.pathsep.join([environment({})["PYTHONPATH"], str(tmp_path), *sys.path])}


def asked(port):
    """What a worker says, and which."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"?")
        answer = b""
        while data := connection.recv(1000):
            answer += data
    words, _, pid = answer.decode().rpartition(" ")
    return words, int(pid)


def test_workers_that_are_killed_and_forked_again_while_patches_go_in_and_out(prepared, tmp_path):
    """The parent is patched, so the new ones have what it has; each can be patched by itself."""
    with Target(BY_HAND, env=prepared, folder=tmp_path) as target:
        port, *workers = map(int, target.hear().split())
        try:
            torn, stop = [], threading.Event()

            def clients():
                while not stop.is_set():
                    try:
                        words, _ = asked(port)
                    except (OSError, ValueError):  # that one has been killed
                        continue
                    if words not in ("['old', 'old']", "['new', 'new']"):
                        torn.append(words)

            threads = [threading.Thread(target=clients) for _ in range(2)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                load(target.pid)
                for pid in workers:
                    os.kill(pid, signal.SIGKILL)
                for _ in workers:
                    target.hear()
                ages = {}

                def all_new(ages=ages):
                    words, pid = asked(port)
                    ages[pid] = words
                    return len(ages) == 3

                eventually(all_new)
                assert set(ages.values()) == {"['new', 'new']"}
                assert not set(ages) & set(workers)
                workers = list(ages)
                for pid in workers:  # out of one worker, and the parent keeps it
                    call(pid, "write_enabled", name="fix", value="0")
                    eventually(lambda pid=pid: call(pid, "list")[0]["transition"] is False)
                    assert [patch["enabled"] for patch in call(target.pid, "list")] == [True]
                call(target.pid, "write_enabled", name="fix", value="0")
                eventually(lambda: call(target.pid, "list")[0]["transition"] is False)
                call(target.pid, "unload", name="fix")
            stop.set()
            for thread in threads:
                thread.join()
            assert not torn
        finally:
            stop.set()
            os.kill(target.pid, signal.SIGSTOP)
            for pid in workers:
                os.kill(pid, signal.SIGKILL)


APP = """
import os
import shop

def application(environ, start_response):
    body = (" ".join(shop.total()) + f" {os.getpid()}").encode()
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]
"""


def get(port):
    """The answer of a worker to a request of its own, and which."""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(1000):
            answer += data
    head, _, body = answer.decode().partition("\r\n\r\n")
    assert head.startswith("HTTP/1.1 200"), answer
    words, _, pid = body.rpartition(" ")
    return words, int(pid)


@pytest.mark.parametrize("workers", ["sync", "gthread"])
def test_gunicorn_with_preload(prepared, tmp_path, workers):
    """Its workers are patched one by one under load; the master is patched, and what it forks from then on has it."""
    pytest.importorskip("gunicorn")
    (tmp_path / "app.py").write_text(APP)
    script = """
        import sys
        sys.argv = ["gunicorn", *sys.argv[1:]]
        from gunicorn.app.wsgiapp import run
        run()
    """
    port = free_port()
    options = ("--preload", "-w", "2", "-k", workers, "-b", f"127.0.0.1:{port}", "--threads", "2", "app:application")
    with Target(script, env=prepared, folder=tmp_path, arguments=options) as target:

        def up():
            try:
                return get(port)
            except OSError:
                return None

        eventually(up)

        def pids(count=2):
            seen = {}
            eventually(lambda: seen.update([get(port)[::-1]]) or len(seen) == count)
            return seen

        first = pids()
        assert set(first.values()) == {"old old"}
        said, stop = [], threading.Event()

        def clients():
            while not stop.is_set():
                said.append(get(port)[0])

        thread = threading.Thread(target=clients)
        thread.start()
        for pid in first:
            load(pid)
        assert set(pids().values()) == {"new new"}
        stop.set()
        thread.join()
        assert set(said) <= {"old old", "new new"}  # and each had an answer
        load(target.pid)
        for pid in first:
            os.kill(pid, signal.SIGKILL)
            eventually(lambda pid=pid: not os.path.exists(f"/proc/{pid}"))
        deadline = time.monotonic() + 60
        while True:
            try:
                second = pids()
                break
            except OSError:
                assert time.monotonic() < deadline
        assert set(second.values()) == {"new new"}
        assert not set(second) & set(first)
        target.signal(signal.SIGTERM)
        assert target.process.wait(60) == 0
        assert not [pid for pid in second if os.path.exists(path_of(pid))]
