"""Modules that are imported after a patch for them was enabled: applied, refused, not seen coming."""

import errno
import importlib
import importlib.util
import sys
import textwrap
import types

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import log, redirect
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    def f(): return "old"
    def g(gate=None):
        if gate: gate()
        return "old"
    early = f()
"""
NEW = SOURCE.replace("old", "new")
STAY = "def stay(gate):\n    gate()\n    import lp_later\n    return lp_later.f()"


@pytest.fixture
def on_disk(tmp_path, monkeypatch):
    """Writes modules that can be imported; they are not imported yet."""
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)

    def write(name, source=SOURCE):
        path = tmp_path / (name.replace(".", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(source))
        importlib.invalidate_caches()

    yield write
    for name in set(sys.modules) - before:
        if name.startswith("lp_"):
            del sys.modules[name]


@pytest.fixture
def called():
    return []


def absent(name, module="lp_later", new=NEW, functions=("f", "g"), called=None, refuse=None, late=False):
    """A patch for a module that is not there; `late`: it can be applied only when the body has run."""

    def callback(which):
        def call(obj):
            called.append((name, which, obj.module.__name__, obj.module_state))
            if which == "pre_patch" and refuse is not None:
                return refuse

        return call

    names = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
    callbacks = lp.Callbacks(**{which: callback(which) for which in names}) if called is not None else None
    patch = kit.built(name, types.SimpleNamespace(__name__=module), new, *functions, callbacks=callbacks)
    patch.objects[0].after_body = late
    return patch


def logged():
    lines = [line.removeprefix("livepatch: ") for line in lp.dmesg()]
    log.clear()
    return lines


def no_trace(name="lp_later"):
    assert name not in sys.modules
    assert not redirect.redirections


# -- a module comes --------------------------------------------------------------------------------------------


def test_a_patch_is_applied_when_its_module_is_imported(on_disk, called):
    on_disk("lp_later")
    lp.enable_patch(absent("p", called=called))
    assert called == []
    assert [o["patched"] for o in lp.patches()[0].objects] == [False]
    logged()
    target = importlib.import_module("lp_later")
    assert target.f() == target.g() == "new"
    assert target.early == "new", "its body never runs the old version"
    assert called == [("p", "pre_patch", "lp_later", "COMING"), ("p", "post_patch", "lp_later", "COMING")]
    assert logged() == ["applying patch 'p' to loading module 'lp_later'"]
    assert [o["patched"] for o in lp.patches()[0].objects] == [True]
    lp.disable_patch("p")
    assert called[2:] == [("p", "pre_unpatch", "lp_later", "LIVE"), ("p", "post_unpatch", "lp_later", "LIVE")]
    assert target.f() == "old"
    lp.unload_patch("p")


def test_a_module_looks_as_if_nobody_had_been_there(on_disk):
    on_disk("lp_later")
    plain = importlib.import_module("lp_later")
    loader, cached = type(plain.__loader__), plain.__spec__.cached
    del sys.modules["lp_later"]
    on_disk("lp_later", SOURCE + "    seen = type(__loader__), type(__spec__.loader)")
    lp.enable_patch(absent("p"))
    target = importlib.import_module("lp_later")
    assert target.seen == (loader, loader)
    assert type(target.__loader__) is type(target.__spec__.loader) is loader
    assert target.__spec__.cached == cached
    assert importlib.util.find_spec("lp_later") is target.__spec__
    kit.take_out("p")


def test_stacked_patches_come_oldest_first(on_disk, called):
    on_disk("lp_later")
    lp.enable_patch(absent("a", called=called))
    lp.enable_patch(absent("b", new=NEW.replace("new", "newer"), called=called))
    target = importlib.import_module("lp_later")
    assert target.f() == "newer"
    assert [(who, which) for who, which, *_ in called] == [
        ("a", "pre_patch"),
        ("a", "post_patch"),
        ("b", "pre_patch"),
        ("b", "post_patch"),
    ]
    kit.take_out("b")
    assert target.f() == "new"
    kit.take_out("a")
    assert target.f() == "old"


def test_one_module_is_there_and_another_comes(on_disk, module):
    on_disk("lp_later")
    there = module(SOURCE, "lp_there")
    objects = absent("x").objects + absent("x", "lp_there").objects
    lp.enable_patch(lp.Patch("p", objects))
    assert there.f() == "new"
    target = importlib.import_module("lp_later")
    assert target.f() == "new"
    kit.take_out("p")
    assert there.f() == target.f() == "old"


def test_submodules_and_from_imports(on_disk):
    outer, inner = "from .inner import f\ndef g(): return 'old'", "def f(): return 'old'"
    on_disk("lp_package.__init__", outer)
    on_disk("lp_package.inner", inner)
    parts = [("lp_package", outer, "g"), ("lp_package.inner", inner, "f")]
    patches = [absent("x", name, source.replace("old", "new"), (function,)) for name, source, function in parts]
    lp.enable_patch(lp.Patch("p", [obj for patch in patches for obj in patch.objects]))
    from lp_package import f, g
    from lp_package.inner import f as inner

    assert f is inner
    assert f() == g() == "new"
    kit.take_out("p")
    assert f() == g() == "old"


def test_a_module_that_comes_in_the_middle_of_a_transition(on_disk, module, held, called):
    """The held thread is in the old world for the new module, too, and all others are in the new one."""
    there = module(
        "def stay(gate):\n    gate()\n    import lp_later\n    return lp_later.f(), lp_later.g()", "lp_there"
    )
    on_disk("lp_later")
    objects = absent("x", called=called).objects + kit.built("x", there, "def stay(gate): pass", "stay").objects
    held.begin(there.stay)
    lp.enable_patch(lp.Patch("p", objects))
    target = importlib.import_module("lp_later")
    assert target.f() == "new"
    assert [which for _, which, *_ in called] == ["pre_patch"], "post_patch comes at completion"
    assert held.release() == ("old", "old")
    finish()
    assert [which for _, which, *_ in called] == ["pre_patch", "post_patch"]
    assert target.f.__code__.co_filename == "new.py"
    kit.take_out("p")
    assert target.f() == "old"


def test_a_module_that_comes_while_its_patch_is_being_disabled(on_disk, module, held, called):
    """It is patched like all others, and unpatched with them: pre_patch and post_unpatch, never post_patch."""
    there = module(STAY, "lp_there")
    on_disk("lp_later")
    objects = absent("x", called=called).objects + kit.built("x", there, STAY, "stay").objects
    lp.enable_patch(lp.Patch("p", objects))
    held.begin(there.stay)
    lp.disable_patch("p")
    target = importlib.import_module("lp_later")
    assert target.f() == "old"
    assert held.release() == "new"
    finish()
    assert [which for _, which, *_ in called] == ["pre_patch", "post_unpatch"]
    assert target.f() == "old"
    lp.unload_patch("p")


# -- a module is refused ---------------------------------------------------------------------------------------


def test_a_module_that_does_not_fit_is_refused(on_disk, called):
    on_disk("lp_later", "def other(): pass")
    lp.enable_patch(absent("p", called=called))
    logged()
    with pytest.raises(ImportError, match="Patch 'p' refused 'lp_later': symbol 'f' not found") as caught:
        importlib.import_module("lp_later")
    assert caught.value.name == "lp_later"
    assert isinstance(caught.value.__cause__, lp.LivepatchError)
    assert logged() == [
        "symbol 'f' not found in symbol table",
        f"failed to initialize patch 'p' for module 'lp_later' ({-errno.EINVAL})",
        "patch 'p' failed for module 'lp_later', refusing to load module 'lp_later'",
    ]
    assert called == []
    no_trace()
    assert [p.enabled for p in lp.patches()] == [True], "the patch stays"
    on_disk("lp_later")
    sys.path_importer_cache.clear()
    assert importlib.import_module("lp_later").f() == "new", "and a module that fits is welcome"
    kit.take_out("p")


def test_a_callback_refuses_the_module(on_disk, called):
    on_disk("lp_later")
    lp.enable_patch(absent("p", called=called, refuse=-errno.ENODEV))
    logged()
    with pytest.raises(ImportError, match="Patch 'p' refused 'lp_later'") as caught:
        importlib.import_module("lp_later")
    assert caught.value.__cause__.errno == errno.ENODEV
    assert logged() == [
        "applying patch 'p' to loading module 'lp_later'",
        "pre-patch callback failed for object 'lp_later'",
        "patch 'p' failed for module 'lp_later', refusing to load module 'lp_later'",
    ]
    assert [which for _, which, *_ in called] == ["pre_patch"]
    no_trace()
    lp.disable_patch("p")
    lp.unload_patch("p")


def test_a_refused_module_is_taken_back_from_the_patches_before(on_disk, called):
    """They had been applied: pre_unpatch and post_unpatch run for them, in the order of the list."""
    on_disk("lp_later")
    lp.enable_patch(absent("a", called=called))
    lp.enable_patch(absent("b", called=called))
    lp.enable_patch(absent("c", called=called, refuse=-errno.EBUSY))
    lp.enable_patch(absent("d", called=called))
    logged()
    with pytest.raises(ImportError, match="Patch 'c' refused"):
        importlib.import_module("lp_later")
    assert [(who, which, state) for who, which, _, state in called] == [
        ("a", "pre_patch", "COMING"),
        ("a", "post_patch", "COMING"),
        ("b", "pre_patch", "COMING"),
        ("b", "post_patch", "COMING"),
        ("c", "pre_patch", "COMING"),
        ("a", "pre_unpatch", "COMING"),
        ("a", "post_unpatch", "COMING"),
        ("b", "pre_unpatch", "COMING"),
        ("b", "post_unpatch", "COMING"),
    ]
    assert logged() == [
        "applying patch 'a' to loading module 'lp_later'",
        "applying patch 'b' to loading module 'lp_later'",
        "applying patch 'c' to loading module 'lp_later'",
        "pre-patch callback failed for object 'lp_later'",
        "patch 'c' failed for module 'lp_later', refusing to load module 'lp_later'",
        "reverting patch 'a' on unloading module 'lp_later'",
        "reverting patch 'b' on unloading module 'lp_later'",
    ]
    no_trace()
    for name in "dcba":
        kit.take_out(name)


def test_functions_of_a_refused_module_are_the_old_ones_again(on_disk, called):
    """Its body may have given them to others, who keep them."""
    kept = sys.modules["lp_kept"] = types.SimpleNamespace()
    on_disk("lp_later", SOURCE + "\n    import lp_kept\n    lp_kept.f, lp_kept.code = f, f.__code__")
    lp.enable_patch(absent("a"))
    lp.enable_patch(absent("b", called=called, refuse=1, late=True))
    with pytest.raises(ImportError):
        importlib.import_module("lp_later")
    assert kept.f() == "old"
    assert kept.f.__code__ is not kept.code, "that was born redirected"
    no_trace()
    kit.take_out("b")
    kit.take_out("a")


def test_a_redirection_that_fails_refuses_the_module(on_disk, called):
    """Its own post_unpatch runs: its pre_patch had succeeded."""
    on_disk("lp_later", "class A:\n    def m(self): return 1\nkept = A()\ndel A")
    lp.enable_patch(absent("p", new="class A:\n    def m(self): return __class__", functions=("A.m",), called=called))
    logged()
    with pytest.raises(ImportError, match="free variables"):
        importlib.import_module("lp_later")
    assert [which for _, which, *_ in called] == ["pre_patch", "post_unpatch"]
    assert logged() == [
        "applying patch 'p' to loading module 'lp_later'",
        f"failed to apply patch 'p' to module 'lp_later' ({-errno.EINVAL})",
        "patch 'p' failed for module 'lp_later', refusing to load module 'lp_later'",
    ]
    no_trace()
    lp.disable_patch("p")
    lp.unload_patch("p")


def test_a_body_that_raises(on_disk, called):
    """Its functions, too, may have been given away; the callbacks are told that the module is going."""
    kept = sys.modules["lp_kept"] = types.SimpleNamespace()
    on_disk("lp_later", SOURCE + "\n    import lp_kept\n    lp_kept.f = f\n    raise ValueError('its own')")
    lp.enable_patch(absent("p", called=called))
    logged()
    with pytest.raises(ValueError, match="its own"):
        importlib.import_module("lp_later")
    assert [(which, state) for _, which, _, state in called] == [
        ("pre_patch", "COMING"),
        ("post_patch", "COMING"),
        ("pre_unpatch", "GOING"),
        ("post_unpatch", "GOING"),
    ]
    assert logged() == [
        "applying patch 'p' to loading module 'lp_later'",
        "reverting patch 'p' on unloading module 'lp_later'",
    ]
    assert kept.f() == "old"
    no_trace()
    kit.take_out("p")


def test_a_missing_symbol_refuses_the_module_before_its_body_runs(on_disk, called):
    kept = sys.modules["lp_kept"] = types.SimpleNamespace()
    on_disk("lp_later", "import lp_kept\nlp_kept.ran = True")
    lp.enable_patch(absent("p", called=called))
    logged()
    with pytest.raises(ImportError, match="symbol 'f' not found") as caught:
        importlib.import_module("lp_later")
    assert caught.value.errno == errno.EINVAL
    assert not hasattr(kept, "ran")
    assert called == []
    assert logged() == [
        "symbol 'f' not found in symbol table",
        f"failed to initialize patch 'p' for module 'lp_later' ({-errno.EINVAL})",
        "patch 'p' failed for module 'lp_later', refusing to load module 'lp_later'",
    ]
    no_trace()
    kit.take_out("p")


# -- ways of importing -----------------------------------------------------------------------------------------


def test_conditional_definitions_are_decided_by_the_body(on_disk):
    text = "if True:\n    def f(): return 'old'\nelse:\n    def f(): return 'other'"
    on_disk("lp_later", text)
    new = textwrap.dedent("def f(): return 'new'")
    lp.enable_patch(absent("p", new=new, functions=("f",)))
    assert importlib.import_module("lp_later").f() == "new"
    kit.take_out("p")


def test_a_loader_that_does_not_show_its_code(on_disk, monkeypatch, called):
    """Its modules are patched when their body has run."""

    class Loader:
        def create_module(self, spec):
            return None

        def exec_module(self, module):
            exec(textwrap.dedent(SOURCE), module.__dict__)

    class Own:
        def find_spec(self, name, path, target=None):
            return importlib.util.spec_from_loader(name, Loader()) if name == "lp_own" else None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Own()])
    lp.enable_patch(absent("p", "lp_own", called=called))
    target = importlib.import_module("lp_own")
    assert (target.early, target.f(), len(called)) == ("old", "new", 2)
    kit.take_out("p")
    assert target.f() == "old"


def test_packages_and_submodules(on_disk):
    for name in ("lp_pkg.__init__", "lp_pkg.sub.__init__", "lp_pkg.sub.leaf"):
        on_disk(name)
    names = ("lp_pkg", "lp_pkg.sub", "lp_pkg.sub.leaf")
    lp.enable_patch(lp.Patch("p", [absent("x", name).objects[0] for name in names]))
    importlib.import_module("lp_pkg.sub.leaf")
    assert [(sys.modules[name].f(), sys.modules[name].early) for name in names] == [("new", "new")] * 3
    kit.take_out("p")


def test_many_threads_import_one_module(on_disk, worker, called):
    on_disk("lp_later", SOURCE + "    import time\n    time.sleep(0.05)")
    lp.enable_patch(absent("p", called=called))
    importing = [worker().begin(importlib.import_module, "lp_later") for _ in range(8)]
    found = {id(future.result(kit.PATIENCE)) for future in importing}
    assert len(found) == 1
    assert len(called) == 2
    assert sys.modules["lp_later"].f() == "new"
    kit.take_out("p")


def lazily(name):
    spec = importlib.util.find_spec(name)
    loader = spec.loader = importlib.util.LazyLoader(spec.loader)
    target = sys.modules[name] = importlib.util.module_from_spec(spec)
    loader.exec_module(target)
    return target


@pytest.mark.parametrize("first", ["patch", "module"])
def test_a_lazy_module_is_absent_until_it_is_used(on_disk, called, first):
    on_disk("lp_later")
    target = lazily("lp_later") if first == "module" else None
    lp.enable_patch(absent("p", called=called))
    target = target or lazily("lp_later")
    assert type(target) is importlib.util._LazyModule
    assert lp.patches()[0].objects[0]["patched"] is False
    assert called == []
    assert target.f() == target.early == "new"
    assert [which for _, which, *_ in called] == ["pre_patch", "post_patch"]
    kit.take_out("p")
    assert target.f() == "old"


def test_a_private_copy_of_a_module_is_not_the_module(on_disk, called):
    """Some tool executes the module once more, under its name but for itself."""
    on_disk("lp_later")
    target = importlib.import_module("lp_later")
    lp.enable_patch(absent("p", called=called))
    spec = importlib.util.find_spec("lp_later")
    copy = importlib.util.module_from_spec(spec)
    copy.__spec__.loader.exec_module(copy)
    assert (target.f(), copy.f(), len(called)) == ("new", "old", 2)
    kit.take_out("p")


def test_a_callback_imports_what_the_patch_waits_for(on_disk, module):
    """In the same thread, in the middle of enabling: that object's callbacks run once."""
    on_disk("lp_later")
    there = module(SOURCE, "lp_there")
    seen = []
    callbacks = lp.Callbacks(pre_patch=lambda obj: importlib.import_module("lp_later") and None)
    patch = absent("p", called=seen)
    patch.objects.insert(0, kit.built("x", there, NEW, "f", callbacks=callbacks).objects[0])
    lp.enable_patch(patch)
    finish()
    assert [(which, state) for _, which, _, state in seen] == [("pre_patch", "COMING"), ("post_patch", "LIVE")]
    assert (there.f(), sys.modules["lp_later"].f()) == ("new", "new")
    kit.take_out("p")
    assert (there.f(), sys.modules["lp_later"].f()) == ("old", "old")


