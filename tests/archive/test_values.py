"""Values in a live process: each task sees those of its own world, and nothing is left of them afterwards."""

import sys
import threading

import pytest
from tests.archive.kit import M, disabled, enabled, in_both_worlds, namespace, refusal
from tests.core.kit import Gate

import livepatch as lp
from livepatch.testing import finish, manual_rounds

OLD = """
    import re
    from types import MappingProxyType
    LIMIT = 1
    WORDS = ["a", "b"]
    PATTERN = re.compile("a+")
    TABLE = {}
    for word in WORDS:
        TABLE[word] = LIMIT
    TABLE["more"] = {"limit": LIMIT}
    VIEW = MappingProxyType(TABLE)
    DOUBLE = [LIMIT * 2 for _ in range(2)]
    TEXT = "at most %(LIMIT)s" % locals()
    CALLS = [lambda: LIMIT]

    def both(gate=lambda: None):
        first = LIMIT
        gate()
        return first, LIMIT

    def default(x=LIMIT, *, y=DOUBLE): return x, y
    def derived(): return TABLE, VIEW["a"], DOUBLE, TEXT, PATTERN.pattern
    def closure():
        def inner(): return LIMIT
        return inner
    class C:
        limit = LIMIT
        twice = limit * 2
        def m(self, x=limit): return self.limit, self.twice, x, C.limit, LIMIT
    class D(C):
        limit = C.limit + 10
"""
NEW = OLD.replace("LIMIT = 1", "LIMIT = 5").replace('"a+"', '"b+"')


def results(m):
    return [m.both(), m.default(), m.derived(), m.closure()(), m.C().m(), m.D().m(), m.CALLS[0]()]


def expected(limit, pattern):
    table = {"a": limit, "b": limit, "more": {"limit": limit}}
    two = [limit * 2] * 2
    return [
        (limit, limit),
        (limit, two),
        (table, limit, two, f"at most {limit}", pattern),
        limit,
        (limit, limit * 2, limit, limit, limit),
        (limit + 10, limit * 2, limit, limit, limit),
        limit,
    ]


def test_what_is_made_of_a_constant_follows_and_comes_back(package):
    package.have({M: OLD})
    m = package.load()
    before = namespace(m), {cls: namespace(cls) for cls in (m.C, m.D)}
    assert results(m) == expected(1, "a+")
    patch = package.bind({M: NEW})
    enabled(patch)
    assert results(m) == expected(5, "b+")
    disabled(patch)
    assert results(m) == expected(1, "a+")
    after = namespace(m), {cls: namespace(cls) for cls in (m.C, m.D)}
    assert after == before
    assert all(after[0][name] is value for name, value in before[0].items())
    assert type(m) is type(sys)


@pytest.fixture
def gate():
    made = Gate()
    yield made
    made.open()


def test_tasks_in_old_code_see_old_values_until_they_move(package, worker, gate):
    package.have({M: OLD, "lp_pkg/n.py": "from . import m\nfrom .m import LIMIT as L\ndef f(): return m.LIMIT, L"})
    n = package.load("lp_pkg.n")
    m = sys.modules["lp_pkg.m"]
    patch = package.bind({M: NEW})

    def hold(gate):
        return m.both(gate)

    def look():
        return results(m), n.f()

    old, new = (expected(1, "a+"), (1, 1)), (expected(5, "b+"), (5, 5))
    look_old = old
    assert look() == look_old
    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, gate, hold, look)
    assert held == (1, 1), "it was in the middle of the old version"
    assert entered == new
    assert held_new == (5, 5)
    assert left == old
    assert look() == old


def test_going_back_in_the_middle(package, worker, gate):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind({M: NEW})
    with manual_rounds():
        stayed = worker.begin(m.both, gate)
        gate.arrived()
        lp.enable_patch(patch)
        assert results(m) == expected(5, "b+")
        lp.disable_patch(patch.name)
        assert worker is not None
        gate.open()
        assert stayed.result(60) == (1, 1)
        finish()
    assert results(m) == expected(1, "a+")
    lp.unload_patch(patch.name)


def test_a_going_that_is_called_off(package, worker, gate):
    package.have({M: OLD})
    m = package.load()
    patch = package.bind({M: NEW})
    enabled(patch)
    with manual_rounds():
        stayed = worker.begin(m.both, gate)
        gate.arrived()
        lp.disable_patch(patch.name)
        assert results(m) == expected(1, "a+")
        lp.write_enabled(patch.name, 1)
        assert vars(m)["LIMIT"] == 5, "it has not changed yet"
        gate.open()
        assert stayed.result(60) == (5, 5)
        finish()
    assert results(m) == expected(5, "b+")
    disabled(patch)
    assert results(m) == expected(1, "a+")


