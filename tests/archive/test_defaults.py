"""Attributes that live instances lack: given when new code reads them, unseen by old code, gone with the patch."""

import dataclasses
import sys
import threading

from tests.archive.conftest import write
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.archive import fit, format
from livepatch.build import from_trees

OLD = """
import threading

LIMIT = 3

class Base:
    def __init__(self, name):
        self.name = name

class C(Base):
    def __init__(self, name):
        super().__init__(name)
    def read(self): return 1
    def tell(self): return sorted(vars(self))

class Slotted:
    __slots__ = ("a",)
    def read(self): return 1
"""

NEW = OLD.replace(
    """        super().__init__(name)
    def read(self): return 1
""",
    """        super().__init__(name)
        self.items = []
        self.limit = LIMIT + 1
        self.__lock = threading.Lock()
        self.title = self.name.upper()
    def read(self):
        with self.__lock:
            self.items.append(self.limit)
        return self.title, self.items
""",
)


def test_instances_get_their_own_and_keep_it(package):
    package.have({M: OLD})
    m = package.load()
    one, two = m.C("one"), m.C("two")
    before = dict(vars(m.C))
    patch = package.bind({M: NEW})
    enabled(patch)
    assert one.tell() == ["name"]
    assert one.read() == ("ONE", [4])
    assert one.read() == ("ONE", [4, 4])
    assert two.read() == ("TWO", [4])
    assert type(vars(one)["_C__lock"]) is type(threading.Lock())
    assert m.C("three").tell() == ["_C__lock", "items", "limit", "name", "title"]
    assert not hasattr(m.C, "items")
    disabled(patch)
    assert one.read() == 1
    assert dict(vars(m.C)) == before
    assert not hasattr(m.C("four"), "items")


def test_a_constructor_that_returns_early_gives_each_what_its_way_would_have(package):
    package.have({M: OLD})
    m = package.load()
    named, unnamed = m.C("one"), m.C("")
    before = dict(vars(m.C))
    new = OLD.replace(
        "def __init__(self, name):\n        super()", "def __init__(self, name, *, user=None):\n        super()"
    )
    new = new.replace(
        "super().__init__(name)\n",
        """super().__init__(name)
        if not name:
            self.size = LIMIT
            return
        if user is not None:
            self.size = user.size
            return
        self.size = len(self.name)
""",
    )
    patch = package.bind({M: new.replace("self): return 1", "self): return self.size", 1)})
    enabled(patch)
    assert (named.read(), unnamed.read(), m.C("three").read()) == (3, 3, 5)
    disabled(patch)
    assert named.read() == 1
    assert dict(vars(m.C)) == before


MADE = """
class C:
    @classmethod
    def make(cls, name):
        made = cls()
        made.name = name
        return made
    def read(self): return 1
"""


def test_instances_made_by_a_class_method_get_what_it_gives_them_now(package):
    package.have({M: MADE})
    m = package.load()
    one = m.C.make("one")
    before = dict(vars(m.C))
    new = MADE.replace("= name\n", "= name\n        made.seen = []\n").replace("return 1", "return self.seen")
    patch = package.bind({M: new})
    enabled(patch)
    one.read().append(1)
    assert (one.read(), m.C.make("two").read(), m.C().read()) == ([1], [], [])
    disabled(patch)
    assert one.read() == 1
    assert dict(vars(m.C)) == before


