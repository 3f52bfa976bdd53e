"""`livepatch top`, driven by Textual's pilot, against real processes with real transitions."""

import asyncio
import contextlib
import os
import pty
import re
import signal
import subprocess
import sys
import time

import pytest
from rich.console import Console
from tests.agent.targets import PATIENCE, Target, eventually
from tests.cli.conftest import SERVICE
from tests.cli.test_ps import PLAIN, PRETENDER
from tests.observe.conftest import records
from textual.widgets import DataTable, Footer, Log, Static

from livepatch.agent import PROTOCOL
from livepatch.attach.client import Client
from livepatch.attach.processes import examine, status
from livepatch.fleet.selection import Selection
from livepatch.screens import top, watch
from livepatch.screens.host import Host
from livepatch.screens.top import Top

pytestmark = pytest.mark.once
START = "from livepatch.cli import main; main()"


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    """What is slow for a moment is not shown as if it did not answer."""
    monkeypatch.setattr(watch, "PATIENCE", 5.0)


class Recorded(Top):
    """The screen, which keeps its notices for longer than they are shown."""

    def __init__(self, host):
        super().__init__(host)
        self.said = []

    def notify(self, message, **options):
        self.said.append(message)
        super().notify(message, **options)


class Screen:
    """The screen and its pilot."""

    def __init__(self, app, pilot):
        self.app = app
        self.pilot = pilot

    async def until(self, condition):
        deadline = time.monotonic() + PATIENCE
        while not (value := condition()):
            assert time.monotonic() < deadline, f"it never happened; on the screen: {self.rows()}, {self.said}"
            await self.pilot.pause(0.02)
        return value

    async def press(self, *keys):
        """What answers a question has been done when it is off the screen: until then it gets the next key, too."""
        answers = len(self.app.screen_stack) == 2 and keys[-1] in ("y", "n", "escape", "enter")
        await self.pilot.press(*keys)
        await self.pilot.pause()
        if answers:
            await self.until(lambda: len(self.app.screen_stack) == 1)

    async def choose(self, pid):
        """Put the cursor on a process, and wait until all of it is shown."""
        await self.until(lambda: str(pid) in self.rows())
        self.app.query_one("#processes", DataTable).move_cursor(row=list(self.rows()).index(str(pid)))
        await self.until(lambda: self.app._shown and self.app._shown.pid == pid)

    def rows(self, table="#processes"):
        """What a table shows, by the first column."""
        found = self.app.screen_stack[0].query_one(table, DataTable)
        return {
            str(cells[0]): [str(cell) for cell in cells[1:]] for cells in map(found.get_row_at, range(found.row_count))
        }

    def text(self, where="#blockers"):
        """What is written in a part of the screen."""
        console = Console(width=200, force_terminal=False)
        with console.capture() as capture:
            console.print(self.app.screen.query_one(where, Static).content)
        return capture.get()

    @property
    def log(self):
        return list(self.app.screen_stack[0].query_one(Log).lines)

    @property
    def said(self):
        """The notices so far."""
        return self.app.said

    async def asked(self, key):
        """Press a key that asks, and return the question."""
        await self.press(key)
        await self.until(lambda: len(self.app.screen_stack) == 2)
        return self.text("#question").strip()


def on_screen(scenario, *pids, names=(), size=(110, 36)):
    """Show these processes, and let a coroutine play with the screen."""

    async def play():
        host = Host(Selection(pids=pids, names=tuple(map(re.compile, names))))
        try:
            app = Recorded(host)
            async with app.run_test(size=size, notifications=True) as pilot:
                await scenario(Screen(app, pilot))
        finally:
            host.close()

    asyncio.run(asyncio.wait_for(play(), 4 * PATIENCE))


def state(pid):
    with Client(pid) as client:
        return {patch["name"]: (patch["enabled"], patch["transition"]) for patch in client.call("list")}


@pytest.fixture
def stalled(lp, occupied, patch):
    """A process with a transition that waits for a thread."""
    lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0, "--on-stall", "keep")
    return occupied


