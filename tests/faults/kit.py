"""A service that notices if it is ever half patched, and commands to which something happens in the middle.

What reaches the target is what a command says on its socket. So a command has an end of steps: before, in the middle of
and after each thing that it does with the socket. `Faulty` carries a command out and lets something happen at one of
these; a test goes through all.
"""

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from tests.agent.targets import SERVES, Target, eventually

from livepatch.attach.client import LOAD_TIMEOUT, Client
from livepatch.cli.app import run

#: Both functions change, and the one calls the other: who sees one of each says so. Three threads call them all the
#: time, and stay in there for a moment.
SERVICE = (
    """
    import ctypes, os, signal, time
    import livepatch as lp
    torn, seen, ended = [], {}, threading.Event()
    def inner(): return "old"
    def outer():
        mine = "old"
        time.sleep(0.002)
        return mine, inner()
    def work(number):
        while not ended.is_set():
            pair = outer()
            if pair[0] != pair[1]: torn.append(pair)
            seen[number] = pair
    def answer():
        seen.clear()
        while len(seen) < 3: time.sleep(0.001)
        return " ".join(sorted({one for pair in list(seen.values()) for one in pair})) + f" torn {len(torn)}"
    def on_fork(*_):
        child = os.fork()
        if child == 0:
            while True: signal.pause()
        say("forked", child)
    signal.signal(signal.SIGUSR1, on_fork)
    def on_exec(*_):
        os.execv(sys.executable, [sys.executable, "-c", "import signal; signal.pause()"])
    signal.signal(signal.SIGUSR2, on_exec)
    for number in range(3):
        threading.Thread(target=work, args=(number,), daemon=True).start()
    lp.start_agent()
"""
    + SERVES
    + """
        if word == "naive":  # what livepatch is not
            def inner2(): return "new"
            def outer2():
                mine = "new"
                time.sleep(0.002)
                return mine, inner()
            for _ in range(20):
                inner.__code__ = inner2.__code__
                outer.__code__ = outer2.__code__
                time.sleep(0.01)
            say(answer())
        if word.startswith("kill agent"):  # as programs do that end all their threads
            for thread in threading.enumerate():
                if thread.name == "livepatch":
                    end = ctypes.pythonapi.PyThreadState_SetAsyncExc
                    end(ctypes.c_ulong(thread.ident), ctypes.py_object(SystemExit))
            say("killed")
"""
)

PATCH = """
import time
import livepatch as lp
def inner(): return "new"
def outer():
    mine = "new"
    time.sleep(0.002)
    return mine, inner_of_the_service()
def inner_of_the_service():
    import __main__
    return __main__.inner()
def slow(): pass
funcs = [lp.Func("inner", inner), lp.Func("outer", outer)]
__livepatch__ = lp.Patch("fix", [lp.Object(None, funcs)])
"""
#: The same, which a thread in `slow` holds up.
HELD = PATCH.replace('lp.Func("outer", outer)]', 'lp.Func("outer", outer), lp.Func("slow", slow)]')


class Done(NamedTuple):
    """A command that ended, by itself or not."""

    status: int
    out: str
    err: str
    steps: int


