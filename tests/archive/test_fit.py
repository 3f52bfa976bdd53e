"""Archives in a live process: what they change, what they add, and that they leave no trace."""

import importlib
import importlib.machinery
import inspect
import sys
import traceback
import types

import pytest
from tests.archive.kit import M, disabled, enabled, namespace

import livepatch as lp
from livepatch.archive import fit

OLD = """
    import functools

    class Base:
        def inherited(self): return "inherited"

    class C(Base):
        kind = "C"
        def __init__(self): self.value = 1
        def method(self, a=1): return a
        @property
        def prop(self): return "old"
        @prop.setter
        def prop(self, value): self.value = value
        @staticmethod
        def static(): return "old"
        @classmethod
        def of_class(cls): return "old", cls.kind
        def __private(self): return "old"
        def call_private(self): return self.__private()

    @functools.lru_cache
    def cached(): return "old"

    def deco(function):
        @functools.wraps(function)
        def wrapper(*args):
            return "old", function(*args)
        return wrapper

    @deco
    def decorated(x): return x

    def gen():
        yield "old"

    async def coro(): return "old"

    def defaults(a, b=[], *, c={}): return a, b, c
"""
NEW = OLD.replace('"old"', '"new"')


def test_all_kinds_of_functions(package):
    package.have({M: OLD})
    m = package.load()
    c = m.C()

    def results():
        c.prop = 1
        return [
            c.prop,
            c.static(),
            m.C.of_class(),
            c.call_private(),
            m.cached(),
            m.decorated(1),
            next(m.gen()),
        ]

    old = results()
    patch = package.bind({M: NEW})
    assert results() == old
    enabled(patch)
    assert results() == ["new", "new", ("new", "C"), "new", "new", ("new", 1), "new"]
    disabled(patch)
    assert results() == old


def test_new_things(package):
    package.have({M: OLD, "lp_pkg/n.py": "def helper(): return 'helper'"})
    m = package.load()
    before, class_before = namespace(m), namespace(m.C)
    patch = package.bind(
        {
            M: NEW.replace(
                "import functools", "import functools\n    import re, os.path as p\n    from .n import helper"
            )
            .replace("def __init__", "limit = len(kind)\n        def __init__", 1)
            .replace(
                "def __private",
                "@property\n        def added(self): return __class__, super().inherited(), self.__new()\n"
                "        @added.setter\n        def added(self, value): self.value = value\n"
                "        @functools.cached_property\n        def once(self): return [self.limit]\n"
                "        def __new(self): return PATTERN.match('x')[0], helper(), D().prop\n"
                "        class Inner:\n            def m(self): return 'inner'\n"
                "        def __private",
            )
            + "\n    PATTERN = re.compile('x')\n    class D(C):\n        limit = 2\n"
            + "    def more(): return p.sep, C.Inner().m()\n"
            + "    LIST = []\n    LIST.append(more)\n"
        }
    )
    enabled(patch)
    c = m.C()
    assert c.added == (m.C, "inherited", ("x", "helper", "new"))
    c.added = 5
    assert c.value == 5
    assert c.once is c.once
    assert c.once == [1]
    assert m.more() == ("/", "inner")
    assert [m.more] == m.LIST
    assert m.D.__module__ == "lp_pkg.m"
    assert m.C.added.fget.__qualname__ == "C.added"
    disabled(patch)
    assert namespace(m) == before
    assert namespace(m.C) == class_before


def test_new_code_is_found_by_tracebacks_and_inspect(package):
    package.have({M: "def f(): return 1"})
    m = package.load()
    patch = package.bind({M: "\n\ndef f():\n    return 1 / 0  # here\n\ndef g(): pass\n"})
    enabled(patch)
    try:
        m.f()
    except ZeroDivisionError:
        text = traceback.format_exc()
    assert 'File "<livepatch fix>/lp_pkg/m.py", line 4, in f' in text
    assert "return 1 / 0  # here" in text
    assert inspect.getsource(m.f) == "def f():\n    return 1 / 0  # here\n"
    assert inspect.getsource(m.g) == "def g(): pass\n"
    disabled(patch)


