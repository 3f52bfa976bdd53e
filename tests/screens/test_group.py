"""Several processes that are marked in `livepatch top`: a key is one transaction, or nothing."""

import contextlib
import os
import signal

import pytest
from tests.agent.targets import Target, eventually
from tests.fleet.conftest import occupy, pids, services
from tests.observe.conftest import record, records
from tests.screens.test_top import on_screen, state

__all__ = ["record", "services"]
pytestmark = pytest.mark.once


async def mark(screen, *targets, until="fix"):
    """Mark them, when all of them have been seen to have the patch; the cursor is on the first of them then."""
    for target in targets:
        await screen.until(lambda target=target: until in screen.rows().get(str(target.pid), [""] * 3)[2])
    for target in targets:
        await screen.choose(target.pid)
        await screen.press("space")
        await screen.until(lambda target=target: f"{target.pid} *" in screen.rows())
    await point(screen, targets[0])
    await screen.until(lambda: f"{len(targets)} marked" in screen.text("#summary"))


async def point(screen, target):
    """Put the cursor on one that is marked."""
    key = await screen.until(lambda: next((k for k in screen.rows() if k.split()[0] == str(target.pid)), None))
    screen.app.query_one("#processes").move_cursor(row=list(screen.rows()).index(key))
    await screen.until(lambda: screen.app._shown and screen.app._shown.pid == target.pid)


def test_disable_and_unload_in_those_that_are_marked_and_no_other(lp, services, patch, record):
    targets = services(3)
    assert lp("load", patch("fix", "answer"), *pids(targets)).status == 0
    record.unlink()
    first, other, last = targets
    both = f"2 processes ({first.pid}, {last.pid})"

    async def scenario(screen):
        await mark(screen, first, last)
        assert await screen.asked("d") == f"Take 'fix' back in {both}?"
        await screen.press("n")
        await screen.asked("d")
        await screen.press("y")
        await screen.until(lambda: f"{both.capitalize()}: 'fix' is being disabled." in screen.said)
        disabled, enabled = {"fix": (False, False)}, {"fix": (True, False)}
        await screen.until(lambda: [state(target.pid) for target in targets] == [disabled, enabled, disabled])
        await screen.until(lambda: screen.rows()[f"{last.pid} *"][2] == "fix disabled")
        await screen.until(lambda: screen.rows("#patches")["fix"][1] == "disabled")
        assert await screen.asked("u") == f"Forget 'fix' in {both}?"
        await screen.press("y")
        await screen.until(lambda: f"{both.capitalize()}: 'fix' is unloaded." in screen.said)
        assert [state(target.pid) for target in targets] == [{}, {"fix": (True, False)}, {}]
        await screen.press("escape")
        assert "marked" not in screen.text("#summary")
        await screen.choose(other.pid)
        await screen.until(lambda: "fix" in screen.rows("#patches"))
        assert await screen.asked("d") == f"Take 'fix' back in process {other.pid}?"

    on_screen(scenario, *(target.pid for target in targets))
    said = [(one["phase"], one["operation"], len(one["targets"])) for one in records(record)]
    assert said == [
        ("intent", "disable", 2), ("outcome", "disable", 2), ("intent", "unload", 2), ("outcome", "unload", 2)
    ]  # fmt: skip


def test_if_one_is_stopped_by_then_nothing_is_done_in_any(lp, services, patch):
    targets = services(2)
    assert lp("load", patch("fix", "answer"), *pids(targets)).status == 0

    async def scenario(screen):
        await mark(screen, *targets)
        await screen.asked("d")
        targets[1].signal(signal.SIGSTOP)
        await screen.press("y")
        sentence = "1 of 2 processes refused, so nothing was changed in any of them."
        await screen.until(lambda: sentence in screen.said)
        assert any("is stopped and does not answer" in said for said in screen.said)
        await screen.until(lambda: screen.rows()[f"{targets[1].pid} *"][1] == "no answer")
        await screen.press("d")
        told = f"Process {targets[1].pid} does not answer, so nothing is done in the others either; space unmarks it."
        assert screen.said[-1] == told
        targets[1].signal(signal.SIGCONT)

    on_screen(scenario, *(target.pid for target in targets))
    assert [state(target.pid) for target in targets] == [{"fix": (True, False)}] * 2


