"""What is drawn on a terminal, and that 80 columns are enough for it."""

import os
import pty
import re
import sys

import pytest
from rich.console import Console
from tests.agent.targets import Target, eventually
from tests.cli.conftest import SERVICE

from livepatch.screens import draw

pytestmark = [pytest.mark.once, pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")]
START = "from livepatch.cli import main; main()"


def task(name, *, at="handle (/srv/app/pages.py:7)", seconds=3.0, hint="goes on when the future it awaits is done"):
    return {
        "kind": "asyncio", "name": name, "ident": name, "patch_state": 0, "blocking": [at],
        "stack": ["sleep (/usr/lib/tasks.py:1)", at], "origin": "accept (/srv/app/pages.py:2)", "seconds": seconds,
        "hint": hint,
    }  # fmt: skip


def drawn(renderable, width=80):
    console = Console(width=width, force_terminal=False)
    with console.capture() as capture:
        console.print(renderable)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    assert max(map(len, lines)) <= width
    return lines


def test_a_thousand_tasks_at_the_same_place_are_told_of_together():
    tasks = [task(f"page {number}", seconds=float(number)) for number in range(1000)]
    tasks.insert(500, task("other", at="pay (/srv/app/shop.py:9)", hint=""))
    assert drawn(draw.blockers(tasks)) == [
        "• asyncio page 0, page 1, page 2 and 997 more in handle (pages.py:7) for 17 min",
        "    from accept (pages.py:2)",
        "    goes on when the future it awaits is done",
        "• asyncio other in pay (shop.py:9) for 3 s",
        "    from accept (pages.py:2)",
    ]
    assert drawn(draw.blockers(tasks, most=1))[-1] == "  and at 1 more places"


def test_stacks_show_what_holds():
    (_, _, _, *frames) = drawn(draw.blockers([task("page")], stacks=True))
    assert frames == ["      sleep (tasks.py:1)", "      handle (pages.py:7)  <- in the way"]


def test_names_are_text():
    name = "[bold]x[/bold] [/red]"
    assert name in " ".join(drawn(draw.blockers([task(name)]), width=200))
    table = draw.table(["NAME", "COMMAND"], [[name, name]], 80)
    assert drawn(table)[1].split("  ") == [name, name]


def test_a_narrow_table_loses_nothing_but_the_rest_of_a_program():
    words = [f"function_number_{number}" for number in range(30)]
    lines = drawn(draw.table(["PID", "MODULES", "COMMAND"], [["1", " ".join(words), "python -c '" + "x" * 5000]], 80))
    cells = "".join(line[5:].split("  ")[0].strip() for line in lines)
    assert all(word in cells.replace(" ", "") for word in words)
    assert sum("x" in line for line in lines) == 2


class Terminal:
    """A command on a terminal of 80 columns; what it has drawn so far, in `text`, without colors."""

    def __init__(self, *arguments):
        self.child, self.terminal = pty.fork()
        if self.child == 0:
            os.environ.update(TERM="xterm", COLUMNS="80")
            os.execv(sys.executable, [sys.executable, "-c", START, *map(str, arguments)])
        self._drawn = b""

    @property
    def text(self):
        text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self._drawn.decode(errors="replace"))
        text = text.replace("\r\n", "\n").replace("\r", "\n")  # what is drawn anew begins with the latter
        return "\n".join(line.rstrip() for line in text.split("\n"))

    def until(self, pattern):
        while not (found := re.search(pattern, self.text)):
            self._drawn += os.read(self.terminal, 65536)
        return found

    def end(self):
        try:
            while data := os.read(self.terminal, 65536):
                self._drawn += data
        except OSError:  # the other end is closed
            pass
        os.close(self.terminal)
        said = ("livepatch: ", "Process ")  # what is said, and not drawn, the terminal breaks itself
        assert max(len(line) for line in self.text.splitlines() if not line.startswith(said)) <= 80
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def test_the_bar_of_several_processes(lp, occupied, patch):
    with Target(SERVICE) as other:
        assert other.hear() == "ready"
        other.say("enter")
        assert other.hear() == "inside"
        pids = ("--pid", occupied.pid, "--pid", other.pid)
        loading = Terminal("load", patch("fix", "slow"), *pids)
        loading.until(r"patching 'fix' in 2 processes, 2 not done\n  all of them +\S+ *\S* 2/4 moved, 2 left")
        for pid in (occupied.pid, other.pid):
            loading.until(rf"process {pid} +\S+ *\S* 1/2 moved, 1 left")
            loading.until(rf"waiting for this task of process {pid}:\n  • thread worker in slow \(")
        other.say("leave")
        loading.until(r"in 2 processes, 1 not done")
        occupied.say("leave")
        assert loading.end() == 0
        assert "'fix' is loaded into 2 processes" in loading.text


def test_status_and_tasks(lp, occupied, patch):
    lp("load", patch("other", "answer"), "--pid", occupied.pid)
    lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0, "--on-stall", "keep")
    eventually(lambda: lp("list", "--pid", occupied.pid, "--json").json[0]["patches"][1]["left"] == 1)
    shown = Terminal("status", "--pid", occupied.pid)
    assert shown.end() == 0
    assert re.search(r"^other +1.2 +enabled +- +-$", shown.text, re.M)
    assert re.search(r"^fix +1.2 +patching +\S+ *\S* 1/2, 1 left +\d+\.\d s$", shown.text, re.M)
    assert re.search(r"^fix +__main__ +slow,1$", shown.text, re.M)
    assert re.search(r"^In the way:\n• thread worker in slow \(", shown.text, re.M)
    shown = Terminal("tasks", "--pid", occupied.pid)
    assert shown.end() == 0
    assert re.search(r"^• thread worker in slow \(", shown.text, re.M)
    assert re.search(r"^thread +MainThread +main thread +patched +", shown.text, re.M)
