"""What counts as a definition, and when two versions of one are the same."""

import textwrap

import pytest

from livepatch.core import codes

MODULE = """
    import functools

    class A:
        @property
        def x(self):
            class Inner:
                def method(self): return [lambda: i for i in range(3)]
            return Inner

        @x.setter
        def x(self, value):
            return (i for i in value), lambda: 0

    if A:
        def twice(): return 1
    else:
        def twice(): return 2

    def outer(default=lambda: 3):
        def inner():
            def innermost(): pass
        return inner

    async def coroutine(): pass
    def generator(): yield
    async def async_generator(): yield
"""


def compiled(source):
    return compile(textwrap.dedent(source), "m.py", "exec")


def listed(source):
    return codes.definitions(compiled(source))


def function(source):
    return listed(source)[0].code


def test_definitions_are_listed_in_order_with_positions():
    named = [(d.name, d.sympos) for d in listed(MODULE) if "<lambda>" not in d.name]
    assert named == [
        ("A.x", 1),
        ("A.x.<locals>.Inner.method", 1),
        ("A.x", 2),
        ("twice", 1),
        ("twice", 2),
        ("outer", 1),
        ("outer.<locals>.inner", 1),
        ("outer.<locals>.inner.<locals>.innermost", 1),
        ("coroutine", 1),
        ("generator", 1),
        ("async_generator", 1),
    ]


def test_lambdas_are_listed_and_comprehensions_are_not():
    names = [d.name for d in listed(MODULE)]
    assert sum("<lambda>" in name for name in names) == 3
    assert not [name for name in names if name.endswith(("comp>", "<genexpr>"))]


def test_parents():
    parents = {d.name: d.parent and d.parent.name for d in listed(MODULE)}
    assert parents["A.x"] is None
    assert parents["A.x.<locals>.Inner.method"] == "A.x"
    assert parents["outer.<locals>.inner.<locals>.innermost"] == "outer.<locals>.inner"


@pytest.mark.parametrize("source", ["class C[T]: pass", "def f[T: int](x: T) -> T: return x"])
def test_annotation_scopes_are_not_listed(source):
    try:
        names = [d.name for d in listed(source)]
    except SyntaxError:
        pytest.skip("this Python has no type parameters")
    assert [name for name in names if name != "T"] == (["f"] if "def" in source else [])


def test_annotations_are_not_listed():
    assert [d.name for d in listed("def f(x: int) -> str:\n y: int = 1\n return y\nz: int = 1")] == ["f"]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("twice", "function"),
        ("coroutine", "coroutine"),
        ("generator", "generator"),
        ("async_generator", "async generator"),
    ],
)
def test_kind(name, kind):
    assert {codes.kind(d.code) for d in listed(MODULE) if d.name == name} == {kind}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return a+b", "return ( a + b )"),
        ("return a", "\n\n\n    return a  # a comment"),
        ("return a", "'a docstring'; return a"),
        ("return a, 1, 'x', None", "'a docstring'; return a, 1, 'x', None"),
        ("x: int = 1; return x", "x = 1; return x"),
        ("return b in {1, 'a', 2}", "return b in {2, 1, 'a'}"),
        ("\n    def g(): return 1", "\n\n\n    def g():\n        'doc'\n        return 1"),
        (
            "\n    class C:\n        def m(self): self.x = self.y = 1",
            "\n\n\n    class C:\n        def m(self): self.x = self.y = 1",
        ),
    ],
)
def test_same(old, new):
    assert codes.same(function(f"def f(a, b):\n    {old}"), function(f"def f(a, b):\n    {new}"))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("return 1", "return 2"),
        ("return 1", "return 1.0"),
        ("return 1", "return True"),
        ("return 0.0", "return -0.0"),
        ("return (1, (0.0,))", "return (1, (-0.0,))"),
        ("return 0j", "return -0j"),
        ("return a in {1}", "return a in {True}"),
        ("return 'a'", "return b'a'"),
        ("return a[1:2]", "return a[1:3]"),
        ("return a", "return b"),
        ("return a.x", "return a.y"),
        ("return a(b=b)", "return a(c=b)"),
        ("return lambda: 1", "return lambda: 2"),
        ("return [1 for _ in a]", "return [2 for _ in a]"),
        ("return a", "yield a"),
        ("try: a()\n    except OSError: pass", "try: a()\n    except ValueError: pass"),
    ],
)
def test_different(old, new):
    assert not codes.same(function(f"def f(a, b):\n    {old}"), function(f"def f(a, b):\n    {new}"))


@pytest.mark.parametrize(
    "parameters", ["a, c", "b, a", "a, b, /", "a, *, b", "*a, b", "a, **b", "a, b, c=None", "a, b, *args"]
)
def test_parameters_count(parameters):
    assert not codes.same(function("def f(a, b): return a"), function(f"def f({parameters}): return a"))


def test_docstrings_count_if_asked_for():
    old, new = function("def f():\n 'old'\n return 1"), function("def f():\n 'new'\n return 1")
    assert codes.same(old, new)
    assert not codes.same(old, new, docstrings=True)
    assert not codes.same(old, function("def f(): return 1"), docstrings=True)
    assert codes.same(old, old, docstrings=True)


@pytest.mark.parametrize(
    ("source", "doc"),
    [
        ("def f():\n 'doc'", "doc"),
        ("def f():\n 'doc'\n return 1", "doc"),
        ("def f(): return 'not doc'", None),
        ("def f(): pass", None),
        ("lambda: 'not doc'", None),
    ],
)
def test_docstring(source, doc):
    assert codes.docstring(function(source)) == doc


def test_running_code_is_the_same_as_when_it_was_compiled():
    """The interpreter specializes instructions in place."""
    namespace = {}
    source = "def f(x):\n    total = 0\n    for i in range(x): total += i\n    return total, len('abc'), x.real"
    exec(compiled(source), namespace)
    for _ in range(5000):
        namespace["f"](3)
    assert codes.same(namespace["f"].__code__, function(source))


def test_constants_put_in_by_hand_are_compared_by_identity():
    code = function("def f(): return print('x')")
    thing = [1]
    with_thing = code.replace(co_consts=tuple(thing if c == "x" else c for c in code.co_consts))
    with_other = code.replace(co_consts=tuple([1] if c == "x" else c for c in code.co_consts))
    assert codes.same(with_thing, with_thing.replace(co_firstlineno=99))
    assert not codes.same(with_thing, with_other)


def test_global_names():
    source = """
        def f(argument):
            global written
            local = read.attribute
            written = 1
            class Inner:
                def g(self): return also_read, local
            return [again for _ in argument], Inner
    """
    read, assigned = codes.global_names(function(source))
    assert read == {"read", "also_read", "again"}
    assert assigned == {"written"}
