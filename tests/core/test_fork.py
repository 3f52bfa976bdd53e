"""os.fork(), in and out of a transition: the child keeps the patches, completes the transition, and can do everything.

Each case is a script in a process of its own, so that no thread of the test runner is forked.
"""

import pytest
from tests.processes.kit import run

pytestmark = pytest.mark.skipif(not hasattr(__import__("os"), "fork"), reason="needs fork")


def test_a_child_keeps_the_patches_and_has_a_life_of_its_own():
    said = run(
        """
        lp.enable_patch(patch())
        finish()
        def child():
            seen = [target.f(), status()]
            lp.disable_patch("p")
            finish()
            lp.unload_patch("p")
            seen += [target.f(), status()]
            lp.enable_patch(patch("q", "newer"))
            finish()
            return [*seen, target.f(), in_child(lambda: target.f())]
        print(json.dumps([in_child(child), target.f(), status()]))
        """
    )
    assert said == [
        ["new", [["p", True, False]], "old", [], "newer", "newer"],
        "new",
        [["p", True, False]],
    ]


def test_a_child_completes_the_transition_that_its_parent_is_held_in():
    """The thread that holds it does not exist in the child."""
    said = run(
        """
        with manual_rounds():
            held = Held()
            lp.enable_patch(patch())
            before = status()
            def child():
                tick()
                return [status(), target.f()]
            inside = in_child(child)
            after = status()
            released = held.release()
            finish()
            print(json.dumps([before, inside, after, released, status(), target.f()]))
        """
    )
    running, over = [["p", True, True]], [["p", True, False]]
    assert said == [running, [over, "new"], running, ["old", "old"], over, "new"]


@pytest.mark.parametrize("operation", ["disable", "force"])
def test_a_child_can_reverse_or_force_what_it_inherited(operation):
    said = run(
        f"""
        with manual_rounds():
            held = Held()
            lp.enable_patch(patch())
            def child():
                if {operation!r} == "disable":
                    lp.disable_patch("p")
                else:
                    lp.force_transition("p")
                finish()
                return [status(), target.f()]
            print(json.dumps([in_child(child), held.release()]))
        """
    )
    assert said == [[[], "old"] if operation == "disable" else [[["p", True, False]], "new"], ["old", "old"]]


def test_a_thread_that_forks_inside_of_an_old_function_stays_in_its_world():
    """In the child it is the only task there is, and it holds the transition until it is out."""
    said = run(
        """
        seen, pids = [], []
        reader, writer = os.pipe()
        def gate():
            lp.enable_patch(patch())
            tick()
            pids.append(os.fork())
            for _ in range(3):
                tick()
            seen.extend([status(), target.f(), [t.blocking[0].split()[0] for t in lp.tasks() if t.blocking]])
        with manual_rounds():
            met = target.stay(gate)
            finish()
        said = json.dumps([seen, met, status(), target.f()])
        if pids[0] == 0:
            os.write(writer, said.encode())
            os._exit(0)
        os.close(writer)
        print(json.dumps([json.loads(said), json.load(os.fdopen(reader))]))
        """
    )
    seen = [[["p", True, True]], "old", ["stay"]]
    assert said == [[seen, ["old", "old"], [["p", True, False]], "new"]] * 2


def test_a_moved_thread_that_forks_has_moved_in_the_child():
    said = run(
        """
        with manual_rounds():
            held = Held()
            lp.enable_patch(patch())
            first = target.f()
            print(json.dumps([first, in_child(lambda: [status(), target.f()]), held.release()]))
            finish()
        """
    )
    assert said == ["new", [[["p", True, True]], "new"], ["old", "old"]]


def test_generators_of_threads_that_are_gone_hold_nothing_and_those_in_variables_do():
    said = run(
        """
        with manual_rounds():
            begun, go = threading.Event(), threading.Event()
            def inside():
                for _ in target.gen():
                    begun.set()
                    assert go.wait(60)
            held = Held(inside)
            lp.enable_patch(patch())
            held.go.set()
            assert begun.wait(60)
            tick()
            def child():
                tick()
                return [status(), target.f()]
            first = [status(), in_child(child)]
            go.set()
            held.release()
            finish()
            lp.disable_patch("p")
            finish()
            lp.unload_patch("p")
            kept = target.gen()
            next(kept)
            lp.enable_patch(patch())
            def child():
                tick()
                seen = status()
                kept.close()
                finish()
                return [seen, status()]
            print(json.dumps([first, in_child(child)]))
            kept.close()
        """
    )
    running, over = [["p", True, True]], [["p", True, False]]
    assert said == [[running, [over, "new"]], [running, over]]


