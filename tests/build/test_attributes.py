"""Attributes that instances made by the old release do not have."""

import pytest
from tests.build.kit import refusals, report

OLD = """
    class Base:
        def setup(self): self.inherited = 1

    class C(Base):
        declared: int
        shared = 1
        def __init__(self): self.old = 1
        def read(self): return self.old
        def other(self): return 2

    def outside(c): return c.old
"""


def with_new(reader, attribute="new"):
    return OLD.replace("self.old = 1", f"self.old = 1; self.{attribute} = 2").replace("return 2", reader)


@pytest.mark.parametrize(
    "reader",
    ["return self.new", "self.new += 1", "self.new.append(1)", "print(self.new); self.new = 1", "del self.new"],
)
def test_a_read_of_a_new_attribute_that_nobody_can_tell_is_refused(reader):
    (refusal,) = refusals(OLD, with_new(reader).replace("self.new = 2", "self.new = ask()"))
    assert "C.other: it reads the attribute 'new', which the old C never sets" in refusal


@pytest.mark.parametrize(
    "reader",
    [
        "return 3",
        "self.new = 1; return self.new",
        "return getattr(self, 'new', None)",
        "return self.new if hasattr(self, 'new') else 1",
    ],
)
def test_code_that_copes_is_carried(reader):
    found = report(OLD, with_new(reader))
    assert not found.refused
    assert "C.new" in [note.name for note in found.notes]


@pytest.mark.parametrize("attribute", ["old", "inherited", "declared", "shared"])
def test_attributes_that_the_old_class_knows(attribute):
    assert not refusals(OLD, with_new(f"return self.{attribute}", attribute))


def test_new_methods_count_and_so_does_other_code():
    new = with_new("return 2").replace("return c.old", "return c.new").replace("self.new = 2", "self.new = ask()")
    assert "outside" in refusals(OLD, new)[0]
    new = with_new("return 2\n        def added(self): return self.new").replace("self.new = 2", "self.new = ask()")
    assert "C.added" in refusals(OLD, new)[0]


def test_an_attribute_of_that_name_elsewhere_may_be_another():
    assert not refusals(
        OLD + "    def g(x): return x.new",
        with_new("return 2").replace("c.old", "c.new") + "    def g(x): return x.new",
    )


@pytest.mark.parametrize(("was", "now"), [("0", "b''"), ("None", "[]"), ("()", "[]")])
def test_another_type_of_initial_value(was, now):
    old = f"class C:\n    def __init__(self): self.x = {was}\n    def read(self): return self.x\n"
    old += "    def more(self): self.x += g()\n"
    new = old.replace(f"= {was}", f"= {now}").replace("return self.x", "return len(self.x)")
    assert "starts as" in refusals(old, new)[0]


def test_the_constructor_is_what_is_not_an_overload():
    overloads = (
        "class C:\n    @typing.overload\n    def __init__(self): ...\n    @overload\n    def __init__(self, *a): ...\n"
    )
    old = overloads + "    def __init__(self, *a): self.y = 1\n    def read(self): return self.y\n"
    new = old.replace("self.y = 1", "self.x = []").replace("self.y", "self.x")
    assert not refusals(old, new)


A_KEPT, A_NEW, NOT_A = ", a): self.a = a", ", a):\n        self.a = a\n        ", "2 if not self.a else 0"


def given(old_init, new_init, more=""):
    """What the report says live instances get for the attribute `x` of a class with these constructors."""
    methods = f"    def read(self): return 1\n{more}"
    found = report(
        f"class C:\n    def __init__(self{old_init}\n{methods}",
        f"class C:\n    def __init__(self{new_init}\n{methods.replace('return 1', 'return self.x')}",
    )
    texts = [change.reason for change in found.changes if change.name == "C.x" and not found.refused]
    return texts[0].split("`")[1] if texts else None


