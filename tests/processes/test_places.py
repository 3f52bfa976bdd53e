"""Where a fork may happen: in asyncio and trio tasks, greenlets, signal and log handlers, finalizers, imports."""

import pytest
from tests.processes.kit import run

#: A coroutine function to patch, which forks in the middle; the thread that runs it has nothing to leave.
CORO = """
        import asyncio
        import textwrap
        WORDS = textwrap.dedent('''
            async def work(arrive, gate, fork):
                await arrive(gate)
                met = fork()
                return ["old", f(), met]
            def f(): return "old"
        ''')
        exec(compile(WORDS, "old.py", "exec"), target.__dict__)
        codes = {d.name: d.code for d in definitions(compile(WORDS.replace("old", "new"), "new.py", "exec"))}
        made = lp.Patch("p", [lp.Object("target", [lp.Func(n, lp.Body(codes[n])) for n in ("work", "f")])])
        def states():
            return {task.kind: task.patch_state for task in lp.tasks() if task.kind == "thread" or "work" in task.name}
"""


def test_a_fork_in_an_asyncio_task_that_has_not_moved():
    """Its thread has. In the child there is no such task: the thread is in the middle of the call, and in its state."""
    said = run(
        CORO
        + """
        def child():
            before = target.f()
            for _ in range(3):
                tick()
            blocked = [task.blocking[0].split()[0] for task in lp.tasks() if task.blocking]
            return [before, target.f(), status(), blocked]
        async def arrive(gate):
            gate[0].set()
            await gate[1].wait()
        async def main():
            gate = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(target.work(arrive, gate, lambda: in_child(child)), name="work")
            await gate[0].wait()
            lp.enable_patch(made)
            while states() != {"thread": 1, "asyncio": 0}:
                tick()
                await asyncio.sleep(0.001)
            gate[1].set()
            return await task
        with manual_rounds():
            met = asyncio.run(main())
            finish()
            print(json.dumps([met, target.f()]))
        """
    )
    assert said == [["old", "old", ["old", "old", [["p", True, True]], ["work"]]], "new"]


def test_a_child_of_an_asyncio_task_goes_on_by_itself():
    """With a loop of its own, in which it reverses what it has inherited, while the parent goes on."""
    said = run(
        CORO
        + """
        def child():
            async def again():
                seen = [target.f()]
                lp.disable_patch("p")
                while lp.patches():
                    await asyncio.sleep(0.001)
                return [*seen, target.f(), await asyncio.to_thread(target.f)]
            return asyncio.run(again())
        async def arrive(gate):
            gate[0].set()
            await gate[1].wait()
        async def main():
            gate = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(target.work(arrive, gate, lambda: None))
            await gate[0].wait()
            lp.enable_patch(made)
            while target.f() != "new":
                await asyncio.sleep(0.001)
            said = in_child(child)
            gate[1].set()
            await task
            while any(p.transition for p in lp.patches()):
                await asyncio.sleep(0.001)
            return [said, target.f()]
        print(json.dumps(asyncio.run(main())))
        """
    )
    assert said == [["new", "old", "old"], "new"]


def test_loops_of_other_threads_do_not_run_in_a_child():
    """Their tasks are in memory, and the loops say that they run; a transition there does not wait for them."""
    said = run(
        CORO
        + """
        ready = threading.Event()
        async def arrive(gate):
            gate.set()
            await asyncio.sleep(3600)
        def loop():
            asyncio.run(target.work(arrive, ready, lambda: None))
        threading.Thread(target=loop, daemon=True).start()
        ready.wait(60)
        lp.enable_patch(made)
        def child():
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            seen = [target.f()]
            threading.Thread(target=time.sleep, args=(60,), daemon=True).start()  # it may get the other's ident
            lp.disable_patch("p")
            by_itself(lambda: not lp.patches())
            return [*seen, target.f()]
        print(json.dumps([in_child(child), status()]))
        """
    )
    assert said == [["new", "old"], [["p", True, True]]]


SLEEPS = {
    "asyncio": ("asyncio.get_running_loop().call_soon(waits.set)", "asyncio.sleep(3600)", "asyncio.run(work)"),
    "trio": (
        "trio.lowlevel.current_trio_token().run_sync_soon(waits.set)",
        "trio.sleep(3600)",
        "trio.run(lambda: work)",
    ),
}