def test_if_one_is_not_as_it_was_shown_nothing_is_done_in_any(lp, services, patch):
    targets = services(2)
    assert lp("load", patch("fix", "answer"), *pids(targets)).status == 0

    async def scenario(screen):
        await mark(screen, *targets)
        await screen.asked("d")
        assert lp("disable", "fix", "--pid", targets[1].pid).status == 0
        await screen.press("y")
        both = f"2 processes ({targets[0].pid}, {targets[1].pid})"
        sentence = f"Process {targets[1].pid}: 'fix' is disabled by now, so nothing was done in any of {both}."
        await screen.until(lambda: sentence in screen.said)

    on_screen(scenario, *(target.pid for target in targets))
    assert [state(target.pid) for target in targets] == [{"fix": (True, False)}, {"fix": (False, False)}]


def test_if_one_refuses_all_go_back(lp, services, patch):
    """In one of them the transition of another patch runs, which is known only when it is told to begin."""
    targets = services(2)
    assert lp("load", patch("one", "answer"), *pids(targets)).status == 0
    occupy(targets[1])
    stays = ("--timeout", 0, "--on-stall", "keep")
    assert lp("load", patch("two", "slow"), "--pid", targets[1].pid, *stays).status == 3

    async def scenario(screen):
        await mark(screen, *targets, until="one")
        assert "in 2 processes" in await screen.asked("d")
        await screen.press("y")
        await screen.until(lambda: any("refused, so all of them go back." in said for said in screen.said))
        assert any(said.startswith(f"Process {targets[1].pid}: ") for said in screen.said)

    on_screen(scenario, *(target.pid for target in targets))
    eventually(lambda: state(targets[0].pid) == {"one": (True, False)})
    assert state(targets[1].pid) == {"one": (True, False), "two": (True, True)}


@pytest.mark.parametrize(("key", "after"), [("f", (True, False)), ("r", (False, False))])
def test_force_and_reverse(lp, services, patch, key, after):
    targets = services(2)
    for target in targets:
        occupy(target)
    lp("load", patch("fix", "slow"), *pids(targets), "--timeout", 0, "--on-stall", "keep")

    async def scenario(screen):
        await mark(screen, *targets, until="fix patching (1/2)")
        question = await screen.asked(key)
        if key == "f":
            assert question == "After force 2 tasks in 2 processes will run old and new code side by side. Do it?"
        else:
            both = f"2 processes ({targets[0].pid}, {targets[1].pid})"
            assert question == f"Reverse the transition of 'fix' in {both}, so that it is disabled in the end?"
        await screen.press("y")
        await screen.until(lambda: [state(target.pid) for target in targets] == [{"fix": after}] * 2)
        await screen.until(lambda: any(said.startswith("2 processes (") for said in screen.said))
        await screen.until(lambda: not any(view.changing for view in screen.app._views.values()))
        await screen.press(key)
        await screen.until(lambda: "No transition runs in the marked processes." in screen.said)

    on_screen(scenario, *(target.pid for target in targets))


def test_a_tree_is_marked_with_one_key(services):
    script = """
        import livepatch as lp, os, signal
        lp.start_agent()
        child = os.fork()
        if child == 0:
            while True: signal.pause()
        say("ready", child)
        hear()
    """
    (other,) = services(1)
    with Target(script) as parent:
        child = int(parent.hear().split()[1])
        try:

            async def scenario(screen):
                await screen.until(lambda: str(child) in screen.rows())
                await screen.choose(parent.pid)
                await screen.press("t")
                await screen.until(lambda: {f"{parent.pid} *", f"{child} *", str(other.pid)} == set(screen.rows()))
                await screen.until(lambda: "2 marked" in screen.text("#summary"))
                os.kill(child, signal.SIGKILL)
                await screen.until(lambda: "1 marked" in screen.text("#summary"))  # who has ended is not
                await screen.press("escape")
                await screen.until(lambda: {str(parent.pid), str(other.pid)} == set(screen.rows()))

            on_screen(scenario, parent.pid, child, other.pid)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)
