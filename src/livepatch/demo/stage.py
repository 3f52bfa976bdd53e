"""How the demo looks: commands as typed, what they answered, and on a terminal the traffic in the bottom line."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.text import Text

from .service import Folder, stop
from .traffic import Traffic

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 100


class _Pulse:
    """The traffic of the last seconds, in one line."""

    def __init__(self, traffic: Traffic, pid: int) -> None:
        self._traffic = traffic
        self._pid = pid

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rate, slices = self._traffic.recent()
        failed = len(self._traffic.failed)
        color = "red" if failed else "green"
        yield Text.assemble(
            ("   ● " if int(time.monotonic() * 2) % 2 else "   ○ ", f"bold {color}"),
            (f"{rate:.0f} requests/s   ", "bold"),
            (f"{failed} failed", color),
            "   slowest ",
            ("".join(_bar(ms) for ms in slices) + f" {max(slices):.0f} ms", "cyan"),
            (f"   process {self._pid}", "dim"),
        )


def _bar(milliseconds: float) -> str:
    """Each step is twice the one before; the highest is 80 ms and more."""
    return _BARS[min(len(_BARS) - 1, max(0, int(milliseconds / 0.625).bit_length()))]


class Stage:
    """Everything that the demo prints."""

    def __init__(self, *, on_stderr: bool) -> None:
        terminal = (sys.stderr if on_stderr else sys.stdout).isatty()
        self.console = Console(stderr=on_stderr, highlight=False, width=None if terminal else _WIDTH)
        self._steps = 0

    def title(self, text: str) -> None:
        self.console.print(Text(text, style="bold"))

    def step(self, text: str) -> None:
        self._steps += 1
        self.console.print()
        self.console.print(Text.assemble((f"{self._steps}  ", "bold cyan"), (text, "bold")))

    def say(self, text: str) -> None:
        self.console.print(Text(f"   {text}", style="dim"))

    def check(self, held: bool, text: str) -> None:
        """A promise, and whether it held."""
        self.console.print(Text.assemble("   ", ("✓ ", "bold green") if held else ("✗ ", "bold red"), text))

    def typed(self, command: str) -> None:
        self.console.print(Text.assemble("   ", ("$ ", "bold green"), (command, "bold")), soft_wrap=True)

    def run(self, folder: Folder, command: str) -> int:
        """Show a command as typed, run it, show what it says, and return its exit status."""
        self.typed(command)
        process = folder.start(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
        try:
            assert process.stdout is not None
            for line in process.stdout:
                self.console.print(Text(f"   {line.rstrip()}"), soft_wrap=True)
            return process.wait()
        finally:
            stop(process)

    @contextmanager
    def pulse(self, traffic: Traffic, pid: int) -> Iterator[None]:
        """Within the block the bottom line of a terminal shows the traffic."""
        if not self.console.is_terminal:
            yield
            return
        with Live(_Pulse(traffic, pid), console=self.console, refresh_per_second=8, transient=True):
            yield
