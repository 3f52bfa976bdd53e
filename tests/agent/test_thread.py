"""The agent's thread: there when something is to be done, and still there after what long-lived processes
do.
"""

import base64
import os
import signal
import stat
import sys

import pytest
from tests.agent.targets import Line, Target, eventually

#: A thread that stays in `slow` until the test says something, and a patch of it.
HELD = """
    import livepatch as lp
    leave, inside = threading.Event(), threading.Event()
    def slow():
        inside.set()
        leave.wait()
    patch = lp.Patch("fix", [lp.Object(None, [lp.Func("slow", lambda: None)])])
    worker = threading.Thread(target=slow)
    worker.start()
    inside.wait()
    def watch():                # lp.wait() would make the rounds itself
        import time
        while lp.patches()[0].transition:
            time.sleep(0.001)
        say("enabled" if lp.patches()[0].enabled else "disabled")
"""


def status(line, name="fix"):
    return line.call("status", name=name)["result"]


def test_importing_starts_nothing():
    script = """
        import os, livepatch
        say(threading.active_count(), len(os.listdir("/proc/self/task")), "asyncio" in sys.modules)
        say(*os.listdir("/proc/self/fd"))
    """
    with Target(script) as target:
        assert target.hear() == "1 1 False"
        assert len(target.hear().split()) == 4  # the standard ones, and the listing's own


