"""Changes of functions: what is carried and why, what cannot be, and what makes no difference."""

import pytest
from tests.build.kit import refusals, report, said


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f(): return 1", "def f():\n    # why\n    return (1)"),
        ("def f(): return 1", "\n\n\ndef f(): return 1"),
        ("def f(): return 1\ndef g(): return 2", "def g(): return 2\ndef f(): return 1"),
        ("def f(): return 1", "def f():\n    pass\n    return 1"),
        ("def f(): return 'a' 'b'", "def f(): return 'ab'"),
        ("def f(a, b): return a + b", "def f(a, b): return (a +\n    b)"),
    ],
)
def test_no_difference(old, new):
    assert said(old, new) == {}


def test_line_ends_are_no_difference():
    assert said("def f():\n    return 1\n", "def f():\r\n    return 1\r\n") == {}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f(): return 1", "def f():\n    'doc'\n    return 1"),
        ("def f():\n    'old'\n    return 1", "def f():\n    'new'\n    return 1"),
        ("'old'\nx = 1", "'new'\nx = 1"),
        ("def f(a): return a", "def f(a: int) -> int: return a"),
        ("def f(a):\n    x = a\n    return x", "def f(a):\n    x: int = a\n    return x"),
    ],
)
def test_what_has_no_effect_is_noted(old, new):
    found = report(old, new)
    assert found.notes
    assert found.changes_nothing
    assert found.notes == found.changes


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def f(): return 1", "def f(): return 2", "body"),
        ("def f(a): return a", "def f(a, b): return a", "signature"),
        ("def f(a): return a", "def f(a, b=None): return a", "signature, defaults"),
        ("def f(a=1): return a", "def f(a=2): return a", "defaults"),
        ("def f(*, a=1): return a", "def f(*, a=2): return a", "defaults"),
        ("def f(a): return a", "def f(b): return b", "signature, body"),
        ("async def f(): return 1", "async def f(): return 2", "body"),
        ("def f(): yield 1", "def f(): yield 2", "body"),
        ("@decorate\ndef f(): return 1", "@decorate\ndef f(): return 2", "body"),
        ("def f(): return lambda: 1", "def f(): return lambda: 2", "body"),
    ],
)
def test_carried(old, new, reason):
    (change,) = report(old, new).functions
    assert (change.module, change.name, change.file) == ("pkg.m", "f", "pkg/m.py")
    assert change.reason == reason


def test_lines_are_those_of_the_def_in_the_new_source():
    (change,) = report("@d\ndef f(): return 1", "\n\n@d\ndef f(): return 2").functions
    assert change.line == 4


def test_methods_of_all_kinds():
    source = """
        class C:
            def plain(self): return 1
            @staticmethod
            def static(): return 1
            @classmethod
            def of_class(cls): return 1
            @property
            def value(self): return 1
            @value.setter
            def value(self, new): return 1
            class Inner:
                def method(self): return 1
            def __private(self): return 1
    """
    found = report(source, source.replace("return 1", "return 2"))
    assert [(c.name, c.entry.sympos) for c in found.functions] == [
        ("C.plain", 0),
        ("C.static", 0),
        ("C.of_class", 0),
        ("C.value", 1),
        ("C.value", 2),
        ("C.Inner.method", 0),
        ("C.__private", 0),
    ]


def test_positions_are_those_of_either_source():
    old = """
        from typing import overload
        @overload
        def f(a: int) -> int: ...
        def f(a): return a
    """
    new = """
        from typing import overload
        @overload
        def f(a: int) -> int: ...
        @overload
        def f(a: str) -> str: ...
        def f(a): return a + a
    """
    found = report(old, new)
    (entry,) = [change.entry for change in found.functions]
    assert (entry.sympos, entry.new_sympos) == (2, 3)
    assert "overloads" in found.notes[0].reason


def test_definitions_under_conditions():
    source = """
        import sys
        if sys.platform == "win32":
            def f(): return 1
        else:
            def f(): return 2
        try:
            from fast import g
        except ImportError:
            def g(): return 3
    """
    found = report(source, source.replace("return 2", "return 4").replace("return 3", "return 5"))
    assert [(c.name, c.entry.sympos, c.entry.conditional) for c in found.functions] == [("f", 2, True), ("g", 0, True)]


def test_another_condition_is_refused():
    old = "import sys\nif sys.a():\n    def f(): return 1"
    assert "another condition" in refusals(old, old.replace("sys.a", "sys.b"))[0]


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("def f(): pass", "@d\ndef f(): pass", "its decorators changed"),
        ("@d(1)\ndef f(): pass", "@d(2)\ndef f(): pass", "its decorators changed"),
        (
            "@register\ndef f(): return 1",
            "@register\nasync def f(): return 1",
            "it was of the kind function and is now of the kind coroutine",
        ),
        ("def f(): return 1\nf()", "def f(): yield 1\nf()", "kind generator"),
        ("if x:\n    def f(): return 1", "if x:\n    async def f(): return 1", "kind coroutine"),
        ("def f(): return 1", "async def f(x=open('a')): return 1", "`open` may do anything"),
        ("def f(): pass\ndef f(): return 1", "def f(): return 1", "no longer bound"),
        ("def f(): return 1", "def f(): return 1\nif x:\n    def f(): return 2", "is bound in one more place"),
        ("def f(): return 1", "f = 1", "no longer bound to this function"),
        ("f = 1", "def f(): return 1", "bound already"),
        ("def f(): return 1\ng()", "from a import f\ng()", "no longer bound to this function"),
        (
            "def f(): return 1\ntry: from a import f, g\nexcept: pass",
            "try: from a import f, g\nexcept: pass",
            "no longer",
        ),
    ],
)
def test_refused(old, new, reason):
    found = refusals(old, new)
    assert reason in " ".join(found)


