"""Every fact that the core relies on about this Python: each test fails when its fact stops being true."""

import _imp
import asyncio
import gc
import importlib
import inspect
import subprocess
import sys
import threading
import types
import warnings
import weakref
from importlib.machinery import ModuleSpec
from itertools import chain, repeat
from operator import call

import pytest
from tests.core import kit

from livepatch.core import cpython
from livepatch.core.codes import definitions

# -- the named facts ----------------------------------------------------------------------------------------------


def test_version():
    assert sys.version_info[:2] == cpython.VERSION
    assert cpython.unsupported() is None


def test_a_free_threaded_build_is_not_served_with_its_gil_either(monkeypatch):
    """There a load does not find the functions of a module."""
    monkeypatch.setattr(sys, "abiflags", "t", raising=False)
    assert "free-threaded" in cpython.unsupported()


def test_locals_are_a_view():
    """What was read of a frame's variables must not live on in the frame."""

    class Thing:
        pass

    def asks():
        thing = Thing()
        here = weakref.ref(thing)
        assert sys._getframe().f_locals["thing"] is thing
        del thing
        return here() is None

    assert asks() is cpython.LOCALS_ARE_A_VIEW


def test_lazy_annotations():
    """PEP 649: a name that does not exist is found out when somebody reads the annotations."""
    source = "def f(a: Nowhere): pass"
    namespace = {}
    if not cpython.LAZY_ANNOTATIONS:
        with pytest.raises(NameError):
            exec(source, namespace)
        return
    exec(source, namespace)
    with pytest.raises(NameError):
        namespace["f"].__annotations__
    assert callable(namespace["f"].__annotate__)
    assert (lambda: 0).__annotate__ is None


@pytest.mark.skipif(not cpython.LAZY_ANNOTATIONS, reason="annotations are computed when the function is made")
def test_setting_annotations_and_annotate():
    """Setting one takes the other away, so that the last one set is what counts."""
    namespace = {}
    exec("def f(a: int): pass", namespace)
    f, annotate = namespace["f"], namespace["f"].__annotate__
    f.__annotations__ = {"a": str}
    assert f.__annotations__ == {"a": str}
    f.__annotate__ = annotate
    assert f.__annotations__ == {"a": int}


def test_type_params():
    namespace = {}
    try:
        exec("def f[T](a: T): pass", namespace)
    except SyntaxError:
        assert not cpython.TYPE_PARAMS
    else:
        assert cpython.TYPE_PARAMS
        f = namespace["f"]
        f.__type_params__, before = (), f.__type_params__
        assert len(before) == 1
        assert f.__type_params__ == ()


def test_remote_exec():
    assert hasattr(sys, "remote_exec") is cpython.REMOTE_EXEC


def test_thread_starter():
    """`Thread.start` looks it up in the module each time, and its ident is known when it returns."""
    original = getattr(threading, cpython.THREAD_STARTER)
    idents, gate = [], kit.Gate()

    def start(*args, **kwargs):
        result = original(*args, **kwargs)
        idents.append(cpython.thread_ident(result, kwargs))
        return result

    setattr(threading, cpython.THREAD_STARTER, start)
    try:
        thread = threading.Thread(target=gate)
        thread.start()
    finally:
        setattr(threading, cpython.THREAD_STARTER, original)
    gate.arrived()
    assert idents == [thread.ident]
    assert thread.ident in sys._current_frames()
    gate.open()
    thread.join()


def test_importing(tmp_path, monkeypatch, worker):
    gate = kit.Gate()
    monkeypatch.setitem(sys.modules, "lp_gate", types.SimpleNamespace(gate=gate))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lp_slow.py").write_text("import lp_gate\nlp_gate.gate()\n")
    assert not cpython.importing("lp_slow")
    going = worker().begin(__import__, "lp_slow")
    gate.arrived()
    assert cpython.importing("lp_slow")
    assert cpython.importer("lp_slow") not in (None, threading.get_ident())
    assert not cpython.importing("lp_gate")
    gate.open()
    going.result(kit.PATIENCE)
    assert not cpython.importing("lp_slow")
    del sys.modules["lp_slow"]


