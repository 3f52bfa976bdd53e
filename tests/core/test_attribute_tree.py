"""The attribute tree: names, modes, values and errnos, as observed on running kernels."""

import asyncio
import errno
import stat
import sys
import threading

import pytest
from tests.core import kit

import livepatch as lp
from livepatch.core import attributes, lists, log, registry
from livepatch.testing import finish, tick

pytestmark = pytest.mark.usefixtures("rounds_by_hand")

SOURCE = """
    def f(gate=None):
        if gate: gate()
        return "old"
    def g(): return "old"
"""
NEW = SOURCE.replace("old", "new")
FILES = {"enabled": 0o644, "force": 0o200, "replace": 0o444, "stack_order": 0o444, "transition": 0o444}


def refused(number, call, *arguments):
    """The sentence of a refusal."""
    with pytest.raises(lp.LivepatchError) as caught:
        call(*arguments)
    assert caught.value.errno == number, caught.value
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def shown(name="P"):
    """The values of all of a patch's attributes that can be read, "-" for none."""
    if name not in lp.tree.listdir():
        return "-"
    return " ".join(f"{file}={lp.tree.read(f'{name}/{file}')}" for file in ("enabled", "transition", "stack_order"))


@pytest.fixture
def target(module):
    return module(SOURCE)


@pytest.fixture
def patch(target):
    return kit.built("P", target, NEW, "f", "g")


@pytest.fixture
def in_transition(patch, target, held):
    """P is being enabled, and a thread is in the way."""
    held.begin(target.f)
    lp.enable_patch(patch)
    yield patch
    if registry.running_transition() is not None:
        held.release()
        finish()


# -- what there is -------------------------------------------------------------------------------------------


def test_an_empty_tree():
    assert lp.tree.listdir() == lp.tree.listdir("") == lp.tree.listdir("/") == []
    assert lp.tree.mode("") == 0o755


def test_the_layout_and_the_modes(module):
    target = module(SOURCE + "    class C:\n        def m(self): return [i for i in ()]\n")
    funcs = [lp.Func("f", lambda gate=None: 1), lp.Func("g", lambda: 1, old_sympos=1), lp.Func("C.m", lambda self: 1)]
    absent = [lp.Func("h.<locals>.inner", lambda: 1, old_sympos=3)]
    objects = [lp.Object(None), lp.Object(target.__name__, funcs), lp.Object("lp_absent.sub", absent)]
    lp.enable_patch(lp.Patch("P", objects))
    assert lp.tree.listdir() == ["P"]
    assert sorted(lp.tree.listdir("P")) == sorted([*FILES, "vmlinux", "lp_target", "lp_absent.sub"])
    assert sorted(lp.tree.listdir("P/lp_target")) == ["C.m,1", "f,1", "g,1", "patched"], "position 0 shows as 1"
    assert lp.tree.listdir("P/lp_absent.sub") == ["h.<locals>.inner,3", "patched"], "although it is not there"
    assert lp.tree.listdir("P/vmlinux") == ["patched"]
    for path in ("P", "P/vmlinux", "P/lp_target", "P/lp_target/f,1", "P/lp_absent.sub/h.<locals>.inner,3"):
        assert lp.tree.mode(path) == 0o755
        assert stat.S_ISDIR(lp.tree.st_mode(path))
    assert lp.tree.listdir("P/lp_target/f,1") == []
    for name, mode in {**FILES, "lp_target/patched": 0o444, "vmlinux/patched": 0o444}.items():
        assert lp.tree.mode(f"P/{name}") == mode
        assert lp.tree.st_mode(f"P/{name}") == stat.S_IFREG | mode
    kit.take_out("P")


def test_values_of_an_enabled_patch(patch):
    lp.enable_patch(patch)
    values = {name: lp.tree.read(f"P/{name}") for name in FILES if name != "force"}
    assert values == {"enabled": "1", "replace": "0", "stack_order": "1", "transition": "0"}
    assert lp.tree.read("P/lp_target/patched") == "1"
    kit.take_out("P")


