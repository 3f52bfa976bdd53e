"""Members that are exchanged as a whole: each world sees its own, and afterwards all is as the source says."""

import asyncio
import queue
import threading

import pytest
from tests.archive.kit import M, disabled, enabled, refusal
from tests.build.kit import refusals
from tests.core import kit

import livepatch as lp
from livepatch.archive import fit
from livepatch.testing import finish, manual_rounds

HEAD = """
    import abc, contextlib, functools

    def stay(probe):
        return "old", probe()

    def plain(function):
        @functools.wraps(function)
        def wrapper(*args):
            return "wrapped", function(*args)
        return wrapper

    class Base:
        def m(self): return "Base.m"
        def __eq__(self, other): return "Base.__eq__"
        __hash__ = object.__hash__
        def __len__(self): return 3

"""


class Old:
    """A thread in a function that the patch changes: it stays in the old world until it is let go."""

    def __init__(self, module):
        self._asked, self._told = queue.Queue(), queue.Queue()
        self._thread = threading.Thread(target=module.stay, args=(self._probe,), daemon=True)
        self._thread.start()
        self("started")

    def _probe(self):
        while (question := self._asked.get()) is not None:
            try:
                self._told.put(question() if callable(question) else question)
            except Exception as error:
                self._told.put(error)

    def __call__(self, question):
        """What it sees."""
        self._asked.put(question)
        return self._told.get(timeout=60)

    def leave(self):
        self._asked.put(None)
        self._thread.join()


@pytest.fixture
def worlds(package):
    """Patch a module while a thread stays in the old world, and ask both worlds; then all, then without the patch."""

    def run(old, new, question, *, name="fix"):
        old, new = HEAD + old, HEAD.replace('"old", probe()', '"new", probe()') + new
        package.have({M: old})
        module = package.load()
        asked = question(module)
        before, kept = asked(), {c: dict(vars(c)) for c in vars(module).values() if isinstance(c, type)}
        with manual_rounds():
            staying = Old(module)
            patch = package.bind({M: new}, name)
            lp.enable_patch(patch)
            assert module.stay(lambda: 1)[0] == "new"
            during = staying(asked), asked()
            assert staying(asked) == before
            staying.leave()
            finish()
            after = asked()
            assert during == (before, after)
            staying = Old(module)
            lp.disable_patch(name)
            back = staying(asked), asked()
            assert back == (after, before)
            staying.leave()
            finish()
        assert asked() == before
        for cls, members in kept.items():
            assert {k: v for k, v in vars(cls).items() if k not in ("__doc__",)} == {
                k: v for k, v in members.items() if k not in ("__doc__",)
            }
        lp.unload_patch(name)
        return before, after

    return run


C = "    class C(Base):\n        def __init__(self, *a): self.a = a\n"


def test_a_static_method_becomes_a_class_method(worlds):
    old = C + "        @staticmethod\n        def f(x): return 'static', x\n"
    new = C + "        @classmethod\n        def f(cls, x): return cls.__name__, x\n"

    def question(m):
        child = type("Child", (m.C,), {})
        one = child()
        return lambda: (one.f(1), m.C.f(2), child.f(3))

    before, after = worlds(old, new, question)
    assert before == (("static", 1), ("static", 2), ("static", 3))
    assert after == (("Child", 1), ("C", 2), ("Child", 3))


def test_a_method_goes_and_the_inherited_one_takes_its_place(worlds):
    old = C + "        def m(self): return 'C.m'\n"

    def question(m):
        one = m.C()
        return lambda: (one.m(), m.C.m(one), super(m.C, one).m())

    assert worlds(old, C, question) == (("C.m", "C.m", "Base.m"), ("Base.m",) * 3)


def test_a_method_over_an_inherited_one(worlds):
    new = C + "        def m(self): return 'C.m', super().m()\n"

    def question(m):
        one = m.C()
        return lambda: one.m()

    assert worlds(C, new, question) == ("Base.m", ("C.m", "Base.m"))


