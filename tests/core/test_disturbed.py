"""Modules that come, go and are loaded anew while an operation on their patch calls the callbacks of another object.

The kernel holds its mutex all the while, and whoever loads a module waits. Here a callback can do it itself, or have
the mutex lent to whoever it waits for (`lock.py`); in the middle of the operation either way.
"""

import contextlib
import importlib
import re
import sys
import types

import pytest
from tests.core import kit
from tests.core.test_modules import NEW, SOURCE, absent, on_disk

import livepatch as lp
from livepatch.core import redirect
from livepatch.testing import finish

__all__ = ["on_disk"]

MOMENTS = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
#: What the callbacks of one object are called, in every history that it can have; see `callbacks.py`. It can go, or
#: come, in the middle of a transition: nobody asks before the one, or says so after the other.
_PATCHED = "pre_patch (post_patch pre_unpatch )*"
WELL_FORMED = re.compile(f"({_PATCHED}post_unpatch )*({_PATCHED}(post_patch )?)?")


def come():
    importlib.import_module("lp_b")


def reload():
    importlib.reload(importlib.import_module("lp_b"))


def exchange():
    sys.modules.pop("lp_b", None)
    importlib.import_module("lp_b")


def vanish():
    """Its name goes to a module that is broken, and so to none."""
    sys.modules["lp_gates"].broken = True
    sys.modules.pop("lp_b", None)
    with pytest.raises(ZeroDivisionError):
        importlib.import_module("lp_b")
    sys.modules["lp_gates"].broken = False


def break_reload():
    module = importlib.import_module("lp_b")
    sys.modules["lp_gates"].broken = True
    with pytest.raises((ZeroDivisionError, ImportError)):  # or it is refused
        importlib.reload(module)
    sys.modules["lp_gates"].broken = False


@pytest.fixture
def broken(on_disk, monkeypatch):
    """Modules on disk, one of which can be made to fail."""
    monkeypatch.setitem(sys.modules, "lp_gates", gates := types.ModuleType("lp_gates"))
    gates.broken = False
    on_disk("lp_b", SOURCE + "    import lp_gates\n    1 / (not lp_gates.broken)\n    def late(): return 'old'")
    on_disk("lp_c", "import lp_gates\nlp_gates.events()")
    return gates


def well_formed(called):
    return WELL_FORMED.fullmatch("".join(f"{which} " for which in called)) is not None


def nothing_left():
    assert importlib.import_module("lp_b").f() == "old"
    assert not redirect.redirections


@pytest.mark.parametrize("by", ["itself", "another"])
@pytest.mark.parametrize("late", [False, True], ids=["early", "after_body"])
@pytest.mark.parametrize("first", ["a", "b"])
@pytest.mark.parametrize("there", [True, False], ids=["there", "absent"])
@pytest.mark.parametrize("event", [come, reload, exchange, vanish, break_reload])
@pytest.mark.parametrize("moment", MOMENTS)
def test_another_module_in_a_callback(moment, event, there, first, late, by, broken, module, worker):
    if there:
        importlib.import_module("lp_b")
    mine = module(SOURCE, "lp_a")
    theirs, gate = [], kit.Gate()

    def disturb(obj):
        """Or wait for the import lock of somebody who does it."""
        if by == "itself":
            event()
        else:
            broken.events = lambda: (gate(), event())
            others = worker().begin(importlib.import_module, "lp_c")
            gate.arrived()
            gate.open()
            importlib.import_module("lp_c")
            others.result(kit.PATIENCE)

    a = kit.built("p", mine, NEW, "f", callbacks=lp.Callbacks(**{moment: disturb})).objects[0]
    b = absent("p", "lp_b", functions=("f", "g"), late=late).objects[0]
    b.callbacks = lp.Callbacks(**{which: lambda obj, which=which: theirs.append(which) for which in MOMENTS})
    patch = lp.Patch("p", [a, b] if first == "a" else [b, a])

    lp.enable_patch(patch)
    finish()
    assert lp.patches()[0].enabled
    assert not lp.patches()[0].transition
    assert mine.f() == "new"
    if "lp_b" in sys.modules:
        assert sys.modules["lp_b"].f() == "new"
        assert theirs[-2:] == ["pre_patch", "post_patch"]
    assert well_formed(theirs), theirs

    lp.disable_patch("p")
    finish()
    assert well_formed(theirs), theirs
    assert not theirs or theirs[-1] == "post_unpatch"
    assert mine.f() == "old"
    nothing_left()
    lp.unload_patch("p")


@pytest.mark.parametrize("late", [False, True], ids=["early", "after_body"])
@pytest.mark.parametrize("way", ["there", "comes", "goes"])
@pytest.mark.parametrize("event", [come, reload, exchange, vanish, break_reload])
@pytest.mark.parametrize("moment", MOMENTS)
def test_its_own_module_in_a_callback(moment, event, way, late, broken):
    """While the patch is enabled, or its module comes or goes. What would never end may be refused."""
    theirs = []

    def call(which):
        def callback(obj):
            theirs.append(which)
            if which == moment and theirs.count(which) == 1:
                event()

        return callback

    patch = absent("p", "lp_b", functions=("f", "g"), late=late)
    patch.objects[0].callbacks = lp.Callbacks(**{which: call(which) for which in MOMENTS})
    if way == "there":
        importlib.import_module("lp_b")
    lp.enable_patch(patch)
    finish()
    with contextlib.suppress(ImportError, ZeroDivisionError, KeyError):
        importlib.import_module("lp_b")
        if way == "goes":
            del sys.modules["lp_b"]
            importlib.import_module("lp_b")
    if "lp_b" in sys.modules:
        assert sys.modules["lp_b"].f() == "new"
    lp.disable_patch("p")
    finish()
    nothing_left()
    if moment != "pre_patch":  # which is asked twice, one time inside of the other, or refuses
        assert well_formed(theirs), theirs
        assert not theirs or theirs[-1] == "post_unpatch"
    lp.unload_patch("p")
