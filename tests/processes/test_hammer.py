"""A process with busy threads forks all the time, while patches go in and out. No child may hang, or see half a patch.

A child that is forked without our hooks must fail here: that shows that the hammer hits.
"""

import pytest
from tests.processes.kit import PRELUDE, run

#: Instead of the hooks of livepatch, none.
NAIVE = """
import logging, os, random, threading
register, os.register_at_fork = os.register_at_fork, lambda **hooks: None
import livepatch
os.register_at_fork = register
"""

HAMMER = """
        import signal
        sys.setswitchinterval(2e-5)
        import textwrap
        WORDS = textwrap.dedent('''
            def f(): return ["old", *g()]
            def g(): return ["old", *h()]
            def h(): return ["old"]
        ''')
        exec(compile(WORDS, "old.py", "exec"), target.__dict__)
        def made(name):
            codes = {d.name: d.code for d in definitions(compile(WORDS.replace("old", name), "new.py", "exec"))}
            return lp.Patch(name, [lp.Object("target", [lp.Func(n, lp.Body(codes[n])) for n in codes])])
        stop, torn, cycles, ended = threading.Event(), [], 0, []
        def call():
            met = target.f()
            if len(set(met)) != 1:
                torn.append(met)
        def hammer():
            while not stop.is_set():
                call()
        def child():
            for _ in range(20):
                call()
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            for patch in lp.patches():
                lp.disable_patch(patch.name, timeout=60)
            call()
            os._exit(2 if torn else 3 if lp.patches() or target.f() != ["old"] * 3 else 0)
        def fork():
            pid = os.fork()
            if pid == 0:
                try:
                    child()
                except BaseException:
                    traceback.print_exc(file=sys.stdout)
                finally:
                    os._exit(4)
            deadline = time.monotonic() + LIMIT
            while (said := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
                time.sleep(0.001)
            if said == (0, 0):
                os.kill(pid, signal.SIGKILL)
                said = os.waitpid(pid, 0)
            ended.append(os.waitstatus_to_exitcode(said[1]))
        def forking():
            while not stop.is_set():
                fork()
        threads = [threading.Thread(target=work, daemon=True) for work in (hammer, hammer, forking)]
        for thread in threads:
            thread.start()
        while len(ended) < CHILDREN or cycles < 6:
            cycles += 1
            name = f"p{cycles}"
            lp.enable_patch(made(name))
            if cycles % 3 == 0:
                lp.disable_patch(name)
            else:
                lp.wait(name, 60)
                call()
                lp.disable_patch(name)
            lp.wait(name, 60)
            lp.unload_patch(name)
            fork()
        stop.set()
        for thread in threads:
            thread.join(60)
        print(json.dumps([torn, sorted(set(ended))]))
"""


def hammer(children, limit, prelude=PRELUDE):
    return run(HAMMER.replace("CHILDREN", str(children)).replace("LIMIT", str(limit)), prelude=prelude)


def test_children_under_fire():
    assert hammer(60, 50) == [[], [0]]


@pytest.mark.slow
def test_many_children_under_fire():
    assert hammer(600, 50) == [[], [0]]


def test_without_the_hooks_children_hang():
    torn, ended = hammer(30, 2, NAIVE + PRELUDE)
    assert not torn
    assert set(ended) - {0}


def test_a_fork_while_somebody_has_the_lock_of_threading():
    """Our thread cannot end before the fork then; in the child, nothing of it may wait for that lock."""
    script = """
        import signal
        lp.start_agent()
        held = threading.Event()
        def hold():
            with threading._active_limbo_lock:
                held.set()
                threading.Event().wait()
        threading.Thread(target=hold, daemon=True).start()
        assert held.wait(60)
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        deadline = time.monotonic() + 30
        while (said := os.waitpid(pid, os.WNOHANG)) == (0, 0) and time.monotonic() < deadline:
            time.sleep(0.001)
        if said == (0, 0):
            os.kill(pid, signal.SIGKILL)
            said = os.waitpid(pid, 0)
        print(json.dumps(os.waitstatus_to_exitcode(said[1])), flush=True)
        os._exit(0)
    """
    assert run(script) == 0
