"""New fields of dataclasses: old tasks make and compare instances without them, new ones with them."""

import dataclasses
import textwrap

import pytest
from tests.archive.conftest import write
from tests.archive.kit import M, refusal
from tests.archive.test_members import Old, worlds  # noqa: F401 - a fixture
from tests.build.kit import refusals

import livepatch as lp
from livepatch.archive import fit, format
from livepatch.build import from_trees
from livepatch.testing import finish, manual_rounds

OLD = """
    import dataclasses
    from dataclasses import dataclass, field

    @dataclass
    class C:
        x: int
        def both(self): return self.x
"""
NEW = OLD.replace("x: int\n", "x: int\n        y: int = 5\n        z: list = field(default_factory=list)\n").replace(
    "return self.x", "return self.x, self.y, self.z"
)


def answer(action):
    try:
        return action()
    except Exception as error:
        return type(error)


def test_instances_old_and_new(worlds):  # noqa: F811
    def question(m):
        one = m.C(1)
        return lambda: (
            [field.name for field in dataclasses.fields(one)],
            repr(one),
            one.both(),
            answer(lambda: m.C(2, 3).both()),
            one == m.C(1),
        )

    before, after = worlds(OLD, NEW, question)
    assert before == (["x"], "C(x=1)", 1, TypeError, True)
    assert after == (["x", "y", "z"], "C(x=1, y=5, z=[])", (1, 5, []), (2, 3, []), True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("@dataclass\nclass C:", "    y: InitVar[int]"),
        ("@dataclass\nclass C:", "    _: KW_ONLY\n    y: int"),
        ("@dataclass\nclass C:", "    y: int = ask()"),
        ("@dataclass(frozen=True)\nclass C:", "    y: int = 1"),
        ("@dataclass(slots=True)\nclass C:", "    y: int = 1"),
        ("@dataclass\nclass C(Base):", "    y: int = 1"),
        ("@register\n@dataclass\nclass C:", "    y: int = 1"),
        ("@dataclass\nclass C:\n    a = ask()", "    y: int = 1"),
    ],
)
def test_classes_that_cannot_be_made_again(old, new):
    assert refusals(f"{old}\n    x: int\n", f"{old}\n    x: int\n{new}\n")


def test_a_subclass_that_has_the_fields_is_refused(package):
    package.have({M: OLD})
    m = package.load()
    archive = package.archive({M: NEW})
    fit.bind(archive)
    child = dataclasses.make_dataclass("Child", [], bases=(m.C,))
    assert "has subclasses with its fields" in refusal(fit.bind, archive)
    del child


HOOKS = """
    __livepatch_attributes__ = {"lp_pkg.m:C.y": lambda one: -one.x}
"""


def test_a_field_without_a_default_asks_for_hooks(package):
    (refused,) = refusals({M: OLD}, {M: OLD.replace("x: int", "y: int\n        x: int")})
    assert "a new field without a default" in refused


def test_instances_without_a_field_that_has_no_default_get_what_the_hooks_say(package):
    """The new field comes first: each world makes, shows and compares instances in its own way."""
    new = OLD.replace("x: int", "y: int\n        x: int").replace("return self.x", "return self.x, self.y")
    tail = "    def stay(probe):\n        return 'old', probe()\n"
    package.have({M: OLD + tail})
    m = package.load()
    shown = vars(m.C).copy()
    one = m.C(1)
    write(package.root / "new", {"lp_pkg/__init__.py": "", M: new + tail.replace("old", "new")})
    hooks = textwrap.dedent(HOOKS).encode()
    build = from_trees(package.old, package.root / "new").hooked(hooks)
    archive = format.read(build.archive("fix", hooks=hooks))
    with manual_rounds():
        staying = Old(m)
        lp.enable_patch(fit.bind(archive))
        two = staying(lambda: m.C(2))
        assert (two.x, vars(two)) == (2, {"x": 2})
        assert staying(lambda: (repr(one), one == m.C(1), one.both())) == ("C(x=1)", True, 1)
        assert (repr(two), two == m.C(-2, 2), two.both()) == ("C(y=-2, x=2)", True, (2, -2))
        assert m.C(3, 4).both() == (4, 3)
        staying.leave()
        finish()
    assert (one == m.C(-1, 1), one == m.C(5, 1), dataclasses.astuple(one)) == (True, False, (-1, 1))
    lp.disable_patch("fix")
    finish()
    assert (repr(m.C(1)), one == m.C(1), one.both()) == ("C(x=1)", True, 1)
    assert {k: v for k, v in vars(m.C).items() if k != "__doc__"} == {k: v for k, v in shown.items() if k != "__doc__"}
    lp.unload_patch("fix")


def test_fields_in_another_order(worlds):  # noqa: F811
    """Nothing in the class body is new, and yet `C(1, 2)` means something else."""
    old = OLD.replace("x: int\n", "x: int\n        y: int = 0\n").replace("return self.x", "return self.x, self.y")
    new = old.replace("x: int\n        y: int = 0", "y: int = 0\n        x: int = 0")
    old = old.replace("x: int\n", "x: int = 0\n")
    before, after = worlds(old, new, lambda m: lambda: (m.C(1, 2).both(), repr(m.C(3))))
    assert (before, after) == (((1, 2), "C(x=3, y=0)"), ((2, 1), "C(y=3, x=0)"))


@pytest.mark.parametrize("head", ["@attr.s\nclass C:", "class C(NamedTuple):", "class C(enum.Enum):"])
def test_members_in_another_order_elsewhere(head):
    one, other = "    A: int = auto()\n", "    B: int = auto()\n"
    (refused,) = refusals(f"{head}\n{one}{other}", f"{head}\n{other}{one}")
    assert "in another order" in refused