def test_a_slash_in_a_name_shows_as_in_sysfs(target):
    lp.enable_patch(lp.Patch("a/b", [lp.Object("lp_target")]))
    assert lp.tree.listdir() == ["a!b"]
    lp.tree.write("a!b/enabled", "0")
    lp.unload_patch("a/b")


def test_a_module_called_like_an_attribute_does_not_hide_it(module):
    lp.enable_patch(lp.Patch("P", [lp.Object("force"), lp.Object("enabled")]))
    assert sorted(lp.tree.listdir("P")) == sorted(FILES)
    assert lp.tree.read("P/enabled") == "1"
    kit.take_out("P")


def test_what_is_not_there(patch):
    lp.enable_patch(patch)
    for path in ("Q", "P/nothing", "Q/enabled", "P/lp_target/f", "P/lp_target/f,2", "P/lp_target/f,1/x", "p/enabled"):
        for call in (lp.tree.read, lp.tree.listdir, lp.tree.mode, lambda path: lp.tree.write(path, "0")):
            assert path in refused(errno.ENOENT, call, path)
    for call in (lp.tree.read, lp.tree.listdir, lp.tree.mode, lambda path: lp.tree.write(path, "0")):
        refused(errno.ENOTDIR, call, "P/enabled/x")
    kit.take_out("P")


@pytest.mark.parametrize("path", ["", "P", "P/lp_target", "P/lp_target/f,1"])
def test_a_directory_is_no_file(path, patch):
    lp.enable_patch(patch)
    refused(errno.EISDIR, lp.tree.read, path)
    refused(errno.EISDIR, lp.tree.write, path, "0")
    kit.take_out("P")


@pytest.mark.parametrize("name", [*FILES, "lp_target/patched"])
def test_a_file_is_no_directory_and_its_mode_decides(name, patch):
    lp.enable_patch(patch)
    path = f"P/{name}"
    refused(errno.ENOTDIR, lp.tree.listdir, path)
    mode = lp.tree.mode(path)
    if not mode & 0o400:
        assert "0200" in refused(errno.EACCES, lp.tree.read, path)
    if not mode & 0o200:
        for value in ("1", "0", "", "garbage"):
            assert "0444" in refused(errno.EACCES, lp.tree.write, path, value)
    assert shown() == "enabled=1 transition=0 stack_order=1"
    kit.take_out("P")


# -- through the life of a patch -------------------------------------------------------------------------------


def test_enabled_is_the_goal_and_transition_says_whether_it_is_reached(in_transition, held):
    assert shown() == "enabled=1 transition=1 stack_order=1"
    lp.tree.write("P/enabled", "0")
    assert shown() == "enabled=0 transition=1 stack_order=1"
    lp.tree.write("P/enabled", "1")
    assert shown() == "enabled=1 transition=1 stack_order=1"
    held.release()
    finish()
    assert shown() == "enabled=1 transition=0 stack_order=1"
    held.begin(sys.modules["lp_target"].f)
    lp.disable_patch("P")
    assert shown() == "enabled=0 transition=1 stack_order=1"
    held.release()
    finish()
    assert shown() == "-"
    refused(errno.ENOENT, lp.tree.read, "P/enabled")
    refused(errno.ENOENT, lp.tree.write, "P/enabled", "1")
    lp.unload_patch("P")


def test_the_directory_is_there_from_the_beginning_to_the_end(target):
    seen = []

    def look(name):
        return lambda obj: seen.append((name, shown(), lp.tree.read("P/lp_target/patched")))

    names = ("pre_patch", "post_patch", "pre_unpatch", "post_unpatch")
    callbacks = lp.Callbacks(**{name: look(name) for name in names})
    lp.enable_patch(kit.built("P", target, NEW, "f", callbacks=callbacks))
    kit.take_out("P")
    assert seen == [
        ("pre_patch", "enabled=0 transition=1 stack_order=1", "0"),
        ("post_patch", "enabled=1 transition=1 stack_order=1", "1"),
        ("pre_unpatch", "enabled=1 transition=1 stack_order=1", "1"),
        ("post_unpatch", "enabled=0 transition=1 stack_order=1", "0"),
    ]


