"""Every kind of syntax once, from the build to the load and back: new behaviour, then the old, thing by thing.

What this Python cannot compile is not there for it: the cases of newer ones run on newer ones.
"""

import inspect

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, refusal
from tests.roundtrip.live import Snapshot

from livepatch.build import from_trees

HEAD = "import re, typing\nfrom dataclasses import dataclass\n"

#: name -> old source, new source, an expression, what it gives before and with the patch.
CASES = {
    "match": (
        "def f(x):\n    match x:\n        case [a]: return a\n        case _: return 0",
        "def f(x):\n    match x:\n        case {'k': v} if v: return v\n        case [a, *_]: return a\n"
        "        case str() | None: return 's'",
        "f([1, 2]), f({'k': 3}), f('')",
        (0, 0, 0),
        (1, 3, "s"),
    ),
    "walrus": (
        "def f(x): return [y for y in x if y]",
        "def f(x): return [z for y in x if (z := y + 1) > 1] and z",
        "f([0, 1])",
        [1],
        2,
    ),
    "f-strings": (
        "def f(x): return f'{x}'",
        "def f(x): return f'{x!r:>{len(x) + 4}}|{x=}' f\"{'nested ' + f'{x}'}\"",
        "f('a')",
        "a",
        "  'a'|x='a'nested a",
    ),
    "star expressions": (
        "def f(*a, **k): return a",
        "def f(*a, **k): return [*a, *k.values()], {**k}, (lambda *x: x)(*a)",
        "f(1, b=2)",
        (1,),
        ([1, 2], {"b": 2}, (1,)),
    ),
    "positional only": (
        "def f(a, b=1): return a, b",
        "def f(a, /, b=2, *, c=3): return a, b, c",
        "f(0)",
        (0, 1),
        (0, 2, 3),
    ),
    "exception groups": (
        "def f(x):\n    try: raise ExceptionGroup('g', [ValueError(1), KeyError(2)])\n"
        "    except ExceptionGroup as e: return len(e.exceptions)",
        "def f(x):\n    found = []\n    try: raise ExceptionGroup('g', [ValueError(1), KeyError(2)])\n"
        "    except* ValueError as e: found += ['v']\n    except* KeyError as e: found += ['k']\n    return found",
        "f(1)",
        2,
        ["v", "k"],
    ),
    "comprehensions in a class": (
        "class C:\n    size = 3\n    def m(self): return [self.size for _ in range(2)]",
        "class C:\n    size = 3\n"
        "    def m(self): return {(i, j) for i in range(2) for j in range(i)} | {self.size, __class__.__name__}",
        "C().m()",
        [3, 3],
        {(1, 0), 3, "C"},
    ),
    "nonlocal and global": (
        "count = 0\ndef f():\n    n = 1\n    def g():\n        return n\n    return g()",
        "count = 0\ndef f():\n    n = 1\n    def g():\n        nonlocal n\n        global count\n"
        "        n += 1\n        count = 0\n        return n\n    return g()",
        "f()",
        1,
        2,
    ),
    "a generator": (
        "def f(n):\n    yield from range(n)",
        "def f(n):\n    got = yield n\n    yield from (x for x in (got, n))\n    return 1",
        "list(f(2))",
        [0, 1],
        [2, None, 2],
    ),
    "a coroutine": (
        "import asyncio\nasync def f(n): return n\ndef run(): return asyncio.run(f(1))",
        "import asyncio\nasync def g():\n    for i in (1, 2): yield i\n"
        "async def f(n): return [i async for i in g() if await asyncio.sleep(0, True)]\n"
        "def run(): return asyncio.run(f(1))",
        "run()",
        1,
        [1, 2],
    ),
    "a generator that types.coroutine made awaitable": (
        "import asyncio, types\n@types.coroutine\ndef f():\n    yield\n    return 1\nasync def g(): return await f()",
        "import asyncio, types\n@types.coroutine\ndef f():\n    yield\n    return 2\nasync def g(): return await f()",
        "asyncio.run(g())",
        1,
        2,
    ),
    "with several managers": (
        "import contextlib\ndef f():\n    with contextlib.nullcontext(1) as a: return a",
        "import contextlib\ndef f():\n"
        "    with (contextlib.nullcontext(1) as a, contextlib.nullcontext(2) as (b)):\n        return a, b",
        "f()",
        1,
        (1, 2),
    ),
    "decorators that are expressions": (
        "table = {}\nkeep = [lambda f: table.setdefault(f.__name__, f)]\n@keep[0]\ndef f(): return 1",
        "table = {}\nkeep = [lambda f: table.setdefault(f.__name__, f)]\n@keep[0]\ndef f(): return 2",
        "table['f'](), f()",
        (1, 1),
        (2, 2),
    ),
    "lambdas in defaults": (
        "def f(key=lambda x: x): return key(3)",
        "def f(key=lambda x, n=2: x * n): return key(3)",
        "f()",
        3,
        6,
    ),
    "moved imports": (
        "import os\nimport sys\ndef f(): return os.sep",
        "import sys\nfrom os import sep\nimport os\ndef f(): return sep, os.sep",
        "f()",
        "/",
        ("/", "/"),
    ),
    "an alias that a type checker would want": (
        "Pair = typing.Tuple[int, int]\ndef f(x: Pair) -> Pair: return x",
        "Pair = typing.Tuple[int, int]\ndef f(x: 'Pair | None' = None) -> 'Pair | None': return x",
        "f((1, 2)), len(inspect.signature(f).parameters)",
        ((1, 2), 1),
        ((1, 2), 1),
    ),
    "__all__": (
        "__all__ = ['f']\ndef f(): return 1",
        "__all__ = ['f', 'g']\n__all__ += ['f']\ndef f(): return g()\ndef g(): return 2",
        "f(), __all__",
        (1, ["f"]),
        (2, ["f"]),
    ),
    "code below a condition": (
        "import sys\nif sys.version_info >= (3, 0):\n    def f(): return 1\nelse:\n    def f(): return 0",
        "import sys\nif sys.version_info >= (3, 0):\n    def f(): return 2\nelse:\n    def f(): return -1",
        "f()",
        1,
        2,
    ),
    "the feature of annotations": (
        "from __future__ import annotations\ndef f(x: Nowhere = 1) -> Nowhere: return x",
        "from __future__ import annotations\ndef f(x: Nowhere = 2, *, y: Elsewhere = 3) -> Nowhere: return x, y",
        "f(), f.__annotations__['x']",
        (1, "Nowhere"),
        ((2, 3), "Nowhere"),
    ),
    "type parameters": (
        "def f[T](x: T) -> T: return x\nclass C[T]:\n    def m(self, x: T) -> T: return x",
        "def f[T: int](x: T, y: int = 1) -> T: return x + y\nclass C[T]:\n    def m(self, x: T) -> list[T]: return [x]",
        "f(1), C().m(2)",
        (1, 2),
        (2, [2]),
    ),
    "a function with type parameters is new": (
        "def f(x): return x",
        "def f(x): return g(x)\ndef g[T, *Ts, **P](x: T) -> T: return (x, g.__type_params__[0].__name__)",
        "f(1)",
        1,
        (1, "T"),
    ),
    "the type statement": (
        "type A = int\ndef f(): return A.__value__",
        "type A = int\ntype B[T] = list[T] | Nowhere\ndef f(): return B.__name__",
        "f()",
        int,
        "B",
    ),
    "type parameters with defaults": (
        "def f[T](x: T) -> T: return x",
        "def f[T](x: T) -> T: return g(x)\ndef g[T = int](x: T): return g.__type_params__[0].__default__",
        "f(1)",
        1,
        int,
    ),
    "annotations that are evaluated when asked for": (
        "def f(x: int) -> int: return x\nclass C:\n    a: int = 1\n    def m(self): return self.a",
        "def f(x: int, y: 'Later' = 2) -> int: return x, y\nclass C:\n    a: int = 1\n"
        "    def m(self, z: int = 3): return self.a + z",
        "f(1), C().m()",
        (1, 1),
        ((1, 2), 4),
    ),
    "template strings": (
        "def f(x): return x",
        "def f(x): return t'{x!r} and {x:>3}'.interpolations[1].format_spec",
        "f(1)",
        1,
        ">3",
    ),
    "except without parentheses": (
        "def f():\n    try: return {}[1]\n    except (KeyError, ValueError): return 1",
        "def f():\n    try: return {}[1]\n    except KeyError, ValueError: return 2",
        "f()",
        1,
        2,
    ),
}