def test_what_is_new_reads_new_values_from_the_beginning(package, worker, gate):
    old = "LIMIT = 1\ndef f(gate=lambda: None):\n    gate()\n    return LIMIT\n"
    new = """
        LIMIT = 2
        MORE = [LIMIT]
        class New:
            limit = LIMIT
            def m(self): return LIMIT
        def added(): return LIMIT, MORE, New.limit, New().m()
        def f(gate=lambda: None):
            gate()
            return added()
    """
    package.have({M: old})
    m = package.load()
    patch = package.bind({M: new})
    with manual_rounds():
        stayed = worker.begin(m.f, gate)
        gate.arrived()
        lp.enable_patch(patch)
        assert m.f() == (2, [2], 2, 2)
        gate.open()
        assert stayed.result(60) == 1
        finish()
    m.LIMIT = 3  # somebody who configures it, or a mock
    assert m.added() == (3, [2], 2, 3)
    m.LIMIT = 2
    disabled(patch)
    assert m.f() == 1


@pytest.mark.parametrize(
    ("old", "change", "new"),
    [
        ("WORDS = {'a'}", "m.WORDS.add('b')", "WORDS = frozenset({'a', 'c'})"),
        ("TABLE = {}\nTABLE['a'] = 1", "m.TABLE['b'] = 2", "TABLE = {}\nTABLE['a'] = 2"),
        ("LIMIT = 1", "m.LIMIT = 7", "LIMIT = 2"),
        ("class C:\n    x = [1]", "m.C.x.append(2)", "class C:\n    x = [2]"),
    ],
)
def test_what_somebody_has_changed_is_not_lost(package, old, change, new):
    package.have({M: old})
    m = package.load()
    patch = package.bind({M: new})
    exec(change, {"m": m})
    before = namespace(m)
    assert "was changed after the module had been imported" in refusal(lp.enable_patch, patch)
    assert namespace(m) == before


def test_what_somebody_has_put_there_meanwhile_stays(package):
    package.have({M: "LIMIT = 1\ndef f(): return LIMIT"})
    m = package.load()
    patch = package.bind({M: "LIMIT = 2\ndef f(): return LIMIT"})
    enabled(patch)
    m.LIMIT = 9
    assert m.f() == 9
    disabled(patch)
    assert m.f() == 9


def test_one_patch_after_another_goes_back_to_before_both(package):
    source = "LIMIT = 1\nclass C:\n    x = 1\ndef f(): return LIMIT, C.x"
    package.have({M: source})
    m = package.load()
    first = package.bind({M: source.replace("1", "2")}, "first")
    enabled(first)
    package.have({M: source.replace("1", "2")})
    second = package.bind({M: source.replace("1", "3")}, "second")
    enabled(second)
    assert m.f() == (3, 3)
    disabled(first)
    assert m.f() == (3, 3)
    disabled(second)
    assert m.f() == (1, 1)


def test_what_the_module_has_deleted_at_its_end_is_made_for_what_needs_it_and_not_left_there(package):
    source = """
        import re
        from collections import namedtuple
        __version__ = "1.2"
        info = namedtuple("info", "major minor")
        _found = re.match(r"(\\d+)[.](\\d+)", __version__).groups()
        VERSION = info(int(_found[0]), int(_found[1]))
        del _found
        del re
        def f(): return VERSION
    """
    package.have({M: source})
    m = package.load()
    names = set(vars(m))
    patch = package.bind({M: source.replace("1.2", "1.3")})
    enabled(patch)
    assert m.f() == m.info(1, 3)
    assert set(vars(m)) == names
    disabled(patch)
    assert m.f() == m.info(1, 2)
    assert set(vars(m)) == names


def test_a_module_that_comes_later(package):
    package.have({M: OLD, "lp_pkg/n.py": "def f(): return 1"})
    n = package.load("lp_pkg.n")
    patch = package.bind({M: NEW, "lp_pkg/n.py": "def f(): return 2"})
    enabled(patch)
    m = package.load()
    assert (n.f(), results(m)) == (2, expected(5, "b+"))
    disabled(patch)
    assert results(m) == expected(1, "a+")


