"""Callbacks that are called with every instance of a class: when, with whom, and what becomes of what they raise."""

import contextlib
import errno
import gc
import importlib
import sys
import textwrap
import weakref

import pytest
from tests.core import cut_off, kit

import livepatch as lp
from livepatch.core import callbacks
from livepatch.testing import finish, manual_rounds

MOMENTS = "pre_patch", "post_patch", "pre_unpatch", "post_unpatch"

SOURCE = """
    class Cart:
        def __init__(self, name): self.name = name

    class Basket(Cart): pass

    def make(name): return Cart(name)

    def hold(gate, name):
        gate()
        return Cart(name)
"""


def new_make(name):
    from lp_target import Cart

    cart = Cart(name)
    cart.new = True
    return cart


def new_hold(gate, name):
    gate()
    return new_make(name)


@pytest.fixture
def target(module):
    return module(SOURCE)


class Seen:
    """Callbacks for instances and for the object, which write down whom they meet."""

    def __init__(self, **raising):
        self.events, self.raising = [], raising
        self.instances = lp.Callbacks(*(self._each(moment) for moment in MOMENTS))
        self.callbacks = lp.Callbacks(*(self._once(moment) for moment in MOMENTS))

    def _each(self, moment):
        def callback(cart):
            self.events.append((moment, cart.name))
            error = self.raising.get(moment, {}).get(cart.name)
            if error is not None:
                raise error
            return cart  # what they return does not matter

        return callback

    def _once(self, moment):
        def callback(obj):
            self.events.append((moment, obj))

        return callback

    def at(self, moment):
        return sorted(name for event, name in self.events if event == moment and isinstance(name, str))

    def moments(self):
        """The moments in order, those of the object in capitals."""
        shown = [moment if isinstance(name, str) else moment.upper() for moment, name in self.events]
        return [moment for before, moment in zip([None, *shown], shown, strict=False) if moment != before]


def patch_of(seen, name="P", **options):
    funcs = [lp.Func("make", new_make), lp.Func("hold", new_hold)]
    obj = lp.Object("lp_target", funcs, callbacks=seen.callbacks, instances={"Cart": seen.instances})
    return lp.Patch(name, [obj], **options)


def said(words):
    return [line.removeprefix("livepatch: ") for line in lp.dmesg() if words in line]


def refused(number, patch):
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(patch)
    assert caught.value.errno == number
    assert lp.patches() == []
    return str(caught.value)


def test_when_and_with_whom(target):
    """Old code goes on making instances until its last task has moved: who comes last sees them all."""
    seen = Seen()
    kept = [target.Cart("a"), target.Basket("b")]
    gate, worker = kit.Gate(), kit.Worker()
    try:
        with manual_rounds():
            late = worker.begin(target.hold, gate, "late")
            gate.arrived()
            lp.enable_patch(patch_of(seen))
            assert seen.at("pre_patch") == ["a", "b"]
            kept.append(target.make("c"))
            assert kept[-1].new  # this thread has moved
            kept.append(target.Cart("d"))
            assert seen.at("post_patch") == []
            gate.open()
            kept.append(late.result(kit.PATIENCE))
            assert not hasattr(kept[-1], "new")
            finish()
        assert seen.at("post_patch") == ["a", "b", "c", "d", "late"]
        assert seen.moments() == ["PRE_PATCH", "pre_patch", "POST_PATCH", "post_patch"]
        seen.events.clear()
        gate = kit.Gate()
        with manual_rounds():
            late = worker.begin(target.hold, gate, "later")
            gate.arrived()
            lp.disable_patch("P")
            assert seen.at("pre_unpatch") == ["a", "b", "c", "d", "late"]
            gate.open()
            kept.append(late.result(kit.PATIENCE))
            assert kept[-1].new
            del kept[0]
            finish()
        assert seen.at("post_unpatch") == ["b", "c", "d", "late", "later"]
        assert seen.moments() == ["pre_unpatch", "PRE_UNPATCH", "post_unpatch", "POST_UNPATCH"]
    finally:
        worker.close()
    lp.unload_patch("P")
    references = [weakref.ref(cart) for cart in kept]
    kept.clear()
    del late
    assert all(reference() is None for reference in references)


