"""__livepatch_instances__ in hooks.py: told without executing it, run when what the patch adds is there."""

import dataclasses
import errno

import pytest
from tests.archive.kit import M, disabled, enabled, namespace, refusal
from tests.core.kit import Gate, Worker

import livepatch as lp
from livepatch.archive import byhand, fit, format
from livepatch.core import shadow
from livepatch.core.instances import walks
from livepatch.testing import finish, manual_rounds

#: Connections have no limit; the new release gives new ones a bucket, which old ones lack.
OLD = """
class Connection:
    def __init__(self, peer):
        self.peer = peer

class Secure(Connection):
    pass

def accept(peer, wait=lambda: None):
    wait()
    return Connection(peer)

def request(connection):
    return f"served {connection.peer}"
"""
NEW = """
import livepatch

BUCKET = "lp_pkg.m: how many requests are left"
LIMIT = 2

class Connection:
    def __init__(self, peer):
        self.peer = peer

class Secure(Connection):
    pass

def bucket(connection):
    return [LIMIT]

def accept(peer, wait=lambda: None):
    wait()
    connection = Connection(peer)
    livepatch.shadow.alloc(connection, BUCKET, bucket)
    return connection

def request(connection):
    left = livepatch.shadow.get_or_alloc(connection, BUCKET, bucket)
    if not left[0]:
        return f"refused {connection.peer}"
    left[0] -= 1
    return f"served {connection.peer}"
"""
HOOKS = """
import livepatch as lp
import lp_pkg.m as m

def fill(connection):
    lp.shadow.get_or_alloc(connection, m.BUCKET, m.bucket)

def drop(obj):
    lp.shadow.free_all(m.BUCKET)

__livepatch__ = {"lp_pkg.m": lp.Callbacks(post_unpatch=drop)}
__livepatch_instances__ = {"lp_pkg.m:Connection": lp.Callbacks(pre_patch=fill, post_patch=fill)}
"""


@pytest.fixture
def hooked(package):
    """An archive with these hooks, for a module that is imported."""
    return lambda hooks, old=OLD, new=NEW: package.hooked(hooks, {M: old}, {M: new})


def test_a_fix_that_needs_data_of_every_connection(hooked):
    """A task in the old world makes a connection while others are in the new one: that gets its data, too."""
    archive, m = hooked(HOOKS)
    before, in_class = namespace(m), dict(vars(m.Connection))
    kept = [m.accept("a"), m.Secure("b")]
    shapes = [dict(vars(connection)) for connection in kept]
    gate, worker = Gate(), Worker()
    try:
        with manual_rounds():
            late = worker.begin(m.accept, "late", gate)
            gate.arrived()
            lp.enable_patch(fit.bind(archive))
            assert [shadow.get(connection, m.BUCKET) for connection in kept] == [[2], [2]]
            assert [m.request(kept[0]) for _ in range(3)] == ["served a", "served a", "refused a"]
            gate.open()
            kept.append(late.result(60))
            assert shadow.get(kept[-1], m.BUCKET) is None
            finish()
    finally:
        worker.close()
    assert [shadow.get(connection, m.BUCKET) for connection in kept] == [[0], [2], [2]]
    assert [m.request(kept[2]) for _ in range(3)] == ["served late", "served late", "refused late"]
    lp.disable_patch("fix")
    finish()
    lp.unload_patch("fix")
    assert m.request(kept[0]) == "served a"
    assert not shadow._entries
    assert [dict(vars(connection)) for connection in kept[:2]] == shapes
    assert (namespace(m), dict(vars(m.Connection))) == (before, in_class)


def test_the_archive_as_a_file(hooked):
    archive, m = hooked(HOOKS)
    kept = m.accept("a")
    patch = fit.bind(format.read(format.write(archive)))
    enabled(patch)
    assert shadow.get(kept, m.BUCKET) == [2]
    disabled(patch)
    assert not shadow._entries


def test_instances_alone_make_hooks(hooked):
    archive, m = hooked(
        """
        import livepatch as lp
        __livepatch_instances__: dict = {
            "lp_pkg.m:Connection": lp.Callbacks(post_patch=lambda c: setattr(c, "late", c.peer)),
            "lp_pkg.m:Secure": lp.Callbacks(post_patch=lambda c: setattr(c, "safe", c.late), post_unpatch=vars),
        }
        """
    )
    kept = [m.Connection("a"), m.Secure("b")]
    patch = fit.bind(archive)
    enabled(patch)
    assert [sorted(vars(connection)) for connection in kept] == [["late", "peer"], ["late", "peer", "safe"]]
    disabled(patch)


def test_a_dry_run_knows_the_classes_and_executes_nothing(hooked):
    archive, m = hooked("raise SystemExit\n__livepatch_instances__ = {'lp_pkg.m:Connection': None}")
    kept = [m.Connection(str(number)) for number in range(7)]
    (walk,) = walks(fit.bind(archive, dry=True).objects)
    assert (walk.cls, walk.live) == ("lp_pkg.m:Connection", len(kept))
    assert walk.objects > 1000
    assert walk.seconds > 0
    assert refusal(fit.bind, archive) == "hooks.py failed with SystemExit (line 1)."