def test_attributes_of_classes(package, worker, gate):
    old = """
        class Base:
            inherited = "base"
            def __getattr__(self, name): return "computed " + name
        class C(Base):
            kept = {"a": 1}
            __private = 1
            def __init__(self): self.own = self.kept
            def see(self, gate=lambda: None):
                gate()
                return self.kept, self.inherited, self.used, self.__private, super().inherited, C.kept, type(self).kept
        class D(C):
            kept = "of its own"
    """
    new = old.replace('{"a": 1}', '{"a": 2}\n            inherited = "here"\n            used = "defined"')
    new = new.replace("__private = 1", "__private = 2")
    package.have({M: old})
    m = package.load()
    before = {cls: namespace(cls) for cls in (m.Base, m.C, m.D)}
    c, other = m.C(), m.C()
    other.kept = "the instance's"
    patch = package.bind({M: new})

    def look():
        return c.see(), other.see()[0], m.D().see()[0], m.C.kept

    def seen(kept, inherited, used, private):
        first = kept, inherited, used, private, "base", kept, kept
        return first, "the instance's", "of its own", kept

    old_values = {"a": 1}, "base", "computed used", 1
    new_values = {"a": 2}, "here", "defined", 2
    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, gate, c.see, look)
    assert held == seen(*old_values)[0]
    assert entered == seen(*new_values)
    assert held_new == seen(*new_values)[0]
    assert left == seen(*old_values)
    for cls, names in before.items():
        assert namespace(cls) == names
        assert all(vars(cls)[name] is value for name, value in names.items())


def test_an_instance_that_was_made_with_a_changed_default(package):
    old = """
        class Policy:
            WORDS = frozenset(["a"])
            def __init__(self, words=WORDS):
                self.words = sorted(words)
        Policy.DEFAULT = Policy()
        def get(): return Policy.DEFAULT.words, Policy().words
    """
    package.have({M: old})
    m = package.load()
    default = m.Policy.DEFAULT
    archive = package.archive({M: old.replace('["a"]', '["a", "b"]')})
    patch = package.bind({M: old.replace('["a"]', '["a", "b"]')}, "again")
    (late,) = [c for c in archive.manifest.objects[0].at_completion if c.name == "Policy.DEFAULT"]
    assert late.how == "made late"
    enabled(patch)
    assert m.get() == (["a", "b"], ["a", "b"])
    assert default.words == ["a"], "whoever holds the old one keeps it"
    disabled(patch)
    assert m.Policy.DEFAULT is default
    assert m.get() == (["a"], ["a"])


def test_what_a_metaclass_has_computed_on_first_use(package):
    old = """
        class Meta(type):
            def compiled(cls):
                return {name: len(value) for c in cls.__mro__ for name, value in c.__dict__.get("rules", {}).items()}
            def __call__(cls, *args):
                if "_rules" not in cls.__dict__:
                    cls._steps = 0
                    cls._rules = cls.compiled()
                return type.__call__(cls, *args)
        class Base(metaclass=Meta):
            def look(self): return self._rules
        class A(Base):
            rules = {"one": "a"}
        class B(A): pass
        class Later(A): pass
    """
    package.have({M: old})
    m = package.load()
    a, b = m.A(), m.B()
    compiled = vars(m.A)["_rules"], vars(m.B)["_rules"]
    patch = package.bind({M: old.replace('"a"', '"aaa"')})
    enabled(patch)
    assert (a.look(), b.look(), m.A().look()) == ({"one": 3},) * 3
    later = m.Later()
    assert later.look() == {"one": 3}
    disabled(patch)
    assert (vars(m.A)["_rules"], vars(m.B)["_rules"]) == compiled
    assert all(now is was for now, was in zip((a.look(), b.look()), compiled, strict=True))
    assert later.look() == {"one": 1}


def test_attributes_of_other_modules(package):
    old = "import re, types\ncopy = types.ModuleType('copy')\ncopy.end = re.compile('a')\ndef f(): return copy\n"
    package.have({M: old})
    m = package.load()
    end = m.copy.end
    patch = package.bind({M: old.replace("'a'", "'b'") + "copy.start = re.compile('c')"})
    enabled(patch)
    assert (m.copy.end.pattern, m.copy.start.pattern) == ("b", "c")
    disabled(patch)
    assert m.copy.end is end
    assert not hasattr(m.copy, "start")