def test_the_lock_around_finders(worker):
    """Somebody gets it while it is let go, and then it is held as often as it was before."""

    def take_it():
        with cpython.finders_lock():
            return True

    with cpython.finders_lock(), cpython.finders_lock():
        waiting = worker().begin(take_it)
        with cpython.without_finders_lock():
            assert waiting.result(kit.PATIENCE)
        assert _imp.lock_held()
    assert worker().do(take_it)
    with cpython.without_finders_lock():
        assert worker().do(take_it)


def test_a_finder_that_is_asked_holds_that_lock(monkeypatch):
    held = []
    finder = types.SimpleNamespace(find_spec=lambda *_: held.append(_imp.lock_held()))
    monkeypatch.setattr(sys, "meta_path", [finder, *sys.meta_path])
    with pytest.raises(ImportError):
        importlib.import_module("lp_nowhere")
    assert held == [True]


def test_a_finder_is_removed_while_others_are_asked(monkeypatch, worker):
    """Nobody who is in the middle of an import passes over a finder."""
    gate, ours, made = kit.Gate(), types.SimpleNamespace(find_spec=lambda *_: None), types.ModuleType("lp_made")
    loader = types.SimpleNamespace(create_module=lambda spec: made, exec_module=lambda module: None)
    slow = types.SimpleNamespace(find_spec=lambda name, *_: gate() if name == "lp_made" else None)
    finds = lambda name, *_: ModuleSpec(name, loader) if name == "lp_made" else None
    monkeypatch.setattr(sys, "meta_path", [ours, slow, types.SimpleNamespace(find_spec=finds), *sys.meta_path])
    importing = worker().begin(importlib.import_module, "lp_made")
    gate.arrived()
    cpython.remove_finder(ours)
    assert sys.meta_path[0] is slow
    gate.open()
    assert importing.result(kit.PATIENCE) is made
    cpython.remove_finder(ours)
    assert sys.meta_path[0] is slow
    monkeypatch.delitem(sys.modules, "lp_made")


def make_c(coroutine, name):
    return asyncio.create_task(coroutine, name=name)


class OwnTask(asyncio.Task):
    pass


def make_own(coroutine, name):
    return OwnTask(coroutine, loop=asyncio.get_running_loop(), name=name)


def make_python(coroutine, name):
    return asyncio.tasks._PyTask(coroutine, loop=asyncio.get_running_loop(), name=name)


def names_of_tasks():
    return {task.get_name() for task in cpython.asyncio_tasks(asyncio)}


@pytest.mark.parametrize("make", [make_c, make_own, make_python])
def test_asyncio_tasks_are_listed_from_any_thread(make, worker):
    thread = worker()

    async def main():
        gate = asyncio.Event()
        tasks = [make(gate.wait(), f"task {n}") for n in range(3)]
        unstarted = await asyncio.to_thread(names_of_tasks)
        await asyncio.sleep(0)
        suspended = names_of_tasks(), thread.do(names_of_tasks)
        gate.set()
        await asyncio.gather(*tasks)
        return unstarted, *suspended, names_of_tasks()

    *during, after = asyncio.run(main())
    for names in during:
        assert {"task 0", "task 1", "task 2"} <= names
    assert not {"task 0", "task 1", "task 2"} & after, "those that are done are not listed"


def test_eager_asyncio_tasks_are_listed():
    if not hasattr(asyncio, "eager_task_factory"):
        pytest.skip("needs eager tasks")

    async def main():
        asyncio.get_running_loop().set_task_factory(asyncio.eager_task_factory)
        gate, seen = asyncio.Event(), []

        async def eager():
            seen.append(asyncio.current_task() in cpython.asyncio_tasks(asyncio))
            await gate.wait()

        task = asyncio.create_task(eager(), name="eager")
        seen.append(task in cpython.asyncio_tasks(asyncio))
        gate.set()
        await task
        return seen

    assert asyncio.run(main()) == [True, True]


def test_asyncio_tasks_of_several_loops_and_of_loops_that_do_not_run(worker):
    loop = asyncio.new_event_loop()
    sleeping = loop.create_task(asyncio.sleep(3600), name="in a loop that does not run")
    gate, thread = kit.Gate(), worker()

    async def other():
        await asyncio.to_thread(gate)

    running = thread.begin(asyncio.run, other())
    gate.arrived()
    assert "in a loop that does not run" in names_of_tasks()
    assert len(list(cpython.asyncio_tasks(asyncio))) >= 2
    gate.open()
    running.result(kit.PATIENCE)
    sleeping.cancel()
    loop.run_until_complete(asyncio.gather(sleeping, return_exceptions=True))
    loop.close()