def test_defaults_that_did_not_change_keep_their_objects(package):
    package.have({M: "def f(a, b=[], *, c={}, d=1): return a, b, c, d"})
    m = package.load()
    b, c = m.f.__defaults__[0], m.f.__kwdefaults__["c"]
    patch = package.bind({M: "X = object()\ndef f(a, n=X, b=[], *, c={}, d=2, e=len('abc')): return a, b, c, d, e, n"})
    enabled(patch)
    assert m.f.__defaults__ == (m.X, b)
    assert m.f.__defaults__[1] is b
    assert m.f.__kwdefaults__["c"] is c
    assert m.f(1) == (1, [], {}, 2, 3, m.X)
    assert str(inspect.signature(m.f)).startswith("(a, n=<object")
    disabled(patch)
    assert m.f.__defaults__ == (b,)
    assert m.f(1) == (1, [], {}, 1)


def test_defaults_of_methods_see_the_class(package):
    package.have({M: "class C:\n    LIMIT = 3\n    __hidden = 4\n    def m(self, a): return a"})
    m = package.load()
    patch = package.bind(
        {M: "class C:\n    LIMIT = 3\n    __hidden = 4\n    def m(self, a=LIMIT, __b=__hidden): return a, __b"}
    )
    enabled(patch)
    assert m.C().m() == (3, 4)
    disabled(patch)
    with pytest.raises(TypeError):
        m.C().m()


def test_defaults_that_went(package):
    package.have({M: "def f(a=1, *, b=2): return a, b"})
    m = package.load()
    patch = package.bind({M: "def f(a, *, b): return a, b"})
    enabled(patch)
    assert (m.f.__defaults__, m.f.__kwdefaults__) == (None, None)
    disabled(patch)
    assert m.f() == (1, 2)


def test_annotations_and_docstrings_follow(package):
    package.have({M: 'def f(a: int) -> int:\n    "old"\n    return a'})
    m = package.load()
    patch = package.bind({M: 'def f(a: str, b: "Later" = 1) -> bytes:\n    "new"\n    return b'})
    enabled(patch)
    assert m.f.__annotations__ == {"a": str, "b": "Later", "return": bytes}
    assert m.f.__doc__ == "new"
    disabled(patch)
    assert m.f.__annotations__ == {"a": int, "return": int}
    assert m.f.__doc__ == "old"


def test_annotations_that_cannot_be_evaluated_stay(package):
    package.have({M: "def f(a: int): return a"})
    m = package.load()
    patch = package.bind({M: "def f(a: Unknown, b=1): return a"})
    enabled(patch)
    assert m.f.__defaults__ == (1,)
    assert m.f.__annotations__ == {"a": int}
    disabled(patch)


def test_future_annotations_are_strings(package):
    head = "from __future__ import annotations\n"
    package.have({M: head + "def f(a: int): return a"})
    m = package.load()
    patch = package.bind({M: head + "def f(a: Unknown): return 1\ndef g(b: Other): pass"})
    enabled(patch)
    assert m.f.__annotations__ == {"a": "Unknown"}
    assert m.g.__annotations__ == {"b": "Other"}
    disabled(patch)


@pytest.mark.parametrize("future", ["", "from __future__ import annotations\n"])
def test_annotations_of_modules_and_classes_stay(package, future):
    """Those of what is added are for type checkers, and nothing of them may remain."""
    package.have({M: future + "class C:\n    a: int = 1\nx: int = 1\ndef f(): return C.a"})
    m = package.load()
    new = "class C:\n    a: int = 1\n    b: str = 'b'\nx: int = 1\ny: str = 'y'\ndef f(): return C.b + y"
    archive = package.archive({M: future + new})
    before = m.C.__annotations__.copy(), m.__annotations__.copy()
    enabled(fit.bind(archive))
    assert m.f() == "by"
    assert (m.C.__annotations__, m.__annotations__) == before
    disabled(archive.manifest)
    assert (m.C.__annotations__, m.__annotations__) == before


def test_constants_change_at_completion_and_importers_follow(package):
    tree = {
        "lp_pkg/v.py": "__version__ = '1'\nversion = (1, 0)",
        "lp_pkg/__init__.py": "from .v import __version__",
        M: "from lp_pkg import __version__ as v\ndef f(): return v",
    }
    package.have(tree)
    m, v = package.load(), sys.modules["lp_pkg.v"]
    patch = package.bind({"lp_pkg/v.py": "__version__ = '2'\nversion = (2, 0)", M: tree[M] + ", 1"})
    enabled(patch)
    assert (v.__version__, v.version, sys.modules["lp_pkg"].__version__, m.f()) == ("2", (2, 0), "2", ("2", 1))
    disabled(patch)
    assert (v.__version__, v.version, sys.modules["lp_pkg"].__version__, m.f()) == ("1", (1, 0), "1", "1")


