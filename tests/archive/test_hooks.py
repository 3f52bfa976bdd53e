"""hooks.py: the callbacks in an archive, when they run, and that nothing stays where they fail."""

import dataclasses
import errno
import linecache
import textwrap

import pytest
from tests.archive.kit import M, disabled, enabled, refusal

import livepatch as lp
from livepatch.archive import byhand, fit, format
from livepatch.testing import finish

OLD = "SEEN = []\ndef f():\n    return 'old'\n"
NEW = "SEEN = []\nLIMIT = 2\ndef helper():\n    return 'new'\ndef f():\n    return helper()\n"

#: What each callback sees: itself, what calls reach, and what the patch adds.
WATCH = """
    import livepatch as lp
    def watch(name):
        def callback(obj):
            m = obj.module
            m.SEEN.append((name, obj.name, m.f(), m.helper(), m.LIMIT))
        return callback
    names = "pre_patch", "post_patch", "pre_unpatch", "post_unpatch"
    __livepatch__ = {"lp_pkg.m": lp.Callbacks(**{name: watch(name) for name in names})}
"""


@pytest.fixture
def hooked(package):
    """An archive with these hooks, for a module that is imported."""
    return lambda hooks, old=OLD, new=NEW: package.hooked(hooks, {M: old}, {M: new})


def test_the_file(hooked):
    archive, _ = hooked(WATCH)
    assert format.read(format.write(archive)) == archive
    assert format.write(archive) == format.write(archive)


def test_each_callback_runs_when_what_is_added_is_there(hooked):
    archive, m = hooked(WATCH)
    patch = fit.bind(format.read(format.write(archive)))
    enabled(patch)
    assert m.SEEN == [("pre_patch", "lp_pkg.m", "old", "new", 2), ("post_patch", "lp_pkg.m", "new", "new", 2)]
    assert linecache.getline("<livepatch fix>/hooks.py", 2) == "import livepatch as lp\n"
    m.SEEN.clear()
    disabled(patch)
    assert m.SEEN == [("pre_unpatch", "lp_pkg.m", "new", "new", 2), ("post_unpatch", "lp_pkg.m", "old", "new", 2)]
    assert not hasattr(m, "helper")


def test_each_module_has_its_own(package):
    package.have({M: OLD, "lp_pkg/n.py": OLD})
    m, n = package.load("lp_pkg.m"), package.load("lp_pkg.n")
    archive = package.archive({M: NEW, "lp_pkg/n.py": NEW})
    hooks = textwrap.dedent(WATCH).replace("lp_pkg.m", "lp_pkg.n")
    patch = fit.bind(dataclasses.replace(archive, hooks=hooks.encode()))
    enabled(patch)
    assert m.f() == n.f() == "new"
    disabled(patch)
    assert m.SEEN == []
    assert [seen[:2] for seen in n.SEEN] == [
        (name, "lp_pkg.n") for name in ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
    ]


def test_a_module_that_comes_later(package):
    """Its callbacks run after its body: they may need what that defines."""
    package.have({M: OLD, "lp_pkg/late.py": OLD})
    package.load()
    archive = package.archive({M: NEW, "lp_pkg/late.py": OLD.replace("old", "new") + "def helper(): pass\nLIMIT = 1\n"})
    hooks = textwrap.dedent(WATCH).replace("lp_pkg.m", "lp_pkg.late")
    enabled(fit.bind(dataclasses.replace(archive, hooks=hooks.encode())))
    late = package.load("lp_pkg.late")
    assert [seen[:3] for seen in late.SEEN] == [
        ("pre_patch", "lp_pkg.late", "old"),
        ("post_patch", "lp_pkg.late", "new"),
    ]
    lp.disable_patch("fix")
    finish()
    lp.unload_patch("fix")
    assert len(late.SEEN) == 4