@pytest.mark.parametrize(
    ("old_init", "new_init", "value"),
    [
        ("): pass", "): self.x = 1", "1"),
        ("): pass", "): self.x: list = []", "[]"),
        ("): pass", "): self.x = LIMIT * 2", "LIMIT * 2"),
        ("): pass", "): self.x = threading.Lock()", "threading.Lock()"),
        ("): pass", ", x=None): self.x = x", "None"),
        ("): pass", ", *, x=5): self.x = x or 3", "5 or 3"),
        (", a): self.a = a", ", a): self.a = a; self.x = a.lower()", "self.a.lower()"),
        (", a): self.a = a", ", a): self.a = a; b = len(a); self.x = b + 1", "len(self.a) + 1"),
        (", a): self.a = a", ", a):\n        self.a = a\n        self.y = 1\n        self.x = self.y", "1"),
        ("): pass", ", a=0):\n        if a: self.x = 1\n        else: self.x = 2", "2"),
        ("): pass", ", a=0):\n        if a: raise ValueError\n        self.x = 2", "2"),
        ("): pass", ", a=0):\n        self.x = 1\n        if a:\n            self.x = 2", "1"),
        # What cannot be told.
        ("): pass", "): self.x = connect()", None),
        (", a): pass", ", a): self.x = a", None),
        (", a): self.a = a + 1", ", a): self.a = a + 1; self.x = a", None),
        (", a=1): pass", ", a=1): self.x = a", None),
        ("): pass", ", *a): self.x = a", None),
        ("): pass", "):\n        for i in y: self.x = i", None),
        ("): pass", "):\n        try: self.x = 1\n        except E: self.x = 2", None),
        ("): pass", "):\n        self.x = 1\n        if ask(): self.x = 2", None),
        ("): pass", "):\n        if ask(): return\n        self.x = 2", None),
        ("): pass", "): self.x = [lambda: i for i in y]", None),
        # What comes apart, and what is in a block that is always run.
        ("): pass", "): self.x, self.y = 1, 2", "1"),
        ("): pass", "): (a, b), self.x = (1, 2), LIMIT", "LIMIT"),
        (
            ", a, b): self.b = b; self.a = a",
            ", a, b):\n        self.b = b; self.a = a\n        a, b = b, a\n        self.x = a",
            "self.b",
        ),
        ("): pass", "): self.x, self.y = ask()", None),
        ("): pass", "): self.x, *self.y = 1, 2", None),
        ("): pass", "):\n        with lock: self.x = 1", "1"),
        ("): pass", "):\n        with lock as a: self.x = a", None),
        ("): pass", "):\n        try: self.x = 1\n        finally: done()", "1"),
        ("): pass", "):\n        self.x = 1\n        self.x += 2", "1 + 2"),
        ("): pass", "):\n        a = 1\n        for a in y: pass\n        a += 2\n        self.x = a", None),
        (", a): self.a = a", ", a): self.a = a; self.x = [i + 1 for i in a]", "[i + 1 for i in self.a]"),
        (", a): self.a = a", ", a): self.a = a; self.x = {k: 1 for k in a}", "{k: 1 for k in self.a}"),
        (", a): self.a = a", ", a): self.a = a; self.x = [a for a in a]", None),
        (", a): self.a = a", ", a):\n        self.a = a\n        b = i\n        self.x = [b for i in a]", None),
        # What became of it on the way is not what the constructor starts with.
        ("): pass", "):\n        self.x = []\n        self.x.append(ask())", None),
        ("): pass", "):\n        self.x = {}\n        self.x[1] = ask()", None),
        ("): pass", "):\n        a = []\n        a.append(1)\n        self.x = a", None),
        (", a): self.a = a", ", a):\n        self.a = a\n        a.append(1)\n        self.x = a", "self.a"),
        (", **a): self.a = a", ", **a): self.a = a; self.x = a.get('b')", "self.a.get('b')"),
        ("): pass", "):\n        self.x = 1\n        if ask(): return\n        self.x = 2", None),
        (
            "): pass",
            "):\n        self.x = 1\n        if ask():\n            if ask(): return\n        self.x = 2",
            None,
        ),
        (
            "): pass",
            "):\n        self.x = 1\n        for i in y:\n            if i: return\n        self.x = 2",
            None,
        ),
        ("): pass", "):\n        self.x = 1\n        def f(): return 3\n        self.x = 2", "2"),
        # A way that ends early, and one that nobody has gone, since it is about a parameter that is new.
        (A_KEPT, A_NEW + "if a: self.x = 1; return\n        self.x = 2", "1 if self.a else 2"),
        (A_KEPT, A_NEW + "if a: return\n        self.x = 2", None),
        (A_KEPT, A_NEW + "self.x = 0\n        if a: return\n        self.x = 2", "0 if self.a else 2"),
        (A_KEPT, A_NEW + "self.x = 0\n        if not a: pass\n        else: return\n        self.x = 2", NOT_A),
        (A_KEPT, A_NEW + "self.x = 0\n        if a:\n            if b(): return\n        self.x = 2", None),
        (
            A_KEPT,
            A_NEW + "self.x = 0\n        if a:\n            if b: return\n            raise E\n        self.x = 2",
            "0 if self.a else 2",
        ),
        (A_KEPT, A_NEW + "if a: self.x = 1; return\n        raise E", "1"),
        (A_KEPT, A_NEW + "if a: raise E\n        else: self.x = 3; return\n        self.x = 4", "3"),
        ("): pass", ", *, b=None):\n        if not b: self.x = 5; return\n        self.x = b.size", "5"),
        (
            "): pass",
            ", b=None):\n        if b is not None:\n            self.x = b.size\n        else: self.x = 4",
            "4",
        ),
        (
            "): pass",
            ", b=()):\n        if b is None or LIMIT: self.x = 1\n        else: self.x = 4",
            "1 if () is None or LIMIT else 4",
        ),
        ("): pass", ", b=(), c=1):\n        if c and not b: self.x = 1\n        else: self.x = LIMIT", "1"),
        ("): pass", ", b=1, c=1):\n        if b and c: self.x = 1\n        else: self.x = LIMIT", "1"),
        (
            "): pass",
            ", b=LIMIT):\n        if b is None: self.x = 1\n        else: self.x = 4",
            "1 if LIMIT is None else 4",
        ),
        (", b=None): pass", ", b=None):\n        if not b: self.x = 5; return\n        self.x = b.size", None),
    ],
)
def test_what_instances_made_before_get(old_init, new_init, value):
    assert given(old_init, new_init) == value


