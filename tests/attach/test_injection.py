"""A script runs in a process that was not prepared, once, whatever its main thread does, and nobody notices.

Each victim checks itself: that it got the right results, that it waited as long as it wanted, that its signals are
handled as before. `ran` is what the script has told it; `others_end` lets other threads do what the main thread waits
for only when the script has run.
"""

import ast
import contextlib
import os
import shutil
import subprocess
import sys
import textwrap
import time

import pytest
from tests.agent.targets import Target, eventually

from livepatch.attach.injector import Injector
from livepatch.attach.injector import command as helper
from livepatch.attach.processes import NoAccess, examine

PLAIN = [getattr(sys, "_base_executable", sys.executable)]

SCRIPT = """
import __main__, os, signal
__main__.mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
__main__.ran.append(os.getpid())
"""

PRELUDE = """
import os, sys, threading, time
ran = []
def signals():
    # Without those that the C library handles from the first thread on.
    with open("/proc/self/task/%d/status" % os.getpid()) as status:
        fields = dict(line.split() for line in status if line.startswith(("Sig", "TracerPid")) and "/" not in line)
    return {name: int(value, 16) & ~(3 << 31) for name, value in fields.items()}
def foreign_code():
    # Memory that is executable and of nobody: ours has to go away again.
    with open("/proc/self/maps") as maps:
        return [line for line in maps if "x" in line.split()[1] and len(line.split()) == 5]
def afterwards(action, *arguments):
    def wait():
        while not ran: time.sleep(0.01)
        time.sleep(0.3)
        action(*arguments)
    thread = threading.Thread(target=wait)
    thread.start()
    return thread
"""

PREPARED = "before = signals(); code_before = len(foreign_code())"

HEALTH = """
while not ran: time.sleep(0.01)
while len(foreign_code()) > code_before: time.sleep(0.01)
assert len(ran) == 1
assert signals() == before, (signals(), before)
assert mask == {number for number in range(1, 65) if before["SigBlk:"] >> number - 1 & 1}
assert threading.current_thread() is threading.main_thread()
say('healthy')
hear()
"""

