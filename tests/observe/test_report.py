"""The report of a load: what is on the page, that nothing on it can break it, and that it never stands in the way."""

import re
import stat
import threading

import pytest
from tests.agent.targets import Target, eventually
from tests.build.test_page import Page
from tests.cli.conftest import SERVICE

from livepatch.attach.client import Client
from livepatch.observe.report import _new


@pytest.fixture
def report(tmp_path):
    return tmp_path / "report.html"


def read(report):
    """The page, which is well formed and needs nothing from elsewhere."""
    html = report.read_text()
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object"} & set(page.tags)
    assert not [value for name, value in page.attributes if name in ("src", "href") and not value.startswith("#")]
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in page.attributes
    assert len(page.ids) == len(set(page.ids))
    assert "url(" not in html
    assert "@import" not in html
    return page


def moves(page):
    """Who moved, by which way, as the tables have it."""
    cells = r"<tr><td>[^<]*</td><td>(\w+)</td><td>([^<]*)</td>"
    rows = re.findall(cells + r"<td><i class=\"\w+\"></i> ([\w ]+)</td></tr>", page)
    return [(kind, task, way) for kind, task, way in rows]


def test_a_load(lp, service, patch, report):
    assert lp("load", patch("fix", "answer"), "--pid", service.pid, "--report", report).status == 0
    page = read(report)
    assert "Done in 1 process" in page.text
    assert f"Process {service.pid} " in page.text
    assert "starting patching transition" in page.text
    assert [(kind, task) for kind, task, _ in moves(report.read_text())] == [("thread", "MainThread")]
    assert stat.S_IMODE(report.stat().st_mode) == 0o600
    # and nothing goes on being recorded
    assert lp("disable", "fix", "--pid", service.pid).status == 0
    assert lp("load", patch("other", "slow"), "--pid", service.pid, "--report", report).status == 0
    assert moves(report.read_text()) != []


WAYS = """
    import asyncio, livepatch as lp
    gate, inside = threading.Event(), threading.Event()
    def held():
        inside.set()
        gate.wait()
        return "old"
    def leaving():
        held()
        leave.wait()
    leave = threading.Event()
    threading.Thread(target=leave.wait, name="sleeper", daemon=True).start()
    threading.Thread(target=leaving, name="leaver", daemon=True).start()
    inside.wait()
    started = threading.Event()
    async def main():
        await asyncio.sleep(1000)
    async def forever():
        task = asyncio.create_task(main(), name="pending task")
        asyncio.get_running_loop().call_later(0.01, started.set)
        await task
    threading.Thread(target=lambda: asyncio.run(forever()), name="loop", daemon=True).start()
    started.wait()
    lp.start_agent()
    say("ready")
    while hear() == "open": gate.set()
"""


def test_who_moved_and_by_which_way(lp, patch, report):
    """A thread that sleeps is seen from outside, asyncio's tasks move when their loop is idle."""
    with Target(WAYS) as service:
        assert service.hear() == "ready"
        options = ("--timeout", 4, "--on-stall", "keep", "--report", report)
        done = lp("load", patch("fix", "held"), "--pid", service.pid, *options)
        assert done.status == 3
        found = {task: (kind, way) for kind, task, way in moves(report.read_text())}
        assert found["sleeper"] == ("thread", "stack check")
        assert found["pending task"] == ("asyncio", "idle")
        assert "leaver" not in found
        page = read(report)
        assert "In the way" in page.text
        assert "held (" in page.text
        assert "It is not over in 1 process" in page.text
        service.say("open")
        assert lp("disable", "fix", "--pid", service.pid, "--report", report).status == 0
        assert [task for _, task, _ in moves(report.read_text())] != []


