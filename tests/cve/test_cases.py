"""Real security releases, through the command line: vulnerable, fixed, and vulnerable again, in one live process.

The course of a case is in `corpus/case.py`, which `./run corpus` goes through as well, and `docs/corpus.md` shows.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from corpus import table
from corpus.case import FAILED, FIXED, REFUSED, ROOT, STALLED, Outcome, cases, run

ALL = cases()
#: As many as there is time for; `./run corpus` goes through all.
SOME = ALL[::2]


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("case", SOME, ids=lambda case: case.name)
def test_vulnerable_fixed_and_vulnerable_again(case):
    outcome = run(case)
    assert outcome.outcome == said_by_page(case), "\n".join(outcome.reasons)


def said_by_page(case) -> str:
    """What docs/corpus.md has as the outcome of a case: it must be true, also where it is not what one wishes for."""
    (row,) = [row for row in table.table_of_page() if row.startswith(table.start_of_row(described(case)))]
    return row.split("|")[4].strip()


def described(case) -> Outcome:
    content = json.loads((case / "case.json").read_text())
    return Outcome(case.name, *(content[key] for key in ("package", "v1", "v2", "advisory", "what")))


def test_there_are_thirty_each_named_after_its_release():
    assert len(ALL) == 30
    for case in ALL:
        known = described(case)
        assert case.name == f"{known.package}-{known.v1}"
        assert "def works(" in (case / "poc.py").read_text() or (case / "works.py").exists(), case


def test_the_page_was_made_by_the_command_for_all_cases():
    """`./run corpus --markdown` writes it; each row begins as the command makes it, and the rate is what it counts."""
    lines = table.table_of_page()
    rows = [line for line in lines if line.startswith("| ")][2:]
    outcomes = [described(case) for case in ALL]
    assert [row[: len(table.start_of_row(case))] for row, case in zip(rows, outcomes, strict=True)] == [
        table.start_of_row(case) for case in outcomes
    ]
    for row, outcome in zip(rows, outcomes, strict=True):
        outcome.outcome, reason = (cell.strip() for cell in row.split("|")[4:6])
        assert outcome.outcome in (FIXED, REFUSED, STALLED)
        assert reason not in ("", "-")
    assert lines[-1] == table.rate(outcomes) + "."


def test_a_case_that_does_not_go_as_it_should_is_told_with_its_step(tmp_path):
    """Also for folders of cases that are not the project's."""
    case = tmp_path / "nothing-1"
    case.mkdir()
    content = {"package": "certainly/not a package", "v1": "1", "v2": "2", "requires": [], "advisory": "-", "what": "-"}
    (case / "case.json").write_text(json.dumps(content))
    (case / "poc.py").write_text("def vulnerable():\n    return True\n")
    command = [sys.executable, "-m", "corpus", "--cases", tmp_path, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert done.returncode == 1
    (outcome,) = json.loads(done.stdout)["cases"]
    assert outcome["outcome"] == FAILED
    assert outcome["reasons"][0].startswith("its releases cannot be installed: ")
    assert "nothing-1 failed" in done.stderr
    again = subprocess.run([*command, "other"], capture_output=True, text=True, cwd=ROOT, timeout=300)
    assert again.returncode == 2
    assert "there is no case 'other'" in again.stderr
    assert "Traceback" not in again.stderr
