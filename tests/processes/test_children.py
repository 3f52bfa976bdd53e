"""Children of every kind: multiprocessing, executors, daemons, other programs; what they inherit, and their agents."""

import base64
import os
import signal
import sys

import pytest
from tests.agent.targets import Line, Target, eventually
from tests.processes.kit import run

from livepatch.attach.prepare import environment
from livepatch.attach.processes import alive

SHOP = """
def price(): return "old"
def total(): return [price(), price()]
"""
#: A patch as a person writes it.
FIX = b"""
import livepatch as lp
def price(): return "new"
def total(): return [price(), price()]
__livepatch__ = lp.Patch("fix", [lp.Object("shop", [lp.Func("price", price), lp.Func("total", total)])])
"""


@pytest.fixture
def prepared(tmp_path):
    """What starts a Python as `livepatch run` does, in which `shop` can be imported."""
    (tmp_path / "shop.py").write_text(SHOP)
    before = environment({})["PYTHONPATH"]
    return {
        "PYTHONPATH": os.pathsep.join([before, str(tmp_path), os.environ.get("PYTHONPATH", "")]),
        "TMP": str(tmp_path),
    }


def path_of(pid):
    return f"/tmp/livepatch-{os.geteuid()}/{pid}.sock"


def call(pid, method, **params):
    """What the agent of a process answers, as soon as it has one."""

    def reached():
        try:
            return Line(path_of(pid))
        except OSError:
            assert alive(pid), "the process has ended"
            return None

    with eventually(reached) as line:
        reply = line.call(method, **params)
        assert "result" in reply, reply
        return reply["result"]


def load(pid):
    call(pid, "load", file="fix.py", data=base64.b64encode(FIX).decode())
    eventually(lambda: not call(pid, "status", name="fix")["transition"])


#: Children that say what they have when they are asked to, through a pipe of their own.
ASKED = """
    import os, multiprocessing, shop
    def work(connection):
        while connection.recv():
            connection.send([os.getpid(), shop.total()])
    def ask(connection):
        connection.send(True)
        return connection.recv()
"""


@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_multiprocessing(prepared, tmp_path, method):
    """The patch is in the parent. Forked children have it; those of a fork server and spawned ones start clean. All
    have an agent of their own, by which they are patched, and of which nothing stays when they end.
    """
    script = """
        import sys
        from ask import ask, multiprocessing, work
        if __name__ == "__main__":
            say("up")
            hear()
            context = multiprocessing.get_context(sys.argv[1])
            connection, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,))
            process.start()
            say(*ask(connection))
            hear()
            say(*ask(connection))
            connection.send(False)
            process.join()
            say(process.exitcode)
            hear()
    """
    import textwrap

    (tmp_path / "ask.py").write_text(textwrap.dedent(ASKED))
    with Target(script, env=prepared, folder=tmp_path, arguments=(method,)) as target:
        assert target.hear() == "up"
        load(target.pid)
        target.say()
        pid, seen = target.hear().split(" ", 1)
        assert seen == ("['new', 'new']" if method == "fork" else "['old', 'old']")
        child = int(pid)
        assert call(child, "hello")["pid"] == child
        if method != "fork":
            assert call(child, "list") == []
            load(child)
        assert [patch["name"] for patch in call(child, "list")] == ["fix"]
        assert [patch["name"] for patch in call(target.pid, "list")] == ["fix"]
        target.say()
        assert target.hear() == f"{child} ['new', 'new']"
        assert target.hear() == "0"
        assert not os.path.exists(path_of(child))


def test_a_child_that_is_slow_to_begin_takes_its_socket_away(prepared, tmp_path):
    """When it begins, multiprocessing forgets what is to be done at its end: here after the socket was made."""
    import textwrap

    script = """
        import multiprocessing, os, time
        from multiprocessing import util
        def work(connection):
            import livepatch
            connection.send(livepatch.start_agent())
        def begin():
            import livepatch
            livepatch.start_agent()
        os.register_at_fork(after_in_child=begin)
        if __name__ == "__main__":
            connection, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=work, args=(theirs,))
            process.start()
            path = connection.recv()
            process.join()
            say(os.path.exists(path))
    """
    with Target(textwrap.dedent(script), env=prepared, folder=tmp_path) as target:
        assert target.hear() == "False"


