"""Shadow variables: by identity, never stale, constructed once, and safe wherever objects die."""

import errno
import gc
import threading
import types
import weakref

import pytest
from tests.core.kit import PATIENCE, Gate

import livepatch as lp
from livepatch.core import shadow


class Parent:
    pass


class Slotted:
    """Cannot be weakly referenced."""

    __slots__ = ("name",)


class Hostile:
    """Whoever compares it or asks for its hash has lost."""

    def __eq__(self, other):
        raise AssertionError("compared")

    def __hash__(self):
        raise AssertionError("hashed")

    def __repr__(self):
        raise AssertionError("shown")

    def __getattribute__(self, name):
        raise AssertionError(f"asked for {name}")

    def __bool__(self):
        raise AssertionError("asked for truth")


class Noisy:
    """Data that says when it is dropped, and does something then."""

    def __init__(self, last_words):
        self.last_words = last_words

    def __del__(self):
        self.last_words()


@pytest.fixture(autouse=True)
def empty_table(nothing_stays):
    gc.collect()
    assert not shadow._entries
    yield
    gc.collect()
    left = {entry() for entry in shadow._entries.values()}
    shadow._entries.clear()
    assert not left
    assert not shadow._dead
    assert not shadow._lock._is_owned()


def said():
    return [line.removeprefix("livepatch: ") for line in lp.dmesg()]


def never(*_):
    pytest.fail("was called")


def constructor(value):
    return lambda obj: value


# -- the rules of the kernel ------------------------------------------------------------------------------


def test_from_alloc_to_free():
    parent, freed = Parent(), []
    assert lp.shadow.get(parent, "x") is None
    assert lp.shadow.get(parent, "x", 7) == 7
    data = lp.shadow.alloc(parent, "x", lambda *made_of: list(made_of), 1, 2)
    assert data == [parent, 1, 2]
    assert lp.shadow.get(parent, "x") is data
    assert lp.shadow.get(parent, "y") is None
    lp.shadow.free(parent, "x", lambda *gone: freed.append(gone))
    assert freed == [(parent, data)]
    assert lp.shadow.get(parent, "x") is None
    assert said() == []


def test_without_a_constructor_the_data_is_an_empty_namespace():
    parent, other = Parent(), Parent()
    lp.shadow.alloc(parent, "x").count = 1
    lp.shadow.get_or_alloc(parent, "x").count += 1
    assert lp.shadow.get(parent, "x") == types.SimpleNamespace(count=2)
    assert lp.shadow.get_or_alloc(other, "x") == types.SimpleNamespace()


def test_several_variables_of_several_parents():
    parents, ids = [Parent(), Parent(), Slotted(), Slotted()], [1, "one", (1, "one"), None]
    for number, parent in enumerate(parents):
        for id in ids:
            lp.shadow.alloc(parent, id, constructor((number, id)))
    lp.shadow.free(parents[1], "one")
    found = [[lp.shadow.get(parent, id) for id in ids] for parent in parents]
    expected = [[(number, id) for id in ids] for number in range(4)]
    expected[1][1] = None
    assert found == expected
    gone = []
    lp.shadow.free_all("one", lambda obj, data: gone.append((obj, data)))
    assert sorted((parents.index(obj), data) for obj, data in gone) == [(n, (n, "one")) for n in (0, 2, 3)]
    assert [lp.shadow.get(parent, "one") for parent in parents] == [None] * 4
    assert [lp.shadow.get(parent, None) for parent in parents] == [(n, None) for n in range(4)]
    for id in ids:
        lp.shadow.free_all(id)


def test_rule_24_the_constructor_runs_for_the_winner_only():
    """And alloc on a present one returns nothing."""
    parent = Parent()
    data = lp.shadow.alloc(parent, "x", constructor([]))
    assert lp.shadow.alloc(parent, "x", never) is None
    assert said() == [f"Duplicate shadow variable <Parent at {id(parent):#x}, 'x'>"]
    assert lp.shadow.get_or_alloc(parent, "x", never) is data
    assert lp.shadow.get(parent, "x") is data
    assert len(said()) == 1


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (lambda: ValueError("no"), -errno.EINVAL),
        (lambda: OSError(errno.ENODEV, "gone"), -errno.ENODEV),
        (lambda: OSError("without a number"), -errno.EINVAL),
        (lambda: MemoryError(), -errno.ENOMEM),
        (None, -errno.EINVAL),
    ],
)
@pytest.mark.parametrize("function", [shadow.alloc, shadow.get_or_alloc])
def test_a_constructor_that_fails(function, error, number):
    def construct(obj):
        if error:
            raise error()

    parent = Parent()
    assert function(parent, 5, construct) is None
    assert lp.shadow.get(parent, 5) is None
    kernels, ours = said()
    assert kernels == f"Failed to construct shadow variable <Parent at {id(parent):#x}, 5> ({number})"
    assert ours.endswith(f"failed: {error()!r}" if error else "failed: it returned None")
    assert not shadow._entries
    assert function(parent, 5, constructor(1)) == 1


