"""Tools of others, for comparison: in an environment of their own, made when they are asked for."""

from __future__ import annotations

import subprocess
import sys
import venv
from pathlib import Path


def environment(name: str, *packages: str) -> Path:
    """The folder of the programs of an environment that has these packages. One that cannot be installed for this
    Python is left out, and that is said.
    """
    folder = Path(".cache") / name
    programs = folder.absolute() / "bin"
    if not programs.exists():
        venv.create(folder, with_pip=True)
    python = str(programs / "python")
    for package in packages:
        known = [python, "-c", f"import importlib.metadata as m; m.version({package!r})"]
        pip = [python, "-m", "pip", "install", "-qq", "--disable-pip-version-check", package]
        if subprocess.run(known, stderr=subprocess.DEVNULL).returncode and subprocess.run(pip).returncode:
            print(f"{package} could not be installed for this Python and is left out", file=sys.stderr)
    return programs
