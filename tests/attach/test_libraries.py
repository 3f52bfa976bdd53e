"""What the main thread of a real program sits in is seldom the interpreter: it is the loop of a library.

Each of these programs is one of tests/attach/victims.py in its habits: it checks itself, and ends when it is told to.
"""

import contextlib
import os
import shutil
import subprocess
import sys
import textwrap

import pytest
from tests.attach.victims import PLAIN, Running, Victim

from livepatch.attach import entry
from livepatch.core.model import LivepatchError

#: Seconds that an attach may take: far more than any needs, the machine may be busy.
LIMIT = 60.0

#: Library -> what the main thread does, until the other end of standard input, a socket, is closed.
PROGRAMS = {
    "asyncio, idle": """
        import asyncio, socket
        async def main():
            reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=os.dup(0)))
            ready()
            check(await reader.read(), b"")
            writer.close()
        asyncio.run(main())
    """,
    "uvloop, idle": """
        import asyncio, socket, uvloop
        async def main():
            reader, writer = await asyncio.open_connection(sock=socket.socket(fileno=os.dup(0)))
            ready()
            check(await reader.read(), b"")
            writer.close()
        uvloop.run(main())
    """,
    "uvloop, busy": """
        import asyncio, uvloop
        async def main():
            while going():
                await asyncio.sleep(0.001)
                check(sum(range(1000)), 499500)
        ready()
        uvloop.run(main())
    """,
    "trio, idle": """
        import socket, trio
        async def main():
            peer = trio.socket.from_stdlib_socket(socket.socket(fileno=os.dup(0)))
            ready()
            check(await peer.recv(100), b"")
            peer.close()
        trio.run(main)
    """,
    "gevent, idle": """
        import gevent.socket
        peer = gevent.socket.socket(fileno=os.dup(0))
        ready()
        check(peer.recv(100), b"")
        peer.close()
    """,
    "gevent, busy": """
        import gevent
        def work():
            while going():
                gevent.sleep(0)
                check(sum(range(1000)), 499500)
        ready()
        gevent.joinall([gevent.spawn(work) for _ in range(10)])
    """,
    "gevent, monkey-patched": """
        from gevent import monkey
        monkey.patch_all()
        import queue, socket, threading
        items = queue.Queue()
        peer = socket.socket(fileno=os.dup(0))
        threading.Thread(target=lambda: items.put(peer.recv(100))).start()
        ready()
        check(items.get(), b"")
        peer.close()
    """,
    "zmq, recv": """
        import threading, zmq
        context = zmq.Context()
        pull = context.socket(zmq.PULL)
        pull.bind("inproc://victim")
        def push():
            ended()
            with context.socket(zmq.PUSH) as socket:
                socket.connect("inproc://victim")
                socket.send(b"end")
        thread = threading.Thread(target=push)
        thread.start()
        ready()
        check(pull.recv(), b"end")
        thread.join()
        context.destroy()
    """,
    "zmq, poll": """
        import zmq
        poller = zmq.Poller()
        poller.register(0, zmq.POLLIN)
        ready()
        check([fd for fd, _ in poller.poll()], [0])
    """,
    "psycopg, connecting": """
        import psycopg, socket, threading
        server = socket.create_server(("127.0.0.1", 0))
        def silent():
            with server, server.accept()[0] as peer:
                peer.recv(1000)
                ended()
        threading.Thread(target=silent).start()
        ready()
        try:
            port = server.getsockname()[1]
            psycopg.connect(host="127.0.0.1", port=port, user="x", sslmode="disable", gssencmode="disable")
        except psycopg.OperationalError as error:
            check("server closed the connection unexpectedly" in str(error), True)
    """,
    "sqlite3, waiting": """
        import sqlite3, tempfile, threading
        with tempfile.NamedTemporaryFile() as file:
            other = sqlite3.connect(file.name, check_same_thread=False, isolation_level=None)
            other.execute("create table t (x)")
            other.execute("begin immediate")
            threading.Thread(target=lambda: ended() and other.execute("commit")).start()
            mine = sqlite3.connect(file.name, timeout=1000, isolation_level=None)
            ready()
            mine.execute("insert into t values (1)")
            check(mine.execute("select * from t").fetchall(), [(1,)])
            mine.close()
    """,
    "sqlite3, computing": """
        import sqlite3
        database = sqlite3.connect(":memory:")
        numbers = "with recursive n(i) as (select 1 union all select i + 1 from n limit 1000000) select sum(i) from n"
        ready()
        while going():
            check(database.execute(numbers).fetchall(), [(500000500000,)])
    """,
    "the lock of the interpreter, for a while": """
        import ctypes
        sleep = ctypes.PyDLL(None).usleep
        ready()
        while going():
            since = time.monotonic()
            check(sleep(200_000), 0)
            slept(0.2, since)
    """,
    "read of a foreign library": """
        import ctypes
        buffer = ctypes.create_string_buffer(10)
        ready()
        check(ctypes.CDLL(None).read(0, buffer, 10), 0)
    """,
    "poll of a foreign library": """
        import ctypes
        class Poll(ctypes.Structure):
            _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]
        ready()
        while not (found := ctypes.CDLL(None).poll(ctypes.byref(Poll(0, 1, 0)), 1, -1)) == 1:
            check(found, -1)    # interrupted, as by any signal
    """,
}