def test_methods_that_the_constructor_calls_are_part_of_it():
    reset = "    def reset(me): me.x = 7\n"
    assert given("): pass", "): self.reset()", reset) is None  # the old class knows it
    old = "class C:\n    def __init__(self): pass\n    def read(self): return 1\n"
    new = "class C:\n    def __init__(self): self.reset()\n    def read(self): return self.x\n" + reset
    assert "`7`" in next(change.reason for change in report(old, new).changes if change.name == "C.x")
    assert refusals(old, new.replace("self.reset()", "self.reset(1)"))
    passed = new.replace("self.reset()", "self.reset(1, c=LIMIT)")
    taken = passed.replace("me): me.x = 7", "me, a, b=2, *, c):\n        if not c: raise E\n        me.x = a, b, c")
    assert "`(1, 2, LIMIT)`" in next(change.reason for change in report(old, taken).changes if change.name == "C.x")


BASE = """
LIMIT = 5
class A:
    def __init__(self, name, **options):
        self.name = name
        self.options = options
    def put(self, x=LIMIT): self.z = x
"""
CHILD = """
from pkg.a import A
LIMIT = 4
class C(A):
    def __init__(self, name, size, **options):
        {}
        self.y = size
    def read(self): return {}
"""
ON = "super().__init__(name, **options)"


def behind(before, after, more=""):
    """What live instances get for `x` of a class with a base in another module that is the same in both releases."""
    trees = [
        {"pkg/a.py": BASE, "pkg/m.py": CHILD.format(line, value) + more}
        for line, value in ((before, "1"), (after, "self.x"))
    ]
    found = report(*trees)
    texts = [change.reason for change in found.changes if change.name == "C.x" and not found.refused]
    return texts[0].split("`")[1] if texts else None


@pytest.mark.parametrize(
    ("more", "value"),
    [
        ("self.x = name.lower()", "self.name.lower()"),
        ("self.x = options.get('a')", "self.options.get('a')"),
        ("self.x = self.name + 'a'", "self.name + 'a'"),
        ("self.x = size", "self.y"),
        ("options.pop('a'); self.x = options.get('a')", None),
        ("self.x = options.pop('a')", None),
        ("self.put(); self.x = self.z", None),  # LIMIT is another one there
        ("self.put(7); self.x = self.z", "7"),
    ],
)
def test_what_the_constructors_of_bases_keep(more, value):
    by_name = ON.replace("super().__init__(", "A.__init__(self, ")
    assert behind(ON, f"{ON}; {more}") == value
    assert behind(by_name, f"{by_name}; {more}") == value


@pytest.mark.parametrize(
    ("call", "more"),
    [
        ("self.n = 1", "self.x = name"),
        ("super().__init__(size)", "self.x = name"),
        ("super().__init__(*name)", "self.x = name"),
        ("super().__init__(name, a=1, **options)", "self.x = options"),
        ("super().__init__(**options)", "self.x = name"),
        ("super(A, self).__init__(name)", "self.x = name"),
    ],
)
def test_what_a_base_keeps_of_something_else_is_not_the_parameter(call, more):
    assert behind(call, f"{call}; {more}") is None