def test_nothing_stays_of_a_patch_that_was_refused(target):
    seen = []

    def refuse(obj):
        seen.append(shown())
        return -errno.ENODEV

    refused(errno.ENODEV, lp.enable_patch, kit.built("P", target, NEW, "f", callbacks=lp.Callbacks(refuse)))
    assert seen == ["enabled=0 transition=1 stack_order=1"]
    assert lp.tree.listdir() == []


def test_a_patch_that_meets_a_transition_leaves_nothing(in_transition, target):
    refused(errno.EBUSY, lp.enable_patch, kit.built("Q", target, NEW, "g"))
    assert lp.tree.listdir() == ["P"]
    lp.tree.write("P/enabled", "0")
    tick()
    assert lp.tree.listdir() == []
    lp.unload_patch("P")


def test_stack_order_counts_from_the_oldest(target):
    for name in "ABC":
        lp.enable_patch(kit.built(name, target, NEW, "f"))
    assert [lp.tree.read(f"{name}/stack_order") for name in lp.tree.listdir()] == ["1", "2", "3"]
    lp.tree.write("B/enabled", "0")
    assert lp.tree.listdir() == ["A", "C"], "any patch may go, whatever its position"
    assert [lp.tree.read(f"{name}/stack_order") for name in "AC"] == ["1", "2"]
    for name in "ABC":
        if name != "B":
            lp.tree.write(f"{name}/enabled", "0")
        lp.unload_patch(name)


def test_patched_is_0_while_the_module_is_absent(module, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "lp_later.py").write_text("def f(): return 'old'\n")
    module(SOURCE)
    later = lp.Object("lp_later", [lp.Func("f", lambda: "new")])
    lp.enable_patch(lp.Patch("P", [lp.Object("lp_target"), later]))
    assert [lp.tree.read(f"P/{name}/patched") for name in ("lp_target", "lp_later")] == ["1", "0"]
    import lp_later

    assert lp_later.f() == "new"
    assert lp.tree.read("P/lp_later/patched") == "1"
    assert sorted(lp.tree.listdir("P/lp_later")) == ["f,1", "patched"]
    lp.unload_module("lp_later")
    assert lp.tree.read("P/lp_later/patched") == "0"
    assert sorted(lp.tree.listdir("P/lp_later")) == ["f,1", "patched"]
    kit.take_out("P")


def test_what_an_atomic_replace_adds_is_there_as_long_as_it_exists(module, target, held):
    other = module("def h(): return 'old'", "lp_other")
    lp.enable_patch(kit.built("A", target, NEW, "f"))
    lp.enable_patch(kit.built("B", other, "def h(): return 'new'", "h"))
    seen = []
    callbacks = lp.Callbacks(post_patch=lambda obj: seen.append(lp.tree.listdir()))
    cumulative = kit.built("P", target, NEW, "g", callbacks=callbacks)
    cumulative.replace = True
    held.begin(target.f)
    lp.enable_patch(cumulative)
    assert lp.tree.listdir() == ["A", "B", "P"]
    assert [lp.tree.read(f"{name}/replace") for name in "ABP"] == ["0", "0", "1"]
    assert [lp.tree.read(f"{name}/transition") for name in "ABP"] == ["0", "0", "1"]
    assert sorted(lp.tree.listdir("P")) == sorted([*FILES, "lp_target", "lp_other"])
    assert sorted(lp.tree.listdir("P/lp_target")) == ["f,1", "g,1", "patched"]
    assert sorted(lp.tree.listdir("P/lp_other")) == ["h,1", "patched"]
    assert lp.tree.read("P/lp_other/patched") == "1"
    held.release()
    finish()
    assert seen == [["A", "B", "P"]], "what is replaced is listed until the end"
    assert lp.tree.listdir() == ["P"]
    assert sorted(lp.tree.listdir("P")) == sorted([*FILES, "lp_target"])
    assert sorted(lp.tree.listdir("P/lp_target")) == ["g,1", "patched"]
    assert lp.tree.read("P/stack_order") == "1"
    kit.take_out("P")
    lp.unload_patch("A")
    lp.unload_patch("B")


