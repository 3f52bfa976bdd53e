"""The helper: the process that traces, apart from the command, so that killing the command cannot hurt the target.

It is a fresh interpreter with nothing of this package but `injection` and what that needs, in a session of its own,
deaf to what a terminal sends. The command tells it the rest on its command line; it answers with one line of JSON,
and ends: `{}` when the target has begun to run the script, else the error. When the command takes its end of the pipe
away, or dies, the helper lets go of the target and ends at once.

Every attach waits for its start, most of which is imports: neither `dataclasses`, which needs half of the tools for
source code, nor `secrets` is worth that here.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import sys
import time

from .injection import Injection
from .mark import MARK
from .processor import Refusal, processor

#: What the new interpreter runs. The package and its `__init__`, which imports all of it, stay out.
_BOOT = """\
import sys, types
for name, path in zip(("livepatch", "livepatch.attach"), sys.argv[2:4]):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from livepatch.attach.helper import main
main(sys.argv[4:])
"""


class Cancelled(Exception):
    """The command wants no more of it, or it has lasted too long."""


def command(mode: str, pid: int, inner_pid: int, script: str, timeout: float) -> list[str]:
    """The command that runs a helper, see `Injection`; it gives up by itself after so many seconds."""
    here = os.path.dirname(os.path.abspath(__file__))
    arguments = [MARK, os.path.dirname(here), here, mode, str(pid), str(inner_pid), script, str(timeout)]
    return [sys.executable, "-I", "-S", "-c", _BOOT, *arguments]


def main(arguments: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    mode, pid, inner_pid, script, timeout = arguments
    until = time.monotonic() + float(timeout)

    def checkpoint() -> None:
        gone, _, _ = select.select([0], [], [], 0)
        if gone or time.monotonic() > until:
            raise Cancelled

    answer: dict[str, object] = {}
    try:
        Injection(mode, int(pid), int(inner_pid), script, processor(), checkpoint).run()
    except Refusal as refusal:
        answer = {"errno": refusal.errno, "sentence": str(refusal)}
    except Cancelled:
        answer = {"errno": errno.ETIMEDOUT, "sentence": ""}
    except Exception as error:
        answer = {
            "errno": errno.EIO,
            "sentence": f"Attaching to process {pid} failed: {error!r}; this is an error of livepatch.",
        }
    try:
        os.write(1, json.dumps(answer).encode() + b"\n")
    except OSError:
        pass