@pytest.mark.parametrize("library", SLEEPS)
def test_a_coroutine_that_ran_when_the_transition_began_and_waited_when_the_process_was_forked(library):
    """It was nobody's when it was found, and in the child nobody comes to claim it."""
    pytest.importorskip(library)
    soon, sleep, begin = SLEEPS[library]
    said = run(
        CORO
        + f"""
        import {library}
        ready, go, waits = threading.Event(), threading.Event(), threading.Event()
        async def arrive(gate):
            ready.set()
            go.wait(60)
            {soon}
            await {sleep}
        def loop():
            work = target.work(arrive, ready, lambda: None)
            {begin}
        threading.Thread(target=loop, daemon=True).start()
        ready.wait(60)
        def child():
            finish()
            return target.f()
        with manual_rounds():
            lp.enable_patch(made)
            go.set()
            waits.wait(60)
            print(json.dumps(in_child(child)))
        """
    )
    assert said == "new"


def test_multiprocessing_from_asyncio():
    """Workers that are forked by a task that has moved, while another one has not."""
    said = run(
        CORO
        + """
        import multiprocessing
        def worker(connection):
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            connection.send([target.f(), status()])
            connection.close()
        async def arrive(gate):
            gate[0].set()
            await gate[1].wait()
        async def main():
            gate = asyncio.Event(), asyncio.Event()
            task = asyncio.create_task(target.work(arrive, gate, lambda: None))
            await gate[0].wait()
            lp.enable_patch(made)
            ours, theirs = multiprocessing.Pipe()
            process = multiprocessing.get_context("fork").Process(target=worker, args=(theirs,))
            process.start()
            said = ours.recv()
            process.join()
            still = status()
            gate[1].set()
            return [said, process.exitcode, still, (await task)[:2]]
        print(json.dumps(asyncio.run(main())))
        """
    )
    assert said == [["new", [["p", True, False]]], 0, [["p", True, True]], ["old", "old"]]


def test_a_fork_in_a_trio_task_that_has_not_moved():
    pytest.importorskip("trio")
    said = run(
        CORO
        + """
        import trio
        def child():
            before = target.f()
            tick()
            return [before, target.f(), status()]
        async def arrive(gate):
            gate[0].set()
            await gate[1].wait()
        async def main():
            gate = trio.Event(), trio.Event()
            met = []
            async def task():
                met.append(await target.work(arrive, gate, lambda: in_child(child)))
            async with trio.open_nursery() as nursery:
                nursery.start_soon(task)
                await gate[0].wait()
                lp.enable_patch(made)
                while target.f() != "new":
                    tick()
                    await trio.sleep(0.001)
                gate[1].set()
            return met[0]
        with manual_rounds():
            print(json.dumps(trio.run(main)))
            finish()
        """
    )
    assert said == ["old", "old", ["old", "old", [["p", True, True]]]]


def test_a_fork_in_a_greenlet_keeps_those_of_its_thread():
    pytest.importorskip("greenlet")
    said = run(
        """
        import greenlet
        with manual_rounds():
            hub = greenlet.getcurrent()
            within = greenlet.greenlet(lambda: target.stay(lambda: hub.switch("in")))
            within.switch()
            lp.enable_patch(patch())
            tick()
            def child():
                for _ in range(3):
                    tick()
                seen = [status(), target.f()]
                seen.append(within.switch())
                finish()
                return [*seen, status(), target.f()]
            said = in_child(child)
            within.switch()
            finish()
            print(json.dumps(said))
        """
    )
    assert said == [[["p", True, True]], "new", ["old", "old"], [["p", True, False]], "new"]


def test_signal_handlers_that_fork_in_the_middle_of_calls_and_rounds():
    """A hundred of them; each child goes on from where the handler interrupted its parent, to the end of that call."""
    said = run(
        """
        import signal
        sys.setswitchinterval(1e-4)
        forked, ended, parent = 0, [], os.getpid()
        def handler(*args):
            global forked
            forked += 1
            pid = os.fork()
            if pid:
                ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
                signal.setitimer(signal.ITIMER_REAL, 0.003 * (forked < 100))
        def call():
            met = set(target.stay())
            if os.getpid() != parent:
                by_itself(lambda: not any(p.transition for p in lp.patches()))
                os._exit(0 if len(met) == 1 and len(set(target.stay())) == 1 else 1)
            assert len(met) == 1
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.003)
        while forked < 100:
            lp.enable_patch(patch())
            while any(p.transition for p in lp.patches()):
                call()
            call()
            lp.disable_patch("p")
            while lp.patches():
                call()
            lp.unload_patch("p")
        print(json.dumps([forked, sorted(set(ended))]))
        """
    )
    assert said == [100, [0]]