class Faulty:
    """Carries out commands, in a process of their own; at step `at` of what one does with its sockets, `happens()`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *arguments: object, at: int = 0, happens: Callable[[], object] = lambda: None) -> Done:
        out, err, count = (self.folder / name for name in ("out", "err", "steps"))
        count.write_text("0")
        sys.stdout.flush()
        child = os.fork()
        if child == 0:
            status = 70
            try:
                for path, descriptor in ((os.devnull, 0), (out, 1), (err, 2)):
                    opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
                    os.dup2(opened, descriptor)
                sys.stdout = open(1, "w", closefd=False)  # noqa: SIM115
                sys.stderr = open(2, "w", closefd=False)  # noqa: SIM115
                signal.signal(signal.SIGINT, signal.default_int_handler)
                _count(at, happens, count)
                status = run([str(argument) for argument in arguments])
                sys.stdout.flush()
            except BaseException:
                traceback.print_exc(file=sys.stderr)
            finally:
                sys.stderr.flush()
                os._exit(status)
        status = wait(child)
        done = Done(status, out.read_text(), err.read_text(), int(count.read_text()))
        assert "Traceback" not in done.err, done.err
        assert "Internal error" not in done.err, done.err
        return done

    def json(self, *arguments: object) -> Any:
        """What a command tells a program."""
        return json.loads(self(*arguments, "--json").out)


def wait(child: int) -> int:
    """The exit status of a child, or minus the signal that ended it; fails if it does not end."""
    deadline = time.monotonic() + 2 * LOAD_TIMEOUT  # so long it may wait for an answer
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            raise AssertionError("the command did not end")
        time.sleep(0.002)


def _count(at: int, happens: Callable[[], object], file: Path) -> None:
    """In the process of the command: have everything that is done with a socket count."""
    steps = 0

    def step() -> None:
        nonlocal steps
        steps += 1
        file.write_text(str(steps))
        if steps == at:
            happens()

    class Counted(socket.socket):
        def connect(self, address):
            step()
            super().connect(address)
            step()

        def send(self, data):
            step()
            half = len(data) // 2
            super().sendall(data[:half])
            step()
            super().sendall(data[half:])
            step()
            return len(data)

        def recv(self, size):
            data = super().recv(size)
            step()
            return data

    socket.socket = Counted


class Service(Target):
    """The process to which it is done."""

    def __init__(self, folder: Path, script: str = SERVICE, arguments: tuple[str, ...] = ()) -> None:
        super().__init__(script, arguments=arguments)
        assert self.hear() == "ready"
        self.patch = folder / "fix.py"
        self.patch.write_text(PATCH)
        self.held = folder / "held" / "fix.py"
        self.held.parent.mkdir(exist_ok=True)
        self.held.write_text(HELD)

    def ask(self) -> str:
        self.say("ask")
        while (line := self.hear()).startswith("forked"):
            pass
        return line

    def occupy(self) -> None:
        self.say("enter")
        assert self.hear() == "inside"

    @property
    def socket(self) -> Path:
        return Path(f"/tmp/livepatch-{os.geteuid()}/{self.pid}.sock")


def patches_of(pid: int) -> dict[str, tuple[bool, bool]]:
    """Whether each patch is enabled, and in transition, as its agent says."""
    with Client(pid) as client:
        return {patch["name"]: (patch["enabled"], patch["transition"]) for patch in client.call("list")}


def settled(pid: int) -> bool:
    """Wait until no transition runs there; whether the patch is enabled."""
    eventually(lambda: not any(moving for _, moving in patches_of(pid).values()))
    return patches_of(pid).get("fix", (False, False))[0]


def is_told(service: Service, lp: Faulty) -> bool:
    """Nothing is half done, and what runs is what the next commands say; whether that is the patch."""
    enabled = settled(service.pid)
    assert service.ask() == ("new torn 0" if enabled else "old torn 0")
    shown = lp("status", "--pid", service.pid)
    assert shown.status == 0, shown.err
    assert ("'fix': enabled" in shown.out) == enabled
    listed = lp("list", "--pid", service.pid)
    assert ("fix" in listed.out and "enabled" in listed.out) == enabled
    return enabled


def is_whole(service: Service, lp: Faulty) -> None:
    """The same, and everything can be done to it."""
    if is_told(service, lp):
        assert lp("disable", "fix", "--pid", service.pid).status == 0
        assert service.ask() == "old torn 0"
    if patches_of(service.pid):
        assert lp("unload", "fix", "--pid", service.pid).status == 0
    assert patches_of(service.pid) == {}
    done = lp("load", service.patch, "--pid", service.pid)
    assert done.status == 0, done.err
    assert service.ask() == "new torn 0"
    done = lp("disable", "fix", "--unload", "--pid", service.pid)
    assert done.status == 0, done.err
    assert service.ask() == "old torn 0"
    assert patches_of(service.pid) == {}
