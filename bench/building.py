"""How long a build takes: the largest releases of the corpus, fetched once and compared again and again."""

from __future__ import annotations

import statistics
import time

from livepatch.build import from_step, steps
from livepatch.core.model import LivepatchError

from .measure import Row

#: The most files, the largest difference, the most vendored code.
_RELEASES = (("django", "4.2.15", "4.2.16"), ("aiohttp", "3.9.1", "3.9.2"), ("setuptools", "78.1.0", "78.1.1"))


def largest(quick: bool) -> list[Row]:
    """One row for each; what the package index takes is told, and does not count."""
    return [_row(*release, tries=2 if quick else 5) for release in _RELEASES]


def _row(name: str, old: str, new: str, *, tries: int) -> Row:
    what = f"build a patch from {name} {old} to {new}"
    reach = "≤ 5 s"
    begun = time.perf_counter()
    try:
        step = steps.package(name, old, new)
    except LivepatchError as error:
        return Row(what, reach, f"needs the package index: {error}", None)
    fetched = time.perf_counter() - begun
    times = []
    for _ in range(tries):
        begun = time.perf_counter()
        build = from_step(step)
        if not build.report.refused:
            build.archive("bench")
        times.append(time.perf_counter() - begun)
    found = statistics.median(times)
    modules = len(step.new.python)
    measured = (
        f"{found:.1f} s for {modules} modules, {len(build.report.changes)} differences (fetched in {fetched:.1f} s)"
    )
    return Row(what, reach, measured, found <= 5)