def test_a_transition_completes_without_a_socket():
    """Only the rounds are needed, and nobody calls tick()."""
    script = (
        HELD
        + """
    lp.enable_patch(patch)
    say(lp.patches()[0].transition)
    leave.set()
    watch()
    """
    )
    with Target(script) as target:
        assert target.hear() == "True"
        assert target.hear() == "enabled"
        assert not os.path.exists(f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock")


def test_the_agent_is_no_task():
    script = """
        import livepatch as lp
        lp.start_agent()
        say(*(task.name for task in lp.tasks()))
    """
    with Target(script) as target:
        assert target.hear() == "MainThread"


def test_the_socket_is_protected_and_the_agent_one():
    with Target("import livepatch as lp; say(lp.start_agent()); say(lp.start_agent()); hear()") as target:
        path = target.hear()
        assert path == f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock" == target.hear()
        assert stat.S_IMODE(os.stat(os.path.dirname(path)).st_mode) == 0o700
        with Line(path) as line:
            hello = line.call("hello")["result"]
        assert hello["pid"] == target.pid
        assert hello["uid"] == os.geteuid()
        assert hello["argv"][1] == "-c"
        target.say()
        target.process.wait()
        assert not os.path.exists(path)


def test_start_agent_from_many_threads_makes_one():
    script = """
        import livepatch as lp
        found = []
        threads = [threading.Thread(target=lambda: found.append(lp.start_agent())) for _ in range(20)]
        for t in threads: t.start()
        for t in threads: t.join()
        while threading.active_count() < 2: pass    # until it has begun
        say(len(set(found)), threading.active_count())
        hear()
    """
    with Target(script) as target:
        assert target.hear() == "1 2"


def test_waking_from_a_signal_handler():
    """The handler interrupts whatever the main thread does, the start of other threads above all."""
    script = """
        import signal, livepatch.agent.process as agent
        woken = 0
        def handler(*args):
            global woken
            woken += 1
            agent._agent.wake()
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
        while woken < 300:
            t = threading.Thread(target=int)
            t.start()
            t.join()
        signal.setitimer(signal.ITIMER_REAL, 0)
        say("fine")
    """
    with Target(script) as target:
        assert target.hear() == "fine"


def test_a_killed_process_leaves_a_socket_that_the_next_clears_away(tmp_path):
    """In a directory of the test's own: any other agent that starts would clear it away, too."""
    script = """
        import livepatch as lp
        from livepatch.agent import places
        places.directory_of = lambda uid, base: sys.argv[1]
        say(lp.start_agent())
        hear()
    """
    directory = (str(tmp_path / "agents"),)
    with Target(script, arguments=directory) as killed:
        path = killed.hear()
    assert os.path.exists(path)
    with Target(script, arguments=directory) as target:
        target.hear()
        assert not os.path.exists(path)


def test_a_refused_directory_is_one_sentence():
    script = """
        import livepatch as lp
        from livepatch.agent import places
        places.directory_of = lambda uid, base: "/dev/null"
        try:
            lp.start_agent()
        except lp.LivepatchError as error:
            say(error.symbol, error)
    """
    with Target(script) as target:
        assert target.hear() == "EACCES /dev/null is not a directory; remove it, then start the agent again."


# -- fork ----------------------------------------------------------------------------------------------

FORK = """
    import os, livepatch as lp
    def f(): return "old"
    say(lp.start_agent())
    child = os.fork()
    if child == 0:
        say(lp.start_agent())
    while hear():
        say(os.getpid(), f())
"""


@pytest.mark.filterwarnings("ignore")
def test_a_forked_child_has_an_agent_of_its_own(tmp_path):
    with Target(FORK) as target:
        parents, childs = target.hear(), target.hear()
        assert parents != childs
        child = int(os.path.basename(childs).removesuffix(".sock"))
        try:
            with Line(parents) as one, Line(childs) as two:
                assert one.call("hello")["result"]["pid"] == target.pid
                assert two.call("hello")["result"]["pid"] == child
        finally:
            os.kill(child, signal.SIGKILL)


def test_a_child_does_not_keep_the_parents_clients():
    """The parent is gone, its child lives: who talked to the parent must hear of it."""
    script = """
        import os, livepatch as lp
        say(lp.start_agent())
        hear()
        child = os.fork()
        say(child)
        hear()
    """
    with Target(script) as target:
        with Line(target.hear()) as line:
            line.call("hello")
            target.say()
            child = max(int(target.hear()), int(target.hear()))
            try:
                os.kill(target.pid, signal.SIGKILL)
                assert line.receive() is None
            finally:
                os.kill(child, signal.SIGKILL)


def test_a_transition_goes_on_in_the_child():
    """The child has only the task that forked, and nobody to make rounds but an agent of its own."""
    script = (
        HELD
        + """
    import os
    lp.enable_patch(patch)
    if os.fork() == 0:
        watch()
        os._exit(0)
    os.wait()
    say(lp.patches()[0].transition)
    leave.set()
    """
    )
    with Target(script) as target:
        assert target.hear() == "enabled"
        assert target.hear() == "True"


def test_a_grandchild_that_forks_at_once_is_reached_too():
    """A daemon forks twice."""
    script = """
        import os, livepatch as lp
        lp.start_agent()
        if os.fork() == 0:
            if os.fork() == 0:
                say(lp.start_agent())
                hear()
            os._exit(0)
        os.wait()
    """
    with Target(script) as target:
        path = target.hear()
        with Line(path) as line:
            pid = line.call("hello")["result"]["pid"]
        assert path.endswith(f"/{pid}.sock")
        target.process.wait()


def threads_are_counted_late():
    """Whether this Python (some 3.13) warns of threads that only start after the fork, in a hook of the parent."""
    script = """
        import os, warnings
        leave = threading.Event()
        os.register_at_fork(after_in_parent=threading.Thread(target=leave.wait).start)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            if os.fork() == 0:
                os._exit(0)
        say(len(caught))
        leave.set()
    """
    with Target(script) as target:
        return target.hear() == "1"


@pytest.mark.parametrize("serving", [True, False])
def test_a_program_with_one_thread_forks_with_one_thread(serving):
    """With two it may deadlock, and from 3.12 on it is warned of that."""
    script = f"""
        import os, warnings, livepatch as lp
        lp.start_agent() if {serving} else lp.agent.process._agent.wake()
        while threading.active_count() < 2: pass
        os.register_at_fork(before=lambda: say(len(os.listdir("/proc/self/task"))))
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(3):
                if os.fork() == 0:
                    os._exit(0)
                os.wait()
        say(len(caught))
        while threading.active_count() < 2: pass
        say("again", threading.enumerate()[-1].name)
        hear()
    """
    with Target(script) as target:
        # A hook that is registered later runs earlier: it still sees the thread.
        assert [target.hear() for _ in range(3)] == ["2", "2", "2"]
        assert target.hear() == ("3" if threads_are_counted_late() else "0")
        assert target.hear() == "again livepatch"
        if serving:
            with Line(f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock") as line:
                assert line.call("hello")["result"]["pid"] == target.pid


def test_a_fork_does_not_wait_for_a_busy_agent():
    """What a patch file does may take for ever, and may itself be waiting for the thread that forks."""
    script = """
        import os, livepatch as lp
        entered, leave = threading.Event(), threading.Event()
        say(lp.start_agent())
        entered.wait()
        if os.fork() == 0:
            os._exit(0)
        os.wait()
        say("forked")
        leave.set()
        hear()
    """
    with Target(script) as target, Line(target.hear()) as line:
        source = b"import __main__\n__main__.entered.set()\n__main__.leave.wait()\n"
        reply = line.call("load", file="x.py", data=base64.b64encode(source).decode())
        assert reply["error"]["data"]["symbol"] == "EINVAL"
        assert target.hear() == "forked"
        assert line.call("hello")["result"]["pid"] == target.pid


def test_many_threads_fork_at_once():
    script = """
        import os, livepatch as lp
        lp.start_agent()
        def fork():
            for _ in range(20):
                child = os.fork()
                if child == 0:
                    os._exit(0)
                os.waitpid(child, 0)
        threads = [threading.Thread(target=fork) for _ in range(4)]
        for t in threads: t.start()
        for t in threads: t.join()
        say("done")
        hear()
    """
    with Target(script, command=[sys.executable, "-W", "ignore"]) as target:
        assert target.hear() == "done"
        with Line(f"/tmp/livepatch-{os.geteuid()}/{target.pid}.sock") as line:
            assert line.call("hello")["result"]["pid"] == target.pid


def test_a_thread_that_gets_the_ident_of_the_agents_is_a_task():
    script = """
        import _thread, os, time, livepatch as lp
        from livepatch.core.transition import exempt_threads
        lp.agent.process._agent.wake()
        while threading.active_count() < 2: pass
        lp.agent.process._agent.pause()
        say(len(exempt_threads), threading.active_count())
    """
    with Target(script) as target:
        assert target.hear() == "0 1"


def test_signals_that_the_program_blocks_are_not_taken_by_the_agent():
    script = """
        import os, signal, livepatch as lp
        lp.start_agent()
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        say("ready")
        say(signal.sigwait([signal.SIGTERM]).name)
    """
    with Target(script) as target:
        assert target.hear() == "ready"
        target.signal(signal.SIGTERM)
        assert target.hear() == "SIGTERM"


# -- closed descriptors --------------------------------------------------------------------------------

CLOSING = """
    import os, livepatch as lp
    say(lp.start_agent())
    hear()
    os.closerange(3, 200)
    files = [os.open("/dev/null", os.O_RDWR) for _ in range(20)]   # their numbers come back as something else
    mine = [os.pipe() for _ in range(5)]
    say("closed")
    hear()
    for r, w in mine:
        os.set_blocking(r, False)
        try: say("lost", os.read(r, 10))
        except BlockingIOError: pass
    for fd in files: os.fstat(fd)
    say("untouched")
    hear()
"""


def test_it_survives_that_all_descriptors_are_closed():
    """As a program does that becomes a daemon; nothing of what is opened later is touched."""
    with Target(CLOSING) as target:
        path = target.hear()
        with Line(path) as line:
            line.call("hello")
            target.say()
            assert target.hear() == "closed"
            assert line.receive() is None

        def reached():
            try:
                with Line(path) as line:
                    return line.call("hello")
            except OSError:
                return None

        assert eventually(reached)["result"]["pid"] == target.pid
        target.say()
        assert target.hear() == "untouched"


def test_rounds_go_on_when_all_descriptors_were_closed():
    script = (
        HELD
        + """
    import os
    lp.enable_patch(patch)
    os.closerange(3, 200)
    leave.set()
    watch()
    """
    )
    with Target(script) as target:
        assert target.hear() == "enabled"
