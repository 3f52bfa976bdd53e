"""Forks while a callback runs: the fork does not wait for it, and the child ends what will not go on there.

The thread in the callback does not exist in the child, or never returns from it, as when the callback starts a pool of
workers. What was beginning is taken back there; what was being completed is complete.
"""

import pytest
from tests.processes.kit import run

#: What the child of a fork in each of the callbacks finds when it has had its first round.
ENDS = {
    "pre_patch": ([], "old"),
    "post_patch": ([["p", True, False]], "new"),
    "pre_unpatch": ([["p", True, False]], "new"),
    "post_unpatch": ([], "old"),
}

#: Sets up a patch with a callback that is to be defined, and does what calls it.
OPERATION = """
        called = []
        def operate(which, callback):
            made, process = patch(), os.getpid()
            setattr(made.objects[0].callbacks, which, lambda obj: callback(obj) if os.getpid() == process else None)
            lp.enable_patch(made)
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            if "unpatch" in which:
                lp.disable_patch("p")
                by_itself(lambda: not lp.patches())
        def child():
            by_itself(lambda: not any(p.transition for p in lp.patches()))
            seen = [status(), target.f()]
            if lp.patches():
                lp.disable_patch("p", timeout=60)
            if registry.loaded():
                lp.unload_patch("p")
            lp.enable_patch(patch("q", "newer"), timeout=60)
            return [*seen, status(), target.f()]
"""


@pytest.mark.parametrize("which", ENDS)
def test_a_fork_does_not_wait_for_a_callback_that_waits_for_it(which):
    said = run(
        OPERATION
        + f"""
        said = []
        def callback(obj):
            thread = threading.Thread(target=lambda: said.append(in_child(child)))
            thread.start()
            thread.join()
        operate({which!r}, callback)
        print(json.dumps([said, status()]))
        """
    )
    listed, word = ENDS[which]
    after = [] if "unpatch" in which else [["p", True, False]]
    assert said == [[[listed, word, [["q", True, False]], "newer"]], after]


@pytest.mark.parametrize("which", ENDS)
def test_a_child_that_never_returns_from_the_callback(which):
    """It is nobody's operation there: everything can be done, by any thread of it."""
    said = run(
        OPERATION
        + f"""
        said = []
        def in_thread():
            met = []
            thread = threading.Thread(target=lambda: met.append(child()))
            thread.start()
            thread.join()
            return met[0]
        operate({which!r}, lambda obj: said.append(in_child(in_thread)))
        print(json.dumps([said, status()]))
        """
    )
    listed, word = ENDS[which]
    after = [] if "unpatch" in which else [["p", True, False]]
    assert said == [[[listed, word, [["q", True, False]], "newer"]], after]


@pytest.mark.parametrize("which", ["pre_patch", "post_patch"])
def test_a_child_that_returns_from_the_callback_is_told(which):
    """Its operation was ended by whoever came first, and nothing is undone or done twice."""
    said = run(
        OPERATION
        + f"""
        reader, writer = os.pipe()
        pids = []
        made = patch()
        setattr(made.objects[0].callbacks, {which!r}, lambda obj: pids.append(os.fork()))
        said = "nothing"
        try:
            lp.enable_patch(made, timeout=60)
        except lp.LivepatchError as error:
            said = error.symbol
        if pids[0] == 0:
            os.write(writer, json.dumps([said, len(pids), *child()]).encode())
            os._exit(0)
        os.close(writer)
        print(json.dumps([json.load(os.fdopen(reader)), [said, len(pids), status()]]))
        """
    )
    listed, word = ENDS[which]
    assert said == [
        ["ECANCELED", 1, listed, word, [["q", True, False]], "newer"],
        ["nothing", 1, [["p", True, False]]],
    ]


def test_a_child_that_exits_in_a_callback_exits():
    said = run(
        """
        statuses = []
        def callback(obj):
            pid = os.fork()
            if pid == 0:
                sys.exit(7)
            statuses.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        made = patch()
        made.objects[0].callbacks.pre_patch = callback
        made.objects[0].callbacks.post_patch = callback
        lp.enable_patch(made, timeout=60)
        print(json.dumps([statuses, status()]))
        """
    )
    assert said == [[7, 7], [["p", True, False]]]


