"""Changes of classes: instances and subclasses are alive, and must not notice."""

import pytest
from tests.build.kit import refusals, report, said


def body(*lines):
    return "class C:\n" + "".join(f"    {line}\n" for line in lines) + "    def old(self): return self.used\n"


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["def new(self): pass"], ["C.new"]),
        (["@staticmethod", "def new(): pass"], ["C.new"]),
        (["@property", "def new(self): pass", "@new.setter", "def new(self, value): pass"], ["C.new", "C.new"]),
        (["async def new(self): pass"], ["C.new"]),
        (["limit = 3"], ["C.limit"]),
        (["class Inner: x = 1"], ["C.Inner"]),
        (["def __private(self): pass"], ["C.__private"]),
        (["new = property(lambda self: 1)"], ["C.new"]),
    ],
)
def test_new_members(lines, names):
    assert said(body(), body(*lines)) == {"added": names}


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["def __iter__(self): pass"], "calls it by itself"),
        (["def __get__(self, instance, owner): pass"], "calls it by itself"),
        (["@register", "def __eq__(self, other): pass"], "calls it by itself"),
        (["@register", "def used(self): pass"], "old code uses an attribute of this name"),
        (["used = print()"], "old code uses an attribute of this name"),
        (["print(1)"], "a statement of the class body changed"),
        (["for x in y(): pass"], "`y` may do anything"),
        (["with y: x = 1"], "`with y:` does more than to compute"),
        (["for used in 'ab': pass"], "a statement of the class body changed"),
        (["@register", "def old(self): pass"], "bound in one more place"),
    ],
)
def test_members_that_old_code_would_notice(lines, reason):
    assert reason in " ".join(refusals(body(), body(*lines)))


def test_slots_of_a_class_that_had_none():
    """Its instances have a dictionary, and go on having one."""
    assert said(body(), body('__slots__ = ("x", "old")')) == {"note": ["C.__slots__"]}
    assert "slots" in " ".join(refusals(body('__slots__ = ("x",)'), body('__slots__ = ("x", "y")')))
    assert said(body('__slots__ = "x"'), body('__slots__ = ["x"]')) == {"note": ["C.__slots__"]}
    assert "slots" in " ".join(refusals(body('__slots__ = "xy"'), body('__slots__ = ("x", "y")')))
    assert "slots" in " ".join(refusals(body("__slots__ = names"), body("__slots__ = others")))


def test_an_attribute_that_instances_lack_and_their_class_gets():
    new = body("used = None", "def new(self):", "    self.used = self.used or 1")
    assert refusals(body(), new) == []


@pytest.mark.parametrize(
    "bases",
    [
        "class Base:\n    def new(self): pass",
        "class Top:\n    new = 1\nclass Base(Top): pass",
        "Base = 1\nclass Base(dict): pass",
    ],
)
def test_a_member_that_hides_an_inherited_one(bases):
    name = "keys" if "dict" in bases else "new"
    old = f"{bases}\nclass C(Base):\n    x = 1\n"
    assert "hide the inherited one" in " ".join(refusals(old, old + f"    @register\n    def {name}(self): pass\n"))
    assert said(old, old + f"    {name} = 2\n") == {"value": [f"C.{name}"]}
    assert said(old, old + f"    def {name}(self): pass\n") == {"carried": [f"C.{name}"]}


def test_a_base_in_another_module():
    tree = {
        "p/a.py": "class Base:\n    def new(self): pass",
        "p/m.py": "from .a import Base\nclass C(Base):\n    x = 1\n",
    }
    new = tree | {"p/m.py": tree["p/m.py"] + "    def new(self): pass\n    def other(self): pass\n"}
    found = report(tree, new)
    assert [c.name for c in found.functions] == ["C.new"]
    assert [c.name for c in found.added] == ["C.other"]


def test_a_class_that_inherits_from_one_of_its_own_name():
    tree = {"p/a.py": "class C: pass", "p/b.py": "class C(p.a.C): pass", "p/m.py": "class D(C):\n    x = 1\n"}
    assert said(tree, tree | {"p/m.py": tree["p/m.py"] + "    def new(self): pass\n"}) == {"added": ["D.new"]}