#: What the main thread does: first what it prepares, then what it does until the script has run.
VICTIMS = {
    "loop": (
        "",
        """
        count = 0
        while not ran: count += 1; assert sum(range(count % 50)) == (count % 50) * (count % 50 - 1) // 2
        """,
    ),
    "allocating threads": (
        """
        def allocate():
            while not ran: assert len({str(n): [n] * 50 for n in range(500)}) == 500
        for _ in range(4): threading.Thread(target=allocate).start()
        """,
        "allocate()",
    ),
    "sleep": ("", "began = time.monotonic(); time.sleep(1); assert 1 <= time.monotonic() - began < 30"),
    "many sleeps": ("", "while not ran: time.sleep(0.001)"),
    "epoll": (
        "import select, socket; a, b = socket.socketpair(); poll = select.epoll(); poll.register(a, 1)",
        "afterwards(b.send, b'x'); assert poll.poll() == [(a.fileno(), 1)]",
    ),
    "epoll with a limit": (
        "import select; poll = select.epoll()",
        "began = time.monotonic(); assert poll.poll(1) == []; assert 1 <= time.monotonic() - began < 30",
    ),
    "poll": (
        "import select, socket; a, b = socket.socketpair(); poll = select.poll(); poll.register(a, 1)",
        "afterwards(b.send, b'x'); assert poll.poll() == [(a.fileno(), 1)]",
    ),
    "poll with a limit": (
        "import select; poll = select.poll()",
        "began = time.monotonic(); assert poll.poll(1000) == []; assert 1 <= time.monotonic() - began < 30",
    ),
    "select": (
        "import select, socket; a, b = socket.socketpair()",
        "afterwards(b.send, b'x'); assert select.select([a], [], []) == ([a], [], [])",
    ),
    "recv": ("import socket; a, b = socket.socketpair()", "afterwards(b.send, b'x'); assert a.recv(1) == b'x'"),
    "recv with a limit": (
        "import socket; a, b = socket.socketpair(); a.settimeout(30)",
        "afterwards(b.send, b'x'); assert a.recv(1) == b'x'",
    ),
    "accept": (
        "import socket; server = socket.create_server(('127.0.0.1', 0))",
        "afterwards(lambda: socket.create_connection(server.getsockname()).close()); server.accept()[0].close()",
    ),
    "read": ("a, b = os.pipe()", "afterwards(os.write, b, b'x'); assert os.read(a, 1) == b'x'"),
    "write": (
        """
        a, b = os.pipe()
        os.set_blocking(b, False)
        full = os.write(b, bytes(1 << 20))
        os.set_blocking(b, True)
        """,
        "afterwards(os.read, a, full); assert os.write(b, b'x') == 1",
    ),
    "fifo": (
        "import tempfile; name = tempfile.mkdtemp() + '/fifo'; os.mkfifo(name)",
        "afterwards(open, name, 'w'); open(name).close(); os.unlink(name); os.rmdir(os.path.dirname(name))",
    ),
    "child": (
        "import subprocess; child = subprocess.Popen(['cat'], stdin=subprocess.PIPE)",
        "afterwards(child.stdin.close); assert child.wait() == 0",
    ),
    "lock": ("lock = threading.Lock(); lock.acquire()", "afterwards(lock.release); assert lock.acquire()"),
    "lock with a limit": (
        "lock = threading.Lock(); lock.acquire()",
        "began = time.monotonic(); assert not lock.acquire(timeout=1); assert 1 <= time.monotonic() - began < 30",
    ),
    "join": ("", "afterwards(int).join()"),
    "event": ("event = threading.Event()", "afterwards(event.set); assert event.wait()"),
    "queue": ("import queue; things = queue.Queue()", "afterwards(things.put, 1); assert things.get() == 1"),
    "pause": (
        """
        import signal
        handled = []
        signal.signal(signal.SIGUSR1, lambda *_: handled.append(1))
        """,
        "afterwards(os.kill, os.getpid(), signal.SIGUSR1); signal.pause(); assert handled",
    ),
    "sigwait": (
        "import signal; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])",
        """
        afterwards(os.kill, os.getpid(), signal.SIGUSR1)
        assert signal.sigwait([signal.SIGUSR1]) == signal.SIGUSR1
        """,
    ),
    "foreign sleep": (
        "import ctypes; libc = ctypes.CDLL(None)",
        """
        while not ran:
            began = time.monotonic()
            assert libc.sleep(1) == 0
            assert 1 <= time.monotonic() - began
        """,
    ),
    "foreign sleeps without end": (
        """
        import sqlite3, tempfile
        name = tempfile.mkdtemp() + '/database'
        first = sqlite3.connect(name, check_same_thread=False, isolation_level=None)
        second = sqlite3.connect(name, timeout=1000, isolation_level=None)
        first.execute('create table things (thing)')
        first.execute('begin exclusive')
        """,
        """
        afterwards(first.execute, 'commit')
        second.execute('insert into things values (1)')
        import shutil; shutil.rmtree(os.path.dirname(name))
        """,
    ),
    "foreign lock": (
        """
        import ctypes
        libc = ctypes.CDLL(None)
        semaphore = (ctypes.c_char * 64)()
        libc.sem_init(semaphore, 0, 0)
        """,
        "afterwards(libc.sem_post, semaphore); assert libc.sem_wait(semaphore) == 0",
    ),
    "foreign lock with a limit": (
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        semaphore = (ctypes.c_char * 64)()
        libc.sem_init(semaphore, 0, 0)
        now = time.time()
        limit = (ctypes.c_long * 2)(int(now) + 2, 0)
        """,
        """
        assert libc.sem_timedwait(semaphore, limit) == -1 and ctypes.get_errno() == 110
        assert time.time() >= int(now) + 2
        """,
    ),
    "foreign read": (
        "import ctypes; libc = ctypes.CDLL(None, use_errno=True); a, b = os.pipe(); byte = ctypes.c_char()",
        "afterwards(os.write, b, b'x'); assert libc.read(a, ctypes.byref(byte), 1) == 1 and byte.value == b'x'",
    ),
    "slow expression": ("import re", "assert not re.match('(a|aa)+$', 'a' * 32 + 'b')"),
    "signals": (
        """
        import signal
        count = 0
        def count_one(number, frame):
            global count
            count += 1
        signal.signal(signal.SIGALRM, count_one)
        signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
        """,
        """
        while not ran: sum(range(100))
        so_far = count
        while count == so_far: time.sleep(0.001)
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
    ),
    "signals in a sleep": (
        """
        import signal
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.setitimer(signal.ITIMER_REAL, 0.002, 0.002)
        """,
        """
        began = time.monotonic(); time.sleep(1); assert 1 <= time.monotonic() - began < 30
        signal.setitimer(signal.ITIMER_REAL, 0)
        """,
    ),
    "a handler that waits": (
        """
        import signal
        a, b = os.pipe()
        os.set_blocking(b, False)
        signal.signal(signal.SIGUSR1, lambda *_: None)
        signal.set_wakeup_fd(b, warn_on_full_buffer=False)
        full = os.write(b, bytes(1 << 20))
        os.set_blocking(b, True)
        """,
        """
        threading.Timer(1, os.read, (a, full)).start()
        signal.raise_signal(signal.SIGUSR1)
        signal.set_wakeup_fd(-1)
        """,
    ),
    "forks": (
        "",
        """
        while not ran:
            if (child := os.fork()) == 0: os._exit(os.getpid() in ran)  # not there, whatever it had seen by the fork
            assert (ended := os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])) == 0, ended
        """,
    ),
    "deaf for moments": (
        "",
        """
        import signal
        every = signal.valid_signals()
        while not ran:
            signal.pthread_sigmask(signal.SIG_BLOCK, every)
            assert sum(range(200_000)) == 19999900000
            signal.pthread_sigmask(signal.SIG_UNBLOCK, every)
            assert sum(range(100_000)) == 4999950000
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])  # the thread's own is that of the moment it was started in
        """,
    ),
    "pending calls": (
        """
        import ctypes
        calls = 0
        @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        def called(nothing):
            global calls
            calls += 1
            return 0
        def add(): return ctypes.pythonapi.Py_AddPendingCall(called, None)
        added = 0
        """,
        """
        while not ran: added += add() == 0
        while calls < added: time.sleep(0.001)
        assert calls == added
        """,
    ),
    "pending calls of others": (
        """
        import ctypes
        calls = []
        @ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
        def called(nothing):
            calls.append(1)
            return 0
        add = ctypes.CDLL(None).Py_AddPendingCall
        added = []
        def adding():
            while not ran: add(called, None) or added.append(1)
        adders = [threading.Thread(target=adding) for _ in range(3)]
        for adder in adders: adder.start()
        """,
        """
        while not ran: pass
        for adder in adders: adder.join()
        while len(calls) < len(added): time.sleep(0.001)
        assert len(calls) == len(added)
        """,
    ),
}


