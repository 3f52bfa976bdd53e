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
