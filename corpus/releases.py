"""Cases out of nothing but a list of releases, one a line: a package, the old version and the new one.

The known cases have shaped the builder, so their rate says little about releases that it was never shown. A list is
quickly written, and what it needs is found here: the pins of all else, the modules that differ. There is no proof of
concept then, see `without_proof.py`.
"""

from __future__ import annotations

import filecmp
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from corpus.case import CACHE, COMMAND, ROOT, Failure, tree

#: The list of which docs/corpus.md has the rate.
PAGE_HAS = ROOT / "tests" / "cve" / "releases.txt"

#: Parts of a package that no program imports.
_ASIDE = {"tests", "test", "testing", "conftest", "__main__", "migrations", "bin"}


def made(lists: Path) -> list[Path]:
    """The folders of the cases of a list, made if they are not there. Raises Failure, with the line that is wrong."""
    releases = []
    for number, line in enumerate(lists.read_text().splitlines(), 1):
        words = line.partition("#")[0].split()
        if words and len(words) != 3:
            raise Failure(f"{lists}:{number}: a line names a package, the old version and the new one")
        releases += [words] if words else []
    with ThreadPoolExecutor(4) as pool:  # most of it is waiting for the package index
        return list(pool.map(lambda words: _folder(*words), releases))


def _folder(package: str, v1: str, v2: str) -> Path:
    folder = CACHE / "releases" / f"{package}-{v1}"
    if not (folder / "case.json").exists():
        case: dict[str, Any] = {"package": package, "v1": v1, "v2": v2, "requires": _pins(package, v1, v2)}
        case["modules"] = list(_changed(tree(case, "v1"), tree(case, "v2")))
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(__file__).with_name("without_proof.py"), folder / "poc.py")
        (folder / "case.json").write_text(json.dumps(case, indent=2))
    return folder


def _pins(package: str, v1: str, v2: str) -> list[str]:
    """What the old release needs, as it would be installed today, and what the new one needs besides."""
    pins: dict[str, str] = {}
    for version in (v1, v2):
        pip = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-"]
        pip += ["--disable-pip-version-check", f"{package}=={version}"]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=COMMAND, check=False)
        try:
            wanted = [found["metadata"] for found in json.loads(done.stdout)["install"]]
        except ValueError:
            last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
            raise Failure(f"{package} {version} cannot be installed: {last}") from None
        for one in wanted:
            pins.setdefault(_plain(one["name"]), f"{one['name']}=={one['version']}")
    return [pin for name, pin in pins.items() if name != _plain(package)]


def _plain(name: str) -> str:
    return re.sub("[-_.]+", "-", name).lower()


def _changed(old: Path, new: Path) -> Iterator[str]:
    """The modules that both releases have and that differ."""
    for file in sorted(old.rglob("*.py")):
        place = file.relative_to(old)
        parts = place.with_suffix("").parts
        a_module = _ASIDE.isdisjoint(parts) and all(part.isidentifier() for part in parts)
        if a_module and (new / place).exists() and not filecmp.cmp(file, new / place, shallow=False):
            yield ".".join(parts).removesuffix(".__init__")
