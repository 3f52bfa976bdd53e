"""From a name and a position to a code object: what is found in a live module, in which order, and what is refused."""

import importlib
import sys
import textwrap
import threading
import types

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import symbols
from livepatch.core.registry import check_patch

pytestmark = pytest.mark.usefixtures("rounds_by_hand")


def listed(module, name=None):
    return [(s.name, s.sympos) for s in symbols.table(module) if name in (None, s.name)]


def find(module, name, sympos=0):
    return symbols.Tables([module]).find(module, name, sympos, module.__name__).code


def refusal(module, name, sympos=0):
    with pytest.raises(lp.LivepatchError) as caught:
        find(module, name, sympos)
    assert caught.value.symbol == "EINVAL"
    sentence = str(caught.value)
    assert lp.dmesg()[-1] == f"livepatch: {sentence}"
    return sentence


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Imports modules from files, so that their loaders give their code."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, source):
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()
        return importlib.import_module(name)

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("lp_"):
            del sys.modules[name]


TABLE = """
    import functools
    from os.path import join
    def f():
        def g(): return [h for h in "x"]
        class K:
            def m(self): pass
        return lambda: g
    async def a(): pass
    class C:
        def m(self):
            def inner(): pass
        @staticmethod
        def s(): pass
        @property
        def p(self): pass
        @p.setter
        def p(self, value): pass
        class D:
            def m(self): pass
    @functools.lru_cache
    def cached(): pass
    l = lambda: 0
"""


def test_a_table_lists_every_function_in_order_of_definition(module):
    assert listed(module(TABLE)) == [
        ("f", 1),
        ("f.<locals>.g", 1),
        ("f.<locals>.K.m", 1),
        ("f.<locals>.<lambda>", 1),
        ("a", 1),
        ("C.m", 1),
        ("C.m.<locals>.inner", 1),
        ("C.s", 1),
        ("C.p", 1),
        ("C.p", 2),
        ("C.D.m", 1),
        ("cached", 1),
        ("<lambda>", 1),
    ]


def test_a_table_shows_originals_while_they_are_patched(module, worker):
    target = module(TABLE + "\n    def stay(gate): gate()")
    before = symbols.table(target)
    new = TABLE.replace("pass", "return 1") + "\n    def stay(gate): gate()"
    held, gate = worker(), kit.Gate()
    inside = held.begin(target.stay, gate)
    gate.arrived()
    lp.enable_patch(kit.built("p", target, new, "a", "C.m", "f.<locals>.K.m", "f.<locals>.g", ("C.p", 2), "stay"))
    assert [s.code for s in symbols.table(target)] == [s.code for s in before]
    assert all(a.code is b.code for a, b in zip(symbols.table(target), before, strict=True))
    gate.open()
    inside.result(kit.PATIENCE)
    from livepatch.testing import finish

    finish()
    assert all(a.code is b.code for a, b in zip(symbols.table(target), before, strict=True))
    front = {s.name: symbols.front_code(s.code) for s in symbols.table(target) if s.sympos == 1}
    assert front["a"].co_filename == "new.py"
    assert front["cached"].co_filename != "new.py"
    kit.take_out("p")


# -- the three refusals, in the kernel's words -----------------------------------------------------------------


def test_a_missing_symbol(module):
    assert refusal(module(TABLE), "nothing") == "symbol 'nothing' not found in symbol table"


def test_an_ambiguous_symbol(module):
    target = module(TABLE)
    assert refusal(target, "C.p") == "unresolvable ambiguity for symbol 'C.p' in object 'lp_target'"


def test_a_missing_position(module):
    target = module(TABLE)
    assert refusal(target, "C.p", 3) == "symbol position 3 for symbol 'C.p' in object 'lp_target' not found"
    assert refusal(target, "f", 2) == "symbol position 2 for symbol 'f' in object 'lp_target' not found"


@pytest.mark.parametrize(
    "name", ["functools", "join", "C", "print", "f.g", "C.D", "f.<locals>.K", "f.<locals>.<listcomp>"]
)
def test_what_is_no_function_of_this_module_is_not_found(module, name):
    assert "not found in symbol table" in refusal(module(TABLE), name)


def test_the_same_names_mean_the_base_object_in_messages(module):
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(lp.Patch("p", [lp.Object(None, [lp.Func("no such thing", lambda: 0)])]))
    assert str(caught.value) == "symbol 'no such thing' not found in symbol table"


def test_nothing_is_resolved_twice_or_changed_by_a_refusal(module):
    target = module(TABLE)
    before = dict(vars(target))
    codes = [s.code for s in symbols.table(target)]
    for func in (lp.Func("nothing", lambda: 0), lp.Func("C.p", lambda self: 0), lp.Func("f", lambda: 0, old_sympos=7)):
        with pytest.raises(lp.LivepatchError):
            lp.enable_patch(lp.Patch("p", [lp.Object("lp_target", [lp.Func("a", target.a), func])]))
    assert vars(target) == before
    assert all(a is b for a, b in zip([s.code for s in symbols.table(target)], codes, strict=True))
    assert not lp.patches()