def compiles(source):
    try:
        compile(source, "case", "exec", dont_inherit=True)
    except SyntaxError:
        return False
    return True


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if compiles(case[0]) and compiles(case[1])])
def test_syntax(package, name):
    old, new, expression, before, after = CASES[name]
    head = "" if "__future__" in old else HEAD
    package.have({M: head + old})
    live = package.load()

    def says():
        return eval(expression, {"inspect": inspect}, vars(live))

    assert says() == before
    snapshot = Snapshot(live)
    patch = package.bind({M: head + new})
    assert not snapshot.differences()
    enabled(patch)
    assert says() == after
    disabled(patch)
    assert says() == before
    assert not snapshot.differences()


NO_EFFECT = {
    "comments": ("def f(): return 1", "# Now with a comment.\ndef f():\n    # And here.\n    return (1)  # And there."),
    "a docstring": ("def f():\n    'Old.'\n    return 1", "'''The module.'''\ndef f():\n    'New.'\n    return 1"),
    "a docstring that comes": ("class C: x = 1", "class C:\n    'New.'\n    x = 1"),
    "types": ("def f(x, *a): return x", "def f(x: int, *a: str) -> int: return x"),
    "types of variables": ("def f():\n    x = 1\n    return x", "y: int\ndef f():\n    x: int = 1\n    return x"),
    "overloads": (
        "import typing\ndef f(x): return x",
        "import typing\n@typing.overload\ndef f(x: int) -> int: ...\n@typing.overload\n"
        "def f(x: str) -> str: ...\ndef f(x): return x",
    ),
    "imports for type checkers": (
        "import typing\ndef f(): pass",
        "import typing\nif typing.TYPE_CHECKING:\n    from elsewhere import T\ndef f() -> 'T': pass",
    ),
    "the order of things": ("def f(): pass\ndef g(): pass\nimport os", "import os\ndef g(): pass\n\n\ndef f(): pass"),
    "parentheses and quotes": ("x = 'a'\ndef f(): return 1 + 2", 'x = ("a")\ndef f():\n    return (1\n  + 2)'),
}