def test_a_stalled_transition_is_shown_and_forced(lp, stalled):
    pid = str(stalled.pid)

    async def scenario(screen):
        await screen.choose(stalled.pid)
        await screen.until(lambda: screen.rows()[pid][1:4] == ["yes", "fix patching (1/2)", "1"])
        await screen.until(lambda: "thread worker in slow" in screen.text())
        assert re.search(r"slow \(.+:\d+\)  <- in the way", screen.text()), "its stack is shown"
        assert screen.rows("#patches")["fix"][:3] == ["1.2", "patching", "1/2, 1 left"]
        await screen.until(lambda: "livepatch: 'fix': starting patching transition" in screen.log)
        said = "After force these tasks will run old and new code side by side. Do it?"
        assert await screen.asked("f") == said
        await screen.press("enter")  # what a hasty hand does is no
        assert state(stalled.pid) == {"fix": (True, True)}
        assert await screen.asked("f") == said
        await screen.press("y")
        await screen.until(lambda: f"Process {pid}: the remaining tasks of 'fix' were forced." in screen.said)
        assert state(stalled.pid) == {"fix": (True, False)}
        await screen.until(lambda: screen.rows()[pid][2:4] == ["fix", "-"])
        await screen.until(lambda: "livepatch: 'fix': patching complete" in screen.log), "the log is followed"
        await screen.press("f")
        assert screen.said[-1] == f"No transition runs in process {pid}."

    on_screen(scenario, stalled.pid)


def test_reverse_disable_and_unload(lp, stalled):
    pid = stalled.pid

    async def scenario(screen):
        await screen.choose(pid)
        await screen.until(lambda: screen.app.view.changing)
        question = f"Reverse the transition of 'fix' in process {pid}, so that it is disabled in the end?"
        assert await screen.asked("d") == question, "to disable what is being loaded is to reverse that"
        await screen.press("escape")
        assert await screen.asked("r") == question
        await screen.press("y")
        await screen.until(lambda: screen.rows("#patches")["fix"][1] == "disabled")
        assert state(pid) == {"fix": (False, False)}
        await screen.press("d")
        assert screen.said[-1] == "'fix' is disabled already."
        assert await screen.asked("u") == f"Forget 'fix' in process {pid}?"
        await screen.press("y")
        await screen.until(lambda: not screen.rows("#patches"))
        assert state(pid) == {}
        await screen.press("d")
        assert screen.said[-1] == f"Process {pid} has no patch."

    on_screen(scenario, pid)


def test_disable(lp, service, patch, record):
    lp("load", patch("one", "answer"), "--pid", service.pid)
    lp("load", patch("two", "slow"), "--pid", service.pid)
    record.unlink()

    async def scenario(screen):
        await screen.choose(service.pid)
        await screen.until(lambda: list(screen.rows("#patches")) == ["one", "two"])
        await screen.press("tab", "up")
        assert await screen.asked("d") == f"Take 'one' back in process {service.pid}?"
        await screen.press("y")
        await screen.until(lambda: screen.rows("#patches")["one"][1] == "disabled")
        assert state(service.pid) == {"one": (False, False), "two": (True, False)}
        await screen.press("u")
        await screen.press("n")

    on_screen(scenario, service.pid)
    assert [each["phase"] for each in records(record)] == ["intent", "outcome"]
    for each in records(record):
        assert (each["operation"], each["patch"]["name"], each["targets"][0]["pid"]) == ("disable", "one", service.pid)


def test_force_of_a_disable_says_that_it_is_for_ever(lp, occupied, patch):
    file = patch("fix", "slow")
    waits = "def slow():\n    import __main__ as m\n    m.inside.set()\n    m.leave.wait()\n"
    file.write_text(file.read_text().replace("def slow(): return 'new'", waits))
    occupied.say("leave")
    eventually(lambda: lp("load", file, "--pid", occupied.pid).status == 0)
    occupied.say("enter")
    assert occupied.hear() == "inside"
    lp("disable", "fix", "--pid", occupied.pid, "--timeout", 0, "--on-stall", "keep")

    async def scenario(screen):
        await screen.choose(occupied.pid)
        await screen.until(lambda: screen.app.view.changing)
        said = await screen.asked("f")
        assert said.endswith("side by side, and 'fix' can never be unloaded. Do it?")
        await screen.press("n")
        said = await screen.asked("r")
        assert said.endswith("so that it is enabled in the end?")
        await screen.press("y")
        await screen.until(lambda: screen.rows()[str(occupied.pid)][2] == "fix")
        assert state(occupied.pid) == {"fix": (True, False)}

    on_screen(scenario, occupied.pid)