def test_a_signal_handler_in_an_import_calls_a_patched_function_while_a_thread_forks():
    """It holds the global import lock, which the fork takes, too: it must not have the switch lock by then."""
    said = run(
        """
        import _imp
        with manual_rounds():
            held = Held()
            lp.enable_patch(patch())
            forking, said = threading.Event(), []
            os.register_at_fork(before=forking.set)  # runs first
            def fork():
                said.append(in_child(target.f))
            _imp.acquire_lock()  # somewhere in an import
            thread = threading.Thread(target=fork)
            thread.start()
            assert forking.wait(60)
            time.sleep(0.2)
            met = []
            def handler(): met.append(target.stay())
            # Not moved, so it asks for the lock.
            registry.running_transition().goal.discard(threading.get_ident())
            handler()
            _imp.release_lock()
            thread.join()
            print(json.dumps([met, said, held.release()]))
            finish()
        """
    )
    assert said[0][0] in (["old", "old"], ["new", "new"])
    assert said[1:] == [["new"], ["old", "old"]]


def test_a_signal_handler_that_raises_while_a_fork_waits():
    """Python reports what a hook of a fork raises, and forks. No lock stays behind, on neither side."""
    said = run(
        """
        import signal
        from livepatch.core import lists
        reported = []
        sys.unraisablehook = lambda args: reported.append(type(args.exc_value).__name__)
        holding, leave = threading.Event(), threading.Event()
        def hold():
            with lists.mutex.held():
                holding.set()
                leave.wait(60)
        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait(60)
        def handler(*args):
            leave.set()
            raise TimeoutError
        signal.signal(signal.SIGALRM, handler)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        def both():
            found = []
            def other(number):
                lp.enable_patch(patch(), timeout=60)
                found.append(target.f())
                lp.disable_patch("p", timeout=60)
                lp.unload_patch("p")
                import wave
            thread = threading.Thread(target=other, args=(1,))
            thread.start()
            thread.join(60)
            return [found, thread.is_alive()]
        print(json.dumps([in_child(both), both(), reported]))
        """
    )
    assert said == [[["new"], False], [["new"], False], ["TimeoutError"]]


def test_a_log_handler_that_forks():
    """It runs when the operation is over, in its thread: the child comes out of it, too."""
    said = run(
        """
        reader, writer = os.pipe()
        forked, pids = [], []
        class Handler(logging.Handler):
            def emit(self, record):
                if not forked:
                    forked.append(True)  # in the child another thread may be here before this one is back
                    pids.append(os.fork())
        logging.getLogger("livepatch").addHandler(Handler())
        logging.getLogger("livepatch").setLevel(1)
        lp.enable_patch(patch(), timeout=60)
        met = [status(), target.f()]
        lp.disable_patch("p", timeout=60)
        met += [status(), target.f()]
        if pids[0] == 0:
            os.write(writer, json.dumps(met).encode())
            os._exit(0)
        os.close(writer)
        print(json.dumps([json.load(os.fdopen(reader)), met]))
        """
    )
    assert said == [[[["p", True, False]], "new", [], "old"]] * 2


def test_a_finalizer_that_forks_in_the_middle_of_calls_and_rounds():
    said = run(
        """
        import gc
        ended, parent = [], os.getpid()
        class Cycle:
            def __init__(self): self.me = self
            def __del__(self):
                if os.getpid() == parent and len(ended) < 30:
                    pid = os.fork()
                    if pid == 0:
                        gc.disable()
                    else:
                        ended.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        def call():
            Cycle()
            met = set(target.stay())
            if os.getpid() != parent:
                by_itself(lambda: not any(p.transition for p in lp.patches()))
                os._exit(0 if len(met) == 1 and len(set(target.stay())) == 1 else 1)
            assert len(met) == 1
        gc.set_threshold(41, 2, 2)
        while len(ended) < 30:
            lp.enable_patch(patch())
            while any(p.transition for p in lp.patches()):
                call()
            call()
            lp.disable_patch("p")
            while lp.patches():
                call()
            lp.unload_patch("p")
        print(json.dumps(sorted(set(ended))))
        """
    )
    assert said == [0]


