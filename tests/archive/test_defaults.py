"""Attributes that live instances lack: given when new code reads them, unseen by old code, gone with the patch."""

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
