"""Callbacks in an archive that was built, from the command line."""

import io
import re
import zipfile

import pytest

OLD = "def answer():\n    return 'old'\n"
NEW = "def answer():\n    return 'new'\n"

#: The service imports the module that is patched; the callbacks leave their traces in it.
SERVICE = """
    sys.path.insert(0, sys.argv[1])
    import service
    service.calls = []
    import livepatch as lp
    lp.start_agent()
    say("ready")
    while hear(): say(service.answer(), *service.calls)
"""
HOOKS = """
import livepatch as lp

def told(obj):
    obj.module.calls.append(obj.module.answer())

__livepatch__ = {"service": lp.Callbacks(pre_patch=told, post_patch=told, pre_unpatch=told, post_unpatch=told)}
"""


@pytest.fixture
def build(lp, trees, tmp_path):
    """Build an archive with these hooks."""

    def built(hooks, *more):
        old, new = trees(OLD, NEW)
        (tmp_path / "callbacks.py").write_text(hooks)
        file = tmp_path / "fix.livepatch"
        return file, lp("build", "-o", file, "--old", old, "--new", new, "--hooks", tmp_path / "callbacks.py", *more)

    return built


@pytest.fixture
def target(tmp_path):
    from tests.agent.targets import Target

    (tmp_path / "live").mkdir()
    (tmp_path / "live" / "service.py").write_text(OLD)
    with Target(SERVICE, arguments=(str(tmp_path / "live"),)) as running:
        assert running.hear() == "ready"
        yield running


def asked(target):
    target.say("?")
    return target.hear()


def test_from_build_to_unload(lp, build, target):
    file, done = build(HOOKS)
    assert done.status == 0, done.err
    with zipfile.ZipFile(io.BytesIO(file.read_bytes())) as archive:
        assert archive.read("hooks.py").decode() == HOOKS
    assert f"brings callbacks, which are executed when it is loaded: unzip -p {file} hooks.py\n" in lp("info", file).out
    assert lp("info", file, "--json").json["hooks"] is True
    assert lp("check", file, "--pid", target.pid).status == 0
    assert asked(target) == "old"
    assert lp("load", file, "--pid", target.pid).status == 0
    assert asked(target) == "new old new"
    assert lp("disable", "fix", "--unload", "--pid", target.pid).status == 0
    assert asked(target) == "old old new new old"


def test_the_same_bytes_every_time(build):
    first, second = (build(HOOKS)[0].read_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ("def", r"The file with the hooks failed with SyntaxError \(line 1\)"),
        ("import livepatch", "The file with the hooks must leave its callbacks in __livepatch__"),
    ],
)
def test_what_is_wrong_already_when_it_is_built(build, hooks, words):
    file, done = build(hooks)
    assert done.status == 1
    assert re.fullmatch(f"livepatch: {words}.*\\.\n", done.err)
    assert not file.exists()


def test_a_file_that_does_not_exist(lp, tmp_path):
    done = lp("build", "-o", "x", "--old", tmp_path, "--new", tmp_path, "--hooks", tmp_path / "nothing.py")
    assert done.status == 2
    assert "nothing.py" in done.err


@pytest.mark.parametrize(
    ("hooks", "words"),
    [
        ("__livepatch__ = 1 / 0", r"hooks.py failed with ZeroDivisionError \(line 1\): division by zero"),
        ("__livepatch__ = {'other': None}", "hooks.py has callbacks for 'other', and the patch changes only: service"),
        (HOOKS.replace("obj.module.calls", "return -16 #"), "The pre-patch callback for 'service' refused"),
    ],
)
def test_what_is_wrong_when_it_is_loaded(lp, build, target, hooks, words):
    file, done = build(hooks)
    assert done.status == 0, done.err
    done = lp("load", file, "--pid", target.pid)
    assert (done.status, done.out) == (1, "")
    assert re.match(f"livepatch: {words}.*\n$", done.err)
    assert asked(target) == "old"
    assert lp("list", "--pid", target.pid, "--json").json[0]["patches"] == []


def test_a_cumulative_archive_takes_the_place_of_all_others(lp, build, target, tmp_path):
    """Built with --replace: what was loaded before it is gone, and need not be disabled to be unloaded."""
    first = tmp_path / "first.py"
    first.write_text(
        "import livepatch as lp\ndef answer(): return 'first'\n"
        "__livepatch__ = lp.Patch('', [lp.Object('service', [lp.Func('answer', answer)])])\n"
    )
    assert lp("load", first, "--pid", target.pid).status == 0
    file, done = build("__livepatch__ = {}", "--replace")
    assert done.status == 0, done.err
    assert "replaces all patches that are loaded before it" in lp("info", file).out
    assert asked(target).startswith("first")
    assert lp("load", file, "--pid", target.pid).status == 0
    assert asked(target).startswith("new")
    assert lp("unload", "first", "--pid", target.pid).status == 0
    assert lp("disable", "fix", "--pid", target.pid).status == 0
    assert asked(target).startswith("old")
