"""Classes that get other bases: each world finds what its own bases have."""

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, refusal
from tests.archive.test_members import HEAD, worlds  # noqa: F401 - a fixture
from tests.build.kit import refusals

from livepatch.archive import fit, format
from livepatch.build import from_trees

MIX = "    class Mix:\n        def m(self): return 'Mix.m', super().m()\n        def extra(self): return 'extra'\n"
OTHER = """    class Other:
        limit = 1
        def m(self): return 'Other.m'
        def only(self): return 'only'
"""
C = "    class C({}):\n        def call(self): return super().m()\n"


def answer(action):
    try:
        return action()
    except Exception as error:
        return type(error)


def question(m):
    child = type("Child", (m.C,), {})
    ones = m.C(), child()
    asked = ("m", "call", "extra", "only")
    return lambda: [*(answer(lambda: getattr(one, a)()) for one in ones for a in asked), answer(lambda: m.C.limit)]


def test_a_new_class_in_front(worlds):  # noqa: F811
    before, after = worlds(OTHER + C.format("Base"), OTHER + MIX + C.format("Mix, Base"), question)
    assert before[:4] == before[4:8] == ["Base.m", "Base.m", AttributeError, AttributeError]
    assert after[:4] == after[4:8] == [("Mix.m", "Base.m"), ("Mix.m", "Base.m"), "extra", AttributeError]


def test_one_base_for_another(worlds):  # noqa: F811
    before, after = worlds(OTHER + C.format("Base"), OTHER + C.format("Other"), question)
    assert before[:4] == ["Base.m", "Base.m", AttributeError, AttributeError]
    assert after[:4] == ["Other.m", "Other.m", AttributeError, "only"]
    assert (before[-1], after[-1]) == (AttributeError, 1)


def test_a_base_goes(worlds):  # noqa: F811
    before, after = worlds(OTHER + C.format("Base, Other"), OTHER + C.format("Base"), question)
    assert (before[3], after[3]) == ("only", AttributeError)


@pytest.mark.parametrize(
    ("new", "reason"),
    [
        ("    class Bad(Base):\n        def __new__(cls): return 1\n" + C.format("Bad"), "__new__"),
        ("    class Bad:\n        __slots__ = ('x',)\n" + C.format("Bad"), "does not let"),
    ],
)
def test_bases_that_the_interpreter_does_not_allow(package, new, reason):
    package.have({M: "    class Base: pass\n" + C.format("Base")})
    m = package.load()
    before = m.C.__bases__
    patch = package.bind({M: "    class Base: pass\n" + new})
    import livepatch as lp

    assert reason in refusal(lp.enable_patch, patch)
    assert m.C.__bases__ == before


def test_a_class_without_any_base_is_refused_before(package):
    package.have({M: "    object_ = object\n    class B: pass\n    class C(object_): pass\n"})
    package.load()
    archive = package.archive({M: "    object_ = object\n    class B: pass\n    class C(B): pass\n"})
    assert "none but `object`" in refusal(fit.bind, archive, dry=True)


def test_bases_that_are_the_same_stay_and_their_members_are_carried(worlds):  # noqa: F811
    head = "    import typing\n    from collections.abc import Mapping\n    T = typing.TypeVar('T')\n"
    old = """    class C(typing.Mapping[str, T]):
        def __init__(self): self.d = {"a": 1}
        def __getitem__(self, key): return self.d[key]
        def __iter__(self): return iter(self.d)
        def __len__(self): return len(self.d)
    class D(C[int], object):
        def __len__(self): return 7
"""
    new = old.replace("typing.Mapping[str, T]", "Mapping[str, T]").replace("C[int], object", "C[str]")
    new = new.replace("self.d[key]", "-self.d[key]").replace("return 7", "return 8")

    def asked(m):
        child = type("Child", (m.D,), {})
        return lambda: [(one["a"], one.get("a"), len(one)) for one in (m.C(), m.D(), child())]

    before, after = worlds(head + old, head + new, asked)
    assert before == [(1, 1, 1), (1, 1, 7), (1, 1, 7)]
    assert after == [(-1, -1, 1), (-1, -1, 8), (-1, -1, 8)]