@pytest.mark.parametrize(
    ("member", "use", "answers"),
    [
        ("def __repr__(self): return 'new'", lambda c: repr(c)[-3:] == "new", (False, True)),
        ("def __hash__(self): return 7", lambda c: hash(c) == 7, (False, True)),
        ("def __bool__(self): return False", bool, (True, False)),
        ("def __contains__(self, x): return x == 9", lambda c: 9 in c, (False, True)),
        ("def __call__(self): return 1", lambda c: _failing(c), (TypeError, 1)),
        ("def __getattr__(self, name): return name", lambda c: _failing(lambda: c.zz), (AttributeError, "zz")),
        (
            "def __enter__(self): return 1\n        def __exit__(self, *a): pass",
            lambda c: _failing(_with(c)),
            (None, 1),
        ),
    ],
)
def test_what_the_interpreter_calls_by_itself(worlds, member, use, answers):
    more = "        def __iter__(self): return iter((1, 2))\n"

    def question(m):
        one = m.C()
        return lambda: use(one)

    found = worlds(C + more, C + more + f"        {member}\n", question)
    assert found == answers or (answers[0] is None and found[1] == answers[1])


def _with(c):
    def use():
        with c as found:
            return found

    return use


def _failing(action):
    try:
        return action()
    except Exception as error:
        return type(error)


def test_equality_and_hash_go_together(worlds):
    new = C + "        def __eq__(self, other): return 'C.__eq__'\n"

    def question(m):
        one = m.C()
        return lambda: (one == 1, _failing(lambda: isinstance(hash(one), int)))

    assert worlds(C, new, question) == (("Base.__eq__", True), ("C.__eq__", TypeError))


def test_equality_goes_and_the_hash_comes_back(worlds):
    old = C + "        def __eq__(self, other): return 'C.__eq__'\n"

    def question(m):
        one = m.C()
        return lambda: (one == 1, _failing(lambda: isinstance(hash(one), int)))

    assert worlds(old, C, question) == (("C.__eq__", TypeError), ("Base.__eq__", True))


def test_an_attribute_becomes_a_property(worlds):
    old = "    class C:\n        def __init__(self): self.p = 1\n        def use(self): return self.p\n"
    new = """    class C:
        def __init__(self): self._p = 1
        def use(self): return self.p
        @property
        def p(self): return "property", self._p
        @p.setter
        def p(self, value): self._p = value
"""

    def question(m):
        one = m.C.__new__(m.C)
        one.__dict__["p"] = one.__dict__["_p"] = 5
        return lambda: (one.p, one.use())

    assert worlds(old, new, question) == ((5, 5), (("property", 5), ("property", 5)))


def test_a_property_gets_a_setter_and_becomes_a_method(worlds):
    old = C + "        @property\n        def p(self): return self.a\n"
    new = old + "        @p.setter\n        def p(self, value): self.a = value\n"

    def question(m):
        one = m.C(1)
        return lambda: (one.p, _failing(lambda: setattr(one, "p", (1,))))

    assert worlds(old, new, question) == (((1,), AttributeError), ((1,), None))


def test_a_property_becomes_a_method(worlds):
    old = C + "        @property\n        def p(self): return self.a\n"

    def question(m):
        one = m.C(1)
        return lambda: one.p() if callable(one.p) else one.p

    assert worlds(
        old, old.replace("@property", "@staticmethod").replace("(self): return self.a", "(): return 2"), question
    )


def test_a_decorator_around_a_function_of_the_module(worlds):
    old = "    def f(x): return x\n    table = [f]\n    def g(x): return f(x)\n"
    new = old.replace("    def f(x)", "    @plain\n    def f(x)")

    def question(m):
        held = m.f
        return lambda: (m.f(1), m.g(2), m.table[0](3), held(4))

    before, after = worlds(old, new, question)
    assert before == (1, 2, 3, 4)
    assert after == tuple(("wrapped", x) for x in before)


def test_a_decorator_is_removed(worlds):
    old = "    @plain\n    def f(x): return x\n"
    assert worlds(old, old.replace("@plain\n    ", ""), lambda m: lambda: m.f(1)) == (("wrapped", 1), 1)


def test_a_coroutine_method_keeps_its_kind(worlds):
    old = C + "        @staticmethod\n        async def f(): return 'static'\n"
    new = C + "        @classmethod\n        async def f(cls): return cls.__name__\n"

    def question(m):
        import inspect

        return lambda: (inspect.iscoroutinefunction(m.C.f), asyncio.run(m.C.f()))

    assert worlds(old, new, question) == ((True, "static"), (True, "C"))