def test_a_constructor_that_is_interrupted():
    def construct(obj):
        raise KeyboardInterrupt

    parent = Parent()
    with pytest.raises(KeyboardInterrupt):
        lp.shadow.alloc(parent, "x", construct)
    assert lp.shadow.alloc(parent, "x", constructor(1)) == 1


def test_free_of_an_absent_one_calls_nothing():
    parent = Parent()
    lp.shadow.free(parent, "x", never)
    lp.shadow.free_all("x", never)
    lp.shadow.alloc(parent, "x")
    lp.shadow.free(parent, "y", never)
    lp.shadow.free(Parent(), "x", never)
    assert lp.shadow.get(parent, "x") is not None


def test_a_destructor_sees_the_variable_gone():
    parent, seen = Parent(), []
    lp.shadow.alloc(parent, "x")
    lp.shadow.free(parent, "x", lambda obj, data: seen.append(lp.shadow.get(obj, "x")))
    assert seen == [None]


def test_a_destructor_that_fails_frees_all_the_same():
    parents = [Parent() for _ in range(3)]
    for parent in parents:
        lp.shadow.alloc(parent, "x")

    def destroy(obj, data):
        raise ValueError("no")

    lp.shadow.free_all("x", destroy)
    assert [lp.shadow.get(parent, "x") for parent in parents] == [None] * 3
    assert len(said()) == 3
    assert said()[0].endswith("failed and was ignored: ValueError('no')")


@pytest.mark.parametrize(
    "call",
    [
        lambda obj: lp.shadow.alloc(obj, "other"),
        lambda obj: lp.shadow.get_or_alloc(obj, "other"),
        lambda obj: lp.shadow.free(obj, "x"),
        lambda obj: lp.shadow.free_all("x"),
    ],
)
def test_the_lock_is_no_playground(call):
    """A constructor or destructor that needs the lock is refused, where the kernel would hang."""
    parent, refused, kept = Parent(), [], Parent()
    lp.shadow.alloc(kept, "x", constructor("kept"))

    def misbehave(obj, *data):
        with pytest.raises(lp.LivepatchError) as caught:
            call(obj)
        refused.append(caught.value)
        assert lp.shadow.get(kept, "x") == "kept"
        assert lp.shadow.get_or_alloc(kept, "x") == "kept"  # needs no lock either
        return "made"

    assert lp.shadow.alloc(parent, "x", misbehave) == "made"
    lp.shadow.free(parent, "x", misbehave)
    assert [error.errno for error in refused] == [errno.EDEADLK] * 2
    assert "they may only get" in str(refused[0])
    assert lp.shadow.alloc(parent, "y", call) is None  # it does not catch: it has failed
    assert f"({-errno.EDEADLK})" in said()[0]


def test_what_cannot_be_an_id_is_refused_before_anything_happens():
    with pytest.raises(TypeError, match="unhashable"):
        lp.shadow.alloc(Parent(), [], never)


# -- identity ---------------------------------------------------------------------------------------------


def test_equal_parents_have_variables_of_their_own():
    class Equal:
        def __eq__(self, other):
            return True

        __hash__ = None

    one, two = Equal(), Equal()
    lp.shadow.alloc(one, "x", constructor(1))
    assert lp.shadow.get(two, "x") is None
    lp.shadow.alloc(two, "x", constructor(2))
    assert (lp.shadow.get(one, "x"), lp.shadow.get(two, "x")) == (1, 2)
    lists = [], []
    lp.shadow.alloc(lists[0], "x", constructor(1))
    assert lp.shadow.get(lists[1], "x") is None
    lp.shadow.free(lists[0], "x")


@pytest.mark.parametrize("function", [shadow.alloc, shadow.get_or_alloc])
def test_nothing_is_asked_of_a_parent(function):
    parent = Hostile()
    assert function(parent, "x", constructor(1)) == 1
    assert lp.shadow.get(parent, "x") == 1
    assert lp.shadow.alloc(parent, "x") is None
    assert lp.shadow.alloc(parent, "y", constructor(None)) is None
    lp.shadow.free(parent, "x", lambda obj, data: None)
    lp.shadow.alloc(parent, "x")
    lp.shadow.free_all("x", lambda obj, data: 1 / 0)
    assert "Hostile at" in said()[-1]


def slotted(inside):
    parent = Slotted()
    parent.name = inside
    return parent