# -- writing enabled -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ["garbage", "2", "-1", "o", "x0", " 0", " ", "\n", "\n0"])
def test_garbage_is_refused_first(value, in_transition):
    for name in ("enabled", "force"):
        refused(errno.EINVAL, lp.tree.write, f"P/{name}", value)
    assert shown() == "enabled=1 transition=1 stack_order=1"
    lp.tree.write("P/enabled", "0")
    tick()
    lp.unload_patch("P")


def test_writing_nothing_is_accepted(in_transition):
    for name in ("enabled", "force"):
        lp.tree.write(f"P/{name}", "")
    assert shown() == "enabled=1 transition=1 stack_order=1"
    lp.tree.write("P/enabled", "0")
    tick()
    lp.unload_patch("P")


@pytest.mark.parametrize("value", ["0", "0\n", "no", "False", "off", "d", 0])
def test_writing_false_disables(value, patch, target):
    lp.enable_patch(patch)
    lp.tree.write("P/enabled", value)
    assert target.f() == "old"
    assert lp.tree.listdir() == []
    lp.unload_patch("P")


@pytest.mark.parametrize("value", ["1", "1\n", "yes", "True", "on", "e", 1])
def test_the_value_that_it_has_is_refused(value, patch, in_transition, held):
    refused(errno.EINVAL, lp.tree.write, "P/enabled", value)
    held.release()
    finish()
    refused(errno.EINVAL, lp.tree.write, "P/enabled", value)
    kit.take_out("P")


def test_another_patch_cannot_be_disabled_during_a_transition(target, held):
    lp.enable_patch(kit.built("Q", target, NEW, "g"))
    held.begin(target.f)
    lp.enable_patch(kit.built("P", target, NEW, "f"))
    refused(errno.EBUSY, lp.tree.write, "Q/enabled", "0")
    refused(errno.EINVAL, lp.tree.write, "Q/enabled", "1")
    held.release()
    finish()
    kit.take_out("P")
    kit.take_out("Q")


# -- writing force -------------------------------------------------------------------------------------------


def test_force_ends_the_transition_with_the_next_round(in_transition, held):
    lp.tree.write("P/force", "0")
    assert not any("forcing" in line for line in lp.dmesg())
    lp.tree.write("P/force", "1")
    assert "livepatch: forcing remaining tasks to the patched state" in lp.dmesg()
    assert lp.tree.read("P/transition") == "1", "completion comes with the next round"
    tick()
    assert shown() == "enabled=1 transition=0 stack_order=1"
    held.release()
    kit.take_out("P")


def test_force_on_whom_no_transition_is_about(in_transition, target, held):
    held.release()
    finish()
    refused(errno.EINVAL, lp.tree.write, "P/force", "1")
    lp.tree.write("P/force", "0")
    lp.enable_patch(kit.built("Q", target, NEW, "g"))
    held.begin(target.f)
    lp.tree.write("P/enabled", "0")
    refused(errno.EINVAL, lp.tree.write, "Q/force", "1")
    lp.tree.write("Q/force", "0")
    held.release()
    finish()
    lp.unload_patch("P")
    kit.take_out("Q")


# -- locks -----------------------------------------------------------------------------------------------------


