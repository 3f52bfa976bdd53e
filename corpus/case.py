"""One case, from a vulnerable process to a fixed one and back, with nothing but the command line.

The target has the vulnerable release imported and holds objects that it made, before the patch is built from the two
releases and loaded. A case is `fixed` only if every step was as it should be:

1. the process is vulnerable, and the package works;
2. `build` carries every difference between the two releases, or all but what is named as refused: then no more is done;
3. `check` and `load` take it, and the process is no longer vulnerable, and the package works; where it does not consist
   of what a process with the fixed release consists of, that is told as what stays old;
4. after `disable` it is vulnerable again, and works; after `unload` everything that modules, classes and functions
   of the packages consist of is what it was, object by object;
5. loaded again it is fixed again, and the log has neither warning nor error.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CASES = ROOT / "tests" / "cve" / "cases"
CACHE = ROOT / ".cache" / "cve"

#: Modules -> names -> what they are, in words: see `content.py`.
Described = dict[str, dict[str, str]]

FIXED, REFUSED, STALLED, FAILED = "fixed", "refused", "stalled", "failed"

#: Seconds: for one command, and for all that a process is asked from its start to its end.
COMMAND, WHOLE = 300, 600


class Failure(Exception):
    """A step did not go as it should; the sentence says which and how."""


class Stalled(Exception):
    """A task stays in what the patch changes, so the command took it back; says which task, and where."""


class Refused(Exception):
    """The build cannot carry everything; one sentence for each difference."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


@dataclass
class Outcome:
    """What became of a case. `reasons` are sentences, none if it is fixed; times are in seconds."""

    name: str
    package: str
    v1: str
    v2: str
    advisory: str
    what: str
    outcome: str = FAILED
    reasons: list[str] = field(default_factory=list)
    differences: dict[str, int] = field(default_factory=dict)  # by their fate
    stays: list[str] = field(default_factory=list)  # what is not as in a process with the fixed release
    build: float = 0.0
    load: float = 0.0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def cases(folder: Path = CASES) -> list[Path]:
    """The folders of the cases in a folder, by name."""
    return sorted(path.parent for path in folder.glob("*/case.json"))


def run(folder: Path) -> Outcome:
    """Go through the case in a folder. Never raises for what a case may do; it is bounded in time."""
    case = json.loads((folder / "case.json").read_text())
    outcome = Outcome(folder.name, *(case.get(key, "") for key in ("package", "v1", "v2", "advisory", "what")))
    try:
        with tempfile.TemporaryDirectory(prefix="livepatch-corpus-") as scratch:
            archive = Path(scratch) / "fix.livepatch"
            packages = tree(case, "v1")
            with target(folder, packages) as process:
                _go_through(process, folder, case, archive, outcome)
        outcome.outcome = FIXED
    except Refused as refused:
        outcome.outcome, outcome.reasons = REFUSED, refused.reasons
    except Stalled as stalled:
        outcome.outcome, outcome.reasons = STALLED, [str(stalled)]
    except Failure as failure:
        outcome.reasons = [str(failure)]
    return outcome


def _go_through(process: Target, folder: Path, case: dict[str, Any], archive: Path, outcome: Outcome) -> None:
    process.expect("in the old release", vulnerable=True)
    process.ask("remember")
    process.expect("asked again", vulnerable=True)
    process.ask("settle")
    before = process.ask("describe")

    began = time.monotonic()
    outcome.differences = _build(case, archive)
    outcome.build = time.monotonic() - began

    livepatch("check", archive, "--pid", process.pid)
    began = time.monotonic()
    livepatch("load", archive, "--pid", process.pid)
    outcome.load = time.monotonic() - began
    process.expect("with the patch", vulnerable=False)
    outcome.stays = _what_stays(folder, case, before, process.ask("describe"))

    (listed,) = json.loads(livepatch("list", "--json", "--pid", process.pid))
    (patch,) = [patch["name"] for patch in listed["patches"]]
    livepatch("disable", patch, "--pid", process.pid)
    process.expect("with the patch disabled", vulnerable=True)
    livepatch("unload", patch, "--pid", process.pid)
    different = process.ask("changed")
    if different:
        raise Failure(f"{len(different)} things did not come back, such as {different[0]}")

    livepatch("load", archive, "--pid", process.pid)
    process.expect("with the patch loaded again", vulnerable=False)
    said = livepatch("dmesg", "--pid", process.pid)
    if complaint := re.search(".*(warning|error).*", said, re.IGNORECASE):
        raise Failure(f"the log says: {complaint[0]}")


def _what_stays(folder: Path, case: dict[str, Any], before: Described, now: Described) -> list[str]:
    """What the patched process has in another way than one with the fixed release, in words.

    Names that the fixed release does not have may stay; what is another thing in every process does not count.
    """
    with target(folder, tree(case, "v2")) as process:
        process.expect("in the new release", vulnerable=False)
        wanted = process.ask("describe")
    different = [
        (module, name)
        for module in sorted(now.keys() & wanted.keys())
        for name, content in wanted[module].items()
        if now[module].get(name) != content
    ]
    if different:
        with target(folder, tree(case, "v1")) as process:
            process.expect("in another process", vulnerable=True)
            again = process.ask("describe")
        different = [(m, n) for m, n in different if before.get(m, {}).get(n) == again.get(m, {}).get(n)]
    return [
        f"{module}.{name} is {now[module].get(name, 'missing')}, in the new release {wanted[module][name]}"
        for module, name in different
    ]