def test_a_new_base_before_a_generic_one(worlds):  # noqa: F811
    head = "    import typing\n    T = typing.TypeVar('T')\n    class G(Base, typing.Generic[T]): pass\n"
    before, after = worlds(head + C.format("G[int]"), head + MIX + C.format("Mix, G[int]"), question)
    assert before[:4] == ["Base.m", "Base.m", AttributeError, AttributeError]
    assert after[:4] == [("Mix.m", "Base.m"), ("Mix.m", "Base.m"), "extra", AttributeError]


KEEPER = """    import threading
    def ask(): return [len(threading.enumerate()) and 1]
    class Keeper(Base):
        def __init__(self, *args): self.kept = ask()
        def m(self): return self.kept
"""


def test_what_a_new_base_keeps_in_instances_the_hooks_say(package):
    package.have({M: HEAD + C.format("Base")})
    m = package.load()
    one = m.C()
    write(package.root / "new", {"lp_pkg/__init__.py": "", M: HEAD + KEEPER + C.format("Keeper")})
    build = from_trees(package.old, package.root / "new")
    assert "its new base Keeper sets it, and instances made before lack it" in str(build.report.refused[0])
    hooks = b"__livepatch_attributes__ = {'lp_pkg.m:C.kept': lambda one: [2]}"
    patch = fit.bind(format.read(build.hooked(hooks).archive("fix", hooks=hooks)))
    enabled(patch)
    assert (one.m(), one.call(), m.C().m()) == ([2], [2], [1])
    disabled(patch)
    assert (one.m(), m.C().m(), m.C.__bases__) == ("Base.m", "Base.m", (m.Base,))


WHOLE = """    class C:
        def __init__(self): self.x = 1
        def kept(self): return 'kept', self.x
        def m(self): return self.kept()
"""
EXTRACTED = """    class Front:
        def __init__(self): self.x = 1
        def kept(self): return 'kept', self.x
        def m(self): raise NotImplementedError
    class C(Front):
        def m(self): return 'new', self.kept()
    class D(Front):
        def m(self): return 'D', self.kept()
"""


def test_a_base_that_was_taken_out_of_a_class(worlds):  # noqa: F811
    """The interpreter gives no base to such a class, and it needs none: all that the base has, it has itself."""
    old = WHOLE + "    class D(C):\n        def m(self): return 'D'\n"

    def asked(m):
        ones = m.C(), m.D()
        return lambda: [(one.m(), one.kept(), vars(type(one)())) for one in ones]

    before, after = worlds(old, EXTRACTED, asked)
    assert before == [(("kept", 1), ("kept", 1), {"x": 1}), ("D", ("kept", 1), {"x": 1})]
    assert after == [(("new", ("kept", 1)), ("kept", 1), {"x": 1}), (("D", ("kept", 1)), ("kept", 1), {"x": 1})]


@pytest.mark.parametrize(
    "change",
    [
        ("return 'kept', self.x", "return 'changed', self.x"),  # not as it was
        ("    class D(Front):", "    def ask(x): return isinstance(x, Front)\n    class D(Front):"),
        ("return 'new', self.kept()", "return 'new', super().kept()"),
        ("        def m(self): raise", "        more = 1\n        def m(self): raise"),
        ("class Front:", "class Front(Base):"),
    ],
)
def test_a_base_with_anything_else(change):
    (refused,) = refusals({M: HEAD + WHOLE}, {M: HEAD + EXTRACTED.replace(*change)})[:1]
    assert "none but `object`" in refused


def test_what_a_new_base_keeps_in_instances_is_derived(worlds):  # noqa: F811
    """Its constructor is followed with what the class passes on, and what older instances kept of that."""
    first = "    class First(Base):\n        def __init__(self, *names, **options): self.options = options\n"
    second = """    class Second(First):
        def __init__(self, limit, *names, deep=False, **options):
            self.limit, self.depth = limit, 2 if deep else 1
            self.rest = []
            First.__init__(self, **options)
        def m(self): return self.limit, self.depth, self.rest, self.options['a']
"""
    c = "    class C({}):\n        def __init__(self, **options):\n            super().__init__({}**options)\n"

    def question(m):
        one = m.C(a=1)
        return lambda: answer(one.m)

    assert refusals(HEAD + first + second + c.format("First", ""), HEAD + first + second + c.format("Second", "7, "))
    head = first + second.replace(", deep=False", "").replace("2 if deep else 1", "1")
    before, after = worlds(head + c.format("First", ""), head + c.format("Second", "7, "), question)
    assert (before, after) == ("Base.m", (7, 1, [], 1))
