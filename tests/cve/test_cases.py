"""Real security releases, through the command line: vulnerable, fixed, and vulnerable again, in one live process.

The course of a case is in `corpus/case.py`, which `./run corpus` goes through as well, and `docs/corpus.md` shows.
"""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from corpus import releases, table
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


def corpus(*arguments) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "corpus", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)


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
    done = corpus("--cases", tmp_path, "--json")
    assert done.returncode == 1
    (outcome,) = json.loads(done.stdout)["cases"]
    assert outcome["outcome"] == FAILED
    assert outcome["reasons"][0].startswith("its releases cannot be installed: ")
    assert "nothing-1 failed" in done.stderr
    again = corpus("--cases", tmp_path, "--json", "other")
    assert again.returncode == 2
    assert "there is no case 'other'" in again.stderr
    assert "Traceback" not in again.stderr


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.once
def test_a_list_of_releases_needs_no_proof_of_concept(tmp_path):
    listed = tmp_path / "releases.txt"
    listed.write_text("configobj 5.0.8 5.0.9  # CVE-2023-26112\n\nrsa 4.6 4.7\n")
    done = corpus("--releases", listed, "--json")
    one, other = json.loads(done.stdout)["cases"]
    assert (one["name"], one["outcome"], one["stays"]) == ("configobj-5.0.8", FIXED, [])
    assert (other["name"], other["outcome"]) == ("rsa-4.6", REFUSED)
    assert "slots of live instances cannot change" in other["reasons"][0]


def test_a_list_that_is_wrong_is_told_with_its_line(tmp_path):
    listed = tmp_path / "releases.txt"
    listed.write_text("# nothing\njinja2 3.1.5\n")
    done = corpus("--releases", listed)
    assert done.returncode == 2
    assert f"{listed}:2: a line names a package, the old version and the new one" in done.stderr
    again = corpus("--releases", tmp_path / "missing.txt")
    assert again.returncode == 2
    assert "missing.txt" in again.stderr.splitlines()[-1]


def test_the_list_of_the_project_has_each_release_once():
    lines = [line for line in releases.PAGE_HAS.read_text().splitlines() if not line.startswith("#")]
    assert lines == sorted(set(lines))
    assert not {"-".join(line.split()[:2]) for line in lines} & {case.name for case in ALL}