@pytest.mark.parametrize(
    ("call", "more", "value"),
    [
        ("weigh(name)", "def weigh(n): return len(n) + 1\n", "weigh(self.name)"),
        ("weigh(name)", "def weigh(n): return len(n.pop())\n", None),
        ("weigh(name)", "def weigh(n): return open(n)\n", None),
        ("weigh(name)", "from somewhere import weigh\n", None),
        ("next(name)", "", None),
        ("self.weigh()", "    def weigh(self): return self.name + 'a'\n", "self.weigh()"),
        ("self.weigh(name)", "    def weigh(self, n): return [i for i in n]\n", "self.weigh(self.name)"),
        ("self.weigh()", "    def weigh(self): self.y = 2; return 1\n", None),
        ("self.weigh()", "    def weigh(self): return open(self.name)\n", None),
        ("self.weigh()", "    def weigh(self): yield 1\n", None),
        ("self.weigh()", "    @cached\n    def weigh(self): return 1\n", None),
    ],
)
def test_calls_that_do_nothing_but_compute(call, more, value):
    assert behind(ON, f"{ON}; self.x = {call}", more) == value


SETTER = "def put(self): self.x = ask()"
LINE = "\n        "
SET_FIRST = [
    f"if y: self.x = 1{LINE}else: self.put(){LINE}return self.x",
    f"if y: return 3{LINE}self.x = 1{LINE}return self.x",
    f"if y: self.x = 1; return self.x{LINE}else: raise E{LINE}return self.x",
    f"with lock: self.x = 1{LINE}return self.x",
    f"try: self.x = 1{LINE}except E: return 3{LINE}return self.x",
    f"try: self.x = 1{LINE}except E: raise{LINE}else: return self.x",
    f"try: z(){LINE}finally: self.x = 1{LINE}return self.x",
    f"self.x = 1{LINE}def f(): return self.x{LINE}return f()",
    f"for i in y:{LINE} self.x = i{LINE} z(self.x)",
    # What asks for it.
    f"try: return self.x{LINE}except AttributeError: self.x = 1{LINE}return self.x",
    f"try: return self.x{LINE}except (KeyError, AttributeError): return 2",
    f"try: y = self.x{LINE}except AttributeError: return 2{LINE}return self.x",
]
PERHAPS_SET = [
    f"if y: self.x = 1{LINE}return self.x",
    f"if y: self.x = 1; return 3{LINE}return self.x",
    f"try: self.x = z(){LINE}except E: pass{LINE}return self.x",
    f"with suppress(E): self.x = z(){LINE}return self.x",
    f"for i in y: self.x = i{LINE}return self.x",
    f"while y:{LINE} self.x = 1{LINE} break{LINE}return self.x",
    f"self.x = 1{LINE}del self.x{LINE}return self.x",
    f"def f(): self.x = 1{LINE}return self.x",
    f"match y:{LINE} case 1: self.x = 1{LINE}return self.x",
    f"try: return self.x{LINE}except Exception: return 2",
    f"try: z(self.x){LINE}except AttributeError: pass",  # `z` may be about another attribute
    f"try: return self.x.y{LINE}except AttributeError: return 2",
    f"try: return self.x{LINE}except AttributeError: return self.x",
    f"try: y = self.x{LINE}except AttributeError: pass{LINE}return self.x",
    f"try: z(){LINE}except AttributeError: return self.x",
    "y.x = 1; return self.x",
]


@pytest.mark.parametrize(
    ("sets", "reads", "carried"),
    [
        ("def put(self): self.x = ask()", "self.put(); return self.x", True),
        ("def put(me):\n        me.a = 1\n        me.x = ask()", "y = self.put(); return self.x", True),
        ("async def put(self): self.x = ask()", "await self.put(); return self.x", True),
        ("async def put(self): self.x = ask()", "self.put(); return self.x", False),
        ("def put(self): self.x = ask()", "return self.x", False),
        ("def put(self): self.x = ask()", "other.put(); return self.x", False),
        ("def put(self): self.x = ask()", "y = self.x; self.put()", False),
        ("def put(self): self.x = ask()", "if y: self.put()\n        return self.x", False),
        ("def put(self):\n        if y: self.x = ask()", "self.put(); return self.x", False),
        ("def put(self):\n        if y: return\n        self.x = ask()", "self.put(); return self.x", False),
        ("def put(self): self.x = yield", "self.put(); return self.x", False),
        ("@other\n    def put(self): self.x = ask()", "self.put(); return self.x", False),
        # On all ways, or not.
        ("def put(self):\n        if y: self.x = ask(); return\n        self.x = 1", "self.put(); return self.x", True),
        ("def put(self):\n        if y: raise E\n        self.x = ask()", "self.put(); return self.x", True),
        ("def put(self): self.more()\n    def more(self): self.x = ask()", "self.put(); return self.x", True),
        ("def put(self): self.more()\n    def more(self): self.put()", "self.put(); self.x = self.x", False),
        ("def put(self): self.x = self.x + 1", "self.put(); return self.x", False),
        *((SETTER, reads, True) for reads in SET_FIRST),
        *((SETTER, reads, False) for reads in PERHAPS_SET),
    ],
)
def test_a_method_that_calls_first_what_sets_the_attribute(sets, reads, carried):
    old = "class C:\n    async def read(self):\n        return 1\n    {}\n"
    new = old.replace("return 1", reads).format(sets)
    assert bool(refusals(old.format("a = 1"), new)) != carried