# -- positions -------------------------------------------------------------------------------------------------

REDEFINED = """
    kept = []
    def f(): return 1
    kept.append(f)
    def f(): return 2
    def f(): return 3
    kept.append(f)
    def g(): return 1
    def g(): return 2
"""


def test_positions_follow_the_source_where_the_loader_gives_it(on_disk):
    """The second f is dead, and counts: whoever reads the source counts it."""
    target = on_disk("lp_redefined", REDEFINED)
    assert listed(target, "f") == [("f", 1), ("f", 3)]
    assert (types.FunctionType(find(target, "f", 1), {})(), types.FunctionType(find(target, "f", 3), {})()) == (1, 3)
    assert "symbol position 2 for symbol 'f'" in refusal(target, "f", 2)
    assert "ambiguity" in refusal(target, "f")


def test_positions_follow_the_lines_where_it_does_not(module):
    target = module(REDEFINED)
    assert listed(target, "f") == [("f", 1), ("f", 2)]


def test_position_0_takes_the_only_one_alive(on_disk):
    target = on_disk("lp_redefined", REDEFINED)
    assert types.FunctionType(find(target, "g"), {})() == 2
    assert types.FunctionType(find(target, "g", 2), {})() == 2
    assert "symbol position 1 for symbol 'g'" in refusal(target, "g", 1)


def test_positions_of_a_module_whose_file_has_changed_since(on_disk, tmp_path):
    """An upgrade was installed under the running process. The loader's code says nothing about what is alive."""
    target = on_disk("lp_redefined", REDEFINED)
    (tmp_path / "lp_redefined.py").write_text("def f(): return 'upgraded'\n" * 5)
    assert listed(target, "f") == [("f", 1), ("f", 2)]
    assert [types.FunctionType(find(target, "f", n), {})() for n in (1, 2)] == [1, 3]


def test_positions_of_equal_functions_on_one_line(on_disk):
    """Some releases of 3.12 compile them into one code object: that is one function then, which two objects carry."""
    target = on_disk("lp_lambdas", "pair = lambda: 1, lambda: 1\nother = lambda: 2\n")
    codes = list({id(fn.__code__): fn.__code__ for fn in (*target.pair, target.other)}.values())
    assert listed(target) == [("<lambda>", place) for place in range(1, len(codes) + 1)]
    assert [find(target, "<lambda>", place) for place in range(1, len(codes) + 1)] == codes


def test_positions_of_equal_functions_on_different_lines(on_disk):
    target = on_disk("lp_same", "def f(): return 1\nfirst = f\ndef f(): return 1\n")
    assert find(target, "f", 1) is target.first.__code__
    assert find(target, "f", 2) is target.f.__code__


def test_conditional_definitions(on_disk):
    """One of them exists; the other is only in the source, and counts for the position."""
    target = on_disk(
        "lp_conditional", "import sys\nif sys.maxsize < 0:\n    def f(): return 1\nelse:\n    def f(): return 2\n"
    )
    assert listed(target) == [("f", 2)]
    assert find(target, "f") is find(target, "f", 2) is target.f.__code__
    assert "position 1" in refusal(target, "f", 1)


def test_a_property_is_told_apart_by_position(module):
    text = """
        class C:
            @property
            def p(self): return "old"
            @p.setter
            def p(self, value): self.set = "old"
            @p.deleter
            def p(self): self.deleted = "old"
    """
    target = module(text)
    for position, met in ((1, ["new", "old", "old"]), (2, ["old", "new", "old"]), (3, ["old", "old", "new"])):
        lp.enable_patch(kit.built("p", target, text.replace("old", "new"), ("C.p", position)))
        c = target.C()
        c.p = 1
        del c.p
        assert [c.p, c.set, c.deleted] == met
        kit.take_out("p")


# -- what is alive ---------------------------------------------------------------------------------------------


def test_functions_that_no_name_leads_to_are_found(module):
    target = module(
        """
        import functools, weakref
        def deco(fn): return [fn]
        @deco
        def hidden(): pass
        class C:
            @deco
            def m(self): pass
        def gone(): pass
        keep = functools.partial(gone)
        del gone
        class Gone:
            def m(self): pass
        keep2 = Gone()
        del Gone
        """
    )
    assert {"hidden", "C.m", "gone", "Gone.m"} <= {name for name, _ in listed(target)}


def test_functions_that_are_dead_are_not_found(module, garbage):
    target = module("def f(): pass\ndef g(): pass\ndel f\n")
    garbage()
    assert listed(target) == [("g", 1)]


def test_functions_of_other_modules_are_not_taken_for_this_ones(module):
    module("def f(): pass\nclass C:\n    def m(self): pass", "lp_other")
    target = module("from lp_other import f, C\nclass D(C): pass\ndef g(): pass")
    assert listed(target) == [("g", 1)]
    assert "not found" in refusal(target, "f")


def test_a_function_that_was_renamed_is_known_by_the_name_of_its_code(module):
    """`functools.wraps` and others give function objects names of other functions; the source has the code's."""
    target = module("def f(): pass\nf.__qualname__ = f.__name__ = 'x'")
    assert listed(target) == [("f", 1)]