def test_a_class_that_computes_its_attributes():
    old = "class C:\n    def __getattr__(self, name): return 1\ndef f(x): return x.new\n"
    new = old.replace("return 1", "return 1\n    def new(self): pass")
    assert said(old, new) == {"carried": ["C.new"]}
    assert said(old, new.replace("def new(self): pass", "new = 1")) == {"value": ["C.new"], "carried": ["f"]}


@pytest.mark.parametrize(
    ("old", "new", "reason"),
    [
        ("class C(A): pass", "class C(int): pass", "its bases changed"),
        ("class C: pass", "class C(A): pass", "its bases changed"),
        ("class C(A): pass", "class C(Enum): pass", "its bases changed"),
        ("class C(A): pass", "class C(A, Generic[T]): pass", "its bases changed"),
        ("if a:\n    class C(A): pass", "if a:\n    class C(B): pass", "its bases changed"),
        ("class C(metaclass=A): pass", "class C(metaclass=B): pass", "its metaclass or keywords changed"),
        ("@a\nclass C: pass", "class C: pass", "its decorators changed"),
        ("class C:\n    x = 1", "class C:\n    x = print()", "C.x: the attribute of the class changed, and `print`"),
        ("class C(A, Exception):\n    args = 1", "class C(A, Exception): pass", "an inherited one would come to light"),
        ("class C:\n    f()", "class C: pass", "a statement of the class body is gone"),
        ("if a:\n    class C: pass", "if b:\n    class C: pass", "its place below a condition changed"),
        ("class C: pass", "C = 1", "no longer bound to this class"),
        ("class C:\n    @a\n    def x(self): pass", "class C:\n    @b\n    def x(self): pass", "decorators changed"),
        ("class C(Enum):\n    def __eq__(self, o): pass", "class C(Enum): pass", "would come to light"),
    ],
)
def test_refused(old, new, reason):
    assert reason in " ".join(refusals(old, new))


@pytest.mark.parametrize(
    ("head", "old", "new"),
    [
        ("@dataclass\nclass C:", "x: int", "x: int\n    y: int"),
        ("@dataclass(slots=True)\nclass C:", "x: int = 1", "x: int = 2"),
        ("@dataclasses.dataclass(frozen=True)\nclass C:", "x: int", "y: int"),
        ("@dataclass\nclass C:", "x: int", "x: ClassVar[int]"),
        ("@attr.s(auto_attribs=True)\nclass C:", "x: int", "x: int\n    y: int = 1"),
        ("class C(NamedTuple):", "x: int", "x: int\n    y: int = 1"),
        ("class C(enum.Flag):", "A = 1", "A = 1\n    B = 2"),
        ("class C(enum.Enum):", "A = 1\n    B = 2", "A = 1"),
        ("class C(TypedDict):", "x: int", "x: int\n    y: str"),
        ("class C(BaseModel):", "x: int", "x: str"),
    ],
)
def test_classes_that_read_their_body(head, old, new):
    assert refusals(f"{head}\n    {old}\n", f"{head}\n    {new}\n")


@pytest.mark.parametrize("head", ["class C:", "@dataclass\nclass C:", "class C(NamedTuple):"])
def test_annotations_of_attributes_are_noted(head):
    found = report(f"{head}\n    x: int = 1\n", f"{head}\n    x: str = 1\n")
    assert found.notes == found.changes


def test_a_new_declaration_has_no_effect():
    found = report("class C:\n    x = 1\n", "class C:\n    x = 1\n    y: int\n")
    assert found.notes == found.changes


def test_methods_of_dataclasses_and_enums_are_like_others():
    old = "@dataclass\nclass C:\n    x: int\n    def m(self): return 1\n"
    new = old.replace("return 1", "return 2") + "    def new(self): pass\n"
    assert said(old, new) == {"carried": ["C.m"], "added": ["C.new"]}