class Running:
    """A victim, and the script that is brought into it."""

    def __init__(self, target, folder):
        self.target = target
        self.process = examine(target.pid)
        self.script = folder / f"{target.pid}.py"
        self.script.write_text(SCRIPT)

    def injector(self, timeout=60.0):
        return Injector(self.process, timeout).begin(str(self.script))

    def inject(self):
        with self.injector() as injector:
            eventually(injector.done)


@contextlib.contextmanager
def running(prepare, act, folder, health=HEALTH):
    script = "\n".join((PRELUDE, textwrap.dedent(prepare), PREPARED, "say('ready')", textwrap.dedent(act)))
    with Target(script + health, command=PLAIN) as target:
        assert target.hear() == "ready"
        yield Running(target, folder)


@pytest.mark.parametrize("what", VICTIMS)
def test_it_runs_once_and_harms_nothing(what, tmp_path):
    with running(*VICTIMS[what], tmp_path) as running_one:
        time.sleep(0.05)
        running_one.inject()
        assert running_one.target.hear() == "healthy"
        running_one.target.say()
        assert running_one.target.process.wait(60) == 0


#: Its main thread is the one that has forked, on the stack of that, as the successor of a worker in a pool has it. One
#: that only computes is not among the victims: from 3.13 on the interpreter tells it of no pending call there.
FORKED_BY_A_THREAD = """
def fork():
    child = os.fork()
    if child == 0:
        try: exec({!r}, globals())
        finally: os._exit(0)
    say(child)
    os.waitpid(child, 0)
forking = threading.Thread(target=fork)
forking.start()
forking.join()
"""


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("what", ["allocating threads", "sleep", "epoll", "read", "lock"])
def test_also_in_the_child_of_a_thread(what, tmp_path):
    prepare, act = map(textwrap.dedent, VICTIMS[what])
    body = "\n".join((prepare, PREPARED, "say('ready')", act, HEALTH))
    with Target(PRELUDE + FORKED_BY_A_THREAD.format(body), command=PLAIN) as target:
        said = {target.hear(), target.hear()}
        (pid,) = map(int, said - {"ready"})
        target.pid = pid  # of the victim
        Running(target, tmp_path).inject()
        assert target.hear() == "healthy"
        target.say()
        assert target.process.wait(60) == 0