def test_results_in_caches_are_dropped(package):
    old = "import functools\nLIMIT = 1\n@functools.cache\ndef f(): return LIMIT\n@functools.cache\ndef g(): return f()"
    package.have({M: old})
    m = package.load()
    assert m.f() == 1
    patch = package.bind({M: old.replace("1", "2")})
    enabled(patch)
    assert m.f() == 2
    disabled(patch)
    assert m.f() == 1


def test_a_value_that_cannot_be_evaluated_here_changes_nothing(package):
    package.have({M: "import os\nLIMIT = 1\ndef f(): return LIMIT"})
    m = package.load()
    before = namespace(m)
    patch = package.bind({M: "import os\nLIMIT = len(os.nothing)\ndef f(): return LIMIT"})
    assert "failed: AttributeError" in refusal(lp.enable_patch, patch)
    assert namespace(m) == before
    assert threading.current_thread() is threading.main_thread()


def test_instances_that_have_a_copy_of_all_names_get_the_new_one(package):
    settings = """
        from . import m
        class Settings:
            def __init__(self):
                for name in dir(m):
                    if name.isupper():
                        setattr(self, name, getattr(m, name))
        class Other: pass
        settings = Settings()
        def limit(): return settings.LIMIT
    """
    package.have({M: "LIMIT = 1", "lp_pkg/n.py": settings})
    n = package.load("lp_pkg.n")
    another, own, other = n.Settings(), n.Settings(), n.Other()
    own.MAXIMUM = 7
    before = [dict(vars(thing)) for thing in (n.settings, another, own, other)]
    new = {M: "LIMIT = 1\nMAXIMUM = 2", "lp_pkg/n.py": settings.replace("settings.LIMIT", "settings.MAXIMUM")}
    patch = package.bind(new)
    enabled(patch)
    assert (n.limit(), another.MAXIMUM, own.MAXIMUM, n.Settings().MAXIMUM) == (2, 2, 7, 2)
    assert vars(other) == {}
    disabled(patch)
    assert n.limit() == 1
    assert [vars(thing) for thing in (n.settings, another, own, other)] == before


RELEASE = """
    from .v import __version__
    from . import v
    AGENT = "lp/" + __version__
    class C:
        agent = AGENT
        banner = "lp_{}".format(v.__version__)
    def f(gate, sent=AGENT): return gate(), sent, AGENT, C.agent, C.banner
"""


def test_what_importers_make_of_a_version_follows_when_the_transition_is_over(package, worker):
    package.have({M: RELEASE, "lp_pkg/v.py": "__version__ = '1'"})
    m = package.load()
    before, of_class = namespace(m), dict(vars(m.C))
    new = RELEASE.replace("return gate()", "return 'new', gate()")
    patch = package.bind({M: new, "lp_pkg/v.py": "__version__ = '2'"})
    entered, (held, _), _, (held_new, _) = in_both_worlds(patch, worker, None, m.f, lambda: m.f(int))
    old = ("lp/1", "lp/1", "lp/1", "lp_1")
    assert held[1:] == old
    assert entered == ("new", 0, "lp/2", *old[1:])  # its default is its own, what describes the release is nobody's
    assert held_new[:1] == ("new",)
    assert m.f(int)[1:] == old
    assert namespace(m) == before
    assert dict(vars(m.C)) == of_class
    enabled(patch)
    assert m.f(int) == ("new", 0, "lp/2", "lp/2", "lp/2", "lp_2")
    disabled(patch)
    assert m.f(int)[1:] == old


ONE_LINE = """
    class C: limit = 1
    class Outer:
        class D(C): more = C.limit + 1; word = "w"
    def f(gate): return gate(), C.limit, Outer.D.limit, {0}
"""


@pytest.mark.parametrize("look", ["C().limit", "Outer.D.more"])
def test_a_class_body_on_the_line_of_its_class(package, worker, look):
    package.have({M: ONE_LINE.format(look)})
    m = package.load()
    before, of_class, of_inner = namespace(m), dict(vars(m.C)), dict(vars(m.Outer.D))
    new = ONE_LINE.format(look).replace('word = "w"', "").replace("limit = 1", "limit = 5")
    patch = package.bind({M: new})
    entered, (held, _), left, (held_new, _) = in_both_worlds(patch, worker, None, m.f, lambda: m.f(int)[1:])
    first, second = ((1, 1, 1), (5, 5, 5)) if look == "C().limit" else ((1, 1, 2), (5, 5, 6))
    assert (held[1:], entered, held_new[1:], left) == (first, second, second, first)
    assert namespace(m) == before
    assert (dict(vars(m.C)), dict(vars(m.Outer.D))) == (of_class, of_inner)
