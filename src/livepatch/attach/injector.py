"""The command's end of a helper process, see `helper`."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from contextlib import suppress
from types import TracebackType
from typing import Self

from livepatch.core.model import LivepatchError

from .mark import MARK, RUN, WAKE
from .processes import NoAccess, Process

#: Seconds that a helper may take to let go of its target. It needs none; the machine may be busy.
_LETS_GO = 10.0


#: What the new interpreter runs. The package and its `__init__`, which imports all of it, stay out.
_BOOT = """\
import sys, types
for name, path in zip(("livepatch", "livepatch.attach"), sys.argv[2:4]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from livepatch.attach.helper import main
main(sys.argv[4:])
"""


def command(mode: str, pid: int, inner_pid: int, timeout: float) -> list[str]:
    """The command that runs a helper; it gives up by itself so many seconds after it has heard of the script."""
    here = os.path.dirname(os.path.abspath(__file__))
    arguments = [MARK, os.path.dirname(here), here, mode, str(pid), str(inner_pid), str(timeout)]
    return [sys.executable, "-I", "-S", "-c", _BOOT, *arguments]


class Injector:
    """A helper for a process, until this is left as a context manager; it does nothing before `begin`."""

    def __init__(self, process: Process, timeout: float, *, mode: str = RUN) -> None:
        self._pid = process.pid
        self._mode = mode
        self._process = subprocess.Popen(
            command(mode, process.pid, process.inner_pid, timeout),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        self._answer: bytes | None = None
        self.begun = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.cancel()

    def begin(self, script: str) -> Self:
        """Have the process run the script, at this path as the process sees it."""
        self.begun = True
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):  # it was killed, as `done` will say
            self._process.stdin.write(os.fsencode(script) + b"\n")
            self._process.stdin.flush()
        return self

    def done(self) -> bool:
        """Whether the target has begun to run the script. Raises LivepatchError if the helper has given up.

        What only wakes never fails: others were asked to run the script.
        """
        if self._answer is not None:
            return True
        if self._process.poll() is None:
            return False
        assert self._process.stdout is not None
        self._answer = self._process.stdout.read()
        try:
            answer = json.loads(self._answer)
        except ValueError:
            answer = {
                "errno": errno.EIO,
                "sentence": f"The helper process that attaches to process {self._pid} was killed; try again.",
            }
        if answer.get("sentence") and self._mode != WAKE:
            kind = NoAccess if answer["errno"] in (errno.EPERM, errno.ESRCH) else LivepatchError
            raise kind(answer["errno"], answer["sentence"])
        return not answer

    def cancel(self) -> None:
        """Have the target let go of; returns when it is. Whatever interrupts this, the helper does it by itself."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        if not self.begun:  # it has touched nothing, and may not even be ready to hear of it
            self._process.kill()
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(_LETS_GO)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        finally:
            self._process.stdout.close()