def test_reading_takes_no_lock(in_transition):
    """Neither the registry's mutex, which an operation with slow callbacks holds, nor is a transition waited for."""
    taken, done = threading.Event(), threading.Event()

    def hold():
        with lists.mutex.held():
            taken.set()
            assert done.wait(kit.PATIENCE)

    holder = threading.Thread(target=hold)
    holder.start()
    assert taken.wait(kit.PATIENCE)
    try:
        assert shown() == "enabled=1 transition=1 stack_order=1"
        assert lp.tree.read("P/replace") == "0"
        assert lp.tree.read("P/lp_target/patched") == "1"
        assert lp.tree.listdir("P/lp_target/f,1") == []
        for task in attributes.process_tree.listdir("task"):
            assert attributes.process_tree.read(f"task/{task}/patch_state") in ("0", "1")
    finally:
        done.set()
        holder.join()
    lp.tree.write("P/enabled", "0")
    tick()
    lp.unload_patch("P")


def test_a_callback_may_read_but_not_write(target):
    seen = []

    def look(obj):
        seen.append(lp.tree.read("P/transition"))
        refused(errno.EDEADLK, lp.tree.write, "P/enabled", "0")

    lp.enable_patch(kit.built("P", target, NEW, "f", callbacks=lp.Callbacks(post_patch=look)))
    assert seen == ["1"]
    assert not any("callback" in line for line in lp.dmesg())
    kit.take_out("P")


# -- tasks -----------------------------------------------------------------------------------------------------


def tasks(name):
    """Of every task, by its name: the content of one file."""
    read, listdir = attributes.process_tree.read, attributes.process_tree.listdir
    return {read(f"task/{task}/comm"): read(f"task/{task}/{name}") for task in listdir("task")}


def test_the_tree_of_a_process():
    tree = attributes.process_tree
    assert tree.listdir() == ["livepatch", "task"]
    here = f"task/{threading.get_native_id()}"
    assert sorted(tree.listdir(here)) == ["comm", "patch_state", "stack"]
    assert [tree.mode(f"{here}/{name}") for name in ("comm", "patch_state", "stack")] == [0o444, 0o400, 0o400]
    assert tree.read(f"{here}/comm") == threading.current_thread().name
    assert tree.read(f"{here}/patch_state") == "-1", "no transition runs"
    assert "test_the_tree_of_a_process" in tree.read(f"{here}/stack")
    refused(errno.EACCES, tree.write, f"{here}/patch_state", "1")
    refused(errno.ENOENT, tree.read, "task/1/comm")
    refused(errno.EISDIR, tree.read, here)


def test_patch_state_shows_who_blocks(in_transition, held):
    assert {name for name, state in tasks("patch_state").items() if state == "0"} == {"a worker"}
    held.inside[0][0].waited_at()
    innermost, *rest = tasks("stack")["a worker"].splitlines()
    assert innermost.startswith(("Event.wait (", "Condition.wait ("))
    assert any(line.startswith("f (lp_target_old.py:") for line in rest)
    held.release()
    finish()
    assert set(tasks("patch_state").values()) == {"-1"}
    kit.take_out("P")


def test_an_asyncio_task_has_a_name_that_can_be_told_and_kept():
    async def main():
        task = asyncio.create_task(asyncio.sleep(60), name="a/b")
        await asyncio.sleep(0)
        first = [name for name in attributes.process_tree.listdir("task") if name.startswith("asyncio-")]
        task.set_name("c")
        again = [name for name in attributes.process_tree.listdir("task") if name.startswith("asyncio-")]
        assert sorted(first) == sorted(again)
        assert len(first) == 2
        assert "/" not in "".join(first)
        assert "c" in tasks("comm")
        task.cancel()

    asyncio.run(main())


def test_nothing_of_this_is_logged(patch):
    lp.enable_patch(patch)
    log.clear()
    refused(errno.EINVAL, lp.tree.write, "P/enabled", "1")
    refused(errno.EINVAL, lp.tree.write, "P/force", "1")
    refused(errno.EACCES, lp.tree.read, "P/force")
    assert lp.dmesg() == []
    kit.take_out("P")
