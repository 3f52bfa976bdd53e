"""Real security releases, through the command line: vulnerable, fixed, and vulnerable again, in one live process.

Each folder of `cases/` is one release of a package on the Python package index: `case.json` names it and pins all it
needs, and `poc.py` shows harmlessly whether the process is vulnerable. The target has the vulnerable release imported
and holds objects that were made by it, before the patch is built from the two releases and loaded.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CASES = sorted(path.parent.name for path in HERE.glob("cases/*/case.json"))
CACHE = HERE.parent.parent / ".cache" / "cve"

pytestmark = [pytest.mark.slow, pytest.mark.network, pytest.mark.timeout(1200)]


def livepatch(*arguments: object, status: int = 0) -> str:
    """One command, as a user types it."""
    done = subprocess.run(
        [sys.executable, "-m", "livepatch", *map(str, arguments)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == status, f"{arguments}: {done.stdout}{done.stderr}"
    return done.stdout + done.stderr


def tree(case: dict) -> Path:
    """The vulnerable release with exactly the pins of the case, installed once and kept."""
    kept = CACHE / f"{case['package']}-{case['v1']}-{sysconfig.get_python_version()}"
    if not kept.exists():
        made = kept.with_name(f"{kept.name}.{os.getpid()}")
        wanted = [f"{case['package']}=={case['v1']}", *case["requires"]]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*pip, "--target", made, *wanted], check=True, stderr=subprocess.DEVNULL)
        try:
            made.rename(kept)
        except OSError:  # another worker was quicker
            shutil.rmtree(made)
    return kept


class Target:
    """A running vulnerable process."""

    def __init__(self, name: str, release: Path) -> None:
        command = [sys.executable, HERE / "target.py", HERE / "cases" / name / "poc.py"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "livepatch", "run", "--", *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": str(release)},
        )
        self.pid = self.ask("pid")

    def ask(self, question: str):
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        self.process.stdin.close()
        self.process.wait(60)
        self.process.stdout.close()


@pytest.mark.parametrize("name", CASES)
def test_vulnerable_fixed_and_vulnerable_again(name, tmp_path):
    case = json.loads((HERE / "cases" / name / "case.json").read_text())
    target = Target(name, tree(case))
    try:
        assert target.ask("vulnerable") is True
        assert target.ask("works") is not False

        archive = tmp_path / "fix.livepatch"
        livepatch("build", "--package", case["package"], "--from", case["v1"], "--to", case["v2"], "-o", archive)
        livepatch("check", archive, "--pid", target.pid)
        livepatch("load", archive, "--pid", target.pid)
        assert target.ask("vulnerable") is False
        assert target.ask("works") is not False

        listed = json.loads(livepatch("list", "--json", "--pid", target.pid))
        (name,) = [patch["name"] for patch in listed[0]["patches"]]
        livepatch("disable", name, "--pid", target.pid)
        assert target.ask("vulnerable") is True
        assert target.ask("works") is not False
        livepatch("unload", name, "--pid", target.pid)

        livepatch("load", archive, "--pid", target.pid)
        assert target.ask("vulnerable") is False
        assert target.ask("pid") == target.pid
        assert not re.search("warning|error", livepatch("dmesg", "--pid", target.pid), re.IGNORECASE)
    finally:
        target.close()


def test_there_are_ten():
    assert len(CASES) >= 10
