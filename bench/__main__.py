"""`python -m bench [NAME ...] [--quick] [--json]`: each row in a process of its own, then the table."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
from typing import Any

#: Name of a row (or a few that belong together) -> where it is measured.
ROWS = {
    "source": "calls.from_source",
    "hand": "calls.by_hand",
    "transition": "calls.in_transition",
    "torn": "torn.torn",
    "reloaders": "reloaders.compared",
    "enable": "enable.ten_functions",
    "command": "command.cold_start",
    "load": "command.load",
    "fleet": "fleet.fleet",
    "signature": "fleet.signature",
    "attach": "attach.attach",
    "threads": "crowds.sleeping_threads",
    "tasks": "crowds.suspended_tasks",
    "million": "crowds.million_tasks",
    "inside": "crowds.tasks_inside",
    "memory": "crowds.memory",
    "server": "server.under_load",
    "agent": "command.agent",
    "shadow": "shadow.shadow",
    "instances": "instances.among_a_million",
    "build": "building.largest",
}


#: These are measured only if they are asked for: they need gigabytes.
ON_REQUEST = {"million"}


def main() -> int:
    """0: every row was measured and reached, or could not tell; 1: one was missed; 2: one failed."""
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measure what livepatch promises.")
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"which rows: {', '.join(ROWS)}; without, all but {', '.join(ON_REQUEST)}",
    )
    parser.add_argument("--quick", action="store_true", help="fewer rounds; some rows cannot tell then")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    for name in options.names:
        if name not in ROWS:
            parser.error(f"there is no row '{name}'; choose from {', '.join(ROWS)}")
    if options.here:
        print(json.dumps([row.as_json() for name in options.names for row in _measure(name, options.quick)]))
        return 0
    found: list[dict[str, Any]] = []
    failed = False
    for name in options.names or [name for name in ROWS if name not in ON_REQUEST]:
        if not options.json:
            print(f"measuring {name} ...", file=sys.stderr, flush=True)
        rows = _apart(name, options.quick)
        failed = failed or rows is None
        found += [{"name": name, **row} for row in rows or []]
    if options.json:
        print(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _show(found)
    return 2 if failed else int(any(row["met"] is False for row in found))


def _measure(name: str, quick: bool) -> list[Any]:
    module, _, function = ROWS[name].partition(".")
    measured: list[Any] = getattr(importlib.import_module(f"bench.{module}"), function)(quick)
    return measured


def _apart(name: str, quick: bool) -> list[dict[str, Any]] | None:
    command = [sys.executable, "-m", "bench", name, "--here", *(["--quick"] if quick else [])]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        print(f"the measurement of '{name}' failed", file=sys.stderr)
        return None
    rows: list[dict[str, Any]] = json.loads(done.stdout)
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table("what", "reach", "measured", "met", "reproduce with", header_style="bold", title="livepatch bench")
    verdicts = {True: "[green]yes[/]", False: "[bold red]NO[/]", None: "[dim]-[/]"}
    for row in rows:
        table.add_row(row["what"], row["reach"], row["measured"], verdicts[row["met"]], f"./run bench {row['name']}")
    console.print(table)


sys.exit(main())
