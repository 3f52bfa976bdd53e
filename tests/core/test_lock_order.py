"""Import locks and the registry's mutex: who holds one and wants the other, in every order that can come up.

`lock.py` tells the order, and the one case in which it is turned round: a callback imports what another thread is
just importing. A naive lock stands still there for ever; here the mutex is lent.
"""

import importlib
import os
import random
import sys
import threading
import time
import traceback
import types

import pytest
from tests.core import kit
from tests.core.test_modules import NEW, SOURCE, absent, on_disk

import livepatch as lp
from livepatch.core import lists
from livepatch.testing import finish

__all__ = ["on_disk"]


@pytest.fixture(autouse=True)
def watchdog():
    """Says where everybody stands if the test stands still, and lets it fail instead of hanging."""
    done = threading.Event()

    def watch():
        if not done.wait(120):
            for ident, frame in sys._current_frames().items():
                print(ident, *traceback.format_stack(frame), file=sys.__stderr__)
            os._exit(70)

    thread = threading.Thread(target=watch, name="livepatch", daemon=True)
    thread.start()
    yield
    done.set()
    thread.join()


@pytest.fixture
def gates():
    """Two gates that the body of a module can use: it is inside, and it may go on."""
    made = types.SimpleNamespace(inside=kit.Gate(), other=kit.Gate())
    sys.modules["lp_gates"] = made
    return made


def importing(name):
    """A callback that imports."""
    return lp.Callbacks(pre_patch=lambda obj: importlib.import_module(name) and None)


def there(module, name="P", callbacks=None):
    """A patch for a module that is there."""
    return kit.built(name, module(SOURCE, f"lp_there_{name}"), NEW, "f", callbacks=callbacks)


def test_a_callback_imports_what_another_thread_is_importing(on_disk, module, worker, gates):
    """That thread holds the module's import lock and wants the mutex, to have the very same patch applied."""
    on_disk(
        "lp_later", "import lp_gates\nlp_gates.inside()\n" + "def f(): return 'old'\ndef g(gate=None): return 'old'"
    )
    lp.enable_patch(absent("waits", functions=("f",)), timeout=60)
    other = worker().begin(importlib.import_module, "lp_later")
    gates.inside.arrived()
    patch = there(module, callbacks=importing("lp_later"))
    enabling = worker().begin(lp.enable_patch, patch)
    kit.until(lambda: lists.mutex._owner is not None, "the callback runs under the mutex")
    time.sleep(0.05)
    gates.inside.open()
    target = other.result(kit.PATIENCE)
    enabling.result(kit.PATIENCE)
    lp.wait("P", kit.PATIENCE)
    assert target.f() == "new"
    assert sys.modules["lp_there_P"].f() == "new"
    for name in ("P", "waits"):
        kit.take_out(name)


def test_many_times_with_everybody_at_once(on_disk, module, worker):
    """Nobody arranges the order here; callbacks import what four threads import, while the patch waits for it."""
    threads = [worker() for _ in range(4)]
    for attempt in range(12):
        name = f"lp_race{attempt}"
        on_disk(name, "import time\ntime.sleep(0.001)\ndef f(): return 'old'")
        new = "def f(): return 'new'"
        lp.enable_patch(absent("waits", name, new=new, functions=("f",)), timeout=60)
        start = threading.Barrier(5)

        def come(name=name, start=start):
            start.wait()
            return importlib.import_module(name).f()

        coming = [thread.begin(come) for thread in threads]
        start.wait()
        lp.enable_patch(there(module, callbacks=importing(name)), timeout=60)
        assert {future.result(kit.PATIENCE) for future in coming} == {"new"}
        for patch in ("P", "waits"):
            lp.disable_patch(patch, timeout=60)
            finish()
            lp.unload_patch(patch)


def test_the_mutex_is_not_lent_to_who_merely_waits(worker):
    """Somebody else's import has nothing to do with it: the order of two operations stays what it is."""
    gate, seen = kit.Gate(), []
    slow = lp.Callbacks(pre_patch=lambda obj: (gate(), seen.append("first"))[0])
    first = worker().begin(lp.enable_patch, lp.Patch("first", [lp.Object(None, callbacks=slow)]))
    gate.arrived()
    fast = lp.Callbacks(pre_patch=lambda obj: seen.append("second"))
    second = worker().begin(lp.enable_patch, lp.Patch("second", [lp.Object(None, callbacks=fast)]))
    time.sleep(0.1)
    assert not second.done()
    assert not lists.mutex._borrowed
    gate.open()
    first.result(kit.PATIENCE)
    lp.wait("first", kit.PATIENCE)
    refused = second.exception(kit.PATIENCE)  # if the first one's transition is not over yet
    assert refused is None or refused.symbol == "EBUSY"
    assert seen == (["first"] if refused else ["first", "second"])
    for name in [patch.name for patch in lp.patches()]:
        kit.take_out(name)