def test_reversing_is_told_to_post_unpatch_alone(hooked):
    archive, m = hooked(WATCH.replace("watch(name) for", "watch(name) if name != 'pre_patch' else None for"))
    patch = fit.bind(archive)
    enabled(patch)
    m.SEEN.clear()
    lp.disable_patch("fix")
    finish()
    assert [seen[0] for seen in m.SEEN] == ["pre_unpatch", "post_unpatch"]
    lp.unload_patch("fix")


@pytest.mark.parametrize(
    ("answer", "number", "words"),
    [
        ("return -19", errno.ENODEV, "The pre-patch callback for 'lp_pkg.m' refused: No such device."),
        ("return 1", errno.EINVAL, "The pre-patch callback for 'lp_pkg.m' refused: Invalid argument."),
        ("raise ValueError('not now')", errno.EINVAL, "not now"),
        ("raise OSError(16, 'busy')", errno.EBUSY, "[Errno 16] busy"),
    ],
)
def test_pre_patch_refuses(hooked, answer, number, words):
    archive, m = hooked(
        f"""
        import livepatch as lp
        def refuse(obj): {answer}
        def never(obj): obj.module.SEEN.append("called")
        __livepatch__ = {{"lp_pkg.m": lp.Callbacks(refuse, never, never, never)}}
        """
    )
    before = dict(vars(m))
    patch = fit.bind(archive)
    with pytest.raises(lp.LivepatchError) as caught:
        lp.enable_patch(patch)
    assert (caught.value.errno, str(caught.value)) == (number, words)
    assert vars(m) == before
    assert m.f() == "old"
    assert m.SEEN == []


def test_hooks_that_fail_later_do_not_keep_anything_back(hooked):
    archive, m = hooked(
        """
        import livepatch as lp
        def fail(obj): 1 / 0
        __livepatch__ = {"lp_pkg.m": lp.Callbacks(None, fail, fail, fail)}
        """
    )
    before = dict(vars(m))
    patch = fit.bind(archive)
    enabled(patch)
    assert (m.f(), m.LIMIT) == ("new", 2)
    disabled(patch)
    assert vars(m) == before


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ("x =", "hooks.py failed with SyntaxError (line 1): invalid syntax."),
        ("\nraise ValueError('two\\nlines')", "hooks.py failed with ValueError (line 2): two lines."),
        ("import sys; sys.exit(3)", "hooks.py failed with SystemExit (line 1): 3."),
        ("import lp_nothing", "hooks.py failed with ModuleNotFoundError (line 1): No module named 'lp_nothing'."),
        ("", "hooks.py must leave its callbacks in __livepatch__, as {'module': livepatch.Callbacks(...)}."),
        ("__livepatch__ = 1", "hooks.py must leave its callbacks in __livepatch__, as {'module': livepatch.Call"),
        (
            "import livepatch as lp; __livepatch__ = {'lp_pkg.x': lp.Callbacks()}",
            "hooks.py has callbacks for 'lp_pkg.x', and the patch changes only: lp_pkg.m.",
        ),
        ("__livepatch__ = {'lp_pkg.m': print}", "hooks.py has <built-in function print> for 'lp_pkg.m' instead of"),
    ],
)
def test_hooks_that_are_none(hooked, hooks, words):
    archive, m = hooked(hooks)
    before = dict(vars(m))
    assert refusal(fit.bind, archive).startswith(words)
    assert vars(m) == before
    if "Error" not in words.partition("(")[0] or "Syntax" not in words:
        fit.bind(archive, dry=True)  # a check executes nothing


def test_hooks_are_executed_only_where_the_patch_fits(hooked):
    archive, m = hooked("import lp_pkg.m as m\nm.SEEN.append('executed')\n__livepatch__ = {}")
    m.f.__code__ = (lambda: "other").__code__
    assert "'f'" in refusal(fit.bind, archive)
    assert m.SEEN == []


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"def", "The file with the hooks failed with SyntaxError (line 1): invalid syntax."),
        (b"\0", "The file with the hooks failed with "),
        (b"callbacks = {}", "The file with the hooks must leave its callbacks in __livepatch__"),
    ],
)
def test_what_a_build_sees_without_executing_it(content, words):
    assert refusal(byhand.check_hooks, content).startswith(words)
