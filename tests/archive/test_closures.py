"""Nested functions that cannot follow: those that wait to be called stay old, and new calls make new ones."""

import threading

import pytest
from tests.archive.kit import M, disabled, enabled
from tests.build.kit import refusals, report

import livepatch as lp
from livepatch.testing import finish, manual_rounds, tick

OLD = """
    queue = []
    gate = None
    def submit(job): queue.append(job)
    def leaf(): return "old"
    def f(x):
        extra = "extra"
        def job():
            if gate: gate()
            return "old", x, leaf()
        submit(job)
"""
NEW = OLD.replace('"old"', '"new"').replace("x, leaf()", "x, extra, leaf()")


def test_closures_in_a_queue_stay_old_and_new_ones_are_new(package):
    package.have({M: OLD})
    m = package.load()
    m.f(1)
    patch = package.bind({M: NEW})
    enabled(patch)
    m.f(2)
    assert [job() for job in m.queue] == [("old", 1, "new"), ("new", 2, "extra", "new")]
    disabled(patch)
    m.f(3)
    assert [job() for job in m.queue] == [("old", 1, "old"), ("new", 2, "extra", "old"), ("old", 3, "old")]


def test_no_task_moves_while_it_is_in_one(package):
    """If the code of the closure were not counted, the thread would move in the middle and end with `new`."""
    package.have({M: OLD})
    m = package.load()
    m.f(1)
    inside, go, found = threading.Event(), threading.Event(), []
    m.gate = lambda: (inside.set(), go.wait(60))
    thread = threading.Thread(target=lambda: found.append(m.queue[0]()))
    with manual_rounds():
        thread.start()
        inside.wait(60)
        patch = package.bind({M: NEW})
        lp.enable_patch(patch)
        for _ in range(3):
            tick()
        go.set()
        thread.join()
        finish()
    assert found == [("old", 1, "old")]
    disabled(patch)


@pytest.mark.parametrize(
    ("use", "refused"),
    [
        ("submit(g)", False),
        ("loop.call_soon(g)", False),
        ("return sorted(y, key=g)", False),
        ("Thread(target=g).start()", False),
        ("return g", True),
        ("self.g = g", True),
        ("register(g)", True),
        ("return wraps(x)(g)", True),
        ("submit([g])", True),
        ("submit(lambda: g())", True),
    ],
)
def test_only_what_is_called_soon_may_stay_old(use, refused):
    old = f"def f(self, x, y):\n    def g(): return x\n    {use}\n"
    new = old.replace("return x\n", "return x, y\n", 1)
    assert bool(refusals(old, new)) == refused
    if not refused:
        assert "stay old" in " ".join(change.reason for change in report(old, new).functions)


KEPT = """
    def outer(a, b, gate=None):
        @staticmethod
        def other(): return a, b
        def inner(x, wait=None):
            if wait: wait()
            return "old", a, b, x
        class Local:
            def m(self): return "old", a, b
        async def coro(): return "old", a, b
        return inner, Local, coro
"""
LESS = """
    def outer(a, b, gate=None):
        @staticmethod
        def other(): return a
        def inner(x, wait=None):
            if wait: wait()
            return "new", a, x
        class Local:
            def m(self): return "new", b
        async def coro(): return "new"
        return inner, Local, coro
"""


def results(made):
    inner, local, coro = made
    running = coro()
    try:
        running.send(None)
    except StopIteration as stop:
        return inner(1), local().m(), stop.value


def test_closures_that_need_fewer_variables_follow(package):
    package.have({M: KEPT})
    m = package.load()
    early = m.outer("a", "b")
    old, new = (("old", "a", "b", 1), ("old", "a", "b"), ("old", "a", "b")), (("new", "a", 1), ("new", "b"), "new")
    inside, go, found = threading.Event(), threading.Event(), []
    thread = threading.Thread(target=lambda: found.append(early[0](2, lambda: (inside.set(), go.wait(60)))))
    thread.start()
    inside.wait(60)
    with manual_rounds():
        patch = package.bind({M: LESS})
        lp.enable_patch(patch)
        tick()
        assert lp.patches()[-1].transition
        assert results(early) == new
        late = m.outer("a", "b")
        go.set()
        thread.join()
        finish()
    assert found == [("old", "a", "b", 2)]
    assert results(early) == results(late) == results(m.outer("a", "b")) == new
    disabled(patch)
    assert results(early) == results(late) == results(m.outer("a", "b")) == old, "the cells are still theirs"


@pytest.mark.parametrize(
    ("old", "new", "refused"),
    [
        (
            "def f(a, b):\n    def g(): return a, b\n    return g",
            "def f(a, b):\n    def g(): return a\n    return g",
            False,
        ),
        (
            "def f(a, b):\n    def g(): return a, b\n    return g",
            "def f(a, c):\n    def g(): return a\n    return g",
            True,
        ),
        (
            "def f(a, b):\n    def g(): return a\n    return g",
            "def f(a, b):\n    def g(): return a, b\n    return g",
            True,
        ),
        (
            "def f(a, b):\n    def g(): return a, b\n    return g",
            "def f(a, b):\n    def g(b=1): return a\n    return g",
            True,
        ),
        (
            "def f(a, b):\n    def g(): return a, b\n    return g",
            "def f(a, b):\n    def g():\n        b = 1\n        return a, b\n    return g",
            True,
        ),
        (
            "def f(a, b):\n    def g(): return a, b\n    return g",
            "def f(a, b):\n    def g():\n        global b\n        return a, b\n    return g",
            True,
        ),
    ],
)
def test_only_variables_that_are_there_still_can_be_kept(old, new, refused):
    assert bool(refusals("b = 1\n" + old, "b = 1\n" + new)) == refused


WRAPPED = """
    import functools
    def deco(x):
        def wrapped(func):
            def wrapper(*args):
                return "old", x, func(*args)
            return wrapper
        return wrapped
    @deco(1)
    def f(y): return y
"""


def test_a_closure_that_was_made_before_functools_wraps_came_follows(package):
    """Who has it has not what is copied for readers, and runs the new code all the same."""
    package.have({M: WRAPPED})
    m = package.load()
    held, name = m.f, m.f.__name__
    patch = package.bind(
        {M: WRAPPED.replace('"old"', '"new"').replace("def wrapper", "@functools.wraps(func)\n            def wrapper")}
    )
    enabled(patch)
    assert [held(2), m.f(2)] == [("new", 1, 2)] * 2
    later = m.deco(3)(m.deco)
    assert later.__name__ == "deco"
    disabled(patch)
    assert [held(2), m.f(2)] == [("old", 1, 2)] * 2
    assert held.__name__ == name
    assert m.deco(3)(len)("ab") == ("old", 3, 2)


def test_another_decorator_of_a_closure_is_refused():
    changed = WRAPPED.replace("def wrapper", "@functools.cache\n            def wrapper")
    assert "decorators of a nested function" in " ".join(refusals(WRAPPED, changed))