def test_a_callback_whose_import_fails_goes_on_after_the_borrower(on_disk, module, worker, gates):
    """The other thread's body raises: both see it, and the mutex is whole."""
    on_disk("lp_later", "import lp_gates\nlp_gates.inside()\ndef f(): return 'old'\nraise ValueError('its own')")
    lp.enable_patch(absent("waits", functions=("f",)), timeout=60)
    other = worker().begin(importlib.import_module, "lp_later")
    gates.inside.arrived()
    enabling = worker().begin(lp.enable_patch, there(module, callbacks=importing("lp_later")))
    kit.until(lambda: lists.mutex._owner is not None, "the callback runs under the mutex")
    gates.inside.open()
    with pytest.raises(ValueError, match="its own"):
        other.result(kit.PATIENCE)
    with pytest.raises((lp.LivepatchError, ValueError)):
        enabling.result(kit.PATIENCE)
    assert not lists.mutex._borrowed
    kit.take_out("waits")


def test_circular_imports_of_two_threads_and_a_callback(on_disk, module, worker):
    on_disk("lp_one", "import lp_two\ndef f(): return 'old'")
    on_disk("lp_two", "import lp_one\ndef f(): return 'old'")
    new = "def f(): return 'new'"
    for _ in range(6):
        objects = [absent("x", name, new=new, functions=("f",)).objects[0] for name in ("lp_one", "lp_two")]
        lp.enable_patch(lp.Patch("waits", objects), timeout=60)
        coming = [worker().begin(importlib.import_module, name) for name in ("lp_one", "lp_two")]
        lp.enable_patch(there(module, callbacks=importing("lp_one")), timeout=60)
        assert [future.result(kit.PATIENCE).f() for future in coming] == ["new", "new"]
        for patch in ("P", "waits"):
            lp.disable_patch(patch, timeout=60)
            finish()
            lp.unload_patch(patch)
        del sys.modules["lp_one"], sys.modules["lp_two"]


@pytest.mark.slow
def test_everything_at_once(on_disk, module, worker):
    """Threads import, reload, unload and delete while patches go in and out, some with callbacks that import."""
    names = [f"lp_soak{n}" for n in range(4)]
    new = "def f(): return 'new'"
    for name in names:
        on_disk(name, "def f(): return 'old'")
    stop = threading.Event()
    unexpected = []

    def disturb(seed):
        chance = random.Random(seed)
        while not stop.is_set():
            name = chance.choice(names)
            try:
                how = chance.randrange(6)
                if how == 0:
                    lp.unload_module(name)
                elif how == 1 and name in sys.modules:
                    importlib.reload(sys.modules[name])
                elif how == 2:
                    sys.modules.pop(name, None)
                else:
                    importlib.import_module(name).f()
            except (ImportError, KeyError, AttributeError, lp.LivepatchError):
                pass  # somebody else was there first
            except BaseException as error:
                unexpected.append(error)

    disturbing = [worker().begin(disturb, seed) for seed in range(3)]
    chance = random.Random(0)
    for _ in range(40):
        objects = [absent("x", name, new=new, functions=("f",)).objects[0] for name in names]
        objects[0].callbacks = importing(chance.choice(names)) if chance.random() < 0.5 else objects[0].callbacks
        try:
            lp.enable_patch(lp.Patch("soak", objects), timeout=60)
        except (lp.LivepatchError, ImportError):
            continue
        lp.disable_patch("soak", timeout=60)
        kit.until(lambda: lp.wait("soak", 1) and not lp.patches(), "the patch is out")
        lp.unload_patch("soak")
    stop.set()
    for future in disturbing:
        future.result(kit.PATIENCE)
    assert not unexpected
    assert not lists.mutex._borrowed
    for name in names:
        assert importlib.import_module(name).f() == "old"