# -- past us ---------------------------------------------------------------------------------------------------


def test_a_module_that_came_past_the_finder(on_disk, module, monkeypatch, called):
    """It is patched by the next operation, or round; one that cannot be is left alone, and asked once."""
    lp.enable_patch(absent("p", called=called))
    target = module(SOURCE, "lp_later")
    assert target.f() == "old"
    with pytest.raises(lp.LivepatchError):
        lp.write_enabled("p", 1)
    assert target.f() == "new"
    assert [which for _, which, *_ in called] == ["pre_patch", "post_patch"]
    kit.take_out("p")
    lp.enable_patch(absent("q", "lp_wrong"))
    module("", "lp_wrong")
    for _ in range(3):
        with pytest.raises(lp.LivepatchError):
            lp.write_enabled("q", 1)
    assert len([line for line in lp.dmesg() if "refusing to load module 'lp_wrong'" in line]) == 1
    kit.take_out("q")


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_wants_to_exit_in_the_middle_of_an_import(on_disk, raised):
    """What it wants happens, and nothing is left half done."""

    def pre_patch(obj):
        raise raised

    on_disk("lp_later")
    patch = absent("p")
    lp.enable_patch(patch)
    patch.objects[0].callbacks.pre_patch = pre_patch
    with pytest.raises(raised):
        importlib.import_module("lp_later")
    no_trace()
    patch.objects[0].callbacks.pre_patch = None
    patch.objects[0].callbacks.post_patch = pre_patch
    assert importlib.import_module("lp_later").f() == "new"
    assert "a callback for object 'lp_later' failed" in lp.dmesg()[-1]
    kit.take_out("p")