def test_a_module_that_forks_in_its_body():
    """The thread that imports goes on importing in the child; its locks are its own there."""
    said = run(
        """
        import pathlib, tempfile
        folder = tempfile.mkdtemp()
        pathlib.Path(folder, "late.py").write_text(SOURCE + "import os\\nPID = os.fork()\\nMET = f()\\n")
        sys.path.insert(0, folder)
        codes = {d.name: d.code for d in definitions(compile(SOURCE.replace("old", "new"), "new.py", "exec"))}
        lp.enable_patch(lp.Patch("p", [lp.Object("late", [lp.Func("f", lp.Body(codes["f"]))])]), timeout=60)
        reader, writer = os.pipe()
        import late
        met = [late.MET, late.f()]
        lp.disable_patch("p", timeout=60)
        met.append(late.f())
        if late.PID == 0:
            os.write(writer, json.dumps(met).encode())
            os._exit(0)
        os.close(writer)
        print(json.dumps([json.load(os.fdopen(reader)), met]))
        """
    )
    assert said == [["new", "new", "old"]] * 2


def test_forks_while_other_threads_import_what_patches_wait_for():
    said = run(
        """
        import importlib, pathlib, tempfile
        folder = tempfile.mkdtemp()
        pathlib.Path(folder, "late.py").write_text(SOURCE)
        sys.path.insert(0, folder)
        codes = {d.name: d.code for d in definitions(compile(SOURCE.replace("old", "new"), "new.py", "exec"))}
        lp.enable_patch(lp.Patch("p", [
            lp.Object("late", [lp.Func("f", lp.Body(codes["f"]))]),
            lp.Object("target", [lp.Func("f", lp.Body(codes["f"]))]),
        ]), timeout=60)
        stop = threading.Event()
        def importing():
            while not stop.is_set():
                assert importlib.import_module("late").f() == "new"
                lp.unload_module("late")
        thread = threading.Thread(target=importing)
        thread.start()
        def child():
            lp.disable_patch("p", timeout=60)
            lp.unload_patch("p")
            lp.enable_patch(patch("q", "newer"), timeout=60)
            return target.f()
        said = [in_child(child) for _ in range(40)]
        stop.set()
        thread.join()
        print(json.dumps([sorted(set(said)), target.f()]))
        """
    )
    assert said == [["newer"], "new"]


def test_children_of_children_each_with_a_transition_of_its_own():
    said = run(
        """
        held = Held()
        lp.enable_patch(patch())
        def deeper(depth):
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            met, here = [target.f()], Held()
            if lp.patches():
                lp.disable_patch("p")
            else:
                lp.unload_patch("p")
                lp.enable_patch(patch())
            if depth:
                met.append(in_child(lambda: deeper(depth - 1)))
            return [*met, status(), here.release()[0]]
        said = in_child(lambda: deeper(2))
        print(json.dumps([said, status(), held.release()]))
        """
    )
    off, on = [["p", False, True]], [["p", True, True]]
    assert said == [["new", ["old", ["new", off, "new"], on, "old"], off, "new"], on, ["old", "old"]]


def test_a_fork_that_holds_the_lock_of_logging_while_a_patch_is_enabled():
    """`logging` keeps its lock while the process forks, and the fork waits for us: no handler may be called then."""
    said = run(
        """
        forking, logging_it, met = threading.Event(), threading.Event(), []
        # Hooks run in the reverse order: ours last, then this one, and first of all the one of `logging`.
        os.register_at_fork(before=forking.set)
        os.register_at_fork(before=logging._lock.acquire, after_in_parent=logging._lock.release)
        class Handler(logging.Handler):
            def emit(self, record):
                if threading.current_thread().name == "enables":
                    logging_it.set()
                    assert forking.wait(60)
                    met.append(logging.getLogger(f"lp_{len(met)}") is not None)
        logging.getLogger("livepatch").addHandler(Handler())
        logging.getLogger("livepatch").setLevel(1)
        thread = threading.Thread(target=lp.enable_patch, args=(patch(),), kwargs={"timeout": 60}, name="enables")
        thread.start()
        assert logging_it.wait(60)
        child = in_child(lambda: [status(), target.f()])
        thread.join(60)
        print(json.dumps([child, thread.is_alive(), set(met) == {True}, status(), target.f()]))
        """
    )
    assert said == [[[["p", True, False]], "new"], False, True, [["p", True, False]], "new"]
