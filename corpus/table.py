"""How the outcomes are shown: on a terminal, and in the documentation."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

from corpus.case import FIXED, ROOT, Outcome

PAGE = ROOT / "docs" / "corpus.md"
#: What the command made them with stands above the two tables of the page.
CASES_OF_PAGE, RELEASES_OF_PAGE = "./run corpus --markdown", "./run corpus --releases tests/cve/releases.txt --markdown"
_REASON = 400


def rate(outcomes: Sequence[Outcome]) -> str:
    """How many are fixed, in words."""
    fixed = sum(outcome.outcome == FIXED for outcome in outcomes)
    return f"{fixed} of {len(outcomes)} releases fixed in a live process and back, {100 * fixed / len(outcomes):.0f} %"


def show(outcomes: Sequence[Outcome]) -> None:
    """Print the table and the rate."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 180)
    table = Table(
        "case", "release", "advisory", "differences", "build", "load", "outcome", "why not, or what stays old",
        header_style="bold", title="livepatch corpus",
    )  # fmt: skip
    colours = {FIXED: "[green]fixed[/]"}
    for outcome in outcomes:
        table.add_row(
            outcome.name,
            f"{outcome.package} {outcome.v1} -> {outcome.v2}",
            outcome.advisory,
            differences(outcome),
            f"{outcome.build:.1f} s" if outcome.build else "-",
            f"{outcome.load:.1f} s" if outcome.load else "-",
            colours.get(outcome.outcome, f"[bold red]{outcome.outcome}[/]"),
            escape("\n".join(outcome.reasons or outcome.stays)),
        )
    console.print(table)
    console.print(rate(outcomes))


def differences(outcome: Outcome) -> str:
    """The differences of a release by their fate, in words."""
    found = [f"{count} {fate}" for fate, count in outcome.differences.items()]
    if outcome.stays:
        found.append(
            f"{len(outcome.stays)} stay old: {', '.join(stays.partition(' is ')[0] for stays in outcome.stays)}"
        )
    return ", ".join(found) or "-"


def start_of_row(case: Outcome) -> str:
    """The columns of a row of the page that do not depend on how the case went."""
    return f"| {_release(case)} | {case.advisory} | {_in_a_cell(case.what)} |"


def _release(case: Outcome) -> str:
    return f"{case.package} {case.v1} → {case.v2}"


def _shortened(reasons: Sequence[str]) -> str:
    why = "<br>".join(map(_in_a_cell, reasons))
    return why if len(why) <= _REASON else why[: _REASON - 3] + "..."


def _in_a_cell(text: str) -> str:
    """Text that means itself in a table: neither a new column nor a tag."""
    return text.replace("|", "/").replace("<", "&lt;")


def markdown(outcomes: Sequence[Outcome]) -> str:
    """The table and the rate, for the page."""
    lines = ["| release | advisory | what was wrong | outcome | differences, or why not |", "| - | - | - | - | - |"]
    for outcome in outcomes:
        why = _shortened(outcome.reasons or [differences(outcome)])
        lines.append(f"{start_of_row(outcome)} {outcome.outcome} | {why} |")
    return "\n".join([*lines, "", rate(outcomes) + ".", ""])


def in_short(outcomes: Sequence[Outcome]) -> str:
    """The same for releases that were only counted: a row for each that is not fixed, the names of the others."""
    lines = ["| release | outcome | why not |", "| - | - | - |"]
    for outcome in outcomes:
        if outcome.outcome != FIXED:
            lines.append(f"| {_release(outcome)} | {outcome.outcome} | {_shortened(outcome.reasons)} |")
    fixed = ", ".join(_release(outcome) for outcome in outcomes if outcome.outcome == FIXED)
    return "\n".join([*lines, "", f"Carried: {fixed}.", "", rate(outcomes) + ".", ""])


def write_page(text: str, command: str, page: Path = PAGE) -> None:
    """Put a table in its place in the page."""
    page.write_text(_place(command).sub(lambda _: text, page.read_text()))


def table_of_page(page: Path = PAGE) -> list[str]:
    """The lines of the table of the cases and the rate, as they stand in the page."""
    found = _place(CASES_OF_PAGE).search(page.read_text())
    return found[0].splitlines() if found else []


def _place(command: str) -> re.Pattern[str]:
    return re.compile(rf"(?<=<!-- made by {re.escape(command)} -->\n).*?(?=<!-- end -->)", re.DOTALL)