def test_a_load_that_is_reversed(target):
    """As in the kernel: post_unpatch answers pre_patch, and nobody pre_unpatch."""
    seen, kept = Seen(), [target.Cart("a")]
    gate, worker = kit.Gate(), kit.Worker()
    try:
        with manual_rounds():
            held = worker.begin(target.hold, gate, "b")
            gate.arrived()
            lp.enable_patch(patch_of(seen))
            lp.disable_patch("P")
            gate.open()
            kept.append(held.result(kit.PATIENCE))
            finish()
    finally:
        worker.close()
    assert seen.moments() == ["PRE_PATCH", "pre_patch", "post_unpatch", "POST_UNPATCH"]
    assert seen.at("post_unpatch") == ["a", "b"]
    lp.unload_patch("P")


@pytest.mark.parametrize(
    ("error", "number", "words"),
    [(ValueError("too old"), errno.EINVAL, "ValueError('too old')"), (OSError(16, "busy"), errno.EBUSY, "OSError(16")],
)
def test_pre_patch_refuses(target, error, number, words):
    """What it did to others is taken back where it can be: post_unpatch is called, for all."""
    seen = Seen(pre_patch={"b": error})
    kept = [target.Cart("a"), target.Cart("b"), target.Cart("c")]
    before = dict(vars(target)), [dict(vars(cart)) for cart in kept]
    first = Seen()
    patch = patch_of(seen)
    other = sys.modules["lp_other"] = type(sys)("lp_other")
    other.make = target.make
    patch.objects.insert(0, lp.Object("lp_other", callbacks=first.callbacks))
    sentence = refused(number, patch)
    assert sentence.startswith("The pre-patch callback for instances of 'Cart' in 'lp_target' failed: " + words)
    assert "b" in seen.at("pre_patch")
    assert seen.at("post_unpatch") == ["a", "b", "c"]
    assert seen.moments() == ["PRE_PATCH", "pre_patch", "post_unpatch", "POST_UNPATCH"]
    assert first.moments() == ["PRE_PATCH", "POST_UNPATCH"]
    assert (dict(vars(target)), [dict(vars(cart)) for cart in kept]) == before
    assert said("pre-patch callback failed") == ["pre-patch callback failed for object 'lp_target'"]


def test_interrupted_in_pre_patch(target):
    seen, kept = Seen(pre_patch={"a": KeyboardInterrupt()}), [target.Cart("a")]
    with pytest.raises(KeyboardInterrupt):
        lp.enable_patch(patch_of(seen))
    assert lp.patches() == []
    assert seen.moments() == ["PRE_PATCH", "pre_patch", "post_unpatch", "POST_UNPATCH"]
    assert not hasattr(target.make("x"), "new")
    del kept


@pytest.mark.parametrize("moment", MOMENTS[1:])
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), SystemExit(3)], ids=repr)
def test_the_others_go_on(target, moment, error):
    seen = Seen(**{moment: {"c1": error, "c2": error}})
    kept = [target.Cart(f"c{number}") for number in range(5)]
    lp.enable_patch(patch_of(seen))
    finish()
    kit.take_out("P")
    assert all(seen.at(when) == [cart.name for cart in kept] for when in MOMENTS)
    assert said("a callback failed") == [
        f"a callback failed for 2 of 5 instances of 'Cart' in 'lp_target' and was ignored: {error!r}"
    ]
    del kept
    gc.collect()
    assert list(lp.each_instance(target.Cart)) == []


def test_tens_of_thousands_and_each_once(target):
    kept = [target.Cart(str(number)) for number in range(30_000)]
    counts = dict.fromkeys((cart.name for cart in kept), 0)

    def count(cart):
        counts[cart.name] += 1

    obj = lp.Object("lp_target", [lp.Func("make", new_make)], instances={"Cart": lp.Callbacks(post_patch=count)})
    lp.enable_patch(lp.Patch("P", [obj]))
    finish()
    assert set(counts.values()) == {1}
    kit.take_out("P")


class At(cut_off.At):
    """Raises at the n-th line of the code that calls callbacks."""

    def trace(self, frame, event, arg):
        if frame.f_code.co_filename.endswith(("core/callbacks.py", "core/instances.py")):
            return super().trace(frame, event, arg)
        return self.trace if "/livepatch/core/" in frame.f_code.co_filename else None