def test_a_name_that_was_bound_anew_after_its_import_does_not_follow(package):
    package.have({"lp_pkg/v.py": "__version__ = '1'", M: "from .v import __version__\n__version__ = [__version__]"})
    m = package.load()
    patch = package.bind({"lp_pkg/v.py": "__version__ = '2'"})
    enabled(patch)
    assert m.__version__ == ["1"]
    disabled(patch)


def test_nested_functions_of_existing_closures(package):
    package.have({M: "def outer(x):\n    def inner(y): return x, y, 'old'\n    return inner"})
    m = package.load()
    closure = m.outer(1)
    patch = package.bind({M: "def outer(x):\n    def inner(y): return x, y, 'new'\n    return inner"})
    enabled(patch)
    assert closure(2) == (1, 2, "new")
    assert m.outer(3)(4) == (3, 4, "new")
    disabled(patch)
    assert closure(2) == (1, 2, "old")


def test_positions(package):
    old = "class C:\n    @property\n    def x(self): return 'get'\n    @x.setter\n    def x(self, v): self.v = v"
    package.have({M: old})
    m = package.load()
    patch = package.bind({M: old.replace("self.v = v", "self.v = v * 2")})
    enabled(patch)
    c = m.C()
    c.x = 2
    assert (c.v, c.x) == (4, "get")
    disabled(patch)


def test_definitions_under_conditions_need_not_exist(package):
    old = """
        import sys
        if sys.platform == "nowhere":
            import nowhere
            def only_there(): return 1
            class There:
                def m(self): return 1
        else:
            def both(): return 1
        if sys.platform != "nowhere":
            class Here:
                def m(self): return 1
    """
    package.have({M: old})
    m = package.load()
    new = old.replace("return 1", "return 2").replace(
        "import nowhere", "import nowhere, nowhere.more\n            NEW = nowhere.x"
    )
    new = new.replace("class There:", "class There:\n                def new(self): pass").replace(
        "class Here:", "class Here:\n                def new(self): return 3"
    )
    patch = package.bind({M: new})
    assert [func.old_name for func in patch.objects[0].funcs] == ["both", "Here.m"]
    enabled(patch)
    assert (m.both(), m.Here().m(), m.Here().new()) == (2, 2, 3)
    assert not hasattr(m, "NEW")
    disabled(patch)


# -- what must not happen ------------------------------------------------------------------------------------


def test_a_dry_run_changes_nothing(package):
    package.have({M: "def f(): return 1", "lp_pkg/n.py": "x = 1"})
    m = package.load()
    before = namespace(m), set(sys.modules)
    archive = package.archive({M: "from . import n\nimport lp_nowhere\ndef f(): return n\nX = print('!')"})
    patch = fit.bind(archive, dry=True)
    assert lp.core.registry.check_patch(patch) == []
    assert (namespace(m), set(sys.modules)) == before


def test_imports_are_done_before_anything_is_locked(package):
    package.have({M: "def f(): return 1", "lp_pkg/n.py": "x = 1"})
    package.load()
    patch = package.bind({M: "from . import n\ndef f(): return n.x"})
    assert "lp_pkg.n" in sys.modules
    enabled(patch)
    disabled(patch)


def test_names_are_imported_from_modules_that_add_them(package):
    package.have({"lp_pkg/a.py": "from . import z\ndef f(): return 1", "lp_pkg/z.py": "def g(): return 1"})
    a = package.load("lp_pkg.a")
    patch = package.bind(
        {
            "lp_pkg/a.py": "from . import z\nfrom .z import new\ndef f(): return new()",
            "lp_pkg/z.py": "def g(): return 2\ndef new(): return g()",
        }
    )
    enabled(patch)
    assert a.f() == 2
    disabled(patch)


def test_a_module_that_comes_later(package):
    package.have({M: "def f(): return 1", "lp_pkg/late.py": "class C:\n    def m(self): return 1\n__version__ = '1'"})
    package.load()
    late = "class C:\n    def m(self): return self.n()\n    def n(self): return 2\n__version__ = '2'"
    patch = package.bind({M: "def f(): return 2", "lp_pkg/late.py": late})
    enabled(patch)
    module = package.load("lp_pkg.late")
    assert module.C().m() == 2
    assert module.__version__ == "2"
    disabled(patch)
    assert module.C().m() == 1
    assert not hasattr(module.C, "n")
    assert module.__version__ == "1"


