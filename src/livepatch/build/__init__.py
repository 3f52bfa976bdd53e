"""From two versions of a source to a report and a patch archive.

Nothing of either version is run: both are parsed and compiled. `from_trees`, `from_diff`, `from_package` and
`from_git` get the two versions and compare them; the `Build` they return has the report, can be narrowed, and makes
the archive. For several sources in one patch, vendored copies and cumulative patches, make a `Step` first: `steps`.

    build = from_package("jinja2", "3.1.4", "3.1.5").narrowed(exclude=["jinja2.tests"])
    for change in build.report.refused: print(change)
    data = build.archive("jinja2-fix")
"""

from livepatch.build.compare import compare
from livepatch.build.pack import Build, from_diff, from_git, from_package, from_step, from_trees
from livepatch.build.report import Change, Report

__all__ = ["Build", "Change", "Report", "compare", "from_diff", "from_git", "from_package", "from_step", "from_trees"]