EVENTS = """
    import dataclasses
    from dataclasses import dataclass, field
    class Event:
        def name(self): return type(self).__name__
    class C(Event):
        def __init__(self):
            self.x = None
            self.y = None
        def __repr__(self): return f"<C {self.x} {self.y}>"
        def both(self): return self.x, self.y
    def make(x):
        one = C()
        one.x = x
        return one
"""
BECAME = """
    import dataclasses
    from dataclasses import dataclass, field
    kw_only = {"kw_only": True}
    LATER = object()
    class Event:
        def name(self): return type(self).__name__
    @dataclass(**kw_only)
    class C(Event):
        x: int
        y: object = LATER
        z: list = field(default_factory=list)
        t: int = 7
        def __repr__(self): return f"<C {self.x} {self.y is LATER} {self.z} {self.t}>"
        def both(self): return self.x, self.z, self.t
    def make(x):
        return C(x=x)
"""


def test_a_class_becomes_a_dataclass(worlds):  # noqa: F811
    def question(m):
        one = m.C.__new__(m.C)
        one.x, one.y = 1, 2
        child = type("Child", (m.C,), {})
        return lambda: (
            repr(one),
            one.both(),
            one.name(),
            m.make(5).both(),
            answer(m.C),
            answer(lambda: child(x=3).both()),
            m.make(1) == m.make(1),
            dataclasses.is_dataclass(one),
            answer(lambda: [field.name for field in dataclasses.fields(child)]),
            isinstance(answer(lambda: hash(one)), int),
            answer(lambda: one.t),
            answer(lambda: m.C.t),
        )

    before, after = worlds(EVENTS, BECAME, lambda m: lambda: _shown(question(m)()))
    assert before[:5] == ("<C 1 2>", (1, 2), "C", (5, None), "<C None None>")
    assert before[5:] == (TypeError, False, False, TypeError, True, AttributeError, AttributeError)
    assert after[:5] == ("<C 1 False [] 7>", (1, [], 7), "C", (5, [], 7), TypeError)
    assert after[5:] == ((3, [], 7), True, True, ["x", "y", "z", "t"], False, 7, 7)


def _shown(found):
    return tuple(repr(thing) if type(thing).__name__ == "C" else thing for thing in found)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("x: int\n", "x: int\n        w: int\n"), "a new field without a default"),
        (("@dataclass(**kw_only)", "@dataclass(frozen=True)"), "its decorators changed"),
        (("@dataclass(**kw_only)", "@dataclass(**ask())"), "its decorators changed"),
        (("kw_only = {", "kw_only = ask() or {"), "its decorators changed"),
        (("def name(self)", "def __post_init__(self)"), "its decorators changed"),
        (("@dataclass(**kw_only)", "@register\n    @dataclass(**kw_only)"), "its decorators changed"),
        (("class Event:", "class Event(Far):"), "its bases changed"),
        (("class Event:", "@dataclass\n    class Event:"), "its decorators changed"),
        (("t: int = 7", "t: int = ask()"), "its decorators changed"),
    ],
)
def test_classes_that_cannot_become_a_dataclass(change, reason):
    assert reason in " ".join(refusals({M: EVENTS}, {M: BECAME.replace(*change)}))


@pytest.mark.parametrize(
    ("was", "now", "answers"),
    [
        ("", "(eq=False)", ((True, TypeError, TypeError), (False, int, TypeError))),
        ("(eq=False)", "()", ((False, int, TypeError), (True, TypeError, TypeError))),
        ("", "(order=True)", ((True, TypeError, TypeError), (True, TypeError, True))),
        ("(order=True)", "", ((True, TypeError, True), (True, TypeError, TypeError))),
    ],
)
def test_other_options(worlds, was, now, answers):  # noqa: F811
    def question(m):
        one, two = m.C(1), m.C(2)
        return lambda: (one == m.C(1), answer(lambda: type(hash(one))), answer(lambda: one < two))

    old, new = (OLD.replace("@dataclass", f"@dataclass{options}") for options in (was, now))
    assert worlds(old, new, question) == answers


ORDERED = """
    import functools
    class Event: pass
    @functools.total_ordering
    class C(Event):
        def __init__(self, x): self.x = x
        def __eq__(self, other): return self.x == other.x
        def __hash__(self): return 1
        def __lt__(self, other): return self.x < other.x
"""


@pytest.mark.parametrize("written", ["", "        def __ge__(self, other): return 'written'\n"])
@pytest.mark.parametrize("comes", [True, False])
def test_an_order_comes_or_goes(worlds, written, comes):  # noqa: F811
    plain = ORDERED.replace("@functools.total_ordering", "") + written

    def question(m):
        one, two = m.C(1), m.C(2)
        return lambda: [answer(lambda: one < two), answer(lambda: one <= two), answer(lambda: one >= two)]

    found = worlds(*((plain, ORDERED) if comes else (ORDERED, plain)), question)
    without, ordered = found if comes else reversed(found)
    assert ordered == [True, True, False]
    # A class that has `>=` only is asked for `<=` in the mirror.
    assert without == ([True, "written", "written"] if written else [True, TypeError, TypeError])


def test_an_order_that_a_base_has_a_part_in_is_refused():
    old = ORDERED.replace("class Event: pass", "class Event:\n        def __le__(self, other): return 1")
    assert "its decorators changed" in " ".join(refusals({M: old.replace("@functools.total_ordering", "")}, {M: old}))
