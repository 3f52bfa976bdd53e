"""`python -m corpus [CASE ...]`: go through the cases, several at a time, then the table and the rate."""

from __future__ import annotations

import argparse
import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from corpus import releases, table
from corpus.case import CASES, FIXED, Failure, Outcome, cases, run


def main() -> int:
    """0: every case is fixed; 1: one is not."""
    parser = argparse.ArgumentParser(
        prog="./run corpus",
        description="Build, load and disable the patches of real security releases in live vulnerable processes.",
        epilog="`./run corpus --python VERSION ...` does all of it with that Python.",
    )
    parser.add_argument(
        "names", nargs="*", metavar="CASE", help="which cases, by the start of their names; all if none"
    )
    parser.add_argument("--cases", type=Path, default=CASES, metavar="DIR", help="another folder of cases")
    parser.add_argument(
        "--releases", type=Path, metavar="FILE",
        help="instead of cases a list, of lines such as `jinja2 3.1.5 3.1.6`: there are no proofs of concept then",
    )  # fmt: skip
    parser.add_argument("--workers", type=int, default=2, metavar="N", help="how many cases at a time  [default: 2]")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    parser.add_argument("--markdown", action="store_true", help="write the table of docs/corpus.md as well")
    options = parser.parse_args()
    try:
        found = cases(options.cases) if options.releases is None else releases.made(options.releases)
    except (Failure, OSError) as error:
        parser.error(str(error))
    chosen = [case for case in found if case.name.startswith(tuple(options.names) or "")]
    for name in options.names:
        if not any(case.name.startswith(name) for case in chosen):
            parser.error(f"there is no case '{name}' in {options.releases or options.cases}")
    if not chosen:
        parser.error(f"there are no cases in {options.cases}; each is a folder with case.json and poc.py")
    of_page = {CASES: table.CASES_OF_PAGE, releases.PAGE_HAS: table.RELEASES_OF_PAGE}
    command = of_page.get((options.releases or options.cases).resolve())
    if options.markdown and (options.names or command is None):
        parser.error(f"--markdown is for all that the page has: {' or '.join(of_page.values())}")

    def go(case: Path) -> Outcome:
        outcome = run(case.resolve())
        why = f": {outcome.reasons[0]}" if outcome.reasons else ""
        print(f"{outcome.name} {outcome.outcome}{why}", file=sys.stderr, flush=True)
        return outcome

    with ThreadPoolExecutor(max(1, options.workers)) as pool:
        outcomes = list(pool.map(go, chosen))
    if options.json:
        report = {"rate": table.rate(outcomes), "cases": [outcome.as_json() for outcome in outcomes]}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        table.show(outcomes)
    if options.markdown:
        table.write_page((table.markdown if options.releases is None else table.in_short)(outcomes), command)
    return int(any(outcome.outcome != FIXED for outcome in outcomes))


sys.exit(main())