def test_a_child_that_goes_through_what_is_to_be_done_there_is_not_disturbed(prepared, tmp_path):
    """It goes through a dictionary and fails if that changes: here it takes longer than an agent to begin."""
    import textwrap

    script = """
        import multiprocessing, os, time
        from multiprocessing import util
        class Thing: pass
        def work(connection):
            import livepatch
            connection.send(livepatch.start_agent())
        if __name__ == "__main__":
            things = [Thing() for _ in range(300_000)]
            for thing in things:
                util.register_after_fork(thing, id)
            connection, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=work, args=(theirs,))
            process.start()
            theirs.close()
            path = connection.recv()
            process.join()
            say(os.path.exists(path))
    """
    with Target(textwrap.dedent(script), env=prepared, folder=tmp_path) as target:
        assert target.hear() == "False"


def test_a_fork_server_that_is_patched_has_patched_children(prepared, tmp_path):
    import textwrap

    script = """
        from ask import ask, multiprocessing, work
        if __name__ == "__main__":
            context = multiprocessing.get_context("forkserver")
            context.set_forkserver_preload(["shop"])
            from multiprocessing import forkserver
            forkserver.ensure_running()
            say(forkserver._forkserver._forkserver_pid)
            hear()
            connection, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs,))
            process.start()
            say(*ask(connection))
            connection.send(False)
            process.join()
    """
    (tmp_path / "ask.py").write_text(textwrap.dedent(ASKED))
    with Target(script, env=prepared, folder=tmp_path) as target:
        load(int(target.hear()))
        target.say()
        assert target.hear().partition(" ")[2] == "['new', 'new']"


def test_a_process_pool():
    """Workers that were forked before a patch are patched by themselves; those that come later have it."""
    said = run(
        """
        from concurrent.futures import ProcessPoolExecutor
        import multiprocessing
        def work(number):
            return target.f()
        def patched(number):
            lp.enable_patch(patch(), timeout=60)
            return target.f()
        lp.start_agent()
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
            seen = list(pool.map(work, range(3)))
            lp.enable_patch(patch(), timeout=60)
            seen += list(pool.map(work, range(3)))
            seen += list(pool.map(patched, range(1)))
        with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("fork")) as pool:
            seen += list(pool.map(work, range(3)))
        print(json.dumps(seen))
        """
    )
    assert said == ["old"] * 6 + ["new"] * 4


DAEMON = """
    import os, livepatch as lp
    lp.start_agent()
    def f(): return "old"
    if {transition}:
        leave, inside = threading.Event(), threading.Event()
        def slow():
            inside.set()
            leave.wait()
        threading.Thread(target=slow, daemon=True).start()
        inside.wait()
        lp.enable_patch(lp.Patch("fix", [
            lp.Object(None, [lp.Func("slow", lambda: None), lp.Func("f", lambda: "new")])
        ]))
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        os.dup2(writer, 1)
        os.closerange(3, 1000)
        os.chdir("/")
        null = os.open("/dev/null", os.O_RDWR)
        os.dup2(null, 0)
        os.write(1, b"%d" % os.getpid())
        os.dup2(null, 1)
        import time
        while True:
            time.sleep(0.01)
            f()
    os.wait()
    say(os.read(reader, 100).decode())
    hear()
"""


@pytest.mark.parametrize("transition", [False, True])
def test_a_daemon(transition):
    """Two forks, and all descriptors closed: there is an agent in it, which ends the transition that it came with."""
    with Target(DAEMON.format(transition=transition), command=[sys.executable, "-W", "ignore"]) as target:
        daemon = int(target.hear())
        try:
            assert call(daemon, "hello")["pid"] == daemon

            def settled():
                try:
                    return not any(patch["transition"] for patch in call(daemon, "list"))
                except (OSError, AssertionError, TypeError):  # it is just making everything anew
                    return False

            eventually(settled)
            assert any(patch["transition"] for patch in call(target.pid, "list")) is transition
        finally:
            os.kill(daemon, signal.SIGKILL)


def test_forkpty():
    script = """
        import os, livepatch as lp
        lp.start_agent()
        pid, terminal = os.forkpty()
        if pid == 0:
            hear()
            os._exit(0)
        say(pid)
        hear()
    """
    with Target(script, command=[sys.executable, "-W", "ignore"]) as target:
        child = int(target.hear())
        assert call(child, "hello")["pid"] == child