@pytest.mark.parametrize("which", ["enable", "disable"])
def test_cut_off_anywhere(target, which):
    """An exception from a signal handler costs no more than the one instance that was being seen to."""
    kept = [target.Cart(str(number)) for number in range(3)]
    ends, number, cut = set(), 1, True
    with manual_rounds():
        while cut:
            seen = Seen()
            if which == "disable":
                lp.enable_patch(patch_of(seen))
                finish()
                seen.events.clear()
            with contextlib.suppress(cut_off.Interrupt), (at := At(number)):
                lp.enable_patch(patch_of(seen)) if which == "enable" else lp.disable_patch("P")
            cut = at.left <= 0
            finish()
            callbacks.running.clear()
            enabled = bool(lp.patches())
            ends.add(enabled)
            due = ["pre_unpatch", "post_unpatch"] if which == "disable" and not enabled else []
            due += ["post_patch"] if enabled and (which == "enable" or seen.at("pre_unpatch")) else []
            due += ["post_unpatch"] if seen.at("pre_patch") and not enabled else []
            for moment in due:
                assert len(set(seen.at(moment))) == len(seen.at(moment)) >= len(kept) - 1, (number, seen.events)
            if enabled:
                lp.disable_patch("P")
                finish()
            with contextlib.suppress(lp.LivepatchError):
                lp.unload_patch("P")
            number += 13
    assert ends == {True, False}
    assert number > 50


@pytest.mark.parametrize(
    ("instances", "words"),
    [
        ({"Nothing": lp.Callbacks()}, "'Nothing' is not a class in the live module 'lp_target'."),
        ({"make": lp.Callbacks()}, "'make' is not a class in the live module 'lp_target'."),
        ({"dict": lp.Callbacks()}, "Not all instances of 'dict' can be found, since it is written in C;"),
        ({"Cart": print}, "Patch 'P': instances are Callbacks by names of classes in 'lp_target'."),
        ({3: lp.Callbacks()}, "Patch 'P': instances are Callbacks by names of classes in 'lp_target'."),
    ],
)
def test_what_makes_no_sense_is_refused_before_anything_runs(target, instances, words):
    target.dict = dict
    seen = Seen()
    obj = lp.Object("lp_target", [lp.Func("make", new_make)], callbacks=seen.callbacks, instances=instances)
    assert refused(errno.EINVAL, lp.Patch("P", [obj])).startswith(words)
    assert seen.events == []


def test_a_replaced_patch_is_not_told(target):
    """As in the kernel: only the callbacks of the one that replaces run."""
    first, second, kept = Seen(), Seen(), [target.Cart("a")]
    lp.enable_patch(patch_of(first))
    finish()
    first.events.clear()
    lp.enable_patch(patch_of(second, "Q", replace=True))
    finish()
    assert first.events == []
    assert (second.at("pre_patch"), second.at("post_patch")) == (["a"], ["a"])
    kit.take_out("Q")
    lp.unload_patch("P")
    del kept


@pytest.fixture
def coming(tmp_path, monkeypatch):
    """A module on disk that is not imported yet."""
    (tmp_path / "lp_target.py").write_text(textwrap.dedent(SOURCE) + "KEPT = Cart('of the body')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("lp_target", None)
    yield
    sys.modules.pop("lp_target", None)


def test_a_module_that_comes(coming):
    seen = Seen()
    lp.enable_patch(patch_of(seen))
    finish()
    assert seen.events == []
    target = importlib.import_module("lp_target")
    assert seen.moments() == ["PRE_PATCH", "pre_patch", "POST_PATCH", "post_patch"]
    assert seen.at("pre_patch") == seen.at("post_patch") == ["of the body"]
    lp.unload_module("lp_target")
    assert seen.moments()[4:] == ["pre_unpatch", "PRE_UNPATCH", "post_unpatch", "POST_UNPATCH"]
    del target
    kit.take_out("P")


@pytest.mark.parametrize("why", ["refuses", "has no such class"])
def test_a_module_that_comes_and_does_not_fit(coming, why):
    seen = Seen(pre_patch={"of the body": ValueError("no")})
    patch = patch_of(seen)
    if why != "refuses":
        patch.objects[0].instances = {"Other": lp.Callbacks()}
    lp.enable_patch(patch)
    finish()
    with pytest.raises(ImportError, match=r"'Other' is not a class|for instances of 'Cart' .* failed"):
        importlib.import_module("lp_target")
    assert "lp_target" not in sys.modules
    wanted = ["PRE_PATCH", "pre_patch", "post_unpatch", "POST_UNPATCH"] if why == "refuses" else []
    assert seen.moments() == wanted
    kit.take_out("P")
