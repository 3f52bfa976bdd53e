"""The service of the demo: its environment, its folder, and its process.

It lives in a virtual environment of its own, which has a vulnerable release of starlette and no livepatch: what
`livepatch run` prepares need not have it installed. The environment is made once, with every requirement pinned, and
kept in the user's cache. The folder is made for one run; the commands that are shown are executed in it, as shown.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from livepatch.core.model import LivepatchError

FILES = Path(__file__).parent / "files"
PATIENCE = 30.0


def cache() -> Path:
    """Where the environment is kept. Its name says all that it depends on, so that none is ever out of date."""
    root = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    made_of = (FILES / "requirements.txt").read_text() + sys.version + sys.base_prefix
    return root / "livepatch" / f"demo-{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"


def is_installed() -> bool:
    """The environment is there, whole."""
    return (cache() / "complete").exists()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Nobody else makes this environment at the same time."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def environment() -> Path:
    """The service's virtual environment, made if it is not there. Raises LivepatchError if pip cannot install it."""
    folder = cache()
    with _alone(folder):
        if not is_installed():
            shutil.rmtree(folder, ignore_errors=True)
            venv.create(folder, symlinks=True)
            command = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
            command += ["install", "--quiet", "--no-input", "--disable-pip-version-check", "--only-binary", ":all:"]
            command += ["--no-deps", "--requirement", str(FILES / "requirements.txt")]
            done = subprocess.run(command, capture_output=True, text=True, errors="replace")
            if done.returncode:
                raise LivepatchError(errno.EIO, _why_not(done.stderr))
            (folder / "complete").touch()
    return folder


def _why_not(said: str) -> str:
    if "No module named pip" in said:
        return "the demo needs pip in this Python: run `python -m ensurepip`"
    last = next((line for line in reversed(said.splitlines()) if line.startswith("ERROR")), "pip failed")
    return f"the vulnerable release for the demo could not be installed ({last.removeprefix('ERROR: ').strip()})."


class Folder:
    """The working folder of one run, and the environment of the commands that are executed there."""

    def __init__(self, path: Path, environment: Path) -> None:
        self.path = path
        for name in ("shop.py", "poc.py", "load.py"):
            shutil.copy(FILES / name, path)
        (path / "static").mkdir()
        (path / "static" / "shop.html").write_text("<!doctype html><title>Shop</title><p>Welcome.\n")
        (path / "static_private").mkdir()
        (path / "static_private" / "customers.csv").write_text("name,card\nAda,4000001234567899\n")
        # `python` is the service's, `livepatch` the one that runs this demo.
        places = [str(environment / "bin"), str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
        self.env = {**os.environ, "PATH": os.pathsep.join(places), "COLUMNS": "120"}

    def start(self, command: str, *, stdout: IO[str] | int, stderr: IO[str] | int) -> subprocess.Popen[str]:
        """Start a command as it is typed. It has a process group of its own: Ctrl-C is for the demo."""
        words = command.split()
        program = shutil.which(words[0], path=self.env["PATH"])
        if program is None:
            raise LivepatchError(errno.ENOENT, f"the command '{words[0]}' is not installed beside {sys.executable}.")
        return subprocess.Popen(
            words,
            executable=program,
            cwd=self.path,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=stdout,
            stderr=stderr,
            text=True,
            process_group=0,
        )


@contextmanager
def background(folder: Folder, command: str, log: Path, *, heard: bool) -> Iterator[subprocess.Popen[str]]:
    """A command that runs until the end of the block, whatever ends it.

    What it prints goes to the log; with `heard`, only its complaints do, and the rest is for us.
    """
    with open(log, "w") as file:
        process = folder.start(command, stdout=subprocess.PIPE if heard else file, stderr=file)
        try:
            yield process
        finally:
            stop(process)


def stop(process: subprocess.Popen[str]) -> None:
    """End a process that we started, politely at first."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(3.0)
        except subprocess.TimeoutExpired:
            process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()


def free_port() -> int:
    """A port on which nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def wait_until_ready(process: subprocess.Popen[str], port: int, log: Path) -> None:
    """Wait until the service listens. Raises LivepatchError if it ends instead."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1.0).close()
            return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text().strip().splitlines() or ["it said nothing"])[-1]
            raise LivepatchError(errno.EIO, f"the demo's service did not start: {last}")
        time.sleep(0.02)


# -- the process as the kernel sees it ------------------------------------------------------------------------


def start_time(pid: int) -> int:
    """When a process started, in clock ticks since boot: together with the pid its identity. -1 if it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return -1
    return int(stat.rpartition(")")[2].split()[19])


def clock(ticks: int) -> str:
    """A time in clock ticks since boot as the time of day."""
    booted = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)
    seconds = booted + ticks / os.sysconf("SC_CLK_TCK")
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f"{seconds % 1:.2f}"[1:]


def connections(pid: int, port: int) -> frozenset[str]:
    """The established connections to this port that the process has open, each by its inode."""
    held = set()
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        try:
            target = os.readlink(entry)
        except OSError:
            continue
        found = re.fullmatch(r"socket:\[(\d+)\]", target)
        if found:
            held.add(found[1])
    established = set()
    for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1].endswith(f":{port:04X}") and fields[3] == "01":
            established.add(fields[9])
    return frozenset(held & established)
