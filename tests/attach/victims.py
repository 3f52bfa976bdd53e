"""Programs to be attached to, each of which finds out whether it was harmed.

A victim does one thing in its main thread, again and again or for ever, and checks every result. It knows nothing of
livepatch. What can be seen from outside is compared from outside, before and after: signal masks and dispositions,
traps that are pending, tracers, executable memory of nobody's file, zombies. So a victim that is hung, dead, wrong, or
merely not as it was, is told apart from a healthy one without its help.

Nothing may change what the main thread does only because we look: its progress is a number in memory that both sides
have mapped, and the order to end is another, beside an end of file on standard input for those that wait for that. Only
victims that need a second thread have one.
"""

from __future__ import annotations

import mmap
import os
import re
import select
import signal
import socket
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

#: The interpreter outside of any virtual environment: it has no livepatch.
PLAIN = (getattr(sys, "_base_executable", sys.executable),)

#: Seconds that anything may take before it counts as hung: the machine may be busy.
PATIENCE = 60.0

_LEFT = "executable memory of no file"
_STOP, _PROGRESS, _END = 0, 1, 2

#: What every victim begins with.
_PRELUDE = """\
import mmap, os, sys, time
shared = memoryview(mmap.mmap({shared}, mmap.PAGESIZE)).cast("Q")
os.close({shared})
wrong = []
def going():
    shared[1] += 1
    return not shared[0]
def ready(port=0):
    print("ready", port, flush=True)
def check(found, wanted):
    if found != wanted and len(wrong) < 3:
        wrong.append(f"{{found!r:.200}} is not {{wanted!r:.200}}")
def slept(seconds, since):
    took = time.monotonic() - since
    if took < seconds:
        wrong.append(f"slept {{took}} of {{seconds}} s")
def ended():    # the other side has said so
    return not sys.stdin.buffer.read(1)
"""
#: When its main thread runs again, what an attach has put into it must go, and can be seen to go.
_EPILOGUE = """
print("; ".join(wrong) or "right", flush=True)
while not shared[2]: time.sleep(0.001)
"""


@dataclass(frozen=True)
class Victim:
    """`moves`: its counter goes on by itself, while it is not told to end."""

    program: str
    moves: bool = True
    slow: bool = False


def _busy(program: str, *, slow: bool = False) -> Victim:
    return Victim(textwrap.dedent(program), slow=slow)


def _blocked(program: str) -> Victim:
    return Victim(textwrap.dedent(program), moves=False)


