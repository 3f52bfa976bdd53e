"""`livepatch run -- CMD`: start a command so that every Python in it, now or later, has an agent.

The command may be anything: a shell script, a supervisor, a console script of another virtual
environment. What reaches all Pythons below it is the environment, so the preparation is one entry at the
front of PYTHONPATH, a directory with nothing in it but a `sitecustomize`; that file tells the rest.
Interpreters that ignore the environment (`-E`, `-I`) or `site` (`-S`) run as they would have run, and are
not prepared.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

SITE = str(Path(__file__).resolve().parent / "site")
_SITE_ENDS = os.fsencode(os.path.join("livepatch", "attach", "site"))


def environment(original: Mapping[str, str]) -> dict[str, str]:
    """The environment that prepares the Pythons that get it."""
    path = original.get("PYTHONPATH", "")
    if path.split(os.pathsep)[0] != SITE:
        path = SITE + os.pathsep + path if path else SITE
    return {**original, "PYTHONPATH": path}


def is_prepared(pid: int) -> bool:
    """Whether a process was started in such an environment, by this livepatch or another one; not so if that cannot be
    seen.
    """
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            entries = file.read().split(b"\0")
    except OSError:
        return False
    paths = [entry.removeprefix(b"PYTHONPATH=") for entry in entries if entry.startswith(b"PYTHONPATH=")]
    return any(path.split(os.pathsep.encode())[0].endswith(_SITE_ENDS) for path in paths)


def run(command: list[str]) -> None:
    """Become this command, prepared; returns only by raising OSError if it cannot be executed."""
    os.execvpe(command[0], command, environment(os.environ))