def test_who_looks_up_a_method_that_gives_a_coroutine_now_is_not_moved_before_he_calls_it():
    old = """
    class C:
        def __init__(self): self.handlers = [self.f]
        def f(self): return 1
        def ask(self): return call(self.f)
        def other(self): return 2
    def g(): return 1
    def use(): return call(g)
    """
    found = report(old, old.replace("def f", "async def f").replace("def g", "async def g"))
    assert not found.refused
    assert {change.name for change in found.changes if change.kind == "reader"} == {"C.__init__", "C.ask", "use"}
    assert "what instances made before took from C.f stays in them" in [change.reason for change in found.notes]


def test_decorators_for_type_checkers_make_no_difference():
    assert said("def f(): pass", "@typing.final\ndef f(): pass") == {}


def test_gone_is_left_in_place():
    assert said("def f(): pass\ndef g(): pass", "def g(): pass") == {"note": ["f"]}


def test_new():
    assert said("", "def f(): pass\n@cache\nasync def g(): pass") == {"added": ["f", "g"]}


def test_a_decorator_with_effects_is_noted():
    found = report("", "@app.route('/')\ndef f(): pass\n@functools.cache\ndef g(): pass")
    assert [c.name for c in found.notes] == ["f"]
    assert "app.route('/')" in found.notes[0].reason


def test_a_function_that_was_called_at_import_is_noted():
    old = {
        "pkg/m.py": "def f(): return 1\nx = f()",
        "pkg/n.py": "from .m import f as g\n@g\ndef h(): g()\ntable = {1: g}",
    }
    found = report(old, old | {"pkg/m.py": old["pkg/m.py"].replace("1", "2")})
    (note,) = found.notes
    assert "pkg/m.py:2" in note.reason
    assert "and 1 more" in note.reason


NESTED = """
    def outer(a, b):
        local = 1
        @decorate
        def inner(x, y=None):
            return a + x
        return inner
"""


def test_a_nested_function_follows():
    found = report(NESTED, NESTED.replace("a + x", "a - x"))
    assert [(c.name, c.reason) for c in found.functions] == [
        ("outer", "body"),
        ("outer.<locals>.inner", "nested function"),
    ]
    assert not found.refused


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("a + x", "b + x", "other variables"),
        ("x, y=None", "x, y=1", "parameters or defaults"),
        ("x, y=None", "x, z=None", "parameters or defaults"),
        ("@decorate", "@other", "decorators"),
        ("inner", "renamed", "is gone"),
        ("return a + x", "yield a + x", "another kind"),
    ],
)
def test_a_closure_that_cannot_follow_is_refused(old, new, reason):
    (refusal,) = refusals(NESTED, NESTED.replace(old, new))
    assert reason in refusal


LOCAL = """
    def outer(a, b):
        def inner(x):
            return a + x
        return inner(1) + inner(2)
"""


@pytest.mark.parametrize(
    ("old", "new"),
    [("a + x", "b + x"), ("def inner(x):", "def inner(x, y=1):"), ("inner", "renamed"), ("a + x", "a - x")],
)
def test_a_function_that_is_only_called_inside_needs_not_follow(old, new):
    assert not refusals(LOCAL, LOCAL.replace(old, new))


def test_another_value_under_its_name_is_no_way_to_escape():
    source = """
        def outer(self, a, b):
            if a:
                inner = self.inner
            else:
                def inner(x): return x
            found = []
            while b:
                found.append(inner(b))
            return tuple(found)
    """
    assert not refusals(source, source.replace("return x", "return a + x"))
    escaping = source.replace("found.append(inner(b))", "found.append(inner)")
    assert refusals(escaping, escaping.replace("return x", "return a + x"))


@pytest.mark.parametrize(
    "escape",
    ["return inner", "x.append(inner)", "return lambda: inner(1)", "return (inner(i) for i in b)", "return {1: inner}"],
)
def test_ways_to_escape(escape):
    source = LOCAL.replace("return inner(1) + inner(2)", escape)
    assert refusals(source, source.replace("a + x", "b + x"))


def test_a_nested_generator_that_runs_holds_the_transition_up():
    source = "def outer(a, b):\n    def inner():\n        yield a\n    return inner()"
    found = report(source, source.replace("yield a", "yield b"))
    assert not found.refused
    assert "stay old" in " ".join(change.reason for change in found.functions)


def test_methods_of_local_classes_follow():
    source = "def outer():\n    class C:\n        def m(self): return 1\n    return C"
    found = report(source, source.replace("return 1", "return 2"))
    assert [c.name for c in found.functions] == ["outer", "outer.<locals>.C.m"]


def test_changed_lambdas_are_noted():
    source = "def f(): return lambda: 1"
    assert report(source, source.replace("1", "2")).notes[0].kind == "lambda"


def test_a_name_that_is_bound_again_does_not_let_a_closure_escape():
    old = """
    def outer(a, b):
        if a:
            inner = print
        else:
            def inner(): return a
        return inner()
    """
    assert not refusals(old, old.replace("return a", "return b"))
    kept = old.replace("return inner()", "return inner")
    assert "other variables" in " ".join(refusals(kept, kept.replace("return a", "return b")))
