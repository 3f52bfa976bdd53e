"""Who is meant by a tree and by a name."""

import os
import re
import subprocess
import sys
import time

import pytest
from tests.agent.targets import Target, eventually

from livepatch.attach.processes import NoAccess, command_of
from livepatch.fleet.selection import Selection

pytestmark = pytest.mark.once

TREE = f"""
    import os, subprocess
    from multiprocessing import resource_tracker
    resource_tracker.ensure_running()
    sleeper = subprocess.Popen(["sleep", "1000"])
    shell = subprocess.Popen(["sh", "-c", '"{sys.executable}" -c "print(1, flush=True); input()" named-child; true'],
                             stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    shell.stdout.readline()
    say("ready")
    hear()
    shell.kill()
    sleeper.kill()
"""


def names(selection):
    return [each.process.command[-1] for each in selection.find()]


def test_a_tree_is_its_pythons_parents_first():
    """Also below a shell; but neither `sleep`, nor the process in which multiprocessing counts resources."""
    with Target(TREE, arguments=("named-parent",)) as target:
        assert target.hear() == "ready"
        assert names(Selection(trees=(target.pid,))) == ["named-parent", "named-child"]
        above = Selection(trees=(os.getpid(),))
        assert [name for name in names(above) if name.startswith("named-")] == ["named-parent", "named-child"]
        assert os.getpid() not in {each.pid for each in above.find()}
        first, second = Selection(trees=(target.pid,)).find()
        assert (first.named, second.named) == (False, False)
        assert [each.named for each in Selection(pids=(target.pid,), trees=(target.pid,)).find()] == [True, False]
        assert 0 <= first.age() < 600
        target.say()
        eventually(lambda: len(Selection(trees=(target.pid,)).find()) < 2)


def test_a_name_is_looked_for_in_the_command_line_as_pgrep_does():
    with Target("say('ready'); hear()", arguments=("shop", "--port=81")) as target:
        assert target.hear() == "ready"
        for text in (r"shop --port=\d+$", "port=81"):
            assert [each.pid for each in Selection(names=(re.compile(text),)).find()] == [target.pid]
        assert Selection(names=(re.compile("^port=81"),)).find() == []
        with pytest.raises(NoAccess, match="no Python process for --name 'no-such-thing'"):
            Selection(names=(re.compile("no-such-thing"),)).require()


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        (["-m", "livepatch", "dmesg", "--follow", "--pid"], False),
        (["-X", "dev", "-c", "from time import sleep; sleep(1000)", "-m", "livepatch"], True),
    ],
)
def test_livepatch_itself_is_never_meant(words, meant):
    """Its command line has the very text that is looked for."""
    script = "import livepatch as lp; lp.start_agent(); say('ready'); hear()"
    with Target(script) as target:
        assert target.hear() == "ready"
        last = [str(target.pid), "--name", "unlikely-text"] if not meant else ["unlikely-text"]
        with subprocess.Popen([sys.executable, *words, *last], stdout=subprocess.DEVNULL) as other:
            try:
                eventually(lambda: words[0] in command_of(other.pid))
                found = [each.pid for each in Selection(names=(re.compile("unlikely-text"),)).find()]
                assert found == ([other.pid] if meant else [])
            finally:
                other.kill()


def test_a_number_that_is_used_again_is_another_process():
    with Target("hear()") as first, Target("hear()") as second:
        time.sleep(0.05)
        one, two = Selection(pids=(first.pid, second.pid)).find()
        assert one.key != two.key
        assert one.key == Selection(pids=(first.pid,)).find()[0].key


def test_a_process_that_is_none():
    with pytest.raises(NoAccess, match="There is no process"):
        Selection(trees=(2**22 + 1,)).require()
