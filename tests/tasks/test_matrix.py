"""Every kind of task that Python has, in every situation of a transition; the table is in docs/tasks.md.

Each kind runs in a process of its own (`cells.py`), which does all cells and is started once.
"""

from __future__ import annotations

import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.tasks.cells import CELLS
from tests.tasks.worlds import WORLDS, there

ROOT = Path(__file__).parents[2]


@functools.cache
def results(world: str) -> dict[str, str | None]:
    """What came of each cell: None, or the traceback."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.tasks.cells", world], cwd=ROOT, capture_output=True, text=True, timeout=500
    )
    found = {line["cell"]: line["error"] for line in map(json.loads, done.stdout.splitlines())}
    missing = done.stderr or "the process ended before"
    return {cell.__name__: found.get(cell.__name__, missing) for cell in CELLS}


@pytest.mark.parametrize("cell", [cell.__name__ for cell in CELLS])
@pytest.mark.parametrize("world", [name for name in WORLDS if there(name)])
def test_a_kind_of_task(world, cell):
    error = results(world)[cell]
    assert error is None, error


def test_the_table_in_the_documentation_is_complete():
    lines = (ROOT / "docs" / "tasks.md").read_text().splitlines()
    rows = {line.split(" | ")[0].removeprefix("| "): line for line in lines if "✔" in line}
    assert rows.keys() == WORLDS.keys()
    assert all(row.count("✔") == len(CELLS) for row in rows.values())
    (head,) = [line for line in lines if line.startswith("| | enable")]
    assert set(head.strip("| ").split(" | ")) == {cell.__name__ for cell in CELLS}