def test_callbacks_are_called_once_in_the_child_and_in_pairs():
    """Two objects; the second one's pre_patch forks. In the child the first one's post_unpatch undoes its pre_patch."""
    said = run(
        """
        other = sys.modules["other"] = types.ModuleType("other")
        exec(compile(SOURCE, "old.py", "exec"), other.__dict__)
        codes = {d.name: d.code for d in definitions(compile(SOURCE.replace("old", "new"), "new.py", "exec"))}
        calls, said = [], []
        def noting(name, kind):
            def callback(obj):
                calls.append(f"{kind} {name}")
                if (name, kind) == ("other", "pre_patch"):
                    said.append(in_child(child))
            return callback
        def child():
            by_itself(lambda: not lp.patches())
            return calls
        kinds = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
        lp.enable_patch(lp.Patch("p", [
            lp.Object(name, [lp.Func("f", lp.Body(codes["f"]))],
                      callbacks=lp.Callbacks(**{kind: noting(name, kind) for kind in kinds}))
            for name in ("target", "other")
        ]), timeout=60)
        print(json.dumps([said, calls]))
        """
    )
    assert said == [
        [["pre_patch target", "pre_patch other", "post_unpatch target"]],
        ["pre_patch target", "pre_patch other", "post_patch target", "post_patch other"],
    ]


def test_a_module_that_comes_while_its_callback_forks():
    """In the child its import is not going on, if another thread forked; what can be done without the module can."""
    said = run(
        """
        import importlib, pathlib, tempfile
        folder = tempfile.mkdtemp()
        pathlib.Path(folder, "late.py").write_text(SOURCE)
        sys.path.insert(0, folder)
        codes = {d.name: d.code for d in definitions(compile(SOURCE.replace("old", "new"), "new.py", "exec"))}
        said = []
        def child():
            lp.disable_patch("p", timeout=60)
            lp.unload_patch("p")
            lp.enable_patch(patch("q"), timeout=60)
            return [status(), target.f()]
        def callback(obj):
            thread = threading.Thread(target=lambda: said.append(in_child(child)))
            thread.start()
            thread.join()
        for which in ("pre_patch", "post_patch"):
            lp.enable_patch(lp.Patch("p", [
                lp.Object("late", [lp.Func("f", lp.Body(codes["f"]))], callbacks=lp.Callbacks(**{which: callback}))
            ]), timeout=60)
            import late
            said.append(late.f())
            lp.disable_patch("p", timeout=60)
            lp.unload_patch("p")
            said.append(late.f())
            del sys.modules["late"], late
        print(json.dumps(said))
        """
    )
    assert said == [[[["q", True, False]], "new"], "new", "old"] * 2


def test_executors_are_used_in_a_callback_while_another_thread_forks():
    """Their lock is taken before ours for a fork, since they were imported later, and after ours in the callback."""
    said = run(
        """
        from concurrent.futures import ThreadPoolExecutor
        forking = threading.Event()
        os.register_at_fork(before=forking.set)  # runs first
        def callback(obj):
            thread = threading.Thread(target=in_child, args=(lambda: 1,))
            thread.start()
            assert forking.wait(60)
            time.sleep(0.1)
            with ThreadPoolExecutor(1) as executor:
                results.append(executor.submit(lambda: 2).result(60))
            thread.join()
        results = []
        made = patch()
        made.objects[0].callbacks.pre_patch = callback
        lp.enable_patch(made, timeout=60)
        print(json.dumps([results, target.f()]))
        """
    )
    assert said == [[2], "new"]


@pytest.mark.parametrize("which", ENDS)
@pytest.mark.parametrize("forker", ["another thread", "itself"])
def test_a_child_that_is_forked_while_instances_are_gone_through(which, forker):
    """It goes on where that was, so that no instance is left out but the one that was being seen to."""
    said = run(
        OPERATION
        + f"""
        class Thing:
            def __init__(self, number): self.number = number
        target.Thing = Thing
        kept = [target.Thing(number) for number in range(1000)]
        told, once, said = [], [], []
        process = os.getpid()
        def grown():
            seen = child()
            return [seen, len(told), len(set(told)), len(once)]
        def fork():
            if {forker!r} == "itself":
                return said.append(in_child(grown))
            thread = threading.Thread(target=lambda: said.append(in_child(grown)))
            thread.start()
            thread.join()
        def each(thing):
            if len(told) == 500 and os.getpid() == process and not said:
                fork()
            told.append(thing.number)
        made = patch()
        obj = made.objects[0]
        obj.instances = {{"Thing": lp.Callbacks()}}
        setattr(obj.instances["Thing"], {which!r}, each)
        obj.callbacks.post_unpatch = once.append
        lp.enable_patch(made)
        by_itself(lambda: not any(p.transition for p in lp.patches()))
        if "unpatch" in {which!r}:
            lp.disable_patch("p")
            by_itself(lambda: not lp.patches())
        print(json.dumps([said, len(told), len(set(told))]))
        """
    )
    ((seen, told, different, once),), here, all_here = said
    listed, word = ENDS[which]
    assert seen == [listed, word, [["q", True, False]], "newer"]
    assert here == all_here == 1000
    assert once == 1  # the child has taken it back, or disabled it
    # That is undone before it has begun, goes on, or begins anew when the child disables the patch.
    expected = {"pre_patch": (500, 500), "pre_unpatch": (1500, 1000)}
    assert (told, different) == expected.get(which, (999, 999))