def test_a_hung_process_holds_nobody_up_and_is_told_nothing(lp, service, patch):
    """Nothing that was meant for a process while it hangs is done when it goes on."""
    with Target(SERVICE) as other:
        assert other.hear() == "ready"
        file = patch("fix", "answer")
        lp("load", file, "--pid", other.pid)

        async def scenario(screen):
            await screen.choose(other.pid)
            await screen.until(lambda: screen.rows()[str(other.pid)][1:3] == ["yes", "fix"])
            other.signal(signal.SIGSTOP)
            # As if the key had been pressed in the instant before that is known.
            order = watch.Order("write_enabled", "fix", True, False, "done", "0")
            screen.app.host.give(other.pid, order)
            await screen.until(lambda: screen.rows()[str(other.pid)][1] == "no answer")
            refused = f"Process {other.pid} does not answer, so nothing was asked of it about 'fix'."
            await screen.until(lambda: refused in screen.said)
            assert screen.rows()[str(other.pid)][2] == "fix", "what was known is still shown"
            assert "What is shown of it is as it was at " in screen.text()
            await screen.press("d")
            assert screen.said[-1] == f"Process {other.pid} does not answer, so it can be told nothing."
            lp("load", file, "--pid", service.pid)
            await screen.until(lambda: screen.rows()[str(service.pid)][1:3] == ["yes", "fix"])
            await screen.choose(service.pid)
            assert await screen.asked("d")
            await screen.press("y")
            await screen.until(lambda: screen.rows()[str(service.pid)][2] == "fix disabled")
            assert screen.rows()[str(other.pid)][1] == "no answer"
            other.signal(signal.SIGCONT)
            await screen.until(lambda: screen.rows()[str(other.pid)][1] == "yes")
            assert state(other.pid) == {"fix": (True, False)}

        on_screen(scenario, service.pid, other.pid)


def test_what_is_not_as_it_was_confirmed_is_not_done(lp, stalled):
    """The transition is over when the answer comes: to force it, or to reverse it, would be something else."""
    pid = stalled.pid

    async def scenario(screen):
        await screen.choose(pid)
        await screen.until(lambda: screen.app.view.changing)
        await screen.asked("r")
        stalled.say("leave")
        eventually(lambda: state(pid) == {"fix": (True, False)})
        await screen.press("y")
        sentence = f"Process {pid}: 'fix' is enabled by now, so nothing was done."
        await screen.until(lambda: sentence in screen.said)
        assert state(pid) == {"fix": (True, False)}

    on_screen(scenario, pid)


def test_processes_that_die_and_come(lp, stalled, patch):
    name = "this-one-comes-later"

    async def scenario(screen):
        await screen.choose(stalled.pid)
        await screen.until(lambda: screen.app.view.changing)
        question = await screen.asked("f")
        stalled.kill()  # while the question is on the screen
        await screen.until(lambda: str(stalled.pid) not in screen.rows())
        assert question == screen.text("#question").strip()
        await screen.press("y")
        assert screen.said[-1].startswith(f"Process {stalled.pid} has ended")
        await screen.press("f")
        assert screen.said[-1] == "There is no process with an agent; `livepatch attach PID` brings one in."
        with Target(SERVICE, arguments=(name,)) as late:
            assert late.hear() == "ready"
            await screen.choose(late.pid)
            await screen.until(lambda: screen.app.view.answered)
            assert screen.rows()[str(late.pid)][1] == "yes"

    on_screen(scenario, stalled.pid, names=[f"{name}$"])


def test_unprepared_ones_are_shown_on_a_key_and_never_touched(service):
    with Target("say('ready'); hear()", command=PLAIN) as plain:
        plain.hear()

        async def scenario(screen):
            await screen.until(lambda: str(service.pid) in screen.rows())
            assert str(plain.pid) not in screen.rows()
            before = switches(plain.pid)
            await screen.press("a")
            await screen.until(lambda: screen.rows().get(str(plain.pid), [""] * 5)[1] == "attachable")
            await screen.choose(plain.pid)
            for key in "drfu":
                await screen.press(key)
            told = f"Process {plain.pid} has no agent to be told; `livepatch attach {plain.pid}` brings one in."
            assert screen.said[-4:] == [told] * 4
            await screen.press("a")
            assert list(screen.rows()) == [str(service.pid)]
            assert switches(plain.pid) == before, "it has not run"

        eventually(lambda: status(plain.pid)["State"].startswith("S"))
        on_screen(scenario, service.pid, plain.pid)


def switches(pid):
    return status(pid)["voluntary_ctxt_switches"], status(pid)["nonvoluntary_ctxt_switches"]


HELLO = {"protocol": PROTOCOL, "version": "1", "python": "3.11.1", "started": 1.0}