def test_a_stall_that_is_taken_back(lp, occupied, patch, report):
    assert lp("load", patch("fix", "slow"), "--pid", occupied.pid, "--timeout", 0.6, "--report", report).status == 3
    page = read(report)
    assert "It was taken back after" in page.text
    assert "Patching, taken back after" in page.text
    assert "The way back, completed after" in page.text
    found = moves(report.read_text())
    assert [(kind, task) for kind, task, _ in found] == [("thread", "MainThread")] * 2  # there and back
    assert "thread worker" in page.text
    assert "leave.wait" in page.text or "slow (" in page.text


def test_a_stall_that_is_forced(lp, occupied, patch, report):
    forced = ("--timeout", 0.2, "--on-stall", "force", "--yes")
    assert lp("load", patch("fix", "slow"), "--pid", occupied.pid, *forced, "--report", report).status == 3
    assert ("thread", "worker", "force") in moves(report.read_text())
    assert "It was ended by force" in read(report).text


def test_several_processes_of_which_one_refuses(lp, service, patch, report):
    with Target(SERVICE.replace("def answer()", "def other()").replace("answer()", "other()")) as other:
        assert other.hear() == "ready"
        done = lp("load", patch("fix", "answer"), "--pid", service.pid, "--pid", other.pid, "--report", report)
    assert done.status == 1
    page = read(report)
    assert "Nothing was done: 1 of 2 processes refused" in page.text
    assert str(other.pid) in page.text


def test_names_that_are_made_to_break_the_page(lp, report, tmp_path):
    odd = "</td><script>alert(1)</script>\\u202e & \\x07 \" '"
    script = SERVICE.replace('name="worker"', f'name="""{odd}"""')
    with Target(script, arguments=("</p><img src=x onerror=alert(1)>",)) as service:
        assert service.hear() == "ready"
        service.say("enter")
        assert service.hear() == "inside"
        file = tmp_path / "<b>fix&amp;.py"
        file.write_text(
            "import livepatch as lp\ndef slow(): pass\n"
            "__livepatch__ = lp.Patch('', [lp.Object(None, [lp.Func('slow', slow)])])\n"
        )
        lp("load", file, "--pid", service.pid, "--timeout", 0.6, "--report", report)
    page = read(report)
    assert "alert(1)" in page.text
    assert "\u202e" not in page.text
    assert "\\u202e" in page.text


def test_a_report_that_cannot_be_written_is_known_before(lp, service, ask, patch, tmp_path):
    done = lp("load", patch("fix", "answer"), "--pid", service.pid, "--report", tmp_path / "missing" / "report.html")
    assert done.status == 1
    assert "is no folder to write to" in done.err
    assert done.err.count("\n") == 1
    assert ask() == "old"


def test_a_process_that_dies_in_the_middle_is_told(lp, occupied, patch, report):
    with Target(SERVICE) as other:
        assert other.hear() == "ready"
        other.say("enter")
        assert other.hear() == "inside"

        def kill_when_it_has_begun():
            with Client(other.pid) as client:
                eventually(lambda: any(p["transition"] for p in client.call("list")))
            other.kill()

        killer = threading.Thread(target=kill_when_it_has_begun)
        killer.start()
        options = ("--pid", occupied.pid, "--pid", other.pid, "--timeout", 10, "--report", report)
        lp("load", patch("fix", "slow"), *options)
        killer.join()
    page = read(report)
    assert re.search(rf'{other.pid}</a></td><td><b class="\w+">ended</b>', report.read_text())
    assert f"Process {occupied.pid} " in page.text


@pytest.mark.parametrize(
    ("before", "now", "new"),
    [
        ([], ["a", "b"], ["a", "b"]),
        (["a"], ["a", "b"], ["b"]),
        (["a", "b"], ["a", "b"], []),
        (["a", "b", "c"], ["b", "c", "d"], ["d"]),
        (["a", "b"], ["x", "y"], ["x", "y"]),
        (["a", "a"], ["a", "a", "a"], ["a"]),
    ],
)
def test_what_is_new_in_a_log_that_forgets(before, now, new):
    assert _new(before, now) == new
