"""The programs of examples/, started as their README says, and the command line to aim at them."""

import os
import select
import subprocess
import sys
from pathlib import Path

import pytest
from tests.agent.targets import PATIENCE
from tests.cli.conftest import lp  # noqa: F401

EXAMPLES = Path(__file__).resolve().parent.parent.parent / "examples"
START = "from livepatch.cli import main; main()"


class Program:
    """`livepatch run -- python FILE`, spoken to line by line."""

    def __init__(self, file, *arguments):
        command = [sys.executable, "-c", START, "run", "--", sys.executable, "-B", str(EXAMPLES / file), *arguments]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._heard = b""
        assert self.hear().startswith(f"process {self.process.pid}: type ")

    def ask(self, line):
        """Its answer, which may be preceded by what callbacks said."""
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()
        return self.hear()

    def hear(self):
        while b"\n" not in self._heard:
            ready, _, _ = select.select([self.process.stdout], [], [], PATIENCE)
            assert ready, f"it said no line; so far: {self._heard!r}"
            data = os.read(self.process.stdout.fileno(), 65536)
            assert data, f"it ended, saying {self._heard!r}"
            self._heard += data
        line, _, self._heard = self._heard.partition(b"\n")
        return line.decode()

    def end(self):
        self.process.kill()
        self.process.communicate()


@pytest.fixture
def start(lp):  # noqa: F811
    """Start a program; `livepatch COMMAND ... --pid` is then `command(...)`."""
    started = []

    def begin(file, *program_arguments):
        program = Program(file, *program_arguments)
        started.append(program)

        def command(name, *arguments, status=0):
            if name in ("load", "check"):
                arguments = (EXAMPLES / Path(file).parent / arguments[0], *arguments[1:])
            done = lp(name, *arguments, "--pid", program.process.pid)
            assert done.status == status, done
            return done.err if status else done.out

        return program, command

    yield begin
    for program in started:
        program.end()


@pytest.fixture
def gone():
    """Nothing of any patch is left in a process."""

    def check(command):
        assert command("list").endswith("No patch is loaded.\n")

    return check