def test_asyncio_tasks_that_were_frozen_are_listed():
    async def main():
        task = asyncio.create_task(asyncio.sleep(3600), name="frozen")
        await asyncio.sleep(0)
        gc.freeze()
        try:
            return "frozen" in names_of_tasks()
        finally:
            gc.unfreeze()
            task.cancel()

    assert asyncio.run(main())


def test_listing_asyncio_tasks_while_a_loop_makes_and_ends_them(worker):
    stop = threading.Event()

    async def churn():
        while not stop.is_set():
            await asyncio.gather(*[asyncio.sleep(0) for _ in range(50)])

    going = worker().begin(asyncio.run, churn())
    for _ in range(200):
        list(cpython.asyncio_tasks(asyncio))
    stop.set()
    going.result(kit.PATIENCE)


# -- what redirection rests on ---------------------------------------------------------------------------------------


def code_of(source, name="f"):
    return next(d.code for d in definitions(compile(source, "fact.py", "exec")) if d.name == name)


def test_assigning_code_leaves_running_frames_alone_and_reaches_every_reference():
    namespace = {}
    exec("def f(gate):\n    gate()\n    return 'old'", namespace)
    f = alias = namespace["f"]
    new = code_of("def f(gate):\n    return 'new'")

    def exchange():
        f.__code__ = new

    assert f(exchange) == "old"
    assert alias(None) == "new"


def test_any_object_may_be_a_constant():
    thing = object()
    code = code_of("def f(): return 'here'")
    exchanged = code.replace(co_consts=tuple(thing if c == "here" else c for c in code.co_consts))
    assert types.FunctionType(exchanged, {})() is thing


def test_code_with_another_number_of_free_variables_is_refused():
    x = 1
    with pytest.raises(ValueError, match="free vars"):
        (lambda: x).__code__ = (lambda: 0).__code__


def test_code_of_the_same_kind_is_exchanged_without_a_warning():
    """From 3.13 on, another kind is deprecated; the flags decide, not the instructions."""
    namespace = {}
    exec("async def f(): yield", namespace)
    plain = code_of("def f(): return 1")
    flagged = plain.replace(co_flags=plain.co_flags | inspect.CO_ASYNC_GENERATOR)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        namespace["f"].__code__ = flagged
    assert namespace["f"]() == 1, "what makes a generator is an instruction"
    assert inspect.isasyncgenfunction(namespace["f"])


def test_code_objects_compare_by_value_and_can_be_referred_to_weakly():
    source = "def f(): return 1"
    a, b = code_of(source), code_of(source)
    assert a == b
    assert a is not b
    gone = []
    reference = weakref.ref(a, gone.append)
    del a
    gc.collect()
    assert gone == [reference]


def test_the_collector_finds_functions_and_suspended_frames_by_their_code():
    namespace = {}
    source = """
def f(): pass
def g(): yield 1
async def c(): pass
async def a(): yield 1
"""
    exec(source, namespace)
    started, unstarted = namespace["g"](), namespace["g"]()
    next(started)
    coroutine, agen = namespace["c"](), namespace["a"]()

    def found(name):
        return {id(thing) for thing in gc.get_referrers(namespace[name].__code__)}

    assert id(namespace["f"]) in found("f")
    assert {id(started), id(unstarted)} <= found("g")
    assert id(coroutine) in found("c")
    assert id(agen) in found("a")
    coroutine.close()
    started.close()
    assert id(started) not in found("g") or started.gi_frame is None


def test_the_collector_finds_a_generator_that_is_running():
    seen = []

    def gen():
        seen.append(any(thing is me[0] for thing in gc.get_referrers(gen.__code__)))
        yield

    me = [gen()]
    next(me[0])
    assert seen == [True]


def test_the_collector_finds_functions_by_their_module():
    module = types.ModuleType("fact")
    exec("def f(): pass\nkept = [f]\ndel f", module.__dict__)
    assert any(thing is module.kept[0] for thing in gc.get_referrers(module.__dict__))


def test_the_collector_finds_all_functools_caches():
    import functools

    cached = functools.lru_cache(lambda: 0)
    assert any(thing is cached for thing in gc.get_referrers(type(cached)))