def test_other_modules_that_have_imported_it_follow(package):
    package.have(
        {M: HEAD + "    def f(): return 1\n", "lp_pkg/n.py": "from lp_pkg.m import f as g\ndef h(): return g()\n"}
    )
    m, n = package.load(), package.load("lp_pkg.n")
    was = m.f
    patch = package.bind({M: HEAD + "    @plain\n    def f(): return 1\n"})
    enabled(patch)
    assert n.h() == m.f() == ("wrapped", 1)
    assert n.g is m.f is not was
    disabled(patch)
    assert n.g is m.f is was
    assert n.h() == 1


def test_who_sees_a_call_begin_sees_it_end_in_one_world(package):
    """What is called is chosen when it is called: with an exchange at once or at the end, some calls are torn."""
    old = (
        HEAD + C + "        @staticmethod\n        def f(): return ('static', inner())\n    def inner(): return 'old'\n"
    )
    new = old.replace("@staticmethod\n        def f()", "@classmethod\n        def f(cls)").replace(
        "'static'", "'class'"
    )
    package.have({M: old})
    m = package.load()

    def hammer():
        assert m.C.f() in (("static", "old"), ("class", "new"))

    with kit.meanwhile(hammer, threads=3):
        for round in range(8):
            patch = package.bind({M: new.replace("'old'", "'new'")}, f"fix{round}")
            enabled(patch)
            disabled(patch)


def test_a_class_that_somebody_has_changed_is_refused(package):
    package.have({M: HEAD + C + "        @staticmethod\n        def f(): return 1\n"})
    m = package.load()
    archive = package.archive({M: HEAD + C + "        @classmethod\n        def f(cls): return 1\n"})
    m.kept, m.C.f = m.C.f, property(lambda self: 1)
    assert "is a property in this process" in refusal(fit.bind, archive)


def test_a_second_patch_changes_what_the_first_has_exchanged(package):
    old = HEAD + C + "        @staticmethod\n        def f(): return 'static'\n"
    new = HEAD + C + "        @classmethod\n        def f(cls): return 'class'\n"
    package.have({M: old})
    m = package.load()
    held = m.C.f
    first = package.bind({M: new}, "first")
    enabled(first)
    package.have({M: new})
    second = package.bind({M: new.replace("'class'", "'second'")}, "second")
    enabled(second)
    assert (m.C.f(), held()) == ("second", "second")
    disabled(second)
    assert (m.C.f(), held()) == ("class", "class")
    disabled(first)
    assert (m.C.f(), held()) == ("static", "static")


def test_what_a_base_of_elsewhere_has_shows_only_in_the_process(worlds):
    head = "    import collections\n    class C(collections.UserList):\n        def own(self): return 1\n"
    new = head.replace("own", "append").replace("self", "self, x=0")

    def question(m):
        def ask():
            one = m.C()
            return _failing(lambda: one.append(5)), list(one), _failing(lambda: one.own())

        return ask

    assert worlds(head, new, question) == ((None, [5], 1), (1, [], AttributeError))


# -- classes that need not be there ------------------------------------------------------------------------

OPTIONAL = """
    import sys

    def stay(probe):
        return "old", probe()

    class Base:
        def m(self): return "Base.m"

    if WHETHER:
        class C(Base):
            x = 1
    else:
        C = None
"""


@pytest.mark.parametrize("whether", ["sys.version_info > (3,)", "sys.version_info < (3,)"])
def test_a_class_below_a_condition(package, whether):
    old = OPTIONAL.replace("WHETHER", whether)
    new = old.replace("x = 1", 'x = 1\n            def m(self): return "C.m"').replace('"old", p', '"new", p')
    package.have({M: old})
    m = package.load()
    c = m.C() if m.C else None
    was, now = ("Base.m", "C.m") if c else (None, None)

    def seen():
        return c.m() if c else m.C

    before = dict(vars(m.C)) if c else None
    patch = package.bind({M: new})
    with manual_rounds():
        held = Old(m)
        lp.enable_patch(patch)
        assert m.stay(seen) == ("new", now)
        assert held(seen) == was
        held.leave()
        finish()
    assert seen() == now
    disabled(patch)
    assert seen() == was
    assert not c or dict(vars(m.C)) == before


def test_which_of_two_classes_is_meant_nobody_says():
    old = OPTIONAL.replace("WHETHER", "sys.x").replace("C = None", "class C(Base):\n            y = 1")
    assert refusals(old, old.replace("x = 1", 'x = 1\n            def m(self): return "C.m"'))
