"""A real server, customers who never stop asking, and a patch that goes in and out meanwhile.

The server is started as people start it, `livepatch run -- COMMAND`, and the patch goes into each of its processes
through the command line. It listens on a Unix socket, which nobody else can have taken. The customers are threads with
a keep-alive connection each. Every answer is kept with the times of its question and its arrival, and tells which
versions it has met, so that at the end the whole history can be held against what was promised:

* no request failed, and no connection was closed that the server usually keeps;
* within one call of a patched function there is one version, always;
* with `consistency="boundary"` there is one version in a whole request;
* what was asked after a transition was complete was answered by the new version alone.
"""

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple, Protocol

from livepatch.attach.client import Client
from livepatch.attach.processes import alive, examine
from livepatch.cli.app import run as livepatch
from livepatch.core.model import LivepatchError

#: How long anything may take before a test gives up: generous, the machine may be busy.
PATIENCE = 60.0
#: How long a transition may take, in seconds, before the command takes it back: milliseconds, but on a busy machine.
STALL = 60
#: How many answers there are between two transitions, at least.
ENOUGH = 12
SERVED = Path(__file__).parent / "served"

#: A patch written by hand has globals of its own, so what it calls must be looked up where it was.
BY_HAND = """
import livepatch as lp
from time import sleep

{functions}
names = ["edge", "tax", "price", "lines", "answer", "tax_later", "lines_later", "answer_later"]
funcs = [lp.Func(name, globals()[name]) for name in names]
__livepatch__ = lp.Patch("{name}", [lp.Object("work", funcs)], {options})
"""


class Answer(NamedTuple):
    """What one request met, and when it was asked and answered."""

    asked: float
    answered: float
    pid: int
    edges: list[str]
    chain: list[str]

    @property
    def torn(self) -> bool:
        """Two versions within one call of a patched function."""
        return len(set(self.chain)) > 1

    @property
    def mixed(self) -> bool:
        """Two versions within one request."""
        return len({*self.edges, *self.chain}) > 1


def patch_by_hand(folder: Path, name: str = "byhand", options: str = "") -> Path:
    """A patch of every function of `work.py`; options are those of `livepatch.Patch`."""
    source = (SERVED / "work.py").read_text().replace('"old"', '"new"')
    source = source[source.index("def edge") :].replace("time.sleep", "sleep")
    for callee in ("tax", "price", "lines", "tax_later", "lines_later"):
        source = source.replace(f" {callee}(", f" work().{callee}(").replace(f"*{callee}(", f"*work().{callee}(")
        source = source.replace(f"def work().{callee}(", f"def {callee}(")
    source = source.replace("PAUSE", "work().PAUSE")
    functions = "def work():\n    import work\n    return work\n\n" + source
    path = folder / f"{name}.py"
    path.write_text(BY_HAND.format(functions=functions, name=name, options=options))
    return path


def patch_from_source(folder: Path) -> Path:
    """The same as an archive, built from two trees."""
    for version in ("old", "new"):
        (folder / version).mkdir()
        text = (SERVED / "work.py").read_text().replace('"old"', f'"{version}"')
        (folder / version / "work.py").write_text(text)
    path = folder / "built.livepatch"
    assert not livepatch(["build", "--old", str(folder / "old"), "--new", str(folder / "new"), "-o", str(path)])
    return path


