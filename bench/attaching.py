"""Attach to programs that check themselves, hundreds of times: `./run attach-stress`.

Every attempt starts a victim (tests/attach/victims.py), lets some milliseconds pass that nobody chose, attaches, and
has the victim finish its work and judge itself. An attach is acknowledged when the agent itself has answered. A victim
is healthy if its results and times are right and it looks from outside as it did before; else it is wrong, hung or
dead.

`--beside` lets other injectors run the same attempts. Acknowledged is then what the injected code itself has written.
`--kill` ends one of the participants at an instant that nobody chose, see kills.py.
"""

from __future__ import annotations

import argparse
import platform
import random
import signal
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import cycle, islice

from tests.attach.victims import PLAIN, VICTIMS, Running

from livepatch.attach import entry
from livepatch.core.model import LivepatchError

from . import injectors, kills
from .command import livepatch

#: Attempts at the same time.
_AT_ONCE = 2

#: Seconds that an attach may take: it is bounded, but the machine is as busy as we can make it.
TIMEOUT = 30.0

#: Attaches to one victim; the answer is why the attach was not acknowledged, empty if it was.
Way = Callable[[Running], str]


@dataclass(frozen=True)
class Attempt:
    victim: str
    why_not: str
    seconds: float
    fate: str
    harm: str

    @property
    def good(self) -> bool:
        return not self.why_not and self.fate == "healthy"


def _here(method: str) -> Way:
    def attach(running: Running) -> str:
        try:
            entry.attach(running.pid, timeout=TIMEOUT, method=method).close()
        except LivepatchError as error:
            return str(error)
        return ""

    return attach


def _whole(method: str) -> Way:
    """The command as a person at a shell has it."""

    def attach(running: Running) -> str:
        command = livepatch("attach", "--method", method, running.pid)
        done = subprocess.run(command, capture_output=True, text=True)
        return f"status {done.returncode}: {done.stderr.strip()}" if done.returncode else ""

    return attach


def _attempt(way: Way, name: str, command: Sequence[str], patience: float) -> Attempt:
    with Running(VICTIMS[name], tuple(command), patience=patience) as running:
        time.sleep(random.uniform(0, 0.05))
        begun = time.perf_counter()
        why_not = way(running)
        seconds = time.perf_counter() - begun
        return Attempt(name, why_not, seconds, *running.verdict())


def _attempts(title: str, way: Way, names: Iterable[str], command: Sequence[str], patience: float) -> list[Attempt]:
    """One attempt for each name, two at a time; what goes wrong is told at once."""
    found = []
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        try:
            for future in as_completed([pool.submit(_attempt, way, name, command, patience) for name in names]):
                attempt = future.result()
                found.append(attempt)
                if not attempt.good:
                    what = "; ".join(filter(None, (attempt.why_not, attempt.harm)))
                    print(f"{title}, {attempt.victim}: {attempt.fate}: {what}", file=sys.stderr, flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    return found


def _show(ways: dict[str, list[Attempt]], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 200)
    table = Table("the main thread", *ways, title=title, header_style="bold")
    for name in VICTIMS:
        columns = [[attempt for attempt in attempts if attempt.victim == name] for attempts in ways.values()]
        if any(columns):
            table.add_row(name, *map(_summary, columns))
    table.add_section()
    table.add_row("all", *map(_summary, ways.values()))
    console.print(table)


def _summary(attempts: list[Attempt]) -> str:
    """Acknowledged, what became of the victims, and the times of what was acknowledged."""
    if not attempts:
        return "-"
    times = [1000 * attempt.seconds for attempt in attempts if not attempt.why_not]
    fates = Counter(attempt.fate for attempt in attempts)
    others = "".join(f", {count} {fate}" for fate, count in sorted(fates.items()) if fate != "healthy")
    took = f", {statistics.median(times):.0f} ms (max {max(times):.0f})" if times else ""
    return f"{len(times)}/{len(attempts)}, {fates['healthy']} healthy{others}{took}"


def main() -> int:
    """0 if every attach was acknowledged and every victim is healthy, else 1."""
    parser = argparse.ArgumentParser(
        prog="./run attach-stress", description="Attach to programs that check themselves."
    )
    parser.add_argument("victims", nargs="*", metavar="VICTIM", help=f"which ones: {', '.join(VICTIMS)}; without, all")
    parser.add_argument("--attaches", type=int, metavar="N", help="how many, over all victims (500; of kills 200)")
    parser.add_argument("--method", default="auto", help="the way in: auto, remote_exec, pending_call")
    parser.add_argument(
        "--whole", action="store_true", help="by the command line, as a process, not from within Python"
    )
    parser.add_argument("--target", metavar="PYTHON", help="the interpreter of the victims, if it is another one")
    parser.add_argument("--kill", choices=kills.KILLS, help="end one of the participants at a random instant")
    parser.add_argument("--beside", type=int, default=0, metavar="N", help="other injectors, too, N attempts each")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *what: sys.exit(143))  # so that no victim is left
    for name in options.victims:
        if name not in VICTIMS:
            parser.error(f"there is no victim '{name}'; choose from {', '.join(VICTIMS)}")
    names = options.victims or list(VICTIMS)
    command = (options.target,) if options.target else PLAIN
    version = subprocess.run([*command, "-VV"], capture_output=True, text=True, check=True).stdout.split(" (")[0]
    title = f"{version}, {platform.machine()}, {_AT_ONCE} at a time"
    if options.kill:
        return kills.kill(options.kill, options.attaches or 200, names, command, title)

    method = options.method
    ways = {}
    for what, way in {"livepatch": (_whole if options.whole else _here)(method)}.items():
        chosen = islice(cycle(names), max(options.attaches or 500, len(names)))
        ways[what] = _attempts(what, way, chosen, command, 60.0)
    if options.beside:
        for what, other in injectors.others(command).items():
            ways[what] = _attempts(what, other, islice(cycle(names), options.beside), command, 10.0)
    _show(ways, title)
    return int(not all(attempt.good for attempt in ways["livepatch"]))


if __name__ == "__main__":
    sys.exit(main())