def test_each_functools_cache_refers_to_its_class():
    import functools

    cls = functools._lru_cache_wrapper
    before = sys.getrefcount(cls)
    made = [functools.lru_cache(lambda: 0) for _ in range(3)]
    assert sys.getrefcount(cls) == before + 3
    del made[0]
    assert sys.getrefcount(cls) == before + 2


def test_frozen_objects_are_passed_over_by_the_collector():
    namespace = {}
    exec("def f(): pass", namespace)
    gc.freeze()
    try:
        assert namespace["f"] not in gc.get_referrers(namespace["f"].__code__)
    finally:
        gc.unfreeze()
    assert namespace["f"] in gc.get_referrers(namespace["f"].__code__)


def test_a_thread_does_not_show_the_generator_that_it_iterates_over_but_runs_no_frame_of(worker):
    gate, thread = kit.Gate(), worker()

    def gen():
        yield 1
        yield 2

    def consume():
        for _ in gen():
            gate()

    going = thread.begin(consume)
    gate.arrived()
    frame, names = sys._current_frames()[thread.ident], []
    while frame is not None:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    assert "consume" in names
    assert "gen" not in names
    gate.open()
    going.result(kit.PATIENCE)


def test_frames_of_a_snapshot_are_the_live_ones(worker):
    """They move on while somebody looks: that is why a check holds the switch lock."""
    first, second, thread = kit.Gate(), kit.Gate(), worker()

    def step():
        first()
        second()

    going = thread.begin(step)
    first.arrived()
    frame = sys._current_frames()[thread.ident]
    while frame.f_code is not step.__code__:
        frame = frame.f_back
    line = frame.f_lineno
    first.open()
    second.arrived()
    assert frame.f_lineno == line + 1
    second.open()
    going.result(kit.PATIENCE)


def test_an_async_generator_is_hidden_behind_async_for_and_the_collector_sees_it():
    class Pause:
        def __await__(self):
            yield

    async def agen():
        await Pause()
        yield 1

    async def consume():
        async for _ in generator:
            pass

    generator, consumer = agen(), consume()
    consumer.send(None)
    hidden = consumer.cr_await
    assert not hasattr(hidden, "ag_frame")
    assert generator in gc.get_referents(hidden)
    with pytest.raises(StopIteration):
        while True:
            consumer.send(None)


def test_a_coroutine_shows_what_it_waits_for_only_while_it_is_suspended():
    class Pause:
        def __await__(self):
            yield

    async def inner():
        seen.append(chain.cr_await)
        await Pause()

    async def outer():
        await inner()

    seen, chain = [], outer()
    chain.send(None)
    assert seen == [None]
    assert chain.cr_await.cr_code is inner.__code__
    with pytest.raises(StopIteration):
        chain.send(None)


def test_import_locks_do_not_outlive_the_import():
    import importlib._bootstrap

    assert isinstance(importlib._bootstrap._module_locks, dict)
    assert not [name for name in importlib._bootstrap._module_locks if name.startswith("lp_")]


def test_a_task_whose_making_has_not_ended_is_not_listed():
    """From 3.14 on the heap shows it; no other thread may ask it for its loop."""

    class Slow(asyncio.Task):
        def __init__(self, coroutine, loop):
            seen.append([self in cpython.asyncio_tasks(asyncio)])
            super().__init__(coroutine, loop=loop)
            seen.append([self in cpython.asyncio_tasks(asyncio)])

    async def main():
        await Slow(asyncio.sleep(0), asyncio.get_running_loop())
        bare.append(asyncio.Task.__new__(asyncio.Task))
        list(cpython.asyncio_tasks(asyncio))

    seen, bare = [], []
    asyncio.run(main())
    assert seen == [[False], [True]]


def test_what_the_interpreter_freezes_by_itself_is_not_mistaken_for_a_program_that_freezes():
    """Else its whole heap would be frozen at the first look, and nothing in a cycle would ever be collected again."""
    program = "import gc, livepatch.core.heap as heap; print(gc.get_freeze_count() <= heap._ITS_OWN, end=' ')"
    program += "; gc.freeze(); print(gc.get_freeze_count() > heap._ITS_OWN)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n"


def test_where_a_collection_starts():
    """Counted within one call in C, which makes more objects than the threshold: so `instant` switches them off."""
    stats = [gc.get_stats]
    before, *_, after = list(chain(map(call, stats), map(list, repeat((), 20000)), map(call, stats)))
    assert (after[0]["collections"] > before[0]["collections"]) == (sys.version_info < (3, 12))
