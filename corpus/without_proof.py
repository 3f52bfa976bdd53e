"""Takes the place of `poc.py` for a release of which no proof of concept is known, see `releases.py`.

It imports every module that the release changes, as far as they can be imported here, and calls the process vulnerable
while it consists of the old release: whether the patch does what the release does is told by what stays old.
"""

import contextlib
import importlib
import importlib.metadata
import json
from pathlib import Path

case = json.loads(Path(__file__).with_name("case.json").read_text())
imported = []
for name in case["modules"]:
    with contextlib.suppress(Exception, SystemExit):  # what an optional part needs is not there
        imported.append(importlib.import_module(name))
if not imported:
    raise ImportError("none of the modules that the release changes can be imported here")


def vulnerable():
    if importlib.metadata.version(case["package"]) == case["v2"]:
        return False
    import livepatch

    return not any(patch.enabled for patch in livepatch.patches())


def works():
    return True
