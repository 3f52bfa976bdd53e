"""Other injectors, for comparison.

Each is told to run one line that writes a file; what it says about itself does not count. They are used as their
documentation says, from the command line.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from tests.attach.victims import Running

from .tools import environment

#: hypno brings pyinjector, and opens a library in the target (dlopen); pyrasite has a debugger do everything.
_PACKAGES = ("hypno", "pyrasite")

#: Seconds until the line must have run.
_PATIENCE = 15.0

_REMOTE_EXEC = "import sys; sys.remote_exec(int(sys.argv[1]), sys.argv[2])"


def others(target: Sequence[str]) -> dict[str, Callable[[Running], str]]:
    """The ways that can be tried with this interpreter as the target."""
    found = {}
    scripts = str(environment("injectors", *_PACKAGES))
    if (hypno := shutil.which("hypno", path=scripts)) is not None:
        found["hypno (dlopen)"] = _way(lambda pid, file: [hypno, pid, file.read_text()])
    if (pyrasite := shutil.which("pyrasite", path=scripts)) is not None and shutil.which("gdb"):
        found["pyrasite (gdb)"] = _way(lambda pid, file: [pyrasite, pid, str(file)])
    if not subprocess.run([*target, "-c", "import sys; sys.remote_exec"], capture_output=True).returncode:
        found["sys.remote_exec"] = _way(lambda pid, file: [*target, "-c", _REMOTE_EXEC, pid, str(file)])
    return found


def _way(command: Callable[[str, Path], list[str]]) -> Callable[[Running], str]:
    # What runs late still finds its file: only what it does to the victim shall count.
    folder = tempfile.TemporaryDirectory()

    def attach(running: Running) -> str:
        proof, file = (Path(folder.name) / f"{running.pid}.{what}" for what in ("proof", "py"))
        file.write_text(f"open({str(proof)!r}, 'w').close()")
        deadline = time.monotonic() + _PATIENCE
        with subprocess.Popen(
            command(str(running.pid), file),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as injector:
            try:
                _, errors = injector.communicate(timeout=_PATIENCE)
                said = (errors.strip().splitlines() or [f"status {injector.returncode}, the line did not run"])[-1]
            except subprocess.TimeoutExpired:
                os.killpg(injector.pid, signal.SIGKILL)  # the debugger that it has started, too
                said = "it does not end"
        while not proof.exists():
            if time.monotonic() > deadline:
                return said
            time.sleep(0.001)
        return ""

    return attach
