"""The helper: the process that traces, apart from the command, so that killing the command cannot hurt the target.

It is a fresh interpreter with nothing of this package but `injection` and what that needs, in a session of its own,
deaf to what a terminal sends. The command, see `injector`, starts it early, and tells it where the script is when that
is there: one line, until which it touches nothing. It answers with one line of JSON, and ends: `{}` when the target has
begun to run the script, else the error. When the command takes its end of the pipe away, or dies, the helper lets go of
the target and ends at once.

Every attach waits for its start, most of which is imports: neither `dataclasses`, which needs half of the tools for
source code, nor `json` before there is something to say, is worth that here.
"""

from __future__ import annotations

import errno
import os
import select
import signal
import time

from .injection import Injection
from .processor import Refusal, processor


class Cancelled(Exception):
    """The command wants no more of it, or it has lasted too long."""


def main(arguments: list[str]) -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_IGN)
    mode, pid, inner_pid, timeout = arguments
    script = _line()
    if not script:
        return
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
    said = b"{}"
    if answer:
        import json

        said = json.dumps(answer).encode()
    try:
        os.write(1, said + b"\n")
    except OSError:
        pass


def _line() -> str:
    """What the command says, and waits with for as long as it likes; nothing if it wants no more of it."""
    said = b""
    while not said.endswith(b"\n"):
        piece = os.read(0, 4096)
        if not piece:
            return ""
        said += piece
    return os.fsdecode(said[:-1])