def test_a_helper_imports_little():
    """Each attach waits for it to start."""
    command = helper("run", 0, 0, 1.0)
    place = command.index("-c") + 1
    command[place] = command[place].replace("main(sys.argv[4:])", "print([*sys.modules])")
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    loaded = set(ast.literal_eval(done.stdout))
    assert "livepatch.attach.injection" in loaded
    assert not loaded & {
        "json",
        "platform",
        "dataclasses",
        "inspect",
        "secrets",
        "subprocess",
        "pathlib",
        "socket",
        "livepatch.core",
    }


@pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc")
def test_a_main_thread_that_has_the_lock_of_the_pending_calls_and_not_the_gil(tmp_path):
    """It is stopped at any instant, and would wait for itself for ever. Here there is never room for a note, either."""
    (tmp_path / "add.c").write_text(
        "void add(int (*call)(int (*)(void *), void *), int (*nothing)(void *), volatile long *times)"
        "{ for (times[0] = 0; !times[1]; ++times[0]) call(nothing, 0); }"
    )
    subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", "add.so", "add.c"], cwd=tmp_path, check=True)
    script = """
        import ctypes, time
        ran = []
        times = (ctypes.c_long * 2)()
        def hears():
            while times[0] < 1000: time.sleep(0.001)
            say("ready")
            hear()
            times[1] = 1
        threading.Thread(target=hears).start()
        address = lambda name: ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p)
        ctypes.CDLL(sys.argv[1]).add(address("Py_AddPendingCall"), address("PyErr_CheckSignals"), times)
        say("healthy")
        while not ran: time.sleep(0.01)
        say("ran")
        hear()  # a note that the first attempt left in its last instant may have come first
    """
    with Target(script, command=PLAIN, arguments=(str(tmp_path / "add.so"),)) as target:
        assert target.hear() == "ready"
        running_one = Running(target, tmp_path)
        with running_one.injector() as injector:
            time.sleep(1)  # hundreds of attempts
            done = injector.done()  # there are system calls in it on some versions, in which a thread can be started
        target.say()
        assert target.hear() == "healthy"
        if not done:
            running_one.inject()
        assert target.hear() == "ran"


@pytest.mark.parametrize("reaped", [False, True])
def test_who_has_ended_meanwhile_is_said_to(reaped, tmp_path):
    with Target("say('ready')\nhear()", command=PLAIN) as target:
        assert target.hear() == "ready"
        running_one = Running(target, tmp_path)
        target.process.kill()
        os.waitid(os.P_PID, target.pid, os.WEXITED | os.WNOWAIT)
        if reaped:
            target.process.wait()
        with pytest.raises(NoAccess, match=f"^Process {target.pid} ended during the attach[.]$"):
            running_one.inject()
