"""Shadow variables in several threads, across forks and signals, and at the end of the interpreter."""

import errno
import json
import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.core.kit import PATIENCE, Gate, until

import livepatch as lp
from livepatch.core import shadow


class Parent:
    pass


def test_many_threads_construct_once():
    sys.setswitchinterval(1e-6)
    threads = 8
    with ThreadPoolExecutor(threads) as pool:
        barrier = threading.Barrier(threads)
        for _ in range(100):
            parent, made = Parent(), []

            def construct(obj, made=made):
                made.append(object())
                return made[-1]

            def race(function, parent=parent, construct=construct):
                barrier.wait(PATIENCE)
                return function(parent, "x", construct)

            functions = [lp.shadow.get_or_alloc] * (threads - 2) + [lp.shadow.alloc] * 2
            got = list(pool.map(race, functions))
            assert len(made) == 1
            assert set(got) <= {made[0], None}
            assert got.count(made[0]) >= threads - 2
            assert got[: threads - 2] == made * (threads - 2)


def test_get_while_others_free():
    """What is found is the right one, whole, or nothing: without a lock, while parents are born and die."""
    sys.setswitchinterval(1e-6)
    stop, wrong = threading.Event(), []
    shared = [Parent() for _ in range(4)]

    def churn():
        while not stop.is_set():
            for number, parent in enumerate(shared):
                lp.shadow.get_or_alloc(parent, "x", lambda obj, *pair: pair, number, number)
                lp.shadow.free(parent, "x")
            lp.shadow.free_all("y")

    def look():
        while not stop.is_set():
            for number, parent in enumerate(shared):
                if lp.shadow.get(parent, "x") not in (None, (number, number)):
                    wrong.append(number)
            mine = Parent()
            if lp.shadow.get(mine, "x") is not None or lp.shadow.get(mine, "y") is not None:
                wrong.append("stale")
            lp.shadow.alloc(mine, "x", lambda obj: id(obj))
            lp.shadow.alloc(mine, "y")
            if lp.shadow.get(mine, "x") != id(mine):
                wrong.append("lost")

    threads = [threading.Thread(target=target) for target in (churn, look, look, look)]
    for thread in threads:
        thread.start()
    stop.wait(1.0)
    stop.set()
    for thread in threads:
        thread.join(PATIENCE)
    assert not wrong
    until(lambda: len(shadow._entries) <= len(shared))
    lp.shadow.free_all("x")


def test_deaths_are_not_lost_when_another_thread_holds_the_lock():
    """The thread that holds it clears up, after its release."""
    gate, other = Gate(), Parent()

    def hold(obj):
        gate()
        return 1

    holder = threading.Thread(target=lp.shadow.alloc, args=(other, "x", hold))
    holder.start()
    gate.arrived()
    assert lp.shadow.get(other, "x") is None  # not visible before it is complete; and this did not wait
    gate.open()
    holder.join(PATIENCE)
    parents = [Parent() for _ in range(10)]
    for parent in parents:
        lp.shadow.alloc(parent, "x")
    gate = Gate()
    holder = threading.Thread(target=lp.shadow.alloc, args=(other, "y", hold))
    holder.start()
    gate.arrived()
    del parent, parents
    assert len(shadow._dead) == 10
    gate.open()
    holder.join(PATIENCE)
    assert not shadow._dead
    assert len(shadow._entries) == 1


# -- in a process of its own ------------------------------------------------------------------------------


def run(script, first=""):
    text = textwrap.dedent(first) + "import livepatch as lp\n" + textwrap.dedent(script)
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
    return json.loads(done.stdout or "null")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_while_another_thread_constructs():
    """The child has a free lock, all variables that were there, and not the one that was being made."""
    found = run(
        """
        import json, os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # fork in a process with threads is what this is about
        class Parent: pass
        parent, inside, leave = Parent(), threading.Event(), threading.Event()
        lp.shadow.alloc(parent, "before", lambda obj: 1)
        def hold(obj):
            inside.set()
            leave.wait()
            return 2
        thread = threading.Thread(target=lp.shadow.alloc, args=(parent, "x", hold))
        thread.start()
        inside.wait()
        reader, writer = os.pipe()
        if os.fork() == 0:
            seen = [lp.shadow.get(parent, "before"), lp.shadow.get(parent, "x")]
            seen += [lp.shadow.alloc(parent, "x", lambda obj: 3), lp.shadow.get(parent, "x")]
            os.write(writer, json.dumps(seen).encode())
            os._exit(0)
        seen = json.loads(os.read(reader, 1000))
        leave.set()
        thread.join()
        print(json.dumps([seen, lp.shadow.get(parent, "x")]))
        """
    )
    assert found == [[1, None, 3, 3], 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_and_somebody_who_is_faster():
    """What other modules do first in a child may run finalizers, which want the lock."""
    found = run(
        """
        import json, os, threading, warnings
        warnings.simplefilter("ignore", DeprecationWarning)
        class Parent: pass
        parent, inside, leave = Parent(), threading.Event(), threading.Event()
        def hold(obj):
            inside.set()
            leave.wait()
            return 2
        thread = threading.Thread(target=lp.shadow.alloc, args=(parent, "x", hold))
        thread.start()
        inside.wait()
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, json.dumps([early, lp.shadow.alloc(parent, "y", lambda obj: 4)]).encode())
            os._exit(0)
        seen = json.loads(os.read(reader, 1000))
        leave.set()
        thread.join()
        print(json.dumps([seen, early, lp.shadow.get(parent, "x")]))
        """,
        first="""
        import os, sys
        early = []
        def at_once():
            early.append(sys.modules["livepatch"].shadow.alloc(parent, "x", lambda obj: 3))
        os.register_at_fork(after_in_child=at_once)
        """,
    )
    assert found == [[[3], 4], [], 2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_fork_in_a_constructor():
    found = run(
        """
        import json, os
        class Parent: pass
        parent = Parent()
        reader, writer = os.pipe()
        def fork(obj):
            return "parent" if os.fork() else "child"
        said = lp.shadow.alloc(parent, "x", fork)
        again = lp.shadow.alloc(parent, "y", lambda obj: said)
        if said == "child":
            os.write(writer, again.encode())
            os._exit(0)
        print(json.dumps([os.read(reader, 100).decode(), again]))
        """
    )
    assert found == ["child", "parent"]


def test_a_signal_handler_in_a_constructor_is_refused_and_does_not_hang():
    found = run(
        """
        import json, signal
        class Parent: pass
        parent, caught = Parent(), []
        def handler(*_):
            try:
                lp.shadow.alloc(parent, "y")
            except lp.LivepatchError as error:
                caught.append(error.errno)
        signal.signal(signal.SIGUSR1, handler)
        def construct(obj):
            signal.raise_signal(signal.SIGUSR1)
            return 1
        lp.shadow.alloc(parent, "x", construct)
        print(json.dumps([caught, lp.shadow.get(parent, "x")]))
        """
    )
    assert found == [[errno.EDEADLK], 1]


def test_the_end_of_the_interpreter_is_quiet():
    """Parents, data with finalizers and cycles are all alive until then."""
    run(
        """
        class Parent:
            def __del__(self):
                lp.shadow.get(self, "x")
        class Data:
            def __del__(self): pass
        parents = [Parent() for _ in range(100)]
        for number, parent in enumerate(parents):
            lp.shadow.alloc(parent, "x", lambda obj: Data())
            if number % 2: parent.cycle = parent
        lp.parents = parents[:50]
        import builtins
        builtins.parents = parents[50:]
        lp.shadow.alloc((1, 2), "x", lambda obj: Parent())
        """
    )
