"""What a decorator, a base or a metaclass notes about something new goes with the patch, and nothing else does."""

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.archive import fit, format
from livepatch.build import from_trees

OLD = """
    import functools
    class App:
        def __init__(self): self.routes = {}; self.hooks = {"start": []}
        def route(self, path):
            def decorate(function):
                self.routes[path] = function
                return function
            return decorate
        def on(self, event):
            def decorate(function):
                self.hooks[event].append(functools.partial(function, event))
                @functools.wraps(function)
                def wrapper(*args): return function(*args)
                return wrapper
            return decorate
    app = App()
    names, kinds, by_kind = [], set(), {}
    class Base:
        registry = {}
        def __init_subclass__(cls): Base.registry[cls.__name__] = cls; kinds.add(cls)
    def noted(function):
        names.append(("noted", function))
        return function
    @app.route("/a")
    def a(): return "a"
    def get(path): return app.routes[path]()
"""
NEW = (
    OLD
    + """
    @app.route("/b")
    def b(): return "b"
    @app.on("start")
    def started(event): return event
    @noted
    def c(): pass
    class Added(Base): pass
    by_kind[Added] = 1
    by_kind["of"] = [Added()]
"""
)


def state(m):
    return (
        {path: id(function) for path, function in m.app.routes.items()}, list(m.app.hooks["start"]), list(m.names),
        set(m.kinds), dict(m.by_kind), dict(m.Base.registry), list(m.app.hooks),
    )  # fmt: skip


def test_it_is_there_and_goes(package):
    package.have({M: OLD})
    m = package.load()
    before = state(m)
    patch = package.bind({M: NEW})
    for _ in range(2):
        enabled(patch)
        assert m.get("/b") == "b"
        assert [hook() for hook in m.app.hooks["start"]] == ["start"]
        assert [function.__name__ for _, function in m.names] == ["c"]
        assert m.Base.registry == {"Added": m.Added}
        assert m.kinds == {m.Added}
        assert set(m.by_kind) == {m.Added, "of"}
        disabled(patch)
        assert state(m) == before
        patch = package.bind({M: NEW}, name="again")


def test_what_others_have_noted_meanwhile_stays(package):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind({M: NEW})
    enabled(patch)
    mine = lambda: "mine"
    m.app.routes["/mine"] = m.app.routes["/b"] = mine
    m.app.hooks["start"].append(mine)
    m.names.insert(0, mine)
    disabled(patch)
    assert m.app.routes == {"/a": m.a, "/mine": mine, "/b": mine}
    assert m.app.hooks == {"start": [mine]}
    assert m.names == [mine]


def test_an_entry_in_the_place_of_another_gives_it_back(package):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind({M: OLD + '\n    @app.route("/a")\n    def other(): return "other"\n'})
    enabled(patch)
    assert m.get("/a") == "other"
    disabled(patch)
    assert m.get("/a") == "a"


def test_a_statement_that_fails_leaves_nothing(package):
    package.have({M: OLD})
    m = package.load()
    before = state(m)
    patch = package.bind({M: NEW + "    class Bad(Added, Base.registry['none']): pass\n"})
    assert "KeyError('none')" in refusal(lp.enable_patch, patch)
    assert state(m) == before
    assert not hasattr(m, "b")


def test_a_cumulative_patch_brings_its_own(package):
    package.have({M: OLD})
    m = package.load()
    before = state(m)
    functions = OLD + '    @app.route("/b")\n    @noted\n    def b(): return "b"\n'
    enabled(package.bind({M: functions}, name="first"))
    write(package.root / "second", {"lp_pkg/__init__.py": "", M: functions + "    @noted\n    def d(): pass\n"})
    archive = from_trees(package.old, package.root / "second").archive("second", replaces=True)
    second = fit.bind(format.read(archive))
    enabled(second)
    lp.unload_patch("first")
    assert m.get("/b") == "b"
    assert [function.__name__ for _, function in m.names] == ["b", "d"]
    disabled(second)
    assert state(m) == before


def test_no_object_is_asked_for_anything(package):
    """There are objects that stand for others, and need not know for which just now."""
    proxy = """
    class Proxy:
        def __getattribute__(self, name): raise RuntimeError("outside of a request")
        __class__ = property(lambda self: 1 / 0)
        __dict__ = property(lambda self: 1 / 0)
    request = Proxy()
    table = {"proxy": request, "in a tuple": (request, request)}
"""
    package.have({M: OLD + proxy})
    m = package.load()
    patch = package.bind({M: NEW + proxy + "    @noted\n    def d(): pass\n"})
    enabled(patch)
    assert len(m.names) == 2
    disabled(patch)
    assert not m.names


@pytest.mark.parametrize("name", ["json", "re"])
def test_what_is_only_imported_is_not_new(package, name):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind(
        {M: OLD + f"\n    import {name}\n    @noted\n    def d(): pass\n    by_kind['module'] = {name}\n"}
    )
    enabled(patch)
    disabled(patch)
    assert not m.names