def test_a_generator_that_a_thread_was_running_holds_nothing():
    """It runs for ever in the child, on nobody's stack; and so it does for the transitions that come later."""
    said = run(
        """
        exec(compile("def gen(gate):\\n    gate()\\n    yield 'old'", "old.py", "exec"), target.__dict__)
        codes = {d.name: d.code for d in definitions(compile("def gen(gate): yield 'new'", "new.py", "exec"))}
        def made(name):
            return lp.Patch(name, [lp.Object("target", [lp.Func("gen", lp.Body(codes["gen"]))])])
        arrived, go = threading.Event(), threading.Event()
        def gate():
            arrived.set()
            go.wait(60)
        threading.Thread(target=lambda: list(target.gen(gate))).start()
        arrived.wait(60)
        first = in_child(lambda: [lp.enable_patch(made("p"), timeout=60), status()])
        with manual_rounds():
            lp.enable_patch(made("p"))
            second = in_child(lambda: [finish(), status()])
            print(json.dumps([first, second, status()]))
            go.set()
            finish()
        """
    )
    running, over = [["p", True, True]], [["p", True, False]]
    assert said == [[None, over], [None, over], running]


def test_a_child_makes_its_rounds_by_itself():
    """The thread that makes them does not exist in the child; it has one of its own when it needs it."""
    said = run(
        """
        held = Held()
        lp.enable_patch(patch())
        def child():
            by_itself(lambda: status() == [("p", True, False)])
            lp.disable_patch("p")
            by_itself(lambda: not status())
            return target.f()
        inside = in_child(child)
        held.release()
        by_itself(lambda: status() == [("p", True, False)])
        print(json.dumps([inside, target.f()]))
        """
    )
    assert said == ["old", "new"]


def test_fork_in_a_callback():
    """The mutex is held, by the thread that forks. The operation is not going on in the child's other threads."""
    said = run(
        """
        results = []
        def child():
            return [target.f(), [p.name for p in lp.patches()]]
        made = patch()
        made.objects[0].callbacks.post_patch = lambda obj: results.append(in_child(child))
        lp.enable_patch(made)
        finish()
        print(json.dumps([results, target.f()]))
        """
    )
    assert said == [[["new", ["p"]]], "new"]


def test_forks_while_everything_is_going_on():
    """Threads in trampolines, patches going in and out, and children in the middle of it that do the same."""
    said = run(
        """
        sys.setswitchinterval(1e-4)
        stop, torn = threading.Event(), []
        def hammer():
            while not stop.is_set():
                met = target.stay()
                if len(set(met)) != 1:
                    torn.append(met)
        def patches():
            while not stop.is_set():
                lp.enable_patch(patch(), timeout=60)
                lp.disable_patch("p", timeout=60)
                lp.unload_patch("p")
        threads = [threading.Thread(target=t, daemon=True) for t in (hammer, hammer, patches)]
        for thread in threads:
            thread.start()
        def child():
            met = {target.stay() for _ in range(100)}
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            if lp.patches():
                lp.disable_patch("p", timeout=60)
            if registry.loaded():
                lp.unload_patch("p")
            lp.enable_patch(patch("q"), timeout=60)
            return [target.f(), all(len(set(words)) == 1 for words in met)]
        said = [in_child(child) for _ in range(25)]
        stop.set()
        for thread in threads:
            thread.join(60)
        print(json.dumps([len(said), sorted(map(tuple, set(map(tuple, said)))), torn]))
        """
    )
    assert said == [25, [["new", True]], []]


def test_multiprocessing_children():
    said = run(
        """
        import multiprocessing
        def work(word): return [word, target.f()]
        lp.enable_patch(patch())
        finish()
        with multiprocessing.get_context("fork").Pool(2) as pool:
            print(json.dumps(pool.map(work, ["a", "b", "c"])))
        """
    )
    assert said == [["a", "new"], ["b", "new"], ["c", "new"]]


def test_thread_starter_is_given_back_in_the_child():
    said = run(
        """
        before = dict(vars(threading))
        with manual_rounds():
            held = Held()
            lp.enable_patch(patch())
            def child():
                tick()
                met = []
                thread = threading.Thread(target=lambda: met.append(target.f()))
                thread.start()
                thread.join()
                changed = [name for name in before if vars(threading)[name] is not before[name]]
                return [met, [name for name in changed if "start" in name]]
            print(json.dumps(in_child(child)))
            held.release()
            finish()
        """
    )
    assert said == [["new"], []]