#: What nobody can get into: the main thread waits for ever, and has the interpreter's lock.
HOLDING = {
    "read": """
        import ctypes
        buffer = ctypes.create_string_buffer(10)
        ready()
        check(ctypes.PyDLL(None).read(0, buffer, 10), 0)
    """,
    "poll": """
        import ctypes
        class Poll(ctypes.Structure):
            _fields_ = [("fd", ctypes.c_int), ("events", ctypes.c_short), ("revents", ctypes.c_short)]
        ready()
        while not (found := ctypes.PyDLL(None).poll(ctypes.byref(Poll(0, 1, 0)), 1, -1)) == 1:
            check(found, -1)
    """,
}

#: Where it depends on the interpreter and on its C library what becomes of a wait. Libraries bring their own.
QUICK = {"asyncio, idle", "read of a foreign library", "poll of a foreign library"}

TK_IDLE = """
    import tkinter
    root = tkinter.Tk()
    root.createfilehandler(0, tkinter.READABLE, lambda *what: root.destroy())
    root.after(1, ready)
    root.mainloop()
"""
TK_BUSY = """
    import tkinter
    root = tkinter.Tk()
    label = tkinter.Label(root)
    label.pack()
    def tick():
        label["text"] = str(shared[1])
        check(label["text"], str(shared[1]))
        root.after(10, tick) if going() else root.destroy()
    root.after(1, ready)
    root.after(10, tick)
    root.mainloop()
"""


@contextlib.contextmanager
def running(program, command=(sys.executable,), moves=False):
    with Running(Victim(textwrap.dedent(program), moves=moves), command) as victim:
        yield victim


def attached(program, **options):
    """Attach, and see to it that the program is none the worse."""
    with running(program, **options) as victim:
        with entry.attach(victim.pid, timeout=LIMIT) as client:
            assert client.hello["pid"] == victim.pid
        assert victim.verdict() == ("healthy", "")


@pytest.mark.parametrize(
    "library",
    [library if library in QUICK else pytest.param(library, marks=pytest.mark.slow) for library in PROGRAMS],
)
def test_the_agent_comes_in_where_the_main_thread_sits_in(library):
    attached(PROGRAMS[library], moves="while going()" in PROGRAMS[library])


@pytest.mark.parametrize("what", HOLDING)
def test_one_that_keeps_the_interpreters_lock_is_refused_in_time_and_unharmed(what):
    with running(HOLDING[what], command=PLAIN) as victim:
        with pytest.raises(LivepatchError) as error:
            entry.attach(victim.pid, timeout=0.5)
        assert "\n" not in str(error.value)
        assert victim.verdict() == ("healthy", "")


@pytest.fixture(scope="module")
def display():
    """A screen for one who has none."""
    if shutil.which("Xvfb") is None:
        pytest.skip("needs the system's package xvfb; ./run test installs it")
    if subprocess.run([sys.executable, "-c", "import tkinter"], capture_output=True).returncode:
        pytest.skip("this Python has no tkinter; Debian: python3-tk")
    read, write = os.pipe()
    screen = subprocess.Popen(
        ["Xvfb", "-displayfd", str(write), "-screen", "0", "320x200x24", "-nolisten", "tcp"],
        pass_fds=[write],
        stderr=subprocess.DEVNULL,
    )
    os.close(write)
    with open(read) as said:
        number = said.readline().strip()
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("DISPLAY", f":{number}")
        yield
    screen.terminate()
    screen.wait()


@pytest.mark.slow
@pytest.mark.parametrize("program", [pytest.param(TK_IDLE, id="idle"), pytest.param(TK_BUSY, id="busy")])
def test_the_agent_comes_in_where_the_main_thread_sits_in_tk(display, program):
    attached(program, moves=program is TK_BUSY)