def test_generated_functions_do_not_disturb(module):
    target = module(
        """
        import collections, dataclasses, enum, typing
        @dataclasses.dataclass
        class C:
            x: int = 1
            def m(self): pass
        T = collections.namedtuple("T", "a b")
        class E(enum.Enum):
            A = 1
        """
    )
    assert [symbol for symbol in listed(target) if not symbol[0].startswith("__create_fn__")] == [("C.m", 1)]


def test_two_modules_are_read_in_one_pass(module):
    first, second = module("def f(): pass", "lp_first"), module("def f(): pass", "lp_second")
    tables = symbols.Tables([first, second])
    assert tables.find(first, "f", 0, "x").code is first.f.__code__
    assert tables.find(second, "f", 0, "x").code is second.f.__code__


# -- which modules are there -----------------------------------------------------------------------------------


def test_modules_that_are_there(module, monkeypatch):
    target = module("")
    assert symbols.loaded_module("lp_target") is target
    assert symbols.loaded_module(None) is sys.modules["__main__"]
    assert symbols.loaded_module("lp_nothing") is None
    monkeypatch.setitem(sys.modules, "lp_blocked", None)
    assert symbols.loaded_module("lp_blocked") is None
    monkeypatch.setitem(sys.modules, "lp_strange", object())
    assert symbols.loaded_module("lp_strange") is None


def test_a_half_imported_module_is_not_there(tmp_path, monkeypatch, worker):
    """Another thread is in the middle of its body."""
    gate = kit.Gate()
    monkeypatch.setitem(sys.modules, "lp_gate", types.SimpleNamespace(gate=gate))
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lp_half.py").write_text("import lp_gate\ndef f(): return 1\nlp_gate.gate()\ndef f(): return 2\n")
    importing = worker().begin(importlib.import_module, "lp_half")
    gate.arrived()
    assert "lp_half" in sys.modules
    assert symbols.loaded_module("lp_half") is None
    gate.open()
    imported = importing.result(kit.PATIENCE)
    assert symbols.loaded_module("lp_half") is imported
    del sys.modules["lp_half"]


def test_livepatch_itself_is_refused():
    with pytest.raises(lp.LivepatchError, match="failed to find location for function 'tick'") as caught:
        lp.enable_patch(lp.Patch("p", [lp.Object("livepatch.core.registry", [lp.Func("tick", lambda: None)])]))
    assert caught.value.symbol == "EINVAL"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("def f(): pass", "async def f(): pass"),
        ("def f(): pass", "def f(): yield"),
        ("async def f(): pass", "def f(): pass"),
        ("async def f(): yield", "async def f(): pass"),
        ("def f(): yield", "async def f(): yield"),
    ],
)
def test_a_replacement_of_another_kind_is_refused(module, old, new):
    target = module(old)
    code = target.f.__code__
    with pytest.raises(lp.LivepatchError, match=r"'f' is an? .*, and its replacement must be one") as caught:
        lp.enable_patch(kit.built("p", target, new, "f"))
    assert caught.value.symbol == "EINVAL"
    assert target.f.__code__ is code


@pytest.mark.parametrize("new", [print, len, int, None, "f", 3, object(), types.SimpleNamespace(), [].append])
def test_a_replacement_must_be_written_in_python(module, new):
    target = module("def f(): pass")
    with pytest.raises(lp.LivepatchError, match="must be a function written in Python") as caught:
        lp.enable_patch(kit.by_hand("p", target, f=new))
    assert caught.value.symbol == "EINVAL"


def test_check_patch_changes_nothing_and_names_who_stands_in_the_way(module, worker):
    text = """
        def f(gate): gate()
        def gen():
            yield 1
            yield 2
    """
    target, held, gate = module(text), worker(), kit.Gate()
    inside = held.begin(target.f, gate)
    suspended = target.gen()
    next(suspended)
    gate.arrived()
    code, log = target.f.__code__, lp.dmesg()
    found = check_patch(kit.built("p", target, text.replace("1", "3"), "f", "gen"))
    assert sorted((task.kind, task.blocking[0].partition(" ")[0]) for task in found) == [
        ("suspended", "gen"),
        ("thread", "f"),
    ]
    assert target.f.__code__ is code
    assert lp.dmesg() == log
    gate.open()
    inside.result(kit.PATIENCE)
    suspended.close()
    assert check_patch(kit.built("p", target, text, "f", "gen")) == []
    with pytest.raises(lp.LivepatchError, match="not found in symbol table"):
        check_patch(lp.Patch("p", [lp.Object("lp_target", [lp.Func("g", lambda: 0)])]))
    assert not lp.patches()


def test_symbols_are_found_while_other_threads_define_functions(module):
    """The collector is asked while the heap changes."""
    target, stop = module("def f(): pass"), threading.Event()

    def define():
        while not stop.is_set():
            exec("def noise(x=[]): return lambda: x", target.__dict__)
            target.noise()

    thread = threading.Thread(target=define)
    thread.start()
    try:
        for _ in range(30):
            assert find(target, "f") is target.f.__code__
    finally:
        stop.set()
        thread.join()