# -- the finder ------------------------------------------------------------------------------------------------


def test_nothing_stands_in_front_of_imports_without_a_patch(on_disk):
    before = list(sys.meta_path)
    on_disk("lp_later")
    lp.enable_patch(absent("p"))
    assert sys.meta_path != before
    kit.take_out("p")
    assert sys.meta_path == before
    with pytest.raises(lp.LivepatchError):
        lp.enable_patch(lp.Patch("p", [*absent("x").objects, lp.Object("json", [lp.Func("nothing", lambda: 0)])]))
    assert sys.meta_path == before


def test_others_who_look_for_the_module_find_it(on_disk):
    """find_spec of a module that a patch waits for neither loads it nor patches anything."""
    on_disk("lp_later")
    lp.enable_patch(absent("p"))
    spec = importlib.util.find_spec("lp_later")
    assert spec.origin.endswith("lp_later.py")
    assert "lp_later" not in sys.modules
    assert importlib.util.find_spec("lp_nowhere") is None
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("lp_nowhere")
    kit.take_out("p")


def test_a_lazily_loaded_module_is_patched_when_it_is_used(on_disk):
    on_disk("lp_later")
    lp.enable_patch(absent("p"))
    spec = importlib.util.find_spec("lp_later")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    target = importlib.util.module_from_spec(spec)
    sys.modules["lp_later"] = target
    spec.loader.exec_module(target)
    assert target.f() == "new"
    kit.take_out("p")
