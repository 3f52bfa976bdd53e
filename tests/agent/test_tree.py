"""The attribute tree over the socket: the same rules, and no reader waits for a transition or an operation."""

import base64
import stat

import pytest
from tests.agent.targets import Line, Target, eventually

SERVICE = """
    import livepatch as lp
    leave, inside = threading.Event(), threading.Event()
    def answer(): return "old"
    def slow():
        inside.set()
        leave.wait()
    def answered(obj):
        say("in a callback")
        hear()
    say(lp.start_agent())
    while (word := hear()):
        if word == "enter":
            threading.Thread(target=slow, name="worker", daemon=True).start()
            inside.wait()
            say("inside")
        if word == "leave": leave.set()
        if word == "enable":
            callbacks = lp.Callbacks(pre_patch=answered)
            lp.enable_patch(lp.Patch("own", [lp.Object(None, callbacks=callbacks)]), timeout=60.0)
            say("enabled")
"""

PATCH = """
import livepatch as lp
def slow(): return "new"
__livepatch__ = lp.Patch("fix", [lp.Object(None, [lp.Func("slow", slow)])])
"""


@pytest.fixture
def target():
    with Target(SERVICE) as running:
        yield running


@pytest.fixture
def line(target):
    with Line(target.hear()) as connected:
        yield connected


@pytest.fixture
def in_transition(target, line):
    """The patch is being loaded, and a thread is in the way."""
    target.say("enter")
    assert target.hear() == "inside"
    data = base64.b64encode(PATCH.encode()).decode()
    assert line.call("load", file="fix.py", data=data)["result"]["transition"]


def read(line, path):
    return line.call("tree_read", path=path)["result"]


def listdir(line, path):
    return line.call("tree_listdir", path=path)["result"]


def refusal(reply):
    return reply["error"]["data"]["symbol"]


def test_the_whole_tree(target, line, in_transition):
    assert listdir(line, "") == ["livepatch", "task"]
    assert listdir(line, "livepatch") == ["fix"]
    assert sorted(listdir(line, "livepatch/fix/vmlinux")) == ["patched", "slow,1"]
    assert line.call("tree_mode", path="livepatch/fix")["result"] == stat.S_IFDIR | 0o755
    assert line.call("tree_mode", path="livepatch/fix/force")["result"] == stat.S_IFREG | 0o200
    assert line.call("tree_mode", path=f"task/{target.pid}/patch_state")["result"] == stat.S_IFREG | 0o400
    assert read(line, "livepatch/fix/transition") == "1"
    states = {read(line, f"task/{task}/comm"): read(line, f"task/{task}/patch_state") for task in listdir(line, "task")}
    assert states["worker"] == "0"
    assert states["MainThread"] == "1"


def test_what_is_written_is_done(target, line, in_transition):
    assert refusal(line.call("tree_write", path="livepatch/fix/enabled", value="1\n")) == "EINVAL"
    assert line.call("tree_write", path="livepatch/fix/enabled", value="0\n")["result"] is None
    eventually(lambda: listdir(line, "livepatch") == [])
    assert refusal(line.call("tree_write", path="livepatch/fix/enabled", value="1\n")) == "ENOENT"


def test_force(line, in_transition):
    assert line.call("tree_write", path="livepatch/fix/force", value="1")["result"] is None
    eventually(lambda: read(line, "livepatch/fix/transition") == "0")
    assert refusal(line.call("tree_write", path="livepatch/fix/force", value="1")) == "EINVAL"


@pytest.mark.parametrize(
    ("method", "path", "symbol"),
    [
        ("tree_read", "livepatch/fix/force", "EACCES"),
        ("tree_read", "livepatch/fix", "EISDIR"),
        ("tree_read", "livepatch/other/enabled", "ENOENT"),
        ("tree_listdir", "livepatch/fix/enabled", "ENOTDIR"),
        ("tree_listdir", "elsewhere", "ENOENT"),
        ("tree_mode", "task/1/comm", "ENOENT"),
    ],
)
def test_refusals_have_the_errno_of_the_files(line, in_transition, method, path, symbol):
    assert refusal(line.call(method, path=path)) == symbol


def test_writing_what_can_only_be_read(line, in_transition):
    for name in ("transition", "replace", "stack_order", "vmlinux/patched"):
        assert refusal(line.call("tree_write", path=f"livepatch/fix/{name}", value="1")) == "EACCES"


def test_a_reader_does_not_wait_for_the_callbacks_of_another_thread(target, line):
    """The main thread is in the middle of enabling, with the registry's mutex; the agent leaves the rounds to it."""
    target.say("enable")
    assert target.hear() == "in a callback"
    for _ in range(3):
        assert read(line, "livepatch/own/transition") == "1"
        assert read(line, "livepatch/own/enabled") == "0"
        assert read(line, f"task/{target.pid}/patch_state") == "0"
    target.say("go on")
    assert target.hear() == "enabled"
    assert read(line, "livepatch/own/transition") == "0"