def test_other_programs_cost_nothing():
    """A subprocess is started without the hooks of a fork, while everything of ours is held."""
    said = run(
        """
        import subprocess
        from livepatch.core import lists
        from livepatch.core.transition import switch_lock
        lp.start_agent()
        called = []
        os.register_at_fork(before=lambda: called.append("hook"))
        holding, leave = threading.Event(), threading.Event()
        def hold():
            with lists.mutex.held(), switch_lock:
                holding.set()
                leave.wait(60)
        threading.Thread(target=hold, daemon=True).start()
        holding.wait(60)
        subprocess.run(["true"], check=True)
        os.waitpid(os.posix_spawnp("true", ["true"], os.environ), 0)
        leave.set()
        print(json.dumps(called))
        """
    )
    assert said == []


def test_a_child_that_becomes_another_program_leaves_nothing():
    """With preexec_fn, or by exec after a fork: there was an agent in it for a moment, and no socket.

    Where the processor is taken from it before the exec, for longer than that moment, it has one after all.
    """
    said = run(
        """
        import subprocess
        folder, left = os.path.dirname(lp.start_agent()), []
        for _ in range(10):
            with subprocess.Popen(["sleep", "60"], preexec_fn=os.getpid) as sleeper:
                pid = os.fork()
                if pid == 0:
                    os.execvp("sleep", ["sleep", "60"])
                while b"sleep" not in open(f"/proc/{pid}/cmdline", "rb").read().split(b"\\0"): time.sleep(0.01)
                left.append([name for name in os.listdir(folder) if name in (f"{sleeper.pid}.sock", f"{pid}.sock")])
                sleeper.kill()
                os.kill(pid, 9)
                os.waitpid(pid, 0)
        print(json.dumps(left))
        """
    )
    assert said.count([]) > 5


def test_a_killed_childs_socket_is_cleared_away_by_the_next_child():
    script = """
        import os, livepatch as lp
        lp.start_agent()
        for _ in range(2):
            pid = os.fork()
            if pid == 0:
                say(lp.start_agent())
                threading.Event().wait()
            hear()
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            say("killed")
        hear()
    """
    with Target(script, command=[sys.executable, "-W", "ignore"]) as target:
        first = target.hear()
        target.say()
        assert target.hear() == "killed"
        target.hear()
        assert not os.path.exists(first)
        target.say()
        assert target.hear() == "killed"


def test_a_child_that_a_thread_forks_ends_with_that_thread():
    """Nobody else is in it: our thread must not keep it alive. Its children, too."""
    said = run(
        """
        lp.start_agent()
        pids, ended = [], []
        reader, writer = os.pipe()
        def fork():
            pid = os.fork()
            if pid:
                pids.append(pid)
                return
            if os.fork():
                time.sleep(0.1)  # let it have its socket
                os.wait()
                os.write(writer, b"the grandchild ended")
        thread = threading.Thread(target=fork)
        thread.start()
        thread.join()
        _, waited = os.waitpid(pids[0], 0)
        path = os.path.join(os.path.dirname(lp.start_agent()), f"{pids[0]}.sock")
        print(json.dumps([waited, os.read(reader, 100).decode(), os.path.exists(path)]))
        """
    )
    assert said == [0, "the grandchild ended", False]


def test_a_patch_file_that_forks_in_the_agents_thread():
    """Its callback runs in our thread. The child that returns from there has no part in the parent's conversation."""
    script = """
        import os, livepatch as lp
        def f(): return "old"
        pids = []
        say(lp.start_agent())
        while hear():
            say(*[os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids], f())
    """
    source = b"""
import os, __main__, livepatch as lp
def fork(obj):
    pid = os.fork()
    if pid:
        __main__.pids.append(pid)
__livepatch__ = lp.Patch(
    "fix", [lp.Object(None, [lp.Func("f", lambda: "new")], callbacks=lp.Callbacks(pre_patch=fork, post_patch=fork))]
)
"""
    with Target(script, command=[sys.executable, "-W", "ignore"]) as target, Line(target.hear()) as line:
        reply = line.call("load", file="fix.py", data=base64.b64encode(source).decode())
        assert reply["result"]["enabled"] is True
        eventually(lambda: not line.call("status", name="fix")["result"]["transition"])
        target.say("go")
        assert target.hear() == "0 0 new"
        assert line.call("hello")["result"]["pid"] == target.pid