def test_a_method_of_a_class_that_sets_the_attribute_itself_is_about_that_one():
    old = """
    class C:
        def __init__(self): pass
    class D:
        def __init__(self, n=1): pass
        def read(self): return 1
        def other(self, c): return 1
    """
    new = old.replace("self): pass", "self): self.x = ask()").replace("n=1): pass", "n=1, k=2): self.x = k")
    assert not refusals(old, new.replace("read(self): return 1", "read(self): return self.x"))
    (refused,) = refusals(old, new.replace("c): return 1", "c): return c.x"))
    assert "D.other: it reads the attribute 'x', which the old C never sets" in refused


def test_an_attribute_that_became_a_property():
    old = "class C:\n    def __init__(self): self.p = 1\n    def read(self): return 1\n"
    new = """class C:
    def __init__(self): self._p = 1
    def read(self): return self._p
    @property
    def p(self): return self._p
"""
    assert "`self.__dict__['p']`" in next(c.reason for c in report(old, new).changes if c.name == "C._p")


@pytest.mark.parametrize(
    "old_use", ["def g(x): return hasattr(x, 'new')", "def g(x): return getattr(x, 'new', None)", None]
)
def test_old_code_that_would_notice(old_use):
    old = OLD + "    " + (old_use or "")
    new = with_new("return self.new") + "    " + (old_use or "")
    assert bool(refusals(old, new)) == bool(old_use)


def test_no_default_for_slots_or_for_what_new_code_deletes():
    assert refusals(OLD, with_new("del self.new; return self.new"))
    old = "class C:\n    __slots__ = ('a',)\n    def read(self): return 1\n"
    new = "class C:\n    __slots__ = ('a',)\n    def __init__(self): self.b = 1\n    def read(self): return self.b\n"
    assert refusals(old, new)


def test_an_attribute_that_each_world_sees_in_its_own_form():
    old = "class C:\n    def __init__(self): self.x = 0\n    def read(self): return self.x\n"
    new = old.replace("= 0", "= b''").replace("return self.x", "return len(self.x)")
    assert "each world sees its own" in " ".join(change.reason for change in report(old, new).functions)
    more = "def g(c): c.x = 5\n"
    assert "starts as" in refusals(old + more, new + more)[0]


FACTORY = """class C:
    __init__ = None
    @classmethod
    def make(cls, source, size=1):
        kept = ask()
        c = cls.from_other(source)
        c.name = source
        {}
        return c
    def read(self): return {}
"""


@pytest.mark.parametrize(
    ("sets", "value"),
    [
        ("c.x = 1", "1"),
        ("c.x = c.title.lower()", "self.title.lower()"),
        ("c.x = c.name.lower()", None),
        ("c.x = 1 if LIMIT else 2", "1 if LIMIT else 2"),
        ("if c.size: c.x = 1\n        else: c.x = 2", "1 if self.size else 2"),
        ("c.x = size", None),
        ("c.x = kept", None),
        ("c.x = ask()", None),
        ("c.x = cls.other", None),
        ("if c.size: c.x = 1", None),
        ("if c.size: return c\n        c.x = 1", None),
        ("c.x = []; c.x.append(1)", None),
        ("c.x = 1\n        del c.x", None),
        ("c.x = 1; c = c", None),
        ("c.x = 1\n        return c\n    def put(self): self.x = []", None),
        (
            "c.x = 1\n        return c\n    @classmethod\n    def copy(cls, c):\n        d = cls()\n        d.x = 2",
            None,
        ),
    ],
)
def test_what_a_class_method_gives_an_instance_that_it_makes(sets, value):
    found = report(FACTORY.format("pass", "1"), FACTORY.format(sets, "self.x"))
    texts = [change.reason for change in found.changes if change.name == "C.x" and not found.refused]
    assert (texts[0].split("`")[1] if texts else None) == value