@pytest.mark.parametrize(
    "make", [slotted, lambda inside: (inside,), lambda inside: [inside], lambda inside: {0: inside}]
)
def test_what_cannot_be_weakly_referenced_is_kept_alive(make):
    content = Parent()
    inside, parent = weakref.ref(content), make(content)
    lp.shadow.alloc(parent, "x", constructor("data"))
    lp.shadow.alloc(parent, "y")
    lp.shadow.free(parent, "x")
    del content, parent
    gc.collect()
    assert inside() is not None
    lp.shadow.free_all("y")
    gc.collect()
    assert inside() is None


@pytest.mark.parametrize("parent", [10**30, "text", b"", 1.5, None, object(), types.SimpleNamespace(), slice(1), ...])
def test_anything_can_be_a_parent(parent):
    assert lp.shadow.alloc(parent, "x", constructor("data")) == lp.shadow.get(parent, "x") == "data"
    lp.shadow.free(parent, "x")
    assert lp.shadow.get(parent, "x") is None


@pytest.mark.parametrize(
    "make", [Parent, lambda: {1}.copy(), lambda: lambda: None, lambda: type("T", (), {}), lambda: threading.Lock()]
)
def test_what_can_be_is_not(make):
    parent = make()
    lp.shadow.alloc(parent, "x", lambda obj: Parent())
    data = weakref.ref(lp.shadow.get(parent, "x"))
    del parent
    gc.collect()
    assert data() is None
    assert not shadow._entries


def test_a_proxy_is_an_object_of_its_own():
    parent = Parent()
    proxy = weakref.proxy(parent)
    lp.shadow.alloc(parent, "x", constructor(1))
    assert lp.shadow.get(proxy, "x") is None
    assert lp.shadow.alloc(proxy, "x", constructor(2)) == 2
    lp.shadow.free(proxy, "x")
    assert lp.shadow.get(parent, "x") == 1


# -- death ------------------------------------------------------------------------------------------------


def crowd(ctor):
    """So many parents with a variable that some of their addresses are bound to be used again."""
    parents = [Parent() for _ in range(200)]
    for parent in parents:
        lp.shadow.alloc(parent, "x", ctor)
    return parents, {id(parent) for parent in parents}


def successors(addresses):
    """New objects at the addresses of dead ones."""
    fresh = [Parent() for _ in range(100 * len(addresses))]
    found = [parent for parent in fresh if id(parent) in addresses]
    assert found, "no address was used again"
    return found


def test_an_address_that_is_used_again():
    parents, addresses = crowd(constructor("stale"))
    parents.clear()
    assert not shadow._entries
    assert {lp.shadow.get(parent, "x") for parent in successors(addresses)} == {None}


def test_an_address_that_is_used_again_before_the_callback():
    """The callback cannot clear up while another thread holds the lock; the new object finds nothing, is given a
    variable of its own, and keeps it when the old entry is cleared away at last.
    """
    gate, other, results, dropped = Gate(), Parent(), [], []
    parents, addresses = crowd(lambda obj: Noisy(lambda: dropped.append(shadow._lock._is_owned())))

    def hold(obj):
        gate()
        return "other"

    holder = threading.Thread(target=lambda: results.append(lp.shadow.alloc(other, "x", hold)))
    holder.start()
    gate.arrived()
    count = len(parents)
    parents.clear()
    again = successors(addresses)
    assert len(shadow._dead) == count
    assert addresses <= shadow._entries.keys()
    assert not dropped
    assert {lp.shadow.get(parent, "x") for parent in again} == {None}
    gate.open()
    holder.join(PATIENCE)
    assert results == ["other"]
    assert not shadow._dead
    assert dropped == [False] * count
    assert {lp.shadow.get_or_alloc(parent, "x", constructor("new")) for parent in again} == {"new"}


def test_a_stale_entry_makes_room_for_a_new_one():
    """The same, with the entry still there when the new object gets its variable."""
    dropped = []
    parents, addresses = crowd(lambda obj: Noisy(lambda: dropped.append(shadow._lock._is_owned())))
    count = len(parents)
    shadow._burying.here = True  # as if this thread were clearing up, further down its stack
    try:
        parents.clear()
        again = successors(addresses)
        for parent in again:
            lp.shadow.free(parent, "x", never)
            assert lp.shadow.alloc(parent, "x", constructor("new")) == "new"
        assert not dropped  # the queue holds it still
    finally:
        shadow._burying.here = False
    shadow._bury()
    assert dropped == [False] * count
    assert {lp.shadow.get(parent, "x") for parent in again} == {"new"}


