"""`livepatch demo`: a running server under load gets a real security fix, and gives it back, without a restart.

Everything is real: uvicorn serving a vulnerable release of starlette (CVE-2023-29159), a load generator in a process
of its own, an exploit that works, the patch built from two releases, and the command line as people type it. What is
shown is what was executed, and every number was measured. `show` tells the story, `service` has the processes,
`traffic` the observations and `stage` the looks; what runs in the processes is in `files`.

Exit status 0 if all promises held, 1 if one did not.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass


@dataclass(frozen=True)
class Options:
    """Of the show: requests per second, connections, how often the patch goes in and out at the end, and whether the
    summary is printed as JSON.
    """

    rate: float
    connections: int
    rounds: int
    json: bool


def main(options: Options) -> int:
    """Give the demo; its exit status. Raises LivepatchError if it cannot be given here."""
    from .show import Show

    with _interruptible():
        return Show(options).run()


@contextmanager
def _interruptible() -> Iterator[None]:
    """A closed terminal or a `kill` ends the demo as Ctrl-C does: no process is left behind."""
    ends = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in ends:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in ends:
            signal.signal(number, signal.SIG_DFL)