def test_many_threads_get_the_same_object(package):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind({M: NEW})
    enabled(patch)
    interval = sys.getswitchinterval()
    sys.setswitchinterval(2e-5)
    try:
        for _ in range(50):
            c = m.C.__new__(m.C)
            c.name = "c"
            found = []
            threads = [threading.Thread(target=lambda c=c, f=found: f.append(id(c.items))) for _ in range(4)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            assert len(set(found)) == 1
    finally:
        sys.setswitchinterval(interval)
    disabled(patch)


def test_a_subclass_that_has_the_attribute_already(package):
    package.have({M: OLD})
    m = package.load()

    class Child(m.C):
        items = ("mine",)

    class Other(m.C):
        def __init__(self):
            self.name, self.items = "other", ["own"]

    patch = package.bind({M: NEW.replace("append(self.limit)", "index(0, 0, 0) if 0 else 0")})
    child, other = Child("c"), Other()
    enabled(patch)
    assert child.read() == ("C", ("mine",))
    assert other.read() == ("OTHER", ["own"])
    disabled(patch)


def test_hooks_say_what_the_source_does_not(package):
    package.have({M: OLD})
    m = package.load()
    one = m.C("one")
    new = NEW.replace("self.items = []", "self.items = ask()").replace(
        "import threading", "import threading\ndef ask(): return threading.enumerate()[:0]"
    )
    write(package.root / "new", {"lp_pkg/__init__.py": "", M: new})
    build = from_trees(package.old, package.root / "new")
    (refused,) = build.report.refused
    assert '{"lp_pkg.m:C.items": lambda instance: ...}' in refused.hint
    hooks = b"__livepatch_attributes__ = {'lp_pkg.m:C.items': lambda c: [c.name]}"
    patch = fit.bind(format.read(build.hooked(hooks).archive("fix", hooks=hooks)))
    enabled(patch)
    assert one.read() == ("ONE", ["one", 4])
    disabled(patch)
    assert "must say in __livepatch_attributes__" in refusal(
        lp.enable_patch,
        fit.bind(format.read(build.hooked(hooks).archive("fix", hooks=b"__livepatch_attributes__ = {}"))),
    )


def test_a_class_that_does_not_fit_is_refused_before_anything_is_changed(package):
    package.have({M: OLD})
    m = package.load()
    m.Base.items = 1
    before = dict(vars(m.C))
    archive = package.archive({M: NEW})
    assert "'C.items' exists already in the live 'Base'" in refusal(fit.bind, archive)
    assert dict(vars(m.C)) == before


KEPT = """
LIMIT = 9

class Kept:
    def __init__(self, name, *, size=LIMIT):
        self.name = name
        self.grow(size)
    def grow(self, size): self.size = size
"""
BEHIND = """
from lp_pkg.kept import Kept

LIMIT = 3

def words(text, sep="-"): return [part.title() for part in text.split(sep)]

class C(Kept):
    def __init__(self, name, size):
        super().__init__(name, size=size)
    def read(self): return 1
    def more(self): return [self.name, LIMIT]
"""
AHEAD = BEHIND.replace("return 1", "return self.words, self.limits, self.pair").replace(
    "size=size)\n",
    "size=size)\n        self.words, (self.limits, self.pair) = words(name), ([size, LIMIT], self.more())\n",
)


def test_what_takes_more_than_the_class_to_see_travels_in_the_archive(package):
    package.have({M: BEHIND, "lp_pkg/kept.py": KEPT})
    m = package.load()
    one = m.C("a-b", 5)
    before, has = dict(vars(m.C)), dict(vars(one))
    archive = package.archive({M: AHEAD})
    (entry,) = archive.manifest.objects
    values = {default.name: default.value for default in entry.defaults}
    assert values == {"C.words": "words(self.name)", "C.limits": "[self.size, LIMIT]", "C.pair": "self.more()"}
    patch = fit.bind(format.read(format.write(archive)))
    enabled(patch)
    expected = (["A", "B"], [5, 3], ["a-b", 3])
    assert one.read() == m.C("a-b", 5).read() == expected
    assert one.read()[0] is one.words
    disabled(patch)
    assert (one.read(), m.C("c", 1).read()) == (1, 1)
    assert dict(vars(m.C)) == before
    assert vars(one).items() >= has.items()
    for strange in ("1 +", "yield 1", "x = 1", "(" * 300):
        broken = dataclasses.replace(entry.defaults[0], value=strange)
        objects = (dataclasses.replace(entry, defaults=(broken,)),)
        changed = dataclasses.replace(archive, manifest=dataclasses.replace(archive.manifest, objects=objects))
        assert "a default that is no expression" in refusal(fit.bind, changed)
    assert dict(vars(m.C)) == before