def test_a_module_that_is_not_imported(package):
    package.have({M: OLD, "lp_pkg/other.py": OLD})
    package.load("lp_pkg.other")
    archive = package.archive({M: NEW, "lp_pkg/other.py": NEW})
    patch = fit.bind(dataclasses.replace(archive, hooks=HOOKS.replace("import lp_pkg.m as m", "m = None").encode()))
    assert walks(patch.objects) == []
    enabled(patch)
    disabled(patch)


def test_pre_patch_that_raises_refuses_and_nothing_is_changed(hooked):
    archive, m = hooked(HOOKS.replace("def fill(connection):", "def fill(connection):\n    len(connection.peer)"))
    kept = [m.accept("a"), m.accept(5), m.accept("b")]
    before, shapes = namespace(m), [dict(vars(connection)) for connection in kept]
    patch = fit.bind(archive)
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(patch)
    assert caught.value.errno == errno.EINVAL
    assert str(caught.value) == (
        "The pre-patch callback for instances of 'Connection' in 'lp_pkg.m' failed: "
        "TypeError(\"object of type 'int' has no len()\")."
    )
    assert lp.patches() == []
    assert not shadow._entries
    assert (namespace(m), [dict(vars(connection)) for connection in kept]) == (before, shapes)
    assert m.request(kept[0]) == "served a"


WRITTEN = "hooks.py must write __livepatch_instances__ once, as {'module:Class': livepatch.Callbacks(...)}, since it is"
C = "'lp_pkg.m:Connection'"


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ("__livepatch_instances__ = dict()", WRITTEN),
        ("__livepatch_instances__ = {}\n__livepatch_instances__['x:Y'] = 1", WRITTEN),
        (f"if True:\n    __livepatch_instances__ = {{{C}: 1}}", WRITTEN),
        ("name = 'lp_pkg.m:C'\n__livepatch_instances__ = {name: 1}", WRITTEN),
        ("__livepatch_instances__ = {**{}}", WRITTEN),
        ("__livepatch_instances__ = {}\n__livepatch_instances__ = {}", WRITTEN),
        ("__livepatch_instances__ = {3: 1}", "hooks.py has 3 in __livepatch_instances__ instead of 'module:Class'."),
        ("__livepatch_instances__ = {'Cart': 1}", "hooks.py has 'Cart' in __livepatch_instances__ instead of"),
    ],
)
def test_what_cannot_be_told_without_executing_it(hooked, hooks, words):
    """Already the build says so, and so does a check of an archive that was made in another way."""
    assert refusal(byhand.check_hooks, hooks.encode()).startswith(words)
    archive, _ = hooked(hooks)
    assert refusal(fit.bind, archive, dry=True).startswith(words)


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        (
            "__livepatch_instances__ = {'lp_pkg.x:C': 1}",
            "hooks.py has callbacks for 'lp_pkg.x', and the patch changes only: lp_pkg.m.",
        ),
        (f"__livepatch_instances__ = {{{C}: print}}", "hooks.py has <built-in function print> for 'lp_pkg.m:Connectio"),
        (f"__livepatch_instances__ = {{{C}: 1}}\nglobals()['__livepatch_instances__'].clear()", WRITTEN),
        (f"__livepatch_instances__ = {{{C}: 1}}\nglobals()['__livepatch_instances__'] = 1", WRITTEN),
    ],
)
def test_what_makes_no_sense(hooked, hooks, words):
    archive, m = hooked(hooks)
    before = namespace(m)
    assert refusal(fit.bind, archive).startswith(words)
    assert namespace(m) == before


@pytest.mark.parametrize("name", ["Nobody", "accept", "bucket", "Connection.peer"])
def test_a_class_that_is_not_there(hooked, name):
    """A check says so, too, and a load before anything is changed."""
    archive, m = hooked(
        f"import livepatch as lp\n__livepatch_instances__ = {{'lp_pkg.m:{name}': lp.Callbacks(pre_patch=print)}}"
    )
    before = namespace(m)
    words = f"'{name}' is not a class in the live module 'lp_pkg.m'."
    assert refusal(lp.enable_patch, fit.bind(archive)) == words
    from livepatch.core import registry

    assert refusal(registry.check_patch, fit.bind(archive, dry=True)) == words
    assert namespace(m) == before


def test_a_callback_may_go_through_instances_itself(hooked):
    archive, m = hooked(
        """
        import livepatch as lp
        from livepatch import each_instance
        def shut(obj):
            for connection in each_instance(obj.module.Connection, subclasses=False):
                connection.peer = "moved"
        __livepatch__ = {"lp_pkg.m": lp.Callbacks(post_patch=shut)}
        """
    )
    kept = [m.Connection("a"), m.Secure("b")]
    patch = fit.bind(archive)
    enabled(patch)
    assert [connection.peer for connection in kept] == ["moved", "b"]
    disabled(patch)
