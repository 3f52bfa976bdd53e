"""Functions that give something else when they are called: a coroutine, a generator, or a plain value again."""

import asyncio
import inspect

import pytest
from tests.archive.kit import M, disabled, enabled, namespace
from tests.archive.test_members import HEAD, Old, worlds  # noqa: F401 - a fixture

import livepatch as lp
from livepatch.testing import finish, manual_rounds

FORMS = {
    "function": "def f({}): return [{}]",
    "generator": "def f({}): yield {}",
    "coroutine": "async def f({}): return [{}]",
    "async generator": "async def f({}): yield {}",
}
USES = {
    "function": "def use({}): return list({}f())",
    "generator": "def use({}): return list({}f())",
    "coroutine": "def use({}): return asyncio.run({}f())",
    "async generator": "def use({}): return asyncio.run(collect({}f()))",
}
ASYNC = """
    import asyncio, inspect
    async def collect(things): return [thing async for thing in things]
    def kind_of(thing): return inspect.iscoroutinefunction(thing), inspect.isgeneratorfunction(thing)
"""
PAIRS = [(was, now) for was in FORMS for now in FORMS if was != now]


def outcome(thing):
    """What comes of what a function has given."""
    if inspect.iscoroutine(thing):
        return "coroutine", asyncio.run(thing)
    if inspect.isasyncgen(thing):
        return "async generator", asyncio.run(_collect(thing))
    return ("generator", list(thing)) if inspect.isgenerator(thing) else ("function", thing)


async def _collect(things):
    return [thing async for thing in things]


@pytest.mark.parametrize(("was", "now"), PAIRS)
def test_a_method_of_another_kind(worlds, was, now):  # noqa: F811
    def text(kind, value):
        body = f"        {FORMS[kind].format('self', value)}\n        {USES[kind].format('self', 'self.')}\n"
        return f"{ASYNC}    class C:\n{body}"

    def question(m):
        one = type("Child", (m.C,), {})()
        return lambda: (one.use(), outcome(one.f()), outcome(m.C.f(one)))

    before, after = worlds(text(was, "'old'"), text(now, "'new'"), question)
    assert before == (["old"], (was, ["old"]), (was, ["old"]))
    assert after == (["new"], (now, ["new"]), (now, ["new"]))


@pytest.mark.parametrize(("was", "now"), PAIRS)
def test_a_function_of_another_kind(worlds, was, now):  # noqa: F811
    def text(kind, value):
        return f"{ASYNC}    {FORMS[kind].format('', value)}\n    {USES[kind].format('', '')}\n"

    before, after = worlds(text(was, "'old'"), text(now, "'new'"), lambda m: lambda: (m.use(), outcome(m.f())))
    assert before == (["old"], (was, ["old"]))
    assert after == (["new"], (now, ["new"]))


DISPATCH = """
    import asyncio
    class C:
        def __init__(self): self.handlers = {"x": self.f}
        DEF f(self, x): return "VALUE", x
        def ask(self):
            handler = self.f
            return (asyncio.run(handler(1)) if asyncio.iscoroutinefunction(handler) else handler(1))
        def held(self):
            handler = self.handlers["x"]
            return (asyncio.run(handler(1)) if asyncio.iscoroutinefunction(handler) else handler(1))
    DEF g(x): return "VALUE", x
    def ask():
        return asyncio.run(g(1)) if asyncio.iscoroutinefunction(g) else g(1)
    TABLE = {"g": g}
    def table():
        found = TABLE["g"]
        return asyncio.run(found(1)) if asyncio.iscoroutinefunction(found) else found(1)
    VALUE = ""
"""


@pytest.mark.parametrize(("was", "now"), [("def", "async def"), ("async def", "def")])
def test_who_asks_for_the_kind_gets_the_one_that_belongs_to_what_is_called(worlds, was, now):  # noqa: F811
    """Naively, what is given out is of one kind in both worlds: then one of them awaits what is no coroutine."""
    old, new = DISPATCH.replace("DEF", was), DISPATCH.replace("DEF", now)

    def question(m):
        one = m.C()
        return lambda: (one.ask(), m.C().held(), m.ask(), m.table(), asyncio.iscoroutinefunction(one.f))

    before, after = worlds(old.replace('"VALUE"', '"old"'), new.replace('"VALUE"', '"new"'), question)
    assert before == (*[("old", 1)] * 4, was != "def")
    assert after == (*[("new", 1)] * 4, now != "def")