def test_names_are_text_and_not_markup(lp):
    """Whoever is root looks at names that others have chosen."""
    evil = "[/red] [bold] [@click=app.quit]x[/]\x1b[2J"
    listed = {
        "name": evil, "enabled": True, "transition": False, "replace": False, "stack_order": 1, "forced": False,
        "version": evil, "description": evil, "objects": [{"name": evil, "patched": True, "functions": [evil]}],
        "seconds": 0.0, "total": 0, "left": 0,
    }  # fmt: skip
    script = PRETENDER.replace("HELLO", repr({**HELLO, "python": evil})).replace("LIST", repr([listed]))
    # To "subscribe" and "dmesg" it answers the same.
    with Target(script, command=PLAIN, arguments=(evil.replace("\x1b", ""),)) as liar:
        liar.hear()

        async def scenario(screen):
            await screen.until(lambda: str(liar.pid) in screen.rows())
            row = await screen.until(lambda: screen.rows()[str(liar.pid)])
            assert "[bold]" in row[-1]
            await screen.until(lambda: screen.app.view.agent.startswith("no: "))
            assert "does not speak like a livepatch agent" in screen.text()
            await screen.press("d")
            assert "has no agent to be told" in screen.said[-1]

        on_screen(scenario, liar.pid)
    with contextlib.suppress(FileNotFoundError):  # an agent of others that was just started has done so
        os.unlink(f"/tmp/livepatch-{os.geteuid()}/{liar.pid}.sock")


def test_all_parts_fit_on_a_small_terminal(stalled):
    async def scenario(screen):
        await screen.choose(stalled.pid)
        await screen.until(lambda: screen.app.view.blocking)
        for part in ("#processes", "#patches", "#waiting", "#log"):
            region = screen.app.query_one(part).region
            assert region.height >= 4
            assert (region.x, region.right) == (0, 80)
        assert screen.app.query_one("#log").region.bottom < 24
        assert screen.app.query_one(Footer).region.bottom == 24

        def picture():
            return screen.app.export_screenshot().replace("&#160;", " ")

        await screen.until(lambda: all(words in picture() for words in ("Unload", "fix patching (1/2)")))

    on_screen(scenario, stalled.pid, size=(80, 24))


def test_a_cell_that_is_painted_at_once_is_whole(lp, occupied, patch, monkeypatch):
    """A line that was painted with the width of what was there before is kept by the table as it is."""

    def fill_and_paint(table, before, rows):
        more = fill(table, before, rows)
        table.app.export_screenshot()
        return more

    fill = top._fill
    monkeypatch.setattr(top, "_fill", fill_and_paint)

    async def scenario(screen):
        await screen.choose(occupied.pid)
        lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0, "--on-stall", "keep")
        await screen.until(lambda: screen.rows()[str(occupied.pid)][2] == "fix patching (1/2)")
        await screen.pilot.pause(0.5)
        assert "fix patching (1/2)" in screen.app.export_screenshot().replace("&#160;", " ")

    on_screen(scenario, occupied.pid, size=(80, 24))


# -- the command -----------------------------------------------------------------------------------------


def test_without_textual_it_is_one_sentence():
    hidden = f"import sys; sys.modules['textual'] = None\n{START}"
    done = subprocess.run([sys.executable, "-c", hidden, "top"], capture_output=True, text=True, timeout=60)
    sentence = "livepatch: `livepatch top` needs Textual; install it with: pip install 'livepatch[top]'\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", sentence)


def test_without_a_terminal_it_is_one_sentence(lp, service):
    done = lp("top", "--pid", service.pid)
    sentence = "livepatch: `livepatch top` needs a terminal; `livepatch ps` and `livepatch status` need none.\n"
    assert (done.status, done.err) == (1, sentence)


def test_on_a_terminal(stalled):
    child, terminal = pty.fork()
    if child == 0:
        os.environ.update(TERM="xterm-256color", COLUMNS="110", LINES="36")
        os.execv(sys.executable, [sys.executable, "-c", START, "top", "--pid", str(stalled.pid)])
    drawn, asked = b"", False
    try:
        while data := os.read(terminal, 65536):
            drawn += data
            if not asked and b"in the way" in drawn:
                asked = True
                os.write(terminal, b"q")
    except OSError:  # the other end is closed
        pass
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asked
    assert examine(stalled.pid).python
    with Client(stalled.pid) as client:
        assert client.call("list")[0]["transition"], "to leave the screen ends nothing"