@pytest.mark.parametrize("name", NO_EFFECT)
def test_what_changes_nothing_says_so(package, name):
    old, new = NO_EFFECT[name]
    package.have({M: old})
    write(package.root / "new", {"lp_pkg/__init__.py": "", M: new})
    build = from_trees(package.old, package.root / "new")
    assert build.report.changes_nothing, [str(change) for change in build.report.changes]
    expected = "Nothing changes for a running process, so there is no patch to make."
    assert refusal(build.archive, "fix") == expected


def refusals(package, old, new):
    package.have({M: old})
    write(package.root / "new", {"lp_pkg/__init__.py": "", M: new})
    return [str(change) for change in from_trees(package.old, package.root / "new").report.refused]


@pytest.mark.parametrize("feature", ["barry_as_FLUFL"])
def test_features_that_come_or_go_are_refused(package, feature):
    found = refusals(package, "def f(): return 1", f"from __future__ import {feature}\ndef f(): return 2")
    assert found == [f"{M}:1: the feature {feature} came or went"]


def test_a_helper_whose_name_is_taken(package):
    """By something that only the process knows: the load refuses, and nothing is left."""
    package.have({M: "def f(): return 1"})
    live = package.load()
    live.helper = "somebody's"
    new = {M: "def f(): return helper()\ndef helper(): return 2"}
    assert "'helper' exists already in the live module 'lp_pkg.m'" in refusal(package.bind, new)
    assert (live.f(), live.helper) == (1, "somebody's")


def test_a_helper_that_hides_a_builtin_is_refused(package):
    found = refusals(package, "def f(): return len('a')", "def f(): return len('a') + 1\ndef len(x): return 0")
    assert len(found) == 1
    assert "old code uses this name already, for something else" in found[0]


def test_modules_that_import_each_other(package):
    a = "from lp_pkg import b\ndef f(): return b.g()\ndef one(): return {}"
    b = "from lp_pkg import a\ndef g(): return a.one()\ndef two(): return {}"
    package.have({"lp_pkg/a.py": a.format(1), "lp_pkg/b.py": b.format(1)})
    live = package.load("lp_pkg.a")
    new_a = a.format("helper()") + "\ndef helper(): return b.two()"
    patch = package.bind({"lp_pkg/a.py": new_a, "lp_pkg/b.py": b.format(2)})
    enabled(patch)
    assert live.f() == 2
    disabled(patch)
    assert live.f() == 1


@pytest.mark.slow
def test_a_module_of_a_hundred_thousand_lines(package):
    """Nothing in a build or a load takes the square of a module's length."""
    old = "".join(f"def f{n}(x):\n    y = x + {n}\n    z = y * 2\n    return z\n\n" for n in range(20_000))
    new = old.replace("y = x + 19999\n", "y = x + 7\n").replace("y = x + 5\n", "y = g(x)\n") + "def g(x): return 0\n"
    package.have({M: old})
    live = package.load()
    patch = package.bind({M: new})
    enabled(patch)
    assert (live.f19999(0), live.f5(1), live.f6(0)) == (14, 0, 12)
    disabled(patch)
    assert (live.f19999(0), live.f5(1)) == (39998, 12)