def test_a_gone_member_stays_and_is_checked_again_when_loaded():
    found = report("class C:\n    def m(self): pass\n    x = 1", "class C:\n    x = 1")
    (note,) = found.notes
    assert (note.name, type(note.entry).__name__) == ("C.m", "RemovedEntry")


def test_a_gone_class_stays():
    assert said("class C: pass", "") == {"note": ["C"]}


def test_moving_members_is_no_difference():
    assert said("class C:\n    x = 1\n    def m(self): pass", "class C:\n    def m(self): pass\n    x = 1") == {}


def test_methods_of_a_class_under_a_condition_need_not_exist():
    old = "if a:\n    class C:\n        class D:\n            def m(self): return 1"
    (change,) = report(old, old.replace("1", "2")).functions
    assert (change.name, change.entry.conditional) == ("C.D.m", True)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("x = 1", "def x(self): pass"),
        ("def x(self): pass", "x = 1"),
        ("def __eq__(self, o): pass\n    def __hash__(self): pass", "y = 1"),
        ("def __enter__(self): pass", "y = 1"),
        (
            "@property\n    def x(self): pass\n    @x.setter\n    def x(self, v): pass",
            "@property\n    def x(self): pass",
        ),
        ("@staticmethod\n    def x(): pass", "@classmethod\n    def x(cls): pass"),
        ("def x(self): pass", "@property\n    def x(self): pass"),
        ("def x(self): pass", "@functools.lru_cache\n    def x(self): pass"),
    ],
)
def test_members_that_are_exchanged_as_a_whole(old, new):
    found = report(f"class C:\n    {old}", f"class C:\n    {new}")
    assert not found.refused
    assert "exchanged as a whole" in " ".join(change.reason for change in found.functions)


@pytest.mark.parametrize(
    ("decorator", "possible"),
    [
        ("def d(f): return f", True),
        ("def d(f):\n    f.mark = 1\n    return f", True),
        ("def d(f):\n    def wrapper(*a): return log(f(*a))\n    return wrapper", True),
        ("def d(f):\n    known.append(f)\n    return f", False),
        ("def d(f):\n    known[f.__name__] = f\n    return f", False),
        ("def d(f):\n    known.last = f\n    return f", False),
        ("d = registry.register", False),
        ("from other import d", False),
    ],
)
@pytest.mark.parametrize("place", ["{}", "class C:\n    {}"])
def test_a_decorator_must_do_nothing_but_decorate(decorator, possible, place):
    indent = "\n" + place.partition("{")[0].rpartition("\n")[2]
    old = f"{decorator}\n{place.format('def x(self): pass')}"
    new = f"{decorator}\n{place.format('@d' + indent + 'def x(self): pass')}"
    assert bool(refusals(old, new)) != possible


def test_a_decorator_that_is_made_by_a_call_is_looked_into():
    old = "def d(n):\n    def inner(f):\n        {}\n        return f\n    return inner\n"
    for line, possible in (("f.n = n", True), ("known.append(f)", False)):
        text = old.format(line)
        assert bool(refusals(text + "def x(): pass", text + "@d(1)\ndef x(): pass")) != possible


def test_what_a_new_base_keeps_in_its_instances_is_asked_for():
    old = "class A: pass\nclass B:\n    def __init__(self): {}\nclass C(A): pass\n"
    new = old.replace("class C(A)", "class C(B)")
    assert not refusals(old.format("pass"), new.format("pass"))
    assert not refusals(old.format("self.kept = 1"), new.format("self.kept = 1"))
    (asked,) = refusals(old.format("self.kept = ask()"), new.format("self.kept = ask()"))
    assert "its new base B sets it" in asked


def test_what_a_base_of_elsewhere_has_is_not_known_here():
    old = "class C(Unknown):\n    def m(self): pass\n    x = 1"
    found = report(old, old.replace("def m", "def n"))
    assert {c.reason.split(":")[0] for c in found.functions} >= {
        "gone, and an inherited one may take its place",
        "it may hide an inherited one",
    }