def _build(case: dict[str, Any], archive: Path) -> dict[str, int]:
    """Build the archive; how many differences have which fate. Raises Refused."""
    source = ["--package", case["package"], "--from", case["v1"], "--to", case["v2"]]
    if "pip_args" in case:  # what runs is not what the index has: the release is built in a way of its own
        source = ["--old", str(tree(case, "v1")), "--new", str(tree(case, "v2"))]
    done = _command("build", *source, "-o", archive, "--json")
    try:
        report = json.loads(done.stdout)["report"]
    except (ValueError, KeyError):
        raise Failure(f"build: {_last_line(done)}") from None
    if report["refused"]:
        raise Refused([_sentence(change) for change in report["refused"]])
    if done.returncode:
        raise Failure(f"build: {_last_line(done)}")
    return {fate: len(changes) for fate, changes in report.items() if changes}


def _sentence(change: dict[str, Any]) -> str:
    where = f"{change['file']}:{change['line']}" if change["line"] else change["file"]
    what = f"{change['kind']} {change['name']}: " if change["name"] else ""
    return f"{where}: {what}{change['reason']}"


def livepatch(*arguments: object) -> str:
    """One command, as a user types it. Raises Failure with what it said if its status is not 0; Stalled for 3."""
    done = _command(*arguments)
    if done.returncode == 3:
        said = [line.removeprefix("livepatch: ") for line in done.stderr.splitlines()]
        blocking = [line.strip() for line in said if line.startswith("  ")]
        where = re.sub(rf"{re.escape(str(CACHE))}/[^/]*/", "", "; ".join(blocking))
        raise Stalled(f"{arguments[0]}: taken back, since a task does not leave: {where}")
    if done.returncode:
        raise Failure(f"{arguments[0]}: {_last_line(done)}")
    return done.stdout


def _command(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "livepatch", *map(str, arguments)]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=COMMAND, check=False)
    except subprocess.TimeoutExpired:
        raise Failure(f"{arguments[0]}: it took longer than {COMMAND} s") from None


def _last_line(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr or done.stdout).strip().splitlines()
    return lines[-1].strip() if lines else f"exit status {done.returncode}"


def tree(case: dict[str, Any], version: str) -> Path:
    """A release (`v1` or `v2`) with exactly the pins of the case, installed once and kept. Raises Failure."""
    kept = CACHE / f"{case['package']}-{case[version]}-{sysconfig.get_python_version()}"
    if not kept.exists():
        made = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}")
        wanted = [f"{case['package']}=={case[version]}", *case["requires"]]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
        pip += [*case.get("pip_args", []), "--target", str(made), *wanted]
        environment = {**os.environ, **case.get("build_env", {})}
        done = subprocess.run(pip, capture_output=True, text=True, env=environment, timeout=COMMAND, check=False)
        if done.returncode:
            shutil.rmtree(made, ignore_errors=True)
            raise Failure(f"its releases cannot be installed: {_last_line(done)}")
        try:
            made.rename(kept)
        except OSError:  # another worker was quicker
            shutil.rmtree(made)
    return kept


@contextmanager
def target(folder: Path, packages: Path) -> Iterator[Target]:
    """A running process with the packages, that has imported the proof of concept."""
    command = [sys.executable, Path(__file__).with_name("target.py"), folder, packages]
    path = os.pathsep.join([str(packages), *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile("w+", errors="replace") as printed:
        process = subprocess.Popen(
            [sys.executable, "-m", "livepatch", "run", "--", *map(str, command)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=printed,
            text=True,
            cwd=folder,
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONHASHSEED": "0"},
        )
        limit = threading.Timer(WHOLE, process.kill)
        limit.start()
        try:
            yield Target(process)
        except BrokenPipeError:
            printed.seek(0)
            lines = printed.read().strip().splitlines() or ["it said nothing"]
            raise Failure(f"the process ended: {lines[-1]}") from None
        finally:
            limit.cancel()
            assert process.stdin is not None
            assert process.stdout is not None
            try:
                process.stdin.close()
                process.wait(10)
            except (BrokenPipeError, subprocess.TimeoutExpired):
                process.kill()
                process.wait()
            process.stdout.close()


class Target:
    """The vulnerable process, and what it answers."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.pid = self.ask("pid")

    def ask(self, question: str) -> Any:
        """Raises Failure if the answer is an exception, and BrokenPipeError if there is none."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(question + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise BrokenPipeError
        good, value = json.loads(line)
        if not good:
            raise Failure(f"{question}() failed: {value}")
        return value

    def expect(self, when: str, *, vulnerable: bool) -> None:
        """Raises Failure unless it is vulnerable or not, as expected, and the package works."""
        try:
            if self.ask("vulnerable") is not vulnerable:
                ways = [way for way, is_open in (self.ask("parts") or {}).items() if is_open is not vulnerable]
                which = f" ({', '.join(ways)})" if ways else ""
                raise Failure(f"the process is {'not ' if vulnerable else 'still '}vulnerable{which}")
            if not self.ask("works"):
                raise Failure("works() is false")
        except Failure as failure:
            raise Failure(f"{when} {failure}") from None