def test_what_instances_hold_of_it_keeps_its_kind(package):
    package.have({M: DISPATCH.replace("DEF", "def").replace('"VALUE"', '"old"')})
    m = package.load()
    one, two = m.C(), m.C.f
    patch = package.bind({M: DISPATCH.replace("DEF", "async def").replace('"VALUE"', '"new"')})
    enabled(patch)
    assert one.held() == two(one, 1) == ("old", 1)
    assert one.ask() == m.C().held() == ("new", 1)
    disabled(patch)
    assert one.held() == one.ask() == m.C().held() == ("old", 1)


def test_other_modules_that_have_imported_it(package):
    tree = {
        M: "def f(x): return 'old', x\n",
        "lp_pkg/n.py": "from lp_pkg.m import f as g\nimport asyncio, inspect, lp_pkg.m\n"
        "def h():\n    return asyncio.run(g(1)) if inspect.iscoroutinefunction(g) else g(1)\n"
        "def k():\n    f = lp_pkg.m.f\n    return asyncio.run(f(1)) if inspect.iscoroutinefunction(f) else f(1)\n",
        "lp_pkg/p.py": "def stay(probe):\n    return 'old', probe()\n",
    }
    package.have(tree)
    m, n, p = package.load(), package.load("lp_pkg.n"), package.load("lp_pkg.p")
    before = namespace(m), namespace(n)
    with manual_rounds():
        staying = Old(p)
        new = tree[M].replace("def", "async def").replace("old", "new")
        patch = package.bind({M: new, "lp_pkg/p.py": tree["lp_pkg/p.py"].replace("old", "new")})
        lp.enable_patch(patch)
        assert staying(n.h) == staying(n.k) == ("old", 1)
        assert n.h() == n.k() == ("new", 1)
        staying.leave()
        finish()
    assert n.h() == n.k() == ("new", 1)
    assert n.g is m.f is not before[0]["f"]
    disabled(patch)
    assert (namespace(m), namespace(n)) == before
    assert n.h() == n.k() == ("old", 1)


def test_a_task_inside_of_the_new_one_keeps_the_patch_from_going(package):
    """Who runs the new function alone, in a task of its own, must see the new world to its end."""
    old = HEAD + "    def limit(): return 'old'\n    def f(gate): return limit()\n    def run(gate): return f(gate)\n"
    new = old.replace("def f(gate): return limit()", "async def f(gate):\n        await gate()\n        return limit()")
    new = new.replace("return 'old'", "return 'new'").replace(
        "def run(gate): return f(gate)", "def run(gate): return f(gate)"
    )
    package.have({M: old})
    m = package.load()
    patch = package.bind({M: new})
    enabled(patch)

    async def main():
        held = asyncio.Event()
        task = asyncio.ensure_future(m.f(held.wait))
        await asyncio.sleep(0)
        lp.disable_patch("fix")
        await asyncio.sleep(0.05)
        held.set()
        return await task

    with manual_rounds():
        assert asyncio.run(main()) == "new"
        finish()
    assert m.f(None) == "old"
    lp.unload_patch("fix")


def test_a_decorator_around_a_function_that_a_table_keeps(worlds):  # noqa: F811
    """The table is made again, since a function with something around it cannot lead who holds it to another one."""
    old = "    @plain\n    def f(x): return x\n    table = {'f': f}\n    def g(x): return table['f'](x)\n"
    new = old.replace("    @plain\n    def f(x): return x", "    @functools.lru_cache\n    def f(x): return -x")
    before, after = worlds(old, new, lambda m: lambda: (m.f(1), m.g(2)))
    assert before == (("wrapped", 1), ("wrapped", 2))
    assert after == (-1, -2)