@pytest.mark.parametrize(
    ("new", "during", "after"),
    [
        pytest.param("def f(a=1): return 'new', a", "new", ("new", 1), id="code alone"),
        pytest.param("def f(a=2): return 'new', a", "old", ("new", 2), id="a default"),
        pytest.param("def f(a=1):\n    'Told.'\n    return 'new', a", "old", ("new", 1), id="a docstring"),
        pytest.param("def f(a=1): return 'new', LIMIT\nLIMIT = 3", "old", ("new", 3), id="a new name"),
    ],
)
def test_what_the_body_of_a_module_that_comes_later_calls(package, new, during, after):
    """Functions are born patched where nothing but their code changes; else the body runs with the old ones."""
    body = "\nDURING = f()[0]\n"
    package.have({M: "def f(): return 1", "lp_pkg/late.py": "def f(a=1): return 'old', a" + body})
    package.load()
    patch = package.bind({M: "def f(): return 2", "lp_pkg/late.py": new + body})
    enabled(patch)
    late = package.load("lp_pkg.late")
    assert (late.DURING, late.f()) == (during, after)
    assert late.f.__doc__ == ("Told." if "Told" in new else None)
    disabled(patch)
    assert late.f() == ("old", 1)
    assert late.f.__doc__ is None


def test_a_module_that_comes_later_and_does_not_fit(package):
    package.have({M: "def f(): return 1", "lp_pkg/late.py": "def f(): return 1"})
    package.load()
    patch = package.bind({M: "def f(): return 2", "lp_pkg/late.py": "def f(): return 2"})
    package.have({"lp_pkg/late.py": "def f(): return 3"})
    importlib.invalidate_caches()
    enabled(patch)
    with pytest.raises(ImportError, match="not the one that the patch was built for"):
        package.load("lp_pkg.late")
    assert "lp_pkg.late" not in sys.modules
    disabled(patch)


def test_what_somebody_else_put_in_its_place_stays(package):
    package.have({M: "def f(): return 1\n__version__ = '1'"})
    m = package.load()
    patch = package.bind({M: "def f(): return 2\ndef g(): pass\n__version__ = '2'"})
    enabled(patch)
    m.g = m.__version__ = "mine"
    disabled(patch)
    assert (m.g, m.__version__) == ("mine", "mine")


def test_one_patch_on_another(package):
    package.have({M: "def f(): return 1"})
    m = package.load()
    first = package.bind({M: "def f(): return g()\ndef g(): return 2"}, "first")
    enabled(first)
    package.have({M: "def f(): return g()\ndef g(): return 2"})
    second = package.bind({M: "def f(): return g() + 1\ndef g(): return 3"}, "second")
    enabled(second)
    assert m.f() == 4
    disabled(second)
    assert m.f() == 2
    disabled(first)
    assert m.f() == 1


def test_again_and_again(package):
    package.have({M: OLD})
    m = package.load()
    before = namespace(m)
    archive = package.archive({M: NEW + "\n    def new(): return cached()\n"})
    for _ in range(5):
        patch = fit.bind(archive)
        enabled(patch)
        assert m.new() == "new"
        disabled(patch)
        assert namespace(m) == before
        assert m.cached() == "old"


@pytest.mark.parametrize(
    ("path", "name", "spec"),
    [(M, "lp_pkg.m", "lp_pkg.m"), ("lp_script.py", "lp_script", None), ("lp_pkg/__main__.py", "x", "lp_pkg.__main__")],
)
def test_the_main_program(package, monkeypatch, path, name, spec):
    source = "class C:\n    def m(self): return 1\n__version__ = '1'\n"
    package.have({path: source})
    main = types.ModuleType("__main__")
    main.__file__ = str(package.old / path)
    main.__spec__ = spec and importlib.machinery.ModuleSpec(spec, None)
    exec(compile(source, main.__file__, "exec"), main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    new = "class C:\n    def m(self): return self.n()\n    def n(self): return 2\n__version__ = '2'\n"
    patch = package.bind({path: new})
    enabled(patch)
    assert (main.C().m(), main.__version__) == (2, "2")
    assert "__main__" in [obj["name"] for obj in lp.patches()[0].objects]
    disabled(patch)
    assert (main.C().m(), main.__version__) == (1, "1")


def test_a_module_that_is_there_twice(package, monkeypatch):
    package.have({M: "def f(): return 1"})
    m = package.load()
    main = types.ModuleType("__main__")
    main.__spec__ = m.__spec__
    exec(compile("def f(): return 1", m.__file__, "exec"), main.__dict__)
    monkeypatch.setitem(sys.modules, "__main__", main)
    patch = package.bind({M: "def f(): return 2"})
    enabled(patch)
    assert (m.f(), main.f()) == (2, 2)
    disabled(patch)
    assert (m.f(), main.f()) == (1, 1)
