"""What may end the agent's thread, and what may fill up beneath it: it goes on, and says what is the matter."""

import os
import subprocess
import sys

import pytest
from tests.agent.targets import eventually
from tests.faults.kit import SERVICE, Service, is_whole

import livepatch
from livepatch.attach.client import Client


@pytest.mark.parametrize("statement", ["raise SystemExit(3)", "import sys; sys.exit()", "raise KeyboardInterrupt"])
def test_a_patch_that_ends_the_program_is_an_error_like_others(service, lp, tmp_path, statement):
    """The naive agent catches what is an Exception, and is gone."""
    path = tmp_path / "exits.py"
    path.write_text(f"import livepatch\n{statement}\n")
    done = lp("load", path, "--pid", service.pid)
    assert done.status == 1
    is_whole(service, lp)


def test_the_thread_is_ended_again_and_again(service, lp):
    for _ in range(3):
        service.say("kill agent")
        service.hear_until("killed")
        with Client(service.pid) as client:
            assert client.call("list") == []
    is_whole(service, lp)


def test_output_that_has_no_room_is_said_and_changes_nothing_else(service, lp, tmp_path):
    """What a command does to a process does not depend on whether somebody reads its words."""
    command = [sys.executable, "-m", "livepatch"]
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(livepatch.__file__))}
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "load", service.patch, "--pid", str(service.pid)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert "Traceback" not in done.stderr
    assert "No space left on device" in done.stderr
    assert service.ask() == "new torn 0"
    assert done.returncode == 0  # 1 would say that it was refused
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [*command, "list", "--pid", str(service.pid)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
    assert done.returncode == 1
    assert "No space left on device" in done.stderr
    is_whole(service, lp)


def test_a_terminal_that_goes_away_in_the_middle_leaves_nothing_half_done(service, lp, tmp_path):
    """Its words fail then. The stall is still taken back."""
    service.occupy()
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "livepatch", "load", service.held, "--pid", str(service.pid), "--timeout", "1"],
        stdout=writing,
        stderr=writing,
        env={**os.environ, "PYTHONPATH": os.path.dirname(os.path.dirname(livepatch.__file__))},
    )
    os.close(writing)
    assert done.returncode == 3
    with Client(service.pid) as client:
        eventually(lambda: not [patch for patch in client.call("list") if patch["enabled"] or patch["transition"]])
    service.say("leave")
    is_whole(service, lp)


@pytest.mark.slow
def test_a_process_that_keeps_the_interpreter_and_has_many_threads(tmp_path, lp):
    """A thousand threads, and C code that does not let go of the GIL for a second at a time."""
    slow = SERVICE.replace(
        "    lp.start_agent()\n",
        """
    hold = ctypes.PyDLL(None).usleep
    for _ in range(1000):
        threading.Thread(target=ended.wait, daemon=True).start()
    def hog():
        while not ended.wait(0.2): hold(900_000)
    threading.Thread(target=hog, daemon=True).start()
    lp.start_agent()
""",
    )
    assert slow != SERVICE
    with Service(tmp_path, slow) as service:
        is_whole(service, lp)