class Server:
    """A command in a folder with the application, prepared, and all the processes that it has started."""

    def __init__(self, command: list[str], **env: str) -> None:
        # Not pytest's own folder: the path of a socket may not be longer than 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="lp-", dir="/tmp"))
        shutil.copytree(SERVED, self.folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        self.socket = self.folder / "socket"
        self.log = self.folder / "log"
        # Console scripts, as people type them, of the environment that runs the tests.
        path = f"{Path(sys.executable).absolute().parent}{os.pathsep}{os.environ['PATH']}"
        prepared = [sys.executable, "-m", "livepatch", "run", "--"]
        with open(self.log, "wb") as log:
            self.process = subprocess.Popen(
                prepared + [word.format(socket=self.socket) for word in command],
                cwd=self.folder,
                env={**os.environ, "PATH": path, "HOME": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1", **env},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *error: object) -> None:
        pids = self.pids()
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(5)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()
        for pid in pids:
            try:
                if os.getsid(pid) == self.process.pid:
                    os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.complaints = self.said()
        shutil.rmtree(self.folder, ignore_errors=True)  # who was just killed may still have been writing there
        print(self.complaints)  # pytest shows it if the test failed

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def pids(self) -> list[int]:
        """Its Python processes, parents first."""
        found = [self.process.pid]
        for pid in found:
            try:
                for children in Path(f"/proc/{pid}/task").glob("*/children"):
                    found += [int(child) for child in children.read_text().split()]
            except OSError:
                pass
        return [pid for pid in found if alive(pid) and _is_python(pid)]

    def wait_until_prepared(self, processes: int) -> list[int]:
        """Wait until there are so many processes and each of them has an agent that answers."""

        def prepared() -> bool:
            assert self.process.poll() is None, f"the server ended:\n{self.said()}"
            pids = self.pids()
            try:
                for pid in pids:
                    Client(pid).close()
            except LivepatchError:
                return False
            return len(pids) >= processes

        eventually(prepared, "the processes of the server were not all prepared")
        return self.pids()


def _is_python(pid: int) -> bool:
    """A Python of the server's own: multiprocessing has one that only counts resources."""
    try:
        process = examine(pid)
    except LivepatchError:
        return False
    return process.python is not None and "resource_tracker" not in process.title


def eventually(condition: Callable[[], object], otherwise: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.01)


class Customer(Protocol):
    """Asks one question, or a few at once, and waits for what is answered."""

    #: How often it had to open a connection.
    opened: int

    def ask(self) -> Iterable[Answer]: ...

    def close(self) -> None: ...


class Visitor(http.client.HTTPConnection):
    """A keep-alive connection to a Unix socket."""

    def __init__(self, server: Server, urls: tuple[str, ...] = ("/",)) -> None:
        super().__init__("localhost", timeout=PATIENCE)
        self.path = str(server.socket)
        self.urls = urls
        self.opened = 0
        self.asked = 0

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self.path)  # `close` closes it also if this fails
        self.opened += 1

    def ask(self) -> Iterator[Answer]:
        self.asked += 1
        asked = time.monotonic()
        self.request("GET", self.urls[self.asked % len(self.urls)])
        response = self.getresponse()
        body = response.read()
        assert response.status == 200, body
        yield Answer(asked, time.monotonic(), **json.loads(body))


class Customers:
    """Threads that ask for as long as the block lasts, and all they were answered."""

    def __init__(self, customers: Sequence[Customer]) -> None:
        self.customers = customers
        self.answers: list[Answer] = []
        self.failed: list[str] = []
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(customer,)) for customer in customers]

    def __enter__(self) -> "Customers":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join(PATIENCE)
        for customer in self.customers:
            customer.close()

    def _ask_on(self, customer: Customer) -> None:
        while not self._ended.is_set():
            try:
                self.answers.extend(customer.ask())
            except Exception as error:
                self.failed.append(f"{type(error).__name__}: {error}")
                return

    def ask_on(self, count: int) -> tuple[float, float]:
        """Wait until so many more questions have been asked and answered; returns from when to when."""
        begun = time.monotonic()

        def enough() -> bool:
            assert not self.failed
            return sum(answer.asked >= begun for answer in self.answers[-10 * count :]) >= count

        eventually(enough, f"fewer than {count} answers came")
        return begun, time.monotonic()


class History:
    """A patch that goes in and out of all processes of a server, and the times in between."""

    def __init__(self, pids: list[int], patch: Path, customers: Customers) -> None:
        self.pids = pids
        self.patch = patch
        self.customers = customers
        self.begun = time.monotonic()
        self.spans: list[tuple[str, float, float]] = []

    def go(self, cycles: int) -> None:
        """In and out so many times."""
        self.spans.append(("old", *self.customers.ask_on(ENOUGH)))
        for _ in range(cycles):
            self.load()
            self.spans.append(("new", *self.customers.ask_on(ENOUGH)))
            self.disable()
            self.spans.append(("old", *self.customers.ask_on(ENOUGH)))

    def load(self) -> None:
        for pid in self.pids:
            _command("load", self.patch, "--pid", pid, "--timeout", STALL)

    def disable(self) -> None:
        for pid in self.pids:
            _command("disable", self.patch.stem, "--unload", "--pid", pid, "--timeout", STALL)

    def check(self, *, kept: bool, boundary: bool = False) -> None:
        """Hold what the customers saw against what was promised."""
        answers = [answer for answer in self.customers.answers if answer.asked >= self.begun]
        assert not self.customers.failed
        assert not [answer for answer in answers if answer.torn]
        if boundary:
            assert not [answer for answer in answers if answer.mixed]
        for version, begun, ended in self.spans:
            within = [answer for answer in answers if begun <= answer.asked and answer.answered <= ended]
            assert within
            assert {version} == {met for answer in within for met in (*answer.edges, *answer.chain)}
        if kept:
            assert {customer.opened for customer in self.customers.customers} == {1}


def _command(*words: object) -> None:
    status = livepatch([str(word) for word in words])
    assert status == 0, f"livepatch {' '.join(map(str, words))} ended with status {status}"


@contextmanager
def visited(server: Server, make: Callable[[], Customer], *, processes: int, count: int = 4) -> Iterator[Customers]:
    """Customers of a server that has begun to serve, with so many processes."""

    def serves() -> bool:
        assert server.process.poll() is None, f"the server ended:\n{server.said()}"
        try:
            with closing(make()) as first:
                return bool(list(first.ask()))
        except OSError:
            return False

    eventually(serves, "the server did not begin to serve")
    server.wait_until_prepared(processes)
    with Customers([make() for _ in range(count)]) as found:
        yield found