VICTIMS = {
    # Python code.
    "loop": _busy("""
        ready()
        while going():
            total = 0
            for i in range(20000):
                total += i * i % 7
            check(total, 39998)
    """),
    "allocating": _busy("""
        import threading
        def work():
            while going():
                rows = [{"number": i, "text": "x" * (i % 97), "list": [i] * (i % 13)} for i in range(500)]
                check(sum(row["number"] + len(row["text"]) + len(row["list"]) for row in rows), 151114)
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads: thread.start()
        ready()
        work()
        for thread in threads: thread.join()
    """),
    "garbage": _busy("""
        import gc
        gc.set_threshold(50, 2, 2)
        made = ended = 0
        class Node:
            def __init__(self):
                global made
                made += 1
                self.me = self
            def __del__(self):
                global ended
                ended += 1
        ready()
        while going():
            for _ in range(200): Node()
        for _ in range(100):
            gc.collect()        # does nothing while another thread is at it
            if made == ended: break
            time.sleep(0.01)
        check(made, ended)
    """),
    "exceptions": _busy("""
        def nested(depth):
            try:
                raise ValueError(depth)
            except ValueError as error:
                check(sys.exc_info()[1], error)
                try:
                    if depth: nested(depth - 1)
                    raise KeyError(depth)
                except KeyError as another:
                    check(another.__context__, error)
                check(sys.exc_info()[1], error)
        ready()
        while going():
            nested(50)
            check(sys.exc_info(), (None, None, None))
    """),
    "recursion": _busy("""
        def down(depth):
            return depth and 1 + down(depth - 1)
        ready()
        while going():
            try:
                for depth in range(400, 2000, 7):
                    check(down(depth), depth)
            except RecursionError:
                pass
    """),
    "imports": _busy("""
        import importlib, tempfile, shutil
        folder = tempfile.mkdtemp()
        sys.path.insert(0, folder)
        sys.dont_write_bytecode = True
        for i in range(20):
            with open(f"{folder}/victim_{i}.py", "w") as file:
                file.write(f"import time; time.sleep(0.001); import victim_{i + 1}\\n" if i < 19 else "last = True\\n")
                file.write("def f(): return __name__\\n" * 20)
        ready()
        while going():
            importlib.invalidate_caches()
            check(importlib.import_module("victim_0").f(), "victim_0")
            check(sys.modules["victim_19"].last, True)
            for i in range(20): del sys.modules[f"victim_{i}"]
        shutil.rmtree(folder)
    """),
    # C code that has the interpreter, or has not.
    "regex": _busy("""
        import re
        ready()
        while going():
            check(re.match("(a+)+$", "a" * 21 + "b"), None)
    """),
    "registers": _busy("""
        import hashlib, math, zlib
        block = bytes(range(256)) * 2000
        number = 3 ** 20000
        floats = [math.sqrt(i) for i in range(2000)]
        def everything():
            return (hashlib.sha256(block).digest(), zlib.crc32(block), block.count(b"\\x00\\x01"),
                    number * number % 1000003, sum(floats), math.fsum(floats), sorted(floats, reverse=True)[:5])
        wanted = everything()
        ready()
        while going(): check(everything(), wanted)
    """),
    "ctypes_sleep": _busy("""
        import ctypes
        sleep = ctypes.CDLL(None).sleep
        ready()
        while going():
            since = time.monotonic()
            check(sleep(1), 0)      # what it left out
            slept(1, since)
    """),
    # System calls.
    "short_calls": _busy("""
        file = os.open("/dev/zero", os.O_RDONLY)
        pid = os.getpid()
        ready()
        while going():
            for _ in range(100):
                check(os.pread(file, 100, 0), bytes(100))
                check(os.stat("/").st_ino, os.stat("/.").st_ino)
                check(os.getppid() > 0, True)
    """),
    "sleep": _busy("""
        ready()
        while going():
            since = time.monotonic()
            time.sleep(0.7)
            slept(0.7, since)
    """),
    "select": _busy("""
        import select
        pipe = os.pipe()
        ready()
        while going():
            since = time.monotonic()
            check(select.select([pipe[0]], [], [], 0.3), ([], [], []))
            slept(0.3, since)
    """),
    "poll": _blocked("""
        import select
        poll = select.poll()
        poll.register(0, select.POLLIN)
        ready()
        check([fd for fd, _ in poll.poll()], [0])
    """),
    "epoll": _blocked("""
        import select
        epoll = select.epoll()
        epoll.register(0, select.EPOLLIN)
        ready()
        check([fd for fd, _ in epoll.poll()], [0])
    """),
    "read": _blocked("""
        ready()
        check(os.read(0, 100), b"")
    """),
    "recv": _blocked("""
        import socket
        with socket.socket(fileno=os.dup(0)) as peer:
            ready()
            check(peer.recv(100), b"")
    """),
    "accept": _blocked("""
        import socket
        with socket.create_server(("127.0.0.1", 0)) as server:
            ready(server.getsockname()[1])
            server.accept()[0].close()
    """),
    "send": _blocked("""
        import hashlib, socket, threading
        here, there = socket.socketpair()
        data = bytes(range(251)) * 20000
        digest = hashlib.sha256()
        def drain():
            ended()
            while piece := there.recv(65536): digest.update(piece)
        thread = threading.Thread(target=drain)
        thread.start()
        ready()
        here.sendall(data)
        here.close()
        thread.join()
        check(digest.digest(), hashlib.sha256(data).digest())
    """),
    "child": _blocked("""
        import subprocess
        ready()
        check(subprocess.run(["sh", "-c", "cat; exit 7"]).returncode, 7)
    """),
    "forks": _busy("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)     # of the fork of a process that has threads: the agent's
        ready()
        while going():
            pid = os.fork()
            if not pid: os._exit(7)
            check(os.waitpid(pid, 0), (pid, 7 << 8))
    """),
    "forks_import": _busy("""
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        ready()
        while going():
            pid = os.fork()
            if not pid:     # needs what another thread may be in the middle of importing
                import json, logging, random, socket, tempfile
                os._exit(7)
            check(os.waitpid(pid, 0), (pid, 7 << 8))
    """),
    "lock": _blocked("""
        import threading
        lock = threading.Lock()
        lock.acquire()
        threading.Thread(target=lambda: ended() and lock.release()).start()
        ready()
        check(lock.acquire(), True)
    """),
    "lock_timeout": _busy("""
        import threading
        lock = threading.Lock()
        lock.acquire()
        ready()
        while going():
            since = time.monotonic()
            check(lock.acquire(timeout=0.3), False)
            slept(0.3, since)
    """),
    "join": _blocked("""
        import threading
        thread = threading.Thread(target=ended)
        thread.start()
        ready()
        thread.join()
    """),
    "queue": _blocked("""
        import queue, threading
        items = queue.Queue()
        threading.Thread(target=lambda: items.put(ended())).start()
        ready()
        check(items.get(), True)
    """),
    "semaphore": _blocked("""
        import multiprocessing, threading
        semaphore = multiprocessing.get_context("spawn").Semaphore(0)
        threading.Thread(target=lambda: ended() and semaphore.release()).start()
        ready()
        check(semaphore.acquire(), True)
    """),
    "flock": _blocked("""
        import fcntl, tempfile, threading
        with tempfile.NamedTemporaryFile() as file, open(file.name) as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            threading.Thread(target=lambda: ended() and fcntl.flock(other, fcntl.LOCK_UN)).start()
            ready()
            check(fcntl.flock(file, fcntl.LOCK_EX), None)
    """),
    "sigwait": _blocked("""
        import signal, threading
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        threading.Thread(target=lambda: ended() and os.kill(os.getpid(), signal.SIGUSR1)).start()
        ready()
        check(signal.sigwait([signal.SIGUSR1]), signal.SIGUSR1)
    """),
    # What comes in between.
    "signals": _busy("""
        import faulthandler, signal
        faulthandler.enable()       # with a stack of its own
        count = 0
        def handler(number, frame):
            global count
            count += 1
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        ready()
        while going():
            since = time.monotonic()
            time.sleep(0.02)
            slept(0.02, since)
            check(sum(i * i % 7 for i in range(20000)), 39998)
        check(count > 0, True)
        signal.setitimer(signal.ITIMER_REAL, 0)
    """),
    "signals_read": _blocked("""
        import signal
        signal.signal(signal.SIGALRM, lambda number, frame: going())
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        ready()
        check(os.read(0, 100), b"")
        signal.setitimer(signal.ITIMER_REAL, 0)
    """),
    "pending_calls": _busy("""
        import ctypes, threading
        free = ctypes.CDLL(None)        # without the interpreter's lock
        nothing = ctypes.cast(ctypes.pythonapi.PyErr_CheckSignals, ctypes.c_void_p)
        def work():
            while going():
                for _ in range(50):
                    check(free.Py_AddPendingCall(nothing, None) in (0, -1), True)
        thread = threading.Thread(target=work)
        thread.start()
        ready()
        work()
        thread.join()
    """),
    "threads": _busy(
        """
        import threading
        gate = threading.Event()
        threads = [threading.Thread(target=gate.wait) for _ in range(400)]
        for thread in threads: thread.start()
        ready()
        while going(): check(sum(i * i % 7 for i in range(20000)), 39998)
        gate.set()
        for thread in threads: thread.join()
    """,
        slow=True,
    ),
    "server": _busy("""
        import asyncio, socket, threading
        async def serve(reader, writer):
            while line := await reader.readline():
                going()
                writer.write(line.upper())
                await writer.drain()
            writer.close()
        def load(port):
            with socket.create_connection(("127.0.0.1", port)) as peer, peer.makefile("rwb") as file:
                while not shared[0]:
                    for i in range(100):
                        file.write(b"hello %d\\n" % i)
                    file.flush()
                    for i in range(100):
                        check(file.readline(), b"HELLO %d\\n" % i)
        async def main():
            server = await asyncio.start_server(serve, "127.0.0.1", 0)
            port = server.sockets[0].getsockname()[1]
            ready()
            await asyncio.gather(*(asyncio.to_thread(load, port) for _ in range(3)))
            server.close()
        asyncio.run(main())
    """),
}


class Running:
    """A victim that runs, and what it was like before anybody touched it."""

    def __init__(self, victim: Victim, command: tuple[str, ...] = PLAIN, *, patience: float = PATIENCE) -> None:
        self._victim = victim
        self.patience = patience
        shared = os.memfd_create("victim")
        os.truncate(shared, mmap.PAGESIZE)
        self._memory = mmap.mmap(shared, mmap.PAGESIZE)
        self._shared = memoryview(self._memory).cast("Q")
        self._line, theirs = socket.socketpair()
        program = _PRELUDE.format(shared=shared) + victim.program + _EPILOGUE
        with theirs:
            self.process = subprocess.Popen(
                [*command, "-c", program],
                stdin=theirs.fileno(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=[shared],
                start_new_session=True,
            )
        os.close(shared)
        self.pid = self.process.pid
        self._said = b""
        word, _, self._port = self._hear().partition(" ")
        assert word == "ready", f"the victim did not start: {word!r} {self._errors()}"
        self._before = self._at_rest()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        """End it, whatever state it is in, and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.wait()
        for file in (self.process.stdout, self.process.stderr):
            assert file is not None
            file.close()
        self._line.close()
        self._shared.release()
        self._memory.close()

    def verdict(self) -> tuple[str, str]:
        """End it, and say whether it is healthy, wrong, hung or dead, and why."""
        harm = self.harm() + self.finish()
        dead = self.process.poll() is not None and self.process.returncode != 0
        fate = "dead" if dead else "hung" if self.process.poll() is None else "wrong" if harm else "healthy"
        return fate, "; ".join(harm)

    def harm(self) -> list[str]:
        """What is not as it was before, as far as that can be seen while it runs."""
        # A main thread that is blocked may have been left a note, in memory that goes when it wakes up.
        if changed := self._changed(set(self._before) - {_LEFT}):
            return changed
        start = self._shared[_PROGRESS]
        if self._victim.moves and not self._eventually(
            lambda: self._shared[_PROGRESS] > start or self.process.poll() is not None
        ):
            return ["it does not go on"]
        return []

    def finish(self) -> list[str]:
        """Tell it to end, and what was wrong with what it did."""
        self._shared[_STOP] = 1
        self._line.shutdown(socket.SHUT_WR)
        if self._port not in ("", "0"):
            socket.create_connection(("127.0.0.1", int(self._port))).close()
        said = self._hear()
        if said != "right":
            return [f"{said or 'it says nothing'} {self._errors()}".strip()]
        left = self._changed({_LEFT})
        self._shared[_END] = 1
        try:
            status = self.process.wait(self.patience)
        except subprocess.TimeoutExpired:
            return ["it does not end"]
        errors = self._errors()
        return left + ([f"it ended with {status}, saying {errors!r}"] if status or errors else [])

    def _changed(self, aspects: set[str]) -> list[str]:
        """What does not look as it did before, and does not come to."""

        def found() -> list[str]:
            now, was = _outside(self.pid), self._before
            return [f"{what}: {now.get(what)!r}, was {was[what]!r}" for what in aspects if now.get(what) != was[what]]

        return [] if self._eventually(lambda: not found()) else found()

    def _at_rest(self) -> dict[str, object]:
        """What it is like apart from the moments in which a call of its own changes that: what is seen most often."""
        assert self._eventually(lambda: self._victim.moves or _state(str(self.pid)) == "S")
        seen = []
        for _ in range(5):
            time.sleep(0.003)
            seen.append(_outside(self.pid))
        return {**max(seen, key=lambda looks: sum(looks == other for other in seen)), "zombies": 0}

    def _hear(self) -> str:
        """The next line that it says; empty if it is hung or has ended."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + self.patience
        while b"\n" not in self._said:
            ready, _, _ = select.select([self.process.stdout], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self.process.stdout.fileno(), 65536) if ready else b""
            if not data:
                return ""
            self._said += data
        line, _, self._said = self._said.partition(b"\n")
        return line.decode()

    def _eventually(self, condition: Callable[[], object]) -> bool:
        """Whether it comes true before patience ends."""
        deadline = time.monotonic() + self.patience
        while not condition():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.01)
        return True

    def _errors(self) -> str:
        """What it said on standard error, and how it ended, if it has."""
        try:
            status: int | str = self.process.wait(1)
        except subprocess.TimeoutExpired:
            return f"(it still runs, {_outside(self.pid)})"
        assert self.process.stderr is not None
        errors = self.process.stderr.read().decode(errors="replace").strip()
        return f"(status {status}) {errors}" if status else errors


def _outside(pid: int) -> dict[str, object]:
    """What an attach must leave as it was, read from /proc. Empty if the process is gone."""
    try:
        status = dict(
            line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines() if ":\t" in line
        )
        maps = Path(f"/proc/{pid}/maps").read_text()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        files = [os.readlink(f"/proc/{pid}/fd/{fd}") for fd in _names(f"/proc/{pid}/fd")]
    except (FileNotFoundError, ProcessLookupError):
        return {}
    trap = 1 << 4
    return {
        "tracer": status["TracerPid"],
        "stopped": status["State"][0] in "tTZX",
        "trap pending": bool((int(status["SigPnd"], 16) | int(status["ShdPnd"], 16)) & trap),
        # Without those two that the C library keeps to itself, and sets up when it makes the first thread.
        **{what: f"{int(status[what], 16) & ~(3 << 31):x}" for what in ("SigBlk", "SigIgn", "SigCgt")},
        _LEFT: len(re.findall(r"^\S+ ..x. \S+ \S+ 0 *$", maps, re.MULTILINE)),
        "our files mapped": sorted(set(re.findall(r"\S*/livepatch-\d+/.*", maps))),
        "our files open": sorted(name for name in files if "/livepatch-" in name),
        "zombies": sum(_state(child) == "Z" for child in children),
    }


def _names(directory: str) -> list[str]:
    with os.scandir(directory) as found:
        return [entry.name for entry in found if os.path.lexists(entry.path)]


def _state(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return ""