def test_finalizers_that_ask():
    """Dying by reference count, an object still has its variables; another at its address never has."""
    seen = []

    class Asking:
        def __del__(self):
            seen.append(lp.shadow.get(self, "x"))
            lp.shadow.free(self, "x", lambda obj, data: seen.append(data))
            seen.append(lp.shadow.get(self, "x"))

    parent = Asking()
    lp.shadow.alloc(parent, "x", constructor("data"))
    del parent
    assert seen == ["data", "data", None]
    parent = Asking()
    lp.shadow.alloc(parent, "x", constructor("data"))
    parent.cycle = parent
    seen.clear()
    del parent
    gc.collect()
    assert seen in ([None, None], ["data", "data", None])  # which of them is the interpreter's affair
    assert not shadow._entries


@pytest.mark.parametrize("cyclic", [False, True])
def test_a_finalizer_that_allocates(cyclic):
    addresses = set()

    class Asking(Parent):
        def __del__(self):
            assert lp.shadow.get_or_alloc(self, "x", constructor("late")) == "late"
            addresses.add(id(self))

    parents = [Asking() for _ in range(200)]
    if cyclic:
        for parent in parents:
            parent.cycle = parent
        del parent
    parents.clear()
    gc.collect()
    assert len(addresses) == 200
    assert {lp.shadow.get(parent, "x") for parent in successors(addresses)} == {None}
    lp.shadow.free_all("nothing")  # clears away what died without a callback, too
    assert not shadow._entries


@pytest.mark.parametrize("cyclic", [False, True])
def test_resurrection(cyclic):
    """A resurrected object has its own variables or none, and can have new ones."""
    saved = []

    class Phoenix:
        def __del__(self):
            saved.append(self)

    parent = Phoenix()
    if cyclic:
        parent.cycle = parent
    lp.shadow.alloc(parent, "x", constructor("old"))
    del parent
    gc.collect()
    (parent,) = saved
    assert lp.shadow.get(parent, "x") in ("old", None)
    lp.shadow.free(parent, "x")
    assert lp.shadow.alloc(parent, "x", constructor("new")) == "new"
    gc.collect()
    assert lp.shadow.get(parent, "x") == "new"
    saved.clear()
    parent.__dict__.clear()
    del parent
    gc.collect()
    assert not shadow._entries


def test_data_that_dies_may_use_the_interface():
    """It is dropped outside of the lock, however it comes to that."""
    parent, other, seen = Parent(), Parent(), []

    def last_words():
        seen.append(lp.shadow.get_or_alloc(other, len(seen), constructor("said")))

    def noisy(obj):
        return Noisy(last_words)

    lp.shadow.alloc(parent, "x", noisy)
    lp.shadow.free(parent, "x")
    lp.shadow.alloc(parent, "x", noisy)
    lp.shadow.free_all("x")
    lp.shadow.alloc(parent, "x", noisy)
    del parent
    assert seen == ["said"] * 3


def test_a_collection_in_the_middle_of_everything():
    """Cycles of parents die inside constructors and destructors: nothing hangs and nothing is lost."""
    dropped = []

    def garbage():
        for _ in range(10):
            doomed = Parent()
            doomed.cycle = doomed
            yield doomed

    def collect(obj, *data):
        gc.collect()
        return "made"

    for doomed in garbage():
        lp.shadow.alloc(doomed, "x", lambda obj: Noisy(lambda: dropped.append(shadow._lock._is_owned())))
    del doomed
    parent = Parent()
    lp.shadow.alloc(parent, "x", collect)
    assert dropped == [False] * 10
    for doomed in garbage():
        lp.shadow.alloc(doomed, "y", lambda obj: Noisy(lambda: dropped.append(shadow._lock._is_owned())))
    del doomed
    lp.shadow.free_all("x", collect)
    assert dropped == [False] * 20


def test_a_long_chain_dies_without_recursion():
    """Each parent is kept alive by the data of the one before."""
    first = parent = Parent()
    for _ in range(20_000):
        following = Parent()
        lp.shadow.alloc(parent, "next", constructor(following))
        parent = following
    end = weakref.ref(parent)
    del parent, following, first
    assert end() is None
    assert not shadow._entries


def test_freeing_leaves_nothing(garbage):
    parents = [Parent() for _ in range(100)]
    held = [Slotted() for _ in range(100)]

    def turn():
        for parent in parents + held:
            lp.shadow.alloc(parent, "x")
            lp.shadow.get_or_alloc(parent, "y")
        lp.shadow.free_all("x")
        for parent in parents + held:
            lp.shadow.free(parent, "y")
        for _ in range(100):
            lp.shadow.alloc(Parent(), "x")

    def alive():
        garbage()
        ours = (shadow._Weak, shadow._Strong, types.SimpleNamespace, Parent)
        return [thing for thing in gc.get_objects() if type(thing) in ours and thing not in parents]

    before = alive()
    for _ in range(5):
        turn()
    assert len(alive()) <= len(before)
    assert not shadow._entries
