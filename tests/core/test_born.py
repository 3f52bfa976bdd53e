"""Functions of a module that comes are born redirected: its body never runs an old version of them."""

import importlib
import sys
import textwrap
import types

import pytest
from tests.core import kit
from tests.core.test_modules import absent, on_disk

import livepatch as lp
from livepatch.core import redirect
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")
__all__ = ["on_disk"]

BODY = """
    import functools
    registry = []
    def keep(fn):
        registry.append(fn)
        return fn
    def around(fn):
        def inner(*args): return "around " + fn(*args)
        return inner
    @around
    @keep
    def decorated(x="old"): return "old " + x
    class Base:
        def hello(self): return "base"
    class Child(Base):
        def hello(self): return "old " + super().hello()
        @property
        def prop(self): return "old"
        @staticmethod
        def static(x=1, *, y="old"): return "old", x, y
        @classmethod
        def klass(cls): return "old " + cls.__name__
    @functools.lru_cache
    def cached(): return "old"
    async def coroutine(): return "old"
    def generator(): yield "old"
    async def agen(): yield "old"
    def outer(value):
        def closure(): return "old", value
        return closure
    def run(awaitable):
        try: awaitable.send(None)
        except StopIteration as stop: return stop.value
    def look():
        item = agen().__anext__()
        return [
            decorated(), registry[0](), Child().hello(), Child().prop, Child.static(), Child.static(2, y=3),
            Child.klass(), cached(), run(coroutine()), list(generator()), run(item), early_closure(), outer(2)(),
        ]
    early_closure = outer(1)
    early = look()
"""
NAMES = (
    "decorated", "Child.hello", "Child.prop", "Child.static", "Child.klass", "cached", "coroutine", "generator", "agen",
    "outer.<locals>.closure",
)  # fmt: skip
EXPECTED = [
    "around {} old", "{} old", "{} base", "{}", ("{}", 1, "old"), ("{}", 2, 3), "{} Child",
    "{}", "{}", ["{}"], "{}", ("{}", 1), ("{}", 2),
]  # fmt: skip


def expected(word):
    def deep(thing):
        if isinstance(thing, str):
            return thing.format(word)
        return type(thing)(deep(part) for part in thing) if isinstance(thing, list | tuple) else thing

    return [deep(thing) for thing in EXPECTED]


def new_bodies(word="new"):
    lines = textwrap.dedent(BODY).splitlines()
    changed = [line.replace('return "old', f'return "{word}').replace('yield "old', f'yield "{word}') for line in lines]
    return "\n".join(changed)


def test_every_kind_of_function_is_born_redirected(on_disk):
    on_disk("lp_later", BODY)
    lp.enable_patch(absent("p", new=new_bodies(), functions=NAMES))
    target = importlib.import_module("lp_later")
    assert target.early == expected("new")
    assert target.look() == expected("new")
    assert target.decorated.__closure__[0].cell_contents.__defaults__ == ("old",)
    lp.disable_patch("p")
    finish()
    lp.unload_patch("p")
    assert target.look() == expected("old")
    assert not redirect.redirections


def test_functions_are_born_in_the_middle_of_a_transition(on_disk, module, held, worker):
    """Whoever imports and has not moved runs the old versions in the body, and goes on doing so."""
    stay = module("def stay(then, gate):\n    gate()\n    return then()", "lp_stay")
    on_disk("lp_later", BODY)
    patch = absent("p", new=new_bodies(), functions=NAMES)
    new = module("def stay(then, gate):\n    gate()\n    return then()\n'new'", "lp_new")
    patch.objects.append(lp.Object("lp_stay", [lp.Func("stay", new.stay)]))
    held.begin(stay.stay, lambda: (importlib.import_module("lp_later").early, sys.modules["lp_later"].look()))
    lp.enable_patch(patch)
    assert held.release() == (expected("old"), expected("old"))
    finish()
    assert sys.modules["lp_later"].look() == expected("new")
    kit.take_out("p")
    assert sys.modules["lp_later"].look() == expected("old")


def test_replacements_by_hand_have_their_own_defaults_in_the_body(on_disk, module):
    """The body gives each function the defaults of the original; the replacement has others."""
    hand = module("def f(a='new', *, b='new', c='added'): return 'new', a, b, c", "lp_hand")
    on_disk("lp_later", "def f(x, a='old', *, b='old'): return 'old', x, a, b\nearly = f(b=1)\n")
    lp.enable_patch(lp.Patch("p", [lp.Object("lp_later", [lp.Func("f", hand.f)])]))
    target = importlib.import_module("lp_later")
    assert target.early == target.f(b=1) == ("new", "new", 1, "added")
    kit.take_out("p")
    assert target.f(0) == ("old", 0, "old", "old")


def test_the_patch_goes_while_the_body_runs(on_disk, worker):
    """Functions that the body makes afterwards are the original ones."""
    gate = kit.Gate()
    sys.modules["lp_gate"] = types.SimpleNamespace(gate=gate)
    text = (
        "import lp_gate\ndef f(): return 'old'\nfirst = f()\nlp_gate.gate()\ndef g(): return 'old'\nsecond = f(), g()"
    )
    on_disk("lp_later", text)
    lp.enable_patch(absent("p", new=text.replace("'old'", "'new'")))
    importing = worker().begin(importlib.import_module, "lp_later")
    gate.arrived()
    kit.take_out("p")
    gate.open()
    target = importing.result(kit.PATIENCE)
    assert (target.first, target.second) == ("new", ("old", "old"))
    assert target.f() == target.g() == "old"
    assert "livepatch" not in target.f.__code__.co_filename
    assert "livepatch" not in target.g.__code__.co_filename
    assert not redirect.redirections


def test_a_transition_begins_and_ends_while_the_body_runs(on_disk, worker):
    gate, second = kit.Gate(), kit.Gate()
    sys.modules["lp_gate"] = types.SimpleNamespace(gate=gate, second=second)
    text = """
        import lp_gate
        def f(gate=None):
            if gate: gate()
            return "old"
        lp_gate.gate()
        inside = f(lp_gate.second)
        def g(): return "old"
        after = g()
    """
    on_disk("lp_later", text)
    lp.enable_patch(absent("p", new=text.replace("old", "new")))
    importing = worker().begin(importlib.import_module, "lp_later")
    gate.arrived()
    gate.open()
    second.arrived()
    lp.disable_patch("p")
    assert lp.patches()[0].transition, "the body is inside of a new version"
    second.open()
    target = importing.result(kit.PATIENCE)
    finish()
    assert target.inside == "new"
    assert target.f() == target.g() == "old"
    lp.unload_patch("p")
