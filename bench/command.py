"""The command line as a person at a shell has it: the whole command, and what an agent costs in a process."""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from .measure import Row

#: A service with nothing to do. It says when it is ready, and ends when its input does.
_SERVICE = "def answer():\n    return 'old'\n"
_WAIT = "import sys, {}; print('ready', flush=True); sys.stdin.read()"

_LIVEPATCH = shutil.which("livepatch", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def livepatch(*arguments: object) -> list[str]:
    """The installed command, which people type."""
    assert _LIVEPATCH, "the command 'livepatch' is not installed beside this Python; use ./run bench"
    return [_LIVEPATCH, *map(str, arguments)]


@contextmanager
def _process(folder: Path, module: str, *prepared: str, more: Mapping[str, str] | None = None) -> Iterator[int]:
    """A Python that imports a module and waits; its pid."""
    command = [*prepared, sys.executable, "-c", _WAIT.format(module)]
    pipe, env = subprocess.PIPE, {**environment(), **(more or {})}
    with subprocess.Popen(command, cwd=folder, stdin=pipe, stdout=pipe, env=env) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid


def service(folder: Path, more: Mapping[str, str] | None = None) -> AbstractContextManager[int]:
    """A prepared process that has what `archive` changes, with `more` in its environment; its pid."""
    return _process(folder, "service", *livepatch("run", "--"), more=more)


def environment() -> dict[str, str]:
    """One in which Python may keep what it has compiled, as it may for those who install livepatch."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}


def seconds(command: list[str]) -> float:
    """How long a command takes where Python keeps what it has compiled."""
    begun = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    return time.perf_counter() - begun


def cost(command: list[str]) -> tuple[float, float]:
    """The same, and how many seconds of the processor it and what it starts take: those do not depend on others."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    wall = seconds(command)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def undisturbed(times: Iterable[float]) -> float:
    """In milliseconds, what it takes when nobody else has the processor: a tenth of the times were below that."""
    return statistics.quantiles(times, n=10, method="inclusive")[0] * 1000


def cold_start(quick: bool) -> list[Row]:
    """`livepatch --version` and an empty Python script, in turns: what a command costs before it does anything."""
    plain, version = [], []
    for _ in range(6 if quick else 31):
        plain.append(cost([sys.executable, "-c", "pass"]))
        version.append(cost(livepatch("--version")))
    del plain[0], version[0]  # they compile what later ones find compiled
    over = undisturbed(wall for wall, _ in version) - 2 * undisturbed(wall for wall, _ in plain)
    words = []
    for side in (version, plain):
        works = statistics.median(work for _, work in side) * 1000
        words.append(f"{undisturbed(wall for wall, _ in side):.0f} ms, {works:.0f} ms of the processor")
    return [
        Row(
            "`livepatch --version`, more than 2 x `python -c pass`, in turns",
            "≤ 60 ms",
            f"{over:.0f} ms ({words[0]}; an empty Python script {words[1]})",
            over <= 60,
        )
    ]


def archive(folder: Path) -> Path:
    for version in ("old", "new"):
        (folder / version).mkdir()
        (folder / version / "service.py").write_text(_SERVICE.replace("old", version))
    shutil.copy(folder / "old" / "service.py", folder)
    file = folder / "bench.livepatch"
    build = livepatch("build", "--name", "bench", "--old", folder / "old", "--new", folder / "new", "-o", file)
    subprocess.run(build, check=True, stdout=subprocess.DEVNULL)
    return file


def load(quick: bool) -> list[Row]:
    """`livepatch load` from its start to its end."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        file = archive(folder)
        prepared, work, start = [], [], []
        with _process(folder, "service", *livepatch("run", "--")) as pid:
            for _ in range(3 if quick else 15):
                wall, worked = cost(livepatch("load", file, "--pid", pid))
                prepared.append(wall)
                work.append(worked)
                subprocess.run(
                    livepatch("disable", "bench", "--unload", "--pid", pid), check=True, stdout=subprocess.DEVNULL
                )
                start.append(seconds([sys.executable, "-c", "pass"]))
    found = statistics.median(prepared) * 1000
    return [
        Row(
            "`livepatch load` from the shell into a prepared process, whole command",
            "≤ 300 ms",
            f"{found:.0f} ms, {statistics.median(work) * 1000:.0f} ms of the processor (an empty Python script"
            f" {statistics.median(start) * 1000:.0f} ms)",
            found <= 300,
        )
    ]


def agent(quick: bool) -> list[Row]:
    """What an agent costs while nobody needs it: private memory, and processor time while idle."""
    differences = []
    idle = 2.0 if quick else 10.0
    with TemporaryDirectory() as name:
        for _ in range(3):
            with (
                _process(Path(name), "threading") as plain,
                _process(Path(name), "threading", *livepatch("run", "--")) as prepared,
            ):
                time.sleep(0.3)
                differences.append(_private_memory(prepared) - _private_memory(plain))
        with _process(Path(name), "threading", *livepatch("run", "--")) as prepared:
            time.sleep(0.5)
            before = _work(prepared)
            time.sleep(idle)
            ticks, switches = (after - then for after, then in zip(_work(prepared), before, strict=True))
    memory = statistics.median(differences) / 1024
    return [
        Row("resident cost of the agent", "≤ 4 MB", f"{memory:.1f} MB", memory <= 4),
        Row(
            "processor time of an idle agent",
            "0",
            f"{ticks} ticks, {switches} context switches in {idle:.0f} s",
            ticks == 0,
        ),
    ]


def _private_memory(pid: int) -> int:
    """What would be free if the process ended, in KiB."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Clean:", "Private_Dirty:")))


def _work(pid: int) -> tuple[int, int]:
    """Clock ticks used and context switches made by all threads of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    switches = 0
    for task in Path(f"/proc/{pid}/task").iterdir():
        lines = (task / "status").read_text().splitlines()
        switches += sum(int(line.split()[1]) for line in lines if "ctxt_switches" in line)
    return int(fields[11]) + int(fields[12]), switches
