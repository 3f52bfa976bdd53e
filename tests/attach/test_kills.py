"""Whatever is killed in the middle of an attach, the target lives and works, and can be attached to.

The helper is killed before each single thing that it does to the target, and at instants by the clock; the command
is killed, interrupted, and does not wait.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.agent.targets import Target, eventually

import livepatch
from livepatch.attach.injector import _BOOT, Injector
from livepatch.attach.injector import command as helper
from livepatch.attach.processes import examine, status
from livepatch.core.model import LivepatchError

PLAIN = [getattr(sys, "_base_executable", sys.executable)]
SOURCE = str(Path(livepatch.__file__).parent.parent)

#: Each answers when it is asked, and only if its main thread does its work.
TARGETS = {
    "waits": """
        ran = []
        say('ready')
        while line := hear(): say(line)
    """,
    "works": """
        import time
        ran = []
        beats = 0
        def answer():
            while line := hear():
                before = beats
                while beats < before + 3: time.sleep(0.001)
                say(line)
        answering = threading.Thread(target=answer)
        answering.start()
        say('ready')
        while answering.is_alive():
            assert sum(range(100)) == 4950
            beats += 1
    """,
    "waits for a lock": """
        ran = []
        lock = threading.Lock()
        lock.acquire()
        taken = threading.Semaphore(0)
        over = []
        def answer():
            while line := hear():
                lock.release()
                taken.acquire()
                say(line)
            over.append(True)
            lock.release()
        answering = threading.Thread(target=answer)
        answering.start()
        say('ready')
        while not over:
            lock.acquire()
            taken.release()
    """,
}

#: A helper that kills itself before the last of so many things that it does to the target.
DYING = """\
import os, sys
left = int(sys.argv.pop(1))
def counted(function):
    def wrapper(*arguments):
        global left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
        return function(*arguments)
    return wrapper
""" + _BOOT.replace(
    "main(",
    """\
from livepatch.attach import symbols, tracing
tracing.Thread.request = counted(tracing.Thread.request)
symbols.Memory.write = counted(symbols.Memory.write)
main(""",
)


class Victim:
    def __init__(self, target, folder):
        self.target = target
        self.process = examine(target.pid)
        self.script = folder / "script.py"
        self.script.write_text("import __main__\n__main__.ran.append(1)\n")
        self._asked = 0

    def works(self):
        """And nobody traces it."""
        self._asked += 1
        self.target.say(str(self._asked))
        assert self.target.hear() == str(self._asked)
        eventually(lambda: "TracerPid:\t0\n" in Path(f"/proc/{self.target.pid}/status").read_text())

    def inject(self):
        with Injector(self.process, 60).begin(str(self.script)) as injector:
            eventually(injector.done)
        self.works()

    def ends(self):
        self.target.say()
        assert self.target.process.wait(60) == 0


@pytest.fixture(params=TARGETS)
def victim(request, tmp_path):
    with Target(TARGETS[request.param], command=PLAIN) as target:
        assert target.hear() == "ready"
        victim = Victim(target, tmp_path)
        yield victim
        victim.works()
        victim.inject()
        victim.ends()


@pytest.mark.slow
def test_the_helper_is_killed_before_each_thing_that_it_does(victim):
    command = helper("run", victim.process.pid, victim.process.inner_pid, 60)
    command[command.index("-c") + 1] = DYING
    reading, writing = os.pipe()
    step = 0
    ended = -signal.SIGKILL
    while ended == -signal.SIGKILL:
        step += 1
        os.write(writing, os.fsencode(victim.script) + b"\n")
        ended = subprocess.run(
            [*command[:5], str(step), *command[5:]], stdin=reading, stdout=subprocess.DEVNULL, timeout=120
        ).returncode
        victim.works()
    os.close(reading)
    os.close(writing)
    assert ended == 0
    assert step > 30


@pytest.mark.slow
def test_the_helper_is_killed_at_any_instant(victim):
    for number in range(40):
        with Injector(victim.process, 60).begin(str(victim.script)) as injector:
            time.sleep(0.003 * number)
            injector._process.kill()
            injector._process.wait()
            with contextlib.suppress(LivepatchError):  # it may have done it just before
                injector.done()
        victim.works()


def test_a_helper_that_has_not_heard_of_the_script_touches_nothing(victim):
    with Injector(victim.process, 60) as injector:
        waits_in = Path(f"/proc/{injector._process.pid}/wchan")
        eventually(lambda: "pipe" in waits_in.read_text())
        assert not injector.done()
        assert status(victim.process.pid)["TracerPid"] == "0"
        victim.works()
    assert injector._process.returncode == -signal.SIGKILL


def test_who_kills_the_helper_is_told_so(victim):
    with Injector(victim.process, 60).begin(str(victim.script)) as injector:
        injector._process.kill()
        injector._process.wait()
        with pytest.raises(LivepatchError, match="was killed; try again"):
            injector.done()


def test_it_is_cancelled_at_any_instant(victim):
    for number in range(12):
        with Injector(victim.process, 60).begin(str(victim.script)):
            time.sleep(0.01 * number)
        victim.works()


COMMAND = """
import sys
from livepatch.attach import entry
entry.attach(int(sys.argv[1]), method="pending_call").close()
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_the_command_is_killed_at_any_instant(victim, how):
    for number in range(5):
        command = subprocess.Popen(
            [sys.executable, "-c", COMMAND, str(victim.target.pid)],
            env={**os.environ, "PYTHONPATH": SOURCE},
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        time.sleep(0.25 + 0.02 * number)
        os.killpg(command.pid, how)
        command.wait()
        victim.works()
