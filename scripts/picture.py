"""Make docs/demo.svg, the picture in the README: what `livepatch demo` really prints, on a terminal of 132 columns.

usage: .venv/bin/python scripts/picture.py
"""

from __future__ import annotations

import io
import os
import pty
import sys
from pathlib import Path

from rich.console import Console
from rich.text import Text

COLUMNS = 132

os.environ |= {"COLUMNS": str(COLUMNS), "TERM": "xterm-256color", "COLORTERM": "truecolor"}
printed = bytearray()


def read(descriptor: int) -> bytes:
    data = os.read(descriptor, 65536)
    printed.extend(data)
    return data


if pty.spawn([str(Path(sys.executable).parent / "livepatch"), "demo"], read) != 0:
    sys.exit("the demo failed; no picture was made.")
# A line that was drawn anew (a progress bar) ends as its last state.
text = printed.decode().replace("\r\n", "\n").replace(str(Path.home()), "~")
lines = [line.rpartition("\r")[2] for line in text.split("\n")]
console = Console(record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True)
console.print(Text.from_ansi("\n".join(lines)))
target = Path(__file__).parent.parent / "docs" / "demo.svg"
console.save_svg(str(target), title="./run demo")
