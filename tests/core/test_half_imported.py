"""Modules that another thread is importing when a patch for them is enabled: they get it, and nobody is refused."""

import errno
import importlib
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.core import kit
from tests.core.test_modules import NEW, SOURCE, absent, called, no_trace, on_disk

import livepatch as lp
from livepatch.core import lists, modules
from livepatch.testing import finish

pytestmark = pytest.mark.usefixtures("rounds_by_hand")
__all__ = ["called", "on_disk"]


@pytest.fixture
def gate(on_disk):
    """What the body of `lp_later` stops at, at its end."""
    gate = kit.Gate()
    sys.modules["lp_gate"] = types.SimpleNamespace(gate=gate)
    on_disk("lp_later", SOURCE + "    import lp_gate\n    lp_gate.gate()")
    return gate


@pytest.fixture
def begin(gate, worker):
    """Has a thread import it as far as the gate; gives the future of the module."""

    def begin():
        importing = worker().begin(importlib.import_module, "lp_later")
        gate.arrived()
        return importing

    return begin


def test_a_module_whose_import_began_under_the_patch_is_patched_at_its_end(gate, begin):
    lp.enable_patch(absent("a"))
    importing = begin()
    lp.enable_patch(absent("b", new=NEW.replace("new", "newer")))
    gate.open()
    target = importing.result(kit.PATIENCE)
    assert target.f() == "newer", "also by the patch that was enabled in the middle"
    kit.take_out("b")
    assert target.f() == "new"
    kit.take_out("a")


def test_a_module_whose_import_began_before_the_patch(gate, begin):
    """It counts as absent. Nobody of ours stands before its loader, and yet it is patched at its end."""
    importing = begin()
    lp.enable_patch(absent("p"))
    assert not lp.patches()[0].transition
    assert lp.patches()[0].objects[0]["patched"] is False
    gate.open()
    target = importing.result(kit.PATIENCE)
    assert target.f() == "new"
    assert type(target.__spec__) is importlib.machinery.ModuleSpec
    kit.take_out("p")


def test_a_half_imported_module_is_refused_at_its_end(gate, begin, called):
    importing = begin()
    lp.enable_patch(absent("p", called=called, refuse=-errno.ENODEV))
    gate.open()
    with pytest.raises(ImportError, match="Patch 'p' refused") as caught:
        importing.result(kit.PATIENCE)
    assert caught.value.errno == errno.ENODEV
    no_trace()
    kit.take_out("p")


def test_a_module_that_is_complete_before_the_patch_is_enabled(gate, begin, monkeypatch):
    """Its symbols were not asked for, as it was half imported then."""
    importing = begin()
    await_absent = modules.await_absent

    def late(patch):
        gate.open()
        importing.result(kit.PATIENCE)
        await_absent(patch)

    monkeypatch.setattr(modules, "await_absent", late)
    lp.enable_patch(absent("p"))
    finish()
    assert sys.modules["lp_later"].f() == "new"
    kit.take_out("p")
    assert sys.modules["lp_later"].f() == "old"


def test_a_module_that_is_looked_for_meanwhile(on_disk, worker, monkeypatch):
    """It is waited for without the mutex: whoever has the import lock may want that, as this finder does."""
    looked_for, attempts, seen = threading.Event(), [], []
    on_disk("lp_later")

    class Slow:
        def find_spec(self, name, path=None, target=None):
            if name == "lp_later":
                looked_for.set()
                kit.until(lambda: attempts)
                with lists.exclusively():
                    seen.append(len(attempts))

    monkeypatch.setattr(sys, "meta_path", [Slow(), *sys.meta_path])
    await_absent = modules.await_absent
    monkeypatch.setattr(modules, "await_absent", lambda patch: (attempts.append(patch), await_absent(patch)))
    importing = worker().begin(importlib.import_module, "lp_later")
    assert looked_for.wait(kit.PATIENCE)
    lp.enable_patch(absent("p"))
    assert importing.result(kit.PATIENCE).f() == "new"
    assert set(seen) == {1}, "one attempt was enough to see that it must be waited for"
    kit.take_out("p")


def test_who_looks_for_a_module_cannot_wait_for_it(on_disk, monkeypatch):
    refused = []
    on_disk("lp_later")

    class Enabling:
        def find_spec(self, name, path=None, target=None):
            if name == "lp_later":
                with pytest.raises(lp.LivepatchError, match="is being imported just now") as caught:
                    lp.enable_patch(absent("p"))
                refused.append(caught.value.errno)

    monkeypatch.setattr(sys, "meta_path", [Enabling(), *sys.meta_path])
    assert importlib.import_module("lp_later").f() == "old"
    assert set(refused) == {errno.EBUSY}
    assert lp.patches() == []


def test_what_is_no_module_is_not_waited_for(monkeypatch):
    monkeypatch.setitem(sys.modules, "lp_later", types.SimpleNamespace(f=len))
    with pytest.raises(lp.LivepatchError, match="'lp_later' is no module but a SimpleNamespace") as caught:
        lp.enable_patch(absent("p"))
    assert caught.value.errno == errno.EINVAL
    assert lp.patches() == []


def test_importing_and_enabling_race(on_disk, monkeypatch):
    """Whoever wins, in the end the module is patched."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-6)
    try:
        for attempt in range(100):
            name = f"lp_race{attempt}"
            on_disk(name)
            start = threading.Barrier(2)

            def enable(name=name, start=start, pause=attempt):
                start.wait()
                for _ in range(100 * pause):
                    pass
                lp.enable_patch(absent("p", name))

            with ThreadPoolExecutor(1) as pool:
                enabling = pool.submit(enable)
                start.wait()
                target = importlib.import_module(name)
                enabling.result(kit.PATIENCE)
            finish()
            assert target.f() == "new", f"attempt {attempt}"
            kit.take_out("p")
    finally:
        sys.setswitchinterval(before)
